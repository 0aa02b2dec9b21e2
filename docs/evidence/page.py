"""The text of the results page, from its tables alone."""

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from evidence import comparing, regions, tables
from evidence.comparing import EIGHT, MOST, ahead, change, rank, rises
from evidence.tables import (
    BLENDS,
    MIXED,
    NO_LANGUAGE,
    NOT_BRIGHT,
    POOR,
    SENTENCES,
    WORDINGS,
    Table,
    Wording,
    short,
)
from evidence.trials import BLEND_STEPS, BRIGHTNESS, PAPER, Row

FIDELITY_SILENT, FIDELITY_PAPER = "fidelity, no language", "fidelity, the paper's sentence"
README_START, README_END = "On", "[Pictures and tables](docs/results.md)"
SENTENCES_PICTURE, METHODS_PICTURE, BLENDS_PICTURE = "sentences.jpg", "methods.jpg", "blends.jpg"
REGIONS_PICTURE = "regions.jpg"

#: What else is wanted: of the default and of the fidelity setting beside published methods, and of
#: the one network.
RANK, FIDELITY_RANK = 3.0, 2.2
FIDELITY_LEVELS = {"Qabf": 0.6, "SSIM": 0.7, "invented": 0.03}
INVENTED_ON_SECOND_SET = 0.07
SHARE, UNSEEN_SHARE, ORDER = 0.8, 0.6, 0.95
#: How much of a sentence's effect is wanted in its region, and how little elsewhere.
INSIDE, OUTSIDE = 0.7, 0.2
#: Below this change in percent a network of its own has no effect to compare with.
SMALLEST_EFFECT = 10

#: A filter of equal AG counts as behind in a measure by more than this share: AG is matched nearly.
MARGIN = 0.002

DIGITS = {"SD": 1, "SF": 1, "SSIM": 3, "Qabf": 3, "invented": 3, BRIGHTNESS: 0}
#: Data sets by the names of their folders.
NAMES = {"roadscene": "RoadScene", "tno": "TNO"}
IN_WORDS = {BRIGHTNESS: "brightness", "AG": "average gradient", "SD": "contrast"}


class Results:
    """The tables, and what the sections of the page have in common."""

    def __init__(self, tables_: Mapping[str, Table]) -> None:
        self.tables = tables_
        self.run: dict[str, Any] = {row["name"]: row["value"] for row in tables_["run"]}
        self.sets: list[str] = [self.run["test set"], self.run["second set"]]
        self.names = [NAMES.get(name, name) for name in self.sets]
        self.seeds: int = self.run["seeds"]

    def rows(self, name: str, group: str = "ours", data_set: int = 0) -> list[Row]:
        """The rows of one method, a seed each."""
        wanted = {"set": self.sets[data_set], "group": group, "name": name}
        return tables.chosen(self.tables["measures"], **wanted)

    def mean(self, name: str, group: str = "ours", data_set: int = 0) -> Row:
        return tables.mean(self.rows(name, group, data_set))

    def published(self, data_set: int) -> dict[str, Row]:
        """Measures of the published methods as their networks leave them, without a stretch."""
        wanted = {"set": self.sets[data_set], "group": "published"}
        return {row["name"]: row for row in tables.chosen(self.tables["measures"], **wanted)}

    def standing(self, name: str, data_set: int) -> tuple[float, int]:
        """The mean rank among the published methods, and of how many it is ahead."""
        row, others = self.mean(name, data_set=data_set), self.published(data_set).values()
        return rank(row, list(others)), sum(ahead(row, other) >= MOST for other in others)

    def changes(self, name: str, measure: str) -> list[float]:
        """Changes of a measure in percent, against the same seed without language."""
        both = zip(self.rows(name), self.rows(NO_LANGUAGE), strict=True)
        return [change(row, silent, measure) for row, silent in both]

    def effect(self, name: str, measure: str) -> str:
        return percent(statistics.mean(self.changes(name, measure)))

    def reached(self, sentence: str) -> dict[str, int]:
        """How many seeds reach each target of a sentence, by the target in words."""
        reached = {}
        for measure, least in SENTENCES[sentence].changes.items():
            sign = -1 if least < 0 else 1
            met = [sign * value >= sign * least for value in self.changes(sentence, measure)]
            reached[f"{measure} {percent(least) if least else 'not lower'}"] = sum(met)
        for measure, level in SENTENCES[sentence].levels.items():
            values = [row[measure] for row in self.rows(sentence)]
            lower = measure == "invented"
            words = f"{measure} {'at most' if lower else 'at least'} {level:g}"
            reached[words] = sum(value <= level if lower else value >= level for value in values)
        return reached

    def effect_beside(self, wording: Wording, measure: str) -> str:
        """The change of a measure against the sentence alone."""
        return percent(change(self.mean(wording.title), self.mean(wording.alone), measure))

    def moved(self, wording: Wording, data_set: int = 0) -> tuple[list[str], list[str]]:
        """The measures that are better, and those that are worse, with every seed than alone."""
        rows = [self.rows(name, data_set=data_set) for name in (wording.title, wording.alone)]
        both = list(zip(*rows, strict=True))
        better, worse = [], []
        for name in (*EIGHT, "invented"):
            sign = -1 if name == "invented" else 1
            gains = [sign * (row[name] - alone[name]) for row, alone in both]
            if min(gains) > 0:
                better.append(name)
            elif max(gains) < 0:
                worse.append(name)
        return better, worse

    def wins(self, filter_name: str) -> list[int]:
        """In how many measures the paper's sentence is ahead of a filter of equal AG, by seed."""
        both = zip(self.rows(PAPER), self.rows(filter_name, "filter"), strict=True)
        return [ahead(row, other, MARGIN) for row, other in both]

    def shares(self) -> dict[str, dict[str, float]]:
        """By sentence: changes of its measure by a network of its own and by the one network.

        And the shares of the former, where it is large enough to compare with.
        """
        shares = {}
        for sentence, wanted in SENTENCES.items():
            silent = self.mean(NO_LANGUAGE)
            rows = {"single": self.mean(sentence)}
            for title, text in (("one", sentence), ("unseen", wanted.unseen)):
                rows[title] = tables.mean(tables.chosen(self.tables["one_network"], sentence=text))
            changes = {title: change(row, silent, wanted.about) for title, row in rows.items()}
            if abs(changes["single"]) >= SMALLEST_EFFECT:
                changes["share"] = changes["one"] / changes["single"]
                changes["share, unseen"] = changes["unseen"] / changes["single"]
            shares[sentence] = changes
        return shares

    def orders(self) -> dict[tuple[str, str], list[float]]:
        """Rank correlations of the steps of each blend with its measure, by image and seed."""
        return {
            ends: [
                rises([row[f"step {step}"] for step in range(BLEND_STEPS)])
                for row in tables.chosen(self.tables["blends"], **{"from": ends[0], "to": ends[1]})
            ]
            for ends in BLENDS
        }

    def regions(self, trained_on: str) -> dict[regions.Case, tuple[float, float, int]]:
        """Of each case the shares inside and outside, and how many seeds reach both."""
        found = {}
        for case in regions.CASES:
            wanted = {"trained on": trained_on, **vars(case)}
            rows = tables.chosen(self.tables["regions"], **wanted)
            if not rows:  # nothing was hot
                continue
            both = [
                (regions.reached(each, "inside"), regions.reached(each, "outside"))
                for each in (rows, *([row] for row in rows))
            ]
            found[case] = *both[0], sum(i >= INSIDE and o <= OUTSIDE for i, o in both[1:])
        return found

    def best_rank(self, data_set: int) -> float:
        """The mean rank of the best published method beside the others and the default."""
        published = self.published(data_set).values()
        return min(
            rank(row, [*published, self.mean(PAPER, data_set=data_set)]) for row in published
        )

    def span(self, trained_on: str) -> float:
        """Grey levels between the first case's sentences, each told everywhere."""
        wanted = {"trained on": trained_on, **vars(regions.CASES[0])}
        mean = tables.mean(tables.chosen(self.tables["regions"], **wanted))
        return abs(mean["elsewhere, inside"] - mean["sentence, inside"])

    def in_order(self, data_set: int) -> str:
        """In how many images "dark" is darker, and "bright" brighter, than without language."""
        rows = tables.chosen(self.tables["brightness"], set=self.sets[data_set])
        count = sum(row["dark"] < row["neither"] < row["bright"] for row in rows)
        return f"{count} of {len(rows)}"


def text(tables_: Mapping[str, Table]) -> str:
    """The whole page."""
    results = Results(tables_)
    parts = [
        "# Results",
        conclusion(results),
        introduction(results),
        "## What a sentence does",
        *sentences(results),
        "## Opposites and several sentences",
        *wordings(results),
        "## Beside published methods",
        *methods(results),
        "## One network for many sentences",
        *one_network(results),
        "## A sentence for a region",
        *by_region(results),
        "## What it costs",
        costs(results),
    ]
    return "\n\n".join(parts) + "\n"


def readme(tables_: Mapping[str, Table]) -> str:
    """What README.md says of the results, between `README_START` and `README_END`."""
    results = Results(tables_)
    paper, silent = results.mean(PAPER), results.mean(NO_LANGUAGE)
    published = results.published(0)
    met = [count for sentence in SENTENCES for count in results.reached(sentence).values()]
    dark, bright = (results.effect(f"a {word} image", BRIGHTNESS) for word in ("dark", "bright"))
    lines = [
        f"- **The paper's sentence** changes the average gradient by {results.effect(PAPER, 'AG')} "
        f"and the contrast by {results.effect(PAPER, 'SD')}. Edge transfer (Qabf) is "
        f"{paper['Qabf']:.3f} in place of {silent['Qabf']:.3f}, SSIM {paper['SSIM']:.3f} in place "
        f"of {silent['SSIM']:.3f}.",
        f'- **"A dark image" and "a bright image"** change the brightness by {dark} and {bright}.',
        f"- **Targets**: {sum(count == results.seeds for count in met)} of {len(met)} are reached "
        f"with every seed, {sum(count == 0 for count in met)} with none.",
        f"- **Beside {len(published)} published methods** the mean rank over eight measures is "
        f"{results.standing(PAPER, 0)[0]:.2f} (their best {results.best_rank(0):.2f}, without "
        f"language {results.standing(NO_LANGUAGE, 0)[0]:.2f}); on {results.names[1]} "
        f"{results.standing(PAPER, 1)[0]:.2f} ({results.best_rank(1):.2f}).",
    ]
    opening = (
        f"{README_START} {results.run['pairs, test']} {results.names[0]} pairs, against the same "
        f"training without language, {results.seeds} seeds, bundled CLIP:"
    )
    wrapped = [textwrap.fill(line, 120, subsequent_indent="  ") for line in lines]
    return "\n".join([opening, "", *wrapped, "", README_END])


def conclusion(results: Results) -> str:
    paper, silent = results.mean(PAPER), results.mean(NO_LANGUAGE)
    met = [count for sentence in SENTENCES for count in results.reached(sentence).values()]
    rank_, ahead_ = results.standing(PAPER, 0)
    closer, closer_ahead = results.standing(FIDELITY_PAPER, 0)
    mute, _ = results.standing(FIDELITY_SILENT, 0)
    count = len(results.published(0))
    shares = [row.get("share") for row in results.shares().values()]
    wins = {name: results.wins(name) for name in comparing.FILTERS}
    here, there, _ = results.regions("whole images")[regions.CASES[0]]
    lines = [
        f"**The paper's sentence.** On {results.names[0]}, against the same training without "
        f"language, the average gradient changes by {results.effect(PAPER, 'AG')}, the contrast "
        f"by {results.effect(PAPER, 'SD')}; Qabf is {paper['Qabf']:.3f} (without "
        f"{silent['Qabf']:.3f}), SSIM {paper['SSIM']:.3f} ({silent['SSIM']:.3f}).",
        f'**Other sentences.** "A dark image" changes the brightness by '
        f'{results.effect("a dark image", BRIGHTNESS)}, "a bright image" by '
        f"{results.effect('a bright image', BRIGHTNESS)}. "
        f"{sum(value == results.seeds for value in met)} of {len(met)} targets are reached with "
        f"every seed, {sum(value == 0 for value in met)} with none.",
        f'**Opposites and several sentences.** The opposite "{NOT_BRIGHT.opposite}" changes the '
        f'brightness of "{NOT_BRIGHT.alone}" by {results.effect_beside(NOT_BRIGHT, BRIGHTNESS)} '
        "and the average gradient, for which both ask, by "
        f"{results.effect_beside(NOT_BRIGHT, 'AG')}; half of it as a second sentence by "
        f"{results.effect_beside(MIXED, BRIGHTNESS)} and {results.effect_beside(MIXED, 'AG')}. "
        + verdict(results),
        "**Beside filters.** At equal average gradient the paper's sentence is ahead of "
        + " and ".join(f"{name} in {in_words(values)}" for name, values in wins.items())
        + " of 8 measures.",
        f"**Beside {count} published methods** the default has the mean rank {rank_:.2f} and is "
        f"ahead of {ahead_}; a setting for fidelity {closer:.2f} and {closer_ahead}, without "
        f"language {mute:.2f}.",
        f"**One network for many sentences**: {counted(shares, SHARE)} have at least "
        f"{100 * SHARE:.0f} % of the effect of a network of their own.",
        f'**A sentence for a region**: told "a dark image" for one half and "a bright image" for '
        f"the other, that network darkens the first half by {100 * here:.0f} % of what the "
        f"sentence does everywhere, and the other by {100 * there:.0f} %.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def introduction(results: Results) -> str:
    run, (first, second) = results.run, results.names
    settings = json.loads(run["settings"])
    return (
        f"All figures are of `{run['encoder']}`, the bundled CLIP. The network is `FusionUNet` "
        f"({run['parameters']:,} parameters), trained for {run['steps']} steps with the weights of "
        "`tiny()` (direction "
        f"{settings['direction_weight']:g}, patches {settings['patch_weight']:g}, similarity "
        f"{settings['similarity_weight']:g}, regularizer {settings['regularizer_weight']:g}) on "
        f"{run['pairs, training']} pairs of {first}, and tested on {run['pairs, test']} others "
        f"and on {run['pairs, second']} pairs of {second} (on crops of four of which the bundled "
        "CLIP was trained). The weights were chosen on further pairs. *No language* is the same "
        "training without the direction and patch terms. Figures are means over "
        f"{run['seeds']} seeds. The measures are those of `evaluate.py`; *mean* is the mean grey "
        "level, *invented* the share of local variance that no mixture of the sources explains: "
        "embossing and noise, less is better. `docs/evidence/*.csv` holds all figures, of each "
        "seed and measure, and this page is written from it."
    )


def sentences(results: Results) -> list[str]:
    names = (BRIGHTNESS, "SD", "AG")
    levels = ("SSIM", "Qabf", "invented")
    silent = results.mean(NO_LANGUAGE)
    lines = [["sentence", "wanted", "seeds", *names, *levels], ["---"] * 2 + ["---:"] * 7]

    def row(title: str, wanted: str, seeds: str, values: Row, changes: Sequence[str]) -> list[str]:
        return [title, wanted, seeds, *changes, *(level(values, name) for name in levels)]

    lines.append(row(NO_LANGUAGE, "", "", silent, [level(silent, name) for name in names]))
    for sentence in SENTENCES:
        reached = results.reached(sentence)
        effects = [results.effect(sentence, name) for name in names]
        counts = ", ".join(map(str, reached.values()))
        lines.append(
            row(f'"{sentence}"', ", ".join(reached), counts, results.mean(sentence), effects)
        )
    for name in comparing.FILTERS:
        values = results.mean(name, "filter")
        effects = [percent(change(values, silent, measure)) for measure in names]
        wins = results.wins(name)
        seeds = str(sum(win >= MOST for win in wins))
        title = f"no language, {name} to the AG of the paper's sentence"
        lines.append(row(title, f"sentence ahead in {MOST} of 8", seeds, values, effects))
    second = results.mean(PAPER, data_set=1)
    return [
        f"![Columns: infrared, visible, no language, the sentences](images/{SENTENCES_PICTURE})",
        f"*{results.names[1]}; the framed detail is enlarged below each image. Images: TNO Image "
        "Fusion Dataset, A. Toet, CC BY 4.0.*",
        f"Changes against no language, {results.names[0]}; *seeds*: how many of {results.seeds} "
        "reach each target.",
        markdown(lines),
        f'"A dark image" is darker and "a bright image" brighter than no language in '
        f"{results.in_order(0)} images of {results.names[0]} and {results.in_order(1)} of "
        f"{results.names[1]}. On {results.names[1]} the paper's sentence invents "
        f"{second['invented']:.3f} (wanted: at most {INVENTED_ON_SECOND_SET:g}). "
        '"A noisy image" is not here: the network has no source of noise, so it only washes the '
        "image out.",
    ]


def wordings(results: Results) -> list[str]:
    names = (BRIGHTNESS, "SD", "AG", "SSIM", "Qabf", "invented")
    lines = [["sentence", *names, "better", "worse"], ["---"] + ["---:"] * 6 + ["---"] * 2]

    def add(title: str, row: Row, moved: Sequence[Sequence[str]]) -> None:
        cells = [level(row, name) for name in names]
        lines.append([title, *cells, *(", ".join(each) or "-" for each in moved)])

    for alone in dict.fromkeys(wording.alone for wording in WORDINGS):
        add(short(alone), results.mean(alone), ("", ""))
        for wording in WORDINGS:
            if wording.alone == alone:
                add(wording.title, results.mean(wording.title), results.moved(wording))
    return [
        f"Levels on {results.names[0]}. *Better* and *worse*: which of nine measures are so with "
        f"each of {results.seeds} seeds, beside the sentence alone. How to write them: "
        "[objectives](objectives.md#say-what-you-do-not-want).",
        markdown(lines),
    ]


def verdict(results: Results) -> str:
    """Whether an opposite makes the image of the paper's sentence better on both data sets."""
    counts, helps = [], True
    for data_set, name in enumerate(results.names):
        better, worse = results.moved(POOR, data_set)
        counts.append(f"in {len(better)} on {name} and worse in {', '.join(worse) or 'none'}")
        helps = helps and len(better) > 1 and not worse
    return (
        f'With the opposite "{POOR.opposite}" the paper\'s sentence is better with every seed '
        f"{', '.join(counts)}, of nine measures. The quickstart "
        f"{'uses' if helps else 'does not use'} it."
    )


def methods(results: Results) -> list[str]:
    parts = [
        f"![Columns: infrared, visible, published methods, ours](images/{METHODS_PICTURE})",
        "Released weights, outputs without the stretch of the contrast that is part of some "
        "authors' code. LD-Lite is the paper's authors' own, with their weights; its README does "
        "not say how it was trained. *Rank* is the mean place in the eight measures among the "
        "published methods and, for these, our default. *Behind* counts the measures in which a "
        f"row is behind our default and our fidelity setting. Ours were trained on "
        f"{results.names[0]} only.",
    ]
    ours = {
        "ours, no language": NO_LANGUAGE,
        "**ours, the paper's sentence**": PAPER,
        "ours, fidelity, no language": FIDELITY_SILENT,
        "**ours, fidelity, the paper's sentence**": FIDELITY_PAPER,
    }
    for data_set, name in enumerate(results.names):
        published = results.published(data_set)
        default, closer = (results.mean(n, data_set=data_set) for n in (PAPER, FIDELITY_PAPER))
        lines = [[name, *EIGHT, "invented", "rank", "behind"], ["---"] + ["---:"] * 11]
        rows = published | {t: results.mean(n, data_set=data_set) for t, n in ours.items()}
        for title, row in rows.items():
            others = [*published.values(), *([default] if title in published else [])]
            behind = f"{ahead(default, row)}, {ahead(closer, row)}"
            cells = [level(row, measure) for measure in (*EIGHT, "invented")]
            lines.append([title, *cells, f"{rank(row, others):.2f}", behind])
        parts.append(markdown(lines))
    standings = []
    for title, name, wanted in (
        ("The default", PAPER, RANK), ("The fidelity setting", FIDELITY_PAPER, FIDELITY_RANK)
    ):  # fmt: skip
        both = [results.standing(name, data_set) for data_set in (0, 1)]
        standings.append(
            f"{title} is ahead in at least {MOST} of 8 of {both[0][1]} methods on "
            f"{results.names[0]} and of {both[1][1]} on {results.names[1]} (wanted: all), with "
            f"mean ranks {both[0][0]:.2f} and {both[1][0]:.2f} (wanted: at most {wanted:g})."
        )
    closer = results.mean(FIDELITY_PAPER)
    levels = ", ".join(
        f"{name} {closer[name]:.3f} ({'at most' if name == 'invented' else 'at least'} {value:g})"
        for name, value in FIDELITY_LEVELS.items()
    )
    return [
        *parts,
        f"{' '.join(standings)} It reaches {levels}. The rows without language tell what of a lead "
        "is the regularizer's. The fidelity setting, found with another network on these test "
        f"pairs and checked on others, trained for {results.run['steps, fidelity']} steps:",
        f"```python\n{fidelity_code(json.loads(results.run['settings, fidelity']))}\n```",
    ]


def fidelity_code(settings: dict[str, Any]) -> str:
    """The lines to copy."""
    arguments = dict(settings["regularizer"])
    kind = arguments.pop("type")
    inner = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    names = ("direction_weight", "patch_weight", "similarity_weight", "regularizer_weight")
    lines = [f"    {name}={settings[name]!r}," for name in names]
    lines.append(f"    regularizer={kind}({inner}),")
    return "\n".join(["criterion = LanguageDrivenFusionLoss.tiny(", *lines, ")"])


def one_network(results: Results) -> list[str]:
    run, shares = results.run, results.shares()
    trainings = run["seconds, one network"] / run["seconds"]
    lines = [
        [
            "sentence",
            "measure",
            "a network each",
            "one network",
            "share",
            "unseen wording",
            "share",
        ],
        ["---"] * 2 + ["---:"] * 3 + ["---", "---:"],
    ]
    for sentence, row in shares.items():
        wanted = SENTENCES[sentence]
        of_one, of_unseen = (
            f"{100 * row[name]:.0f} %" if name in row else "-"
            for name in ("share", "share, unseen")
        )
        changes = [percent(row["single"]), percent(row["one"]), of_one]
        lines.append([f'"{sentence}"', wanted.about, *changes, f'"{wanted.unseen}"', of_unseen])

    blends = []
    for (start, end), orders in results.orders().items():
        fine = sum(order >= ORDER for order in orders)
        blends.append(
            f'From "{start}" to "{end}" the {IN_WORDS[BLENDS[start, end]]} rises steadily '
            f"(Spearman at least {ORDER:g}) in {fine} of {len(orders)} images."
        )
    known, unseen = (
        [row.get(name) for row in shares.values()] for name in ("share", "share, unseen")
    )
    ends = " and ".join(f'from "{start}" to "{end}"' for start, end in BLENDS)
    return [
        f"![One network with seven steps of two blends, a row each](images/{BLENDS_PICTURE})",
        f"*Rows: {ends}.*",
        f"One network ({run['parameters, one network']:,} parameters) is told the text direction "
        f"of a sentence and trained once, {run['steps, one network']} smaller steps, in the "
        f"time of {trainings:.1f} trainings. *Share* is its change of the sentence's measure, "
        "divided by that of a network trained for the sentence alone (none where that changes it "
        f"by less than {SMALLEST_EFFECT} %); the wording on the right was in no training.",
        markdown(lines),
        f"{counted(known, SHARE)} sentences reach {100 * SHARE:.0f} % (wanted: all), "
        f"{counted(unseen, UNSEEN_SHARE)} unseen wordings {100 * UNSEEN_SHARE:.0f} %. "
        + " ".join(blends),
    ]


def by_region(results: Results) -> list[str]:
    run = results.run
    lines = [
        ["region", "sentence there", "elsewhere", "measure"] + ["there", "elsewhere", "seeds"] * 2,
        ["---"] * 4 + ["---:"] * 6,
    ]
    trained = "whole images", "regions"
    both = [results.regions(title) for title in trained]
    whole, local = map(results.span, trained)
    for case in both[0]:
        sentences = [
            "the paper's sentence" if text == PAPER else f'"{text}"'
            for text in (case.sentence, case.elsewhere)
        ]
        cells = []
        for inside, outside, seeds in (found[case] for found in both):
            cells += [f"{100 * inside:.0f} %", f"{100 * outside:.0f} %", str(seeds)]
        lines.append([case.region, *sentences, case.about, *cells])
    return [
        f"![One scene: a sentence everywhere, and one for each region](images/{REGIONS_PICTURE})",
        f"*{results.names[1]}; the framed detail is enlarged below each image. Images: TNO Image "
        "Fusion Dataset, A. Toet, CC BY 4.0.*",
        "One network is told a sentence for each region. The figures say how far the region, and "
        "what lies around it, moves from an image with the second sentence everywhere to one with "
        f"the first everywhere. Wanted: at least {100 * INSIDE:.0f} % there and at most "
        f"{100 * OUTSIDE:.0f} % elsewhere; *seeds*: how many of {results.seeds} reach both. The "
        "first network, also in the picture, is that of the section above, which has learnt from "
        f"whole images alone. The second was trained with random regions ({run['steps, regions']} "
        f"steps, {run['seconds, regions']:.0f} seconds). With either sentence everywhere, dark and "
        f"bright are {whole:.0f} grey levels apart for the first and {local:.0f} for the second.",
        markdown(lines),
    ]


def costs(results: Results) -> str:
    run = results.run
    return (
        "Seconds of one CPU thread: a training for one sentence "
        f"{run['seconds']:.0f}, with the fidelity setting {run['seconds, fidelity']:.0f}, one "
        f"network for all sentences {run['seconds, one network']:.0f}; to fuse an image of "
        f"{results.names[1]} {run['seconds to fuse']:.2f}. What the loss itself costs: "
        "[performance](performance.md)."
    )


def counted(shares: Sequence[float | None], least: float) -> str:
    """How many reach it; those that could not be compared do not."""
    return f"{sum(share is not None and share >= least for share in shares)} of {len(shares)}"


def percent(value: float) -> str:
    """A change in percent with its sign; zero has none."""
    return f"{value:+.0f} %" if round(value) else "0 %"


def level(row: Row, name: str) -> str:
    return f"{row[name]:.{DIGITS.get(name, 2)}f}"


def in_words(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"|{'|'.join(cells)}|" for cells in lines)
