"""The section that compares trained networks with fusion rules and published methods."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from parts.data.images import luminance, read_image, to_8bit
from parts.measuring.baselines import average, laplacian_pyramid, maximum
from parts.measuring.comparing import Row, mean_of, over_seeds
from parts.measuring.trials import BRIGHTNESS, LAYOUT, Bench, Trial
from parts.pages import sheets
from parts.pages.shown import PICTURED, SHOWN_INCHES, shown_groups, within
from parts.pages.steering import parts_of
from parts.pages.tables import ordinal, table

RULES = {"average": average, "maximum": maximum, "Laplacian pyramid": laplacian_pyramid}

#: Weaker language terms and a stronger regularizer than in `tiny()`, and a longer training: this
#: keeps the sources' edges while the sentence raises contrast and detail.
LEAD = {
    "steps": 1400,
    "direction": 1.5,
    "patch": 0.6,
    "similarity": 2.0,
    "regularizer": 12.0,
    "window": 5,
    "flat_energy": 0.06,
}

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
        "DenseFuse, no language": (base.without_language(), seeds),
        "DenseFuse, the paper's sentence": (base, seeds),
        f"DenseFuse, the paper's sentence, structure first, {leading.steps} steps": (
            leading,
            seeds[:1],
        ),
    }
    sections = ["## Beside other fusions"]
    if bench.published is not None:
        sections.append(
            "Published methods with their released weights, measured on the images as saved. Some "
            "authors' code stretches the contrast of each image to the full range, which raises "
            "EN, SD, SF, AG and Qabf; those outputs have separate tables below. The best value of "
            "a table is bold. *Rank* is the mean place in the eight measures. *Led in* is the "
            "number of measures in which the last row is ahead of this one."
        )
    for part, name in parts_of(bench):
        rows = {
            rule: mean_of(bench.measure([fusion(pair) for pair in getattr(bench, part)], part))
            for rule, fusion in RULES.items()
        }
        plain, stretched = published_rows(bench, part)
        trained = {title: mean_of(over_seeds(bench, *of, part)) for title, of in ours.items()}
        sections += [f"{name}:", ranked(rows | plain | trained)]
        if plain:
            sections.append(standing(plain | trained, list(plain)))
        if stretched:
            sections += [f"{name}, with stretched contrast:", ranked(stretched | trained)]
    sections.append(
        f"The last row has other weights than `tiny()`: direction {leading.direction:g}, patches "
        f"{leading.patch:g}, "
        f"similarity {leading.similarity:g}, `StructureLoss(window={leading.window}, "
        f"flat_energy={leading.flat_energy:g}, layout_weight={leading.layout_weight:g})` x "
        f"{leading.regularizer:g}. Our networks were trained on {bench.names[0]} only, with "
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


def ranked(rows: Mapping[str, Row]) -> str:
    """A Markdown table with the mean rank and the number of measures the last row is ahead in."""
    names = names_of(rows)
    lines = table({title: [{n: row[n] for n in names}] for title, row in rows.items()}).split("\n")
    for column, name in enumerate(names, 2):
        line = max(range(2, len(lines)), key=lambda i: list(rows.values())[i - 2][name])
        cells = lines[line].split("|")
        cells[column] = f" **{cells[column].strip()}** "
        lines[line] = "|".join(cells)
    lines[0] += " rank | led in |"
    lines[1] += "---:|---:|"
    ahead = led(rows)
    for line, (title, place) in enumerate(ranks(rows).items(), 2):
        lines[line] += f" {place:.2f} | {ahead[title]} |"
    return "\n".join(lines)


def names_of(rows: Mapping[str, Row]) -> list[str]:
    """The measures that count."""
    return [name for name in next(iter(rows.values())) if name not in (BRIGHTNESS, LAYOUT)]


def ranks(rows: Mapping[str, Row]) -> dict[str, float]:
    """The mean place of each row in the measures, from 1."""
    return {
        title: statistics.mean(
            1 + sum(other[name] > row[name] for other in rows.values()) for name in names_of(rows)
        )
        for title, row in rows.items()
    }


def led(rows: Mapping[str, Row]) -> dict[str, int]:
    """In how many measures the last row is ahead of each."""
    last = list(rows.values())[-1]
    return {
        title: sum(last[name] > row[name] for name in names_of(rows)) for title, row in rows.items()
    }


def standing(rows: Mapping[str, Row], published: Sequence[str]) -> str:
    """Where the last row stands among the published ones."""
    own = list(rows)[-1]
    place = ranks({name: rows[name] for name in (*published, own)})
    ahead = sum(led(rows)[name] >= MOST for name in published)
    better = sum(place[name] < place[own] for name in published)
    return (
        f"Among these {len(published)} published methods the last row is {ordinal(1 + better)} by "
        f"rank ({place[own]:.2f}), and ahead of {ahead} in at least {MOST} measures."
    )


def picture(bench: Bench, ours: Mapping[str, tuple[Trial, Sequence[int]]], path: Path) -> list[str]:
    """Write a row of the shown pairs for some published methods and for `ours`."""
    found = {name: paths for (_, name), paths in published_images(bench, "shown").items()}
    if not bench.shown or not found:
        return []
    groups, windows = shown_groups(bench, {}, PICTURED)
    groups |= {
        name: [grey(found[name][index]) for index in within(bench, PICTURED)]
        for name in PICTURED_METHODS
        if name in found
    }
    trials = {title: trial for title, (trial, _) in ours.items()}
    groups |= shown_groups(bench, trials, PICTURED)[0]
    sheets.save_sheet(groups, windows, path, cell_inches=SHOWN_INCHES, as_rows=True)
    return [f"![From top to bottom: {', '.join(groups)}]({path.parent.name}/{path.name})"]
