"""Measure fused images with the usual measures of infrared-visible fusion.

FUSED/street.png, of any image type, is compared with DIR/ir/street.* and DIR/vi/street.*. The
luminance of colour images is used. Several FUSED folders are measured on the same pairs. Images
that cannot be measured are named and left out.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import metrics
import options
import pairs

CONVENTION = (
    "Images are measured as saved. fuse.py clips to [0, 1] and rounds to 8 bits. Published tables "
    "of images that were stretched to the full range have higher EN, SD, SF, AG and Qabf."
)


#: By method, name of the image and measure.
Rows = dict[str, dict[str, dict[str, float]]]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.new_parser(__doc__, f"{metrics.DEFINITIONS}\n{pairs.LAYOUT}")
    text = "folders of fused images, one per method"
    options.add(parser, "--fused", text, type=Path, nargs="+", required=True, metavar="FUSED")
    text = "write the measures of each image to this .csv or .json file"
    options.add(parser, "--per-image", text, type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.per_image and chosen.per_image.suffix.lower() not in (".csv", ".json"):
        parser.error(f"argument --per-image: must end in .csv or .json, got {chosen.per_image}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    with options.errors_as_messages("evaluate"):
        evaluate_folders(parse(arguments))


def evaluate_folders(chosen: argparse.Namespace) -> None:
    """Print the means over the pairs that all methods have fused."""
    if chosen.per_image is not None:  # before the work, which may take an hour
        options.make_writable(chosen.per_image.parent, "--per-image")
    images = {}
    for folder in chosen.fused:
        if not folder.is_dir():
            raise NotADirectoryError(f"there is no folder {folder}; check the path")
        images[str(folder)], _ = pairs.images_below(folder)
    folders = pairs.folders_of(chosen.pairs, chosen.infrared, chosen.visible)
    found = pairs.find_and_report_pairs(folders)
    common = fused_by_all(found, images)
    rows: Rows = {method: {} for method in images}
    for files in options.progress(common, "measuring", "pair"):
        try:
            pair = pairs.read_pair(files)
            new = {method: measure(there[key(files)], pair) for method, there in images.items()}
        except pairs.UnusableImageError as problem:
            tqdm.write(f"left out {files.name}: {problem}", file=sys.stderr)
            continue
        for method, row in new.items():
            rows[method][files.name] = row
    if not any(rows.values()):
        raise ValueError("no image could be measured; the reasons are above")
    report(rows)
    if chosen.per_image is not None:
        save_rows(rows, chosen.per_image)


def key(files: pairs.PairFiles) -> str:
    """The name of a pair as in `pairs.images_below`."""
    return files.name.casefold()


def fused_by_all(
    found: Sequence[pairs.PairFiles], images: Mapping[str, Mapping[str, object]]
) -> list[pairs.PairFiles]:
    """The pairs of which every folder has an image; prints which are left out."""
    for method, there in images.items():
        missing = [files.name for files in found if key(files) not in there]
        if len(missing) == len(found):
            raise ValueError(
                f"no image in {method} has the name of a pair: expected a name such as "
                f"{found[0].name}, got {next(iter(there), 'no image at all')}; name fused images "
                "like their sources"
            )
        if missing:
            print(f"not in {method}, left out: {options.some(missing)}", file=sys.stderr)
    common = [files for files in found if all(key(files) in there for there in images.values())]
    if not common:
        raise ValueError("no pair has a fused image in all folders; measure fewer folders")
    return common


def measure(paths: Sequence[Path], pair: pairs.Pair) -> dict[str, float]:
    """All measures of a fused image.

    Raises:
        pairs.UnusableImageError: it cannot be read, or its size is not that of its sources.
    """
    path, *others = paths
    if others:
        raise pairs.UnusableImageError(f"{path}: {others[0].name} has the same name; remove one")
    images = pairs.read_or_explain(path, stretch=False), pair.visible
    fused, visible = (pairs.to_8bit(pairs.luminance(image)) for image in images)
    if fused.shape != visible.shape:
        (height, width), (rows, columns) = fused.shape[1:], visible.shape[1:]
        raise pairs.UnusableImageError(
            f"{path}: must have the size of its sources, {columns} x {rows}, got {width} x {height}"
        )
    return metrics.evaluate(fused, visible, pair.infrared, further=True)


def report(rows: Rows) -> None:
    """Print means and standard deviations.

    An image for which a measure is not defined is left out of that measure for all methods.
    """
    names = list(next(iter(rows.values())))
    lines = [["", *rows]]
    for measure in rows[lines[0][1]][names[0]]:
        values = np.array([[row[measure] for row in of.values()] for of in rows.values()])
        defined = np.isfinite(values).all(0)
        if not defined.all():
            missing = [name for name, there in zip(names, defined, strict=True) if not there]
            print(f"{measure} is not defined for {options.some(missing)}", file=sys.stderr)
        lines.append([measure, *(mean_and_spread(of_method[defined]) for of_method in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"means ± standard deviations over {len(names)} images")
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    print(CONVENTION)


def mean_and_spread(values: np.ndarray) -> str:
    if len(values) == 0:
        return "-"
    digits = 3 if abs(values.mean()) >= 0.1 else 4
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def save_rows(rows: Rows, path: Path) -> None:
    """Write one row per image and method; measures that are not defined are null or empty."""
    table = [
        {"method": method, "image": name}
        | {measure: None if math.isnan(value) else value for measure, value in row.items()}
        for method, of_method in rows.items()
        for name, row in of_method.items()
    ]
    with (
        options.atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        if path.suffix.lower() == ".json":
            json.dump(table, file, indent=1)
        else:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
