"""FrozenCLIP: images and texts to vectors, words that it does not know, and which CLIP it is."""

import hashlib
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

import clip_fusion_loss
from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    LanguageDrivenFusionLoss,
)
from clip_fusion_loss.encoder import same_clip
from conftest import MODEL_CONFIG, build_clip, make_criterion
from reference import MEAN, STD, Reference


def reference(tokenizer):
    return Reference(build_clip(), tokenizer, ["a"], ["b"], ["c"])


# Dashes, dots, arrows, and what looks like nothing.
SEPARATORS = "\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}\N{MIDDLE DOT}\N{BULLET}\N{RIGHTWARDS ARROW}\
\N{FULLWIDTH SOLIDUS}\N{HORIZONTAL ELLIPSIS}\N{ZERO WIDTH SPACE}\N{NO-BREAK SPACE}\t\n"


class TestEncodeImage:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [(32, 32), (16, 16), (100, 41)])
    def test_equals_the_reference(self, clip_model, tokenizer, channels, size):
        images = torch.rand(3, channels, *size, dtype=torch.float64)
        vectors = FrozenCLIP(clip_model, tokenizer).encode_image(images.float())
        embed = reference(tokenizer).embed_image
        expected = torch.stack([embed(image) for image in images])
        torch.testing.assert_close(vectors.double(), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_unit_float32_vectors_whatever_comes_in(self, encoder, dtype):
        vectors = encoder.encode_image(torch.rand(2, 1, 40, 40).to(dtype))
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))

    def test_the_models_own_size_mean_and_std(self, clip_model, tokenizer):
        images = torch.rand(1, 3, 32, 32)
        mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
        clip_model.visual.preprocess_cfg = {"size": 32, "mean": mean.tolist(), "std": std.tolist()}
        vectors = FrozenCLIP(clip_model, tokenizer).encode_image(images)
        normalised = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(vectors, clip_model.encode_image(normalised, normalize=True))

    def test_statistics_keep_their_precision(self, encoder):
        encoder.half()
        torch.testing.assert_close(encoder._mean.flatten(), torch.tensor(MEAN), atol=0, rtol=0)
        torch.testing.assert_close(encoder._std.flatten(), torch.tensor(STD), atol=0, rtol=0)


class TestEncodeText:
    def test_equals_the_reference(self, clip_model, tokenizer):
        texts = ["a visible gray image", "an infrared image"]
        vectors = FrozenCLIP(clip_model, tokenizer).encode_text(texts)
        embed = reference(tokenizer).embed_texts
        expected = torch.stack([embed(tokenizer, [text]) for text in texts])
        torch.testing.assert_close(vectors.double(), expected, atol=1e-5, rtol=0)
        assert not vectors.requires_grad

    def test_text_tower_can_be_dropped_after_use(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, keep_text=False)
        first = encoder.encode_text(["one", "two"])
        assert torch.equal(encoder.encode_text(["two"]), first[1:])
        with pytest.raises(RuntimeError, match=r"keep_text=False.*'three'.*EmbeddedFusionModel"):
            encoder.encode_text(["one", "three"])

    @pytest.mark.filterwarnings("ignore:the model")
    def test_unknown_words_are_left_out(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "clear", "image"})
        both = encoder.encode_text(["a Clear purple image \N{FIRE}", "a Clear image"])
        assert torch.equal(both[0], both[1])

    def test_texts_without_a_known_word(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "the", "clear", "image"})
        for text in ("a purple elephant dancing to the 7 \N{FIRE}", "...", "the a", "-"):
            assert encoder.has_no_known_word(text)
        for text in ("A purple Image", "not_clear", "unclear/image"):
            assert not encoder.has_no_known_word(text)
        assert not FrozenCLIP(clip_model, tokenizer).has_no_known_word("the a")

    @pytest.mark.parametrize("form", ['"{}"', "({})", "{}.", "{}!", "\u201c{}\u201d", "'{}' "])
    def test_marks_around_a_text_say_nothing(self, form):
        encoder, text = FrozenCLIP.tiny(), "a dark image"
        expected, given = encoder.encode_text(text), encoder.encode_text(form.format(text))
        torch.testing.assert_close(given, expected)

    @pytest.mark.filterwarnings("ignore:the model")
    @pytest.mark.parametrize("mark", [*"/_-+&|=", *SEPARATORS], ids=ascii)
    def test_whatever_separates_words_is_a_space(self, clip_model, tokenizer, mark):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "clear", "dark", "image"})
        expected = encoder.encode_text("a dark clear image")
        for text in (f"a dark{mark}clear image", f"a{mark}dark {mark} clear{mark} image"):
            assert torch.equal(encoder.encode_text(text), expected)
        # Words and numbers that are left out glue nothing either.
        assert torch.equal(encoder.encode_text("a dark2clear image"), expected)

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("a purple elephant image", "elephant', 'purple"),
            ("a clear image \N{FIRE}", "\N{FIRE}"),
            ("a clear image\N{BLACK STAR}\N{VARIATION SELECTOR-16}", "\N{BLACK STAR}"),
            ("a clear \N{RIGHTWARDS ARROW} image", "\N{RIGHTWARDS ARROW}"),
            ("a_clear_image", "_"),
            ("a clear image @ 100 %", "%', '100', '@"),
        ],
    )
    def test_unknown_words_and_symbols_are_named(self, clip_model, tokenizer, text, named):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "clear", "image"})
        with pytest.warns(UserWarning, match=f"not trained on '{named}"):
            encoder.encode_text(text)

    @pytest.mark.parametrize(
        "text", ["an image without noise", "a photo with no fog", "Not a dark image"]
    )
    def test_a_negation_gets_a_hint_once(self, encoder, text, recwarn):
        encoder.encode_text(["a knotted, notable image", text, text])
        encoder.encode_text(text)
        (hint,) = recwarn
        assert f"got {text!r}; say what the image should be" in str(hint.message)
        assert "FusionObjective(opposite=...)" in str(hint.message)
        assert hint.filename == __file__

    def test_ordinary_punctuation_is_not(self, clip_model, tokenizer, recwarn):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary=["a", "clear", "image"])
        encoder.encode_text(
            "(A clear, clear-clear image: 'a image'; \u201ca image\u201d? a image!)"
        )
        assert not recwarn

    def test_float32_text_tower_whatever_the_image_tower_is(self, encoder):
        expected = encoder.encode_text("one")
        encoder._text_embeddings.clear()
        assert torch.equal(encoder.half().encode_text("one"), expected)


def build(seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**{**MODEL_CONFIG, **changes})


def vision(**changes):
    return {"vision_cfg": {**MODEL_CONFIG["vision_cfg"], **changes}}


def text(**changes):
    return {"text_cfg": {**MODEL_CONFIG["text_cfg"], **changes}}


def with_a_text_tower_of_its_own():
    """The same weights in open_clip's other class of CLIPs."""
    model = open_clip.CustomTextCLIP(**MODEL_CONFIG)
    model.load_state_dict(open_clip.model.convert_to_custom_text_state_dict(build().state_dict()))
    return model


def with_text_of(model, other):
    """The image tower of one and the text tower of the other."""
    state = {k: v for k, v in other.state_dict().items() if not k.startswith("visual.")}
    model.load_state_dict(state, strict=False)
    return model


def with_preprocessing(**values):
    model = build()
    model.visual.preprocess_cfg = values
    return model


def finetuned(relative):
    """Every weight changed by that much."""
    model = build()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for weight in model.visual.parameters():
            weight.data.mul_(1 + relative * torch.randn_like(weight))
    return model


def mixed_precision():
    model = build()
    open_clip.convert_weights_to_lp(model)
    return model


OTHERS = {
    "activation": lambda: build(quick_gelu=True),
    "weights": lambda: build(seed=1),
    "a fine-tuned copy": lambda: finetuned(0.02),
    "text tower": lambda: with_text_of(build(), build(seed=1)),
    "mean": lambda: with_preprocessing(size=32, mean=[0.5] * 3),
    "std": lambda: with_preprocessing(size=32, std=[0.5] * 3),
    "input size": lambda: with_preprocessing(size=64),
    "number of heads": lambda: build(**vision(head_width=8)),
    "pooling": lambda: build(**vision(pool_type="avg")),
    "pooling of the text": lambda: build(**text(pool_type="last")),
    "causal mask": lambda: build(**text(no_causal_mask=True)),
}

SAME = {
    "another copy": build,
    "another class": with_a_text_tower_of_its_own,
    "float16": lambda: build().half(),
    "float64": lambda: build().double(),
    "float16 and back": lambda: build().half().float(),
    "mixed float16": lambda: mixed_precision(),
}


@pytest.fixture(params=["made with the first", "made with the second"])
def accepts(request, tokenizer, tmp_path):
    """Whether an objective of one model is accepted with the other, however it comes."""

    def check(first, second):
        first, second = (FrozenCLIP(model, tokenizer) for model in (first, second))
        if request.param == "made with the second":
            first, second = second, first
        objective = EmbeddedFusionModel(FusionObjective(), first.float())
        criterion = make_criterion(second)
        objective.save(tmp_path / "objective.safetensors")
        refusals = []
        for attempt in (
            lambda: criterion.set_objective(objective),
            lambda: EmbeddedFusionModel.load(tmp_path / "objective.safetensors", second),
        ):
            try:
                attempt()
            except ValueError as error:
                refusals.append(str(error))
        assert len(refusals) in (0, 2)
        assert all("`encoder` must be the CLIP that embedded" in words for words in refusals)
        return not refusals

    return check


@pytest.mark.parametrize("kind", [*OTHERS, *SAME])
def test_others_are_refused_and_casts_accepted(kind, accepts):
    assert accepts(build(), {**OTHERS, **SAME}[kind]()) == (kind in SAME)


def test_of_version_0_2(tokenizer):
    """Objectives that it saved can be used."""
    expected = "2/989d5576717476ba29a31361.a806a92483d084dbc1f98577/" + (
        "c39cebaa79a6275133eee238.e1ee57d73489d02709d0d769"
    )
    assert FrozenCLIP.tiny().fingerprint == expected
    assert not same_clip(expected, "0" * 64)  # the format of 0.1


BUNDLED = Path(clip_fusion_loss.__file__).parent / "assets" / "tiny_clip"


@pytest.fixture(scope="module")
def tiny():
    return FrozenCLIP.tiny()


class TestBundled:
    """The bundled CLIP: what ships, what it knows, whether it is whole."""

    def test_small_enough_to_ship(self):
        assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 8e6

    def test_its_files_are_those_that_were_released(self):
        for line in (BUNDLED / "SHA256SUMS").read_text().splitlines():
            digest, name = line.split()
            assert hashlib.sha256((BUNDLED / name).read_bytes()).hexdigest() == digest

    def test_loads_through_open_clip_itself(self, tiny):
        model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{BUNDLED}")
        tokens = open_clip.get_tokenizer(f"local-dir:{BUNDLED}")(["an infrared image"])
        vector = model.eval().encode_text(tokens, normalize=True)
        torch.testing.assert_close(vector, tiny.encode_text("an infrared image"))

    @pytest.mark.parametrize(
        ("prompt", "change"),
        [
            ("a blurry dark image", lambda image: 0.4 * nn.functional.avg_pool2d(image, 5, 1, 2)),
            ("a noisy image", lambda image: (image + 0.15 * torch.randn_like(image)).clamp(0, 1)),
        ],
    )
    def test_an_image_as_the_prompt_says_has_less_loss(self, tiny, prompt, change):
        torch.manual_seed(0)
        visible, infrared = example_pairs()
        average = (visible + infrared) / 2
        criterion = LanguageDrivenFusionLoss.tiny(prompt, encoder=tiny, patch_weight=0)
        as_told, before = (
            criterion.terms(fused=fused, visible=visible, infrared=infrared).direction
            for fused in (change(average), average)
        )
        assert as_told < before - 0.2

    @pytest.mark.parametrize("how", ["missing", "cut short"])
    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_damaged_files(self, name, how, tmp_path, monkeypatch):
        shutil.copytree(BUNDLED, tmp_path, dirs_exist_ok=True)
        path = next(tmp_path.glob(f"*{name}"))
        content = path.read_bytes()
        path.unlink()
        if how == "cut short":
            path.write_bytes(content[: len(content) // 2])
        monkeypatch.setattr("clip_fusion_loss.loading.BUNDLED", tmp_path)
        with pytest.raises(ValueError, match="bundled CLIP.*damaged.*install the package again"):
            FrozenCLIP.tiny()


def example_pairs():
    """Visible and infrared crops of the pairs that come with the examples."""
    folder = Path(__file__).parents[1] / "examples" / "data" / "tno"
    if not folder.is_dir():
        pytest.skip(f"needs the example pairs in {folder}")
    names = sorted(path.name for path in (folder / "vi").iterdir())
    sides = ([folder / side / name for name in names] for side in ("vi", "ir"))
    return tuple(
        torch.stack([to_tensor(Image.open(path).convert("L").resize((192, 144))) for path in side])
        for side in sides
    )
