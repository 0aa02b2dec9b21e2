"""What a sentence does to the images, and the summary of the results."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clip_fusion_loss import FusionObjective
from parts.data.images import luminance, to_8bit
from parts.measuring.baselines import average
from parts.measuring.comparing import (
    CONTROLS,
    Row,
    change,
    changes,
    filtered_rows,
    mean_of,
    over_seeds,
    wins,
)
from parts.measuring.trials import BRIGHTNESS, LAYOUT, Bench, Trial
from parts.pages import sheets
from parts.pages.embedding_space import save_embedding_space
from parts.pages.gallery import save_gallery, unknown_words
from parts.pages.shown import picture, shown_groups
from parts.pages.tables import percent, table

#: Sentences and their target changes in percent, against the same loss without language. None: no
#: measure may change by more than `SILENCE`.
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

#: `LAYOUT` from which on a fused image shows the scene of its sources.
WANTED_LAYOUT = 0.9

IN_WORDS = {BRIGHTNESS: "brightness", "AG": "average gradient", "SD": "contrast"}

FRONT_PAGE = (3, 4)

NO_LANGUAGE = "no language"


def summary(bench: Bench, base: Trial, seeds: Sequence[int]) -> str:
    """The summary: effect of the sentence, its cost, and the comparison with filters."""
    silent = over_seeds(bench, base.without_language(), seeds)

    def effect(prompt: str, measure: str) -> str:
        rows = over_seeds(bench, replace(base, prompt=prompt), seeds)
        return percent(statistics.mean(changes(rows, silent, measure)))

    full = over_seeds(bench, base, seeds)
    plain = mean_of(bench.measure([average(pair) for pair in bench.test]))
    won = {
        name: wins(full, filtered_rows(bench, base, seeds, control))
        for name, control in CONTROLS.items()
    }
    ranges = {name: sorted({min(numbers), max(numbers)}) for name, numbers in won.items()}
    won_words = " and ".join(
        f"of {name} in {' to '.join(map(str, ends))} of 8 measures" for name, ends in ranges.items()
    )
    before, after = mean_of(silent), mean_of(full)
    lines = (
        f"**The sentence changes what the image looks like.** On {len(bench.test)} test pairs of "
        f"{bench.names[0]}, against the same training without language, "
        f'"a dark image" changes the brightness by {effect("a dark image", BRIGHTNESS)}, '
        f'"a bright image" by {effect("a bright image", BRIGHTNESS)}, "a blurry image" the average '
        f"gradient by {effect('a blurry image', 'AG')}. The paper's sentence changes the average "
        f"gradient by {effect(Trial.prompt, 'AG')} and the contrast by "
        f"{effect(Trial.prompt, 'SD')}.",
        "**It costs similarity to the sources.** With the paper's sentence SSIM is "
        f"{after['SSIM']:.3f} in place of {before['SSIM']:.3f} without language, Qabf "
        f"{after['Qabf']:.3f} in place of {before['Qabf']:.3f}. The plain average of the sources "
        f"has {plain['SSIM']:.3f} and {plain['Qabf']:.3f}.",
        "**A filter on the images without language makes as much sharpness.** At the same average "
        f"gradient, the paper's sentence is ahead {won_words}.",
        failures(bench, base, seeds),
    )
    return "\n".join(f"- {line}" for line in lines)


def failures(bench: Bench, base: Trial, seeds: Sequence[int]) -> str:
    """The sentences that miss their target in some seed, with the seeds that reach it."""
    silent = over_seeds(bench, base.without_language(), seeds)
    missed = []
    for prompt, wanted in WANTED.items():
        rows = over_seeds(bench, replace(base, prompt=prompt), seeds)
        for measure, target in (wanted or {}).items():
            _, reached = against(rows, silent, measure, target)
            if reached < len(seeds):
                missed.append(
                    f'"{prompt}" reaches {IN_WORDS[measure]} {target:+g} % in {reached or "none"}'
                )
    if not missed:
        return "All sentences reach their targets in all seeds."
    return f"**Not every sentence reaches its target**: of {len(seeds)} seeds, {', '.join(missed)}."


def against(
    rows: Sequence[Row], silent: Sequence[Row], measure: str, target: float
) -> tuple[float, int]:
    """The mean change of a measure in percent, and how many of the changes reach the target."""
    shifts = changes(rows, silent, measure)
    sign = 1 if target > 0 else -1
    return statistics.mean(shifts), sum(sign * shift >= sign * target for shift in shifts)


def steering(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """What each sentence does to the images, against the same loss without language."""
    trials = {NO_LANGUAGE: base.without_language()}
    trials |= {f'"{prompt}"': replace(base, prompt=prompt) for prompt in WANTED}
    parts = ["## What a sentence does"]
    parts += picture(bench, trials, folder / "images" / "steering.jpg")
    if bench.shown:
        parts.append("[A larger picture for each sentence](gallery.md).")
        spoken = {prompt: trials[f'"{prompt}"'] for prompt in WANTED}
        save_gallery(bench, {NO_LANGUAGE: trials[NO_LANGUAGE]}, spoken, seeds, folder)
        front_page = {name: trials[name] for name in (f'"{Trial.prompt}"', '"a dark image"')}
        columns, windows = shown_groups(bench, front_page, FRONT_PAGE)
        sheets.save_sheet(columns, windows, folder / "images" / "prompts.jpg")
    parts += in_clips_space(bench, base, trials, seeds[0], folder)
    parts += [
        "Does each sentence have the intended effect? Change against no language; *target* is the "
        "change that it should make, *reached* counts the seeds in which it does:",
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
    unknown = unknown_words(bench.encoder, list(WANTED))
    if unknown:
        parts.append("Words that this CLIP does not know: " + ", ".join(unknown) + ".")
    return "\n\n".join(parts)


def in_clips_space(
    bench: Bench, base: Trial, trials: Mapping[str, Trial], seed: int, folder: Path
) -> list[str]:
    """Draw texts and fused images in the embedding space; returns the Markdown for it."""
    named = {name: trials[name] for name in (*list(trials)[:2], '"a dark image"')}
    for trial in named.values():  # nobody may have asked for these yet
        bench.run(replace(trial, seed=seed))
    save_embedding_space(
        bench.encoder,
        FusionObjective(base.prompt),
        [to_8bit(luminance(pair.visible)) for pair in bench.test],
        [to_8bit(luminance(pair.infrared)) for pair in bench.test],
        {name: bench.images(replace(trial, seed=seed)) for name, trial in named.items()},
        folder / "images" / "embedding-space.png",
    )
    return [
        f"The {len(bench.test)} test scenes of {bench.names[0]} in CLIP's embedding space. The "
        "higher the fused images are above both sources, the further they have moved towards the "
        "paper's sentence.",
        "![Texts and images in a plane of the embedding space](images/embedding-space.png)",
    ]


def parts_of(bench: Bench) -> list[tuple[str, str]]:
    """The sets of pairs that are measured, and their names."""
    return list(zip(("test", "shown") if bench.shown else ("test",), bench.names, strict=False))


def verdicts(bench: Bench, trials: Mapping[str, Trial], seeds: Sequence[int]) -> str:
    """A Markdown table: the change that each sentence is to make, and those that were measured."""
    sets = parts_of(bench)
    header = "| sentence | target | " + " | ".join(f"{name} | reached" for _, name in sets) + " |"
    lines = [header, "|---|" + "---:|" * (1 + 2 * len(sets))]
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
                    mean = statistics.mean(shifts)
                    reached = sum(abs(shift) <= threshold for shift in shifts)
                else:
                    mean, reached = against(rows[part], silent[part], measure, threshold)
                cells.append(percent(mean, 1))
                cells.append(f"{reached} of {len(rows[part])}")
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
            f"{len(ordered)} single images; the lowest mean `{LAYOUT}` of a sentence "
            f"with any seed is {min(layouts):.2f} (target: at least {WANTED_LAYOUT})."
        )
    return "\n\n".join(sentences)
