"""The page of results: its figures, what is kept of the trials, and its controls."""

import re

import pytest
from drawn import draw_pairs, pretend_many, pretend_training, save_pairs

import evidence
from parts import pages
from parts.data.images import read_image
from parts.measuring import calibration, many_sentences
from parts.measuring.trials import Bench
from parts.pages import one_network, peers, steering
from parts.pages.ablation import FULL
from parts.training import short


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(short, "BATCH_SIZE", 2)
    monkeypatch.setattr(short, "CROP_SIDE", 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pairs(draw_pairs(4), tmp_path_factory.mktemp("pairs"))


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
    monkeypatch.setattr(many_sentences, "_train", pretend_many)
    monkeypatch.setattr(one_network, "seconds_a_step", lambda *_: 0.25)
    monkeypatch.setattr(Bench, "seconds_a_step", lambda *_: 0.25)
    page = run(tmp_path, folder)
    assert page.startswith("# Results\n\n- **The sentence changes what the image looks like.**")
    assert '| "a dark image" | mean -30 % | 0 % | 0 of 2 | 0 % | 0 of 2 |' in page
    assert '| "a purple elephant dancing" | every measure within 3 % | 0 % | 2 of 2 |' in page
    assert "does not know: dancing, elephant, purple." in page
    for row in (
        "average of the sources", "structure", FULL,
        "no language, then CLAHE to the same AG", "language x 4", "32 patches", "**tiny()** *",
        "Laplacian pyramid",
    ):  # fmt: skip
        assert f"| {row} | " in page
    for name in (
        "steering.jpg", "ablation.jpg", "ranking.jpg", "weights.jpg", "embedding-space.png",
        "calibration.png", "one-network-shares.jpg",
    ):  # fmt: skip
        assert f"(images/{name})" in page
        assert read_image(tmp_path / "page" / "images" / name).shape[2] > 300
    assert page.index("(images/embedding-space.png)") < page.index("| sentence | target |")
    gallery = (tmp_path / "page" / "gallery.md").read_text(encoding="utf-8")
    assert (
        " 0 %, sharpness (AG) 0 %. This CLIP does not know: dancing, elephant, purple." in gallery
    )
    pictures = re.findall(r"\((images/.+?)\)", gallery)
    assert len(set(pictures)) == 1 + len(steering.WANTED)
    for name in pictures:
        assert read_image(tmp_path / "page" / name).shape[2] > 600

    monkeypatch.setattr(Bench, "_train", None)  # nothing is trained twice
    monkeypatch.setattr(many_sentences, "_train", None)
    assert run(tmp_path, folder) == page
    with pytest.raises(SystemExit, match="holds runs with other pairs"):
        run(tmp_path, folder, "--max-pairs", "1")


def test_a_section_that_trains(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(peers, "LEAD", {"steps": 2})
    monkeypatch.setattr(Bench, "seconds_a_step", lambda *_: 0.25)
    page = run(tmp_path, folder, "--sections", "peers", "--seeds", "1")
    assert "| ours, the paper's sentence | " in page
