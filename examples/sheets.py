"""Pictures of results: sheets of the same scenes fused in several ways, and curves of a loss."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from options import atomic_write
from pairs import Pair, luminance

DOTS_PER_INCH = 140
#: A sheet is at most as tall as a screen, 1000 pixels, unless its images would be mere specks.
MAX_INCHES = 1000 / DOTS_PER_INCH
MIN_CELL_INCHES = 0.7
#: Of titles, in points; how many characters go into an inch; and how many lines they have.
FONT_SIZE, CHARACTERS_AN_INCH, MAX_LINES = 9, 13, 4
LINE_INCHES = 1.2 * FONT_SIZE / 72
#: A detail shows this share of the image's width and height.
DETAIL = 0.3

Window = tuple[slice, slice]


def salient_window(pair: Pair) -> Window:
    """Where fine details of the sources differ most: usually around a warm target."""
    visible = 255 * luminance(pair.visible)
    difference = pair.infrared.float() - visible
    # Without the coarse part, in which the sources differ nearly everywhere.
    coarse = F.avg_pool2d(difference[None], 31, stride=1, padding=15, count_include_pad=False)[0]
    importance = (difference - coarse).square()
    height, width = (max(1, round(DETAIL * side)) for side in visible.shape[1:])
    means = F.avg_pool2d(importance[None], (height, width), stride=1)[0, 0]
    margin = min(8, (min(means.shape) - 1) // 2)  # borders of warped images may be black
    rows, columns = (slice(margin, length - margin) for length in means.shape)
    place = int(means[rows, columns].argmax())
    top, left = (index + margin for index in divmod(place, means[rows, columns].shape[1]))
    return slice(top, top + height), slice(left, left + width)


def salient_windows(pairs: Iterable[Pair]) -> list[Window]:
    return [salient_window(pair) for pair in pairs]


def printable(title: str) -> str:
    """The title with escapes for what is not Unicode, which matplotlib cannot draw."""
    return title.encode("utf-8", "backslashreplace").decode()


def save_sheet(
    columns: Mapping[str, Sequence[Tensor]],
    windows: Sequence[Window],
    path: Path,
    *,
    cell_inches: float = 2.2,
) -> None:
    """Write columns of uint8 images (1 or 3, H, W) of the same scenes, each with a detail.

    Each scene's window is framed in the image and enlarged below it. Columns are narrower than
    `cell_inches` where the sheet would be taller than a screen.
    """
    shapes = [image.shape[1:] for image in next(iter(columns.values()))]
    ratios = [min(height / width, 1.6) for height, width in shapes]  # none fills the sheet alone
    room = (MAX_INCHES - (MAX_LINES + 1) * LINE_INCHES) / (2 * sum(ratios))
    cell_inches = max(min(cell_inches, room), MIN_CELL_INCHES)
    characters = round(CHARACTERS_AN_INCH * cell_inches)
    fill = partial(textwrap.fill, width=characters, max_lines=MAX_LINES, placeholder=" ...")
    titles = [fill(printable(title)) for title in columns]
    title_inches = (max(title.count("\n") for title in titles) + 2) * LINE_INCHES
    heights = [cell_inches * ratio for ratio in ratios for _ in range(2)]
    size = (cell_inches * len(columns), sum(heights) + title_inches)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH)
    axes = figure.subplots(len(heights), len(columns), squeeze=False, height_ratios=heights)
    top = 1 - title_inches / size[1]
    figure.subplots_adjust(left=0, right=1, bottom=0, top=top, wspace=0.02, hspace=0.02)
    for cells, title, images in zip(axes.T, titles, columns.values(), strict=True):
        place = {"ha": "center", "va": "bottom", "transform": cells[0].transAxes}
        cells[0].text(0.5, 1.04, title, **place, fontsize=FONT_SIZE, parse_math=False)
        for row, (image, (down, across)) in enumerate(zip(images, windows, strict=True)):
            both = image, image[:, down, across]
            for axis, shown in zip(cells[2 * row : 2 * row + 2], both, strict=True):
                axis.imshow(shown.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
                axis.set_axis_off()
            sides = (across.stop - across.start, down.stop - down.start)
            frame = Rectangle((across.start, down.start), *sides, fill=False, color="C1")
            cells[2 * row].add_patch(frame)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def save_loss_curves(histories: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw a panel per term of the loss, unweighted, with a line per training."""
    terms = list(next(iter(histories.values())))
    figure = Figure(figsize=(9, 7), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(2, -(-len(terms) // 2)).flat
    for panel, term in zip(panels, terms, strict=False):
        for history in histories.values():
            width = max(1, len(history[term]) // 10)  # a batch's loss is noisy
            panel.plot(np.convolve(history[term], np.full(width, 1 / width), mode="valid"))
        panel.set_title(term)
        panel.grid(alpha=0.3)
    figure.supxlabel("step; a tenth of them averaged")
    labels = [textwrap.shorten(printable(title), 100, placeholder=" ...") for title in histories]
    legend = figure.legend(figure.axes[0].lines, labels, loc="outside lower center")
    for text in legend.get_texts():
        text.set_parse_math(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
