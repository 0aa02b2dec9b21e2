"""Checks that need more than one call, and warnings of valid calls that are wrong.

guarantees/test_wrong_calls.py has all the others.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clip_fusion_loss import LanguageDrivenFusionLoss, functional
from clip_fusion_loss.checks import warn_of_mistakes
from conftest import draw_images, make_criterion, named


def test_warnings_point_to_the_line_that_called(encoder):
    converted = "because the loop has converted them already"
    for data_range, words in (((-1, 1), converted), ((0, 255), r"in \[0, 1\] although")):
        criterion = make_criterion(encoder, data_range=data_range)
        with pytest.warns(UserWarning, match=words) as caught:
            criterion(**named(draw_images()))
        assert {warning.filename for warning in caught} == {__file__}
    with pytest.warns(UserWarning, match="'zebra'.*from_pretrained") as caught:
        LanguageDrivenFusionLoss.tiny("a dark zebra")
    assert {warning.filename for warning in caught} == {__file__}


def test_values_are_looked_at_on_demand(encoder):
    criterion = make_criterion(encoder)
    criterion(**named(draw_images()))
    fused, visible, infrared = draw_images()
    wrong = named([fused, visible * 255, infrared])
    criterion(**wrong)  # not the first call: nothing is read any more
    criterion.check_values(**named([fused * 2 - 0.5, visible, infrared]))  # young nets overshoot
    with pytest.raises(ValueError, match="divide by 255"):
        criterion.check_values(**wrong)


def test_a_first_check_on_demand_warns_once_and_embeds_nothing(encoder, encoded_batches):
    criterion = make_criterion(encoder, data_range=(0, 255), patch_weight=0)
    images = named(draw_images())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        criterion.check_values(**images)
        assert encoded_batches == []
        criterion(**images)
    assert len(caught) == 1
    assert encoded_batches == [4, 2]
    with pytest.warns(UserWarning, match="in \\[0, 1\\] although"):  # asked again, told again
        criterion.check_values(**images)


@pytest.mark.parametrize("returned", [torch.zeros(()), torch.zeros(2, 1), 0.0, torch.zeros(3)])
def test_regularizer_that_is_not_per_sample(encoder, returned):
    class Wrong(nn.Module):
        def forward(self, *images):
            return returned

    criterion = make_criterion(encoder, regularizer=Wrong())
    with pytest.raises(ValueError, match="`regularizer` must return one loss per sample"):
        criterion(**named(draw_images()))


def test_another_range_has_the_sources_checked_again(encoder):
    criterion = make_criterion(encoder)
    images = draw_images()
    criterion(**named(images))
    criterion.data_range = (0.0, 0.1)
    with pytest.raises(ValueError, match=r"`visible` must lie in \[0, 0.1\]"):
        criterion(**named(images))


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
        images = [visible.expand(3, -1, -1), infrared]
        if crop is None:
            return [functional.resize_images(i[None], (96, 96))[0].clamp(0, 1) for i in images]
        top, left = (int(torch.randint(s - crop, (), generator=random)) for s in infrared.shape[1:])
        return [image[:, top : top + crop, left : left + crop] for image in images]

    taken = [take(*pair) for pair in pairs]
    for start in range(0, len(pairs), size):
        yield map(torch.stack, zip(*taken[start : start + size], strict=True))


def luminance_and_chroma(rgb):
    """What OpenCV (YCrCb) makes of RGB in [0, 1]; Pillow's YCbCr has the chroma swapped."""
    red, green, blue = rgb.split(1, 1)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = 0.713 * (red - luminance) + 0.5, 0.564 * (blue - luminance) + 0.5
    return torch.cat([luminance, *chroma], 1).clamp(0, 1)


@pytest.mark.parametrize("crop", [None, 112])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_real_pairs_raise_no_false_alarm(pairs, size, crop):
    # Warnings are errors here. In [-1, 1] too: bright crops have no pixel below 0 there.
    for visible, infrared in batches(pairs, size, crop):
        images = (visible.mean(1, keepdim=True) + infrared) / 2, visible, infrared
        warn_of_mistakes(*images, (0, 1))
        warn_of_mistakes(*(2 * image - 1 for image in images), (-1, 1))


def warnings_of(*arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_mistakes(*arguments)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1]])
@pytest.mark.parametrize("size", [1, 8])
def test_luminance_and_chroma_are_told_from_colours(pairs, order, size):
    coloured = [pair for pair in pairs if len(pair[0]) == 3]
    found = [
        warnings_of(None, luminance_and_chroma(visible)[:, order], infrared, (0, 1))
        for visible, infrared in batches(coloured, size)
    ]
    assert sum(map(bool, found)) >= 0.9 * len(found)
    expected = "`visible` looks like YCrCb or YCbCr"
    assert all(expected in message for messages in found for message in messages)


def test_grey_levels_beside_fractions(encoder):
    fused, visible, infrared = draw_images(batch=2)
    for data_range, sources in (
        ((0, 1), (visible, infrared)),
        ((-1, 1), (2 * visible - 1, 2 * infrared - 1)),
    ):
        criterion = make_criterion(encoder, data_range=data_range)
        with pytest.warns(UserWarning, match="`fused` looks like grey levels up to 255 .* by 255"):
            criterion(**named([255 * fused, *sources]))
        criterion(**named([255 * fused, *sources]))  # a step that is not the first
    # Young networks leave the range, on both sides.
    young = 100 * torch.randn_like(fused)
    make_criterion(encoder)(**named([young, visible, infrared]))
