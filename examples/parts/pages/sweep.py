"""How much language, and how many patches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parts.measuring.comparing import over_seeds
from parts.measuring.trials import Bench, Trial
from parts.pages.shown import picture
from parts.pages.steering import NO_LANGUAGE
from parts.pages.tables import table

SWEEP_STEPS = 100


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
    silent = rows[NO_LANGUAGE][0]["Qabf"]
    below = [name for name in trials if rows[name][0]["Qabf"] < silent]
    parts = [
        "## How much language, how many patches",
        "To strengthen or weaken the sentence's effect, scale `direction_weight` and "
        f"`patch_weight` together. One seed, {base.steps} steps. x 1 is a weight of "
        f"{base.direction:g} for the whole image and of {base.patch:g} for its patches; there are "
        f"{base.patches} patches unless the row names another number. The weights are too high if "
        "SF and AG still rise while Qabf falls below the run without language: then the fused "
        "image has edges that no source has. Here Qabf is below it with "
        f"{' and '.join(below) or 'none of these weights'}.",
        table(rows),
    ]
    return "\n\n".join(parts + picture(bench, trials, folder / "images" / "weights.jpg"))
