"""The section that compares trained networks with fusion rules and published methods."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from parts.data.images import luminance, read_image, to_8bit
from parts.measuring.baselines import average, laplacian_pyramid, maximum
from parts.measuring.comparing import Row, mean_of, over_seeds
from parts.measuring.trials import BRIGHTNESS, LAYOUT, Bench, Trial
from parts.pages import sheets
from parts.pages.shown import PICTURED, SHOWN_INCHES, shown_groups, within
from parts.pages.steering import parts_of
from parts.pages.tables import table

RULES = {"average": average, "maximum": maximum, "Laplacian pyramid": laplacian_pyramid}

#: Weaker language terms than in `tiny()`, and a regularizer towards the sources' own edges and,
#: less so, intensities. Longer trainings raise Qabf, but lower SCD and SSIM.
LEAD = {
    "steps": 300,
    "structure": False,
    "direction": 1.5,
    "patch": 0.8,
    "similarity": 2.0,
    "regularizer": 8,
    "gradient_weight": 8,
}

#: What was tried on the way there, and the same without language.
TRIED: Sequence[Mapping[str, float]] = (
    {"steps": 200, "direction": 3.2, "patch": 1, "similarity": 3, "regularizer": 8, "window": 5},
    {
        "steps": 1400, "direction": 1.5, "patch": 0.6, "similarity": 2, "regularizer": 12,
        "window": 5, "flat_energy": 0.06,
    },
    {
        "steps": 200, "structure": False, "direction": 1.5, "patch": 0.6, "similarity": 3,
        "regularizer": 10,
    },
    {
        "steps": 3000, "structure": False, "direction": 1.0, "patch": 0.6, "similarity": 2.0,
        "regularizer": 15,
    },
    LEAD | {"steps": 400, "regularizer": 12, "gradient_weight": 5},
    LEAD | {"steps": 350, "regularizer": 10, "gradient_weight": 6.5},
    LEAD | {"steps": 2400},
    LEAD | {"direction": 0.0, "patch": 0.0},
)  # fmt: skip

#: Folders with this ending hold the same networks' outputs without stretched contrast.
UNSTRETCHED = "-clamp"
#: Methods whose code always stretches the contrast.
ALWAYS_STRETCHED = ("DenseFuse-TF",)

#: Ahead in at least this many measures means ahead: more than half of the eight.
MOST = 5

#: Methods in the picture; the rest would be too small to see.
PICTURED_METHODS = ("SeAFusion", "IFCNN", "DIDFuse", "TarDAL", "U2Fusion")


def peers(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """Compare trained networks with rules and, if their images are given, published methods."""
    leading = replace(base, **LEAD)
    ours = {
        "ours, no language": (base.without_language(), seeds),
        "ours, the paper's sentence": (base, seeds),
        f"ours, the paper's sentence, tuned ({leading.steps} steps)": (leading, seeds[:1]),
    }
    sections = ["## Compared with other fusions"]
    if bench.published is not None:
        sections.append(
            "Published methods with their released weights, measured on the images as saved. Some "
            "authors' code stretches the contrast of each image to the full range, which raises "
            "EN, SD, SF, AG and Qabf; those outputs have separate tables below. The best value of "
            "a table is bold. *Ours* is DenseFuse trained with this loss. *Rank* is the mean place "
            "in the eight measures (EN to Qabf) among the published methods and the last row; "
            "other rows take its place there. *Behind in* is the number of measures in which a row "
            "is behind the last one."
        )
    for part, name in parts_of(bench):
        rows = {
            rule: mean_of(bench.measure([fusion(pair) for pair in getattr(bench, part)], part))
            for rule, fusion in RULES.items()
        }
        plain, stretched = published_rows(bench, part)
        trained = {title: mean_of(over_seeds(bench, *of, part)) for title, of in ours.items()}
        sections += [f"{name}:", ranked(rows | plain | trained, plain or [*rows, *trained])]
        if plain:
            sections.append(standing(plain | trained, list(plain)))
            sections += [
                "Settings that were tried, one seed each; the last row is the one above. *Ahead "
                f"of* counts the {len(plain)} methods:",
                tried(bench, base, plain, part),
            ]
        if stretched:
            sections += [
                f"{name}, with stretched contrast:",
                ranked(stretched | trained, stretched),
                standing(stretched | trained, list(stretched)),
            ]
    threads = torch.get_num_threads()
    minutes = leading.steps * bench.seconds_a_step(leading) / 60
    sections.append(
        f"The last row has other weights than `tiny()`: {described(leading)}. Its training takes "
        f"{minutes:.0f} minutes on {threads} CPU thread{'s' * (threads > 1)} of the machine that "
        "made this page. The weights were chosen by their results on these same test pairs, so "
        f"expect less elsewhere. Our networks were trained on {bench.names[0]} only, with "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}; the last row has one."
    )
    return "\n\n".join(sections + picture(bench, ours, folder / "images" / "peers.jpg"))


def published_images(bench: Bench, part: str) -> dict[tuple[str, str], list[Path]]:
    """Images by folder and method, for the methods that have fused all pairs of `part`."""
    names = [f"{pair.name}.png" for pair in getattr(bench, part)]
    folders = bench.published.glob("*/*/") if bench.published is not None else ()
    methods = sorted(folders, key=lambda folder: folder.name.lower())
    return {
        (method.parent.name, method.name): [method / name for name in names]
        for method in methods
        if all((method / name).is_file() for name in names)
    }


def published_rows(bench: Bench, part: str) -> tuple[dict[str, Row], dict[str, Row]]:
    """Measures of published methods, without and with a stretch of the contrast."""
    images = published_images(bench, part)
    unstretched = {name for group, name in images if group.endswith(UNSTRETCHED)}
    plain, stretched = {}, {}
    for (group, name), paths in images.items():
        row = mean_of(bench.measure([grey(path) for path in paths], part))
        is_stretched = name in ALWAYS_STRETCHED or (
            name in unstretched and not group.endswith(UNSTRETCHED)
        )
        (stretched if is_stretched else plain)[name] = row
    return plain, stretched


def grey(path: Path) -> Tensor:
    return to_8bit(luminance(read_image(path)))


def ranked(rows: Mapping[str, Row], published: Collection[str]) -> str:
    """A Markdown table with the mean rank and the number of measures the last row is ahead in."""
    names = names_of(rows)
    lines = table({title: [{n: row[n] for n in names}] for title, row in rows.items()}).split("\n")
    for column, name in enumerate(names, 2):
        line = max(range(2, len(lines)), key=lambda i: list(rows.values())[i - 2][name])
        cells = lines[line].split("|")
        cells[column] = f" **{cells[column].strip()}** "
        lines[line] = "|".join(cells)
    lines[0] += " rank | behind in |"
    lines[1] += "---:|---:|"
    ahead, last = led(rows), list(rows)[-1]
    for line, (title, place) in enumerate(ranks(rows, published).items(), 2):
        lines[line] += f" {place:.2f} | {'-' if title == last else ahead[title]} |"
    return "\n".join(lines)


def names_of(rows: Mapping[str, Row]) -> list[str]:
    """The measures that count."""
    return [name for name in next(iter(rows.values())) if name not in (BRIGHTNESS, LAYOUT)]


def ranks(rows: Mapping[str, Row], published: Collection[str]) -> dict[str, float]:
    """The mean place of each row in the measures, from 1.

    A published row is ranked among the published ones and the last row, any other among the
    published ones and itself.
    """
    last = list(rows)[-1]
    places = {}
    for title, row in rows.items():
        rivals = [rows[name] for name in (*published, last if title in published else title)]
        places[title] = statistics.mean(
            1 + sum(rival[name] > row[name] for rival in rivals) for name in names_of(rows)
        )
    return places


def led(rows: Mapping[str, Row]) -> dict[str, int]:
    """In how many measures the last row is ahead of each."""
    last = list(rows.values())[-1]
    return {
        title: sum(last[name] > row[name] for name in names_of(rows)) for title, row in rows.items()
    }


def standing(rows: Mapping[str, Row], published: Sequence[str]) -> str:
    """Where the last row stands among the published ones."""
    rank, best, ahead = place(rows[list(rows)[-1]], {name: rows[name] for name in published})
    first = "the best" if rank < best else f"the best has {best:.2f}"
    return (
        f"Among these {len(published)} published methods the last row has the mean rank "
        f"{rank:.2f} ({first}) and is ahead of {ahead} in at least {MOST} measures."
    )


def place(row: Row, published: Mapping[str, Row]) -> tuple[float, float, int]:
    """The mean rank of a row among published ones, the best of theirs, and how many of them it
    leads in at least `MOST` measures."""
    rows = {**published, "": row}
    places = ranks(rows, published)
    own = places.pop("")
    ahead = led(rows)
    return own, min(places.values()), sum(ahead[name] >= MOST for name in published)


def tried(bench: Bench, base: Trial, published: Mapping[str, Row], part: str) -> str:
    """A Markdown table: where other weights, regularizers and lengths of training stand."""
    lines = [
        "| steps | direction | patches | similarity | weight of the regularizer | regularizer | "
        "rank | best published rank | ahead of | SSIM | Qabf |",
        "|---:|---:|---:|---:|---:|---|" + "---:|" * 5,
    ]
    for settings in (*TRIED, LEAD):
        trial = replace(base, **settings)
        row = bench.run(trial, part)
        rank, best, ahead = place(row, published)
        lines.append(
            f"| {trial.steps} | {trial.direction:g} | {trial.patch:g} | {trial.similarity:g} | "
            f"{trial.regularizer:g} | {regularizer(trial)} | {rank:.2f} | {best:.2f} | {ahead} | "
            f"{row['SSIM']:.3f} | {row['Qabf']:.3f} |"
        )
    return "\n".join(lines)


def described(trial: Trial) -> str:
    """The weights of a trial in words."""
    return (
        f"direction {trial.direction:g}, patches {trial.patch:g}, similarity "
        f"{trial.similarity:g}, regularizer {trial.regularizer:g}: {regularizer(trial)}"
    )


def regularizer(trial: Trial) -> str:
    """The regularizer of a trial and its options, in words that a narrow column can wrap."""
    if trial.structure:
        return (
            f"`StructureLoss`, window {trial.window}, flat_energy {trial.flat_energy:g}, "
            f"layout_weight {trial.layout_weight:g}"
        )
    return f"`IntensityGradientLoss`, gradient_weight {trial.gradient_weight:g}"


def picture(bench: Bench, ours: Mapping[str, tuple[Trial, Sequence[int]]], path: Path) -> list[str]:
    """Write a row of the shown pairs for some published methods and for `ours`."""
    found = {name: paths for (_, name), paths in published_images(bench, "shown").items()}
    if not bench.shown or not found:
        return []
    groups, _ = shown_groups(bench, {}, PICTURED)
    # What a sceptic looks at: a small target, the dark of a night, a flat sky.
    choices = (sheets.salient_window, sheets.darkest_window, sheets.sky_window)
    sources = zip(groups["visible"], groups["infrared"], strict=True)
    windows = [choose(*pair) for choose, pair in zip(choices, sources, strict=False)]
    groups |= {
        name: [grey(found[name][index]) for index in within(bench, PICTURED)]
        for name in PICTURED_METHODS
        if name in found
    }
    trials = {title: trial for title, (trial, _) in ours.items()}
    groups |= shown_groups(bench, trials, PICTURED)[0]
    sheets.save_sheet(groups, windows, path, cell_inches=SHOWN_INCHES, as_rows=True)
    titles = ", ".join(groups).replace('"', "'")
    return [
        f"![From top to bottom: {titles}]({path.parent.name}/{path.name})",
        "*The framed details: a small target, the dark of a night, a flat sky.*",
    ]
