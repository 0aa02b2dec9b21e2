"""A sentence for a region: how far it is followed there, and how far elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_fusion_loss import FusionObjective
from masks import hot_region
from metrics import gradient_sizes
from pairs import Pair

DARK, BRIGHT, BLURRY = "a dark image", "a bright image", "a blurry image"
CLEAR = FusionObjective().fused[0]
#: Of the training.
SENTENCES = (CLEAR, DARK, BRIGHT, BLURRY)

HALF, BACKGROUND = "a half", "all but hot objects"
#: Folders of the images for the picture.
PICTURED = ("clear", "dark", "bright", "dark-and-bright")

#: What a sentence is about, at each pixel of a uint8 (1, H, W) image.
MEASURES: dict[str, Callable[[Tensor], np.ndarray]] = {
    "mean": lambda image: image[0].numpy().astype(float),
    "AG": lambda image: gradient_sizes(image[0].numpy()),
}


@dataclass(frozen=True)
class Case:
    """One sentence in a region, another elsewhere."""

    region: str
    sentence: str
    elsewhere: str
    about: str


CASES = (
    Case(HALF, DARK, BRIGHT, "mean"),
    Case(BACKGROUND, DARK, BRIGHT, "mean"),
    Case(BACKGROUND, BLURRY, CLEAR, "AG"),
)


#: Fuses a pair, told these sentences, one for each label of a (1, H, W) map.
Fuse = Callable[[Pair, Sequence[str], Tensor | None], Tensor]


def measured(fuse: Fuse, pairs: Sequence[Pair]) -> list[dict[str, str | float]]:
    """For each case the mean over pairs of six levels.

    Where the first sentence is told ("inside") and where the second is, what the image has as it is
    told, and with either sentence everywhere.
    """
    levels: dict[Case, list[dict[str, float]]] = {case: [] for case in CASES}
    for number, pair in enumerate(pairs):
        whole = {text: fuse(pair, [text], None) for text in SENTENCES}
        for case in CASES:
            labels = labels_of(case.region, pair, number)
            if labels is None:
                continue
            images = {
                "told": fuse(pair, [case.elsewhere, case.sentence], labels),
                "sentence": whole[case.sentence],
                "elsewhere": whole[case.elsewhere],
            }
            inside = labels[0].numpy() == 1
            row = {}
            for title, image in images.items():
                values = MEASURES[case.about](image)
                row[f"{title}, inside"] = float(values[inside].mean())
                row[f"{title}, outside"] = float(values[~inside].mean())
            levels[case].append(row)
    return [
        vars(case) | {"images": len(rows)} | {
            name: float(np.mean([row[name] for row in rows])) for name in rows[0]
        }
        for case, rows in levels.items() if rows
    ]  # fmt: skip


def labels_of(region: str, pair: Pair, number: int = 0) -> Tensor | None:
    """(1, H, W): 1 in the region, else 0; None where nothing is hot. Halves take turns."""
    if region == HALF:
        labels = torch.zeros_like(pair.infrared, dtype=torch.int64)
        labels[..., : labels.shape[2] // 2] = 1
        return 1 - labels if number % 2 else labels
    hot = hot_region(pair.infrared)
    return None if hot is None else (~hot)[None].long()


def reached(rows: Sequence[dict[str, float]], place: str) -> float:
    """How far a place has moved from the second sentence everywhere to the first: 1 is all.

    Over all rows at once, as in one of them both sentences may give the same.
    """
    told, sentence, elsewhere = (
        sum(row[f"{title}, {place}"] for row in rows) for title in ("told", "sentence", "elsewhere")
    )
    return (told - elsewhere) / (sentence - elsewhere)


def pictured(fuse: Fuse, pairs: Sequence[Pair]) -> dict[str, list[Tensor]]:
    """The columns of the picture: one sentence everywhere, and dark with bright hot objects."""
    columns: dict[str, list[Tensor]] = {title: [] for title in PICTURED}
    for pair in pairs:
        for title, text in zip(PICTURED, (CLEAR, DARK, BRIGHT), strict=False):
            columns[title].append(fuse(pair, [text], None))
        labels = labels_of(BACKGROUND, pair)
        told = ([DARK], None) if labels is None else ([BRIGHT, DARK], labels)
        columns[PICTURED[-1]].append(fuse(pair, *told))
    return columns
