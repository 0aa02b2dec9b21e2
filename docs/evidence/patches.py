"""Whether fewer patches train the same network, and how much they make gradients vary.

    cd docs && python -m evidence.patches --pairs ROADSCENE

Networks are trained with the bundled CLIP as those of the results page, which differ in nothing but
the number of patches; patches.csv gets a row for each and is continued if it exists. Two numbers
are equivalent in a measure if two one-sided paired t-tests at 5 % find the mean difference within
2 % of the mean with 32 patches. The same training with 32 other patches ("draw" 1) shows what the
test can find at best; the smallest number that does as well with the U-Net is recommended.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy import stats

import metrics
import networks
from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss
from evidence import tables
from evidence.trials import PAPER
from options import whole_number
from pairs import Pair, luminance, open_pairs, to_8bit
from training import CROP_SIDE, Crops, fuse_with, train

HERE = Path(__file__).parent
REFERENCE = 32
BASE = (REFERENCE, 0)
#: Patches of each network's trainings.
NETWORKS = {"unet": (1, 2, 4, 8, 16, 32), "densefuse": (2, 8, 32)}
PROMPTS = (PAPER, "a dark image")
MEASURES = ("EN", "SD", "SF", "AG", "MI", "SCD", "SSIM", "Qabf")
MARGIN, LEVEL = 0.02, 0.05
#: Of the variances: batches of crops, and draws of patches for each.
BATCHES, DRAWS = 12, 3


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


def variances(pairs: Sequence[Pair], clip: FrozenCLIP, batch: int, steps: int) -> list[tables.Row]:
    """How much gradients of a half-trained network vary with the patches, and with the crops.

    For each number of patches: the trace of the covariance of the network's gradient over draws of
    patches for the same crops, and over crops; and the deviation of the patch term over draws.
    """
    numbers, cpu = NETWORKS["unet"], torch.device("cpu")
    criterion = LanguageDrivenFusionLoss.tiny(PAPER, encoder=clip, num_patches=max(numbers))
    torch.manual_seed(0)
    network = networks.NETWORKS["unet"]()
    train(network, criterion, pairs[::2], steps=steps // 2, seed=0, device=cpu)
    crops = Crops(pairs[::2], CROP_SIDE, per_pair=10, augment=False, seed=1)
    rows = []
    for patches in numbers:
        criterion.num_patches = patches
        within, means, deviations = [], [], []
        for first in range(0, BATCHES * batch, batch):
            drawn = zip(*(crops[n] for n in range(first, first + batch)), strict=True)
            visible, infrared = map(torch.stack, drawn)
            gradients, values = [], []
            for _ in range(DRAWS):
                fused = network(visible, infrared)
                terms = criterion.terms(fused=fused, visible=visible, infrared=infrared)
                slopes = torch.autograd.grad(terms.total, list(network.parameters()))
                gradients.append(torch.cat([slope.flatten() for slope in slopes]))
                values.append(terms.patch.detach())
            stacked = torch.stack(gradients)
            within.append(stacked.var(0).sum().item())
            means.append(stacked.mean(0))
            deviations.append(torch.stack(values).var().item())
        patch_variance = statistics.mean(within)
        of_means = torch.stack(means).var(0).sum().item()
        rows.append({
            "batch": batch,
            "patches": patches,
            "patch term, deviation": statistics.mean(deviations) ** 0.5,
            "gradient, from patches": patch_variance,
            "gradient, from crops": of_means - patch_variance / DRAWS,
        })  # fmt: skip
    return rows


def smallest_margin(differences: Sequence[float], level: float = LEVEL) -> float:
    """The smallest margin at which two one-sided t-tests find the mean difference within it."""
    count = len(differences)
    error = statistics.stdev(differences) / count**0.5
    return abs(statistics.mean(differences)) + float(stats.t.ppf(1 - level, count - 1)) * error


def table(rows: tables.Table) -> str:
    """For each number of patches: in how many measures it is equivalent to the reference.

    Also the smallest margin at which each measure would be, and the mean difference, in percent of
    the measure's mean with the reference.
    """
    lines = [
        "| network | sentence | patches | equivalent | smallest margin, % | mean difference, % |",
        "|---|---|---:|---:|---|---|",
    ]
    for network, numbers in NETWORKS.items():
        for prompt in PROMPTS:
            same = tables.chosen(rows, network=network, prompt=prompt)
            wanted = {row["seed"]: row for row in same if (row["patches"], row["draw"]) == BASE}
            for patches, draw in [*((n, 0) for n in numbers if n != REFERENCE), (REFERENCE, 1)]:
                others = tables.chosen(same, patches=patches, draw=draw)
                if len(others) < 2:
                    continue
                margins, means = {}, {}
                for name in MEASURES:
                    base = statistics.mean(wanted[row["seed"]][name] for row in others) / 100
                    each = [(row[name] - wanted[row["seed"]][name]) / base for row in others]
                    margins[name], means[name] = smallest_margin(each), statistics.mean(each)
                equal = sum(margin <= 100 * MARGIN for margin in margins.values())
                label = f"{patches}{', other ones' if draw else ''}"
                listed, moved = (
                    ", ".join(f"{name} {value:{form}}" for name, value in values.items())
                    for values, form in ((margins, ".1f"), (means, "+.1f"))
                )
                title = "the paper's" if prompt == PAPER else prompt
                lines.append(
                    f"| {network} | {title} | {label} | {equal} of {len(MEASURES)}, "
                    f"{len(others)} seeds | {listed} | {moved} |"
                )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add("--pairs", type=Path, metavar="DIR", help="every second one is for the test")
    add("--max-pairs", type=whole_number, default=50, help=shown)
    add("--steps", type=whole_number, default=150, help=shown)
    add("--seeds", type=whole_number, default=5, help=shown)
    add("--out", type=Path, default=HERE, help="folder of the CSV files")
    add("--only-table", action="store_true", help="print the table from the CSV files alone")
    options = parser.parse_args(arguments)
    if not options.only_table:
        measure(options)
    print(table(tables.read(options.out / "patches.csv")))


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    pairs, clip = list(open_pairs(options.pairs, options.max_pairs)), FrozenCLIP.tiny()
    if not (options.out / "patch_variance.csv").exists():
        rows = [row for batch in (2, 8) for row in variances(pairs, clip, batch, options.steps)]
        tables.save({"patch_variance": rows}, options.out)
    path = options.out / "patches.csv"
    done: set[Training] = set()
    if path.exists():
        done = {Training(*list(row.values())[:5]) for row in tables.read(path)}
    for training in plan(options.seeds):
        if training in done:
            continue
        row = asdict(training) | run(training, pairs, clip, options.steps)
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({name: tables.written(value) for name, value in row.items()})


if __name__ == "__main__":
    main()
