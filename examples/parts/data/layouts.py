"""Find image pairs by the names of files and folders."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from parts.data.decoding import READABLE

#: Words for a modality, as whole names of folders or as parts of any name.
WORDS = {
    **dict.fromkeys(("ir", "infrared", "thermal", "lwir"), "infrared"),
    **dict.fromkeys(("vi", "vis", "visible", "rgb"), "visible"),
}
#: Folder names of published data sets with other words: RoadScene and FLIR.
FOLDERS = {"cropinfrared": "infrared", "crop_lr_visible": "visible", "thermal_8_bit": "infrared"}

LAYOUTS = """\
Layouts understood (upper or lower case; ir may also be infrared, thermal or lwir, and vi may be
vis, visible or rgb; two images are a pair if their names are equal, extensions aside):
    DIR/ir/street.png         DIR/vi/street.png
    DIR/train/ir/street.png   DIR/train/vi/street.jpg     (likewise test, val, ...)
    DIR/ir/train/street.png   DIR/vi/train/street.png
    DIR/street_ir.png         DIR/street_vis.png          (likewise IR-street.png, IR1.png)
    DIR/street/ir.png         DIR/street/vi.png           (likewise IR_a.bmp, VIS_b.bmp alone there)
These are those of MSRS, M3FD, LLVIP, RoadScene, FLIR, KAIST and TNO, among others."""


class PairFiles(NamedTuple):
    """The files of a pair; `name` is its path in the folder without modality and extension."""

    name: str
    visible: Path
    infrared: Path


class Skipped(NamedTuple):
    """A file that is not used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Image(NamedTuple):
    path: Path
    modality: str
    #: The path below the folder without extension and without the folder of the modality.
    name: str
    #: The same without the word for the modality in the file's own name.
    bare: str
    #: The folder, if it is the file's own name that tells the modality.
    scene: str | None


def find_pairs(root: Path) -> tuple[list[PairFiles], list[Skipped]]:
    """Match the infrared and visible files below `root` by name, without opening them.

    Raises:
        OSError: if `root` is not a folder.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {root}")
    skipped: list[Skipped] = []
    left = list(_images_below(root, skipped))
    pairs: list[PairFiles] = []
    # From the strictest rule to the loosest; each gets the files that are not paired yet.
    rules: Sequence[tuple[Callable[[_Image], Hashable], Callable[[_Image], str]]] = (
        (lambda image: image.name, lambda image: image.name),
        (lambda image: image.name.casefold(), lambda image: image.name),
        (lambda image: image.bare.casefold(), lambda image: image.bare),
    )
    for key, name in rules:
        left = _pair(left, key, name, pairs)
    left = _pair_scenes(left, pairs)
    skipped += _explain(left, root)
    return sorted(_without_repetitions(pairs, skipped)), skipped


def what_was_taken(root: Path, pairs: Sequence[PairFiles]) -> str:
    """A line that says which files are the visible and which the infrared images."""
    first = pairs[0]
    visible, infrared = (path.relative_to(root) for path in (first.visible, first.infrared))
    return f"pairs in {root}: {len(pairs)}, such as visible {visible} and infrared {infrared}"


def nothing_usable(
    root: Path, pairs: Sequence[PairFiles], skipped: Sequence[Skipped]
) -> ValueError:
    """The error that there is no usable pair, with what was taken for which modality."""
    sides: dict[str, list[Path]] = {
        "visible": [files.visible for files in pairs],
        "infrared": [files.infrared for files in pairs],
    }
    for item in skipped if not pairs else ():
        path = item.path.relative_to(root)
        modality = _folder(path.parent.parts)[1] or _word(path.stem)[0]
        if modality is not None:
            sides[modality].append(item.path)
    lines = [f"no usable pair of images in {root}"]
    for modality, paths in sides.items():
        example = f", such as {paths[0].relative_to(root)}" if paths else ""
        lines.append(f"    taken for {modality}: {len(paths)} files{example}")
    if not any(sides.values()):
        folders = Counter(
            path.parent for path in root.rglob("*") if path.suffix.lower() in READABLE
        )
        lines += [
            f"    seen: {count} images in {folder.relative_to(root)}, which names no modality"
            for folder, count in sorted(folders.items())[:6]
        ]
    lines += [f"    skipped {item}" for item in skipped[:10]]
    if len(skipped) > 10:
        lines.append(f"    and {len(skipped) - 10} more")
    return ValueError("\n".join([*lines, LAYOUTS]))


def _images_below(root: Path, skipped: list[Skipped]) -> Iterator[_Image]:
    for folder, names in _folders_below(root, skipped):
        outside, modality = _folder(folder.relative_to(root).parts)
        for name in names:
            stem, extension = os.path.splitext(name)
            word, rest = _word(stem)
            if modality is None and word is None:
                continue
            path = folder / name
            if extension.lower() not in READABLE:
                if modality is not None:
                    skipped.append(Skipped(path, "not a type of image that Pillow reads"))
                continue
            full = "/".join([*outside, stem])
            own = modality is None or word == modality
            bare = "/".join([*outside, rest] if rest else outside) if own else full
            scene = "/".join(outside) if modality is None else None
            yield _Image(path, modality or str(word), _nfc(full), _nfc(bare), scene)


def _folders_below(root: Path, skipped: list[Skipped]) -> Iterator[tuple[Path, list[str]]]:
    """All folders and the files in them, without hidden ones, in alphabetical order.

    Links come last and are followed, except links to a folder that contains them.
    """

    def skip(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename), error.strerror or "cannot be read"))

    for folder, subfolders, names in os.walk(root, onerror=skip, followlinks=True):
        linked = {name for name in subfolders if os.path.islink(os.path.join(folder, name))}
        for name in sorted(linked):
            path = Path(folder, name)
            if Path(folder).resolve().is_relative_to(path.resolve()):
                skipped.append(Skipped(path, "is a link to a folder that contains it"))
                subfolders.remove(name)
        subfolders[:] = sorted(
            (name for name in subfolders if not name.startswith(".")),
            key=lambda name: (name in linked, name),
        )
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def _folder(parts: Sequence[str]) -> tuple[list[str], str | None]:
    """("train", "IR") -> (["train"], "infrared"): the innermost folder of a modality decides.

    If no whole name is one of a modality, a word in a name counts, and the rest of it is kept.
    """
    names = [unicodedata.normalize("NFC", part) for part in parts]
    whole = [((FOLDERS | WORDS).get(name.lower()), "") for name in names]
    for told in (whole, map(_word, names)):
        for index, (modality, rest) in reversed(list(enumerate(told))):
            if modality is not None:
                kept = [rest] if rest else []
                return [*parts[:index], *kept, *parts[index + 1 :]], modality
    return list(parts), None


#: Words of letters between anything else, be it digits: IR1, street-ir, IR_street_2.
_TOKENS = re.compile(r"[^\W\d_]+")


def _word(name: str) -> tuple[str | None, str]:
    """street_IR -> ("infrared", "street"); (None, name) where no word or several tell."""
    found = [match for match in _TOKENS.finditer(name) if match[0].lower() in WORDS]
    if len(found) != 1:
        return None, name
    before, after = name[: found[0].start()], name[found[0].end() :]
    # One separator goes with the word: that behind it at the start, else that before it.
    rest = before[:-1] + after if before and not before[-1].isalnum() else before + after
    return WORDS[found[0][0].lower()], rest if before else rest.lstrip("_-. ")


def _nfc(name: str) -> str:
    """NFC normalisation, as file systems store letters with accents in two ways."""
    return unicodedata.normalize("NFC", name) or "pair"


def _pair(
    images: Sequence[_Image],
    key: Callable[[_Image], Hashable],
    name: Callable[[_Image], str],
    pairs: list[PairFiles],
) -> list[_Image]:
    """Add the pairs of equal keys to `pairs`; returns the images that are left.

    Of several images of one key and modality, those of equal extensions are pairs.
    """
    left = []
    for group in _groups(images, key):
        visible, infrared = _sides(group)
        if len(visible) == len(infrared) == 1:
            pairs.append(PairFiles(name(visible[0]), visible[0].path, infrared[0].path))
            continue
        sides = map(_sides, _groups(group, lambda image: image.path.suffix))
        by_extension = [both for both in sides if [len(side) for side in both] == [1, 1]]
        for (one,), (other,) in by_extension:
            several = f"_{one.path.suffix[1:]}" if len(by_extension) > 1 else ""
            pairs.append(PairFiles(name(one) + several, one.path, other.path))
        used = {image.path for both in by_extension for (image,) in both}
        left += [image for image in group if image.path not in used]
    return left


def _pair_scenes(images: Sequence[_Image], pairs: list[PairFiles]) -> list[_Image]:
    """A folder per scene: the only two images there are a pair whatever they are called."""
    left = []
    for group in _groups(images, lambda image: (image.scene, image.path.parent)):
        visible, infrared = _sides(group)
        if group[0].scene and len(visible) == len(infrared) == 1:
            pairs.append(PairFiles(_nfc(group[0].scene), visible[0].path, infrared[0].path))
        else:
            left += group
    return left


def _groups(images: Sequence[_Image], key: Callable[[_Image], Hashable]) -> list[list[_Image]]:
    groups: dict[Hashable, list[_Image]] = defaultdict(list)
    for image in images:
        groups[key(image)].append(image)
    return list(groups.values())


def _sides(images: Sequence[_Image]) -> tuple[list[_Image], list[_Image]]:
    visible = [image for image in images if image.modality == "visible"]
    return visible, [image for image in images if image.modality == "infrared"]


def _explain(images: Sequence[_Image], root: Path) -> Iterator[Skipped]:
    for group in _groups(images, lambda image: image.bare.casefold()):
        visible, infrared = _sides(group)
        if visible and infrared:
            names = ", ".join(str(image.path.relative_to(root)) for image in group)
            reason = f"several images have this name: {names}; leave one of each modality"
        else:
            reason = f"has no {'infrared' if visible else 'visible'} partner"
        yield from (Skipped(image.path, reason) for image in group)


def _without_repetitions(pairs: Sequence[PairFiles], skipped: list[Skipped]) -> list[PairFiles]:
    """The pairs without those that links repeat and without repeated names."""
    files: dict[Hashable, PairFiles] = {}
    names: dict[str, PairFiles] = {}
    for pair in pairs:
        identity = tuple(map(_identity, pair[1:]))
        if identity in files:
            skipped.append(Skipped(pair.visible, f"is {files[identity].visible} once more"))
        elif pair.name in names:
            skipped.append(Skipped(pair.visible, f"{names[pair.name].visible} has its name"))
        else:
            files[identity] = names[pair.name] = pair
    return list(names.values())


def _identity(path: Path) -> Hashable:
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing, say; reading will name it
        return path
    return status.st_dev, status.st_ino
