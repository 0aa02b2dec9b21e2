"""Train the networks of the results page, measure what they fuse, write page and pictures.

    cd docs && python -m evidence.results --pairs ROADSCENE --show TNO --peers DIR

Finished trainings are kept in --out and not repeated, so it can be interrupted at any time; after a
change of the code delete that folder. All figures of page and README are in the CSV files
beside these programs; --only-page writes both from them again.
"""

import argparse
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from evidence import comparing, page, pictures, regions, tables
from evidence.tables import BLENDS, NO_LANGUAGE, SENTENCES, WORDINGS, Table
from evidence.trials import (
    BRIGHTNESS,
    FIDELITY,
    FIDELITY_STEPS,
    MANY_COST,
    PAPER,
    REGION_COST,
    Bench,
    Row,
    Trial,
    measure,
    settings_of,
    without_language,
)
from networks.unet import FusionUNet
from options import atomic_write, errors_as_messages, whole_number
from training import BATCH_SIZE, MANY_BATCH_SIZE, MANY_SIMILARITY, build_criterion

DOCS = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with errors_as_messages("results"):
        if not options.only_page:
            run(options)
        figures = tables.load(options.docs / "evidence")
        write(options.docs / "results.md", page.text(figures))
        readme = options.docs.parent / "README.md"
        if readme.exists():
            part = rf"^{page.README_START} \S+ \S+ pairs.*?^{re.escape(page.README_END)}"
            text = readme.read_text(encoding="utf-8")
            found = re.search(part, text, re.DOTALL | re.MULTILINE)
            if found is None:
                raise ValueError(f"{readme} has no place for the figures: {part}")
            write(readme, text.replace(found[0], page.readme(figures)))


def write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add("--pairs", type=Path, metavar="DIR", help="pairs; every second one is used for the test")
    add("--show", type=Path, metavar="DIR", help="pairs for a second test and for the pictures")
    add("--peers", type=Path, metavar="DIR", help="fused by published methods, SET/METHOD/NAME.png")
    add("--encoder", default="tiny", help=f"the CLIP {shown}")
    add("--seeds", type=whole_number, default=3, help=f"trainings of each setting {shown}")
    add("--steps", type=whole_number, default=150, help=f"of a training for one sentence {shown}")
    add("--max-pairs", type=whole_number, default=25, help=f"for training and for test {shown}")
    add("--jobs", type=whole_number, default=1, help=f"trainings at a time, a thread each {shown}")
    add("--out", type=Path, default=Path("evidence_output"), help=f"finished trainings {shown}")
    add("--docs", type=Path, default=DOCS, help="folder of page, images/ and evidence/*.csv")
    add("--only-page", action="store_true", help="write the page from the CSV files alone")
    options = parser.parse_args(arguments)
    if not options.only_page and None in (options.pairs, options.show, options.peers):
        parser.error("--pairs, --show and --peers are needed, or --only-page")
    return options


def run(options: argparse.Namespace) -> None:
    """Everything but the page: trainings, tables, pictures."""
    torch.set_num_threads(1)
    bench = Bench(
        options.encoder, options.pairs, options.show, options.max_pairs, options.out.resolve()
    )
    single, many = trials_of(options)
    local = region_trials(options)
    bench.run([trial for group in (*single.values(), many, local) for trial in group], options.jobs)
    result = {
        "run": run_table(bench, options, single, many, local),
        "measures": [
            *our_rows(bench, single),
            *filter_rows(bench, single),
            *other_rows(bench, options.peers),
        ],
        "brightness": brightness_table(bench, single),
        "one_network": one_network_table(bench, many),
        "blends": blends_table(bench, many),
        "regions": regions_table(bench, {"regions": local, "whole images": many}),
    }
    tables.save(result, options.docs / "evidence")
    pictures.save(bench, single, many[0], options.peers, options.docs / "images")
    pictures.save_regions(bench, many[0], options.docs / "images")


def trials_of(options: argparse.Namespace) -> tuple[dict[str, list[Trial]], list[Trial]]:
    """The trainings for one sentence by name, and those for all sentences; one for each seed."""
    criterion = build_criterion(options.encoder, regularizer="structure")
    default, fidelity = settings_of(criterion), settings_of(criterion, **FIDELITY)
    seeds = range(options.seeds)

    def each_seed(prompt: str, settings: str, steps: int = options.steps) -> list[Trial]:
        return [Trial((prompt,), seed, steps, settings) for seed in seeds]

    single = {NO_LANGUAGE: each_seed(PAPER, without_language(default))}
    single |= {prompt: each_seed(prompt, default) for prompt in SENTENCES}
    for wording in WORDINGS:
        given = {"opposite": (wording.opposite,) if wording.opposite else ()}
        given["mixed"] = tuple(wording.mixed.items())
        single[wording.title] = [replace(trial, **given) for trial in single[wording.alone]]
    longer = FIDELITY_STEPS * options.steps
    single[page.FIDELITY_SILENT] = each_seed(PAPER, without_language(fidelity), longer)
    single[page.FIDELITY_PAPER] = each_seed(PAPER, fidelity, longer)
    unseen = tuple(sentence.unseen for sentence in SENTENCES.values())
    steps = round(MANY_COST * options.steps * BATCH_SIZE / MANY_BATCH_SIZE)
    similarity = criterion.similarity_weight * MANY_SIMILARITY
    told = settings_of(criterion, similarity_weight=similarity)
    many = [Trial(tuple(SENTENCES), s, steps, told, unseen, tuple(BLENDS)) for s in seeds]
    return single, many


def region_trials(options: argparse.Namespace) -> list[Trial]:
    """The trainings of one network that is told a sentence for each region, one for each seed."""
    criterion = build_criterion(options.encoder, regularizer="structure", regions=True)
    criterion.similarity_weight *= MANY_SIMILARITY
    settings, steps = settings_of(criterion), round(REGION_COST * options.steps)
    seeds = range(options.seeds)
    return [Trial(regions.SENTENCES, s, steps, settings, by_region=True) for s in seeds]


def run_table(
    bench: Bench,
    options: argparse.Namespace,
    single: Mapping[str, Sequence[Trial]],
    many: Sequence[Trial],
    local: Sequence[Trial],
) -> Table:
    """Settings, and processor time on one thread in seconds."""

    def seconds(trials: Sequence[Trial], what: str = "seconds") -> float:
        return statistics.median(bench.result(trial)[what] for trial in trials)

    default, fidelity = single[PAPER], single[page.FIDELITY_PAPER]
    dimension = bench.clip.encode_text(PAPER).shape[-1]
    uses = ("training", "test", "second")
    values = {
        "encoder": options.encoder,
        "torch": torch.__version__,
        "seeds": options.seeds,
        "test set": bench.pairs.name,
        "second set": bench.show.name,
        **{
            f"pairs, {use}": len(pairs)
            for use, pairs in zip(uses, bench.sets.values(), strict=True)
        },
        "parameters": parameters(FusionUNet()),
        "parameters, one network": parameters(FusionUNet(dimension)),
        "steps": default[0].steps,
        "steps, fidelity": fidelity[0].steps,
        "steps, one network": many[0].steps,
        "seconds": seconds(default),
        "seconds, fidelity": seconds(fidelity),
        "seconds, one network": seconds(many),
        "steps, regions": local[0].steps,
        "seconds, regions": seconds(local),
        "seconds to fuse": seconds(default, "fusing"),
        "settings": default[0].options,
        "settings, fidelity": fidelity[0].options,
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def as_row(name: str, group: str, method: str, seed: int | str, values: Row) -> dict[str, object]:
    return {"set": name, "group": group, "name": method, "seed": seed, **values}


def our_rows(bench: Bench, single: Mapping[str, Sequence[Trial]]) -> Table:
    return [
        as_row(name, "ours", method, trial.seed, tables.mean(bench.result(trial)[name]))
        for name in (bench.pairs.name, bench.show.name)
        for method, trials in single.items()
        for trial in trials
    ]


def filter_rows(bench: Bench, single: Mapping[str, Sequence[Trial]]) -> Table:
    """The images without language, filtered to the AG of those with the paper's sentence."""
    name, rows = bench.pairs.name, []
    for silent, spoken in zip(single[NO_LANGUAGE], single[PAPER], strict=True):
        target = tables.mean(bench.result(spoken)[name])["AG"]
        for title, control in comparing.FILTERS.items():
            images = comparing.matched(control, bench.images(silent, name), target)
            each = [measure(*both) for both in zip(bench.sets[name], images, strict=True)]
            rows.append(as_row(name, "filter", title, silent.seed, tables.mean(each)))
    return rows


def other_rows(bench: Bench, peers: Path) -> Table:
    """Fusion rules and published methods."""
    rows = []
    for name in (bench.pairs.name, bench.show.name):
        pairs = bench.sets[name]
        fused = {("rule", rule): list(map(f, pairs)) for rule, f in comparing.RULES.items()}
        for (method, stretched), paths in comparing.published_images(peers, pairs).items():
            group = "published, stretched" if stretched else "published"
            fused[group, method] = list(map(comparing.read_grey, paths))
        for (group, method), images in fused.items():
            each = [measure(*both) for both in zip(pairs, images, strict=True)]
            rows.append(as_row(name, group, method, "", tables.mean(each)))
    return rows


def brightness_table(bench: Bench, single: Mapping[str, Sequence[Trial]]) -> Table:
    sentences = {"dark": "a dark image", "neither": NO_LANGUAGE, "bright": "a bright image"}
    rows = []
    for name in (bench.pairs.name, bench.show.name):
        for seed in range(len(single[NO_LANGUAGE])):
            results = {key: bench.result(single[text][seed]) for key, text in sentences.items()}
            for index, pair in enumerate(bench.sets[name]):
                levels = {key: result[name][index][BRIGHTNESS] for key, result in results.items()}
                rows.append({"set": name, "seed": seed, "image": pair.name, **levels})
    return rows


def one_network_table(bench: Bench, many: Sequence[Trial]) -> Table:
    return [
        {"sentence": sentence, "seed": trial.seed, **tables.mean(rows)}
        for trial in many
        for sentence, rows in bench.result(trial)["told"].items()
    ]


def blends_table(bench: Bench, many: Sequence[Trial]) -> Table:
    rows = []
    for trial in many:
        for (ends, about), steps in zip(BLENDS.items(), bench.result(trial)["blends"], strict=True):
            for index, pair in enumerate(bench.sets[bench.pairs.name]):
                levels = {f"step {n}": step[index][about] for n, step in enumerate(steps)}
                row = {"from": ends[0], "to": ends[1], "about": about, "seed": trial.seed}
                rows.append({**row, "image": pair.name, **levels})
    return rows


def regions_table(bench: Bench, trained: Mapping[str, Sequence[Trial]]) -> Table:
    return [
        {"trained on": title, "seed": trial.seed, **row}
        for title, trials in trained.items()
        for trial in trials
        for row in bench.result(trial)["regions"]
    ]


if __name__ == "__main__":
    main()
