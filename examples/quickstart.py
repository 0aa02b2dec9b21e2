"""Train a small network to fuse infrared and visible images as a sentence describes."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    print("loading PyTorch", file=sys.stderr, flush=True)  # it takes seconds

import torch
from torch import Tensor

from clip_fusion_loss import FusionObjective, LanguageDrivenFusionLoss, __version__
from parts.command_line import (
    Parser,
    add_option,
    choose_device,
    errors_as_messages,
    make_writable,
    progress,
    warnings_as_notes,
)
from parts.data.default_pairs import choose_pairs
from parts.data.images import luminance, save_image, to_8bit, with_chroma_of
from parts.data.pairs import LAYOUTS, Pair, spread
from parts.files import readable_name, written_whole
from parts.losses.language import build_criterion
from parts.measuring import metrics
from parts.measuring.baselines import average
from parts.networks.densefuse import DenseFuse
from parts.networks.fusing import fuse
from parts.networks.residual import AverageResidual
from parts.pages import plots, sheets, tables
from parts.training.short import train

OVERVIEW = """\
Train a small network to fuse infrared and visible images as a sentence describes.

Without options it trains on five real pairs, with the small CLIP that comes with the package: once
without language and once for each of two sentences. This takes about two minutes on two CPU cores,
without a download. The --out folder then holds:

  contact_sheet.png  the sources, a column without language, and one per sentence
  loss_curves.png    the terms of the loss per step
  fused/             all fused images in full size, one folder per sentence
  metrics.json       the usual metrics, means over all pairs
"""

EXAMPLES = f"""\
examples:
  python examples/quickstart.py
  python examples/quickstart.py --prompt "a bright image" --prompt "a noisy image"
  python examples/quickstart.py --pairs DIR --steps 300

{LAYOUTS}
"""

PROMPTS = (*FusionObjective().fused, "a dark image")
NO_LANGUAGE = "without language"

#: Mean grey level of the fused images, beside the measures of `metrics`.
BRIGHTNESS = "mean"

#: Higher than in longer trainings, as there are few steps.
LEARNING_RATE = 2e-3

#: With fewer training steps the fused images still look like the average of their sources.
STEPS_TO_SEE = 40
SHEET_ROWS = 3

#: Patches per image with a real CLIP. The paper has 32; fewer make a step faster but noisier.
PATCHES = 8

Fusion = Callable[[Pair], Tensor]


@dataclass
class Run:
    """One training, as written to metrics.json; `prompt` is None for the one without language."""

    prompt: str | None
    seed: int
    metrics: dict[str, float]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with errors_as_messages("quickstart"):
        quickstart(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(OVERVIEW, EXAMPLES)
    add = partial(add_option, parser)
    add(
        "--pairs",
        ", or the word rendered for synthetic scenes like those that the small CLIP was trained on "
        "(default: five pairs of the TNO Image Fusion Dataset, A. Toet, CC BY 4.0)",
    )
    add("--max-pairs", default=200)
    add(
        "--prompt",
        " to compare sentences; each has its own training from the same initial weights "
        f"(default: {' and '.join(map(repr, PROMPTS))})",
    )
    add("--out", default=Path("quickstart_output"))
    add("--steps", "; more have a stronger effect", default=60)
    add("--seed", " of network weights, crops and patches")
    add("--device")
    add("--encoder", "; all but tiny are slow without a GPU")
    return parser.parse_args(arguments)


def quickstart(options: argparse.Namespace) -> None:
    device = choose_device(options.device)
    pairs = choose_pairs(options.pairs, options.max_pairs)
    generator = torch.Generator()
    print(f"loading the CLIP {options.encoder}", file=sys.stderr, flush=True)
    prompts = list(dict.fromkeys(options.prompt or PROMPTS))
    with warnings_as_notes():
        patches = None if options.encoder == "tiny" else PATCHES
        criterion = build_criterion(options.encoder, generator, num_patches=patches).to(device)
        for prompt in prompts:  # report an unusable one now, not after an hour of training
            criterion.set_objective(prompt)
    out = make_writable(options.out)
    print(f"{len(pairs)} pairs, {1 + len(prompts)} trainings of {options.steps} steps on {device}")

    shown = spread(len(pairs), SHEET_ROWS)
    average_metrics, _ = fuse_all(average, pairs, shown, "fusing by average")
    columns = {
        "infrared": [pairs[i].infrared for i in shown],
        "visible": [pairs[i].visible for i in shown],
    }
    runs: list[Run] = []
    histories: dict[str, dict[str, list[float]]] = {}
    for number, prompt in enumerate([None, *prompts]):
        title = NO_LANGUAGE if prompt is None else f'"{prompt}"'
        generator.manual_seed(options.seed)
        torch.manual_seed(options.seed)
        network = AverageResidual(DenseFuse()).to(device)
        start = time.perf_counter()
        with objective(criterion, prompt):
            histories[title] = train(
                network,
                criterion,
                pairs,
                steps=options.steps,
                seed=options.seed,
                device=device,
                title=f"training {title}",
                learning_rate=LEARNING_RATE,
            )
        seconds = round(time.perf_counter() - start, 1)
        folder = out / "fused" / folder_name(number, prompt or NO_LANGUAGE)
        fusion = partial(fuse, network, reach=DenseFuse.REACH, device=device)
        quality, images = fuse_all(fusion, pairs, shown, f"fusing {title}", folder)
        runs.append(Run(prompt, options.seed, quality, seconds))
        columns[title] = images

    print("drawing the contact sheet", file=sys.stderr, flush=True)
    windows = sheets.salient_windows(pairs[i] for i in shown)
    sheets.save_sheet(columns, windows, out / "contact_sheet.png", cell_inches=2.2)
    plots.save_loss_curves(histories, out / "loss_curves.png")
    settings = {
        "version": __version__,
        "encoder": options.encoder,
        "steps": options.steps,
        "pairs": [pair.name for pair in pairs],
    }
    save_metrics(settings, average_metrics, runs, out / "metrics.json")
    rows = {"average": average_metrics}
    rows |= {run.prompt or NO_LANGUAGE: run.metrics for run in runs}
    print(tables.text_table(rows))
    print("What is measured: python examples/evaluate.py --help\n")
    for run in runs[1:]:
        print(f'"{run.prompt}": {in_words(run.metrics, runs[0].metrics)}')
    if options.steps < STEPS_TO_SEE:
        print(f"{options.steps} steps are too few to see much: use at least {STEPS_TO_SEE}")
    print()
    for name in ("contact_sheet.png", "loss_curves.png", "fused", "metrics.json"):
        print(out / name)


@contextmanager
def objective(criterion: LanguageDrivenFusionLoss, prompt: str | None) -> Iterator[None]:
    """Make `prompt` the objective; for None set the weights of the language terms to 0 inside."""
    weights = criterion.direction_weight, criterion.patch_weight
    if prompt is None:
        criterion.direction_weight = criterion.patch_weight = 0.0
    else:
        criterion.set_objective(prompt)
    yield
    criterion.direction_weight, criterion.patch_weight = weights


def in_words(row: dict[str, float], silent: dict[str, float]) -> str:
    """The effect of a sentence in words: changes from images of the training without language."""

    def change(name: str) -> float:
        return 100 * (row[name] / silent[name] - 1) if silent[name] else 0.0

    percent = round(change(BRIGHTNESS))
    brightness = f"{abs(percent)} % {'brighter' if percent > 0 else 'darker'} than {NO_LANGUAGE}"
    if percent == 0:
        brightness = f"as bright as {NO_LANGUAGE}"
    return (
        f"{brightness}, contrast (SD) {change('SD'):+.0f} %, sharpness (AG) {change('AG'):+.0f} %"
    )


def fuse_all(
    fusion: Fusion,
    pairs: Sequence[Pair],
    shown: Sequence[int],
    title: str,
    folder: Path | None = None,
) -> tuple[dict[str, float], list[Tensor]]:
    """Fuse all pairs, measure them, and write them to `folder` if there is one.

    Returns the mean metrics of the grey fused images, and the images of the pairs `shown`. Those,
    like the written ones, have the colours of the visible image.
    """
    quality = []
    images = []
    for index, pair in enumerate(progress(pairs, title, "pair")):
        grey = fusion(pair)
        sources = to_8bit(luminance(pair.visible)), pair.infrared
        row = metrics.evaluate(*(image[0].numpy() for image in (grey, *sources)))
        quality.append(row | {BRIGHTNESS: grey.float().mean().item()})
        image = with_chroma_of(pair.visible, grey)
        if index in shown:
            images.append(image)
        if folder is not None:
            save_image(image, folder / f"{pair.name}.png")
    return metrics.mean(quality), images


def folder_name(number: int, prompt: str) -> str:
    """Readable, safe in any file system and, by its number, unique."""
    return f"{number:02d}-{readable_name(prompt)}".strip("-")


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
