"""Pictures of the pairs of --show, fused by several trials."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from parts.data.images import luminance, to_8bit
from parts.measuring.trials import Bench, Trial
from parts.pages import sheets

#: Number of pairs of --show, which are measured too.
SHOWN_PAIRS = 5

#: Indices of those in the pictures.
PICTURED = (0, 3, 4)

#: Height of an image in the pictures.
SHOWN_INCHES = 1.3

CAPTION = "*Beside each image is its framed detail, enlarged.*"
CAPTION_BELOW = CAPTION.replace("Beside", "Below")


def picture(bench: Bench, trials: Mapping[str, Trial], path: Path) -> list[str]:
    """Write a row of the shown pairs for each trial; returns the Markdown for it, or nothing."""
    if not bench.shown:
        return []
    rows, windows = shown_groups(bench, trials, PICTURED)
    sheets.save_sheet(rows, windows, path, cell_inches=SHOWN_INCHES, as_rows=True)
    names = ", ".join(rows).replace('"', "'")
    return [f"![From top to bottom: {names}]({path.parent.name}/{path.name})", CAPTION]


def shown_groups(
    bench: Bench, trials: Mapping[str, Trial], indices: Sequence[int]
) -> tuple[dict[str, list[Tensor]], list[sheets.Window]]:
    """Sources and fused images of some shown pairs by title, and their details."""
    indices = within(bench, indices)
    pairs = [bench.shown[index] for index in indices]
    visible = [to_8bit(luminance(pair.visible)) for pair in pairs]
    groups = {"infrared": [pair.infrared for pair in pairs], "visible": visible}
    for name, trial in trials.items():
        images = bench.shown_images(trial)
        groups[name] = [images[index] for index in indices]
    return groups, sheets.salient_windows(pairs)


def within(bench: Bench, indices: Sequence[int]) -> list[int]:
    """`indices`, limited to the number of shown pairs."""
    return sorted({min(index, len(bench.shown) - 1) for index in indices})
