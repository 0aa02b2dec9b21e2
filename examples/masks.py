"""Regions of images: drawn for a training, from label images, from masks, or where it is hot."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from options import some
from pairs import (
    Pair,
    PairFiles,
    UnusableImageError,
    existing_folder,
    images_below,
    luminance,
    name_key,
    read_or_explain,
)

#: Of a training's crops, this share has one label: only they teach what a whole image should be.
#: As many as the second are halved by a line; the others have an ellipse. Found by trial.
ONE_LABEL, HALVED = 0.6, 0.2
#: Where lines and centres lie, and half the axes of ellipses, as shares of a crop's side.
PLACES, HALF_AXES = (0.2, 0.8), (0.15, 0.45)

#: The mask for `hot_region`.
HOT = "hot"
#: Hot spots exceed the first share of the way from the median of the infrared image to its hottest
#: part, above this quantile, and extend to where it falls below the second share; if both are so
#: many grey levels apart. Found by looking at pictures.
SPOT, EXTENT, HOTTEST, LEAST_LEVELS = 0.7, 0.3, 0.999, 25
#: At most so much of an image is hot, and spots that are a smaller share of it are noise.
LARGEST, SPECK = 0.12, 0.0004
#: Noise is smoothed, and the region grown, by this share of the image's short side.
SOFTNESS = 0.004


def random_regions(side: int, generator: torch.Generator) -> Tensor:
    """Labels (side, side): 0 everywhere, or 1 beyond a line or in an ellipse."""
    kind, angle, *places = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    if kind < ONE_LABEL:
        return torch.zeros(side, side, dtype=torch.int64)
    x, y = (PLACES[0] + place * (PLACES[1] - PLACES[0]) for place in places[:2])
    a, b = (HALF_AXES[0] + place * (HALF_AXES[1] - HALF_AXES[0]) for place in places[2:])
    centres = (torch.arange(side) + 0.5) / side
    across, down = centres - x, (centres - y)[:, None]
    turn = torch.tensor(2 * torch.pi * angle)
    along, aside = across * turn.cos() + down * turn.sin(), down * turn.cos() - across * turn.sin()
    if kind < ONE_LABEL + HALVED:
        return (along > 0).long()
    return ((along / a).square() + (aside / b).square() < 1).long()


@dataclass(frozen=True)
class LabelFolder(Sequence[Tensor]):
    """Label images, those used last kept in memory; each item is (H, W) int64."""

    files: list[Path]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return _kept_labels(self.files[index])


def open_labels(folder: Path, files: Sequence[PairFiles]) -> LabelFolder:
    """The label images with the names of the pairs; a ValueError if one is missing or misfits."""
    found = by_name(folder)
    missing = [pair.name for pair in files if name_key(pair.name) not in found]
    if missing:
        raise ValueError(
            f"{folder} must hold a label image with the name of each pair, but has none for "
            f"{some(missing)}"
        )
    paths = [found[name_key(pair.name)] for pair in files]
    for pair, path in zip(files, paths, strict=True):
        with Image.open(path) as labels, Image.open(pair.visible) as visible:
            check_size(path, labels.size, visible.size)
    return LabelFolder(paths)


def read_labels(path: Path) -> Tensor:
    """(H, W) int64: a palette's indices, grey levels, or a number for each colour."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                image = image.convert("RGB")
            values = np.array(image).astype(np.int64)
    except Exception as error:  # a broken file makes decoders raise nearly anything
        raise UnusableImageError(f"{path}: cannot be read: {error}") from error
    if values.ndim == 3:
        values = values @ [1 << 16, 1 << 8, 1]
    return torch.from_numpy(values)


_kept_labels = lru_cache(maxsize=512)(read_labels)


def by_name(folder: Path) -> dict[str, Path]:
    """Images below `folder` by `name_key`; of several with one name the first."""
    return {name: paths[0] for name, paths in images_below(existing_folder(folder))[0].items()}


def check_size(path: Path, got: Sequence[int], wanted: Sequence[int]) -> None:
    """Both (width, height)."""
    if tuple(got) != tuple(wanted):
        sizes = (f"{width} x {height}" for width, height in (got, wanted))
        raise UnusableImageError("{}: is {}, the pair {} pixels".format(path, *sizes))


def region_of(pair: Pair, mask: str) -> Tensor | None:
    """The (H, W) region of a pair that `mask` names; None where nothing is hot.

    `mask` is "hot", an image for all pairs, or a folder with one of the same name for each pair. In
    an image the region is what is brighter than half of its brightest pixel. For a mask that is
    missing, empty or of another size an `UnusableImageError`.
    """
    if mask == HOT:
        return hot_region(pair.infrared)
    path = Path(mask)
    if path.is_dir():
        found = by_name(path).get(name_key(pair.name))
        if found is None:
            raise UnusableImageError(f"{pair.name}: has no mask in {path}")
        path = found
    image = luminance(read_or_explain(path))[0]
    check_size(path, image.shape[::-1], pair.visible.shape[:0:-1])
    if not image.any():
        raise UnusableImageError(f"{path}: is an empty mask; paint the region white")
    return image > image.max() / 2


def hot_region(infrared: Tensor) -> Tensor | None:
    """Where a uint8 (1, H, W) infrared image is warmest, as (H, W); None if nothing stands out."""
    levels = infrared[0].numpy().astype(np.float32)
    radius = SOFTNESS * min(levels.shape)
    smooth = ndimage.gaussian_filter(levels, radius)
    middle, least, hottest = np.quantile(smooth, (0.5, 1 - LARGEST, HOTTEST))
    way = hottest - middle
    if way < LEAST_LEVELS:
        return None
    spots = (smooth > middle + SPOT * way) & (smooth > least)
    names, count = ndimage.label(spots)
    areas = ndimage.sum_labels(spots, names, range(count + 1))
    spots &= (areas >= SPECK * spots.size)[names]
    if not spots.any():
        return None
    extent = smooth > max(middle + EXTENT * way, least)
    hot = ndimage.binary_propagation(spots, mask=extent)
    return torch.from_numpy(ndimage.distance_transform_edt(~hot) <= radius)
