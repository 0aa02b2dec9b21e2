"""What the page says of sentences that work in part."""

import pytest
from drawn import make_bench

from parts.measuring.trials import Trial
from parts.pages import steering


@pytest.fixture
def bench(tmp_path):
    return make_bench(tmp_path)


def test_sentences_that_work_in_part(bench, monkeypatch):
    silent = {"AG": 4.0, "mean": 100.0, "layout": 0.9}
    measured = {
        "no language": [[silent, silent], [silent, silent]],
        '"a dark image"': [[silent | {"mean": 60.0}] * 2, [silent | {"mean": 80.0}] * 2],
        '"a bright image"': [
            [silent | {"mean": 120.0}] * 2,
            [silent | {"mean": 99.0}, silent | {"mean": 141.0}],
        ],
        '"xyz"': [[silent | {"AG": 4.1}] * 2, [silent | {"AG": 4.2}] * 2],
    }
    bench.shown = []
    monkeypatch.setattr(bench, "rows", lambda trial, part: measured[trial.prompt][trial.seed])
    trials = {name: Trial(prompt=name) for name in measured}
    wanted = {"a dark image": {"mean": -30}, "a bright image": {"mean": 15}, "xyz": None}
    monkeypatch.setattr(steering, "WANTED", wanted)
    assert steering.verdicts(bench, trials, range(2)).splitlines()[2:] == [
        '| "a dark image" | mean -30 % | -30.0 % | 1 of 2 |',
        '| "a bright image" | mean +15 % | +20.0 % | 2 of 2 |',
        '| "xyz" | every measure within 3 % | +3.7 % | 1 of 2 |',
    ]
    # One image of four is as bright as without language.
    assert "brighter in 3 of 4 single images" in steering.order(bench, trials, range(2))


def test_the_summary_names_what_is_missed(bench, monkeypatch):
    changed = {
        "no language": (100.0, 100.0),
        "a dark image": (60.0, 80.0),
        "bright": (120.0, 116.0),
    }
    monkeypatch.setattr(
        bench, "run", lambda trial, part: {"mean": changed[trial.prompt][trial.seed]}
    )
    monkeypatch.setattr(Trial, "without_language", lambda self: Trial(prompt="no language"))
    wanted = {"a dark image": {"mean": -30}, "bright": {"mean": 15}}
    monkeypatch.setattr(steering, "WANTED", wanted)
    assert steering.failures(bench, Trial(), range(2)) == (
        '**Not every sentence reaches its target**: of 2 seeds, "a dark image" reaches '
        "brightness -30 % in 1."
    )
    del wanted["a dark image"]
    assert steering.failures(bench, Trial(), range(2)).startswith("All sentences reach")
