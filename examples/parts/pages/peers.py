"""Trained networks beside fusions without training."""

from collections.abc import Sequence
from pathlib import Path

from parts.measuring.baselines import average, laplacian_pyramid, maximum
from parts.measuring.comparing import mean_of, over_seeds
from parts.measuring.trials import Bench, Trial
from parts.pages.tables import table


def peers(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """Trained networks beside rules without training."""
    rows = {
        name: [mean_of(bench.measure([fusion(pair) for pair in bench.test]))]
        for name, fusion in {
            "average": average,
            "maximum": maximum,
            "Laplacian pyramid": laplacian_pyramid,
        }.items()
    }
    rows["DenseFuse, no language"] = over_seeds(bench, base.without_language(), seeds)
    rows["DenseFuse, the paper's sentence"] = over_seeds(bench, base, seeds)
    return "\n\n".join(["## Beside fusions without training", table(rows)])
