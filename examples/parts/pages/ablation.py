"""The section on the terms of the loss, with filters as controls."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parts.measuring.baselines import average
from parts.measuring.comparing import CONTROLS, filtered_rows, gains, mean_of, over_seeds, wins
from parts.measuring.trials import Bench, Trial
from parts.pages.shown import picture
from parts.pages.steering import NO_LANGUAGE
from parts.pages.tables import table

FULL = "+ direction and patches: full"


def ablation(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """What each term adds, and what a sharpening filter would do at equal average gradient."""
    silent = base.without_language()
    before = replace(
        base, direction=0.45, patch=2.25, similarity=6.0, regularizer=10.0, structure=False,
        patches=8, min_entropy=6.0,
    )  # fmt: skip
    trials = {
        "structure": replace(silent, similarity=0.0),
        f"+ similarity: {NO_LANGUAGE}": silent,
        FULL: base,
        "the default of version 0.1.0": before,
    }
    rows = {"average of the sources": [mean_of(bench.measure([average(p) for p in bench.test]))]}
    rows |= {name: over_seeds(bench, trial, seeds) for name, trial in trials.items()}
    filtered = {
        f"{NO_LANGUAGE}, then {name} to the same AG": filtered_rows(bench, base, seeds, control)
        for name, control in CONTROLS.items()
    }
    parts = [
        "## What each part of the loss adds",
        "The default of version 0.1.0 had `IntensityGradientLoss` as regularizer. It keeps "
        "brightness and contrast near those of the sources, and so leaves less to the sentence.",
        table(rows | filtered),
        "Difference of the full loss from filters at equal AG, per seed. The eight measures are "
        "EN, SD, SF, AG, MI, SCD, SSIM and Qabf; in AG none is ahead:",
        table({name: gains(rows[FULL], other) for name, other in filtered.items()}),
        "\n".join(
            f"- {name}: the sentence is ahead in "
            f"{', '.join(map(str, wins(rows[FULL], other)))} of the 8 measures."
            for name, other in filtered.items()
        ),
    ]
    return "\n\n".join(parts + picture(bench, trials, folder / "images" / "ablation.jpg"))
