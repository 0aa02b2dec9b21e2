"""The page of results: its figures, what is kept of the trials, and its controls."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import draw_pairs, save_pairs
from PIL import Image

import evidence
from clip_fusion_loss import FrozenCLIP, FusionObjective
from parts import pages
from parts.data.images import read_image
from parts.measuring import calibration, metrics
from parts.measuring.baselines import average, clahe, laplacian_pyramid, matched, maximum, unsharp
from parts.measuring.comparing import gains, wins
from parts.measuring.metrics import average_gradient
from parts.measuring.trials import Bench, Trial
from parts.pages import peers, sheets, steering
from parts.pages.ablation import FULL
from parts.pages.embedding_space import save_embedding_space
from parts.pages.tables import table
from parts.training import short


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(short, "BATCH_SIZE", 2)
    monkeypatch.setattr(short, "CROP_SIDE", 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pairs(draw_pairs(4), tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def bench(tmp_path):
    pairs = draw_pairs(3)
    cpu = torch.device("cpu")
    return Bench(FrozenCLIP.tiny(), pairs[:2], pairs[1:], pairs[:1], tmp_path / "runs", cpu)


def run(out, folder, *arguments):
    page = out / "page" / "results.md"
    options = ["--pairs", folder, "--show", folder, "--out", out / "runs", "--page", page]
    options += ["--steps", 1, "--seeds", 2, "--max-pairs", 2, "--device", "cpu", *arguments]
    evidence.main([str(option) for option in options])
    return page.read_text(encoding="utf-8")


def test_the_page(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(calibration, "CHOICES", {"window": (5,), "patches": (1,)})
    monkeypatch.setattr(pages.calibration, "CALIBRATION_SETTINGS", 1)
    monkeypatch.setattr(Bench, "_train", pretend_training)
    monkeypatch.setattr(Bench, "seconds_a_step", lambda *_: 0.25)
    page = run(tmp_path, folder)
    assert page.startswith("# Results\n\n**The sentence decides what the image looks like.**")
    assert '| "a dark image" | mean -30 % | +0.0 % | 0 of 2 | +0.0 % | 0 of 2 |' in page
    assert '| "a purple elephant dancing" | every measure within 3 % | +0.0 % | 2 of 2 |' in page
    assert "does not know: dancing, elephant, purple." in page
    for row in (
        "average of the sources", "structure", FULL,
        "no language, then CLAHE to the same AG", "language x 4", "32 patches", "**tiny()** *",
        "Laplacian pyramid",
    ):  # fmt: skip
        assert f"| {row} | " in page
    for name in (
        "steering.jpg", "ablation.jpg", "ranking.jpg", "weights.jpg", "embedding-space.png",
        "calibration.png",
    ):  # fmt: skip
        assert f"(images/{name})" in page
        assert read_image(tmp_path / "page" / "images" / name).shape[2] > 300
    assert page.index("(images/embedding-space.png)") < page.index("| sentence | to reach |")
    gallery = (tmp_path / "page" / "gallery.md").read_text(encoding="utf-8")
    assert (
        "+0 %, sharpness (AG) +0 %. This CLIP does not know: dancing, elephant, purple." in gallery
    )
    pictures = re.findall(r"\((images/.+?)\)", gallery)
    assert len(set(pictures)) == 1 + len(steering.WANTED)
    for name in pictures:
        assert read_image(tmp_path / "page" / name).shape[2] > 600

    monkeypatch.setattr(Bench, "_train", None)  # nothing is trained twice
    assert run(tmp_path, folder) == page
    with pytest.raises(SystemExit, match="holds runs with other pairs"):
        run(tmp_path, folder, "--max-pairs", "1")


def test_seconds_a_step_are_measured_once(bench):
    trial = Trial(steps=100, direction=1.0)
    seconds = bench.seconds_a_step(trial)
    assert 0 < seconds < 60
    assert bench.seconds_a_step(trial) == seconds


def test_a_section_that_trains(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(peers, "LEAD", {"steps": 2})
    page = run(tmp_path, folder, "--sections", "peers", "--seeds", "1")
    assert "| DenseFuse, the paper's sentence | " in page


def save_grey(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0].numpy()).save(path)


def test_published_methods_beside_ours(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "_train", pretend_training)
    bench.published = tmp_path / "peers"
    made = {
        "set/Plain": average, "set/Both": maximum, "set-clamp/Both": average,
        "set/DenseFuse-TF": maximum, "set/Missing": None,
    }  # fmt: skip
    for method, fusion in made.items():
        for pair in [*bench.test, *bench.shown]:
            if fusion is not None or pair is bench.test[0]:
                image = (fusion or average)(pair)
                save_grey(image, bench.published / method / f"{pair.name}.png")
    section = peers.peers(bench, Trial(), range(1), tmp_path)
    first, second = section.split("test, with stretched contrast:")
    rows = re.findall(r"^\| (\w.+?) \| (.*) \|$", first, re.MULTILINE)
    titles = [title for title, _ in rows]
    ours = [title for title in titles if title.startswith("DenseFuse, ")]
    assert titles == ["average", "maximum", "Laplacian pyramid", "Both", "Plain", *ours]
    cells = dict(rows)
    assert cells["Plain"] == cells["Both"]  # of which the unstretched one counts
    assert cells["Plain"].split(" | ")[:8] == [
        cell.strip("*") for cell in cells["average"].split(" | ")[:8]
    ]
    assert "Missing" not in section
    assert "| Both | " in second
    assert "| DenseFuse-TF | " in second
    assert "(images/peers.jpg)" in section
    bench.published = None
    assert "Plain" not in peers.peers(bench, Trial(), range(1), tmp_path)


def test_ranks_of_measures():
    def row(en, sd):
        return {"EN": en, "SD": sd, "mean": 100.0, "layout": 1.0}

    lines = peers.ranked({"a": row(3.0, 1.0), "b": row(1.0, 5.0), "c": row(2.0, 4.0)}).split("\n")
    assert lines[0] == "| | EN | SD | rank | led in |"
    assert lines[2:] == [
        "| a | **3.00** | 1.000 | 2.00 | 1.000 |",
        "| b | 1.000 | **5.00** | 2.00 | 1.000 |",
        "| c | 2.00 | 4.00 | 2.00 | 0.000 |",
    ]


def pretend_training(bench, trial):
    """Leave behind what a training does, of average images."""
    folder = bench.folder / trial.key
    content = {}
    for part, title in (("test", "{:03d}"), ("shown", "shown_{}")):
        images = [average(pair) for pair in getattr(bench, part)]
        for index, image in enumerate(images):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / f"{title.format(index)}.png")
        content[part] = bench.measure(images, part)
    (folder / "metrics.json").write_text(json.dumps(content))


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


@pytest.mark.parametrize("control", [unsharp, clahe])
def test_controls_reach_the_gradient_that_is_asked_for(control):
    images = [average(pair) for pair in draw_pairs(2)]
    before = np.mean([average_gradient(image[0].numpy()) for image in images])
    filtered = matched(control, images, 1.3 * before)
    after = np.mean([average_gradient(image[0].numpy()) for image in filtered])
    assert after == pytest.approx(1.3 * before, rel=0.02)
    weaker = matched(control, images, 0.5 * before)  # they only ever add
    torch.testing.assert_close(weaker, images, rtol=0, atol=1)


def test_fusions_without_training():
    pair = draw_pairs(1)[0]
    torch.testing.assert_close(maximum(pair), torch.maximum(pair.visible, pair.infrared))
    same = pair._replace(infrared=pair.visible)
    torch.testing.assert_close(laplacian_pyramid(same), pair.visible, rtol=0, atol=1)
    flat = pair._replace(infrared=torch.full_like(pair.infrared, 100))
    fused, source = laplacian_pyramid(flat).float(), pair.visible.float()
    # All detail is the visible image's, what is left the mean of both.
    torch.testing.assert_close(fused.diff(), source.diff(), rtol=0, atol=2)
    assert fused.mean().item() == pytest.approx((source.mean().item() + 100) / 2, abs=2)


def test_gains_and_spreads():
    rows = [{"SF": 12.0, "AG": 4.0, "SSIM": 0.7}, {"SF": 11.0, "AG": 4.0, "SSIM": 0.6}]
    others = [{"SF": 10.0, "AG": 4.0, "SSIM": 0.8}, {"SF": 10.0, "AG": 4.0, "SSIM": 0.8}]
    more = gains(rows, others)
    assert [row["SF, %"] for row in more] == pytest.approx([20, 10])
    assert [row["SSIM"] for row in more] == pytest.approx([-0.1, -0.2])
    assert table({"a": more}).splitlines()[-1] == (
        "| a | 15.00 ± 5.00 | 0.000 ± 0.000 | -0.150 ± 0.050 |"
    )


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


def test_wins_against_a_filter():
    row = dict.fromkeys(("EN", "SD", "SF", "AG"), 2.0) | {"mean": 9.0, "layout": 1.0}
    other = dict.fromkeys(row, 1.0) | {"AG": 1.999, "SF": 3.0}
    assert wins([row], [other]) == [2]


@pytest.mark.parametrize(("as_rows", "groups"), [(True, 10), (False, 5)])
def test_sheets_are_at_most_as_tall_as_a_screen(tmp_path, as_rows, groups):
    images = [torch.zeros(1, 48, 64, dtype=torch.uint8)] * 3
    named = {f"{number}, a title of several lines " * 3: images for number in range(groups)}
    windows = [sheets.salient_window(image, image) for image in images]
    sheets.save_sheet(named, windows, tmp_path / "sheet.png", as_rows=as_rows)
    assert 900 < read_image(tmp_path / "sheet.png").shape[1] <= 1000


def test_embedding_space(tmp_path):
    pairs = draw_pairs(3)
    visible, infrared = [p.visible for p in pairs], [p.infrared for p in pairs]
    fused = {"average $": [average(pair) for pair in pairs]}
    path = tmp_path / "space.png"
    save_embedding_space(FrozenCLIP.tiny(), FusionObjective(), visible, infrared, fused, path)
    picture = read_image(path)
    assert picture.shape[0] == 3
    assert picture.float().std() > 10
