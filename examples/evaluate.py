"""Evaluate fused images with the usual metrics of infrared-visible fusion."""

import argparse
import csv
import json
import math
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from parts.command_line import Parser, add_option, errors_as_messages, progress
from parts.data.decoding import READABLE
from parts.data.images import luminance, read_image, to_8bit
from parts.data.pairs import (
    LAYOUTS,
    Pair,
    PairFiles,
    UnusablePairError,
    find_pairs_aloud,
    read_pair,
)
from parts.files import written_whole
from parts.measuring import metrics
from parts.measuring.further import MS_SSIM_SIDE, VIF_SIDE, evaluate_further
from parts.measuring.metrics import Grey

OVERVIEW = """\
Evaluate fused images with the usual metrics of infrared-visible fusion.

FUSED/street.png, of any image type, is compared with DIR/ir/street.* and DIR/vi/street.*. The
luminance of colour images is used. Several FUSED folders, and --vs, are evaluated on the same
pairs. Images that cannot be evaluated are named and left out.
"""

#: Confidence level of the bootstrap intervals, and number of resamples.
CONFIDENCE, RESAMPLES = 0.95, 9999

DEFINITIONS = f"""\
metrics, all on 8-bit grey levels from 0 to 255; higher counts as better, except for Nabf:
  EN       entropy of the grey levels in bits (Roberts et al., J. Appl. Rem. Sens. 2008)
  SD       standard deviation of the grey levels (Rao, Meas. Sci. Technol. 1997)
  SF       root mean square difference of neighbouring pixels (Eskicioglu & Fisher, IEEE Trans.
           Commun. 1995)
  AG       mean of sqrt((dx^2 + dy^2) / 2), central differences (Cui et al., Opt. Commun. 2015)
  MI       mutual information with a source in bits, summed over both (Qu et al., Electron. Lett.
           2002)
  SCD      correlation of a source with the fused image less the other source, summed over both
           (Aslantas & Bendes, AEU 2015)
  CC       correlation with a source, mean over both (Ma et al., Inf. Fusion 2019)
  VIF      visual information fidelity in the pixel domain, summed over both sources (Sheikh &
           Bovik, IEEE TIP 2006); needs at least {VIF_SIDE} pixels per side
  SSIM     structural similarity, Gaussian window, mean over both sources (Wang et al., IEEE TIP
           2004); by scikit-image
  MS-SSIM  the same on five scales (Wang et al., Asilomar 2003); needs at least {MS_SSIM_SIDE}
           pixels per side
  PSNR     255 over the root mean square difference from both sources, in dB (Ma et al., Inf. Fusion
           2019)
  Qabf     share of the sources' edges that the fused image has, 0 to 1 (Xydeas & Petrovic,
           Electron. Lett. 2000)
  Nabf     edges of the fused image that no source has, 0 to 1, lower is better (Petrovic & Xydeas,
           ICCV 2005; Shreyamsha Kumar, SIViP 2013)

EN, SD, SF and AG use the fused image alone and also reward noise, embossing and stretched contrast.
Compare them with MI, VIF, SSIM and Qabf, and look at the images. The intervals of --vs are
percentiles of {RESAMPLES} bootstrap means; with fewer than about 20 images they are too narrow.

{LAYOUTS}
"""

CONVENTION = (
    "Images are evaluated as saved. fuse.py clips to [0, 1] and rounds to 8 bits. Published tables "
    "of images that were stretched to the full range have higher EN, SD, SF, AG and Qabf."
)

COLUMNS = (
    *("EN", "SD", "SF", "AG", "MI", "SCD", "CC"),
    *("VIF", "SSIM", "MS-SSIM", "PSNR", "Qabf", "Nabf"),
)
#: Images named in one line at most; the file of --per-image has all.
NAMED = 10


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with errors_as_messages("evaluate"):
        evaluate_folders(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(OVERVIEW, DEFINITIONS)
    add = partial(add_option, parser)
    add(
        "--fused",
        "folders of fused images, one per method",
        required=True,
        type=Path,
        nargs="+",
        metavar="FUSED",
    )
    add("--pairs", ": the sources", required=True)
    add(
        "--vs",
        "folder of a reference method; the differences of the others from it are shown with "
        f"{CONFIDENCE:.0%} intervals".replace("%", "%%"),
        type=Path,
        metavar="FUSED",
    )
    add(
        "--per-image",
        "write the metrics of each image to this .csv or .json file",
        type=table_file,
        metavar="FILE",
    )
    return parser.parse_args(arguments)


def table_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".csv", ".json"):
        raise argparse.ArgumentTypeError(f"must end in .csv or .json, got {text}")
    return path


def evaluate_folders(options: argparse.Namespace) -> None:
    """Print the means over the pairs that all methods have fused.

    Raises:
        OSError, ValueError: there is nothing to evaluate.
    """
    folders = [*options.fused, *([] if options.vs is None else [options.vs])]
    methods = labels(folders)
    fused = [find_images(folder) for folder in folders]
    found = find_pairs_aloud(options.pairs)
    common = fused_by_all(found, dict(zip(map(str, folders), fused, strict=True)))
    names, rows = [], []
    for files in progress(common, "measuring", "pair"):
        try:
            pair = read_pair(files)
            rows.append([measure(images[files.name], pair) for images in fused])
            names.append(files.name)
        except UnusablePairError as problem:
            tqdm.write(f"left out {files.name}: {problem}", file=sys.stderr)
    if not rows:
        raise ValueError("no image could be evaluated; the reasons are above")
    # Images by methods by measures.
    figures = np.array([[[row[name] for name in COLUMNS] for row in image] for image in rows])
    if options.per_image is not None:
        save_figures(options.per_image, methods, names, figures)
    report(methods, names, figures, paired=options.vs is not None)


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different.

    Raises:
        ValueError: two paths are equal.
    """
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(parts[-length:]) for parts in paths]
        if len(set(ends)) == len(ends):
            return ends
    raise ValueError("two of the folders of --fused and --vs are the same folder; leave one out")


def find_images(folder: Path) -> dict[str, list[Path]]:
    """The images below `folder` by their path in it, without extension."""
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no folder {folder}; check the path")
    images = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in READABLE and not path.name.startswith("."):
            name = path.relative_to(folder).with_suffix("").as_posix()
            images[unicodedata.normalize("NFC", name)].append(path)
    return images


def fused_by_all(
    found: Sequence[PairFiles], folders: Mapping[str, Mapping[str, object]]
) -> list[PairFiles]:
    """The pairs of which every folder has an image; prints which are left out.

    Raises:
        ValueError: there are none.
    """
    common = list(found)
    for folder, images in folders.items():
        missing = [files.name for files in found if files.name not in images]
        common = [files for files in common if files.name in images]
        if len(missing) == len(found):
            example = next(iter(images), "no image at all")
            raise ValueError(
                f"no image in {folder} has the name of a pair: expected a name such as "
                f"{found[0].name}, got {example}; name fused images like their sources"
            )
        if missing:
            print(f"not in {folder}, left out: {some(missing)}", file=sys.stderr)
    if not common:
        raise ValueError(
            f"no pair has a fused image in all of {', '.join(folders)}; evaluate fewer folders"
        )
    if len(common) < len(found):
        print(f"{len(found) - len(common)} of {len(found)} pairs left out: not in all folders")
    return common


def measure(paths: Sequence[Path], pair: Pair) -> dict[str, float]:
    """All metrics of a fused image.

    Raises:
        UnusablePairError: it cannot be read, or its size is not that of its sources.
    """
    path, *others = paths
    if others:
        raise UnusablePairError(path, f"{others[0].name} has the same name; remove one of them")
    try:
        fused = grey(read_image(path, stretch=False))
    except Exception as error:  # a broken file makes decoders raise nearly anything
        raise UnusablePairError(path, f"cannot be read: {error}") from error
    visible, infrared = grey(pair.visible), grey(pair.infrared)
    if fused.shape != visible.shape:
        (height, width), (rows, columns) = fused.shape, visible.shape
        raise UnusablePairError(
            path,
            f"must have the size of its sources, {columns} x {rows}, got {width} x {height}",
        )
    images = (fused, visible, infrared)
    return metrics.evaluate(*images) | evaluate_further(*images)


def grey(image: torch.Tensor) -> Grey:
    """uint8 (1 or 3, H, W) -> uint8 array (H, W)."""
    return to_8bit(luminance(image))[0].numpy()


def report(
    methods: Sequence[str], names: Sequence[str], figures: np.ndarray, *, paired: bool
) -> None:
    """Print means and standard deviations and, if `paired`, differences from the last method.

    Args:
        methods: M names.
        names: names of the N images.
        figures: (N, M, `COLUMNS`) metrics; NaN where one is not defined. Such an image is left out
            of that metric for all methods.
        paired: whether the last method is the reference.
    """
    means: list[list[str]] = [["", *methods]]
    differences: list[list[str]] = [["", *methods[:-1]]]
    for column, measure in enumerate(COLUMNS):
        values = figures[:, :, column]
        defined = np.isfinite(values).all(1)
        if not defined.all():
            missing = [name for name, is_there in zip(names, defined, strict=True) if not is_there]
            print(f"{measure} is not defined for {some(missing)}; left out", file=sys.stderr)
        values = values[defined].T
        means.append([measure, *(mean_and_spread(of_method) for of_method in values)])
        if paired:
            *others, last = values
            differences.append([measure, *(difference(method - last) for method in others)])
    print(f"means ± standard deviations over {len(names)} images")
    print("\n".join(aligned(means)))
    if paired:
        print(f"\ndifferences from {methods[-1]}, with {CONFIDENCE:.0%} intervals of the mean")
        print("\n".join(aligned(differences)))
    print(CONVENTION)


def mean_and_spread(values: np.ndarray) -> str:
    if len(values) == 0:
        return "-"
    shown = digits(values)
    spread = f" ± {values.std(ddof=1):.{shown}f}" if len(values) > 1 else ""
    return f"{values.mean():.{shown}f}{spread}"


def difference(values: np.ndarray) -> str:
    """The mean of differences per image, with a bootstrap interval over images."""
    if len(values) == 0:
        return "-"
    shown = digits(values)
    mean = f"{values.mean():+.{shown}f}"
    if len(values) == 1:  # nothing to resample
        return mean
    low, high = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),  # reproducible intervals
    ).confidence_interval
    return f"{mean} [{low:+.{shown}f}, {high:+.{shown}f}]"


def digits(values: np.ndarray) -> int:
    return 3 if abs(values.mean()) >= 0.1 else 4


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join([first, *others]).rstrip()


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def save_figures(
    path: Path, methods: Sequence[str], names: Sequence[str], figures: np.ndarray
) -> None:
    """Write one row per image and method; metrics that are not defined are null or empty."""
    rows = [
        {"method": method, "image": name}
        | {
            measure: None if math.isnan(value) else value
            for measure, value in zip(COLUMNS, of_method.tolist(), strict=True)
        }
        for index, method in enumerate(methods)
        for name, of_method in zip(names, figures[:, index], strict=True)
    ]
    with (
        written_whole(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        if path.suffix.lower() == ".json":
            json.dump(rows, file, indent=1)
        else:
            writer = csv.DictWriter(file, ["method", "image", *COLUMNS], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
