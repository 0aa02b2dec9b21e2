"""Tensors out of files of any origin; nothing that stands in a file is ever run."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

__all__ = ["Tensors", "open_tensors", "parts_of"]

#: Names to what reads the tensor: a training checkpoint may hold three times what is wanted.
Tensors = Mapping[str, Callable[[], Tensor]]

# PyTorch calls the storage of a dtype as C calls the type, which is also another name of most.
STORAGES = {"torch.ByteStorage": torch.uint8, "torch.CharStorage": torch.int8} | {
    f"torch.{name}Storage": getattr(torch, name.lower())
    for name in ("Half", "BFloat16", "Float", "Double", "Short", "Int", "Long", "Bool")
}

# What is often found in place of weights, by the first bytes.
FOREIGN = {
    b"version https://git-lfs": "a pointer of git-lfs in place of the file; run `git lfs pull`",
    b"<": "a web page, not the file that it leads to; download that",
    b"{": "a JSON text; pass the folder that it lies in, or the weights beside it",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a rar archive; unpack it first",
    b"\x89HDF": "an HDF5 file, as TensorFlow and Keras write; take the PyTorch weights",
}

MAX_HEADER = 100_000_000  # of safetensors, in bytes, as the format says

REBUILD = "torch._utils._rebuild_tensor_v2"

SHARD = re.compile(r"-\d{5}-of-\d{5}\.")

# PyTorch's modules keep their own under these names when they are pickled whole.
MODULE_PARTS = ("_parameters", "_buffers", "_modules")


@contextmanager
def open_tensors(path: Path) -> Iterator[Tensors]:
    """All tensors in a file by their dotted names, to be read while this is open.

    Files are told apart by their content: safetensors, what `torch.save` writes (state dicts,
    training checkpoints, whole modules) and TorchScript archives. The index of a file in parts
    stands for all of them.

    Raises:
        ValueError: it is something else or damaged, in words that go on after "it is".
    """
    if SHARD.search(path.name):
        raise ValueError("one of several parts; pass the folder that they lie in")
    names = parts_of(path) if path.name.endswith(".index.json") else [path.name]
    with ExitStack() as stack:
        tensors: dict[str, Callable[[], Tensor]] = {}
        for name in names:
            if not (path.parent / name).is_file():
                raise ValueError(f"the index of several parts, of which {name} is missing")
            tensors |= stack.enter_context(_open_file(path.parent / name))
        yield tensors


def parts_of(index: Path) -> list[str]:
    """The files beside it over which the weights are spread."""
    with _damaged("an index of several parts", AttributeError, KeyError, TypeError, ValueError):
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({Path(name).name for name in names})


@contextmanager
def _damaged(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Tell of `errors` in here that `what` is damaged."""
    try:
        yield
    except errors as error:
        words = f"{what} that is cut short or damaged; copy or download it again"
        raise ValueError(words) from error


@contextmanager
def _open_file(path: Path) -> Iterator[Tensors]:
    with open(path, "rb") as file:
        head = file.read(512)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MAX_HEADER:
        with (
            _damaged("a safetensors file", safetensors.SafetensorError),
            safetensors.safe_open(path, framework="pt") as opened,
        ):
            yield {name: partial(opened.get_tensor, name) for name in list(opened.keys())}
    elif head.startswith(b"PK\3\4"):
        # NotImplementedError: of a version that does not exist.
        wrong = zipfile.BadZipFile, NotImplementedError
        with (
            _damaged("a zip archive, as PyTorch writes them,", *wrong),
            zipfile.ZipFile(path) as archive,
        ):
            yield _read_archive(archive)
    elif head.startswith(b"\x80"):
        yield _flatten(_load_old_format(path), lambda tensor: tensor)
    else:
        raise ValueError(_foreign(head))


def _foreign(head: bytes) -> str:
    for start, words in FOREIGN.items():
        if head.lstrip().startswith(start):
            return words
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    return f"no file of weights: it begins with {head[:16]!r}" if head else "empty"


def _load_old_format(path: Path) -> Any:
    """What `torch.save` wrote before it wrote zip archives (PyTorch 1.6)."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign pickle makes it raise nearly anything
        raise ValueError(
            "a pickle that is damaged, not of PyTorch, or of its format before 1.6 with more "
            "than tensors in it, which is not read since it may hold code; save its state_dict "
            "alone, with safetensors.torch.save_file"
        ) from error


class _Inert(dict[Any, Any]):
    """Stands in for every object of a pickle: it keeps what the object is made of and does nothing.

    Of all that a pickle names, functions and classes alike, a class of this kind is made. So
    there is nothing else that it could call.
    """

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
        """As pickles of lists, deques and sets want it; what they hold is not of interest."""

    add = extend = append


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type("_Inert", (_Inert,), {"path": f"{module}.{name}"})

    def persistent_load(self, identity: Any) -> Any:
        return identity


def _read_archive(archive: zipfile.ZipFile) -> Tensors:
    """The tensors of a zip archive of `torch.save` or `torch.jit.save`.

    Both hold a pickle, `data.pkl`, and beside it the numbers, a plain entry for each storage.
    """
    names = archive.namelist()
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if not pickles:
        raise ValueError(f"a zip archive without weights of PyTorch; it holds {names[:3]}")

    # An archive of TorchScript may have further files, of any name, in a folder "extra".
    root = min(pickles, key=len).removesuffix("data.pkl")

    def read(name: str) -> bytes:
        entry = archive.getinfo(root + name)
        if entry.compress_type != zipfile.ZIP_STORED:  # a small file could swell to any size
            raise ValueError("a compressed archive, which PyTorch does not write; unpack it first")
        return archive.read(entry)

    @cache
    def storage(key: str, dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(bytearray(read(f"data/{key}")), dtype=dtype)

    def tensor(rebuild: _Inert) -> Tensor:
        wrong = AttributeError, KeyError, RuntimeError, TypeError, ValueError
        with _damaged("an archive of PyTorch", *wrong):
            (_, kind, key, *_), offset, size, stride = rebuild.arguments[:4]
            numbers = storage(key, STORAGES[kind.path])
            if math.prod(size) > numbers.numel():
                raise ValueError(f"{math.prod(size)} numbers in a storage of {numbers.numel()}")
            return numbers.as_strided(size, stride, offset)

    content = read("data.pkl")
    with _damaged("an archive of PyTorch", Exception):  # as above
        return _flatten(_InertUnpickler(io.BytesIO(content)).load(), tensor)


def _flatten(content: Any, read: Callable[[Any], Tensor]) -> Tensors:
    """Tensors at any depth of dictionaries, lists and objects, by the names that lead to them."""
    found: dict[str, Callable[[], Tensor]] = {}
    seen = set()

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, _Inert) and "._rebuild_parameter" in value.path:
            value = value.arguments[0]
        if isinstance(value, _Inert) and value.path.endswith("._rebuild_from_type_v2"):
            value = value.arguments[0](*value.arguments[2])  # a tensor that has attributes
        if isinstance(value, Tensor) or getattr(value, "path", "") == REBUILD:
            found[".".join(path)] = partial(read, value)
        elif isinstance(value, dict) and id(value) not in seen:  # a pickle may hold circles
            seen.add(id(value))
            state = getattr(value, "state", None)
            for part in (value, *(state if isinstance(state, tuple) else (state,))):
                for name, child in part.items() if isinstance(part, dict) else ():
                    walk(child, path if name in MODULE_PARTS else (*path, str(name)))
        elif isinstance(value, (list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            for number, child in enumerate(value):
                walk(child, (*path, str(number)))

    walk(content, ())
    return found
