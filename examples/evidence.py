"""What the sentence does to real images: trains, compares and writes the page of results.

Every figure of the page comes from runs that this program makes; what it has run is kept in the
--out folder and not run again, so that it may be interrupted at any time. With the embedded CLIP
and all sections it takes some hours on two CPU cores.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import report
from choices import choose_device, choose_pairs, load_clip, make_writable, warnings_as_notes
from clip_fusion_loss import (
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
)
from clip_fusion_loss.functional import resize_images
from command_line import errors_as_messages, whole_number
from controls import clahe, matched, unsharp
from embedding_space import save_embedding_space
from files import written_whole
from fusing import average, laplacian_pyramid, maximum
from images import luminance, to_8bit
from pairs import LAYOUTS, Pair
from tiny_clip.degradations import gaussian_blur
from tiny_clip.evaluate import fusions, modality_table
from training import BATCH_SIZE, CROP_SIDE
from trials import BRIGHTNESS, LEARNING_RATES, Bench, Trial

#: Prompts to compare with the paper's, and what each should raise (+1) or lower (-1).
PROMPTS: Mapping[str, Mapping[str, int]] = {
    "a sharp detailed image": {"SF": 1, "AG": 1},
    "a bright image": {BRIGHTNESS: 1},
    "a dark image": {BRIGHTNESS: -1},
    "a blurry image": {"SF": -1, "AG": -1},
    "a blurry dark image": {"SF": -1, "AG": -1, BRIGHTNESS: -1},
    "a noisy image": {"SF": 1},
    "an image with low contrast": {"SD": -1},
    "a purple elephant dancing": {},
}

#: Columns of the pictures, and the height of an image in them.
SHOWN_PAIRS = 3
SHOWN_INCHES = 1.4

#: Side at which hand-made fusions are judged, in pixels.
RANKING_SIDE = 192

NO_LANGUAGE = "+ similarity: no language"
FULL = "full: mean over the kept patches"

Row = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=LAYOUTS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add("--pairs", type=Path, required=True, metavar="DIR", help="every second pair is tested on")
    add("--show", type=Path, metavar="DIR", help=f"pairs for the pictures, {SHOWN_PAIRS} of them")
    add("--credit", default="", metavar="TEXT", help="whose the images in the pictures are")
    add(
        "--out",
        type=Path,
        default=Path("evidence"),
        metavar="DIR",
        help=f"runs, kept there {shown}",
    )
    add(
        "--page",
        type=Path,
        default=Path("docs/results.md"),
        metavar="FILE",
        help=f"written anew {shown}",
    )
    add("--encoder", default="tiny", help=f"as quickstart.py has it {shown}")
    add("--vgg16", type=Path, metavar="FILE", help="as train.py has it; without, a row is left out")
    add(
        "--seeds",
        type=whole_number,
        default=3,
        metavar="N",
        help=f"runs of each setting {shown}",
    )
    add(
        "--steps",
        type=whole_number,
        default=300,
        metavar="N",
        help=f"of each training {shown}",
    )
    add(
        "--max-pairs",
        type=whole_number,
        default=40,
        metavar="N",
        help=f"to train on, and to test {shown}",
    )
    add("--amp", action="store_true", help="networks are trained in bfloat16, and faster")
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="of the page")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    options = parser.parse_args(arguments)
    with errors_as_messages("evidence"):
        write_page(options)


def write_page(options: argparse.Namespace) -> None:
    device = choose_device(options.device)
    encoder = FrozenCLIP.tiny() if options.encoder == "tiny" else load_clip(options.encoder)
    pairs = choose_pairs(options.pairs, 2 * options.max_pairs)
    shown = choose_pairs(options.show, SHOWN_PAIRS) if options.show else []
    folder = make_writable(options.out) / encoder.name.replace("/", "-")
    halves = [[pairs[i] for i in range(first, len(pairs), 2)] for first in (0, 1)]
    bench = Bench(encoder, halves[0], halves[1], shown, folder, device, options.vgg16)
    like = LanguageDrivenFusionLoss.tiny
    if options.encoder != "tiny":
        like = partial(LanguageDrivenFusionLoss, encoder=encoder)
    base = Trial(steps=options.steps, amp=options.amp).weighted_like(like())
    seeds = range(options.seeds)
    with warnings_as_notes():
        parts = [
            SECTIONS[name](bench, base, seeds, options.page.parent) for name in options.sections
        ]
    text = "\n\n".join([introduction(bench, base, seeds, options), *parts]) + "\n"
    with written_whole(options.page) as temporary:
        temporary.write_text(text, "utf-8")
    print(options.page)


def introduction(
    bench: Bench, base: Trial, seeds: Sequence[int], options: argparse.Namespace
) -> str:
    precision = "bfloat16" if base.amp else "float32"
    rates = " and ".join(f"{rate:g} ({name})" for name, rate in LEARNING_RATES.items())
    credit = f"\n\nImages in the pictures: {options.credit}." if options.credit else ""
    return f"""# Results

Made by `examples/evidence.py`; no figure was typed in. CLIP: `{bench.encoder.name}`. Networks
learn to correct the average of their sources. Each was trained for {base.steps} steps of
{BATCH_SIZE} crops of {CROP_SIDE} pixels, in {precision}, from {len(bench.training)} pairs of
`{options.pairs.name}`, with Adam at {rates}, falling to 0,
and measured on {len(bench.test)} other pairs. A figure is the mean over {len(seeds)} seeds, with
the spread (half of the range) behind it. Measures are those of `examples/evaluate.py`;
`{BRIGHTNESS}` is the mean grey level. EN, SD, SF and AG reward noise and embossing too: read them
beside SSIM and Qabf, and look at the pictures.

Real CLIP weights could not be had where this page was made; `--encoder ViT-B-32-quickgelu/openai`
makes the same page with them.{credit}"""


def ablation(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """What each term adds, and what a sharpening filter would do at equal average gradient."""
    parts = ["## What each part of the loss adds"]
    for network in ("densefuse", "u2fusion"):
        full = replace(base, network=network)
        silent = full.without_language()
        trials = {
            "its original loss": full.with_original_loss(),
            "regularizer": replace(silent, similarity=0.0),
            NO_LANGUAGE: silent,
            "+ direction": replace(full, patch=0.0),
            "+ patches": replace(full, min_entropy=None),
            "+ filter, dropped patches as zeros": replace(full, reduction="all"),
            FULL: full,
        }
        if network == "u2fusion" and bench.vgg16 is None:
            del trials["its original loss"]
        rows = {"average of the sources": [bench.measure([average(p) for p in bench.test])]}
        rows |= {name: over_seeds(bench, trial, seeds) for name, trial in trials.items()}
        controls = {"unsharp mask": unsharp, "CLAHE": clahe}
        for name, control in controls.items():
            rows[f"no language, then {name} to the same AG"] = [
                bench.measure(matched(control, bench.images(replace(silent, seed=seed)), row["AG"]))
                for seed, row in zip(seeds, rows[FULL], strict=True)
            ]
        parts += [f"### {network}", table(rows)]
        others = (NO_LANGUAGE, *list(rows)[-len(controls) :])
        parts += [
            "The full loss against others, seed by seed:",
            table({name: gains(rows[FULL], rows[name]) for name in others}),
        ]
        parts += picture(bench, trials, folder / "images" / f"ablation-{network}.jpg")
    return "\n\n".join(parts)


def steering(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """Each prompt against the paper's."""
    trials = {"no language": base.without_language(), f'"{base.prompt}"': base}
    trials |= {f'"{prompt}"': replace(base, prompt=prompt) for prompt in PROMPTS}
    rows = {name: over_seeds(bench, trial, seeds) for name, trial in trials.items()}
    with_paper = rows[f'"{base.prompt}"']
    changes = {
        name: [change(row, paper) for row, paper in zip(group, with_paper, strict=True)]
        for name, group in rows.items()
        if group is not with_paper
    }
    parts = ["## Steering by prompt", "DenseFuse. Measures:", table(rows)]
    parts += ["Change against the paper's prompt in percent:", table(changes, digits=0)]
    parts += ["Does it do what it says?", verdicts(base.prompt, rows)]
    unknown = unknown_words(bench.encoder)
    if unknown:
        parts.append("Words that this CLIP does not know: " + ", ".join(unknown) + ".")
    parts += picture(bench, trials, folder / "images" / "steering.jpg")
    named = {name: trials[name] for name in (*list(trials)[:2], '"a blurry dark image"')}
    save_embedding_space(
        bench.encoder,
        FusionObjective(base.prompt),
        [to_8bit(luminance(pair.visible)) for pair in bench.test],
        [to_8bit(luminance(pair.infrared)) for pair in bench.test],
        {name: bench.images(replace(trial, seed=seeds[0])) for name, trial in named.items()},
        folder / "images" / "embedding-space.png",
    )
    parts += [
        "The same in CLIP's space: where the objective points, and where the images went.",
        "![Texts and images in a plane of the embedding space](images/embedding-space.png)",
    ]
    return "\n\n".join(parts)


def verdicts(paper_prompt: str, rows: Mapping[str, Sequence[Row]]) -> str:
    """A Markdown table: what each prompt asks for, and whether the images have it."""
    lines = ["| prompt | asks for | against no language | in how many runs |", "|---" * 4 + "|"]
    for prompt, asked in {paper_prompt: {"SF": 1, "AG": 1}, **PROMPTS}.items():
        group = zip(rows[f'"{prompt}"'], rows["no language"], strict=True)
        changes = [change(row, silent) for row, silent in group]
        for measure, sign in asked.items():
            shifts = [row[measure] for row in changes]
            cells = (
                f'"{prompt}"',
                f"{'more' if sign > 0 else 'less'} {measure}",
                f"{statistics.mean(shifts):+.1f} %",
                f"{sum(sign * shift > 0 for shift in shifts)} of {len(shifts)}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ranking(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """The loss of fusions made by hand."""
    patches = torch.Generator()
    criterion = LanguageDrivenFusionLoss(
        FusionObjective(base.prompt),
        encoder=bench.encoder,
        direction_weight=base.direction,
        patch_weight=base.patch,
        similarity_weight=base.similarity,
        regularizer=IntensityGradientLoss(),
        regularizer_weight=base.regularizer,
        patch_reduction=base.reduction,
        reduction="none",
        generator=patches,
    ).to(bench.device)
    rows: dict[str, list[Row]] = {}
    for pair in bench.test:
        visible, infrared = squared(pair)
        for name, image in hand_made(visible, infrared).items():
            patches.manual_seed(0)  # the same ones of every fusion
            with torch.no_grad():
                terms = criterion.terms(*(i.to(bench.device) for i in (image, visible, infrared)))
            row = {field: getattr(terms, field).item() for field in terms._fields}
            language = row["total"] - base.regularizer * row["regularizer"]
            rows.setdefault(name, []).append({"total": row["total"], "of CLIP": language, **row})
    means = {name: [mean_of(group)] for name, group in rows.items()}
    ordered = dict(sorted(means.items(), key=lambda item: item[1][0]["total"]))
    by_clip = sorted(ordered, key=lambda name: ordered[name][0]["of CLIP"])
    places = [ordinal(list(names).index("good") + 1) for names in (ordered, by_clip)]
    visible, infrared = (
        torch.cat([resize_images(luminance(s)[None], bench.encoder.image_size) for s in side])
        for side in zip(*[(pair.visible, pair.infrared) for pair in bench.test], strict=True)
    )
    zero_shot = modality_table(bench.encoder, visible, infrared)
    accuracy = {name: [row] for name, row in zero_shot.items()}
    parts = [
        "## What the loss thinks of fusions made by hand",
        "Least loss first. The good one takes the base of the brighter source and the detail of "
        f"the stronger; of {len(ordered)} it comes {places[0]} by the whole loss, with the "
        f"regularizer, and {places[1]} by CLIP's terms alone.",
        table(ordered, digits=3),
        "Zero-shot, by the paper's texts for the modalities:",
        table(accuracy, digits=2),
    ]
    if bench.shown:
        made = [hand_made(*squared(pair)) for pair in bench.shown]
        pictures = {
            f"{name}: {row['total']:.2f}": [to_8bit(images[name][0]) for images in made]
            for name, [row] in ordered.items()
        }
        report.save_rows(pictures, folder / "images" / "ranking.jpg", SHOWN_INCHES)
        parts.append("![From least loss to most](images/ranking.jpg)")
    return "\n\n".join(parts)


def squared(pair: Pair) -> tuple[Tensor, Tensor]:
    """Visible and infrared, (1, 1, S, S) each in [0, 1] with S = `RANKING_SIDE`."""
    visible, infrared = (
        resize_images(luminance(image)[None], (RANKING_SIDE, RANKING_SIDE)).clamp(0, 1)
        for image in (pair.visible, pair.infrared)
    )
    return visible, infrared


def hand_made(visible: Tensor, infrared: Tensor) -> dict[str, Tensor]:
    """Good and bad fusions of such a pair, by name."""
    made = fusions(visible, infrared)
    made["blurred"] = gaussian_blur(made["good"], torch.full((1, 1, 1, 1), 3.2))
    pair = Pair("", to_8bit(visible[0]), to_8bit(infrared[0]))
    for name, fusion in (("maximum", maximum), ("Laplacian pyramid", laplacian_pyramid)):
        made[name] = fusion(pair)[None] / 255
    return made


def peers(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """Trained networks beside rules without training."""
    rows = {
        name: [bench.measure([fusion(pair) for pair in bench.test])]
        for name, fusion in {
            "average": average,
            "maximum": maximum,
            "Laplacian pyramid": laplacian_pyramid,
        }.items()
    }
    for network in ("densefuse", "u2fusion"):
        full = replace(base, network=network)
        rows[f"{network}, no language"] = over_seeds(bench, full.without_language(), seeds)
        rows[f"{network}, language"] = over_seeds(bench, full, seeds)
    return "\n\n".join(["## Beside fusions without training", table(rows)])


def sweep(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """How much language, and how many patches."""
    seeds = seeds[:1]
    trials = {"no language": base.without_language()}
    trials |= {
        f"language x {factor:g}": replace(
            base, direction=base.direction * factor, patch=base.patch * factor
        )
        for factor in (0.25, 0.5, 1, 2, 4)
    }
    trials |= {f"{count} patches": replace(base, patches=count) for count in (2, 4, 16, 32)}
    rows = {name: over_seeds(bench, trial, seeds) for name, trial in trials.items()}
    parts = [
        "## How much language, how many patches",
        f"DenseFuse, one seed. x 1 is a weight of {base.direction:g} for the whole image and of "
        f"{base.patch:g} for its patches, of which there are {base.patches} unless said. Too much "
        "is where SF and AG still rise while Qabf falls below the run without language: edges that "
        "no source has.",
        table(rows),
    ]
    weights = {name: trial for name, trial in trials.items() if "language" in name}
    return "\n\n".join(parts + picture(bench, weights, folder / "images" / "weights.jpg"))


SECTIONS: dict[str, Callable[[Bench, Trial, Sequence[int], Path], str]] = {
    "ablation": ablation,
    "steering": steering,
    "ranking": ranking,
    "peers": peers,
    "sweep": sweep,
}


def picture(bench: Bench, trials: Mapping[str, Trial], path: Path) -> list[str]:
    """Write a row of the shown pairs for each trial; returns the Markdown for it, or nothing."""
    if not bench.shown:
        return []
    rows = {
        "infrared": [pair.infrared for pair in bench.shown],
        "visible": [to_8bit(luminance(pair.visible)) for pair in bench.shown],
        **{name: bench.shown_images(trial) for name, trial in trials.items()},
    }
    report.save_rows(rows, path, SHOWN_INCHES)
    names = ", ".join(rows).replace('"', "'")
    return [f"![From top to bottom: {names}]({path.parent.name}/{path.name})"]


def over_seeds(bench: Bench, trial: Trial, seeds: Sequence[int]) -> list[Row]:
    return [bench.run(replace(trial, seed=seed)) for seed in seeds]


def unknown_words(encoder: FrozenCLIP) -> list[str]:
    known = encoder.vocabulary
    words = {word for prompt in PROMPTS for word in prompt.split()}
    return [] if known is None else sorted(words - known)


def change(row: Row, reference: Row) -> Row:
    return {name: 100 * (row[name] / reference[name] - 1) for name in row}


def gains(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """What `rows` have more than `others`: SF and AG in percent, the rest as it is."""
    relative = ("SF", "AG")
    return [
        {f"{name}, %": change(row, other)[name] for name in relative}
        | {name: row[name] - other[name] for name in row if name not in relative}
        for row, other in zip(rows, others, strict=True)
    ]


def mean_of(rows: Sequence[Row]) -> Row:
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def ordinal(place: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(place, f"{place}th")


def table(rows: Mapping[str, Sequence[Row]], digits: int | None = None) -> str:
    """A Markdown table: the mean of each group of rows, and half of its range where it has one."""
    names = list(next(iter(rows.values()))[0])
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, group in rows.items():
        cells = [cell([row[name] for row in group], digits) for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: Sequence[float], digits: int | None) -> str:
    mean, spread = statistics.mean(values), (max(values) - min(values)) / 2
    if digits is None:
        digits = 3 if abs(mean) < 2 else 2 if abs(mean) < 20 else 1
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
