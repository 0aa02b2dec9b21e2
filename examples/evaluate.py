"""Measure fused images by the quality measures of the field."""

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
Measure fused images by the quality measures of the field.

FUSED/street.png, of any image type, is compared with DIR/ir/street.* and DIR/vi/street.*; of
coloured images the luminance counts. Several FUSED, or --vs, are measured on the same pairs. An
image that cannot be measured is named and left out.
"""

#: Share of the means under resampling that an interval holds, and how often images are resampled.
CONFIDENCE, RESAMPLES = 0.95, 9999

DEFINITIONS = f"""\
measures, all on 8-bit grey levels from 0 to 255; higher is usually called better, but for Nabf:
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
           Bovik, IEEE TIP 2006); from {VIF_SIDE} pixels a side
  SSIM     structural similarity, Gaussian window, mean over both sources (Wang et al., IEEE TIP
           2004); by scikit-image
  MS-SSIM  the same on five scales (Wang et al., Asilomar 2003); from {MS_SSIM_SIDE} pixels a side
  PSNR     255 over the root mean square difference from both sources, in dB (Ma et al., Inf. Fusion
           2019)
  Qabf     share of the sources' edges that arrived, 0 to 1 (Xydeas & Petrovic, Electron. Lett.
           2000)
  Nabf     edges that no source has, 0 to 1, lower is better (Petrovic & Xydeas, ICCV 2005;
           Shreyamsha Kumar, SIViP 2013)

EN, SD, SF and AG look at the fused image alone and reward noise, embossing and stretched contrast
as well. Read them beside MI, VIF, SSIM and Qabf, and look at the images. The intervals of --vs are
percentiles of {RESAMPLES} bootstrap means; of fewer than about 20 images they are too narrow.

{LAYOUTS}
"""

CONVENTION = (
    "Measured as saved. fuse.py clips to [0, 1] and rounds to 8 bits; tables made of images that "
    "were stretched to the full range one by one show higher EN, SD, SF, AG and Qabf."
)

COLUMNS = (
    *("EN", "SD", "SF", "AG", "MI", "SCD", "CC"),
    *("VIF", "SSIM", "MS-SSIM", "PSNR", "Qabf", "Nabf"),
)
#: Images named in one line; --per-image has them all.
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
        "folders of fused images, one for each method",
        required=True,
        type=Path,
        nargs="+",
        metavar="FUSED",
    )
    add("--pairs", ": the sources", required=True)
    add(
        "--vs",
        "folder of another method; the differences of all others from it are shown with their "
        f"{CONFIDENCE:.0%} intervals".replace("%", "%%"),
        type=Path,
        metavar="FUSED",
    )
    add(
        "--per-image",
        "write the figures of every image there, as .csv or .json",
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
    """Print the means over all pairs that every method has fused.

    Raises:
        OSError, ValueError: if there is nothing to measure.
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
        raise ValueError("none of the images could be measured; the reasons are above")
    # Images by methods by measures.
    figures = np.array([[[row[name] for name in COLUMNS] for row in image] for image in rows])
    if options.per_image is not None:
        save_figures(options.per_image, methods, names, figures)
    report(methods, names, figures, paired=options.vs is not None)


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    Raises:
        ValueError: if nothing does.
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
        raise NotADirectoryError(f"there is no folder {folder}")
    images = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in READABLE and not path.name.startswith("."):
            name = path.relative_to(folder).with_suffix("").as_posix()
            images[unicodedata.normalize("NFC", name)].append(path)
    return images


def fused_by_all(
    found: Sequence[PairFiles], folders: Mapping[str, Mapping[str, object]]
) -> list[PairFiles]:
    """The pairs of which every folder has an image; says which are left out.

    Raises:
        ValueError: if there is none.
    """
    common = list(found)
    for folder, images in folders.items():
        missing = [files.name for files in found if files.name not in images]
        common = [files for files in common if files.name in images]
        if len(missing) == len(found):
            example = next(iter(images), "no image at all")
            raise ValueError(
                f"no image of {folder} has the name of a pair: there is {example}, expected is "
                f"{found[0].name}; name fused images like their sources"
            )
        if missing:
            print(f"not in {folder}, left out: {some(missing)}", file=sys.stderr)
    if not common:
        raise ValueError(f"no pair was fused by all of {', '.join(folders)}")
    if len(common) < len(found):
        print(f"{len(found) - len(common)} of {len(found)} pairs left out: not fused by all")
    return common


def measure(paths: Sequence[Path], pair: Pair) -> dict[str, float]:
    """All measures of a fused image.

    Raises:
        UnusablePairError: if it cannot be read, or does not go with its sources.
    """
    path, *others = paths
    if others:
        raise UnusablePairError(path, f"{others[0].name} has its name; leave one of them")
    try:
        fused = grey(read_image(path, stretch=False))
    except Exception as error:  # a broken file makes decoders raise nearly anything
        raise UnusablePairError(path, f"cannot be read: {error}") from error
    visible, infrared = grey(pair.visible), grey(pair.infrared)
    if fused.shape != visible.shape:
        (height, width), (rows, columns) = fused.shape, visible.shape
        raise UnusablePairError(
            path, f"has another size than its sources: {width} x {height}, not {columns} x {rows}"
        )
    images = (fused, visible, infrared)
    return metrics.evaluate(*images) | evaluate_further(*images)


def grey(image: torch.Tensor) -> Grey:
    """uint8 (1 or 3, H, W) -> uint8 array (H, W)."""
    return to_8bit(luminance(image))[0].numpy()


def report(
    methods: Sequence[str], names: Sequence[str], figures: np.ndarray, *, paired: bool
) -> None:
    """Print means and spreads and, if `paired`, how all methods differ from the last.

    Args:
        methods: as many as `figures` has in its second axis.
        names: of the images, the first axis; the third are `COLUMNS`.
        figures: NaN where a measure is not defined: such an image counts for no method.
        paired: whether the last method is there to be compared with.
    """
    means: list[list[str]] = [["", *methods]]
    differences: list[list[str]] = [["", *methods[:-1]]]
    for column, measure in enumerate(COLUMNS):
        values = figures[:, :, column]
        defined = np.isfinite(values).all(1)
        if not defined.all():
            missing = [name for name, is_there in zip(names, defined, strict=True) if not is_there]
            print(f"{measure} is not defined, and left out, for {some(missing)}", file=sys.stderr)
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
    """The mean of differences of the same images, with a bootstrap interval: images resampled."""
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
        random_state=np.random.default_rng(0),  # the same interval whenever it is computed
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
    """One row an image and method; where a measure is not defined, null or nothing."""
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
