"""Warnings about images that are valid input but suggest a mistake.

All checks read values from the device, so they run on the first batch only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks

if TYPE_CHECKING:
    from .source_images import SourceEmbeddings, TakesSources

__all__ = ["warn_of_mistakes"]

# Chosen so that none of 176 real pairs, whole or as 112 px crops, in batches of 1 to 8, gives a
# false alarm (tests/test_mistakes.py).
MIN_WRONG_ANSWERS = 11  # source images that the encoder takes for the other kind, at least
WRONG_SHARE = 0.8  # their share of all source images, at least
CHROMA_DISTANCE = 0.15  # mean distance from mid-grey; rarely less in RGB channels
CHROMA_CONTRAST = 0.5  # standard deviation relative to the first channel; about 1 in RGB
GREY_LEVEL_MEAN = 4.0  # in units of the range; an image in [0, 255] below this mean is black

INFRARED_WORDS = re.compile(r"\b(infrared|thermal|ir)\b", re.IGNORECASE)


@torch.no_grad()
def warn_of_mistakes(
    criterion: TakesSources, fused: Tensor | None, visible: Tensor, infrared: Tensor
) -> None:
    """Warn if the images suggest a wrong value range, a wrong colour space or swapped sources.

    Args:
        criterion: the loss, for its `data_range`, texts and encoder.
        fused: (B, 1 | 3, H, W), or None to check the sources alone.
        visible: (B, 1 | 3, H, W), within `data_range`.
        infrared: likewise.

    Warns:
        UserWarning: sources lie in [0, 1] although `data_range` is another; the visible image
            looks like YCrCb; the fused image has values up to 255 and the sources up to 1; the
            encoder takes visible images for infrared ones and infrared for visible.
    """
    low, high = criterion.data_range
    _warn_of_converted_range({"visible": visible, "infrared": infrared}, low, high)
    _warn_of_chroma((visible.float() - low) / (high - low))
    if fused is not None and high <= 1:
        _warn_of_grey_levels((fused.detach().float() - low) / (high - low))
    _warn_of_swapped_roles(criterion, visible, infrared)


def _warn_of_converted_range(sources: dict[str, Tensor], low: float, high: float) -> None:
    extremes = {name: torch.aminmax(image) for name, image in sources.items()}
    slack = checks.RANGE_TOLERANCE
    found = [
        f"`{name}`"
        for name, (smallest, largest) in extremes.items()
        if smallest >= -slack and 0 < largest <= 1 + slack
    ]
    # With a range around zero, a bright source or one pair of bright crops may lie in [0, 1] by
    # chance, but hardly with a minimum near 0.
    darkest = min(smallest.item() for smallest, _ in extremes.values())
    all_around_zero = (
        low <= -1
        and len(found) == len(sources)
        and (len(sources["visible"]) > 1 or darkest <= slack)
    )
    if found and (high >= 255 or all_around_zero):
        checks.warn(
            f"{' and '.join(found)} in [0, 1] although `data_range` is {(low, high)}; "
            "pass data_range=(0, 1) if your images are in that range, for example because the loop "
            "has converted them already"
        )


def _warn_of_chroma(visible: Tensor) -> None:
    if visible.shape[1] != 3:
        return
    chroma = visible[:, 1:]
    contrast = chroma.std((2, 3)).amax(1) / visible[:, 0].std((1, 2)).clamp(min=1e-6)
    distance = (chroma - 0.5).abs().mean((2, 3)).amax(1)
    if distance.mean() < CHROMA_DISTANCE and contrast.mean() < CHROMA_CONTRAST:
        checks.warn(
            "`visible` looks like YCrCb or YCbCr: its second and third channels are nearly "
            "constant and close to mid-grey; pass RGB, or the luminance alone, visible[:, :1]"
        )


def _warn_of_grey_levels(fused: Tensor) -> None:
    smallest, largest = (value.item() for value in torch.aminmax(fused))
    if fused.mean() > GREY_LEVEL_MEAN and smallest >= -1 and largest <= 256:
        checks.warn(
            f"`fused` looks like grey levels up to 255 with sources up to 1: in units of "
            f"`data_range` it goes from {smallest:.3g} to {largest:.3g}; divide it by 255"
        )


def _warn_of_swapped_roles(criterion: TakesSources, visible: Tensor, infrared: Tensor) -> None:
    """Warn if the encoder assigns most sources to the text of the other modality."""
    texts = criterion.objective
    about_modalities = all(map(INFRARED_WORDS.search, texts.infrared)) and not any(
        map(INFRARED_WORDS.search, texts.visible)
    )
    if not about_modalities or 2 * len(visible) < MIN_WRONG_ANSWERS:
        return
    try:
        of_visible, of_infrared = (
            F.normalize(criterion.encoder.encode_text(role).mean(0), dim=0)
            for role in (texts.visible, texts.infrared)
        )
    except RuntimeError:  # the objective came embedded, and there is no text tower
        return
    sources: SourceEmbeddings = criterion.embed_sources(visible, infrared)
    towards_visible = of_visible - of_infrared
    wrong = int((sources.visible @ towards_visible < 0).sum())
    wrong += int((sources.infrared @ towards_visible > 0).sum())
    if wrong >= max(MIN_WRONG_ANSWERS, WRONG_SHARE * 2 * len(visible)):
        checks.warn(
            f"`visible` and `infrared` seem to be swapped: the encoder takes {wrong} of "
            f"{2 * len(visible)} source images for the other modality, by the objective's texts; "
            "look at a pair, and pass images by keyword"
        )
