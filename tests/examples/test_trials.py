"""Trials: what they depend on, and that each is run once."""

from dataclasses import replace

import pytest
import torch
from drawn import make_bench

from parts.measuring import metrics
from parts.measuring.trials import Trial
from parts.training import short


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(short, "BATCH_SIZE", 2)
    monkeypatch.setattr(short, "CROP_SIDE", 40)


@pytest.fixture
def bench(tmp_path):
    return make_bench(tmp_path)


def test_seconds_a_step_are_measured_once(bench):
    trial = Trial(steps=100, direction=1.0)
    seconds = bench.seconds_a_step(trial)
    assert 0 < seconds < 60
    assert bench.seconds_a_step(trial) == seconds


def test_trials_have_folders_of_their_own():
    trial = Trial(direction=1.0, patch=2.0)
    others = [
        replace(trial, seed=1),
        replace(trial, prompt="a dark image"),
        replace(trial, amp=True),
        trial.without_language(),
    ]
    assert len({t.key for t in [trial, *others]}) == 5
    # What does not count does not make another training.
    dark = replace(trial, prompt="a dark image")
    assert dark.without_language().key == trial.without_language().key


@pytest.mark.parametrize("amp", [False, True])
def test_a_trial_is_what_its_settings_and_seed_make(bench, tmp_path, amp):
    trial = Trial(steps=2, direction=0.4, patch=2.0, patches=2, amp=amp)
    first = bench.run(trial), bench.images(trial)
    bench.folder = tmp_path / "again"
    again = bench.run(trial), bench.images(trial)
    assert first[0] == again[0] == metrics.mean(bench.measure(first[1]))
    torch.testing.assert_close(again[1], first[1], rtol=0, atol=0)
    other = replace(trial, seed=1)
    assert bench.run(other) != first[0]
