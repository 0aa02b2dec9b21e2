"""Whether fewer patches train the same network, and how much they make gradients vary.

    cd docs && python -m evidence.patches --pairs ROADSCENE

Networks are trained with the bundled CLIP as those of the results page, which differ in nothing but
the number of patches; patches.csv gets a row for each and is continued if it exists. Two numbers
are equivalent in a measure if two one-sided paired t-tests at 5 % find the mean difference within
2 % of the mean with 32 patches. The same training with other random patches ("draw" 1) shows what
the test can find at best.
"""

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch

import metrics
import networks
from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss
from evidence import tables
from evidence.trials import PAPER
from options import whole_number
from pairs import Pair, luminance, open_pairs, to_8bit
from training import fuse_with, train

HERE = Path(__file__).parent
REFERENCE = 32
#: Patches of each network's trainings.
NETWORKS = {"unet": (1, 2, 4, 8, 16, 32), "densefuse": (2, 8, 32)}
PROMPTS = (PAPER, "a dark image")
MEASURES = ("EN", "SD", "SF", "AG", "MI", "SCD", "SSIM", "Qabf")
MARGIN, LEVEL = 0.02, 0.05


@dataclass(frozen=True)
class Training:
    network: str
    prompt: str
    patches: int
    seed: int
    """Of network, crops and patches."""
    draw: int = 0
    """Another one: other patches, all else alike."""


def plan(seeds: int) -> Iterator[Training]:
    """The trainings, so ordered that a part of them is a study with fewer seeds."""
    for seed in range(seeds):
        for prompt in PROMPTS:
            for network, numbers in NETWORKS.items():
                for patches in numbers:
                    yield Training(network, prompt, patches, seed)
    for seed in range(seeds):
        for prompt in PROMPTS:
            yield Training("unet", prompt, REFERENCE, seed, draw=1)


def run(training: Training, pairs: Sequence[Pair], clip: FrozenCLIP, steps: int) -> tables.Row:
    """Train with every second pair; the mean measures of the others, and processor time."""
    criterion = LanguageDrivenFusionLoss.tiny(
        training.prompt,
        encoder=clip,
        num_patches=training.patches,
        generator=torch.Generator().manual_seed(training.seed + 1000 * training.draw),
    )
    torch.manual_seed(training.seed)
    network, cpu = networks.NETWORKS[training.network](), torch.device("cpu")
    start = time.process_time()
    options = {"steps": steps, "seed": training.seed, "device": cpu}
    train(network, criterion, pairs[::2], title=training.prompt, **options)
    seconds = time.process_time() - start
    rows = [
        metrics.evaluate(
            fuse_with(network, pair, cpu), to_8bit(luminance(pair.visible)), pair.infrared
        )
        for pair in pairs[1::2]
    ]
    return {"seconds": seconds, **{name: tables.mean(rows)[name] for name in MEASURES}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add("--pairs", type=Path, required=True, metavar="DIR", help="every second one is for the test")
    add("--max-pairs", type=whole_number, default=50, help=shown)
    add("--steps", type=whole_number, default=150, help=shown)
    add("--seeds", type=whole_number, default=5, help=shown)
    add("--csv", type=Path, default=HERE / "patches.csv", help=shown)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pairs, clip = list(open_pairs(options.pairs, options.max_pairs)), FrozenCLIP.tiny()
    done = set()
    if options.csv.exists():
        with open(options.csv, newline="") as file:
            done = {tuple(row.values())[:5] for row in csv.DictReader(file)}
    for training in plan(options.seeds):
        if tuple(map(str, astuple(training))) in done:
            continue
        row = asdict(training) | run(training, pairs, clip, options.steps)
        with open(options.csv, "a", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
