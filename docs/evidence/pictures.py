"""The pictures of results page and README: pairs of --show, fused with the first seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from evidence import comparing, page
from evidence.tables import BLENDS, NO_LANGUAGE
from evidence.trials import BLEND_STEPS, PAPER, Bench, Trial
from pairs import luminance, to_8bit
from sheets import salient_windows, save_sheet

#: Which of the pairs are in the pictures, which two in that of the blends and in the README's.
PICTURED, BLENDED, FRONT = (0, 3, 4), (3, 4), (3, 4)
FRONT_PICTURE = "prompts.jpg"
#: The pair with a man at a kiosk.
REGIONS_PICTURED = 3

#: All would be too small to see.
SENTENCES = (
    PAPER, "a dark image", "a bright image", "a blurry image",
    "an image with low contrast",
)  # fmt: skip
METHODS = ("U2Fusion", "SeAFusion", "TarDAL", "LD-Lite")


def save_regions(bench: Bench, trial: Trial, folder: Path) -> None:
    """One scene: a sentence everywhere, and one for each of two regions."""
    name = bench.show.name
    row = min(REGIONS_PICTURED, len(bench.sets[name]) - 1)
    pair = bench.sets[name][row]
    columns = {"infrared": [pair.infrared], "visible": [to_8bit(luminance(pair.visible))]}
    titles = {
        "clear": "the paper's sentence", "dark": '"a dark image"', "bright": '"a bright image"',
        "dark-and-bright": '"a dark image", where it is hot "a bright image"',
    }  # fmt: skip
    for told, title in titles.items():
        columns[title] = [bench.images(trial, name, told)[row]]
    save_sheet(columns, salient_windows([pair]), folder / page.REGIONS_PICTURE)


def save(
    bench: Bench,
    single: Mapping[str, Sequence[Trial]],
    many: Trial,
    peers: Path,
    folder: Path,
) -> None:
    name = bench.show.name
    shown = bench.sets[name]
    columns = {
        "infrared": [pair.infrared for pair in shown],
        "visible": [to_8bit(luminance(pair.visible)) for pair in shown],
    }
    ours = {method: bench.images(trials[0], name) for method, trials in single.items()}

    def write(columns: Mapping[str, Sequence[Tensor]], rows: Sequence[int], file: str) -> None:
        rows = [min(row, len(shown) - 1) for row in rows]
        chosen = {title: [images[row] for row in rows] for title, images in columns.items()}
        save_sheet(chosen, salient_windows(shown[row] for row in rows), folder / file)

    silent = columns | {NO_LANGUAGE: ours[NO_LANGUAGE]}
    told = {f'"{sentence}"': ours[sentence] for sentence in SENTENCES if sentence in ours}
    write(silent | told, PICTURED, page.SENTENCES_PICTURE)
    write(silent | dict(list(told.items())[:2]), FRONT, FRONT_PICTURE)

    published = comparing.published_images(peers, shown)
    for method in METHODS:
        if (method, False) in published:
            columns[method] = list(map(comparing.read_grey, published[method, False]))
    columns["ours, no language"] = ours[NO_LANGUAGE]
    columns["ours, the paper's sentence"] = ours[PAPER]
    columns["ours, fidelity setting"] = ours[page.FIDELITY_PAPER]
    write(columns, PICTURED, page.METHODS_PICTURE)

    rows = [min(row, len(shown) - 1) for row in BLENDED]
    steps = {}
    for step in range(BLEND_STEPS):
        title = {0: "the first sentence", BLEND_STEPS - 1: "the second"}
        steps[title.get(step, f"{step / (BLEND_STEPS - 1):.0%}")] = [
            bench.images(many, name, f"blend-{number}-{step}")[row]
            for number, row in zip(range(len(BLENDS)), rows, strict=True)
        ]
    save_sheet(steps, salient_windows(shown[row] for row in rows), folder / page.BLENDS_PICTURE)
