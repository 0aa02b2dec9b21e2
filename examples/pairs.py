"""Pairs of aligned infrared and visible images: found, read, written.

Images are uint8 tensors, (1, H, W) if grey and (3, H, W) if coloured.
"""

import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from options import atomic_write, note, progress, some

#: The five pairs that come with the examples.
TNO = Path(__file__).parent / "data" / "tno"

#: Names of the two folders in --pairs, in lower case.
INFRARED = ("ir", "infrared", "thermal", "lwir", "thermal_8_bit", "cropinfrared")
VISIBLE = ("vi", "vis", "visible", "rgb", "crop_lr_visible")

LAYOUT = """\
--pairs DIR must hold a folder of infrared and one of visible images; files of the same name,
extensions aside, are a pair, also in subfolders:
    DIR/ir/street.png   DIR/vi/street.jpg   (or infrared, thermal, lwir; vis, visible, rgb)
Folders elsewhere, or with other names: --infrared DIR --visible DIR."""

#: Types of files that are read in their whole depth, and the formats that Pillow reads so.
READABLE = {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}
FORMATS = ("PNG", "TIFF", "JPEG", "BMP", "WEBP", "GIF")

#: Images with a shorter side are skipped: there is nothing to crop from them.
MIN_SIDE = 32

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EXIF_ORIENTATION, GDAL_NODATA = 0x0112, 42113

Values = NDArray[Any]


class Pair(NamedTuple):
    """One scene: uint8 `visible` (1 or 3, H, W) and `infrared` (1, H, W) of the same size."""

    name: str
    visible: Tensor
    infrared: Tensor


class PairFiles(NamedTuple):
    """The files of a pair; `name` is the path in their folders, without extension."""

    name: str
    visible: Path
    infrared: Path


class Folders(NamedTuple):
    infrared: Path
    visible: Path


class UnusableImageError(ValueError):
    """An image or pair that cannot be used; the message names the file."""


@dataclass
class PairFolder(Sequence[Pair]):
    """Pairs on disk; those used last are kept in memory."""

    files: list[PairFiles]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        return _kept_pair(self.files[index])


def folders_of(
    pairs: Path | None, infrared: Path | None = None, visible: Path | None = None
) -> Folders:
    """The folders that the options name, or those of `TNO`; an OSError or ValueError for others."""
    if infrared is None and visible is None:
        pairs = pairs or TNO
        return Folders(_subfolder(pairs, INFRARED), _subfolder(pairs, VISIBLE))
    if pairs is not None or infrared is None or visible is None:
        raise ValueError("--infrared and --visible must be given together, without --pairs")
    if os.path.samefile(existing_folder(infrared), existing_folder(visible)):
        raise ValueError(f"--infrared and --visible must be two folders, got {visible} for both")
    return Folders(infrared, visible)


def existing_folder(path: Path) -> Path:
    """The path itself, or a NotADirectoryError."""
    if not path.is_dir():
        raise NotADirectoryError(f"there is no folder {path}; check the path")
    return path


def _subfolder(root: Path, words: Sequence[str]) -> Path:
    there = sorted(existing_folder(root).iterdir())
    found = [path for path in there if path.name.lower() in words and path.is_dir()]
    if len(found) != 1:
        names, got = " or ".join(words[:4]), some([path.name for path in found or there])
        raise ValueError(f"--pairs {root} must hold one folder named {names}, got {got}\n{LAYOUT}")
    return found[0]


def find_pairs(folders: Folders) -> list[PairFiles]:
    """The pairs of files with the same name, accents and letter case aside; or a ValueError."""
    (infrared, skipped), (visible, others) = map(images_below, folders)
    skipped += others
    pairs = []
    for name in sorted(infrared.keys() | visible.keys()):
        files = [*visible.get(name, []), *infrared.get(name, [])]
        if name not in infrared or name not in visible:
            kind = "visible" if name in infrared else "infrared"
            skipped += [f"{path}: has no {kind} partner" for path in files]
        elif len(files) > 2:
            skipped.append(f"{name}: several images have this name: {some(list(map(str, files)))}")
        else:
            path = files[0].relative_to(folders.visible).with_suffix("")
            pairs.append(PairFiles(unicodedata.normalize("NFC", path.as_posix()), *files))
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    where = f"infrared in {folders.infrared}, visible in {folders.visible}"
    if not pairs:
        raise ValueError(f"no infrared image has the name of a visible one: {where}\n{LAYOUT}")
    print(f"{len(pairs)} pairs; {where}", file=sys.stderr)
    return pairs


def images_below(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Images by name in one letter case, in subfolders and behind links too; and other files."""
    images, others = defaultdict(list), []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            if path.suffix.lower() in READABLE:
                images[name_key(path.relative_to(root).with_suffix("").as_posix())].append(path)
            else:
                others.append(f"{path}: is of no type that is read; save it as PNG or TIFF")
    return images, others


def name_key(name: str) -> str:
    """What names of a pair's files share: accents in one form, and one letter case."""
    return unicodedata.normalize("NFC", name).casefold()


def open_pairs(folders: Folders | Path, limit: int | None = None) -> PairFolder:
    """The usable pairs, at most `limit` of them, spread evenly over the folder; or a ValueError."""
    found = find_pairs(folders if isinstance(folders, Folders) else folders_of(folders))
    usable = []  # each is read once, so that a broken file is named now and not in the training
    for index in progress(spread(len(found), limit), "reading pairs", "pair", leave=False):
        try:
            _kept_pair(found[index])
            usable.append(found[index])
        except UnusableImageError as problem:
            note(f"skipped {problem}")
    if not usable:
        raise ValueError("none of the pairs can be used; the reasons are above")
    return PairFolder(usable)


def spread(total: int, limit: int | None) -> list[int]:
    """At most `limit` of the numbers 0 to `total` - 1, evenly spread."""
    count = min(total, limit or total)
    return [i * total // count for i in range(count)]


def keep_apart(out: Path, folders: Folders) -> None:
    """Raise a ValueError if `out` lies among the sources, by links too, or is named like them."""
    out = out.resolve()
    for folder in folders:
        among = any(p.exists() and os.path.samefile(p, folder) for p in (out, *out.parents))
        beside = out.parent == folder.parent.resolve() and out.name.lower() in INFRARED + VISIBLE
        if among or beside:  # beside them it would be taken for a folder of sources
            raise ValueError(
                f"--out {out} must not lie among the sources in {folder}, or be named like them "
                "beside them; choose another folder"
            )


def read_pair(files: PairFiles) -> Pair:
    """Read both images; raises `UnusableImageError` if one is broken or they do not match."""
    visible, infrared = read_or_explain(files.visible), read_or_explain(files.infrared)
    if infrared.shape[0] == 3:
        note(f"infrared images in {files.infrared.parent} are coloured; their luminance is used")
        infrared = to_8bit(luminance(infrared))
    got, size = (f"{image.shape[2]} x {image.shape[1]}" for image in (infrared, visible))
    if got != size:
        raise UnusableImageError(f"{files.infrared}: is {got}, its visible image {size} pixels")
    if min(visible.shape[1:]) < MIN_SIDE:
        raise UnusableImageError(f"{files.visible}: is {size} pixels, smaller than {MIN_SIDE}")
    return Pair(files.name, visible, infrared)


_kept_pair = lru_cache(maxsize=512)(read_pair)


def read_or_explain(path: Path, *, stretch: bool = True) -> Tensor:
    """`read_image`, but whatever goes wrong is an `UnusableImageError`."""
    try:
        return read_image(path, stretch=stretch)
    except Exception as error:  # a broken file makes decoders raise nearly anything
        raise UnusableImageError(f"{path}: cannot be read: {error}") from error


def read_image(path: Path, *, stretch: bool = True) -> Tensor:
    """Read an image, upright and opaque; one with equal channels becomes grey.

    More than 8 bits are reduced as in `to_grey_levels`; without `stretch`, for results, which must
    not change, they are an error. Pixels that a TIFF marks as missing are black.
    """
    values, missing = decode(path)
    if values.dtype != np.uint8:
        if not stretch:
            raise ValueError("a result must have 8 bits; scale it to 0 to 255 and save it as PNG")
        raw, values = values, to_grey_levels(values, missing)
        levels = len(np.unique(values))
        if levels < 32 and levels < len(np.unique(raw)) // 4:
            note(f"{path}: has only {levels} grey levels in 8 bits; is a value in it no data?")
    if missing is not None and missing.any():
        note(f"{path}: {missing.mean():.1%} of the pixels are marked as missing; they are black")
        values[missing] = 0
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    planes = planes[:1] if (planes == planes[:1]).all() else planes
    return torch.from_numpy(np.ascontiguousarray(planes))


def to_grey_levels(values: Values, missing: Values | None) -> Values:
    """Integers up to 65535, or floats up to 1 -> uint8 of the same shape, channels alike.

    Raw counts of a sensor that cover less than a quarter of the range, or exceed it, are stretched
    from their 0.1 to their 99.9 percentile, which ignores dead and `missing` pixels.
    """
    there = values if missing is None or missing.all() else values[~missing]
    if not np.isfinite(there).all():
        raise ValueError("it holds values that are not finite")
    white = 1.0 if values.dtype.kind == "f" and there.max() <= 1 else 65535.0
    low, high = np.percentile(there.astype(np.float64), (0.1, 99.9))
    if there.min() >= 0 and there.max() <= white and high - low >= white / 4:
        low, high = 0.0, white
    scaled = (np.nan_to_num(values.astype(np.float64)) - low) / max(high - low, 1e-12)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def decode(path: Path) -> tuple[Values, Values | None]:
    """An image (H, W) or (H, W, 3) in the dtype of the file, and which pixels a TIFF lacks (H, W).

    Pillow decodes images of 8 bits; tifffile and imagecodecs those that it would reduce to 8 bits.
    """
    with open(path, "rb") as file:
        start = file.read(25)
    if start[:4] in TIFF_STARTS:
        return _decode_tiff(path)
    with Image.open(path, formats=FORMATS) as image:
        if image.format != "MPO":  # of a camera, whose second image is a preview
            _one_of(getattr(image, "n_frames", 1))
        if image.format != "PNG" or start[24] != 16:  # bits, as the header of a PNG tells
            return _decode_by_pillow(image), None
        import imagecodecs  # imported here, as it is slow to load

        values = imagecodecs.png_decode(path.read_bytes())
        return _upright(values, image.getexif().get(EXIF_ORIENTATION, 1)), None


def _one_of(count: int) -> None:
    if count > 1:
        raise ValueError(f"it holds {count} images; save the one that is meant as its own file")


def _decode_by_pillow(image: Image.Image) -> Values:
    turned = ImageOps.exif_transpose(image)
    if turned.has_transparency_data:  # Pillow warns if a palette's transparency is just dropped
        turned = turned.convert("RGBA")
    return np.array(turned if turned.mode == "L" else turned.convert("RGB"))


def _decode_tiff(path: Path) -> tuple[Values, Values | None]:
    import tifffile  # imported here, as it is slow to load

    with tifffile.TiffFile(path) as tiff:
        pages = [page for page in tiff.pages if not page.is_reduced and not page.is_mask]
        _one_of(len(pages))
        page = pages[0]
        kind = getattr(page.photometric, "name", str(page.photometric))
        plain = kind in ("MINISBLACK", "MINISWHITE", "RGB") and page.axes in ("YX", "YXS")
        if plain and page.dtype != np.bool_:
            tag = page.tags.get(EXIF_ORIENTATION)
            values = _upright(page.asarray(), 1 if tag is None else int(tag.value))
        elif page.dtype in (np.uint8, np.bool_):  # a palette, say, or JPEG
            with Image.open(path) as image:
                values = _decode_by_pillow(image)
        else:
            raise ValueError(f"it holds {page.dtype} {kind} {page.axes}; save it as grey or RGB")
        missing, nodata = None, None
        if GDAL_NODATA in page.tags:
            try:
                nodata = float(page.tags[GDAL_NODATA].value)
            except ValueError:
                note(f"{path}: its GDAL_NODATA is no number and is ignored")
        if nodata is not None:
            if values.dtype.kind == "f":
                nodata = values.dtype.type(nodata)  # the text may have fewer or more digits
            missing = np.isnan(values) if np.isnan(nodata) else values == nodata
            missing = missing.all(-1) if missing.ndim == 3 else missing
        if kind == "MINISWHITE" and page.dtype.kind == "u":
            values = np.iinfo(values.dtype).max - values
    return values, missing


def _upright(values: Values, orientation: int) -> Values:
    """Drop transparency, and apply the orientation that Exif and TIFF number 1 to 8."""
    if values.ndim == 3:
        values = values[..., 0] if values.shape[2] < 3 else values[..., :3]
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def to_8bit(image: Tensor) -> Tensor:
    """[0, 1] -> uint8, clipped and rounded; not stretched, which would raise the metrics."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def luminance(image: Tensor) -> Tensor:
    """uint8 (1 or 3, H, W) -> float (1, H, W) in [0, 1]: the Y of ITU-R BT.601."""
    if image.shape[0] == 1:
        return image / 255
    red, green, blue = (image / 255).split(1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def with_chroma_of(visible: Tensor, grey: Tensor) -> Tensor:
    """Give the uint8 image `grey` (1, H, W) Cb and Cr of `visible`, if that is coloured.

    In BT.601 a change of Y alone adds the same amount to red, green and blue.
    """
    if visible.shape[0] == 1:
        return grey
    return to_8bit(visible / 255 + grey / 255 - luminance(visible))


def save_image(image: Tensor, path: Path) -> None:
    """Write a uint8 image, whole or not at all."""
    with atomic_write(path) as temporary:
        to_pil_image(image).save(temporary)
