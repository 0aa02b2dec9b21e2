"""Train a small network to fuse infrared and visible images as a sentence describes.

Without options it trains on five real pairs of the TNO data set (A. Toet, CC BY 4.0), with the
bundled CLIP: once without language and once for each of two sentences.
This takes one to two minutes on two CPU cores, without a download. The --out folder then holds:

  contact_sheet.png  the sources, a column without language, and one per sentence
  loss_curves.png    the terms of the loss per step
  fused/             all fused images in full size, one folder per sentence
  metrics.json       the usual measures, means over all pairs
"""

import argparse
import json
import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while PyTorch is loaded
    print("loading PyTorch", file=sys.stderr, flush=True)  # it takes seconds

import torch
from torch import Tensor

import metrics
import options
import pairs
import sheets
from clip_fusion_loss import FusionObjective, __version__
from networks.unet import FusionUNet
from training import build_criterion, fuse_with, train, with_and_without

EXAMPLES = f"""\
examples:
  python examples/quickstart.py
  python examples/quickstart.py --prompt "a bright image" --prompt "a blurry image"
  python examples/quickstart.py --prompt "a clear image" --opposite "a bright image"
  python examples/quickstart.py --pairs DIR --steps 300

{pairs.LAYOUT}
"""

PROMPTS = (*FusionObjective().fused, "a dark image")
NO_LANGUAGE = "without language"
SHEET_ROWS = 3


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.new_parser(__doc__, EXAMPLES)
    add = partial(options.add, parser)
    add("--max-pairs", default=200)
    add("--prompt", f"; repeat it to compare (default: {' and '.join(map(repr, PROMPTS))})")
    add("--opposite", "; with it there is a second training for each sentence")
    add("--out", default=Path("quickstart_output"))
    add("--steps", "; more have a stronger effect", default=150)
    add("--seed", " of network, crops and patches", default=0)
    add("--device")
    add("--encoder", "; all but tiny are slow without a GPU", default="tiny")
    return parser.parse_args(arguments)


@options.errors_as_messages("quickstart")
def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    folders = pairs.folders_of(chosen.pairs, chosen.infrared, chosen.visible)
    pairs.keep_apart(chosen.out, folders)
    results = (chosen.out / "fused").resolve()
    for folder in folders:
        if folder.resolve().is_relative_to(results):
            raise ValueError(f"--out {chosen.out} must not hold the sources in {folder}")
    with options.claimed(chosen.out):
        compare(chosen, folders)


def compare(chosen: argparse.Namespace, folders: pairs.Folders) -> None:
    """Train for each sentence, fuse and measure."""
    device = options.choose_device(chosen.device)
    opened = pairs.open_pairs(folders, chosen.max_pairs)
    generator = torch.Generator()
    with options.warnings_as_notes():
        objectives = with_and_without(chosen.prompt or PROMPTS, chosen.opposite)
        given = {"regularizer": "structure", "generator": generator}
        criterion = build_criterion(chosen.encoder, **given).to(device)
        for objective in objectives.values():  # report an unusable one now, not after a training
            criterion.set_objective(objective)
    print(
        f"{len(opened)} pairs, {1 + len(objectives)} trainings of {chosen.steps} steps on {device}"
    )

    shown = pairs.spread(len(opened), SHEET_ROWS)
    scenes = [opened[index] for index in shown]
    columns = {kind: [getattr(pair, kind) for pair in scenes] for kind in ("infrared", "visible")}
    rows = {"average": metrics.mean([measure(average(pair), pair) for pair in opened])}
    histories, seconds = {}, {}
    weights = criterion.direction_weight, criterion.patch_weight
    for number, (title, objective) in enumerate([(NO_LANGUAGE, None), *objectives.items()]):
        # Without language only the similarity to the sources and the regularizer are left.
        criterion.direction_weight, criterion.patch_weight = weights if objective else (0.0, 0.0)
        if objective:
            criterion.set_objective(objective)
        generator.manual_seed(chosen.seed)
        torch.manual_seed(chosen.seed)
        network = FusionUNet().to(device)
        start = time.perf_counter()
        given = {"steps": chosen.steps, "seed": chosen.seed, "device": device}
        histories[title] = train(network, criterion, opened, title=f"training {title}", **given)
        seconds[title] = round(time.perf_counter() - start, 1)
        measured, columns[title] = [], []
        folder = chosen.out / "fused" / f"{number:02d}-{options.readable_name(title)}"
        for index, pair in enumerate(options.progress(opened, f"fusing {title}", "pair")):
            fused = fuse_with(network, pair, device)
            measured.append(measure(fused, pair))
            image = pairs.with_chroma_of(pair.visible, fused)
            pairs.save_image(image, folder / f"{pair.name}.png")
            if index in shown:
                columns[title].append(image)
        rows[title] = metrics.mean(measured)

    sheets.save_sheet(columns, sheets.salient_windows(scenes), chosen.out / "contact_sheet.png")
    sheets.save_loss_curves(histories, chosen.out / "loss_curves.png")
    content = {"version": __version__, "encoder": chosen.encoder, "steps": chosen.steps}
    content |= {"seed": chosen.seed, "pairs": [pair.name for pair in opened]}
    content |= {"metrics": rows, "seconds": seconds}
    with options.atomic_write(chosen.out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    print(" " * 24 + "".join(f"{name:>9}" for name in rows["average"]))
    for title, row in rows.items():
        label = textwrap.shorten(title, 24, placeholder=" ...")
        print(f"{label:<24}" + "".join(f"{value:9.3f}" for value in row.values()))
    print("What is measured: python examples/evaluate.py --help\n")
    for title in objectives:
        print(f'"{title}": {in_words(rows[title], rows[NO_LANGUAGE])}')
    print("\nsee", chosen.out / "contact_sheet.png")


def average(pair: pairs.Pair) -> Tensor:
    return pairs.to_8bit((pairs.luminance(pair.visible) + pairs.luminance(pair.infrared)) / 2)


def measure(fused: Tensor, pair: pairs.Pair) -> dict[str, float]:
    visible = pairs.to_8bit(pairs.luminance(pair.visible))
    level = {"mean": fused.float().mean().item()}
    return metrics.evaluate(fused, visible, pair.infrared) | level


def in_words(row: dict[str, float], silent: dict[str, float]) -> str:
    """The effect of a sentence: changes against the training without language."""
    words = {"mean": "brightness", "SD": "contrast (SD)", "AG": "sharpness (AG)"}
    words |= {"SSIM": "similarity to the sources (SSIM)", "Qabf": "their edges (Qabf)"}
    changes = {name: row[name] / silent[name] - 1 if silent[name] else 0 for name in words}
    listed = ", ".join(f"{text} {100 * changes[name]:+.0f} %" for name, text in words.items())
    return f"{listed}, each against {NO_LANGUAGE}"


if __name__ == "__main__":
    main()
