"""The section on the search for the default weights of the embedded CLIP."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from parts.files import written_whole
from parts.measuring.calibration import WANTED as SENTENCES
from parts.measuring.calibration import Point, described, front, score, settings
from parts.measuring.trials import LAYOUT, Bench, Trial
from parts.pages.tables import table

CALIBRATION_SETTINGS = 5


def calibration(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """How the default weights of the embedded CLIP were found."""
    small = replace(
        bench,
        test=[bench.test[i] for i in range(0, len(bench.test), 4)],
        shown=[],
        folder=bench.folder / "calibration",
    )
    start = replace(base, steps=60, crops=2)
    trials, points = calibrate(small, start, CALIBRATION_SETTINGS, folder / "images")
    best = front(points)
    rows = {}
    for index in sorted(range(len(points)), key=lambda index: -points[index][0]):
        name = ("**tiny()**" if index == 0 else str(index)) + " *" * (index in best)
        steering, structure = points[index]
        rows[name] = [{"steering": steering, "structure": structure} | described(trials[index])]
    return "\n\n".join(
        [
            "## Where the default weights come from",
            f"`tiny()` is compared with {CALIBRATION_SETTINGS} random settings, each in short "
            f"trainings ({start.steps} steps of {start.crops} crops) for "
            f"{len(SENTENCES)} sentences and without language. Steering is the mean share of the "
            "target changes that is reached. Structure is the mean of SSIM and Qabf with the "
            f"paper's sentence and of the smallest `{LAYOUT}` with any sentence. Stars mark the "
            "Pareto front: no other setting is better in both.",
            "![Steering against structure](images/calibration.png)",
            table(rows, digits=None),
        ]
    )


def calibrate(
    bench: Bench, base: Trial, count: int, folder: Path
) -> tuple[list[Trial], list[Point]]:
    """Score all settings and draw them to `folder`; the first is `base`."""
    trials = settings(base, count)
    points = [score(bench, trial) for trial in trials]
    figure = Figure(figsize=(6, 4.5), dpi=140, layout="constrained")
    axes = figure.subplots()
    best = sorted(front(points), key=lambda index: points[index])
    axes.plot(*zip(*points, strict=True), "o", color="0.7", label="settings")
    axes.plot(*zip(*(points[i] for i in best), strict=True), "o-", color="C0", label="front")
    axes.plot(*points[0], "*", color="C1", markersize=16, label="tiny()")
    axes.set_xlabel("steering: share of the wanted change that the sentences reach")
    axes.set_ylabel("structure: mean of SSIM, Qabf and least layout")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(folder / "calibration.png") as temporary:
        figure.savefig(temporary)
    return trials, points
