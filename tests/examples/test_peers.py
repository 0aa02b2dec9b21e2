"""The tables of published methods beside ours."""

import re

import pytest
from drawn import make_bench, pretend_training
from PIL import Image

from parts.measuring.baselines import average, maximum
from parts.measuring.trials import Bench, Trial
from parts.pages import peers


@pytest.fixture
def bench(tmp_path):
    return make_bench(tmp_path)


def save_grey(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0].numpy()).save(path)


def test_published_methods_beside_ours(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "_train", pretend_training)
    monkeypatch.setattr(Bench, "seconds_a_step", lambda *_: 0.25)
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
    first, tried = first.split("Settings that were tried, one seed each; ")
    settings = re.findall(r"^\| (\d+) \| (.+)", tried, re.MULTILINE)
    assert [int(steps) for steps, _ in settings] == [
        setting["steps"] for setting in (*peers.TRIED, peers.LEAD)
    ]
    assert settings[1][1].startswith(
        "1.5 | 0.6 | 2 | 12 | `StructureLoss`, window 5, flat_energy 0.06, layout_weight 1 | "
    )
    assert settings[2][1].startswith(
        "1.5 | 0.6 | 3 | 10 | `IntensityGradientLoss`, gradient_weight 2 | "
    )
    rows = re.findall(r"^\| (\w.+?) \| (.*) \|$", first, re.MULTILINE)
    titles = [title for title, _ in rows]
    ours = [title for title in titles if title.startswith("ours, ")]
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

    rows = {"a": row(3.0, 1.0), "rule": row(2.5, 9.0), "b": row(1.0, 5.0), "c": row(2.0, 4.0)}
    lines = peers.ranked(rows, ["a", "b"]).split("\n")
    assert lines[0] == "| | EN | SD | rank | behind in |"
    assert lines[2:] == [
        "| a | **3.00** | 1.000 | 2.00 | 1 |",  # the rule takes no place from it
        "| rule | 2.50 | **9.00** | 1.50 | 0 |",
        "| b | 1.000 | 5.00 | 2.00 | 1 |",
        "| c | 2.00 | 4.00 | 2.00 | - |",
    ]


def test_standing_among_published_ones():
    rows = {
        "weak": dict.fromkeys("abcdefgh", 1.0),
        "strong": dict.fromkeys("abcdefgh", 3.0),
        "ours": dict.fromkeys("abcdefgh", 2.0),
    }
    assert peers.standing(rows, ["weak", "strong"]) == (
        "Among these 2 published methods the last row has the mean rank 2.00 (the best has 1.00) "
        "and is ahead of 1 in at least 5 measures."
    )
    rows["ours"] = dict.fromkeys("abcdefgh", 4.0)
    assert "mean rank 1.00 (the best) and is ahead of 2 in" in peers.standing(
        rows, ["weak", "strong"]
    )
