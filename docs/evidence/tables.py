"""What the results page is made of: small tables of figures, kept as CSV files beside it."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evidence.trials import BRIGHTNESS, PAPER, Row
from options import atomic_write

NO_LANGUAGE = "no language"

#: Names of the tables: what a row of each is.
FILES = {
    "run": "a setting or a duration",
    "measures": "the mean of all measures over a data set, for one seed",
    "brightness": "the mean grey level of one image under three sentences, for one seed",
    "one_network": "the mean of what a sentence is about, as the one network is told, for one seed",
    "regions": "what a region is about, as told and with either sentence everywhere, for one seed",
    "blends": "what a blend is about in each of its steps, in one image, for one seed",
}

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Sentence:
    """What a sentence is to change, against the same training without language."""

    about: str
    """The measure that one network is to change as a network of its own does."""
    unseen: str
    """A sentence of the same meaning that the one network never saw."""
    changes: Mapping[str, float] = field(default_factory=dict)
    """Least change of a measure in percent; negative: it is to fall."""
    levels: Mapping[str, float] = field(default_factory=dict)
    """Least level; of "invented" detail the highest."""


SENTENCES: Mapping[str, Sentence] = {
    PAPER: Sentence(
        "AG",
        "a detailed image with a clear background",
        {"AG": 50, "SD": 25, "Qabf": 0},
        {"SSIM": 0.65, "invented": 0.05},
    ),
    "a dark image": Sentence(BRIGHTNESS, "a dark photo", {BRIGHTNESS: -35}),
    "a bright image": Sentence(BRIGHTNESS, "a bright photo", {BRIGHTNESS: 15}),
    "a blurry image": Sentence("AG", "a blurred picture", {"AG": -35}),
    "an image with low contrast": Sentence("SD", "a picture of low contrast", {"SD": -35}),
    "a sharp image": Sentence("AG", "a sharp photo"),
    "an image with high contrast": Sentence("SD", "a high contrast photo"),
}


def short(sentence: str) -> str:
    return "the paper's sentence" if sentence == PAPER else f'"{sentence}"'


@dataclass(frozen=True)
class Wording:
    """A sentence with an opposite, or with other sentences."""

    alone: str
    """The sentence that it is compared with."""
    opposite: str = ""
    mixed: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        also = "".join(f' and {weight:g} of "{text}"' for text, weight in self.mixed.items())
        return short(self.alone) + also + (f', not "{self.opposite}"' if self.opposite else "")


POOR = Wording(PAPER, opposite="a blurry dark image with low contrast")
NOT_BRIGHT = Wording("a sharp image", opposite="a bright image")
MIXED = Wording("a sharp image", mixed={"a bright image": 0.5})
WORDINGS = (POOR, NOT_BRIGHT, MIXED)

#: From which sentence to which, and the measure that is to rise all the way.
BLENDS: Mapping[tuple[str, str], str] = {
    ("a dark image", "a bright image"): BRIGHTNESS,
    ("a blurry image", "a sharp image"): "AG",
}


def save(tables: Mapping[str, Table], folder: Path) -> None:
    """Write NAME.csv for each table; figures have six digits."""
    for name, rows in tables.items():
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: written(value) for key, value in row.items()} for row in rows)
        with atomic_write(folder / f"{name}.csv") as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def load(folder: Path) -> dict[str, Table]:
    """The tables that `save` has written."""
    return {name: read(folder / f"{name}.csv") for name in FILES}


def read(path: Path) -> Table:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: _read(value) for key, value in row.items()} for row in rows]


def mean(rows: Sequence[Mapping[str, Any]]) -> Row:
    """The mean of every figure over rows; the rest is left out."""
    figures = [name for name, value in rows[0].items() if isinstance(value, float | int)]
    return {name: statistics.mean(row[name] for row in rows) for name in figures}


def chosen(rows: Table, **wanted: Any) -> Table:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def written(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _read(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
