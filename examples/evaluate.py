"""Measure fused images with the usual measures of infrared-visible fusion.

FUSED/street.png, of any type with 8 bits, is compared with DIR/ir/street.* and DIR/vi/street.*. The
luminance of colour images is used. Several FUSED folders are measured on the same pairs. Images
that cannot be measured are named and left out.
"""

import argparse
import csv
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while PyTorch is loaded

import numpy as np
from tqdm import tqdm

import metrics
import options
import pairs

CONVENTION = (
    "Images are measured as saved, by fuse.py clipped and rounded to 8 bits. Published tables of "
    "stretched images have higher EN, SD, SF, AG and Qabf."
)

#: By method, name of the image and measure.
Rows = dict[str, dict[str, dict[str, float]]]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.new_parser(__doc__, f"{metrics.DEFINITIONS}\n{pairs.LAYOUT}")
    text = "folders of fused images, one per method"
    options.add(parser, "--fused", text, type=Path, nargs="+", required=True, metavar="FUSED")
    options.add(parser, "--per-image", "write the measures of each image as CSV", type=Path)
    return parser.parse_args(arguments)


@options.errors_as_messages("evaluate")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the means over the pairs that all methods have fused."""
    chosen = parse(arguments)
    if chosen.per_image is not None:  # before the work, which may take an hour
        options.make_writable(chosen.per_image.parent, "--per-image")
    images = {
        str(folder): pairs.images_below(pairs.existing_folder(folder))[0] for folder in chosen.fused
    }
    folders = pairs.folders_of(chosen.pairs, chosen.infrared, chosen.visible)
    rows: Rows = {method: {} for method in images}
    for files in options.progress(pairs.find_pairs(folders), "measuring", "pair"):
        try:
            pair = pairs.read_pair(files)
            measured = [measure(method, there, pair) for method, there in images.items()]
        except pairs.UnusableImageError as problem:
            tqdm.write(f"left out {files.name}: {problem}", file=sys.stderr)
            continue
        for of_method, row in zip(rows.values(), measured, strict=True):
            of_method[files.name] = row
    if not any(rows.values()):
        raise ValueError(
            "no image could be measured; name images like their sources, see above, and pass each "
            "sentence's folder, such as OUT/*"
        )
    try:
        report(rows)
    finally:  # neither is lost where the other cannot be written
        if chosen.per_image is not None:
            save_rows(rows, chosen.per_image)


def measure(method: str, there: Mapping[str, Sequence[Path]], pair: pairs.Pair) -> dict[str, float]:
    """All measures of the fused image of that name; raises `pairs.UnusableImageError`."""
    paths = there.get(pair.name.casefold(), [])
    if len(paths) != 1:
        got = f"{len(paths)} images in {method} have its name" if paths else f"not in {method}"
        raise pairs.UnusableImageError(got)
    images = pairs.read_or_explain(paths[0], stretch=False), pair.visible
    fused, visible = (pairs.to_8bit(pairs.luminance(image)) for image in images)
    got, size = (f"{image.shape[2]} x {image.shape[1]}" for image in (fused, visible))
    if got != size:
        raise pairs.UnusableImageError(f"{paths[0]}: must have its sources' size {size}, got {got}")
    return metrics.evaluate(fused, visible, pair.infrared, further=True)


def report(rows: Rows) -> None:
    """Print means and standard deviations over the images where a measure is defined for all."""
    names = list(next(iter(rows.values())))
    lines = [["", *rows]]
    for measure in rows[lines[0][1]][names[0]]:
        values = np.array([[row[measure] for row in of.values()] for of in rows.values()])
        defined = np.isfinite(values).all(0)
        lines.append([measure, *(mean_and_spread(of_method[defined]) for of_method in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"means ± standard deviations over {len(names)} images; - where not defined")
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    print(CONVENTION, flush=True)


def mean_and_spread(values: np.ndarray) -> str:
    if len(values) == 0:
        return "-"
    digits = 3 if abs(values.mean()) >= 0.1 else 4
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def save_rows(rows: Rows, path: Path) -> None:
    """Write one row per image and method; measures that are not defined are empty."""
    as_text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with options.atomic_write(path) as temporary, open(temporary, "w", **as_text) as file:
        writer = csv.writer(file, lineterminator="\n")
        for method, of_method in rows.items():
            for name, row in of_method.items():
                if file.tell() == 0:
                    writer.writerow(["method", "image", *row])
                values = ("" if math.isnan(value) else value for value in row.values())
                writer.writerow([method, name, *values])


if __name__ == "__main__":
    main()
