"""Plots of the loss over a training, and of time and memory per step."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from parts.files import written_whole
from parts.pages.sheets import DOTS_PER_INCH

#: Titles of panels; all other terms are unweighted.
TERMS = {
    "total": "total, the weighted sum",
    "kept": "kept, share of the patches",
}

COSTS = {
    "patches": "patches per image",
    "batch": "images per step",
    "size": "side of the images in pixels",
}


def save_loss_curves(histories: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw a panel per loss term with a line per run: single steps faint, their mean bold."""
    terms = list(next(iter(histories.values())))
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    figure = Figure(figsize=(9, 3 * rows + 1), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, term in zip(panels, terms, strict=False):
        for number, history in enumerate(histories.values()):
            values = np.asarray(history[term])
            panel.plot(values, color=f"C{number}", alpha=0.2, linewidth=0.8)
            panel.plot(*running_mean(values), color=f"C{number}", linewidth=2)
        panel.set_title(TERMS.get(term, f"{term}, unweighted"))
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
    for panel in panels:  # those left over
        panel.set_axis_off()
    bold_lines = figure.axes[0].lines[1::2]
    labels = [textwrap.shorten(title, 100, placeholder=" ...") for title in histories]
    legend = figure.legend(
        bold_lines, labels, loc="outside lower center", title="faint: each step; bold: their mean"
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    with written_whole(path) as temporary:
        figure.savefig(temporary)


def running_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and means of windows of a tenth of `values`: a batch's loss is noisy."""
    window = max(1, len(values) // 10)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return np.arange(len(means)) + (window - 1) / 2, means


def save_costs(curves: Sequence[dict], path: Path) -> None:
    """Draw seconds per step (top) and gigabytes (bottom), one column per curve.

    Raises:
        ValueError: a curve was not written by benchmark.py.
    """
    figure = Figure(figsize=(3.6 * len(curves), 4.6), dpi=160, layout="constrained")
    panels = figure.subplots(2, len(curves), squeeze=False, sharex="col")
    for (time, memory), curve in zip(panels.T, curves, strict=True):
        try:
            label = COSTS[curve["curve"]]
            gigabytes = [peak / 1e9 for peak in curve["peak_memory"]]
            for axes, costs in ((time, curve["seconds"]), (memory, gigabytes)):
                axes.plot(curve["value"], costs, marker="o")
                axes.set_ylim(0, 1.15 * max(costs))
                axes.set_xlim(left=0)
        except (KeyError, TypeError) as error:
            raise ValueError(
                "--draw must have files written by benchmark.py --curve with --json, got another "
                f"content: {error}"
            ) from error
        memory.set_xlabel(label)
    panels[0, 0].set_ylabel("seconds per step")
    panels[1, 0].set_ylabel("peak memory, GB")
    with written_whole(path) as temporary:
        figure.savefig(temporary)
