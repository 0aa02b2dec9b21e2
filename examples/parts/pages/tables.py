"""Tables of figures, as text and as Markdown."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence


def text_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of figures, one column a metric, as text."""
    metrics = list(next(iter(rows.values())))
    labels = [textwrap.shorten(label, 40, placeholder=" ...") for label in rows]
    width = max(map(len, labels))
    lines = [" " * width + "".join(f"{name:>8}" for name in metrics)]
    for label, row in zip(labels, rows.values(), strict=True):
        lines.append(f"{label:<{width}}" + "".join(f"{row[name]:8.3f}" for name in metrics))
    return "\n".join(lines)


def table(rows: Mapping[str, Sequence[Mapping[str, float]]], digits: int | None = None) -> str:
    """A Markdown table: the mean of each group of rows, and half of its range where it has one."""
    names = list(next(iter(rows.values()))[0])
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for label, group in rows.items():
        cells = [cell([row[name] for row in group], digits) for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: Sequence[float], digits: int | None) -> str:
    mean, spread = statistics.mean(values), (max(values) - min(values)) / 2
    if digits is None:
        digits = 3 if abs(mean) < 2 else 2 if abs(mean) < 20 else 1
    mean = round(mean, digits) + 0.0  # never "-0"
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(values) > 1 else "")


def percent(change: float, digits: int = 0) -> str:
    """A change in percent with its sign; zero has none."""
    return f"{change:+.{digits}f} %" if round(change, digits) else "0 %"


def ordinal(place: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(place, f"{place}th")
