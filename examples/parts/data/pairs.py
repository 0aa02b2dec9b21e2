"""Read pairs of aligned infrared and visible images."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from parts.data.images import luminance, read_image, to_8bit
from parts.data.layouts import (
    LAYOUTS,
    PairFiles,
    Skipped,
    find_pairs,
    nothing_usable,
    what_was_taken,
)

__all__ = [
    "LAYOUTS",
    "MIN_SIDE",
    "Pair",
    "PairFiles",
    "PairFolder",
    "Skipped",
    "UnusablePairError",
    "find_pairs",
    "open_pairs",
    "read_pair",
    "spread",
]

#: Images with a shorter side are skipped: there is nothing to crop from them.
MIN_SIDE = 32


class Pair(NamedTuple):
    """One scene: uint8 `visible` (1 or 3, H, W) and `infrared` (1, H, W) of the same size."""

    name: str
    visible: Tensor
    infrared: Tensor


class UnusablePairError(ValueError):
    """A pair that cannot be used; `skipped` names the file at fault."""

    def __init__(self, path: Path, reason: str) -> None:
        self.skipped = Skipped(path, reason)
        super().__init__(str(self.skipped))


class PairFolder(Sequence[Pair]):
    """Pairs on disk; up to `memory` bytes are kept in memory, others are read at each access."""

    def __init__(self, memory: int = 2**30) -> None:
        self._files: list[PairFiles] = []
        self._kept: dict[int, Pair] = {}
        self._memory_left = memory

    def add(self, files: PairFiles) -> None:
        """Append a pair; raises `UnusablePairError` where it cannot be read or does not match."""
        pair = read_pair(files)
        size = pair.visible.nbytes + pair.infrared.nbytes
        if size <= self._memory_left:
            self._memory_left -= size
            self._kept[len(self._files)] = pair
        self._files.append(files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]  # single pairs only
        return self._kept[index] if index in self._kept else read_pair(self._files[index])


def open_pairs(root: Path, limit: int) -> tuple[PairFolder, list[Skipped]]:
    """The usable pairs below `root`, and the files that are not used.

    The first process prints to stderr which files are taken for visible and infrared. Each pair is
    read once, so that a broken file is found now and not during the training. At most `limit`
    pairs are used, spread evenly over the folder.

    Raises:
        OSError: `root` is not a folder.
        ValueError: there is no usable pair; the message lists the supported layouts.
    """
    found, skipped = find_pairs(root)
    folder = PairFolder()
    for index in tqdm(spread(len(found), limit), desc="reading pairs", leave=False, disable=None):
        try:
            folder.add(found[index])
        except UnusablePairError as problem:
            skipped.append(problem.skipped)
    if not folder:
        raise nothing_usable(root, found, skipped)
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        tqdm.write(what_was_taken(root, found), file=sys.stderr)
    return folder, skipped


def spread(total: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0 to `total` - 1, evenly spread."""
    count = min(total, limit)
    return [i * total // count for i in range(count)]


def find_pairs_aloud(root: Path) -> list[PairFiles]:
    """`find_pairs`, but prints to stderr what is skipped and taken for visible and infrared.

    Raises:
        OSError, ValueError: there are no pairs.
    """
    found, skipped = find_pairs(root)
    for item in skipped:
        print(f"skipped {item}", file=sys.stderr)
    if not found:
        raise nothing_usable(root, found, skipped)
    print(what_was_taken(root, found), file=sys.stderr)
    return found


def read_pair(files: PairFiles) -> Pair:
    """Read both images; raises `UnusablePairError` where one is broken or they do not match."""
    visible = _read_or_explain(files.visible)
    infrared = to_8bit(luminance(_read_or_explain(files.infrared)))
    if infrared.shape[1:] != visible.shape[1:]:
        reason = (
            f"is {_size(infrared)} pixels, its visible image {_size(visible)}; a pair must be "
            "aligned and of one size"
        )
        raise UnusablePairError(files.infrared, reason)
    if min(visible.shape[1:]) < MIN_SIDE:
        reason = f"is {_size(visible)} pixels, needed are at least {MIN_SIDE} x {MIN_SIDE}"
        raise UnusablePairError(files.visible, reason)
    return Pair(files.name, visible, infrared)


def _read_or_explain(path: Path) -> Tensor:
    try:
        return read_image(path)
    except Exception as error:  # a broken file makes decoders raise nearly anything
        raise UnusablePairError(path, f"cannot be read: {error}") from error


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"
