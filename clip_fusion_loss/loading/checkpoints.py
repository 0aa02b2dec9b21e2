"""Read tensors from checkpoint files of any origin without running code from them."""

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

#: From names to functions that read the tensor: training checkpoints hold much that is not needed.
Tensors = Mapping[str, Callable[[], Tensor]]

# PyTorch names storages after C types; for most dtypes that is also an attribute of torch.
STORAGES = {"torch.ByteStorage": torch.uint8, "torch.CharStorage": torch.int8} | {
    f"torch.{name}Storage": getattr(torch, name.lower())
    for name in ("Half", "BFloat16", "Float", "Double", "Short", "Int", "Long", "Bool")
}

# Files often passed in place of weights, by their first bytes.
FOREIGN = {
    b"version https://git-lfs": "a pointer of git-lfs in place of the file; run `git lfs pull`",
    b"<": "a web page, not the weights; download the file that it links to",
    b"{": "a JSON text; pass the folder that it is in, or the file of weights in that folder",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a rar archive; unpack it first",
    b"\x89HDF": "an HDF5 file, as TensorFlow and Keras write; use the PyTorch weights",
}

MAX_HEADER = 100_000_000  # bytes: the limit in the specification of safetensors

REBUILD = "torch._utils._rebuild_tensor_v2"

SHARD = re.compile(r"-\d{5}-of-\d{5}\.")

# Attributes in which pickled PyTorch modules keep tensors and submodules.
MODULE_PARTS = ("_parameters", "_buffers", "_modules")


@contextmanager
def open_tensors(path: Path) -> Iterator[Tensors]:
    """All tensors of a file by their dotted names; they can be read inside the context.

    The content decides the format: safetensors, files of `torch.save` (state dicts, training
    checkpoints, whole modules) or TorchScript archives. An index file stands for all its parts.

    Raises:
        ValueError: the file is of another format or damaged. The message continues "it is".
    """
    if SHARD.search(path.name):
        raise ValueError("one of several parts; pass the folder that they are in")
    names = parts_of(path) if path.name.endswith(".index.json") else [path.name]
    with ExitStack() as stack:
        tensors: dict[str, Callable[[], Tensor]] = {}
        for name in names:
            if not (path.parent / name).is_file():
                raise ValueError(
                    f"the index of several parts, of which {name} is missing; download that too"
                )
            tensors |= stack.enter_context(_open_file(path.parent / name))
        yield tensors


def parts_of(index: Path) -> list[str]:
    """The names of the files that an index lists; they are in its folder."""
    with _damaged("an index of several parts", AttributeError, KeyError, TypeError, ValueError):
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({Path(name).name for name in names})


@contextmanager
def _damaged(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn `errors` into a ValueError that says that `what` is damaged."""
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
        # NotImplementedError: the archive names an unknown zip version.
        wrong = zipfile.BadZipFile, NotImplementedError
        with (
            _damaged("a zip archive, the format of PyTorch,", *wrong),
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
    return f"not a file of weights: it begins with {head[:16]!r}" if head else "empty"


def _load_old_format(path: Path) -> Any:
    """The content of a file in the format that `torch.save` had before PyTorch 1.6."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load can raise nearly anything for other pickles
        raise ValueError(
            "a pickle that is damaged, not of PyTorch, or in PyTorch's format before 1.6 with more "
            "than tensors in it, which is not read as it may contain code; save its state_dict "
            "alone, with safetensors.torch.save_file"
        ) from error


class _Inert(dict[Any, Any]):
    """Stands in for every object of a pickle: it keeps arguments and state and does nothing.

    Each function or class that a pickle names is replaced by a subclass of this, so the pickle
    cannot call anything else.
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
        """Pickles of lists, deques and sets call it; their items are not needed."""

    add = extend = append


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type("_Inert", (_Inert,), {"path": f"{module}.{name}"})

    def persistent_load(self, identity: Any) -> Any:
        return identity


def _read_archive(archive: zipfile.ZipFile) -> Tensors:
    """The tensors of a zip archive of `torch.save` or `torch.jit.save`.

    Both have a pickle, `data.pkl`, and an uncompressed entry for each storage.
    """
    names = archive.namelist()
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if not pickles:
        raise ValueError(f"a zip archive without PyTorch weights; it holds {names[:3]}")

    # A TorchScript archive may have other files of any name in its folder "extra".
    root = min(pickles, key=len).removesuffix("data.pkl")

    def read(name: str) -> bytes:
        entry = archive.getinfo(root + name)
        if entry.compress_type != zipfile.ZIP_STORED:  # a small file could unpack to any size
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
    """Tensors in nested dictionaries, lists and objects, by the dotted path to each."""
    found: dict[str, Callable[[], Tensor]] = {}
    seen = set()

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, _Inert) and "._rebuild_parameter" in value.path:
            value = value.arguments[0]
        if isinstance(value, _Inert) and value.path.endswith("._rebuild_from_type_v2"):
            value = value.arguments[0](*value.arguments[2])  # a tensor that has attributes
        if isinstance(value, Tensor) or getattr(value, "path", "") == REBUILD:
            found[".".join(path)] = partial(read, value)
        elif isinstance(value, dict) and id(value) not in seen:  # a pickle may refer to itself
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
