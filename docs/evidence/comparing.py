"""Compare measures: with each other, with filters at equal sharpness, with published methods."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq
from scipy.stats import spearmanr
from skimage.exposure import equalize_adapthist
from torch import Tensor

from evidence.trials import Row
from metrics import average_gradient
from pairs import Pair, luminance, read_image, to_8bit

#: The measures that count; "invented" detail, for which less is better, stands beside them.
EIGHT = ("EN", "SD", "SF", "AG", "MI", "SCD", "SSIM", "Qabf")
#: Ahead in at least this many of the eight means ahead.
MOST = 5

#: Folders with this ending hold outputs without the stretch of the contrast that is part of the
#: authors' code.
UNSTRETCHED = "-clamp"
#: Methods whose outputs exist stretched only.
ALWAYS_STRETCHED = ("DenseFuse-TF",)


def change(row: Row, reference: Row, name: str) -> float:
    """The change of a measure in percent."""
    return 100 * (row[name] / reference[name] - 1)


def rank(row: Row, others: Sequence[Row]) -> float:
    """The mean place of `row` among `others` in the eight measures, from 1."""
    return statistics.mean(1 + sum(other[name] > row[name] for other in others) for name in EIGHT)


def ahead(row: Row, other: Row, margin: float = 0.0) -> int:
    """In how many of the eight measures `row` is ahead, by more than this share."""
    return sum(row[name] > (1 + margin) * other[name] for name in EIGHT)


def rises(levels: Sequence[float]) -> float:
    """Rank correlation (Spearman) of the levels with their places; 0 if they are all equal."""
    if len(set(levels)) == 1:
        return 0.0
    return float(spearmanr(range(len(levels)), levels).statistic)


# Filters


def unsharp(image: Tensor, amount: float) -> Tensor:
    """Unsharp mask of a uint8 (1, H, W) image with a Gaussian of 2 pixels."""
    values = image[0].numpy() / 255
    return _to_8bit(values + amount * (values - gaussian_filter(values, 2.0)))


def clahe(image: Tensor, amount: float) -> Tensor:
    """Contrast-limited adaptive histogram equalisation, blended with the original."""
    values = image[0].numpy() / 255
    return _to_8bit(values + amount * (equalize_adapthist(values, clip_limit=0.03) - values))


FILTERS: Mapping[str, Callable[[Tensor, float], Tensor]] = {"unsharp mask": unsharp, "CLAHE": clahe}


def matched(
    control: Callable[[Tensor, float], Tensor], images: Sequence[Tensor], target: float
) -> list[Tensor]:
    """`images` filtered with the strength at which their mean average gradient is `target`."""

    def excess(amount: float) -> float:
        gradients = [average_gradient(control(image, amount)[0].numpy()) for image in images]
        return statistics.mean(gradients) - target

    high = 1.0
    while excess(high) < 0 and high < 64:
        high *= 2
    if excess(0.0) >= 0 or excess(high) <= 0:
        amount = 0.0 if excess(0.0) >= 0 else high
    else:
        amount = brentq(excess, 0.0, high, xtol=1e-2)
    return [control(image, amount) for image in images]


# Fusions that were not trained here


def average(pair: Pair) -> Tensor:
    return to_8bit((luminance(pair.visible) + luminance(pair.infrared)) / 2)


def maximum(pair: Pair) -> Tensor:
    return to_8bit(torch.maximum(luminance(pair.visible), luminance(pair.infrared)))


RULES: Mapping[str, Callable[[Pair], Tensor]] = {"average": average, "maximum": maximum}


def published_images(root: Path, pairs: Sequence[Pair]) -> dict[tuple[str, bool], list[Path]]:
    """SET/METHOD/NAME.png by method and whether stretched, for methods that fused all `pairs`."""
    folders = sorted(root.glob("*/*/"), key=lambda folder: folder.name.lower())
    complete = {
        (folder.parent.name, folder.name): [folder / f"{pair.name}.png" for pair in pairs]
        for folder in folders
        if all((folder / f"{pair.name}.png").is_file() for pair in pairs)
    }
    clamped = {method for group, method in complete if group.endswith(UNSTRETCHED)}
    return {
        (method, not group.endswith(UNSTRETCHED) and method in (*clamped, *ALWAYS_STRETCHED)): paths
        for (group, method), paths in complete.items()
    }


def read_grey(path: Path) -> Tensor:
    return to_8bit(luminance(read_image(path)))


def _to_8bit(values) -> Tensor:
    return to_8bit(torch.from_numpy(values)[None].float())
