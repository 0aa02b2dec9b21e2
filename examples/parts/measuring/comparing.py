"""Compare trials: over seeds, in percent, and with filters at equal average gradient."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from parts.measuring.baselines import clahe, unsharp
from parts.measuring.trials import BRIGHTNESS, LAYOUT, Bench, Trial

Row = dict[str, float]
CONTROLS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "unsharp mask": unsharp,
    "CLAHE": clahe,
}


def over_seeds(bench: Bench, trial: Trial, seeds: Sequence[int], part: str = "test") -> list[Row]:
    return [bench.run(replace(trial, seed=seed), part) for seed in seeds]


def mean_of(rows: Sequence[Row]) -> Row:
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def changes(rows: Sequence[Row], others: Sequence[Row], measure: str) -> list[float]:
    """Changes of one measure in percent."""
    return [change(row, other)[measure] for row, other in zip(rows, others, strict=True)]


def change(row: Row, reference: Row) -> Row:
    return {name: 100 * (row[name] / reference[name] - 1) for name in row}


def gains(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Differences of `rows` from `others`: SF and AG in percent, other metrics as they are."""
    relative = ("SF", "AG")
    return [
        {f"{name}, %": change(row, other)[name] for name in relative}
        | {name: row[name] - other[name] for name in row if name not in relative}
        for row, other in zip(rows, others, strict=True)
    ]


def filtered_rows(
    bench: Bench, base: Trial, seeds: Sequence[int], control: Callable[[Tensor, float], Tensor]
) -> list[Row]:
    """Metrics of the images without language, filtered to the AG of those with language."""
    return [
        bench.filtered(replace(base.without_language(), seed=seed), control, row["AG"])
        for seed, row in zip(seeds, over_seeds(bench, base, seeds), strict=True)
    ]


def wins(rows: Sequence[Row], others: Sequence[Row]) -> list[int]:
    """The number of metrics in which each row is higher than the corresponding other row."""
    # Differences below 0.2 % do not count: AG was matched only approximately.
    return [
        sum(row[name] > 1.002 * other[name] for name in row if name not in (BRIGHTNESS, LAYOUT))
        for row, other in zip(rows, others, strict=True)
    ]
