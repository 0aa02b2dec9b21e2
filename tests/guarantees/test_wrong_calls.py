"""Wrong calls of every public function: each says what is wrong and leaves things as they were."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    PatchGeometry,
    SourceEmbeddings,
    StructureLoss,
    VGGMaxFeatureLoss,
)
from conftest import build_clip, draw_images, make_criterion, named

NAMES = ("fused", "visible", "infrared")


class Here(NamedTuple):
    """What a wrong call has at hand."""

    criterion: LanguageDrivenFusionLoss
    encoder: FrozenCLIP
    tokenizer: object
    images: dict

    def call(self, **spoiled):
        return self.criterion(**{**self.images, **spoiled})


@pytest.fixture
def here(encoder, tokenizer):
    return Here(make_criterion(encoder), encoder, tokenizer, named(draw_images()))


IMAGES = {
    "a list of outputs": (lambda x: [x, x], TypeError, "got list; .*pick one"),
    "an array": (lambda x: x.numpy(), TypeError, "must be a torch.Tensor, got ndarray"),
    "none": (lambda x: None, TypeError, "must be a torch.Tensor, got NoneType"),
    "integers": (lambda x: (x * 255).to(torch.uint8), TypeError, r"\.float\(\) / 255"),
    "complex": (lambda x: x.to(torch.complex64), TypeError, "floating point"),
    "no batch axis": (lambda x: x[0], ValueError, r"\[None\]"),
    "no channel axis": (lambda x: x[:, 0], ValueError, r"\[:, None\]"),
    "five axes": (lambda x: x[None], ValueError, "must have shape"),
    "two channels": (lambda x: x.expand(-1, 2, -1, -1), ValueError, "C = 1 or 3"),
    "four channels": (lambda x: x.expand(-1, 4, -1, -1), ValueError, "alpha"),
    "channels last": (lambda x: x.movedim(1, -1), ValueError, r"movedim\(-1, 1\)"),
    "empty batch": (lambda x: x[:0], ValueError, "skip empty"),
    "too small": (lambda x: x[..., :15], ValueError, "16 x 16"),
}
MISMATCHES = {
    "other batch": (lambda x: x[:1], ValueError, "batch, height and width"),
    "other height": (lambda x: x[:, :, :-1], ValueError, "batch, height and width"),
    "transposed": (lambda x: x.mT, ValueError, "batch, height and width"),
    "other device": (lambda x: x.to("meta"), ValueError, "device of `fused`"),
}
VALUES = {
    "0 to 255": (lambda x: x * 255, ValueError, "divide by 255"),
    "-1 to 1": (lambda x: x * 2 - 1, ValueError, r"data_range=\(-1, 1\)"),
    "far out": (lambda x: x * 1e4, ValueError, "rescale"),
    "NaN": (
        lambda x: x.masked_fill(x == x.max(), torch.nan),
        ValueError,
        "finite, got values from nan",
    ),
    "infinite": (lambda x: x.masked_fill(x == x.max(), torch.inf), ValueError, "finite.*to inf"),
}


def image_calls():
    for name in NAMES:
        kinds = IMAGES if name == "fused" else {**IMAGES, **MISMATCHES, **VALUES}
        for kind, (spoil, error, words) in kinds.items():

            def call(here, name=name, spoil=spoil):
                return here.call(**{name: spoil(here.images[name])})

            yield pytest.param(call, error, f"`{name}`.*{words}", id=f"{name} {kind}")


#: Wrong values of each option, those with a wrong type first.
OPTIONS = {
    "direction_weight": (["2", None, True], [-1, float("nan"), float("inf")]),
    "similarity_weight": ([nn.Parameter(torch.ones(())), torch.ones(1)], []),
    "num_patches": ([2.5, torch.tensor(True)], [0]),
    "shared_weight": (["1"], [-1]),
    "link": ([], ["exp", None]),
    "patch_geometry": ([(0.5, 0.8), {"scale": (0.5, 0.8)}, PatchGeometry], []),
    "patch_scale": ([(0.5, 0.8)], []),
    "patch_filter": ([], ["any", True]),
    "min_patch_entropy": (["6"], [9]),
    "patch_reduction": ([], ["mean"]),
    "region_share": (["0.9", None], [0.5, 1.1]),
    "patch_chunk": ([2.5, "all"], [0]),
    "precision": ([], ["float16", torch.float16]),
    "data_range": ([255], [(1, 0), (0, 0), (0, float("inf"))]),
    "reduction": ([], ["average", None, torch.zeros(2)]),
    "compile": (["no"], []),
    "regularizer": ([lambda *images: 0], []),
    "generator": ([42], []),
    "encoder": ([nn.Identity()], []),
    "objective": ([3], []),
}


def option_calls():
    for name, (types, values) in OPTIONS.items():
        for value in (*types, *values):
            error = TypeError if any(value is each for each in types) else ValueError

            def call(here, name=name, value=value):
                return LanguageDrivenFusionLoss(**{"encoder": here.encoder, name: value})

            def assign(here, name=name, value=value):
                setattr(here.criterion, name, value)

            yield pytest.param(call, error, f"`{name}`", id=f"{name}={value!r:.20}")
            if name not in ("encoder", "compile"):  # settled at construction
                yield pytest.param(assign, error, f"`{name}`", id=f"assigned {name}={value!r:.20}")


#: Wrong texts of an objective.
TEXTS = [
    *((value, TypeError) for value in (None, 3, b"bytes", ["a", 1], {"a": 1}, {"a"})),
    *((value, ValueError) for value in ("", "   ", [], ["a text", ""])),
]


def text_calls():
    for name in NAMES:
        for value, error in TEXTS:

            def call(here, name=name, value=value):
                return FusionObjective(**{name: value})

            yield pytest.param(call, error, f"`{name}`", id=f"{name} {value!r}")


D = torch.eye(4)  # (4, 4): embeddings and directions
GREY = torch.rand(2, 1, 20, 20)


def on_another_device(here):
    here.call(**{name: image.to("meta") for name, image in here.images.items()})


OTHERS = [
    # The other methods of the loss.
    (lambda h: h.criterion.set_objective(None), TypeError, "`objective`"),
    (lambda h: h.criterion.set_objective(()), ValueError, "`fused`"),
    (lambda h: h.criterion.set_objective("an infrared image"), ValueError, "`fused`"),
    (lambda h: h.criterion.set_objective({"fused": "a"}), TypeError, r"FusionObjective\(\*\*"),
    (lambda h: h.criterion.set_objective(Path("a")), TypeError, r"load\(path\)"),
    (lambda h: h.criterion.set_objective("a.safetensors"), ValueError, r"load\(path\)"),
    (lambda h: h.criterion(*h.images.values()), TypeError, "positional"),
    (lambda h: h.criterion.terms(*h.images.values()), TypeError, "positional"),
    (lambda h: h.criterion.check_values(*h.images.values()), TypeError, "positional"),
    (lambda h: check_values(h, fused=h.images["fused"] * 255), ValueError, "`fused`.*three"),
    (lambda h: check_values(h, fused=h.images["fused"] / 0), ValueError, "`fused`.*diverged"),
    (lambda h: check_values(h, visible=h.images["visible"] * 255), ValueError, "`visible`"),
    (lambda h: check_values(h, infrared=GREY[0]), ValueError, "`infrared`"),
    # Before weights are looked for, of which there are none here.
    (lambda h: LanguageDrivenFusionLoss.paper(num_patch=3), TypeError, "num_patch"),
    (lambda h: LanguageDrivenFusionLoss.paper(num_patches=0), ValueError, "`num_patches`"),
    (lambda h: LanguageDrivenFusionLoss.paper(patch_scale=(0.5, 0.8)), TypeError, "`patch_geom"),
    (lambda h: LanguageDrivenFusionLoss.autofuse(patch_scale=(0, 1)), TypeError, "`patch_geom"),
    (lambda h: h.call(sources=(D, D)), TypeError, "`sources`"),
    (lambda h: h.call(sources=SourceEmbeddings(D[:1], D[:1])), ValueError, "`sources`"),
    (lambda h: h.call(sources=SourceEmbeddings(D[:2], D[:2])), ValueError, "`sources`"),
    (lambda h: h.criterion.terms(**{**h.images, "fused": 0}), TypeError, "`fused`"),
    (lambda h: h.criterion.embed_sources(GREY, GREY[0]), ValueError, "`infrared`"),
    (lambda h: h.criterion.embed_sources(GREY * 255, GREY), ValueError, "`visible`"),
    (lambda h: LanguageDrivenFusionLoss.tiny("a", num_patch=3), TypeError, "num_patch"),
    (lambda h: LanguageDrivenFusionLoss("a", h.encoder), TypeError, "positional"),
    (lambda h: setattr(h.criterion, "compile", True), TypeError, "`compile`.*at construction"),
    (on_another_device, ValueError, r"criterion.to\('meta'\)"),
    # FrozenCLIP.
    (lambda h: FrozenCLIP(None, h.tokenizer), TypeError, "`model`"),
    (lambda h: FrozenCLIP(nn.ReLU(), h.tokenizer), TypeError, "`model`"),
    (lambda h: FrozenCLIP("ViT-B-32", h.tokenizer), TypeError, "`model`"),
    (lambda h: FrozenCLIP(without_size(), h.tokenizer), ValueError, "`model.visual`"),
    (lambda h: FrozenCLIP(build_clip().to("meta"), h.tokenizer), ValueError, "`model`.*meta"),
    (lambda h: FrozenCLIP(build_clip(), h.tokenizer, name=3), TypeError, "`name`"),
    (lambda h: FrozenCLIP(build_clip(), h.tokenizer, keep_text="no"), TypeError, "`keep_text`"),
    (lambda h: FrozenCLIP.from_pretrained(3), TypeError, "`model_name`"),
    (lambda h: FrozenCLIP.from_pretrained(pretrained=3), TypeError, "`pretrained`"),
    (lambda h: FrozenCLIP.from_pretrained(cache_dir=3), TypeError, "`cache_dir`"),
    (lambda h: h.encoder.encode_image("image.png"), TypeError, "`images`"),
    (lambda h: h.encoder.encode_image((GREY * 255).byte()), TypeError, "`images`"),
    (lambda h: h.encoder.encode_image(GREY[0]), ValueError, "`images`"),
    (lambda h: h.encoder.encode_image(GREY.expand(2, 2, 20, 20)), ValueError, "`images`"),
    (lambda h: h.encoder.encode_image(GREY.to("meta")), ValueError, "`images`"),
    (lambda h: h.encoder.encode_image(GREY, precision="half"), ValueError, "`precision`"),
    (lambda h: h.encoder.encode_text(3), TypeError, "`texts`"),
    (lambda h: h.encoder.encode_text(["a", 3]), TypeError, "`texts`"),
    (lambda h: h.encoder.encode_text([]), ValueError, "`texts`"),
    (lambda h: h.encoder.encode_text("  "), ValueError, "`texts`"),
    (lambda h: h.encoder.encode_text("word " * 99), ValueError, "text must have at most"),
    # FusionObjective and EmbeddedFusionModel; more in their own tests.
    (lambda h: FusionObjective("a", visible="a"), ValueError, "`fused` and `visible`"),
    (lambda h: FusionObjective("a", infrared="a"), ValueError, "`fused` and `infrared`"),
    (lambda h: FusionObjective("a", opposite=3), TypeError, "`opposite`"),
    (lambda h: FusionObjective("a", opposite=["b", ""]), ValueError, "`opposite`"),
    (lambda h: FusionObjective("a", opposite="a"), ValueError, "`opposite` and `fused`"),
    (lambda h: FusionObjective("a", opposite_weight=-1), ValueError, "`opposite_weight`"),
    (lambda h: FusionObjective("a", opposite_weight="1"), TypeError, "`opposite_weight`"),
    (lambda h: h.criterion.set_objective({"a": 1, "b": None}), TypeError, "`weights`"),
    (lambda h: h.criterion.set_objective({"a": 0.0}), ValueError, "`weights`.*cancel"),
    (lambda h: EmbeddedFusionModel("a sharp image", h.encoder), TypeError, "`objective`"),
    (lambda h: EmbeddedFusionModel(FusionObjective(), nn.Identity()), TypeError, "`encoder`"),
    (lambda h: EmbeddedFusionModel(FusionObjective("A", "a"), h.encoder), ValueError, "`visible`"),
    (lambda h: h.criterion.fusion_model.save(3), TypeError, "`path`"),
    (lambda h: h.criterion.fusion_model.save("."), IsADirectoryError, "`path`"),
    (lambda h: h.criterion.fusion_model.save("no/such/file"), FileNotFoundError, "`path`.*no/such"),
    (lambda h: h.criterion.fusion_model.save(f"{__file__}/a"), NotADirectoryError, "`path`"),
    (lambda h: EmbeddedFusionModel.load(3), TypeError, "`path`"),
    (lambda h: EmbeddedFusionModel.load(__file__), ValueError, "`path`"),
    (lambda h: EmbeddedFusionModel.load("none.safetensors"), FileNotFoundError, "`path`"),
    (lambda h: EmbeddedFusionModel.load(Path(__file__).parent), FileNotFoundError, "`path`"),
    (lambda h: EmbeddedFusionModel.load(__file__, 3), TypeError, "`encoder`"),
    # PatchGeometry.
    *(
        (lambda h, scale=scale: PatchGeometry(scale), TypeError, "`scale`")
        for scale in (0.5, "23", {0.5, 0.8}, torch.tensor(0.5), (0.5, 0.6, 0.7))
    ),
    *(
        (lambda h, scale=scale: PatchGeometry(scale), ValueError, "`scale`")
        for scale in ((0.8, 0.5), (0.0, 0.5), (0.5, 1.1))
    ),
    (lambda h: PatchGeometry(rotation=-1), ValueError, "`rotation`"),
    (lambda h: PatchGeometry(shift=2), ValueError, "`shift`"),
    (lambda h: PatchGeometry(zoom=0.5), ValueError, "`zoom`"),
    (lambda h: PatchGeometry(shear=90), ValueError, "`shear`"),
    (lambda h: PatchGeometry(vertical_shear="3"), TypeError, "`vertical_shear`"),
    # Regularizers.
    (lambda h: VGGMaxFeatureLoss(3), TypeError, "`weights`"),
    (lambda h: VGGMaxFeatureLoss(__file__), ValueError, "`weights`"),
    (lambda h: VGGMaxFeatureLoss("none.pth"), FileNotFoundError, "`weights`"),
    (lambda h: IntensityGradientLoss(-1), ValueError, "`gradient_weight`"),
    (lambda h: IntensityGradientLoss("2"), TypeError, "`gradient_weight`"),
    (lambda h: VGGMaxFeatureLoss(layers=["relu3_1"]), ValueError, "`layers`"),
    (lambda h: VGGMaxFeatureLoss(layers={}), ValueError, "`layers`"),
    (lambda h: VGGMaxFeatureLoss(layers={"relu3_5": 1}), ValueError, "`layers`.*'relu3_5'"),
    (lambda h: VGGMaxFeatureLoss(layers={"relu3_1": -1}), ValueError, "`layers`"),
    (lambda h: VGGMaxFeatureLoss(layers={"relu3_1": "1"}), TypeError, "`layers`"),
    (lambda h: StructureLoss(window=0), ValueError, "`window`"),
    (lambda h: StructureLoss(flat_energy=0), ValueError, "`flat_energy`"),
    (lambda h: StructureLoss(layout_weight="1"), TypeError, "`layout_weight`"),
]  # fmt: skip


def check_values(here, **spoiled):
    here.criterion.check_values(**{**here.images, **spoiled})


def without_size():
    """A model that does not say how large its input images are."""
    model = build_clip()
    model.visual = nn.Identity()
    return model


def other_calls():
    for number, (call, error, words) in enumerate(OTHERS):
        yield pytest.param(call, error, words, id=f"{number} {words.strip('`')}")


def state(here):
    """All that a wrong call could have changed."""
    return (
        here.criterion.objective,
        here.criterion.generator.get_state().tolist(),
        here.criterion.fusion_model.visible_direction.tolist(),
        [p.requires_grad for p in here.encoder.network.parameters()],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize(
    ("call", "error", "words"), [*image_calls(), *option_calls(), *text_calls(), *other_calls()]
)
def test_wrong_call(here, call, error, words):
    before = state(here)
    for _ in range(2):  # a check that failed is not a check done
        with pytest.raises(error, match=words) as caught:
            call(here)
    message = str(caught.value)
    if "`" in message:  # not Python's own, of the number and names of arguments
        assert re.search(
            r"\bmust\b.*\bgot\b|dropped|damaged|cannot be written", message, re.DOTALL
        ), message
    assert state(here) == before
    assert here.call().isfinite()
