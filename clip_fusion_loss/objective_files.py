"""Save and load embedded objectives: safetensors with a checksum, written atomically."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .objective import FusionObjective

__all__ = ["Content", "read", "write"]

# The formats of files with one objective, unchanged since the first version, and with several.
ONE = "clip_fusion_loss.EmbeddedFusionModel/1"
SEVERAL = "clip_fusion_loss.EmbeddedFusionModel/2"

DIRECTIONS = ("visible_direction", "infrared_direction")


class Content(NamedTuple):
    """The content of a file: the state of an `EmbeddedFusionModel`."""

    objectives: tuple[FusionObjective, ...]
    names: tuple[str, ...] | None
    encoder_name: str
    encoder_fingerprint: str
    visible_direction: Tensor
    infrared_direction: Tensor


def write(path: Path, content: Content) -> None:
    """Write a file. On an error an existing file is unchanged."""
    tensors = {name: getattr(content, name).cpu().contiguous() for name in DIRECTIONS}
    texts = [asdict(objective) for objective in content.objectives]
    if content.visible_direction.ndim == 1:
        metadata = {"format": ONE, "objective": json.dumps(texts[0])}
    else:
        metadata = {"format": SEVERAL, "objectives": json.dumps(texts)}
        metadata["names"] = json.dumps(content.names)
    metadata["encoder_name"] = content.encoder_name
    metadata["encoder_fingerprint"] = content.encoder_fingerprint
    metadata["sha256"] = _digest(metadata, tensors)
    _write_whole(path, safetensors.torch.save(tensors, metadata))


def read(path: Path) -> Content:
    """Read a file of `write`.

    Raises:
        ValueError: `write` did not write it, or it is incomplete or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in (ONE, SEVERAL):
                raise ValueError(f"its format is {metadata.get('format')!r}, not {SEVERAL!r}")
            tensors = {name: file.get_tensor(name) for name in DIRECTIONS}
        if metadata.pop("sha256") != _digest(metadata, tensors):
            raise ValueError("its content does not match its checksum")
        if metadata["format"] == ONE:
            texts, names = [json.loads(metadata["objective"])], None
        else:
            texts, names = json.loads(metadata["objectives"]), json.loads(metadata["names"])
        content = Content(
            tuple(FusionObjective(**roles) for roles in texts),
            names if names is None else tuple(names),
            metadata["encoder_name"],
            metadata["encoder_fingerprint"],
            **tensors,
        )
        _check(content, () if metadata["format"] == ONE else (len(texts),))
    except (ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"`path` must be a complete file written by EmbeddedFusionModel.save, got {path}: "
            f"{error}; save it again"
        ) from error
    return content


def _check(content: Content, axes: tuple[int, ...]) -> None:
    for tensor in (content.visible_direction, content.infrared_direction):
        fits = tensor.numel() > 0 and tensor.ndim == len(axes) + 1 and tensor.shape[:-1] == axes
        if tensor.dtype != torch.float32 or not fits:
            raise ValueError(
                f"its directions have dtype {tensor.dtype} and shape {tuple(tensor.shape)}"
            )
        norms = tensor.norm(dim=-1)
        if not ((norms == 0) | ((norms - 1).abs() < 1e-3)).all():  # NaN fails too
            raise ValueError("a direction is not a unit vector")
    if content.visible_direction.shape != content.infrared_direction.shape:
        raise ValueError("its directions have different lengths")
    if content.names is not None:
        texts = {name for name in content.names if isinstance(name, str)}
        if not len(texts) == len(content.names) == len(content.objectives):
            raise ValueError("it does not have one name per objective")


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """A checksum of metadata and tensors, as flipped bits could look like other directions."""
    content = json.dumps(metadata, sort_keys=True).encode() + safetensors.torch.save(tensors)
    return hashlib.sha256(content).hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    """Write a temporary file in the same folder and rename it, so no reader sees a partial file."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # name the caller's path, not the temporary file
        reason = f"`path` cannot be written: {error.strerror or error}"
        raise OSError(error.errno, reason, str(path)) from None
    finally:
        with suppress(OSError):  # usually it has been renamed; its folder may not exist either
            temporary.unlink()
