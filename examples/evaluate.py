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
from pairs import (
    LAYOUT,
    Pair,
    PairFiles,
    UnusableImageError,
    find_and_report_pairs,
    folders_of,
    images_below,
    luminance,
    read_or_explain,
    read_pair,
    to_8bit,
)

CONVENTION = (
    "Images are measured as saved. fuse.py clips to [0, 1] and rounds to 8 bits. Published tables "
    "of images that were stretched to the full range have higher EN, SD, SF, AG and Qabf."
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.new_parser(__doc__, f"{metrics.DEFINITIONS}\n{LAYOUT}")
    parser.add_argument(
        "--fused",
        required=True,
        type=Path,
        nargs="+",
        metavar="FUSED",
        help="folders of fused images, one per method",
    )
    options.add_pairs(parser)
    text = "write the measures of each image to this .csv or .json file"
    parser.add_argument("--per-image", type=Path, metavar="FILE", help=text)
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
    methods = labels(chosen.fused)
    images = {}
    for method, folder in zip(methods, chosen.fused, strict=True):
        if not folder.is_dir():
            raise NotADirectoryError(f"there is no folder {folder}; check the path")
        images[method], _ = images_below(folder)
    found = find_and_report_pairs(folders_of(chosen.pairs, chosen.infrared, chosen.visible))
    common = fused_by_all(found, images)
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    names = []
    for files in options.progress(common, "measuring", "pair"):
        try:
            pair = read_pair(files)
            new = {method: measure(images[method][files.name], pair) for method in methods}
        except UnusableImageError as problem:
            tqdm.write(f"left out {files.name}: {problem}", file=sys.stderr)
            continue
        names.append(files.name)
        for method, row in new.items():
            rows[method].append(row)
    if not names:
        raise ValueError("no image could be measured; the reasons are above")
    report(rows, names)
    if chosen.per_image is not None:
        save_rows(rows, names, chosen.per_image)


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(parts[-length:]) for parts in paths]
        if len(set(ends)) == len(ends):
            return ends
    raise ValueError("two of the folders of --fused are the same folder; leave one out")


def fused_by_all(
    found: Sequence[PairFiles], images: Mapping[str, Mapping[str, object]]
) -> list[PairFiles]:
    """The pairs of which every folder has an image; prints which are left out."""
    common = list(found)
    for method, of_method in images.items():
        missing = [files.name for files in found if files.name not in of_method]
        common = [files for files in common if files.name in of_method]
        if len(missing) == len(found):
            example = next(iter(of_method), "no image at all")
            raise ValueError(
                f"no image in {method} has the name of a pair: expected a name such as "
                f"{found[0].name}, got {example}; name fused images like their sources"
            )
        if missing:
            print(f"not in {method}, left out: {options.some(missing)}", file=sys.stderr)
    if not common:
        raise ValueError("no pair has a fused image in all folders; measure fewer folders")
    if len(common) < len(found):
        print(f"{len(found) - len(common)} of {len(found)} pairs left out: not in all folders")
    return common


def measure(paths: Sequence[Path], pair: Pair) -> dict[str, float]:
    """All measures of a fused image.

    Raises:
        UnusableImageError: it cannot be read, or its size is not that of its sources.
    """
    path, *others = paths
    if others:
        raise UnusableImageError(f"{path}: {others[0].name} has the same name; remove one of them")
    fused, visible = (
        to_8bit(luminance(image)) for image in (read_or_explain(path, stretch=False), pair.visible)
    )
    if fused.shape != visible.shape:
        (height, width), (rows, columns) = fused.shape[1:], visible.shape[1:]
        raise UnusableImageError(
            f"{path}: must have the size of its sources, {columns} x {rows}, got {width} x {height}"
        )
    return metrics.evaluate(fused, visible, pair.infrared, further=True)


def report(rows: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str]) -> None:
    """Print means and standard deviations.

    An image for which a measure is not defined is left out of that measure for all methods.
    """
    lines = [["", *rows]]
    for measure in next(iter(rows.values()))[0]:
        values = np.array([[row[measure] for row in of_method] for of_method in rows.values()])
        defined = np.isfinite(values).all(0)
        if not defined.all():
            missing = [name for name, there in zip(names, defined, strict=True) if not there]
            print(f"{measure} is not defined for {options.some(missing)}", file=sys.stderr)
        lines.append([measure, *(mean_and_spread(of_method[defined]) for of_method in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"means ± standard deviations over {len(names)} images")
    for line in lines:
        cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(CONVENTION)


def mean_and_spread(values: np.ndarray) -> str:
    if len(values) == 0:
        return "-"
    digits = 3 if abs(values.mean()) >= 0.1 else 4
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def save_rows(
    rows: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str], path: Path
) -> None:
    """Write one row per image and method; measures that are not defined are null or empty."""
    table = [
        {"method": method, "image": name}
        | {key: None if math.isnan(value) else value for key, value in row.items()}
        for method, of_method in rows.items()
        for name, row in zip(names, of_method, strict=True)
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
