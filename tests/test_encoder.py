"""FrozenCLIP: vectors, what it refuses, and loading."""

import copy
import json
import pickle

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, build_clip
from reference import MEAN, STD, Reference


def reference(tokenizer):
    return Reference(build_clip(), tokenizer, ["a"], ["b"], ["c"])


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

    def test_differentiable_in_the_images_alone(self, encoder):
        images = torch.rand(2, 1, 40, 40, requires_grad=True)
        encoder.encode_image(images)[:, 0].sum().backward()
        assert images.grad.abs().sum() > 0
        assert all(p.grad is None for p in encoder.network.parameters())

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

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_towers_of_mixed_precision(self, tokenizer, precision):
        model = open_clip.model.CLIP(
            **MODEL_CONFIG, cast_dtype=open_clip.model.get_cast_dtype(precision)
        )
        open_clip.model.convert_weights_to_lp(model, open_clip.model.get_cast_dtype(precision))
        encoder = FrozenCLIP(model, tokenizer).to("cpu")
        assert model.visual.ln_post.weight.dtype == torch.float32
        assert encoder.encode_image(torch.rand(1, 1, 20, 20)).isfinite().all()

    def test_towers_that_return_tokens_too(self, clip_model, tokenizer):
        images = torch.rand(1, 3, 32, 32)
        expected = FrozenCLIP(clip_model, tokenizer).encode_image(images)
        clip_model.visual.output_tokens = True
        vectors = FrozenCLIP(clip_model, tokenizer).encode_image(images)
        assert torch.equal(vectors, expected)


class TestEncodeText:
    def test_equals_the_reference(self, clip_model, tokenizer):
        texts = ["a visible gray image", "an infrared image"]
        vectors = FrozenCLIP(clip_model, tokenizer).encode_text(texts)
        embed = reference(tokenizer).embed_texts
        expected = torch.stack([embed(tokenizer, [text]) for text in texts])
        torch.testing.assert_close(vectors.double(), expected, atol=1e-5, rtol=0)
        assert not vectors.requires_grad

    def test_single_text_and_repeated_texts(self, encoder):
        assert encoder.encode_text("one").shape == (1, 24)
        vectors = encoder.encode_text(["two", "one", "two"])
        assert torch.equal(vectors[0], vectors[2])
        assert torch.equal(vectors[1], encoder.encode_text("one")[0])

    def test_text_tower_can_be_dropped_after_use(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, keep_text=False)
        first = encoder.encode_text(["one", "two"])
        assert torch.equal(encoder.encode_text(["two"]), first[1:])
        with pytest.raises(RuntimeError, match=r"keep_text=False.*'three'.*EmbeddedFusionModel"):
            encoder.encode_text(["one", "three"])

    def test_long_text_is_refused_not_cut(self, encoder):
        encoder.encode_text("word " * 22)
        with pytest.raises(ValueError, match="at most 24 tokens"):
            encoder.encode_text("word " * 23)

    def test_unknown_words_are_named(self, clip_model, tokenizer, recwarn):
        known = frozenset({"a", "clear", "image"})
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary=known)
        encoder.encode_text("A clear image.")
        assert not recwarn
        with pytest.warns(UserWarning, match="'elephant', 'purple'"):
            encoder.encode_text("a purple elephant image")

    @pytest.mark.filterwarnings("ignore:the model")
    def test_unknown_words_are_left_out(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "clear", "image"})
        both = encoder.encode_text(["a Clear purple image \N{FIRE}", "a Clear image"])
        assert torch.equal(both[0], both[1])
        everything = FrozenCLIP(clip_model, tokenizer)
        both = everything.encode_text(["a clear purple image", "a clear image"])
        assert not torch.allclose(both[0], both[1])

    def test_what_says_nothing(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "the", "clear", "image"})
        assert encoder.says_nothing("a purple elephant dancing to the 7 \N{FIRE}")
        assert not encoder.says_nothing("A purple Image")
        assert not FrozenCLIP(clip_model, tokenizer).says_nothing("the a")

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("a clear image \N{FIRE}", "\N{FIRE}"),
            (
                "a clear image\N{WHITE MEDIUM STAR}\N{VARIATION SELECTOR-16}",
                "\N{WHITE MEDIUM STAR}",
            ),
            ("a clear \N{RIGHTWARDS ARROW} image", "\N{RIGHTWARDS ARROW}"),
            ("a clear+image", "\\+"),
            ("a_clear_image", "_"),
            ("a clear image @ 100 %", "%', '100', '@"),
            ("a clear \N{CJK UNIFIED IDEOGRAPH-56FE}", "\N{CJK UNIFIED IDEOGRAPH-56FE}"),
        ],
    )
    def test_symbols_are_named_like_words(self, clip_model, tokenizer, text, named):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "clear", "image"})
        with pytest.warns(UserWarning, match=f"not trained on '{named}"):
            encoder.encode_text(text)

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


class TestFrozen:
    def test_nothing_to_train_or_save(self, encoder):
        owner = nn.ModuleDict({"encoder": encoder})
        assert not owner.state_dict()
        assert not list(owner.parameters())

    def test_the_models_own_children_stay(self, clip_model, tokenizer):
        FrozenCLIP(clip_model, tokenizer)
        assert clip_model.encode_image(torch.rand(1, 3, 32, 32)).shape == (1, 24)

    def test_follows_its_owner(self, encoder):
        owner = nn.ModuleDict({"encoder": encoder})
        owner.to(torch.float64)
        assert encoder.network.conv1.weight.dtype == torch.float64
        owner.to("meta")
        assert encoder.network.conv1.weight.is_meta
        assert encoder.device.type == "meta"

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_deepcopy_and_pickle(self, encoder, clone):
        images = torch.rand(1, 1, 20, 20)
        copied = clone(encoder)
        assert torch.equal(copied.encode_image(images), encoder.encode_image(images))
        assert torch.equal(copied.encode_text("new"), encoder.encode_text("new"))
        assert copied.fingerprint == encoder.fingerprint
        encoder.half()
        assert copied.network.conv1.weight.dtype == torch.float32

    def test_fingerprint_tells_weights_apart(self, encoder, tokenizer):
        assert FrozenCLIP(build_clip(), tokenizer).fingerprint == encoder.fingerprint
        assert FrozenCLIP(build_clip(seed=1), tokenizer).fingerprint != encoder.fingerprint


def vectors(encoder):
    images = torch.linspace(0, 1, 3 * 40 * 40).view(1, 3, 40, 40)
    return encoder.encode_image(images), encoder.encode_text(["a", "b c"])


class TestFromPretrained:
    @pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
    def test_checkpoint_files(self, clip_model, tokenizer, small_architecture, suffix, tmp_path):
        path = tmp_path / f"weights{suffix}"
        state = clip_model.state_dict()
        if suffix == ".safetensors":
            safetensors.torch.save_file(state, path)
        elif suffix == ".pt":  # as open_clip's training writes it, wrapped for DDP
            torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
        else:
            torch.save(state, path)
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        expected = vectors(FrozenCLIP(clip_model, tokenizer))
        for actual, vector in zip(vectors(loaded), expected, strict=True):
            assert torch.equal(actual, vector)

    def test_local_dir(self, clip_model, tokenizer, tmp_path):
        config = {
            "model_cfg": MODEL_CONFIG,
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
        }
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        safetensors.torch.save_file(
            clip_model.state_dict(), tmp_path / "open_clip_model.safetensors"
        )
        loaded = FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")
        images = torch.rand(1, 3, 32, 32)
        expected = F.normalize(clip_model.eval().visual((images - 0.5) / 0.25), dim=-1)
        torch.testing.assert_close(loaded.encode_image(images), expected)
        assert loaded.name == f"local-dir:{tmp_path}"

    def test_local_dir_without_weights_is_not_random(self, tmp_path):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CONFIG}))
        with pytest.raises(ValueError, match="could not be loaded"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")

    @pytest.mark.parametrize("content", ["garbage", "other model", "pickled code"])
    def test_wrong_files(self, small_architecture, tmp_path, content):
        path = tmp_path / "weights.pt"
        if content == "garbage":
            path.write_bytes(b"no weights")
        elif content == "other model":
            torch.save({"a": torch.zeros(1)}, path)
        else:
            torch.save({"a": Dangerous(tmp_path / "executed")}, path)
        with pytest.raises(ValueError, match=r"weights\.pt"):
            FrozenCLIP.from_pretrained(small_architecture, path)
        assert not (tmp_path / "executed").exists()

    def test_unknown_model(self):
        with pytest.raises(ValueError, match="'ViT-B32'.*ViT-B-32"):
            FrozenCLIP.from_pretrained("ViT-B32", "openai")

    def test_unknown_tag(self):
        with pytest.raises(ValueError, match="laion400m_e31.*'opnai'"):
            FrozenCLIP.from_pretrained("ViT-B-32-quickgelu", "opnai")

    @pytest.mark.parametrize("pretrained", [None, ""])
    def test_no_weights(self, pretrained):
        with pytest.raises(ValueError, match="`pretrained`"):
            FrozenCLIP.from_pretrained("ViT-B-32-quickgelu", pretrained)

    @pytest.mark.parametrize("tag", ["openai", "laion400m_e32"])
    def test_wrong_activation(self, tag):
        with pytest.raises(ValueError, match=r"\(QuickGELU\).*use 'ViT-B-32-quickgelu'"):
            FrozenCLIP.from_pretrained("ViT-B-32", tag)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="none.safetensors"):
            FrozenCLIP.from_pretrained("ViT-B-32-quickgelu", tmp_path / "none.safetensors")

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="open_clip_config.json"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path / 'none'}")

    @pytest.mark.parametrize(
        ("arguments", "file"),
        [
            ((), r"open_clip_model.safetensors \(or .*\) of timm/vit_base_patch32_clip_224.openai"),
            (("hf-hub:org/model",), "all files of org/model"),
        ],
    )
    def test_without_a_network(self, monkeypatch, tmp_path, arguments, file):
        # A port at which nobody answers; the client's own retries would take most of a minute.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(FileNotFoundError, match=f"(?s){file}.*from_pretrained"):
            FrozenCLIP.from_pretrained(*arguments, cache_dir=tmp_path)
        assert not huggingface_hub.constants.HF_HUB_OFFLINE


class Dangerous:
    """Pickles into a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return type(self.trace).touch, (self.trace,)
