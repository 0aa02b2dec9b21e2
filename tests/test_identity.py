"""When two CLIPs are one: what an objective made with the first may be used with."""

import copy
import re

import open_clip
import pytest
import torch
from torch import nn

from clip_fusion_loss import EmbeddedFusionModel, FrozenCLIP, FusionObjective
from conftest import MODEL_CONFIG, build_clip, make_criterion


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


def mixed_precision(dtype):
    model = build()
    open_clip.convert_weights_to_lp(model, dtype)
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
    "norm before or after pooling": lambda: build(
        **vision(pool_type="avg", final_ln_after_pool=True)
    ),
    "pooling of the text": lambda: build(**text(pool_type="last")),
    "causal mask": lambda: build(**text(no_causal_mask=True)),
}

SAME = {
    "another copy": build,
    "another class": with_a_text_tower_of_its_own,
    "float16": lambda: build().half(),
    "bfloat16": lambda: build().bfloat16(),
    "float64": lambda: build().double(),
    "float16 and back": lambda: build().half().float(),
    "mixed float16": lambda: mixed_precision(torch.float16),
    "mixed bfloat16": lambda: mixed_precision(torch.bfloat16),
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


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_others_are_refused(other, accepts):
    assert not accepts(build(), other())


@pytest.mark.parametrize("same", SAME.values(), ids=SAME.keys())
def test_casts_are_accepted(same, accepts):
    assert accepts(build(), same())


class ImagesOnly(nn.Module):
    """An image tower whose objectives come as vectors."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual

    def encode_text(self, tokens):
        raise NotImplementedError


def test_text_towers_are_compared_where_there_are_two(tokenizer):
    alone = FrozenCLIP(ImagesOnly(build().visual), lambda texts: texts)
    model = EmbeddedFusionModel(FusionObjective(), FrozenCLIP(build(), tokenizer))
    model.check_encoder(alone)
    other = FrozenCLIP(ImagesOnly(build(seed=1).visual), lambda texts: texts)
    with pytest.raises(ValueError, match="`encoder` must be"):
        model.check_encoder(other)


def test_activation_of_the_text_tower_alone(tokenizer):
    """ResNets have no GELU of any kind; the texts beside them have."""
    config = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    first, second = (
        FrozenCLIP(build(vision_cfg=config, quick_gelu=quick), tokenizer) for quick in (False, True)
    )
    with pytest.raises(ValueError, match="`encoder` must be"):
        EmbeddedFusionModel(FusionObjective(), first).check_encoder(second)


def test_taken_before_the_tower_is_made_faster(monkeypatch, tokenizer):
    def changes_everything(network):
        for weight in network.parameters():
            weight.data.zero_()
        for module in network.modules():
            if isinstance(module, nn.GELU):
                module.__class__ = nn.ReLU

    expected = FrozenCLIP(build(), tokenizer).fingerprint
    monkeypatch.setattr("clip_fusion_loss.encoder.speed_up", changes_everything)
    assert FrozenCLIP(build(), tokenizer).fingerprint == expected


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_model_taken_twice(quick_gelu, tokenizer):
    model = build(quick_gelu=quick_gelu)
    first, second = FrozenCLIP(model, tokenizer), FrozenCLIP(model, tokenizer)
    assert first.fingerprint == second.fingerprint


def test_files_of_older_versions_say_how_to_make_them_anew(encoder, tmp_path):
    path = tmp_path / "objective.safetensors"
    old = EmbeddedFusionModel(FusionObjective("a sharp image"), encoder)
    old.encoder_fingerprint = "0" * 64  # a hash of some of the image tower's weights
    old.save(path)
    with pytest.raises(ValueError, match="`objective`.*older.*make it anew") as caught:
        make_criterion(encoder).set_objective(EmbeddedFusionModel.load(path))
    remedy = re.search(r"EmbeddedFusionModel\(.*\.save\(path\)", str(caught.value))[0]
    names = {"EmbeddedFusionModel": EmbeddedFusionModel, "path": path, "encoder": encoder}
    eval(remedy, names)
    make_criterion(encoder).set_objective(EmbeddedFusionModel.load(path))


def test_copies_keep_it(encoder):
    assert copy.deepcopy(encoder).half().fingerprint == encoder.fingerprint
    assert encoder.fingerprint == FrozenCLIP(build_clip(), lambda texts: texts).fingerprint
