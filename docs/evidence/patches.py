"""Whether fewer patches train the same network, and how much they make gradients vary.

    cd docs && python -m evidence.patches --pairs ROADSCENE

Networks are trained with the bundled CLIP as those of the results page, which differ in nothing but
the number of patches; patches.csv gets a row for each and is continued if it exists. Two numbers
are equivalent in a measure if two one-sided paired t-tests at 5 % find the mean difference within
2 % of the mean with 32 patches. The same training with 32 other patches ("draw" 1) shows what the
test can find at best. The rule was to recommend the smallest number that does as well with the
U-Net. One patch does; two are recommended, for the paper's weights make its gradients noisy.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, starmap
from pathlib import Path
from typing import Any

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
#: Patches of each network's trainings.
NETWORKS = {"unet": (1, 2, 4, 8, 16, 32), "densefuse": (2, 8, 32)}
#: Of networks that have fewer than others.
SEEDS = {"densefuse": 3}
PROMPTS = (PAPER, "a dark image")
MEASURES = ("EN", "SD", "SF", "AG", "MI", "SCD", "SSIM", "Qabf")
MARGIN, LEVEL = 0.02, 0.05
#: Of the variances: batches of crops, and draws of patches for each.
BATCHES, DRAWS = 12, 3
#: Of the loss whose gradients vary; the paper's without a regularizer, which has no patches.
WEIGHTS: dict[str, dict[str, Any]] = {
    "tiny's": {},
    "the paper's": {
        **{"direction_weight": 2, "patch_weight": 10, "similarity_weight": 6},
        **{"regularizer": None, "patch_reduction": "all"},
    },
}

#: Of each measure the mean difference and the smallest margin, in percent.
Found = dict[str, tuple[float, float]]


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
                for patches in numbers if seed < SEEDS.get(network, seeds) else ():
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


def variances(
    pairs: Sequence[Pair], clip: FrozenCLIP, batch: int, steps: int, weights: str = "tiny's"
) -> tables.Table:
    """How much gradients of a half-trained network vary with the patches, and with the crops.

    For each number of patches: the trace of the covariance of the network's gradient over draws of
    patches for the same crops, and over crops; and the deviation of the patch term over draws.
    """
    numbers, cpu = NETWORKS["unet"], torch.device("cpu")
    criterion = LanguageDrivenFusionLoss.tiny(PAPER, encoder=clip, num_patches=8)
    torch.manual_seed(0)
    network = networks.NETWORKS["unet"]()
    train(network, criterion, pairs[::2], steps=steps // 2, seed=0, device=cpu)
    for name, value in WEIGHTS[weights].items():
        setattr(criterion, name, value)
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
            "weights": weights,
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


def compare(rows: tables.Table, network: str, prompt: str, patches: int, draw: int) -> Found:
    """How a number of patches differs from the reference, by seed."""
    same = tables.chosen(rows, network=network, prompt=prompt)
    wanted = {row["seed"]: row for row in tables.chosen(same, patches=REFERENCE, draw=0)}
    pairs = [(row, wanted[row["seed"]]) for row in tables.chosen(same, patches=patches, draw=draw)]
    result = {}
    for name in MEASURES:
        percent = statistics.mean(base[name] for _, base in pairs) / 100
        differences = [(row[name] - base[name]) / percent for row, base in pairs]
        result[name] = statistics.mean(differences), smallest_margin(differences)
    return result


def table(rows: tables.Table, variance: tables.Table) -> str:
    """The table of the page: a line for each network and number of patches."""
    lines = [
        "| network, seeds | patches | equivalent, of 8 | moved, % | margin, % | noise, % | s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for network, numbers in NETWORKS.items():
        for patches, draw in [*((n, 0) for n in numbers), (REFERENCE, 1)]:
            same = tables.chosen(rows, network=network, patches=patches, draw=draw)
            if not same:
                continue
            found = [compare(rows, network, prompt, patches, draw) for prompt in PROMPTS]
            cells = [", ".join(cell) for cell in zip(*map(in_words, found), strict=True)]
            if (patches, draw) == (REFERENCE, 0):
                cells = ["", "", ""]
            shares = [
                f"{100 * row['gradient, from patches'] / row['gradient, from crops']:.2g}"
                for row in tables.chosen(variance, patches=patches)
                if network == "unet" and not draw
            ]
            seeds = len({row["seed"] for row in same})
            label = f"{patches}{', others' if draw else ''}"
            seconds = statistics.median(row["seconds"] for row in same)
            cells = [f"{network}, {seeds}", label, *cells, ", ".join(shares), f"{seconds:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def in_words(found: Found) -> tuple[str, str, str]:
    """How many are equivalent; over all, the mean size of the difference, the median margin."""
    differences, margins = zip(*found.values(), strict=True)
    equal = sum(margin <= 100 * MARGIN for margin in margins)
    size = statistics.mean(map(abs, differences))
    return f"{equal}", f"{size:.1f}", f"{statistics.median(margins):.1f}"


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
    read = (tables.read(options.out / f"{name}.csv") for name in ("patches", "patch_variance"))
    print(table(*read))


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    pairs, clip = list(open_pairs(options.pairs, options.max_pairs)), FrozenCLIP.tiny()
    if not (options.out / "patch_variance.csv").exists():
        kinds = (2, "tiny's"), (8, "tiny's"), (2, "the paper's")
        given = ((pairs, clip, batch, options.steps, weights) for batch, weights in kinds)
        rows = list(chain.from_iterable(starmap(variances, given)))
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
