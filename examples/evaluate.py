"""Measure fused images by the quality measures of the field."""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.image import visual_information_fidelity
from tqdm import tqdm

from parts.command_line import errors_as_messages
from parts.data.decoding import READABLE
from parts.data.images import luminance, read_image, to_8bit
from parts.data.pairs import LAYOUTS, Pair, PairFiles, UnusablePairError, find_pairs, read_pair
from parts.files import written_whole
from parts.measuring import metrics
from parts.measuring.metrics import Grey
from parts.pages import tables

OVERVIEW = """\
Measure fused images by the quality measures of the field.

FUSED/street.png, of any image type, is compared with DIR/ir/street.* and DIR/vi/street.*; of
coloured images the luminance counts. With --vs a second method is measured on the same pairs.
"""

DEFINITIONS = f"""\
measures, all on 8-bit grey levels from 0 to 255; higher is usually called better:
  EN    entropy of the grey levels in bits (Roberts et al., J. Appl. Rem. Sens. 2008)
  SD    standard deviation of the grey levels (Rao, Meas. Sci. Technol. 1997)
  SF    root mean square difference of neighbouring pixels (Eskicioglu & Fisher, IEEE Trans.
        Commun. 1995)
  AG    mean of sqrt((dx^2 + dy^2) / 2), central differences (Cui et al., Opt. Commun. 2015)
  MI    mutual information with a source in bits, summed over both (Qu et al., Electron. Lett. 2002)
  SCD   correlation of a source with the fused image less the other source, summed over both
        (Aslantas & Bendes, AEU 2015)
  VIF   visual information fidelity in the pixel domain, summed over both sources (Sheikh & Bovik,
        IEEE TIP 2006); by torchmetrics
  SSIM  structural similarity, Gaussian window, mean over both sources (Wang et al., IEEE TIP 2004);
        by scikit-image
  Qabf  share of the sources' edges that arrived, 0 to 1 (Xydeas & Petrovic, Electron. Lett. 2000)

EN, SD, SF and AG look at the fused image alone and reward noise, embossing and stretched contrast
as well. Read them beside MI, VIF, SSIM and Qabf, and look at the images.

{LAYOUTS}
"""

CONVENTION = (
    "Measured as saved. fuse.py clips to [0, 1] and rounds to 8 bits; tables made of images that "
    "were stretched to the full range one by one show higher EN, SD, SF, AG and Qabf."
)

COLUMNS = ("EN", "SD", "SF", "AG", "MI", "SCD", "VIF", "SSIM", "Qabf")
#: Pixels a side; below, the coarsest of VIF's four scales is empty.
VIF_SIDE = 41


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with errors_as_messages("evaluate"):
        evaluate_folders(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=OVERVIEW,
        epilog=DEFINITIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--fused", required=True, type=Path, metavar="FUSED", help="folder of fused images")
    add("--pairs", required=True, type=Path, metavar="DIR", help="their sources, laid out as below")
    add("--vs", type=Path, metavar="FUSED", help="folder of another method to compare with")
    add("--csv", type=Path, metavar="FILE", help="write the figures of every image there")
    return parser.parse_args(arguments)


def evaluate_folders(options: argparse.Namespace) -> None:
    """Print the means over all pairs that every method has fused.

    Raises:
        OSError, ValueError: if there is nothing to measure, or sizes do not match.
    """
    folders = [options.fused] if options.vs is None else [options.fused, options.vs]
    methods = labels(folders)
    fused = [find_images(folder) for folder in folders]
    found, _ = find_pairs(options.pairs)
    common = [files for files in found if all(files.name in images for images in fused)]
    if not common:
        places = " and ".join(map(str, folders))
        raise ValueError(f"no image of {places} has the name of a pair in {options.pairs}")
    if len(common) < len(found):
        print(f"{len(found) - len(common)} of {len(found)} pairs left out: not fused by all")

    rows: list[list[dict[str, float]]] = [[] for _ in methods]
    for pair in tqdm(
        read_pairs(common), total=len(common), desc="measuring", leave=False, disable=None
    ):
        for of_method, images in zip(rows, fused, strict=True):
            of_method.append(measure(images[pair.name], pair))
    if options.csv is not None:
        save_rows(options.csv, methods, [files.name for files in common], rows)
    means = {method: metrics.mean(row) for method, row in zip(methods, rows, strict=True)}
    if options.vs is not None:
        first, second = means.values()
        means["difference"] = {name: first[name] - second[name] for name in COLUMNS}
    print(f"means over {len(common)} images")
    print(tables.text_table(means))
    print(CONVENTION)


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
    raise ValueError("--fused and --vs are the same folder")


def find_images(folder: Path) -> dict[str, Path]:
    """The images below `folder` by their path in it, without extension."""
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no folder {folder}")
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in READABLE and not path.name.startswith(".")
    }


def read_pairs(files: Sequence[PairFiles]) -> Iterator[Pair]:
    for item in files:
        try:
            yield read_pair(item)
        except UnusablePairError as problem:
            raise ValueError(f"cannot measure against {problem}") from problem


def measure(path: Path, pair: Pair) -> dict[str, float]:
    """All measures of a fused image, in the order of `COLUMNS`."""
    try:
        fused = grey(read_image(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    visible, infrared = grey(pair.visible), grey(pair.infrared)
    if fused.shape != visible.shape:
        raise ValueError(f"{path} has another size than its sources")
    row = metrics.evaluate(fused, visible, infrared)
    row["VIF"] = fidelity(fused, visible) + fidelity(fused, infrared)
    return {name: row[name] for name in COLUMNS}


def fidelity(fused: Grey, source: Grey) -> float:
    """VIF: how much of the information that an eye gets from `source` it gets from `fused`.

    1 if they are equal, 0 if nothing is left, above 1 where contrast was added. In the pixel
    domain, on four scales: Sheikh and Bovik, "Image information and visual quality", IEEE
    Transactions on Image Processing 15(2), 2006, and the code that they published since.

    Raises:
        ValueError: if the images are smaller than 41 x 41 pixels.
    """
    if min(fused.shape) < VIF_SIDE:
        height, width = fused.shape
        raise ValueError(
            f"VIF needs images of at least {VIF_SIDE} x {VIF_SIDE} pixels, got {width} x {height}"
        )
    images = (torch.from_numpy(image.astype(np.float64))[None, None] for image in (fused, source))
    return float(visual_information_fidelity(*images))


def grey(image: torch.Tensor) -> Grey:
    """uint8 (1 or 3, H, W) -> uint8 array (H, W)."""
    return to_8bit(luminance(image))[0].numpy()


def save_rows(
    path: Path,
    methods: Sequence[str],
    names: Sequence[str],
    rows: Sequence[Sequence[dict[str, float]]],
) -> None:
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["method", "image", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        for method, of_method in zip(methods, rows, strict=True):
            for name, row in zip(names, of_method, strict=True):
                writer.writerow({"method": method, "image": name} | row)


if __name__ == "__main__":
    main()
