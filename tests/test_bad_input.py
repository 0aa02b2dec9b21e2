"""Wrong calls: each raises, names the argument and leaves things as they were."""

import pytest
import torch
from torch import nn

from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss
from conftest import draw_images

GOOD = (2, 1, 40, 48)

WRONG_IMAGES = [
    ("not a tensor", lambda x: x.numpy(), TypeError, "must be a torch.Tensor, got ndarray"),
    ("none", lambda x: None, TypeError, "must be a torch.Tensor, got NoneType"),
    ("integers", lambda x: (x * 255).to(torch.uint8), TypeError, r"\.float\(\) / 255"),
    ("booleans", lambda x: x > 0.5, TypeError, "floating point"),
    ("no batch axis", lambda x: x[0], ValueError, r"\[None\]"),
    ("no channel axis", lambda x: x[:, 0], ValueError, r"\[:, None\]"),
    ("five axes", lambda x: x[None], ValueError, "must have shape"),
    ("two channels", lambda x: x.expand(-1, 2, -1, -1), ValueError, "C = 1 or 3"),
    ("four channels", lambda x: x.expand(-1, 4, -1, -1), ValueError, "C = 1 or 3"),
    ("channels last", lambda x: x.movedim(1, -1), ValueError, "must have shape"),
    ("empty batch", lambda x: x[:0], ValueError, "B >= 1"),
    ("too small", lambda x: x[..., :15], ValueError, "16 x 16"),
]


@pytest.mark.parametrize("position", [0, 1, 2], ids=["fused", "visible", "infrared"])
@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [pytest.param(*case, id=name) for name, *case in WRONG_IMAGES],
)
def test_wrong_images(encoder, position, spoil, error, words):
    criterion = LanguageDrivenFusionLoss(encoder=encoder, num_patches=2)
    images = draw_images()
    images[position] = spoil(images[position])
    name = ("fused", "visible", "infrared")[position]
    with pytest.raises(error, match=f"`{name}`.*{words}"):
        criterion(*images)


MISMATCHES = [
    ("other batch", lambda x: x[:1], ValueError, "batch, height and width"),
    ("other height", lambda x: x[:, :, :-1], ValueError, "batch, height and width"),
    ("transposed", lambda x: x.mT, ValueError, "batch, height and width"),
    ("other dtype", lambda x: x.double(), TypeError, "must have the dtype"),
    ("half", lambda x: x.half(), TypeError, "must have the dtype"),
    ("other device", lambda x: x.to("meta"), ValueError, "device of `fused`"),
]

WRONG_VALUES = [
    ("0 to 255", lambda x: x * 255, "divide by 255"),
    ("-1 to 1", lambda x: x * 2 - 1, r"data_range=\(-1, 1\)"),
    ("far out", lambda x: x * 1e4, "rescale"),
    ("NaN", lambda x: x.clone().index_put((torch.tensor(0),), torch.tensor(torch.nan)), "NaN"),
    ("infinite", lambda x: x / 0, "got values"),
]


@pytest.mark.parametrize("name", ["visible", "infrared"])
@pytest.mark.parametrize(
    ("spoil", "error", "words"), [pytest.param(*case, id=name) for name, *case in MISMATCHES]
)
def test_sources_unlike_fused(encoder, name, spoil, error, words):
    criterion = LanguageDrivenFusionLoss(encoder=encoder, num_patches=2)
    images = dict(zip(("fused", "visible", "infrared"), draw_images(), strict=True))
    images[name] = spoil(images[name])
    with pytest.raises(error, match=f"`{name}`.*{words}"):
        criterion(**images)


@pytest.mark.parametrize("name", ["visible", "infrared"])
@pytest.mark.parametrize(
    ("spoil", "words"), [pytest.param(*case, id=name) for name, *case in WRONG_VALUES]
)
def test_source_values(encoder, name, spoil, words):
    criterion = LanguageDrivenFusionLoss(encoder=encoder, num_patches=2)
    good = dict(zip(("fused", "visible", "infrared"), draw_images(), strict=True))
    bad = {**good, name: spoil(good[name])}
    for _ in range(2):  # a failed check is not a check done
        with pytest.raises(ValueError, match=f"`{name}`.*{words}"):
            criterion(**bad)
    assert criterion(**good).isfinite()


def test_unit_images_announced_as_eight_bit(encoder):
    criterion = LanguageDrivenFusionLoss(encoder=encoder, num_patches=2, data_range=(0, 255))
    with pytest.warns(UserWarning, match="lies in"):
        criterion(*draw_images())


def test_all_on_the_wrong_device(encoder):
    criterion = LanguageDrivenFusionLoss(encoder=encoder, num_patches=2)
    with pytest.raises(ValueError, match=r"criterion.to\('meta'\)"):
        criterion(*(image.to("meta") for image in draw_images()))


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("direction_weight", -1, ValueError),
        ("direction_weight", float("nan"), ValueError),
        ("patch_weight", float("inf"), ValueError),
        ("patch_weight", "10", TypeError),
        ("similarity_weight", None, TypeError),
        ("regularizer_weight", True, TypeError),
        ("num_patches", 0, ValueError),
        ("num_patches", 2.5, TypeError),
        ("patch_scale", (0.8, 0.5), ValueError),
        ("patch_scale", (0.0, 0.5), ValueError),
        ("patch_scale", (0.5, 1.1), ValueError),
        ("patch_scale", 0.5, TypeError),
        ("patch_scale", (0.5, 0.6, 0.7), TypeError),
        ("min_patch_entropy", 9, ValueError),
        ("min_patch_entropy", "6", TypeError),
        ("patch_reduction", "mean", ValueError),
        ("data_range", (1, 0), ValueError),
        ("data_range", (0, 0), ValueError),
        ("data_range", (0, float("inf")), ValueError),
        ("data_range", 255, TypeError),
        ("reduction", "average", ValueError),
        ("reduction", None, ValueError),
        ("regularizer", lambda *images: 0, TypeError),
        ("generator", 42, TypeError),
        ("encoder", nn.Identity(), TypeError),
        ("objective", 3, TypeError),
        ("objective", "", ValueError),
    ],
)
def test_wrong_options(encoder, option, value, error):
    with pytest.raises(error, match=f"`{'fused' if value == '' else option}`"):
        LanguageDrivenFusionLoss(**{"encoder": encoder, option: value})


def test_options_are_keyword_only(encoder):
    with pytest.raises(TypeError):
        LanguageDrivenFusionLoss("a sharp photo", encoder)


@pytest.mark.parametrize("returned", [torch.zeros(()), torch.zeros(2, 1), 0.0, torch.zeros(3)])
def test_regularizer_that_is_not_per_sample(encoder, returned):
    class Wrong(nn.Module):
        def forward(self, *images):
            return returned

    criterion = LanguageDrivenFusionLoss(encoder=encoder, num_patches=2, regularizer=Wrong())
    with pytest.raises(ValueError, match="`regularizer` must return one loss a sample"):
        criterion(*draw_images())


@pytest.mark.parametrize("model", [None, nn.Linear(2, 2), "ViT-B-32"])
def test_encoder_of_no_clip(model, tokenizer):
    with pytest.raises(TypeError, match="`model`"):
        FrozenCLIP(model, tokenizer)


def test_encoder_of_a_tower_without_a_size(clip_model, tokenizer):
    del clip_model.visual.image_size
    with pytest.raises(ValueError, match="`model.visual`"):
        FrozenCLIP(clip_model, tokenizer)


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), TypeError),
        ("image.png", TypeError),
        (torch.zeros(1, 8, 8), ValueError),
        (torch.zeros(1, 2, 8, 8), ValueError),
        (torch.zeros(1, 1, 8, 8, device="meta"), ValueError),
    ],
)
def test_encode_image(encoder, images, error):
    with pytest.raises(error, match="`images`"):
        encoder.encode_image(images)
