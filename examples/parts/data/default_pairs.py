"""The pairs of --pairs, or the default: real ones in examples/data, or synthetic scenes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from parts.data.images import to_8bit
from parts.data.pairs import Pair, open_pairs
from tiny_clip.renderer import render_pairs

TNO_PAIRS = Path(__file__).parents[2] / "data" / "tno"
RENDERED_PAIRS = 32


def choose_pairs(folder: Path | None, limit: int) -> Sequence[Pair]:
    """The pairs in `folder`; prints to stderr which files are skipped.

    None means the five TNO pairs in examples/data, and the word "rendered" synthetic scenes.

    Raises:
        OSError, ValueError: there are no pairs.
    """
    if folder == Path("rendered"):
        return rendered_pairs(min(RENDERED_PAIRS, limit))
    folder = folder or TNO_PAIRS
    pairs, skipped = open_pairs(folder, limit)
    for item in skipped:
        print(f"skipped {item}", file=sys.stderr)
    if len(pairs) == limit:
        print(f"note: at most {limit} pairs are used; change it by --max-pairs", file=sys.stderr)
    return pairs


def rendered_pairs(count: int) -> list[Pair]:
    """Scenes drawn by the program that the small CLIP was trained with; always the same."""
    visible, infrared = map(to_8bit, render_pairs(count, seed=0))
    names = (f"scene_{number:02d}" for number in range(1, count + 1))
    return [Pair(*pair) for pair in zip(names, visible, infrared, strict=True)]
