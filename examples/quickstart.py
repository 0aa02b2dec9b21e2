"""Train a small network to fuse infrared and visible images the way a sentence says."""

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import metrics
import report
from choices import (
    ENCODERS,
    build_criterion,
    choose_device,
    choose_pairs,
    make_writable,
    warnings_as_notes,
)
from clip_fusion_loss import FusionObjective, __version__
from command_line import errors_as_messages, whole_number
from files import written_whole
from fusing import average, fuse
from images import luminance, save_image, to_8bit, with_chroma_of
from networks.densefuse import DenseFuse
from networks.residual import AverageResidual
from pairs import LAYOUTS, Pair, spread
from training import train

OVERVIEW = """\
Train a small network to fuse infrared and visible images the way a sentence says.

Without options it fuses rendered scenes, guided by the small CLIP that comes with the package:
about two minutes on two CPU cores, nothing to download. What comes out lies in the --out folder:

  contact_sheet.png  infrared, visible, average, fused before and after training
  loss_curves.png    the terms of the loss, step by step
  fused/             all fused images in full size, a folder for each prompt
  metrics.json       the usual quality measures, means over all pairs
"""

EXAMPLES = f"""\
examples:
  python examples/quickstart.py
  python examples/quickstart.py --pairs DIR
  python examples/quickstart.py --prompt "a sharp bright image" --prompt "a blurry dark image"

{LAYOUTS}
"""

SHEET_ROWS = 5

Fusion = Callable[[Pair], Tensor]


@dataclass
class Run:
    """One training, as written to metrics.json."""

    prompt: str
    seed: int
    metrics: dict[str, float]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with errors_as_messages("quickstart"):
        quickstart(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=OVERVIEW,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pairs", type=Path, metavar="DIR", help="your images, laid out as shown below")
    add(
        "--max-pairs",
        type=whole_number,
        default=200,
        metavar="N",
        help="use at most N pairs, spread evenly over the folder (default: %(default)s)",
    )
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what the fused image should be; repeat it to compare prompts, each with a training "
        f"of its own from the same start (default: {FusionObjective().fused[0]})",
    )
    add(
        "--out",
        type=Path,
        default=Path("quickstart_output"),
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    add(
        "--steps",
        type=whole_number,
        default=300,
        metavar="N",
        help="training steps a prompt; fewer than some 200 show little (default: %(default)s)",
    )
    add(
        "--seed",
        type=partial(whole_number, minimum=0),
        default=0,
        metavar="N",
        help="random start of the network, the crops and the patches (default: %(default)s)",
    )
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add(
        "--encoder",
        default="tiny",
        help=f"the CLIP that judges, all but the first slow without a GPU: {ENCODERS} "
        "(default: %(default)s)",
    )
    return parser.parse_args(arguments)


def quickstart(options: argparse.Namespace) -> None:
    device = choose_device(options.device)
    pairs = choose_pairs(options.pairs, options.max_pairs)
    generator = torch.Generator()
    prompts = list(dict.fromkeys(options.prompt or FusionObjective().fused))
    with warnings_as_notes():
        criterion = build_criterion(options.encoder, generator).to(device)
        for prompt in prompts:  # an unusable one shows itself now, not after an hour's training
            criterion.set_objective(prompt)
    out = make_writable(options.out)
    print(f"{len(pairs)} pairs, {len(prompts)} x {options.steps} training steps on {device}")

    def new_network() -> AverageResidual:
        torch.manual_seed(options.seed)
        return AverageResidual(DenseFuse()).to(device)

    def fusion_by(network: AverageResidual) -> Fusion:
        return partial(fuse, network, reach=DenseFuse.REACH, device=device)

    shown = spread(len(pairs), SHEET_ROWS)
    untrained = fusion_by(new_network())
    average_metrics, average_images = fuse_all(average, pairs, shown)
    columns = {
        "infrared": [pairs[i].infrared for i in shown],
        "visible": [pairs[i].visible for i in shown],
        "average": average_images,
        "before training": [with_chroma_of(pairs[i].visible, untrained(pairs[i])) for i in shown],
    }
    runs: list[Run] = []
    histories: dict[str, dict[str, list[float]]] = {}
    for number, prompt in enumerate(prompts, start=1):
        criterion.set_objective(prompt)
        generator.manual_seed(options.seed)
        network = new_network()
        start = time.perf_counter()
        histories[prompt] = train(
            network, criterion, pairs, steps=options.steps, seed=options.seed, device=device
        )
        seconds = round(time.perf_counter() - start, 1)
        folder = out / "fused" / folder_name(number, prompt)
        quality, images = fuse_all(fusion_by(network), pairs, shown, folder)
        runs.append(Run(prompt, options.seed, quality, seconds))
        columns[f'after training: "{prompt}"'] = images

    report.save_contact_sheet(columns, out / "contact_sheet.png")
    report.save_loss_curves(histories, out / "loss_curves.png")
    settings = {
        "version": __version__,
        "encoder": options.encoder,
        "steps": options.steps,
        "pairs": [pair.name for pair in pairs],
    }
    save_metrics(settings, average_metrics, runs, out / "metrics.json")
    rows = {"average": average_metrics} | {f'"{run.prompt}"': run.metrics for run in runs}
    print(report.table(rows))
    print("What is measured: python examples/evaluate.py --help")
    for name in ("contact_sheet.png", "loss_curves.png", "fused", "metrics.json"):
        print(out / name)


def fuse_all(
    fusion: Fusion, pairs: Sequence[Pair], shown: Sequence[int], folder: Path | None = None
) -> tuple[dict[str, float], list[Tensor]]:
    """Fuse all pairs, measure them, and write them to `folder` if there is one.

    Returns the mean metrics and the images of the pairs `shown`, which, like those written, have
    the colours of the visible image; measured are the grey ones.
    """
    quality = []
    images = []
    for index, pair in enumerate(
        tqdm(pairs, desc="fusing", unit="pair", leave=False, disable=None)
    ):
        grey = fusion(pair)
        sources = to_8bit(luminance(pair.visible)), pair.infrared
        quality.append(metrics.evaluate(*(image[0].numpy() for image in (grey, *sources))))
        image = with_chroma_of(pair.visible, grey)
        if index in shown:
            images.append(image)
        if folder is not None:
            save_image(image, folder / f"{pair.name}.png")
    return metrics.mean(quality), images


def folder_name(number: int, prompt: str) -> str:
    """Readable, safe in any file system and, by its number, unique."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-")
    return f"{number:02d}-{words}".strip("-")


def save_metrics(
    settings: dict[str, object], average_metrics: dict[str, float], runs: Sequence[Run], path: Path
) -> None:
    content = {
        "settings": settings,
        "average": average_metrics,
        "runs": [asdict(run) for run in runs],
    }
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
