"""Find and read pairs of aligned infrared and visible images."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from parts.data.images import READABLE, luminance, read_image, to_8bit

MODALITIES = {
    **dict.fromkeys(("ir", "infrared", "thermal", "lwir"), "infrared"),
    **dict.fromkeys(("vi", "vis", "visible", "rgb"), "visible"),
}

LAYOUTS = """\
Layouts understood (upper or lower case; ir may also be infrared, thermal or lwir, and vi may be
vis, visible or rgb; two images are a pair if their names are equal, extensions aside):
    DIR/ir/street.png         DIR/vi/street.png
    DIR/train/ir/street.png   DIR/train/vi/street.jpg     (likewise test, val, ...)
    DIR/ir/train/street.png   DIR/vi/train/street.png"""

#: Images with a shorter side are skipped: there is nothing to crop from them.
MIN_SIDE = 32


class Pair(NamedTuple):
    """One scene: uint8 `visible` (1 or 3, H, W) and `infrared` (1, H, W), equally large."""

    name: str
    visible: Tensor
    infrared: Tensor


class PairFiles(NamedTuple):
    """Where a pair lies; `name` is its path below the folder, without modality and extension."""

    name: str
    visible: Path
    infrared: Path


class Skipped(NamedTuple):
    """A file that is not used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class UnusablePairError(ValueError):
    """A pair that cannot be used; `skipped` names the file at fault."""

    def __init__(self, path: Path, reason: str) -> None:
        self.skipped = Skipped(path, reason)
        super().__init__(str(self.skipped))


class PairFolder(Sequence[Pair]):
    """Pairs on disk, kept in memory as far as `memory` bytes go and read again beyond that."""

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

    Every pair is read once, so that a broken file shows itself now and not amid the training.
    At most `limit` pairs are taken, spread evenly over the folder.

    Raises:
        OSError: if `root` is not a folder.
        ValueError: if there is no usable pair; the message says which layouts are understood.
    """
    found, skipped = find_pairs(root)
    folder = PairFolder()
    for index in tqdm(spread(len(found), limit), desc="reading pairs", leave=False, disable=None):
        try:
            folder.add(found[index])
        except UnusablePairError as problem:
            skipped.append(problem.skipped)
    if not folder:
        reasons = "".join(f"\n    skipped {item}" for item in skipped[:10])
        raise ValueError(f"no usable pair of images in {root}{reasons}\n{LAYOUTS}")
    return folder, skipped


def spread(total: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0 to `total` - 1, evenly spread."""
    count = min(total, limit)
    return [i * total // count for i in range(count)]


def find_pairs(root: Path) -> tuple[list[PairFiles], list[Skipped]]:
    """Match the infrared and visible files below `root` by name, without opening them."""
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {root}")
    pairs: list[PairFiles] = []
    skipped: list[Skipped] = []
    scenes: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in _files_below(root, skipped):
        name, modality = _name_and_modality(path.relative_to(root))
        if modality is None:
            continue
        if path.suffix.lower() in READABLE:
            scenes[name][modality].append(path)
        else:
            skipped.append(Skipped(path, "not a type of image that Pillow reads"))
    for name, files in sorted(scenes.items()):
        matched, unmatched = _match(name, files["visible"], files["infrared"])
        pairs += matched
        skipped += unmatched
    return pairs, skipped


def read_pair(files: PairFiles) -> Pair:
    """Read both images; raises `UnusablePairError` where one is broken or they do not match."""
    visible = _read_or_explain(files.visible)
    infrared = to_8bit(luminance(_read_or_explain(files.infrared)))
    if infrared.shape[1:] != visible.shape[1:]:
        reason = f"is {_size(infrared)} pixels, its visible image {_size(visible)}"
        raise UnusablePairError(files.infrared, reason)
    if min(visible.shape[1:]) < MIN_SIDE:
        reason = f"is {_size(visible)} pixels, needed are at least {MIN_SIDE} x {MIN_SIDE}"
        raise UnusablePairError(files.visible, reason)
    return Pair(files.name, visible, infrared)


def _files_below(root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """All files but hidden ones, in alphabetical order; closed folders go to `skipped`."""

    def skip(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename), error.strerror or "cannot be read"))

    for folder, subfolders, names in os.walk(root, onerror=skip, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _name_and_modality(path: Path) -> tuple[str, str | None]:
    """train/IR/street.png -> ("train/street", "infrared"); None: in no folder of a modality."""
    folders = list(path.parent.parts)
    for index in reversed(range(len(folders))):
        modality = MODALITIES.get(folders[index].lower())
        if modality is not None:
            return Path(*folders[:index], *folders[index + 1 :], path.stem).as_posix(), modality
    return path.stem, None


def _match(
    name: str, visible: list[Path], infrared: list[Path]
) -> tuple[list[PairFiles], list[Skipped]]:
    """Pair the files of one name: the only two, or else those of equal extensions."""
    if not visible or not infrared:
        missing = "visible" if infrared else "infrared"
        return [], [Skipped(path, f"has no {missing} partner") for path in visible + infrared]
    if len(visible) == len(infrared) == 1:
        return [PairFiles(name, visible[0], infrared[0])], []
    pairs = []
    unmatched = visible + infrared
    for suffix in sorted({path.suffix for path in visible}):
        both = [[p for p in paths if p.suffix == suffix] for paths in (visible, infrared)]
        if [len(paths) for paths in both] == [1, 1]:
            pairs.append(PairFiles(name + suffix, both[0][0], both[1][0]))
            unmatched = [path for path in unmatched if path.suffix != suffix]
    return pairs, [Skipped(path, "several images have this name") for path in unmatched]


def _read_or_explain(path: Path) -> Tensor:
    try:
        return read_image(path)
    except Exception as error:  # a broken file makes decoders raise nearly anything
        raise UnusablePairError(path, f"cannot be read: {error}") from error


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"
