"""Sheets of images: the same scenes, fused in several ways, each with an enlarged detail."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from parts.data.images import luminance, to_8bit
from parts.data.pairs import Pair
from parts.files import written_whole

DOTS_PER_INCH = 140

#: A sheet is at most as tall as a screen, 1000 pixels, unless its images would be mere specks.
MAX_INCHES = 1000 / DOTS_PER_INCH
MIN_CELL_INCHES = 0.7

#: Titles: their size in points, how many characters go into an inch, and how many lines they have.
FONT_SIZE = 9
LINE_INCHES = 1.2 * FONT_SIZE / 72
CHARACTERS_AN_INCH = 13
MAX_LINES = 4

#: A detail shows this share of the image's width and height.
DETAIL = 0.3

Window = tuple[slice, slice]


def salient_window(visible: Tensor, infrared: Tensor) -> Window:
    """The window in which fine details of the sources differ most: usually around a warm target.

    Takes uint8 images (1, H, W); the window has the share `DETAIL` of their height and width.
    """
    return _least(-_fine(infrared.float() - visible.float()).square())


def darkest_window(visible: Tensor, infrared: Tensor) -> Window:
    """Where the visible image is darkest; see `salient_window`."""
    return _least(visible.float())


def sky_window(visible: Tensor, infrared: Tensor) -> Window:
    """Where the upper half of the visible image has the least texture; see `salient_window`."""
    texture = _fine(visible.float()).square()
    texture[:, visible.shape[1] // 2 :] = texture.max()
    return _least(texture)


def _fine(image: Tensor) -> Tensor:
    """What is smaller than some thirty pixels."""
    return image - F.avg_pool2d(image, 31, stride=1, padding=15, count_include_pad=False)


def _least(values: Tensor) -> Window:
    """The window with the least mean of (1, H, W) values."""
    height, width = (max(8, round(DETAIL * side)) for side in values.shape[1:])
    means = F.avg_pool2d(values, (height, width), stride=1)[0]
    # Away from the border, where many images have a frame or a time stamp.
    margin = min(8, (min(means.shape) - 1) // 2)
    rows, columns = (slice(margin, length - margin) for length in means.shape)
    means = means[rows, columns]
    place = int(means.argmin())
    top, left = (index + margin for index in divmod(place, means.shape[1]))
    return slice(top, top + height), slice(left, left + width)


def salient_windows(pairs: Iterable[Pair]) -> list[Window]:
    return [salient_window(to_8bit(luminance(pair.visible)), pair.infrared) for pair in pairs]


def save_sheet(
    groups: Mapping[str, Sequence[Tensor]],
    windows: Sequence[Window],
    path: Path,
    *,
    cell_inches: float = 2.4,
    as_rows: bool = False,
) -> None:
    """Write groups of uint8 images (1 or 3, H, W) of the same scenes, each with an enlarged detail.

    Args:
        groups: images by title; each group is a column, or a row if `as_rows`.
        windows: the detail of each scene. It is framed in the image and enlarged below it, or to
            its right if `as_rows`.
        path: the file to write.
        cell_inches: width of a column, or height of a row; less where the sheet would become
            taller than a screen.
    """
    shapes = [image.shape[1:] for image in next(iter(groups.values()))]
    ratios = [width / height if as_rows else height / width for height, width in shapes]
    ratios = [min(ratio, 1.6) for ratio in ratios]  # none may fill the sheet alone
    label_inches = 1.5 if as_rows else (MAX_LINES + 1) * LINE_INCHES
    room = MAX_INCHES / len(groups) if as_rows else (MAX_INCHES - label_inches) / (2 * sum(ratios))
    cell_inches = max(min(cell_inches, room), MIN_CELL_INCHES)
    characters = round(CHARACTERS_AN_INCH * (label_inches if as_rows else cell_inches))
    labels = [
        textwrap.fill(title, characters, max_lines=MAX_LINES, placeholder=" ...")
        for title in groups
    ]
    if not as_rows:
        label_inches = (max(label.count("\n") for label in labels) + 2) * LINE_INCHES
    # Whole image and detail alternate along the scenes' axis.
    lengths = [cell_inches * ratio for ratio in ratios for _ in range(2)]
    along, across = sum(lengths), cell_inches * len(groups)
    size = (along + label_inches, across) if as_rows else (across, along + label_inches)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH)
    shape = (len(groups), len(lengths)) if as_rows else (len(lengths), len(groups))
    cells = {"width_ratios" if as_rows else "height_ratios": lengths}
    axes = figure.subplots(*shape, squeeze=False, **cells)
    edge = label_inches / size[0] if as_rows else 1 - label_inches / size[1]
    figure.subplots_adjust(
        left=edge if as_rows else 0, right=1, bottom=0, top=1 if as_rows else edge,
        wspace=0.02, hspace=0.02,
    )  # fmt: skip
    lines = axes if as_rows else axes.T
    for line, label, images in zip(lines, labels, groups.values(), strict=True):
        place = {"x": -0.05, "y": 0.5, "ha": "right", "va": "center"}
        if not as_rows:
            place = {"x": 0.5, "y": 1.04, "ha": "center", "va": "bottom"}
        line[0].text(
            **place, s=label, transform=line[0].transAxes, fontsize=FONT_SIZE, parse_math=False
        )
        for whole, detail, image, window in zip(
            line[::2], line[1::2], images, windows, strict=True
        ):
            for axis, shown in ((whole, image), (detail, image[(slice(None), *window)])):
                axis.imshow(shown.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
                axis.set_axis_off()
            rows, columns = window
            frame = (columns.start, rows.start)
            sides = (columns.stop - columns.start, rows.stop - rows.start)
            whole.add_patch(Rectangle(frame, *sides, fill=False, color="C1"))
    with written_whole(path) as temporary:
        figure.savefig(temporary)
