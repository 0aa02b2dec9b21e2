"""The search for the default weights."""

import pytest

from parts.measuring import calibration
from parts.measuring.trials import Trial


def test_the_front_is_what_nothing_surpasses():
    points = [(0.5, 0.5), (0.6, 0.4), (0.4, 0.4), (0.6, 0.5), (0.1, 0.9), (0.1, 0.9)]
    assert calibration.front(points) == [3, 4, 5]


def test_settings_are_drawn_within_their_ranges():
    base = Trial(steps=1)
    drawn = calibration.settings(base, 6)
    assert drawn == calibration.settings(base, 6)
    assert drawn[0] == base
    assert len({trial.key for trial in drawn}) == 7
    for trial in drawn[1:]:
        for name, (low, high) in calibration.RANGES.items():
            assert low <= getattr(trial, name) <= high
        for name, options in calibration.CHOICES.items():
            assert getattr(trial, name) in options


def test_the_score_of_a_setting():
    """The share of the wanted changes, and what is left of the scene under the sentences."""
    silent = {"AG": 4.0, "mean": 100.0, "SSIM": 0.7, "Qabf": 0.5, "layout": 1.0}
    prompts = {
        Trial.prompt: silent | {"AG": 5.2, "SSIM": 0.6, "Qabf": 0.4},  # + 30 of 60 %
        "a dark image": silent | {"mean": 50.0, "layout": 0.8},  # more than wanted
        "a noisy image": silent | {"AG": 3.0},  # the wrong way
    }

    class Known:
        def run(self, trial):
            return prompts[trial.prompt] if trial.direction else silent

    steering, structure = calibration.score(Known(), Trial(direction=1.0))
    assert steering == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert structure == pytest.approx((0.6 + 0.4 + 0.8) / 3)
