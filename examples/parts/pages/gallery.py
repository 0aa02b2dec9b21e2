"""The gallery page: a picture for each sentence, with the same scene without and with language."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from clip_fusion_loss import FrozenCLIP
from parts.files import readable_name, written_whole
from parts.measuring.comparing import changes, over_seeds
from parts.measuring.trials import BRIGHTNESS, Bench, Trial
from parts.pages import sheets
from parts.pages.shown import shown_groups
from parts.pages.tables import percent

#: The shown pair in the pictures, and the width of an image there.
SCENE = (3,)
CELL_INCHES = 2.4

MEASURES = {BRIGHTNESS: "brightness", "SD": "contrast (SD)", "AG": "sharpness (AG)"}

INTRODUCTION = """# Gallery of sentences

Each picture shows one scene of {shown} twice, fused by the same small network: left trained without
language, right trained for the sentence above it. Nothing else differs. Below each image is its
framed detail, enlarged. The figures are means over the {count} test images of {name}, which are
other scenes.
[All results, how they were measured, and the source of the images](results.md).

## The sources"""


def save_gallery(
    bench: Bench,
    silent: Mapping[str, Trial],
    spoken: Mapping[str, Trial],
    seeds: Sequence[int],
    folder: Path,
) -> None:
    """Write `gallery.md` to `folder` and its pictures to `images` there.

    Args:
        silent: the trial without language, by its title.
        spoken: the trials with it, by their sentences.
    """
    name, shown = bench.names
    parts = [INTRODUCTION.format(count=len(bench.test), name=name, shown=shown)]
    sources, windows = shown_groups(bench, {}, SCENE)
    parts.append(picture(sources, windows, "sources", folder))
    [before] = (over_seeds(bench, trial, seeds) for trial in silent.values())
    for sentence, trial in spoken.items():
        groups, windows = shown_groups(bench, {**silent, f'"{sentence}"': trial}, SCENE)
        fused = {title: groups[title] for title in groups if title not in sources}
        after = over_seeds(bench, trial, seeds)
        words = ", ".join(
            f"{name} {percent(statistics.mean(changes(after, before, measure)))}"
            for measure, name in MEASURES.items()
        )
        unknown = ", ".join(unknown_words(bench.encoder, [sentence]))
        unknown = f" This CLIP does not know: {unknown}." if unknown else ""
        parts += [
            f'## "{sentence}"',
            picture(fused, windows, sentence, folder),
            f"Against no language: {words}.{unknown}",
        ]
    with written_whole(folder / "gallery.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", "utf-8")


def picture(
    groups: Mapping[str, Sequence[Tensor]],
    windows: Sequence[sheets.Window],
    title: str,
    folder: Path,
) -> str:
    """Write a picture; returns the Markdown for it."""
    path = folder / "images" / f"gallery-{readable_name(title, 30)}.jpg"
    sheets.save_sheet(groups, windows, path, cell_inches=CELL_INCHES)
    words = " and ".join(groups).replace('"', "'")
    return f"![From left to right: {words}](images/{path.name})"


def unknown_words(encoder: FrozenCLIP, prompts: Sequence[str]) -> list[str]:
    """Words of the prompts that the encoder does not know."""
    known = encoder.vocabulary
    words = {word for prompt in prompts for word in prompt.split()}
    return [] if known is None else sorted(words - known)
