"""The page of results: its figures, what is kept of the trials, and its controls."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import draw_pairs, save_pairs
from PIL import Image

import choices
import evidence
import training
from clip_fusion_loss import FrozenCLIP, FusionObjective
from controls import clahe, matched, unsharp
from embedding_space import save_embedding_space
from fusing import average, laplacian_pyramid, maximum
from images import read_image
from metrics import average_gradient
from trials import Bench, Trial


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(training, "BATCH_SIZE", 2)
    monkeypatch.setattr(training, "CROP_SIDE", 40)


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
    monkeypatch.setattr(choices, "PATCHES", 2)
    monkeypatch.setattr(
        evidence, "PROMPTS", {"a blurry dark image": {"mean": -1}, "a purple elephant": {}}
    )
    sections = ["--sections", "steering", "ranking", "sweep"]
    page = run(tmp_path, folder, *sections)
    assert '| "a blurry dark image" | less mean | ' in page
    assert "does not know: elephant, purple." in page
    assert "| language x 4 |" in page
    for name in ("steering.jpg", "ranking.jpg", "weights.jpg", "embedding-space.png"):
        assert f"(images/{name})" in page
        assert read_image(tmp_path / "page" / "images" / name).shape[2] > 300

    monkeypatch.setattr(Bench, "_train", None)  # nothing is trained twice
    assert run(tmp_path, folder, *sections) == page
    with pytest.raises(SystemExit, match="holds runs with other pairs"):
        run(tmp_path, folder, "--max-pairs", "1")


def test_ablation_and_peers(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(Bench, "_train", pretend_training)
    page = run(tmp_path, folder, "--sections", "ablation", "peers")
    densefuse, u2fusion = page.split("### u2fusion")
    for row in ("average of the sources", "regularizer", evidence.NO_LANGUAGE, evidence.FULL):
        assert f"| {row} | " in densefuse
        assert f"| {row} | " in u2fusion
    assert "| its original loss | " in densefuse
    assert "| its original loss | " not in u2fusion  # VGG-16 was not given
    assert "then CLAHE to the same AG | " in u2fusion
    assert "| Laplacian pyramid | " in page


def pretend_training(bench, trial):
    """Leave behind what a training does, of average images."""
    folder = bench.folder / trial.key
    for title, pairs in (("{:03d}", bench.test), ("shown_{}", bench.shown)):
        for index, pair in enumerate(pairs):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(average(pair)[0].numpy()).save(folder / f"{title.format(index)}.png")
    metrics = bench.measure([average(pair) for pair in bench.test])
    (folder / "metrics.json").write_text(json.dumps({"metrics": metrics}))


def test_trials_have_folders_of_their_own():
    trial = Trial(direction=1.0, patch=2.0)
    others = [
        replace(trial, seed=1),
        replace(trial, prompt="a dark image"),
        replace(trial, amp=True),
        trial.without_language(),
        trial.with_original_loss(),
    ]
    assert len({t.key for t in [trial, *others]}) == 6
    # What does not count does not make another training.
    dark = replace(trial, prompt="a dark image")
    assert dark.without_language().key == trial.without_language().key
    assert dark.with_original_loss().key == trial.with_original_loss().key


@pytest.mark.parametrize("network", ["densefuse", "u2fusion"])
@pytest.mark.parametrize("amp", [False, True])
def test_a_trial_is_what_its_settings_and_seed_make(bench, tmp_path, network, amp):
    trial = Trial(network=network, steps=2, direction=0.4, patch=2.0, patches=2, amp=amp)
    first = bench.run(trial), bench.images(trial)
    bench.folder = tmp_path / "again"
    again = bench.run(trial), bench.images(trial)
    assert first[0] == again[0] == bench.measure(first[1])
    torch.testing.assert_close(again[1], first[1], rtol=0, atol=0)
    other = replace(trial, seed=1)
    assert bench.run(other) != first[0]


def test_densefuse_learns_with_its_original_loss(bench):
    trial = Trial(steps=1).with_original_loss()
    short, long = (replace(trial, steps=steps) for steps in (1, 40))
    for each in (short, long):
        bench.run(each)
    losses = [
        json.loads((bench.folder / each.key / "metrics.json").read_text())["losses"]["total"]
        for each in (short, long)
    ]
    assert losses[1] < 0.5 * losses[0]


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
    gains = evidence.gains(rows, others)
    assert [row["SF, %"] for row in gains] == pytest.approx([20, 10])
    assert [row["SSIM"] for row in gains] == pytest.approx([-0.1, -0.2])
    assert evidence.table({"a": gains}).splitlines()[-1] == (
        "| a | 15.00 ± 5.00 | 0.000 ± 0.000 | -0.150 ± 0.050 |"
    )


def test_prompts_that_work_in_part():
    silent = [{"AG": 4.0, "SF": 10.0, "mean": 100.0}] * 2
    paper = [{"AG": 5.0, "SF": 12.0, "mean": 100.0}] * 2
    dark = [{"AG": 4.0, "SF": 10.0, "mean": 90.0}, {"AG": 4.0, "SF": 10.0, "mean": 102.0}]
    rows = {"no language": silent, '"clear"': paper, '"a dark image"': dark}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "PROMPTS", {"a dark image": {"mean": -1}})
        lines = evidence.verdicts("clear", rows).splitlines()[2:]
    assert lines == [
        '| "clear" | more SF | +20.0 % | 2 of 2 |',
        '| "clear" | more AG | +25.0 % | 2 of 2 |',
        '| "a dark image" | less mean | -4.0 % | 1 of 2 |',
    ]


def test_embedding_space(tmp_path):
    pairs = draw_pairs(3)
    visible, infrared = [p.visible for p in pairs], [p.infrared for p in pairs]
    fused = {"average $": [average(pair) for pair in pairs]}
    path = tmp_path / "space.png"
    save_embedding_space(FrozenCLIP.tiny(), FusionObjective(), visible, infrared, fused, path)
    picture = read_image(path)
    assert picture.shape[0] == 3
    assert picture.float().std() > 10
