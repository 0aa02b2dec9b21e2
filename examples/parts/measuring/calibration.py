"""A search for the weights of the loss: what sentences change, against what stays of the scene."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch

from parts.measuring.trials import BRIGHTNESS, LAYOUT, Bench, Trial

#: Ranges to draw from, evenly on a logarithmic scale.
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

#: Sentences to try, and the measure and the change in percent that each is to reach.
WANTED: Mapping[str, tuple[str, float]] = {
    Trial.prompt: ("AG", 60.0),
    "a dark image": (BRIGHTNESS, -30.0),
    "a noisy image": ("AG", 40.0),
}

Point = tuple[float, float]


def settings(base: Trial, count: int) -> list[Trial]:
    """`base` and `count` settings around it from a Sobol sequence, which is always the same."""
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
    """Steering and structure of a setting, each from 0 to 1.

    Steering is the mean share of the wanted changes that the sentences reach, against the same
    loss without language. Structure is the mean of SSIM and Qabf under the paper's sentence and of
    the least correlation with the layout of the sources under any.
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
    """The points that no other one surpasses in one coordinate without falling behind in the
    other."""
    return [
        index
        for index, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]


def described(trial: Trial) -> dict[str, float]:
    """The values that were searched for."""
    return {name: value for name, value in asdict(trial).items() if name in {**RANGES, **CHOICES}}
