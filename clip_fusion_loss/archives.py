"""Read the tensors of checkpoint files of any origin without running code from them.

`torch.load(weights_only=True)` refuses checkpoints with other objects in them and OpenAI's
TorchScript archives. Both are zip archives of a pickle and the raw numbers. In the pickle, each
function and class is replaced by one inert class that keeps its arguments, which say where the
numbers of each tensor are.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

# PyTorch names storages after C types.
STORAGES = {"torch.ByteStorage": torch.uint8, "torch.CharStorage": torch.int8} | {
    f"torch.{name}Storage": getattr(torch, name.lower())
    for name in ("Half", "BFloat16", "Float", "Double", "Short", "Int", "Long", "Bool")
}

# Attributes in which pickled PyTorch modules keep tensors and submodules.
MODULE_PARTS = ("_parameters", "_buffers", "_modules")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by the dotted path to each; a ValueError if it is none or damaged."""
    with open(path, "rb") as file:
        head = file.read(16)
    try:
        if head[8:9] == b"{":
            return safetensors.torch.load_file(path)
        if head.startswith(b"PK\3\4"):
            return _read_zip(path)
        # PyTorch's format before 1.6; torch.load refuses anything else.
        return dict(_flatten(torch.load(path, map_location="cpu", weights_only=True)))
    except Exception as error:  # damaged and hostile files can raise nearly anything
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError):  # its text advises to run the file's code
            what = "a pickle with other objects than tensors"
        raise ValueError(
            f"`pretrained` must be a file of weights, got {path}, another file, cut short or "
            f"damaged (it begins with {head!r}; {what}); download it again, or save the state_dict "
            "alone with safetensors.torch.save_file"
        ) from error


def _read_zip(path: Path) -> dict[str, Tensor]:
    """The tensors of an archive of `torch.save` or `torch.jit.save`."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        # The folder "extra" of a TorchScript archive may have other files of any name.
        root = min(pickles, key=len).removesuffix("data.pkl")
        content = _InertUnpickler(io.BytesIO(_stored(archive, f"{root}data.pkl"))).load()
        storages: dict[str, Tensor] = {}
        return {name: _rebuild(call, archive, root, storages) for name, call in _flatten(content)}


class _Inert(dict[Any, Any]):
    """Stands in for every object of a pickle: it keeps arguments and state and does nothing."""

    path = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    def __call__(self, *arguments: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Pickles of lists, deques and sets call it; their items are not needed."""

    add = extend = append


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type("_Inert", (_Inert,), {"path": f"{module}.{name}"})

    def persistent_load(self, identity: Any) -> Any:
        return identity


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:  # a small file could unpack to any size
        raise ValueError("a compressed archive, which PyTorch does not write")
    return archive.read(entry)


def _rebuild(
    call: _Inert, archive: zipfile.ZipFile, root: str, storages: dict[str, Tensor]
) -> Tensor:
    """The tensor that a call of `torch._utils._rebuild_tensor_v2` describes."""
    (_, kind, key, *_), offset, size, stride = call.arguments[:4]
    if key not in storages:
        numbers = bytearray(_stored(archive, f"{root}data/{key}"))
        empty = torch.empty(0, dtype=STORAGES[kind.path])
        storages[key] = torch.frombuffer(numbers, dtype=empty.dtype) if numbers else empty
    if math.prod(size) > storages[key].numel():  # strides of 0 would make it any size
        raise ValueError(f"{math.prod(size)} numbers in a storage of {storages[key].numel()}")
    return storages[key].as_strided(size, stride, offset)


def _flatten(content: Any) -> Iterator[tuple[str, Any]]:
    """Tensors in nested dictionaries, lists and objects, by the dotted path to each."""
    seen = set()  # a pickle may refer to itself
    todo: list[tuple[str, Any]] = [("", content)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, _Inert) and "._rebuild_parameter" in value.path:
            value = value.arguments[0]
        if isinstance(value, _Inert) and value.path.endswith("._rebuild_from_type_v2"):
            value = value.arguments[0](*value.arguments[2])  # a tensor that has attributes
        if isinstance(value, Tensor) or getattr(value, "path", "").endswith("._rebuild_tensor_v2"):
            yield path.removesuffix("."), value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            state = getattr(value, "state", ())
            for part in (value, *(state if isinstance(state, tuple) else (state,))):
                if isinstance(part, (list, tuple)):
                    part = dict(enumerate(part))
                for name, child in part.items() if isinstance(part, dict) else ():
                    todo.append((path if name in MODULE_PARTS else f"{path}{name}.", child))
