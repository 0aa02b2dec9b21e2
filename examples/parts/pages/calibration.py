"""The section that compares the default weights of the embedded CLIP with random ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from parts.files import written_whole
from parts.measuring.calibration import WANTED as SENTENCES
from parts.measuring.calibration import Point, described, front, score, settings
from parts.measuring.trials import LAYOUT, Bench, Trial

CALIBRATION_SETTINGS = 5


def calibration(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """How the default weights of the embedded CLIP compare with random ones."""
    small = replace(
        bench,
        test=[bench.test[i] for i in range(0, len(bench.test), 4)],
        shown=[],
        folder=bench.folder / "calibration",
    )
    start = replace(base, steps=60, crops=2)
    trials, points = calibrate(small, start, CALIBRATION_SETTINGS, folder / "images")
    best = front(points)
    names = ["", "steering", "structure", *described(start)]
    lines = [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
    for index in sorted(range(len(points)), key=lambda index: -points[index][0]):
        name = ("**tiny()**" if index == 0 else str(index)) + " *" * (index in best)
        steering, structure = points[index]
        scores = f"{steering:.3f} | {structure:.3f}"
        values = [f"{value:g}" for value in described(trials[index]).values()]
        lines.append(f"| {name} | {scores} | {' | '.join(values)} |")
    return "\n\n".join(
        [
            "## The default weights beside random ones",
            f"`tiny()` is compared with {CALIBRATION_SETTINGS} random settings, each in short "
            f"trainings ({start.steps} steps of {start.crops} crops) for "
            f"{len(SENTENCES)} sentences and without language. Steering is the mean share of the "
            "target changes that is reached. Structure is the mean of SSIM and Qabf with the "
            f"paper's sentence and of the smallest `{LAYOUT}` with any sentence. Asterisks in "
            "the table and the line in the picture mark the Pareto front: no other setting is "
            "better in both.",
            "![Steering against structure](images/calibration.png)",
            "\n".join(lines),
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
    axes.plot(*zip(*(points[i] for i in best), strict=True), "o-", color="C0", label="Pareto front")
    axes.plot(*points[0], "*", color="C1", markersize=16, label="tiny()")
    axes.set_xlabel("steering: share of the wanted change that the sentences reach")
    axes.set_ylabel("structure: mean of SSIM, Qabf and lowest layout")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(folder / "calibration.png") as temporary:
        figure.savefig(temporary)
    return trials, points
