"""Train one network for many sentences and choose the sentence at inference.

Each image of a batch gets a random sentence, and the network gets the sentence's text direction as
an additional input. So one training is enough for all sentences: about five minutes on two CPU
cores with the bundled CLIP. The --out folder then holds:

  sentences.png  fused images: one row per pair, one column per sentence
  blend.png      one pair, from the first --blend sentence to the second in equal steps
"""

import argparse
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while PyTorch is loaded

import torch
from torch import Tensor

import options
import sheets
from clip_fusion_loss import FusionObjective
from networks.unet import FusionUNet
from pairs import LAYOUT, Folders, folders_of, keep_apart, luminance, open_pairs, spread, to_8bit
from training import MANY_SIMILARITY, build_criterion, fuse_with, train, with_and_without

BLEND = ("a dark image", "a bright image")
PROMPTS = (*FusionObjective().fused, *BLEND, "a blurry image", "an image with low contrast")
SHEET_ROWS, BLEND_STEPS = 3, 7


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.new_parser(__doc__, LAYOUT)
    add = partial(options.add, parser)
    add("--max-pairs", default=200)
    add("--prompt", "; repeat it for more sentences (default: five)")
    add("--opposite", "; with it there is a second column for each sentence")
    text = "sentences to interpolate between; new ones are allowed (default: dark to bright)"
    add("--blend", text, BLEND, nargs=2, metavar=("A", "B"))
    add("--out", default=Path("many_sentences_output"))
    add("--steps", " of one crop; more have a stronger effect", default=675)
    add("--seed", " of network, crops, patches and drawn sentences", default=0)
    add("--device")
    add("--encoder", "; all but tiny are slow without a GPU", default="tiny")
    return parser.parse_args(arguments)


@options.errors_as_messages("one_network_many_sentences")
def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    folders = folders_of(chosen.pairs, chosen.infrared, chosen.visible)
    keep_apart(chosen.out, folders)
    with options.claimed(chosen.out):
        train_and_show(chosen, folders)


def train_and_show(chosen: argparse.Namespace, folders: Folders) -> None:
    device = options.choose_device(chosen.device)
    pairs = open_pairs(folders, chosen.max_pairs)
    with options.warnings_as_notes():
        objectives = with_and_without(chosen.prompt or PROMPTS, chosen.opposite)
        generator = torch.Generator().manual_seed(chosen.seed)
        criterion = build_criterion(chosen.encoder, regularizer="structure", generator=generator)
        criterion = criterion.to(device)
        criterion.similarity_weight *= MANY_SIMILARITY
        bank = criterion.embed(objectives)
        ends = criterion.embed(chosen.blend).text_direction
    what = f"one training of {chosen.steps} steps for {len(bank)} sentences"
    print(f"{len(pairs)} pairs, {what} on {device}")
    torch.manual_seed(chosen.seed)
    network = FusionUNet(bank.text_direction.shape[1]).to(device)
    given = {"steps": chosen.steps, "seed": chosen.seed, "device": device, "sentences": bank}
    train(network, criterion, pairs, title=f"training for {len(bank)} sentences", **given)

    shown = [pairs[index] for index in spread(len(pairs), SHEET_ROWS)]

    def fused(vector: Tensor) -> list[Tensor]:
        return [fuse_with(network, pair, device, vector) for pair in shown]

    columns = {"infrared": [pair.infrared for pair in shown]}
    columns["visible"] = [to_8bit(luminance(pair.visible)) for pair in shown]
    for title, vector in zip(objectives, bank.text_direction, strict=True):
        columns[f'"{title}"'] = fused(vector)
    windows = sheets.salient_windows(shown)
    sheets.save_sheet(columns, windows, chosen.out / "sentences.png")

    strip = {}
    for share in torch.linspace(0, 1, BLEND_STEPS).tolist():
        title = chosen.blend[round(share)] if share in (0, 1) else f"{share:.0%}"
        strip[title] = fused(torch.lerp(ends[0], ends[1], share))[:1]
        print(f"{title}: mean grey level {strip[title][0].float().mean().item():.0f}")
    sheets.save_sheet(strip, windows[:1], chosen.out / "blend.png")
    print("see", chosen.out)


if __name__ == "__main__":
    main()
