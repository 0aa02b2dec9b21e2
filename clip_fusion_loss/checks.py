"""What is wrong with a call, in words: checked once, where the caller's values come in.

A wrong type is a TypeError and a wrong value a ValueError. Functions that check one argument return
the value to keep.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Pixels per side: CLIP recognises nothing in smaller images, and VGG halves them three times.
MIN_SIZE = 16

# Allowed overshoot beyond `data_range`, as a fraction of its width: interpolation may overshoot.
RANGE_TOLERANCE = 0.02

# Chosen so that none of 176 real pairs, whole or as crops, gives a false alarm.
CHROMA_DISTANCE = 0.15  # mean distance from mid-grey; rarely less in RGB channels
CHROMA_CONTRAST = 0.5  # standard deviation relative to the first channel; about 1 in RGB
GREY_LEVEL_MEAN = 4.0  # in units of the range; an image in [0, 255] below this mean is black

# A file name passed by mistake would be embedded like any other text.
FILE_SUFFIXES = (".safetensors", ".json", ".txt", ".pt", ".pth")


def _message(name: str, expected: str, got: object, remedy: str = "") -> str:
    return f"`{name}` must {expected}, got {got}{'; ' if remedy else ''}{remedy}"


def check_images(images: Mapping[str, Tensor], device: torch.device) -> None:
    """Check types, shapes and devices of the images of one call, without reading their values."""
    (first, reference), *_ = images.items()
    for name, image in images.items():
        check_image(name, image)
        shape = tuple(image.shape)
        if shape[0] == 0:
            raise ValueError(_message(name, "hold at least one image", shape, "skip empty batches"))
        if min(shape[2:]) < MIN_SIZE:
            expected = f"be at least {MIN_SIZE} x {MIN_SIZE} pixels"
            raise ValueError(_message(name, expected, shape, "train on larger crops"))
        if (shape[0], *shape[2:]) != (len(reference), *reference.shape[2:]):
            expected = f"have the batch, height and width of `{first}`, {tuple(reference.shape)}"
            remedy = "load, crop and resize the images of a pair together"
            raise ValueError(_message(name, expected, f"shape {shape}", remedy))
        if image.device != reference.device:
            expected = f"be on the device of `{first}`, {reference.device}"
            remedy = f"move it with {name}.to({first}.device)"
            raise ValueError(_message(name, expected, image.device, remedy))
    check_device(first, reference, device, "loss", "criterion")


def check_image(name: str, image: Any) -> None:
    """`image` must be a floating point tensor of shape (B, 1 | 3, H, W)."""
    if not isinstance(image, Tensor):
        remedy = "convert arrays with torch.from_numpy, and pick one of several outputs"
        raise TypeError(_message(name, "be a torch.Tensor", type(image).__name__, remedy))
    if not image.is_floating_point():
        remedy = f"convert 8-bit images with {name}.float() / 255"
        raise TypeError(_message(name, "be floating point", image.dtype, remedy))
    if image.ndim != 4 or image.shape[1] not in (1, 3):
        remedy = f"add a missing batch axis with {name}[None], or channel axis with {name}[:, None]"
        if image.ndim > 3:
            remedy = f"move channels that come last with {name}.movedim(-1, 1), and drop alpha"
        expected = "have shape (B, C, H, W) with C = 1 or 3"
        raise ValueError(_message(name, expected, tuple(image.shape), remedy))


def check_device(
    name: str, images: Tensor, device: torch.device, owner: str, variable: str
) -> None:
    """`images` must be on the `device` of the `owner`, in code called `variable`."""
    if images.device != device:
        remedy = f"call {variable}.to({str(images.device)!r}) once"
        raise ValueError(_message(name, f"be on {device} like the {owner}", images.device, remedy))


def check_regions(regions: Any, images: Tensor, objectives: int, read: bool) -> Tensor:
    """`regions` as int64: (B, H, W) labels of `images`, each with one of so many `objectives`.

    The labels themselves are read on a CPU, or if `read`: elsewhere the host would wait for them.
    """
    if not isinstance(regions, Tensor):
        raise TypeError(_message("regions", "be a torch.Tensor", type(regions).__name__))
    if regions.is_floating_point() or regions.is_complex() or regions.dtype == torch.bool:
        remedy = "convert a mask with regions.long(): 0 outside and 1 inside"
        raise TypeError(_message("regions", "hold integers", regions.dtype, remedy))
    wanted, shape = (len(images), *images.shape[2:]), tuple(regions.shape)
    if shape != wanted:
        remedy = "crop labels with their pair, without interpolation; drop a channel axis"
        raise ValueError(_message("regions", f"have shape {wanted}", shape, remedy))
    if regions.device != images.device:
        remedy = "move them with regions.to(fused.device)"
        expected = f"be on the device of `fused`, {images.device}"
        raise ValueError(_message("regions", expected, regions.device, remedy))
    regions = regions.long()
    if read or regions.device.type == "cpu":
        smallest, largest = (label.item() for label in regions.aminmax())
        if not 0 <= smallest <= largest < objectives:
            expected = f"hold labels from 0 to {objectives - 1}, the rows of `objectives`"
            remedy = "embed an objective for each label"
            got = f"labels from {smallest} to {largest}"
            raise ValueError(_message("regions", expected, got, remedy))
    return regions


def check_values(images: Mapping[str, Tensor], data_range: tuple[float, float]) -> None:
    """Raise a ValueError unless values are finite and in the range; "fused" may leave it."""
    low, high = data_range
    for name, image in images.items():
        smallest, largest = _extremes(image)
        got = f"values from {smallest:g} to {largest:g}"
        tolerance, broken = RANGE_TOLERANCE, "check the data for broken files"
        if name == "fused":
            tolerance, broken = 1.0, "the network diverged: lower the learning rate"
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            raise ValueError(_message(name, "be finite", got, broken))
        slack = tolerance * (high - low)
        if smallest < low - slack or largest > high + slack:
            remedy = "rescale all three images, or pass their range as data_range=(low, high)"
            if smallest >= 0 and 2 < largest <= 256:
                remedy = "divide by 255 or pass data_range=(0, 255), for all three images"
            elif smallest >= -1.05 and largest <= 1.05:
                remedy = "pass data_range=(-1, 1), for all three images"
            raise ValueError(_message(name, f"lie in [{low:g}, {high:g}]", got, remedy))


def _extremes(image: Tensor) -> tuple[float, float]:
    smallest, largest = torch.aminmax(image.detach())
    return smallest.item(), largest.item()


@torch.no_grad()
def warn_of_mistakes(
    fused: Tensor | None, visible: Tensor, infrared: Tensor, data_range: tuple[float, float]
) -> None:
    """Warn of images that are valid but suggest a mistake. Reads from the device."""
    low, high = data_range
    slack = RANGE_TOLERANCE
    ranges = {"visible": _extremes(visible), "infrared": _extremes(infrared)}
    found = [
        f"`{name}`"
        for name, (smallest, largest) in ranges.items()
        if smallest >= -slack and 0 < largest <= 1 + slack
    ]
    # With a range around zero, a bright source or one pair of bright crops may lie in [0, 1] by
    # chance, but hardly with a minimum near 0.
    darkest = min(smallest for smallest, _ in ranges.values())
    around_zero = low <= -1 and len(found) == 2 and (len(visible) > 1 or darkest <= slack)
    if found and (high >= 255 or around_zero):
        warn(
            f"{' and '.join(found)} in [0, 1] although `data_range` is {(low, high)}; "
            "pass data_range=(0, 1), perhaps because the loop has converted them already"
        )
    if visible.shape[1] == 3:
        first, *_ = channels = ((visible.float() - low) / (high - low)).unbind(1)
        chroma = torch.stack(channels[1:], 1)
        contrast = chroma.std((2, 3)).amax(1) / first.std((1, 2)).clamp(min=1e-6)
        distance = (chroma - 0.5).abs().mean((2, 3)).amax(1)
        if distance.mean() < CHROMA_DISTANCE and contrast.mean() < CHROMA_CONTRAST:
            warn(
                "`visible` looks like YCrCb or YCbCr: two channels are nearly mid-grey; pass RGB, "
                "or the luminance alone, visible[:, :1]"
            )
    if fused is not None and high <= 1:
        scaled = (fused.float() - low) / (high - low)
        smallest, largest = _extremes(scaled)
        if scaled.mean() > GREY_LEVEL_MEAN and smallest >= -1 and largest <= 256:
            warn(
                "`fused` looks like grey levels up to 255 with sources up to 1, got "
                f"{smallest:.3g} to {largest:.3g} times `data_range`; divide it by 255"
            )


def check_number(
    name: str, value: Any, *, minimum: float = 0.0, maximum: float = math.inf, whole: bool = False
) -> Any:
    """`value` as an `int` or a `float` within the bounds, also from a NumPy scalar or a tensor."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        expected = "be a whole number" if whole else "be a number without gradient"
        raise TypeError(_message(name, expected, shorten(value)))
    if not (minimum <= value <= maximum and math.isfinite(value)):
        most = f" and at most {maximum:g}" if maximum < math.inf else ""
        raise ValueError(_message(name, f"be finite and at least {minimum:g}{most}", repr(value)))
    return value


def _plain(value: Any) -> Any:
    """The Python value of a NumPy scalar or a 0-D tensor or array; anything else unchanged."""
    learnt = isinstance(value, Tensor) and value.requires_grad
    if getattr(value, "ndim", None) != 0 or learnt or not hasattr(value, "item"):
        return value
    return value.item()  # this waits for the device, but at an assignment, not in a step


def check_interval(
    name: str, value: Any, *, minimum: float = -math.inf, maximum: float = math.inf,
    empty: bool = False,
) -> tuple[float, float]:  # fmt: skip
    """`value` as a pair (low, high) of floats within the bounds; low == high only if `empty`."""
    try:
        # Any sequence, but no set, which has no order.
        if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
            raise TypeError
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError):
        expected = "be a pair of numbers (low, high)"
        raise TypeError(_message(name, expected, shorten(value))) from None
    ordered = low <= high if empty else low < high
    if not (ordered and minimum <= low and high <= maximum and math.isfinite(high - low)):
        expected = f"be (low, high), increasing and finite, from {minimum:g} to {maximum:g}"
        raise ValueError(_message(name, expected, repr(value)))
    return low, high


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value`, one of `choices`, as a plain `str`."""
    if not isinstance(value, str) or value not in choices:
        expected = f"be one of {', '.join(map(repr, choices))}"
        raise ValueError(_message(name, expected, shorten(value)))
    return choices[choices.index(value)]


def check_type(name: str, value: Any, kind: type, *, optional: bool = False) -> Any:
    """`value`, which must be a `kind`, or None if `optional`."""
    if not (isinstance(value, kind) or (optional and value is None)):
        raise TypeError(_message(name, f"be a {kind.__name__}", shorten(value)))
    return value


def check_path(name: str, value: Any) -> Path:
    """`value` as a path, with "~" expanded."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(_message(name, "be a path", repr(value), "pass a str or a pathlib.Path"))
    return Path(value).expanduser()


def check_file(name: str, value: Any) -> Path:
    """`value` as the path of a file, which must exist."""
    path = check_path(name, value)
    if not path.is_file():
        raise FileNotFoundError(_message(name, "be an existing file", path))
    return path


def check_texts(name: str, value: Any) -> tuple[str, ...]:
    """One text or several as a tuple of `str`, none of them empty or a file name."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(_message(name, "be a text or a sequence of texts", repr(value)))
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(_message(name, "hold at least one text and no empty one", repr(value)))
    for text in texts:
        if text.strip().endswith(FILE_SUFFIXES):
            remedy = "load a saved objective with EmbeddedFusionModel.load(path)"
            got = f"what seems to be a file name, {text!r}"
            raise ValueError(_message(name, "be a text", got, remedy))
    return tuple(map(str, texts))  # NumPy strings become plain ones, which checkpoints may hold


def warn(message: str) -> None:
    """Issue a UserWarning for the caller's line, skipping frames of this package and of torch."""
    folders = (os.path.join(Path(file).parent, "") for file in (__file__, torch.__file__))
    inside = (*folders, contextlib.__file__)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def shorten(value: object) -> str:
    """`repr(value)` for a message, shortened beyond 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-30:]}"
