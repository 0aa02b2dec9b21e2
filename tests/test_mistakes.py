"""Valid calls that are wrong raise a warning, in the first step; right ones raise none."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    LanguageDrivenFusionLoss,
    functional,
)
from clip_fusion_loss.mistakes import warn_of_mistakes
from conftest import build_clip, draw_images, make_criterion

OTHER_TASKS = {
    "medical": FusionObjective(
        "a clear image", visible="an MRI scan of a brain", infrared="a PET scan of a brain"
    ),
    "exposure": FusionObjective(
        "a clear image", visible="an underexposed dark photo", infrared="an overexposed bright one"
    ),
    "focus": FusionObjective(
        "a clear image", visible="a photo with a sharp foreground", infrared="a blurred one"
    ),
}


@pytest.fixture(scope="module")
def tiny():
    return LanguageDrivenFusionLoss.tiny(num_patches=1)


@pytest.fixture(scope="module")
def pairs(real_pairs):
    """All pairs with the colours they have, as (visible, infrared), each (C, H, W) in [0, 1].

    Neighbours show the same street, so that batches of them are as unlucky as any.
    """

    def read(path, mode=None):
        image = Image.open(path)
        pixels = np.array(image.convert(mode or ("L" if image.mode == "L" else "RGB")))
        return torch.from_numpy(np.atleast_3d(pixels)).movedim(-1, 0) / 255

    visible = sorted(real_pairs.glob("*/vi/*"))
    return [(read(p), read(Path(str(p).replace("/vi/", "/ir/")), "L")) for p in visible]


def batches(pairs, size, crop=None):
    """Batches of `size` pairs, as crops or as the encoder sees whole images."""
    random = torch.Generator().manual_seed(size)

    def take(visible, infrared):
        visible = visible.expand(3, -1, -1)
        if crop is None:
            whole = (
                functional.resize_images(image[None], (96, 96)) for image in (visible, infrared)
            )
            return [image[0].clamp(0, 1) for image in whole]
        top, left = (int(torch.randint(s - crop, (), generator=random)) for s in infrared.shape[1:])
        return [image[:, top : top + crop, left : left + crop] for image in (visible, infrared)]

    taken = [take(*pair) for pair in pairs]
    for start in range(0, len(pairs), size):
        yield map(torch.stack, zip(*taken[start : start + size], strict=True))


def luminance_and_chroma(rgb, order):
    """What OpenCV (YCrCb) and Pillow (YCbCr) make of RGB in [0, 1]."""
    red, green, blue = rgb.split(1, 1)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = {"r": 0.713 * (red - luminance) + 0.5, "b": 0.564 * (blue - luminance) + 0.5}
    return torch.cat([luminance, *(chroma[name] for name in order)], 1).clamp(0, 1)


@pytest.mark.parametrize("crop", [None, 112])
@pytest.mark.parametrize("size", [1, 2, 4, 6, 8])
def test_real_pairs_raise_no_false_alarm(tiny, encoder, pairs, size, crop):
    # Warnings are errors here. In [-1, 1] too: bright crops have no pixel below 0 there.
    signed = make_criterion(encoder, objective=OTHER_TASKS["medical"], data_range=(-1, 1))
    for visible, infrared in batches(pairs, size, crop):
        fused = (visible.mean(1, keepdim=True) + infrared) / 2
        warn_of_mistakes(tiny, fused, visible, infrared)
        warn_of_mistakes(signed, *(2 * image - 1 for image in (fused, visible, infrared)))


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_other_tasks_raise_no_false_alarm(encoder, pairs, task):
    criterion = make_criterion(encoder, objective=OTHER_TASKS[task])
    for visible, infrared in batches(pairs[::4], 8):
        for first, second in ((visible, infrared), (infrared, visible)):
            warn_of_mistakes(criterion, first, first, second)


def warnings_of(*arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_mistakes(*arguments)
    return [str(warning.message) for warning in caught]


def test_swapped_roles_are_told(tiny, pairs):
    # The embedded CLIP is right about five images in six, so not every batch is told.
    found = [
        warnings_of(tiny, None, infrared, visible[:, :1]) for visible, infrared in batches(pairs, 8)
    ]
    assert sum(map(bool, found)) >= 0.6 * len(found)
    expected = "`visible` and `infrared` seem to be swapped: the encoder takes"
    assert all(expected in message for messages in found for message in messages)


def test_swapped_roles_are_told_in_the_first_step_alone(encoder, monkeypatch):
    """With an encoder that knows: what is brighter than 1/2 is infrared."""
    infrared_text = encoder.encode_text("an infrared image")[0]
    visible_text = encoder.encode_text("a visible gray image")[0]
    asked = []

    def encode(images, **_):
        asked.append(len(images))
        bright = images.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] > 0.5
        return torch.where(bright, infrared_text, visible_text)

    monkeypatch.setattr(encoder, "encode_image", encode)
    criterion = make_criterion(encoder, patch_weight=0.0)
    dark, bright = torch.full((6, 1, 16, 16), 0.2), torch.full((6, 1, 16, 16), 0.8)
    criterion(dark, dark, bright)
    with pytest.warns(UserWarning, match="swapped: the encoder takes 12 of 12 source images"):
        criterion.check_values(dark, bright, dark)
    criterion(dark, bright, dark)  # not looked at
    asked.clear()
    criterion(dark, dark, bright)
    assert asked == [12, 6]  # sources and fused, as ever
    criterion.set_objective(OTHER_TASKS["medical"])
    criterion.check_values(dark, bright, dark)
    few = (image[:5] for image in (dark, bright, dark))
    make_criterion(encoder, patch_weight=0.0)(*few)  # too few to tell


def test_objectives_that_came_as_vectors_are_not_asked(encoder, tokenizer, tmp_path):
    EmbeddedFusionModel(FusionObjective(), encoder).save(tmp_path / "objective.safetensors")
    images = torch.rand(3, 6, 1, 32, 32)
    fresh = FrozenCLIP(build_clip(), tokenizer, keep_text=False)
    objective = EmbeddedFusionModel.load(tmp_path / "objective.safetensors", fresh)
    make_criterion(fresh, objective=objective)(*images)


@pytest.mark.parametrize("order", ["rb", "br"])
@pytest.mark.parametrize("size", [1, 8])
def test_luminance_and_chroma_are_told_from_colours(tiny, pairs, order, size):
    coloured = [pair for pair in pairs if len(pair[0]) == 3]
    found = [
        warnings_of(tiny, None, luminance_and_chroma(visible, order), infrared)
        for visible, infrared in batches(coloured, size)
    ]
    assert sum(map(bool, found)) >= 0.9 * len(found)
    expected = "`visible` looks like YCrCb or YCbCr"
    assert all(expected in message for messages in found for message in messages)


def test_a_range_that_was_converted_before(encoder):
    images = draw_images(batch=2)
    with pytest.warns(UserWarning, match="because the loop has converted them already"):
        make_criterion(encoder, data_range=(-1, 1))(*images)
    with pytest.warns(UserWarning, match="`visible` and `infrared` in .0, 1. although"):
        make_criterion(encoder, data_range=(0, 255))(*images)


def test_grey_levels_beside_fractions(encoder):
    fused, visible, infrared = draw_images(batch=2)
    for data_range, sources in (
        ((0, 1), (visible, infrared)),
        ((-1, 1), (2 * visible - 1, 2 * infrared - 1)),
    ):
        criterion = make_criterion(encoder, data_range=data_range)
        with pytest.warns(UserWarning, match="`fused` looks like grey levels up to 255 .* by 255"):
            criterion(255 * fused, *sources)
        criterion(255 * fused, *sources)  # a step that is not the first
    # Young networks leave the range, on both sides.
    make_criterion(encoder)(100 * torch.randn_like(fused), visible, infrared)
