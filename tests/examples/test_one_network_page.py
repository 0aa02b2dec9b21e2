"""One network for many sentences: its trainings, and the section that compares them."""

from dataclasses import replace

import pytest
import torch
from drawn import make_bench, pretend_many, pretend_training

from parts.data.images import read_image
from parts.measuring import many_sentences
from parts.measuring.many_sentences import ManyTrial, measure, outcome, shown_images
from parts.measuring.trials import BRIGHTNESS, Bench, Trial
from parts.pages import one_network
from parts.training import short


@pytest.fixture
def bench(tmp_path):
    return make_bench(tmp_path)


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(short, "BATCH_SIZE", 2)
    monkeypatch.setattr(short, "CROP_SIDE", 40)


def test_measures_of_one_image():
    image = torch.arange(256, dtype=torch.uint8).expand(1, 16, 256)
    figures = measure(image)
    assert figures[BRIGHTNESS] == 127.5
    assert figures["SD"] == pytest.approx(((256**2 - 1) / 12) ** 0.5)
    assert figures["AG"] == pytest.approx(0.5**0.5)


def test_a_training_is_run_once_and_told_everything(bench, small_steps, tmp_path, monkeypatch):
    like = Trial(steps=3, direction=1.0, learning_rate=0.004)
    dark, bright, blurry = "a dark image", "a bright image", "a blurry image"
    trial = ManyTrial(like, (dark, bright), (blurry,), ((dark, bright),), blend_steps=3)
    first = outcome(bench, trial)
    assert list(first["told"]) == [dark, bright, blurry]
    assert all(len(images) == len(bench.test) for images in first["told"].values())
    [strip] = first["blends"]
    assert len(strip) == 3
    assert [strip[0], strip[2]] == [first["told"][dark], first["told"][bright]]
    assert strip[0] != strip[1] != strip[2]
    sheets = shown_images(bench, trial, 0)
    assert [image.shape for image in sheets] == 2 * [bench.shown[0].infrared.shape]
    assert not sheets[0].equal(sheets[1])

    with monkeypatch.context() as patch:
        patch.setattr(many_sentences, "_train", None)
        assert outcome(bench, trial) == first
    bench.folder = tmp_path / "again"
    again = outcome(bench, trial)
    assert again["told"] == first["told"]
    other = replace(trial, like=replace(like, seed=1))
    assert outcome(bench, other)["told"] != first["told"]


def test_seconds_a_step_are_measured_once(bench, small_steps):
    trial = ManyTrial(Trial(steps=100, direction=1.0), ("a dark image", "a bright image"), (), ())
    seconds = many_sentences.seconds_a_step(bench, trial)
    assert 0 < seconds < 60
    assert many_sentences.seconds_a_step(bench, trial) == seconds


def test_shares_are_those_of_the_single_networks_changes(bench, monkeypatch):
    before = {BRIGHTNESS: 100.0, "SD": 40.0, "AG": 5.0}
    dark = {BRIGHTNESS: 60.0, "SD": 42.0, "AG": 5.0}

    def run(self, trial, part="test"):
        if trial.prompt == "a blurry image":  # one seed blurs, the other sharpens
            return before | {"AG": 2.0 + 8.0 * trial.seed}
        return dark if trial.prompt == "a dark image" else before

    monkeypatch.setattr(Bench, "run", run)
    texts = [*one_network.SENTENCES, *(held for _, held in one_network.SENTENCES.values())]
    told = {text: [before, before] for text in texts}
    told["a dark image"] = [before | {BRIGHTNESS: value} for value in (60.0, 68.0)]
    told["a dark photo"] = [before | {BRIGHTNESS: value} for value in (70.0, 80.0)]
    outcomes = [{"told": told, "blends": []}]
    rows = one_network.shares(bench, Trial(direction=1.0), range(2), 2 * outcomes)
    assert rows["a dark image"] == pytest.approx(
        {
            "a network each": -40.0,
            "one network": -36.0,
            "held out": -25.0,
            "share of one network": 0.9,
            "share of held out": 0.625,
        }
    )
    # Where networks of their own change nothing, or disagree, there is nothing to have a share of.
    assert rows["a blurry image"]["a network each"] == pytest.approx(20)
    for sentence in ("a noisy image", "a blurry image"):
        assert "share of one network" not in rows[sentence]
    reason = one_network.without_share(rows)
    assert reason.startswith('No share is given for "a clear ')
    assert '"a dark image"' not in reason
    assert one_network.without_share({"a dark image": rows["a dark image"]}) == ""
    lines = one_network.as_table(rows).split("\n")
    assert (
        '| "a dark image" | mean | -40 % | -36 % | 90 % | "a dark photo" | -25 % | 62 % |' in lines
    )
    assert '| "a noisy image" | AG | 0 % | 0 % | - | "a noisy photo" | 0 % | - |' in lines
    assert one_network.counted(rows, "share of one network", 0.8) == "1 of 1 reach 80 %"
    assert one_network.counted(rows, "share of held out", 0.8) == "0 of 1 reach 80 %"


def test_blends_are_ranked_image_by_image():
    def strip(*levels):  # steps of images
        return [[{BRIGHTNESS: level, "AG": level} for level in step] for step in levels]

    rising = strip((1.0, 5.0), (2.0, 6.0), (4.0, 9.0))
    mixed = strip((1.0, 5.0), (2.0, 9.0), (4.0, 6.0))
    outcomes = [{"told": {}, "blends": [rising, mixed]}]
    lines = one_network.blended(outcomes).split("\n")
    assert lines[-2].endswith('| "a bright image" | mean | 3, 4, 6.5 | 1.00 | 2 of 2 |')
    assert lines[-1].endswith('| "a sharp image" | AG | 3, 5.5, 5 | 0.50 | 1 of 2 |')


def test_the_section(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "_train", pretend_training)
    monkeypatch.setattr(Bench, "seconds_a_step", lambda *_: 0.25)
    monkeypatch.setattr(one_network, "seconds_a_step", lambda *_: 0.1)
    monkeypatch.setattr(many_sentences, "_train", pretend_many)
    section = one_network.one_network(bench, Trial(direction=1.0), range(2), tmp_path)
    # 1.5 times as many crops, in place of eight trainings: 675 x 0.1 s beside 8 x 150 x 0.25 s.
    assert "trained once (675 steps with 1 crop), beside 8 networks for a sentence each" in section
    assert "(150 steps with 3 crops each)" in section
    assert "22 % of the time here" in section
    assert "(images/one-network-shares.jpg)" in section
    assert read_image(tmp_path / "images" / "one-network-shares.jpg").shape[2] > 600
    bench.shown = []
    assert "jpg" not in one_network.one_network(bench, Trial(direction=1.0), range(2), tmp_path)
