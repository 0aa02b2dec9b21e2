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
from calibration import WANTED as CALIBRATED_SENTENCES
from calibration import calibrate, described, front
from choices import choose_device, choose_pairs, load_clip, make_writable, warnings_as_notes
from clip_fusion_loss import (
    FrozenCLIP,
    FusionObjective,
    LanguageDrivenFusionLoss,
    StructureLoss,
)
from clip_fusion_loss.functional import resize_images
from command_line import errors_as_messages, whole_number
from controls import clahe, unsharp
from embedding_space import save_embedding_space
from files import written_whole
from fusing import average, laplacian_pyramid, maximum
from images import luminance, to_8bit
from pairs import LAYOUTS, Pair
from tiny_clip.degradations import gaussian_blur
from tiny_clip.evaluate import fusions, modality_table
from training import BATCH_SIZE, CROP_SIDE
from trials import BRIGHTNESS, LAYOUT, Bench, Trial

#: Sentences, and the change against the same loss without language that each is to reach, in
#: percent. None: no measure may change by more than `SILENCE`.
WANTED: Mapping[str, Mapping[str, float] | None] = {
    Trial.prompt: {"AG": 60, "SD": 20},
    "a dark image": {BRIGHTNESS: -30},
    "a bright image": {BRIGHTNESS: 15},
    "a blurry image": {"AG": -35},
    "a noisy image": {"AG": 40},
    "an image with low contrast": {"SD": -35},
    "a purple elephant dancing": None,
}
SILENCE = 3.0

#: `LAYOUT` of a fused image in which the scene is still the sources'.
WANTED_LAYOUT = 0.9

#: Pairs to measure again; which of them are in the pictures, and which on the front page; and the
#: height of an image in the pictures.
SHOWN_PAIRS = 5
PICTURED = (0, 3, 4)
FRONT_PAGE = (3, 4)
SHOWN_INCHES = 1.3

CALIBRATION_SETTINGS = 5
SWEEP_STEPS = 100

#: Side at which hand-made fusions are judged, in pixels.
RANKING_SIDE = 192

NO_LANGUAGE = "no language"
FULL = "+ direction and patches: full"

Row = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=LAYOUTS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add("--pairs", type=Path, required=True, metavar="DIR", help="every second pair is tested on")
    add("--show", type=Path, metavar="DIR", help=f"{SHOWN_PAIRS} more pairs, for the pictures")
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
        default=150,
        metavar="N",
        help=f"of each training {shown}",
    )
    add(
        "--max-pairs",
        type=whole_number,
        default=25,
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
    names = options.pairs.name, options.show.name if options.show else ""
    bench = Bench(encoder, halves[0], halves[1], shown, folder, device, names)
    like = LanguageDrivenFusionLoss.tiny
    if options.encoder != "tiny":
        like = partial(LanguageDrivenFusionLoss, encoder=encoder, regularizer=StructureLoss())
    base = Trial(steps=options.steps, amp=options.amp).weighted_like(like())
    seeds = range(options.seeds)
    with warnings_as_notes():
        parts = [
            SECTIONS[name](bench, base, seeds, options.page.parent) for name in options.sections
        ]
        opening = summary(bench, base, seeds) if "steering" in options.sections else ""
    introductory = introduction(bench, base, seeds, options)
    text = "\n\n".join(filter(None, ["# Results", opening, introductory, *parts])) + "\n"
    with written_whole(options.page) as temporary:
        temporary.write_text(text, "utf-8")
    print(options.page)


def introduction(
    bench: Bench, base: Trial, seeds: Sequence[int], options: argparse.Namespace
) -> str:
    precision = "bfloat16" if base.amp else "float32"
    credit = f"\n\nImages in the pictures: {options.credit}." if options.credit else ""
    first, second = bench.names
    again = f", and on {len(bench.shown)} pairs of {second}" if bench.shown else ""
    return f"""These are demonstrations with the `{bench.encoder.name}` CLIP. What a real CLIP does
to the images has not been measured: its weights could not be had where this page was made.
`--encoder ViT-B-32-quickgelu/openai` makes the same page with them.

`examples/evidence.py` made this page; no figure was typed in. The network is DenseFuse, which
learns to correct the average of its sources: {base.steps} steps of {BATCH_SIZE} crops of
{CROP_SIDE} pixels, in {precision}, from {len(bench.training)} pairs of {first}, with Adam at
{base.learning_rate:g} falling to 0. It was measured on {len(bench.test)} other pairs of
{first}{again}. A figure is the mean over {len(seeds)} seeds, with the spread (half of the range)
behind it. "No language" is the same training without the direction and patch terms. The measures
are those of `examples/evaluate.py`. `{BRIGHTNESS}` is the mean grey level. `{LAYOUT}` is the
correlation with the brighter source after means over 16 pixels: near 1, the scene is still there.
EN, SD, SF and AG reward noise and embossing too: read them beside SSIM and Qabf, and look at the
pictures.{credit}"""


def summary(bench: Bench, base: Trial, seeds: Sequence[int]) -> str:
    """Three sentences: what the sentence changes, what it costs, what a filter does instead."""
    silent = over_seeds(bench, base.without_language(), seeds)

    def effect(prompt: str, measure: str) -> str:
        rows = over_seeds(bench, replace(base, prompt=prompt), seeds)
        return f"{statistics.mean(changes(rows, silent, measure)):+.0f} %"

    full = over_seeds(bench, base, seeds)
    plain = mean_of(bench.measure([average(pair) for pair in bench.test]))
    won = {
        name: wins(full, filtered_rows(bench, base, seeds, control))
        for name, control in CONTROLS.items()
    }
    won_words = " and ".join(
        f"{min(numbers)} to {max(numbers)} of 8 measures against {name}"
        for name, numbers in won.items()
    )
    return (
        "**The sentence decides what the image looks like.** Against the same training without "
        f'language, "a dark image" changes the brightness by {effect("a dark image", BRIGHTNESS)}, '
        f'"a bright image" by {effect("a bright image", BRIGHTNESS)}, "a blurry image" the average '
        f"gradient by {effect('a blurry image', 'AG')}, and the paper's sentence raises it by "
        f"{effect(Trial.prompt, 'AG')} and the contrast by {effect(Trial.prompt, 'SD')}. "
        "**It costs likeness to the sources**: with the paper's sentence SSIM is "
        f"{mean_of(full)['SSIM']:.3f} (the plain average has {plain['SSIM']:.3f}) and Qabf "
        f"{mean_of(full)['Qabf']:.3f} (average: {plain['Qabf']:.3f}). **A filter is the control**: "
        "on images made without language, at the same average gradient, the paper's sentence is "
        f"ahead in {won_words}."
    )


def ablation(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """What each term adds, and what a sharpening filter would do at equal average gradient."""
    silent = base.without_language()
    before = replace(
        base, direction=0.45, patch=2.25, similarity=6.0, regularizer=10.0, structure=False,
        patches=8, min_entropy=6.0,
    )  # fmt: skip
    trials = {
        "structure": replace(silent, similarity=0.0),
        f"+ similarity: {NO_LANGUAGE}": silent,
        FULL: base,
        "the default of version 0.1.0, with `IntensityGradientLoss`": before,
    }
    rows = {"average of the sources": [mean_of(bench.measure([average(p) for p in bench.test]))]}
    rows |= {name: over_seeds(bench, trial, seeds) for name, trial in trials.items()}
    filtered = {
        f"{NO_LANGUAGE}, then {name} to the same AG": filtered_rows(bench, base, seeds, control)
        for name, control in CONTROLS.items()
    }
    parts = [
        "## What each part of the loss adds",
        table(rows | filtered),
        "The full loss against filters at equal AG, seed by seed:",
        table({name: gains(rows[FULL], other) for name, other in filtered.items()}),
        "\n".join(
            f"- {name}: the sentence is ahead in "
            f"{', '.join(map(str, wins(rows[FULL], other)))} of the 8 measures."
            for name, other in filtered.items()
        ),
    ]
    return "\n\n".join(parts + picture(bench, trials, folder / "images" / "ablation.jpg"))


CONTROLS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "unsharp mask": unsharp,
    "CLAHE": clahe,
}


def filtered_rows(
    bench: Bench, base: Trial, seeds: Sequence[int], control: Callable[[Tensor, float], Tensor]
) -> list[Row]:
    """The images without language, filtered to the AG of those with it."""
    return [
        bench.filtered(replace(base.without_language(), seed=seed), control, row["AG"])
        for seed, row in zip(seeds, over_seeds(bench, base, seeds), strict=True)
    ]


def wins(rows: Sequence[Row], others: Sequence[Row]) -> list[int]:
    """In how many measures each row is ahead of its other; what is equal counts for nobody."""
    # At an AG that was matched the last digits are chance.
    return [
        sum(row[name] > 1.002 * other[name] for name in row if name not in (BRIGHTNESS, LAYOUT))
        for row, other in zip(rows, others, strict=True)
    ]


def steering(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """What each sentence does to the images, against the same loss without language."""
    trials = {NO_LANGUAGE: base.without_language()}
    trials |= {f'"{prompt}"': replace(base, prompt=prompt) for prompt in WANTED}
    parts = ["## What a sentence does"]
    parts += picture(bench, trials, folder / "images" / "steering.jpg")
    if bench.shown:
        front_page = {name: trials[name] for name in (f'"{Trial.prompt}"', '"a dark image"')}
        columns, windows = shown_groups(bench, front_page, FRONT_PAGE)
        report.save_sheet(columns, windows, folder / "images" / "prompts.jpg")
    parts += [
        "Does it do what it says? Change against no language:",
        verdicts(bench, trials, seeds),
    ]
    parts.append(order(bench, trials, seeds))
    for part, name in parts_of(bench):
        rows = {title: over_seeds(bench, trial, seeds, part) for title, trial in trials.items()}
        changed = {
            title: [
                change(row, silent) for row, silent in zip(group, rows[NO_LANGUAGE], strict=True)
            ]
            for title, group in rows.items()
            if title != NO_LANGUAGE
        }
        parts += [f"{name}, measures:", table(rows)]
        parts += [f"{name}, change against no language in percent:", table(changed, digits=0)]
    unknown = unknown_words(bench.encoder)
    if unknown:
        parts.append("Words that this CLIP does not know: " + ", ".join(unknown) + ".")
    named = {name: trials[name] for name in (*list(trials)[:2], '"a dark image"')}
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


def parts_of(bench: Bench) -> list[tuple[str, str]]:
    """The sets of pairs that are measured, and their names."""
    return list(zip(("test", "shown") if bench.shown else ("test",), bench.names, strict=False))


def verdicts(bench: Bench, trials: Mapping[str, Trial], seeds: Sequence[int]) -> str:
    """A Markdown table: the change that each sentence is to make, and those that were measured."""
    sets = parts_of(bench)
    header = "| sentence | to reach | " + " | ".join(f"{name} | seeds" for _, name in sets) + " |"
    lines = [header, "|---" * (2 + 2 * len(sets)) + "|"]
    silent = {part: over_seeds(bench, trials[NO_LANGUAGE], seeds, part) for part, _ in sets}
    for prompt, wanted in WANTED.items():
        rows = {part: over_seeds(bench, trials[f'"{prompt}"'], seeds, part) for part, _ in sets}
        for measure, threshold in (wanted or {"every measure": SILENCE}).items():
            cells = []
            for part, _ in sets:
                if wanted is None:
                    shifts = [
                        max((abs(v), v) for n, v in change(row, other).items() if n != LAYOUT)[1]
                        for row, other in zip(rows[part], silent[part], strict=True)
                    ]
                    reached = [abs(shift) <= threshold for shift in shifts]
                else:
                    shifts = changes(rows[part], silent[part], measure)
                    sign = 1 if threshold > 0 else -1
                    reached = [sign * shift >= sign * threshold for shift in shifts]
                cells.append(f"{statistics.mean(shifts):+.1f} %")
                cells.append(f"{sum(reached)} of {len(shifts)}")
            asked = f"{measure} {threshold:+g} %" if wanted else f"{measure} within {SILENCE:g} %"
            lines.append(f'| "{prompt}" | {asked} | {" | ".join(cells)} |')
    return "\n".join(lines)


def order(bench: Bench, trials: Mapping[str, Trial], seeds: Sequence[int]) -> str:
    """In how many single images "dark" is darker than no language, and "bright" brighter."""
    sentences = []
    names = '"a dark image"', NO_LANGUAGE, '"a bright image"'
    for part, name in parts_of(bench):
        ordered, layouts = [], []
        for seed in seeds:
            rows = {t: bench.rows(replace(trial, seed=seed), part) for t, trial in trials.items()}
            means = zip(*([row[BRIGHTNESS] for row in rows[n]] for n in names), strict=True)
            ordered += [dark < silent < bright for dark, silent, bright in means]
            layouts += [mean_of(group)[LAYOUT] for group in rows.values()]
        sentences.append(
            f'{name}: "dark" is darker than no language and "bright" brighter in {sum(ordered)} of '
            f"{len(ordered)} single images; the least mean `{LAYOUT}` of a sentence is "
            f"{min(layouts):.2f} (at least {WANTED_LAYOUT} is wanted)."
        )
    return "\n\n".join(sentences)


def ranking(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """The loss of fusions made by hand."""
    patches = torch.Generator()
    criterion = LanguageDrivenFusionLoss(
        FusionObjective(base.prompt),
        encoder=bench.encoder,
        direction_weight=base.direction,
        patch_weight=base.patch,
        similarity_weight=base.similarity,
        regularizer=StructureLoss(
            window=base.window, flat_energy=base.flat_energy, layout_weight=base.layout_weight
        ),
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
        pairs = [squared(bench.shown[i]) for i in within(bench, PICTURED)]
        made = [hand_made(*pair) for pair in pairs]
        pictures = {
            f"{name}: {row['total']:.2f}": [to_8bit(images[name][0]) for images in made]
            for name, [row] in ordered.items()
        }
        windows = [report.salient_window(*(to_8bit(i[0]) for i in pair)) for pair in pairs]
        path = folder / "images" / "ranking.jpg"
        report.save_sheet(pictures, windows, path, cell_inches=SHOWN_INCHES, as_rows=True)
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
        name: [mean_of(bench.measure([fusion(pair) for pair in bench.test]))]
        for name, fusion in {
            "average": average,
            "maximum": maximum,
            "Laplacian pyramid": laplacian_pyramid,
        }.items()
    }
    rows["DenseFuse, no language"] = over_seeds(bench, base.without_language(), seeds)
    rows["DenseFuse, the paper's sentence"] = over_seeds(bench, base, seeds)
    return "\n\n".join(["## Beside fusions without training", table(rows)])


def sweep(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """How much language, and how many patches."""
    seeds, base = seeds[:1], replace(base, steps=min(base.steps, SWEEP_STEPS))
    trials = {NO_LANGUAGE: base.without_language()}
    trials |= {
        f"language x {factor:g}": replace(
            base, direction=base.direction * factor, patch=base.patch * factor
        )
        for factor in (0.5, 1, 2, 4)
    }
    counts = {f"{count} patches": replace(base, patches=count) for count in (2, 4, 8, 32)}
    rows = {name: over_seeds(bench, trial, seeds) for name, trial in (trials | counts).items()}
    seconds = {name: bench.seconds_a_step(trial) for name, trial in (trials | counts).items()}
    for name, group in rows.items():
        group[0] = group[0] | {"s a step": seconds[name]}
    parts = [
        "## How much language, how many patches",
        "To have more or less language, turn `direction_weight` and `patch_weight` up or down "
        f"together. One seed, {base.steps} steps. x 1 is a weight of {base.direction:g} for the "
        f"whole image and of {base.patch:g} for its patches, of which there are {base.patches} "
        "unless said. Too much is where SF and AG still rise while Qabf falls below the run "
        "without language: edges that no source has. Seconds are those of the whole training "
        "step, on the processor that made this page.",
        table(rows),
    ]
    return "\n\n".join(parts + picture(bench, trials, folder / "images" / "weights.jpg"))


def calibration(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """How the default weights of the embedded CLIP were found."""
    small = replace(
        bench,
        test=[bench.test[i] for i in range(0, len(bench.test), 4)],
        shown=[],
        folder=bench.folder / "calibration",
    )
    start = replace(base, steps=60, crops=2)
    trials, points = calibrate(small, start, CALIBRATION_SETTINGS, folder / "images")
    best = front(points)
    rows = {}
    for index in sorted(range(len(points)), key=lambda index: -points[index][0]):
        name = ("**tiny()**" if index == 0 else str(index)) + " *" * (index in best)
        steering, structure = points[index]
        rows[name] = [{"steering": steering, "structure": structure} | described(trials[index])]
    return "\n\n".join(
        [
            "## Where the default weights come from",
            f"`tiny()` beside {CALIBRATION_SETTINGS} settings drawn around it, each in short "
            f"trainings ({start.steps} steps of {start.crops} crops) for "
            f"{len(CALIBRATED_SENTENCES)} sentences and without language. Steering is the share of "
            "the wanted change that the sentences reach, structure the mean of SSIM and Qabf under "
            f"the paper's and of the least `{LAYOUT}` under any. Stars "
            "mark the front: no other setting is better in both.",
            "![Steering against structure](images/calibration.png)",
            table(rows, digits=None),
        ]
    )


SECTIONS: dict[str, Callable[[Bench, Trial, Sequence[int], Path], str]] = {
    "steering": steering,
    "ablation": ablation,
    "sweep": sweep,
    "calibration": calibration,
    "ranking": ranking,
    "peers": peers,
}


def picture(bench: Bench, trials: Mapping[str, Trial], path: Path) -> list[str]:
    """Write a row of the shown pairs for each trial; returns the Markdown for it, or nothing."""
    if not bench.shown:
        return []
    rows, windows = shown_groups(bench, trials, PICTURED)
    report.save_sheet(rows, windows, path, cell_inches=SHOWN_INCHES, as_rows=True)
    names = ", ".join(rows).replace('"', "'")
    return [f"![From top to bottom: {names}]({path.parent.name}/{path.name})"]


def shown_groups(
    bench: Bench, trials: Mapping[str, Trial], indices: Sequence[int]
) -> tuple[dict[str, list[Tensor]], list[report.Window]]:
    """Sources and fused images of some shown pairs by title, and their details."""
    indices = within(bench, indices)
    pairs = [bench.shown[index] for index in indices]
    visible = [to_8bit(luminance(pair.visible)) for pair in pairs]
    groups = {"infrared": [pair.infrared for pair in pairs], "visible": visible}
    for name, trial in trials.items():
        images = bench.shown_images(trial)
        groups[name] = [images[index] for index in indices]
    windows = [
        report.salient_window(grey, pair.infrared)
        for grey, pair in zip(visible, pairs, strict=True)
    ]
    return groups, windows


def within(bench: Bench, indices: Sequence[int]) -> list[int]:
    """Those of the shown pairs that there are."""
    return sorted({min(index, len(bench.shown) - 1) for index in indices})


def over_seeds(bench: Bench, trial: Trial, seeds: Sequence[int], part: str = "test") -> list[Row]:
    return [bench.run(replace(trial, seed=seed), part) for seed in seeds]


def unknown_words(encoder: FrozenCLIP) -> list[str]:
    known = encoder.vocabulary
    words = {word for prompt in WANTED for word in prompt.split()}
    return [] if known is None else sorted(words - known)


def changes(rows: Sequence[Row], others: Sequence[Row], measure: str) -> list[float]:
    """Changes of one measure in percent."""
    return [change(row, other)[measure] for row, other in zip(rows, others, strict=True)]


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
