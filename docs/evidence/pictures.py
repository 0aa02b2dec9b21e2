"""The three pictures of the results page; all show pairs of --show, fused with the first seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from evidence import comparing, page
from evidence.tables import BLENDS, NO_LANGUAGE
from evidence.trials import BLEND_STEPS, PAPER, Bench, Trial
from pairs import luminance, to_8bit
from sheets import salient_windows, save_sheet

#: Which of the pairs are in the pictures, and which two in that of the blends.
PICTURED, BLENDED = (0, 3, 4), (3, 4)

#: All would be too small to see.
SENTENCES = (
    PAPER, "a dark image", "a bright image", "a blurry image", "a noisy image",
    "an image with low contrast",
)  # fmt: skip
METHODS = ("U2Fusion", "SeAFusion", "TarDAL", "LD-Lite")


def save(
    bench: Bench,
    single: Mapping[str, Sequence[Trial]],
    many: Trial,
    peers: Path,
    folder: Path,
) -> None:
    name = bench.show.name
    shown = bench.sets[name]
    indices = sorted({min(index, len(shown) - 1) for index in PICTURED})
    windows = salient_windows([shown[index] for index in indices])

    def of(images: Sequence[Tensor]) -> list[Tensor]:
        return [images[index] for index in indices]

    sources = {
        "infrared": of([pair.infrared for pair in shown]),
        "visible": of([to_8bit(luminance(pair.visible)) for pair in shown]),
    }
    ours = {method: of(bench.images(trials[0], name)) for method, trials in single.items()}

    columns = sources | {NO_LANGUAGE: ours[NO_LANGUAGE]}
    columns |= {f'"{sentence}"': ours[sentence] for sentence in SENTENCES}
    save_sheet(columns, windows, folder / page.SENTENCES_PICTURE)

    published = comparing.published_images(peers, shown)
    columns = dict(sources)
    for method in METHODS:
        if (method, False) in published:
            columns[method] = of(list(map(comparing.read_grey, published[method, False])))
    columns |= {
        f"ours, {NO_LANGUAGE}": ours[NO_LANGUAGE],
        "ours, the paper's sentence": ours[PAPER],
    }
    columns["ours, fidelity setting"] = ours[page.FIDELITY_PAPER]
    save_sheet(columns, windows, folder / page.METHODS_PICTURE)

    rows = [min(index, len(shown) - 1) for index in BLENDED]
    columns = {}
    for step in range(BLEND_STEPS):
        title = {0: "the first sentence", BLEND_STEPS - 1: "the second"}
        columns[title.get(step, f"{step / (BLEND_STEPS - 1):.0%}")] = [
            bench.images(many, name, f"blend-{number}-{step}")[row]
            for number, row in zip(range(len(BLENDS)), rows, strict=True)
        ]
    save_sheet(columns, salient_windows(shown[row] for row in rows), folder / page.BLENDS_PICTURE)
