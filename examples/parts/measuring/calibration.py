"""A search for the weights of the loss: effect of the sentences against source structure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch

from parts.measuring.trials import BRIGHTNESS, LAYOUT, Bench, Trial

#: Ranges to draw from, uniformly on a logarithmic scale.
RANGES: Mapping[str, tuple[float, float]] = {
    "direction": (2.0, 4.5),
    "patch": (0.3, 2.0),
    "similarity": (4.0, 12.0),
    "regularizer": (3.0, 6.0),
    "flat_energy": (0.03, 0.2),
    "layout_weight": (0.8, 4.0),
    "learning_rate": (1e-3, 2e-3),
}

CHOICES: Mapping[str, Sequence[int]] = {"window": (5, 9, 13), "patches": (2, 4, 8)}

#: Sentences, and for each the metric and its target change in percent.
WANTED: Mapping[str, tuple[str, float]] = {
    Trial.prompt: ("AG", 60.0),
    "a dark image": (BRIGHTNESS, -30.0),
    "a noisy image": ("AG", 40.0),
}

Point = tuple[float, float]


def settings(base: Trial, count: int) -> list[Trial]:
    """`base` and `count` other settings, from a Sobol sequence with a fixed seed."""
    draws = torch.quasirandom.SobolEngine(len(RANGES) + len(CHOICES), scramble=True, seed=0)
    drawn = [base]
    for numbers in draws.draw(count).tolist():
        values: dict[str, float] = {}
        for (name, (low, high)), share in zip(RANGES.items(), numbers, strict=False):
            values[name] = float(f"{low * (high / low) ** share:.2g}")
        for (name, options), share in zip(CHOICES.items(), numbers[len(RANGES) :], strict=True):
            values[name] = options[int(share * len(options))]
        drawn.append(replace(base, **values))
    return drawn


def score(bench: Bench, trial: Trial) -> Point:
    """Steering and structure of a setting; higher is better.

    Steering is the mean, over sentences, of the share of the target change that is reached against
    the same loss without language, clipped to [0, 1]. Structure is the mean of three figures: SSIM
    and Qabf with the paper's sentence, and the smallest `LAYOUT` with any sentence.
    """
    silent = bench.run(trial.without_language())
    shares, layouts = [], []
    for prompt, (measure, wanted) in WANTED.items():
        row = bench.run(replace(trial, prompt=prompt))
        change = 100 * (row[measure] / silent[measure] - 1)
        shares.append(min(1.0, max(0.0, change / wanted)))
        layouts.append(row[LAYOUT])
        if prompt == Trial.prompt:
            likeness = row["SSIM"], row["Qabf"]
    return sum(shares) / len(shares), (sum(likeness) + min(layouts)) / 3


def front(points: Sequence[Point]) -> list[int]:
    """The indices of the Pareto-optimal points; both coordinates are maximised."""
    return [
        index
        for index, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]


def described(trial: Trial) -> dict[str, float]:
    """The values that were searched for."""
    return {name: value for name, value in asdict(trial).items() if name in {**RANGES, **CHOICES}}
