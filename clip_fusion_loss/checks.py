"""Argument checks and their error messages."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Pixels per side. VGG halves the size three times before relu4_2, and CLIP recognises nothing in
# smaller images.
MIN_SIZE = 16

# Allowed overshoot beyond `data_range`, as a fraction of its width: interpolation may overshoot.
RANGE_TOLERANCE = 0.02


def _words(name: str, expected: str, got: object, remedy: str = "") -> str:
    """An error message: the argument, what was expected, what came and how to fix it."""
    return f"`{name}` must {expected}, got {got}{'; ' if remedy else ''}{remedy}"


def check_images(images: Mapping[str, Tensor], device: torch.device) -> None:
    """Check types, dtypes, shapes and devices of images, by name, without reading their values.

    Raises:
        TypeError: not a floating point tensor, or dtypes that do not match.
        ValueError: a wrong shape, shapes that do not match, or a device other than `device`.
    """
    for name, image in images.items():
        check_image(name, image)
        if len(image) == 0:
            got = f"shape {tuple(image.shape)}"
            raise ValueError(_words(name, "hold at least one image", got, "skip empty batches"))
        check_sides(name, image, MIN_SIZE)
    for (first, reference), (name, image) in combinations(images.items(), 2):
        _check_match(name, image, first, reference)
    first = next(iter(images))
    check_device(first, images[first], device, "loss", "criterion")


def check_sides(name: str, images: Tensor, minimum: int) -> None:
    """Raise a ValueError if (B, C, H, W) `images` have fewer pixels per side than `minimum`."""
    if min(images.shape[2:]) < minimum:
        expected = f"be at least {minimum} x {minimum} pixels"
        raise ValueError(_words(name, expected, tuple(images.shape), "train on larger crops"))


def check_image(name: str, image: Any) -> None:
    """Raise unless it is a floating point tensor of shape (B, 1 | 3, H, W)."""
    _check_tensor(name, image)
    if not image.is_floating_point():
        remedy = f"convert 8-bit images with {name}.float() / 255"
        raise TypeError(_words(name, "be floating point", image.dtype, remedy))
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[1] not in (1, 3):
        expected = "have shape (B, C, H, W) with C = 1 or 3"
        raise ValueError(_words(name, expected, shape, _shape_remedy(name, shape)))


def _shape_remedy(name: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return f"add the batch and channel axes with {name}[None, None]"
    if len(shape) == 3:
        return f"add a missing batch axis with {name}[None], or channel axis with {name}[:, None]"
    if len(shape) != 4:
        return "pass a batch of images"
    if shape[1] in (2, 4) and shape[3] > 4:
        return f"drop the alpha channel with {name}[:, :{shape[1] - 1}]"
    return f"if channels come last, move them with {name}.movedim(-1, 1)"


def _check_tensor(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        return
    got, remedy = type(value).__name__, "convert arrays with torch.from_numpy"
    if value is None:
        remedy = "check that the function that makes it has a return statement"
    elif isinstance(value, (list, tuple)) and any(isinstance(entry, Tensor) for entry in value):
        got, remedy = f"a {got} of {len(value)}", f"pick the tensor from it, such as {name}[0]"
    raise TypeError(_words(name, "be a torch.Tensor", got, remedy))


def check_device(
    name: str, images: Tensor, device: torch.device, owner: str, variable: str
) -> None:
    """Raise a ValueError unless `images` are on the `device` of the `owner`.

    The message calls the owner `variable` where it shows code.
    """
    if images.device != device:
        remedy = f"call {variable}.to({str(images.device)!r}) once"
        raise ValueError(_words(name, f"be on {device} like the {owner}", images.device, remedy))


def _check_match(name: str, image: Tensor, first: str, reference: Tensor) -> None:
    sides = (reference.shape[0], *reference.shape[2:])
    if (image.shape[0], *image.shape[2:]) != sides:
        expected = f"have the batch, height and width of `{first}`, {sides}"
        remedy = "load, crop and resize the images of a pair together"
        raise ValueError(_words(name, expected, f"shape {tuple(image.shape)}", remedy))
    if image.device != reference.device:
        expected = f"be on the device of `{first}`, {reference.device}"
        remedy = f"move it with {name}.to({first}.device)"
        raise ValueError(_words(name, expected, image.device, remedy))
    # Networks under autocast or in half precision return another dtype than their inputs have.
    half = first == "fused" and reference.dtype in (torch.float16, torch.bfloat16)
    if image.dtype != reference.dtype and not (half and image.dtype == torch.float32):
        expected = f"have the dtype of `{first}`, {reference.dtype}{', or be float32' * half}"
        remedy = f"convert it with {name}.to({first}.dtype)"
        raise TypeError(_words(name, expected, image.dtype, remedy))


def check_axes(name: str, value: Any, axes: str, *, boolean: bool = False) -> None:
    """Raise unless `value` is a floating point (or boolean) tensor of shape `axes`, not empty.

    `axes` is written as in docstrings: a number fixes a size and ``...`` stands for any number of
    axes, as in "(N, C, H, W)", "(..., D)", "(B, N, 2, 3)".
    """
    _check_tensor(name, value)
    if not (value.dtype == torch.bool if boolean else value.is_floating_point()):
        kind, method = ("boolean", "bool") if boolean else ("floating point", "float")
        remedy = f"convert it with {name}.{method}()"
        raise TypeError(_words(name, f"be {kind}", value.dtype, remedy))
    wanted = axes.strip("()").replace(" ", "").strip(",").split(",")
    sizes = shape = tuple(value.shape)
    if wanted[0] == "...":
        wanted, sizes = wanted[1:], shape[1 - len(wanted) :]
    if len(sizes) != len(wanted) or not all(
        size == int(axis) if axis.isdigit() else size > 0
        for size, axis in zip(sizes, wanted, strict=True)
    ):
        raise ValueError(_words(name, f"have shape {axes} without empty axes", shape))


def check_alike(tensors: Mapping[str, Tensor], axes: str) -> None:
    """`check_axes` for all `tensors`, and that their shapes match.

    With "(..., D)" the last axes must be equal and those before must broadcast; with axes such as
    "(N, C, H, W)" the shapes must be equal.
    """
    for name, tensor in tensors.items():
        check_axes(name, tensor, axes)
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        fits = tensor.shape == reference.shape
        if axes.startswith("(..."):
            pairs = list(zip(reversed(tensor.shape), reversed(reference.shape), strict=False))
            fits = pairs[0][0] == pairs[0][1] and all(m == n or 1 in (m, n) for m, n in pairs)
        if not fits:
            expected = f"match `{first}` of shape {tuple(reference.shape)}"
            got = f"shape {tuple(tensor.shape)}"
            raise ValueError(_words(name, expected, got, f"pass all of them as {axes}"))


def check_size(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is (height, width) in whole pixels, each at least 1."""
    pair = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(_words(name, "be (height, width) in whole pixels", repr(value)))


def check_embeddings(name: str, embeddings: Any, images: Tensor, width: int) -> None:
    """Raise a ValueError unless `embeddings` are (B, width) and on the device of the B `images`."""
    for embedding in embeddings:
        if embedding.shape != (len(images), width) or embedding.device != images.device:
            expected = (
                f"hold embeddings of shape {(len(images), width)} on {images.device}, one per image"
            )
            got = f"{tuple(embedding.shape)} on {embedding.device}"
            remedy = "embed this batch with criterion.embed_sources(visible, infrared)"
            raise ValueError(_words(name, expected, got, remedy))


def check_indices(name: str, value: Tensor, device: torch.device) -> None:
    """Raise unless `value` is (B,) integers on the CPU or on `device`; its values are not read."""
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"`{name}` must be integers, got {value.dtype}; convert with .long()")
    if value.ndim != 1:
        raise ValueError(_words(name, "have shape (B,)", tuple(value.shape), "pass .flatten()"))
    if value.device.type != "cpu" and value.device != device:
        raise ValueError(
            f"`{name}` must be on the CPU or on {device}, got {value.device}; move one of them "
            "with .to(device)"
        )


def check_source_values(images: Mapping[str, Tensor], data_range: tuple[float, float]) -> None:
    """Raise a ValueError if a value is not finite or not in `data_range`.

    Reads from the device, so do not call it in every step.
    """
    for name, image in images.items():
        _check_values(name, image, data_range, RANGE_TOLERANCE, "check the data for broken files")


def check_fused_values(fused: Tensor, data_range: tuple[float, float]) -> None:
    """Raise a ValueError if a value is not finite, or is outside the range by more than its width.

    Reads from the device, so do not call it in every step.
    """
    diverged = "the network diverged: lower the learning rate, or clip its gradients"
    _check_values("fused", fused, data_range, 1.0, diverged)


def _check_values(
    name: str, image: Tensor, data_range: tuple[float, float], tolerance: float, broken: str
) -> None:
    low, high = data_range
    smallest, largest = (value.item() for value in torch.aminmax(image.detach()))
    got = f"values from {smallest:g} to {largest:g}"
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise ValueError(_words(name, "be finite", got, broken))
    if smallest < low - tolerance * (high - low) or largest > high + tolerance * (high - low):
        remedy = "rescale it or pass its range as data_range=(low, high)"
        if smallest >= 0 and largest <= 256:
            remedy = "divide by 255 or pass data_range=(0, 255)"
        elif smallest >= -1.05 and largest <= 1.05:
            remedy = "pass data_range=(-1, 1)"
        expected = f"lie in [{low:g}, {high:g}]"
        raise ValueError(_words(name, expected, got, f"{remedy}, for all three images"))


def check_number(
    name: str, value: Any, *, minimum: float = 0.0, maximum: float = math.inf, whole: bool = False
) -> Any:
    """`value` as an `int` or a `float` within the bounds; also from a NumPy scalar or 0-D tensor.

    Raises:
        TypeError: it is not a number, or not a whole one where `whole`.
        ValueError: it is not finite, or outside the bounds.
    """
    given, value = value, _plain(value)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        remedy = ""
        if isinstance(given, Tensor) and given.requires_grad:
            remedy = "options carry no gradient: pass value.item()"
        elif isinstance(given, str):
            remedy = "convert text with float(text)"
        expected = "be a whole number" if whole else "be a number"
        raise TypeError(_words(name, expected, shown(given), remedy))
    if not (minimum <= value <= maximum and math.isfinite(value)):
        most = f" and at most {maximum:g}" if maximum < math.inf else ""
        raise ValueError(_words(name, f"be finite and at least {minimum:g}{most}", repr(value)))
    return value


def _plain(value: Any) -> Any:
    """The Python value of a NumPy scalar or a 0-D tensor or array; anything else unchanged."""
    learnt = isinstance(value, Tensor) and value.requires_grad
    if getattr(value, "ndim", None) != 0 or learnt or not hasattr(value, "item"):
        return value
    return value.item()  # this waits for the device, but at an assignment, not in a step


def check_flag(name: str, value: Any) -> bool:
    """`value` as a bool; also from a NumPy bool. Raises a TypeError for anything else."""
    return check_type(name, _plain(value), bool)


def check_interval(
    name: str, value: Any, *, minimum: float = -math.inf, maximum: float = math.inf,
    empty: bool = False,
) -> tuple[float, float]:  # fmt: skip
    """`value` as a pair (low, high) of floats within the bounds; low == high only if `empty`.

    Raises:
        TypeError: it is not a pair of numbers.
        ValueError: the bounds are in the wrong order, not finite, or out of range.
    """
    try:
        # Any sequence. Sets have no order, and an iterator could be read only once.
        if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
            raise TypeError
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError):
        raise TypeError(_words(name, "be a pair of numbers (low, high)", shown(value))) from None
    ordered = low <= high if empty else low < high
    if not (ordered and minimum <= low and high <= maximum and math.isfinite(high - low)):
        expected = f"be (low, high) with low {'<=' if empty else '<'} high, both finite and from"
        raise ValueError(_words(name, f"{expected} {minimum:g} to {maximum:g}", repr(value)))
    return low, high


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value`; a ValueError unless it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(_words(name, f"be one of {', '.join(map(repr, choices))}", shown(value)))
    return choices[choices.index(value)]


def check_type(name: str, value: Any, kind: type, *, optional: bool = False) -> Any:
    """`value`; a TypeError unless it is a `kind` (or None, if `optional`)."""
    if not (isinstance(value, kind) or (optional and value is None)):
        expected = f"be a {kind.__name__}{' or None' * optional}"
        raise TypeError(_words(name, expected, shown(value)))
    return value


def check_path(name: str, value: Any) -> Path:
    """`value` as a path, with "~" expanded; raises a TypeError if it is not a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(_words(name, "be a path", repr(value), "pass a str or a pathlib.Path"))
    return Path(value).expanduser()


def check_per_sample(name: str, losses: Any, batch: int) -> None:
    """Raise a ValueError unless `losses`, which the module `name` returned, has shape (batch,)."""
    if not isinstance(losses, Tensor) or losses.shape != (batch,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        remedy = "reduce over channels and pixels, not over the batch"
        raise ValueError(_words(name, f"return one loss per sample, shape ({batch},)", got, remedy))


def warn(message: str) -> None:
    """Issue a UserWarning for the caller's line, skipping frames of this package and of torch."""
    folders = (os.path.join(Path(file).parent, "") for file in (__file__, torch.__file__))
    inside = (*folders, contextlib.__file__)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def shown(value: object) -> str:
    """`repr(value)` for a message, shortened beyond 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-30:]}"
