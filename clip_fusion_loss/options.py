"""Options of the loss: a check for each, which also converts values to plain Python types."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from . import checks
from .encoder import PRECISIONS

__all__ = ["OPTIONS", "CheckedOptions"]


def _regularizer(name: str, value: Any) -> Any:
    checks.check_type(name, value, nn.Module, optional=True)
    if value is None:
        return None
    try:
        inspect.signature(value.forward).bind("fused", "visible", "infrared")
    except TypeError as error:
        raise TypeError(
            f"`{name}` must accept a call (fused, visible, infrared), got {type(value).__name__}, "
            f"whose forward does not: {error}; wrap it in a module that does"
        ) from None
    except ValueError:  # compiled functions may have no signature
        pass
    return value


def _patch_chunk(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str) and value == "auto":
        return "auto"
    return checks.check_number(name, value, minimum=1, whole=True)


def _min_patch_entropy(name: str, value: Any) -> Any:
    return None if value is None else checks.check_number(name, value, maximum=8)


# Each function checks an assigned value, at construction or later, and returns the value to keep:
# plain Python numbers and tuples, also for NumPy scalars and for lists from configuration files.
OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "direction_weight": checks.check_number,
    "patch_weight": checks.check_number,
    "similarity_weight": checks.check_number,
    "regularizer": _regularizer,
    "regularizer_weight": checks.check_number,
    "num_patches": partial(checks.check_number, minimum=1, whole=True),
    "patch_scale": partial(checks.check_interval, minimum=0.05, maximum=1.0, empty=True),
    "min_patch_entropy": _min_patch_entropy,
    "patch_reduction": partial(checks.check_choice, choices=("all", "kept")),
    "data_range": checks.check_interval,
    "reduction": partial(checks.check_choice, choices=("mean", "sum", "none")),
    "generator": partial(checks.check_type, kind=torch.Generator, optional=True),
    "patch_chunk": _patch_chunk,
    "precision": partial(checks.check_choice, choices=PRECISIONS),
    "compile_encoder": checks.check_flag,
}


class CheckedOptions(nn.Module):
    """Keeps the options of the loss as attributes and checks each assignment."""

    direction_weight: float
    patch_weight: float
    similarity_weight: float
    regularizer: nn.Module | None
    regularizer_weight: float
    num_patches: int
    patch_scale: tuple[float, float]
    min_patch_entropy: float | None
    patch_reduction: str
    data_range: tuple[float, float]
    reduction: str
    generator: torch.Generator | None
    patch_chunk: int | str | None
    precision: str
    compile_encoder: bool

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OPTIONS:
            value = OPTIONS[name](name, value)
        if name == "compile":
            raise TypeError(
                f"`compile` is fixed at construction, got an assignment of {value!r}; build a new "
                "loss with compile=True"
            )
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        names = [name for name in OPTIONS if name not in ("regularizer", "generator")]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
