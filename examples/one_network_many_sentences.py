"""Train one network for many sentences and choose the sentence at inference."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from clip_fusion_loss import FusionObjective
from parts.command_line import (
    Parser,
    add_option,
    choose_device,
    errors_as_messages,
    make_writable,
    warnings_as_notes,
)
from parts.data.default_pairs import choose_pairs
from parts.data.images import luminance, to_8bit
from parts.data.pairs import LAYOUTS, spread
from parts.losses.language import build_criterion
from parts.networks.conditioned import Conditioned, told
from parts.networks.densefuse import DenseFuse
from parts.networks.fusing import fuse_with
from parts.networks.residual import AverageResidual
from parts.pages import sheets
from parts.training.drawn_sentences import BATCH_SIZE, MAX_NORM, DrawnSentences
from parts.training.short import train

OVERVIEW = """\
Train one network for many sentences and choose the sentence at inference.

Each image of a batch gets a random sentence, and the network gets the sentence's text direction as
an additional input. So one training is enough for all sentences: about five minutes on two CPU
cores with the small CLIP that comes with the package. The --out folder then holds:

  sentences.png  fused images: one row per pair, one column per sentence
  blend.png      one pair, from the first --blend sentence to the second in equal steps
"""

PROMPTS = (
    *FusionObjective().fused,
    "a dark image",
    "a bright image",
    "a blurry image",
    "a noisy image",
    "an image with low contrast",
)
SHEET_ROWS = 3
BLEND_STEPS = 7

#: As wide as the lines of a title.
CELL_INCHES = 2.2


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with errors_as_messages("one_network_many_sentences"):
        run(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(OVERVIEW, LAYOUTS)
    add = partial(add_option, parser)
    add("--pairs", " (default: five pairs of the TNO Image Fusion Dataset, A. Toet, CC BY 4.0)")
    add("--max-pairs", default=200)
    add("--prompt", " for more sentences (default: six)")
    add(
        "--blend",
        "sentences to interpolate between; new ones are allowed (default: dark to bright)",
        nargs=2,
        default=("a dark image", "a bright image"),
        metavar=("A", "B"),
    )
    add("--out", default=Path("many_sentences_output"))
    add("--steps", " of one crop; more have a stronger effect", default=900)
    add("--seed", " of network weights, crops, patches and drawn sentences")
    add("--device")
    add("--encoder", "; all but tiny are slow without a GPU")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    device = choose_device(options.device)
    pairs = choose_pairs(options.pairs, options.max_pairs)
    generator = torch.Generator().manual_seed(options.seed)
    print(f"loading the CLIP {options.encoder}", file=sys.stderr, flush=True)
    prompts = list(dict.fromkeys(options.prompt or PROMPTS))
    with warnings_as_notes():
        criterion = build_criterion(options.encoder, generator).to(device)
        bank = criterion.embed(prompts)
        ends = criterion.embed(options.blend).text_direction
    out = make_writable(options.out)
    print(
        f"{len(pairs)} pairs, one training of {options.steps} steps for {len(prompts)} sentences "
        f"on {device}"
    )

    torch.manual_seed(options.seed)
    network = Conditioned(AverageResidual(DenseFuse()), bank.text_direction.shape[1]).to(device)
    drawn = DrawnSentences(network, criterion, bank)
    train(
        drawn,
        drawn,
        pairs,
        steps=options.steps,
        seed=options.seed,
        device=device,
        title=f"training for {len(prompts)} sentences",
        batch_size=BATCH_SIZE,
        max_norm=MAX_NORM,
    )

    print("fusing and drawing the sheets", file=sys.stderr, flush=True)
    shown = [pairs[index] for index in spread(len(pairs), SHEET_ROWS)]
    greys = [to_8bit(luminance(pair.visible)) for pair in shown]

    def fused(vector: Tensor) -> list[Tensor]:
        return [fuse_with(told(network, vector), pair, device) for pair in shown]

    columns = {"infrared": [pair.infrared for pair in shown], "visible": greys}
    vectors = zip(prompts, bank.text_direction, strict=True)
    columns |= {f'"{prompt}"': fused(vector) for prompt, vector in vectors}
    windows = sheets.salient_windows(shown)
    sheets.save_sheet(columns, windows, out / "sentences.png", cell_inches=CELL_INCHES)

    strip = {}
    for step in range(BLEND_STEPS):
        share = step / (BLEND_STEPS - 1)
        title = options.blend[round(share)] if share in (0, 1) else f"{share:.0%}"
        strip[title] = fused(torch.lerp(*ends, share))[:1]
        print(f"{title}: mean grey level {strip[title][0].float().mean().item():.0f}")
    sheets.save_sheet(strip, windows[:1], out / "blend.png", cell_inches=CELL_INCHES)
    for name in ("sentences.png", "blend.png"):
        print(out / name)


if __name__ == "__main__":
    main()
