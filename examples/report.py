"""What a run leaves behind to look at: the contact sheet, the loss curves and a table."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from files import written_whole

CELL_INCHES = 2.8
DOTS_PER_INCH = 160


def save_contact_sheet(columns: Mapping[str, Sequence[Tensor]], path: Path) -> None:
    """Write columns of uint8 images (1 or 3, H, W) under their titles, one row a scene."""
    scenes = list(zip(*columns.values(), strict=True))
    # Tall images are shown narrower, so that none fills the sheet alone.
    heights = [CELL_INCHES * min(scene[0].shape[1] / scene[0].shape[2], 1.2) for scene in scenes]
    titles = [textwrap.fill(textwrap.shorten(title, 150), 30) for title in columns]
    title_inches = 0.2 * (1 + max(title.count("\n") for title in titles)) + 0.1
    figure = Figure(
        figsize=(CELL_INCHES * len(titles), sum(heights) + title_inches), dpi=DOTS_PER_INCH
    )
    axes = figure.subplots(len(scenes), len(titles), squeeze=False, height_ratios=heights)
    top = 1 - title_inches / figure.get_figheight()
    figure.subplots_adjust(left=0, right=1, bottom=0, top=top, wspace=0.01, hspace=0.01)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9, parse_math=False)
    for row, scene in zip(axes, scenes, strict=True):
        for axis, image in zip(row, scene, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
    with written_whole(path) as temporary:
        figure.savefig(temporary)


def save_rows(rows: Mapping[str, Sequence[Tensor]], path: Path, cell_inches: float) -> None:
    """Write rows of uint8 images (1 or 3, H, W), each behind its title, one column a scene."""
    scenes = next(iter(rows.values()))
    widths = [min(image.shape[2] / image.shape[1], 1.5) for image in scenes]
    label_inches = 1.3 * cell_inches
    width = label_inches + cell_inches * sum(widths)
    figure = Figure(figsize=(width, cell_inches * len(rows)), dpi=DOTS_PER_INCH)
    axes = figure.subplots(len(rows), len(scenes), squeeze=False, width_ratios=widths)
    figure.subplots_adjust(
        left=label_inches / width, right=1, bottom=0, top=1, wspace=0.01, hspace=0.02
    )
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
        label = textwrap.fill(title, round(14 * label_inches))
        line[0].text(
            -0.04, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8,
            parse_math=False,
        )  # fmt: skip
    with written_whole(path) as temporary:
        figure.savefig(temporary)


def save_loss_curves(histories: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Write a panel a loss term and in it a line a run; faint is each step, bold their mean."""
    terms = list(next(iter(histories.values())))
    figure = Figure(figsize=(3 * len(terms), 3.4), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(1, len(terms), squeeze=False)[0]
    for panel, term in zip(panels, terms, strict=True):
        for number, history in enumerate(histories.values()):
            values = np.asarray(history[term])
            panel.plot(values, color=f"C{number}", alpha=0.2, linewidth=0.8)
            panel.plot(*running_mean(values), color=f"C{number}")
        panel.set_title(term)
        panel.set_xlabel("step")
    bold_lines = panels[0].lines[1::2]
    labels = [textwrap.shorten(f'"{prompt}"', 100) for prompt in histories]
    legend = figure.legend(bold_lines, labels, loc="outside lower center")
    for text in legend.get_texts():
        text.set_parse_math(False)
    with written_whole(path) as temporary:
        figure.savefig(temporary)


def running_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and means of windows of a tenth of `values`: a batch's loss is noisy."""
    window = max(1, len(values) // 10)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return np.arange(len(means)) + (window - 1) / 2, means


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of figures, one column a metric, as text."""
    metrics = list(next(iter(rows.values())))
    labels = [textwrap.shorten(label, 40, placeholder=" ...") for label in rows]
    width = max(map(len, labels))
    lines = [" " * width + "".join(f"{name:>8}" for name in metrics)]
    for label, row in zip(labels, rows.values(), strict=True):
        lines.append(f"{label:<{width}}" + "".join(f"{row[name]:8.3f}" for name in metrics))
    return "\n".join(lines)
