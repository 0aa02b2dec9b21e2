"""What may come in, and the words when it may not."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "MIN_SIZE",
    "check_alike",
    "check_axes",
    "check_choice",
    "check_embeddings",
    "check_flag",
    "check_fused_values",
    "check_images",
    "check_indices",
    "check_interval",
    "check_number",
    "check_path",
    "check_per_sample",
    "check_size",
    "check_source_values",
    "check_type",
    "shown",
    "warn",
]

# Pixels a side. VGG's relu4_2 halves three times, and smaller images show CLIP nothing.
MIN_SIZE = 16

# Interpolation may overshoot the range a little, as a fraction of its span.
RANGE_TOLERANCE = 0.02


def check_images(images: Mapping[str, Tensor], device: torch.device) -> None:
    """Check all that can be checked without reading a value from the device.

    Args:
        images: by their names in messages; the others are compared with the first.
        device: where they must be.

    Raises:
        TypeError: not a floating point tensor, or dtypes that do not go together.
        ValueError: shape or device.
    """
    for name, image in images.items():
        _check_image(name, image)
    (first, reference), *others = images.items()
    for name, image in others:
        _check_match(name, image, first, reference)
    if "fused" in images and images["visible"].dtype != images["infrared"].dtype:
        raise TypeError(
            f"`infrared` must have the dtype of `visible`, {images['visible'].dtype}, got "
            f"{images['infrared'].dtype}; convert one with .to(dtype)"
        )
    if reference.device != device:
        raise ValueError(
            f"`{first}` must be on {device} like the loss, got {reference.device}; "
            f"call criterion.to({str(reference.device)!r}) once"
        )


def _check_image(name: str, image: Any) -> None:
    if isinstance(image, (list, tuple)) and any(isinstance(entry, Tensor) for entry in image):
        raise TypeError(
            f"`{name}` must be a torch.Tensor, got a {type(image).__name__} of {len(image)}; pick "
            f"the image from it, say {name}[0]"
        )
    _check_tensor(name, image)
    if not image.is_floating_point():
        raise TypeError(
            f"`{name}` must be floating point, got {image.dtype}; convert 8-bit images with "
            f"{name}.float() / 255, or with {name}.float() and data_range=(0, 255)"
        )
    shape = tuple(image.shape)
    if image.ndim != 4 or shape[1] not in (1, 3) or shape[0] == 0:
        raise ValueError(
            f"`{name}` must have shape (B, C, H, W) with B >= 1 and C = 1 or 3, got {shape}; "
            f"{_shape_remedy(name, shape)}"
        )
    if min(shape[2:]) < MIN_SIZE:
        raise ValueError(
            f"`{name}` must be at least {MIN_SIZE} x {MIN_SIZE} pixels, got "
            f"{shape[2]} x {shape[3]}; train on larger crops"
        )


def _shape_remedy(name: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return f"add the batch and channel axes with {name}[None, None]"
    if len(shape) == 3:
        return f"add a missing batch axis with {name}[None], or channel axis with {name}[:, None]"
    if len(shape) != 4:
        return "give batches of images"
    if shape[0] == 0:
        return "skip empty batches"
    if shape[1] in (2, 4) and shape[3] > 4:
        return f"drop the alpha channel with {name}[:, :{shape[1] - 1}]"
    return f"move channels that come last with {name}.movedim(-1, 1)"


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        remedy = "a function must return it" if value is None else "use torch.from_numpy on arrays"
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}; {remedy}")


def _check_match(name: str, image: Tensor, first: str, reference: Tensor) -> None:
    expected = (reference.shape[0], *reference.shape[2:])
    if (image.shape[0], *image.shape[2:]) != expected:
        raise ValueError(
            f"`{name}` must have the batch, height and width of `{first}`, {expected}, got shape "
            f"{tuple(image.shape)}; load, crop and resize the images of a pair together"
        )
    if image.device != reference.device:
        raise ValueError(
            f"`{name}` must be on the device of `{first}`, {reference.device}, got "
            f"{image.device}; move it with {name}.to({first}.device)"
        )
    # Networks under autocast or in half precision return what their sources are not.
    half = first == "fused" and reference.dtype in (torch.float16, torch.bfloat16)
    if image.dtype != reference.dtype and not (half and image.dtype == torch.float32):
        raise TypeError(
            f"`{name}` must have the dtype of `{first}`, {reference.dtype}"
            f"{', or be float32' if half else ''}, got {image.dtype}; convert it with "
            f"{name}.to({first}.dtype)"
        )


def check_axes(name: str, value: Any, axes: str, *, boolean: bool = False) -> None:
    """Raise unless `value` is a tensor of floating point (or boolean) with such axes.

    Args:
        name: in messages.
        value: anything.
        axes: as in docstrings; a number fixes the size and ``...`` stands for any axes:
            "(N, C, H, W)", "(..., D)", "(B, N, 2, 3)".
        boolean: whether it must be boolean.

    Raises:
        TypeError: another type or dtype.
        ValueError: another shape, or an axis of size 0.
    """
    _check_tensor(name, value)
    if not (value.dtype == torch.bool if boolean else value.is_floating_point()):
        raise TypeError(
            f"`{name}` must be {'boolean' if boolean else 'floating point'}, got {value.dtype}; "
            f"convert it with {name}.{'bool' if boolean else 'float'}()"
        )
    wanted = axes.strip("()").replace(" ", "").strip(",").split(",")
    shape: tuple[int, ...] = tuple(value.shape)
    if wanted[0] == "...":
        wanted = wanted[1:]
        fits = len(shape) >= len(wanted)
    else:
        fits = len(shape) == len(wanted)
    sizes = shape[-len(wanted) :]
    fits = fits and all(
        size == int(axis) if axis.isdigit() else size > 0
        for size, axis in zip(sizes, wanted, strict=True)
    )
    if not fits:
        raise ValueError(f"`{name}` must have shape {axes} without empty axes, got {shape}")


def check_alike(tensors: Mapping[str, Tensor], axes: str) -> None:
    """`check_axes` for all `tensors`, whose last axes must agree; axes before broadcast.

    With "(N, C, H, W)" nothing is left to broadcast and the shapes must be equal.
    """
    for name, tensor in tensors.items():
        check_axes(name, tensor, axes)
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if axes.startswith("(..."):
            fits = tensor.shape[-1] == reference.shape[-1] and _broadcast(tensor, reference)
        else:
            fits = tensor.shape == reference.shape
        if not fits:
            raise ValueError(
                f"`{name}` must go with `{first}` of shape {tuple(reference.shape)}, got shape "
                f"{tuple(tensor.shape)}; give all of them as {axes}"
            )


def _broadcast(a: Tensor, b: Tensor) -> bool:
    pairs = zip(reversed(a.shape), reversed(b.shape), strict=False)
    return all(m == n or 1 in (m, n) for m, n in pairs)


def check_size(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is (height, width) in whole pixels, at least 1."""
    pair = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(f"`{name}` must be (height, width) in whole pixels, got {value!r}")


def check_embeddings(name: str, embeddings: Any, images: Tensor) -> None:
    """Raise a ValueError unless (B, D) `embeddings` can belong to the (B, C, H, W) `images`."""
    for embedding in embeddings:
        if len(embedding) != len(images) or embedding.device != images.device:
            raise ValueError(
                f"`{name}` must hold {len(images)} embeddings on {images.device}, as many as "
                f"there are images, got {len(embedding)} on {embedding.device}; make them of this "
                "batch with criterion.embed_sources(visible, infrared)"
            )


def check_indices(name: str, value: Tensor, device: torch.device) -> None:
    """Raise unless `value` is (B,) integers on the CPU or on `device`; they are not read."""
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"`{name}` must be integers, got {value.dtype}; convert with .long()")
    if value.ndim != 1:
        raise ValueError(f"`{name}` must have shape (B,), got {tuple(value.shape)}")
    if value.device.type != "cpu" and value.device != device:
        raise ValueError(
            f"`{name}` must be on the CPU or on {device}, got {value.device}; move one of them "
            "with .to(device)"
        )


def check_source_values(images: Mapping[str, Tensor], data_range: tuple[float, float]) -> None:
    """Refuse NaN and values outside `data_range`. Reads from the device: not for every step.

    Raises:
        ValueError: as said, naming the image.
    """
    low, high = data_range
    for name, image in images.items():
        smallest, largest = (value.item() for value in torch.aminmax(image.detach()))
        if math.isnan(smallest) or math.isnan(largest):
            raise ValueError(f"`{name}` must be finite, got NaN; look for broken files in the data")
        slack = RANGE_TOLERANCE * (high - low)
        if smallest < low - slack or largest > high + slack:
            raise ValueError(
                f"`{name}` must lie in [{low:g}, {high:g}], got values from {smallest:g} to "
                f"{largest:g}; {_range_remedy(smallest, largest)}"
            )


def _range_remedy(smallest: float, largest: float) -> str:
    if smallest >= 0 and largest <= 256:
        return "divide by 255 or pass data_range=(0, 255)"
    if smallest >= -1.05 and largest <= 1.05:
        return "pass data_range=(-1, 1)"
    return "rescale it or pass its range as data_range=(low, high)"


def check_fused_values(fused: Tensor, data_range: tuple[float, float]) -> None:
    """Refuse NaN, infinities and values far outside `data_range`. Reads from the device.

    Raises:
        ValueError: as said; far is farther than the range is wide.
    """
    low, high = data_range
    smallest, largest = (value.item() for value in torch.aminmax(fused.detach()))
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise ValueError(
            f"`fused` must be finite, got values from {smallest:g} to {largest:g}; the network "
            "diverged: lower the learning rate, or clip its gradients"
        )
    if smallest < 2 * low - high or largest > 2 * high - low:
        raise ValueError(
            f"`fused` must lie about in [{low:g}, {high:g}], got values from {smallest:g} to "
            f"{largest:g}; {_range_remedy(smallest, largest)}, for all three images"
        )


def check_number(
    name: str, value: Any, *, minimum: float = 0.0, maximum: float = math.inf, whole: bool = False
) -> Any:
    """`value`, an `int` or a `float`, within the bounds; NumPy's and tensors' single ones too."""
    given, value = value, _plain(value)
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(f"`{name}` must be {kind}, got {shown(given)}{_number_remedy(given)}")
    if not (minimum <= value <= maximum and math.isfinite(value)):
        bounds = f"at least {minimum:g}" + (
            f" and at most {maximum:g}" if maximum < math.inf else ""
        )
        raise ValueError(f"`{name}` must be finite and {bounds}, got {value!r}")
    return value


def _plain(value: Any) -> Any:
    """The Python value of a NumPy scalar or of a tensor or array without axes."""
    learnt = isinstance(value, Tensor) and value.requires_grad
    if getattr(value, "ndim", None) != 0 or learnt or not hasattr(value, "item"):
        return value
    return value.item()  # a device is waited for at an assignment, not in a step


def _number_remedy(value: Any) -> str:
    if isinstance(value, Tensor) and value.requires_grad:
        return "; options carry no gradient: pass value.item()"
    if isinstance(value, str):
        return "; a number that a file gave as text is float(text)"
    return ""


def check_flag(name: str, value: Any) -> bool:
    """`value` as a bool; NumPy's is one too."""
    given, value = value, _plain(value)
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {shown(given)}")
    return value


def check_interval(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    empty: bool = False,
) -> tuple[float, float]:
    """`value` as a pair (low, high) of floats within the bounds; low == high only if `empty`."""
    try:
        # Any kind of list, but none that has no order, and no iterator, which would be used up.
        if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
            raise TypeError
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError):
        raise TypeError(
            f"`{name}` must be a pair of numbers (low, high), got {shown(value)}"
        ) from None
    ordered = low <= high if empty else low < high
    if not (ordered and minimum <= low and high <= maximum and math.isfinite(high - low)):
        raise ValueError(
            f"`{name}` must be (low, high) with low {'<=' if empty else '<'} high, both finite "
            f"and from {minimum:g} to {maximum:g}, got {value!r}"
        )
    return low, high


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """That of `choices` which `value` is; a ValueError if it is none."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}, got {shown(value)}"
        )
    return choices[choices.index(value)]


def check_type(name: str, value: Any, kind: type, *, optional: bool = False) -> Any:
    """`value`; a TypeError unless it is a `kind` (or None, if `optional`)."""
    if not (isinstance(value, kind) or (optional and value is None)):
        raise TypeError(
            f"`{name}` must be a {kind.__name__}{' or None' if optional else ''}, got "
            f"{shown(value)}"
        )
    return value


def check_path(name: str, value: Any) -> Path:
    """`value` as a path; raises a TypeError if it is none."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"`{name}` must be a path, got {value!r}; pass a str or a pathlib.Path")
    return Path(value)


def check_per_sample(name: str, losses: Any, batch: int) -> None:
    """Raise a ValueError unless `losses` is what a module with a loss per sample returns."""
    if not isinstance(losses, Tensor) or losses.shape != (batch,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"`{name}` must return one loss a sample, shape ({batch},), got {got}; reduce over "
            "channels and pixels, not over the batch"
        )


def warn(message: str) -> None:
    """A UserWarning at the caller's line that led here, not at one of ours or of torch's."""
    inside = (*(str(Path(file).parent) for file in (__file__, torch.__file__)), contextlib.__file__)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def shown(value: object) -> str:
    """`value` for a message: long ones, tensors and essays alike, are cut."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-30:]}"
