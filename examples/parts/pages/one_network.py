"""One network for many sentences beside one network for each."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scipy.stats import spearmanr

from parts.measuring.comparing import Row, changes, mean_of, over_seeds
from parts.measuring.many_sentences import (
    ManyTrial,
    Outcome,
    outcome,
    seconds_a_step,
    shown_images,
)
from parts.measuring.trials import BRIGHTNESS, Bench, Trial
from parts.pages import sheets
from parts.pages.shown import CAPTION_BELOW, shown_groups, within
from parts.pages.tables import percent
from parts.training.drawn_sentences import BATCH_SIZE

#: Sentences of the training: the measure that each is about, and a sentence of the same meaning
#: that the network never saw.
SENTENCES: Mapping[str, tuple[str, str]] = {
    Trial.prompt: ("AG", "a detailed image with a clear background"),
    "a dark image": (BRIGHTNESS, "a dark photo"),
    "a bright image": (BRIGHTNESS, "a bright photo"),
    "a blurry image": ("AG", "a blurred picture"),
    "a sharp image": ("AG", "a sharp photo"),
    "a noisy image": ("AG", "a noisy photo"),
    "an image with low contrast": ("SD", "a picture of low contrast"),
    "an image with high contrast": ("SD", "a high contrast photo"),
}

#: From which sentence to which, and the measure that is to rise all the way.
BLENDS: Mapping[tuple[str, str], str] = {
    ("a dark image", "a bright image"): BRIGHTNESS,
    ("a blurry image", "a sharp image"): "AG",
}

#: Crops of the one training, as a multiple of those for one sentence.
COST = 1.5

#: Least share of the single networks' effect, and of it with a sentence that was held out.
WANTED, WANTED_HELD_OUT = 0.8, 0.6
#: Least rank correlation of a blend's steps with their measure, in every image.
WANTED_ORDER = 0.95
#: A network of its own for a sentence has no effect to compare with below this change, in percent.
SMALLEST_EFFECT = 10.0

#: The shown pair in the picture, and the width of an image there.
SCENE = 3
CELL_INCHES = 1.3


def one_network(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """The share of the single networks' effects that one network for all sentences reaches."""
    steps = round(COST * base.steps * base.crops / BATCH_SIZE)
    many = [
        ManyTrial(
            replace(base, seed=seed, crops=BATCH_SIZE, steps=steps),
            tuple(SENTENCES),
            tuple(held_out for _, held_out in SENTENCES.values()),
            tuple(BLENDS),
        )
        for seed in seeds
    ]
    outcomes = [outcome(bench, trial) for trial in many]
    rows = shares(bench, base, seeds, outcomes)
    cost = steps * seconds_a_step(bench, many[0])
    single_cost = len(SENTENCES) * base.steps * bench.seconds_a_step(base)
    parts = [
        "## One network for many sentences",
        f"One network that takes the sentence as an input, trained once ({steps} steps with "
        f"{BATCH_SIZE} crop), beside {len(SENTENCES)} networks for a sentence each ({base.steps} "
        f"steps with {base.crops} crops each). It takes {COST:g} trainings in place of "
        f"{len(SENTENCES)}: {100 * cost / single_cost:.0f} % of the time here. The change is that "
        "of the sentence's own measure against no language, the share that of the single "
        "networks' change. The sentences on the right mean the same and were not in the training. "
        "The settings of this training were chosen on details of these test pairs, so expect a "
        "little less elsewhere.",
        as_table(rows),
        f"Of these sentences {counted(rows, 'share of one network', WANTED)}; of those that were "
        f"held out {counted(rows, 'share of held out', WANTED_HELD_OUT)}. {without_share(rows)}",
        blended(outcomes),
    ]
    return "\n\n".join(parts + picture(bench, base, many[0], folder / "images"))


def shares(
    bench: Bench, base: Trial, seeds: Sequence[int], outcomes: Sequence[Outcome]
) -> dict[str, Row]:
    """Changes in percent by sentence, means over the seeds, and shares where there are some."""
    silent = over_seeds(bench, base.without_language(), seeds)
    rows = {}
    for sentence, (measure, held_out) in SENTENCES.items():
        groups = {
            "a network each": over_seeds(bench, replace(base, prompt=sentence), seeds),
            "one network": [mean_of(result["told"][sentence]) for result in outcomes],
            "held out": [mean_of(result["told"][held_out]) for result in outcomes],
        }
        changed = {name: changes(group, silent, measure) for name, group in groups.items()}
        row = {name: statistics.mean(values) for name, values in changed.items()}
        single = changed["a network each"]
        agree = min(single) > 0 or max(single) < 0
        if agree and abs(row["a network each"]) >= SMALLEST_EFFECT:
            for name in ("one network", "held out"):
                row[f"share of {name}"] = row[name] / row["a network each"]
        rows[sentence] = row
    return rows


def as_table(rows: Mapping[str, Row]) -> str:
    """A Markdown table."""
    lines = [
        "| sentence | measure | a network each | one network | share | held-out sentence | "
        "change | share |",
        "|---|---|---:|---:|---:|---|---:|---:|",
    ]
    for sentence, row in rows.items():
        measure, held_out = SENTENCES[sentence]
        portions = [
            f"{100 * row[name]:.0f} %" if name in row else "-"
            for name in ("share of one network", "share of held out")
        ]
        lines.append(
            f'| "{sentence}" | {measure} | {percent(row["a network each"])} | '
            f'{percent(row["one network"])} | {portions[0]} | "{held_out}" | '
            f"{percent(row['held out'])} | {portions[1]} |"
        )
    return "\n".join(lines)


def counted(rows: Mapping[str, Row], share: str, wanted: float) -> str:
    """How many of the shares reach what is wanted."""
    values = [row[share] for row in rows.values() if share in row]
    reached = sum(value >= wanted for value in values)
    return f"{reached} of {len(values)} reach {100 * wanted:.0f} %"


def without_share(rows: Mapping[str, Row]) -> str:
    """Why some sentences have no share; nothing if all have one."""
    names = [f'"{name}"' for name, row in rows.items() if "share of one network" not in row]
    if not names:
        return ""
    return (
        f"No share is given for {' and '.join(names)}: the single networks change the measure by "
        f"less than {SMALLEST_EFFECT:g} %, or not in the same direction with every seed."
    )


def blended(outcomes: Sequence[Outcome]) -> str:
    """Whether the measure of each blend rises all the way, image by image."""
    text = (
        "Blends: vectors between two sentences, in "
        f"{len(outcomes[0]['blends'][0])} equal steps. Rank correlation (Spearman) of the steps "
        "with their measure, in each test image of each seed:"
    )
    lines = [
        "| from | to | measure | average at each step | lowest correlation | at least "
        f"{WANTED_ORDER:g} in |",
        "|---|---|---|---|---:|---:|",
    ]
    for number, ((start, end), measure) in enumerate(BLENDS.items()):
        strips = [
            strip for result in outcomes for strip in zip(*result["blends"][number], strict=True)
        ]
        levels = [[row[measure] for row in strip] for strip in strips]
        orders = [order(level) for level in levels]
        means = ", ".join(f"{statistics.mean(step):.3g}" for step in zip(*levels, strict=True))
        lines.append(
            f'| "{start}" | "{end}" | {measure} | {means} | {min(orders):.2f} | '
            f"{sum(order >= WANTED_ORDER for order in orders)} of {len(orders)} |"
        )
    return text + "\n\n" + "\n".join(lines)


def order(levels: Sequence[float]) -> float:
    """Rank correlation of the levels with their places; 0 if they are all equal."""
    if len(set(levels)) == 1:
        return 0.0
    return float(spearmanr(range(len(levels)), levels).statistic)


def picture(bench: Bench, base: Trial, many: ManyTrial, folder: Path) -> list[str]:
    """Write one scene for every sentence; returns the Markdown for it, or nothing."""
    if not bench.shown:
        return []
    [scene] = within(bench, (SCENE,))
    trials = {
        f'"{sentence}"': replace(base, prompt=sentence, seed=many.like.seed)
        for sentence in SENTENCES
    }
    groups, windows = shown_groups(bench, trials, (scene,))
    one = shown_images(bench, many, scene)
    for title, image in zip(trials, one, strict=True):
        groups[title] = [*groups[title], image]
    for title in ("infrared", "visible"):
        groups[title] = groups[title] * 2
    path = folder / "one-network-shares.jpg"
    sheets.save_sheet(groups, windows * 2, path, cell_inches=CELL_INCHES)
    return [
        "![One scene, a column for each sentence; above as the networks trained for one sentence "
        f"each fuse it, below as the one network does]({folder.name}/{path.name})",
        CAPTION_BELOW,
    ]
