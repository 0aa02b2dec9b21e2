"""The study of the number of patches: its test of equivalence, and a run of two trainings."""

import pytest
from scipy import stats
from test_results import save_pairs

from evidence import patches, tables

DIFFERENCES = [0.3, -0.1, 0.4, 0.2, -0.3]


def test_smallest_margin_is_that_of_two_one_sided_tests():
    margin = patches.smallest_margin(DIFFERENCES)
    below = stats.ttest_1samp(DIFFERENCES, -margin, alternative="greater").pvalue
    above = stats.ttest_1samp(DIFFERENCES, margin, alternative="less").pvalue
    assert max(below, above) == pytest.approx(patches.LEVEL)


def row(number, seed, draw, **values):
    training = {"network": "unet", "prompt": patches.PROMPTS[1], "patches": number, "seed": seed}
    return (
        training | {"draw": draw, "seconds": 9.0} | dict.fromkeys(patches.MEASURES, 100.0) | values
    )


def test_table():
    rows = [row(32, seed, 0, AG=200.0) for seed in range(5)]
    # 1 % more without any deviation; EN differs by nothing on average, but too much each time.
    far = [100.0, 103.0, 97.0, 104.0, 96.0]
    rows += [row(2, seed, 0, AG=202.0, EN=far[seed]) for seed in range(5)]
    rows += [other | {"prompt": patches.PROMPTS[0]} for other in rows]
    variance = [{"patches": 2, "gradient, from patches": 0.03, "gradient, from crops": 2.0}]
    lines = patches.table(rows, variance).splitlines()[2:]
    assert lines[0] == "| unet, 5 | 2 | 7, 7 | 0.1, 0.1 | 0.0, 0.0 | 1.5 | 9 |"
    assert lines[1] == "| unet, 5 | 32 |  |  |  |  | 9 |"
    found = patches.compare(rows, "unet", patches.PROMPTS[0], 2, 0)
    assert found["AG"] == pytest.approx((1, 1))
    assert found["EN"] == pytest.approx((0, 3.37), abs=0.01)


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(patches, "NETWORKS", {"unet": (1, 32)})
    monkeypatch.setattr(patches, "PROMPTS", patches.PROMPTS[1:])
    monkeypatch.setattr(patches, "BATCHES", 2)
    save_pairs(tmp_path / "pairs", 4, 0)
    arguments = ["--pairs", str(tmp_path / "pairs"), "--steps", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(patches, "table", lambda rows, variance: f"{len(rows)} rows")
    patches.main([*arguments, "--seeds", "1"])
    before = (tmp_path / "patches.csv").read_text()
    assert len(before.splitlines()) == 1 + 3
    patches.main([*arguments, "--seeds", "2"])
    assert (tmp_path / "patches.csv").read_text().startswith(before)
    rows = tables.read(tmp_path / "patches.csv")
    assert [r["patches"] for r in rows] == [1, 32, 32, 1, 32, 32]
    assert rows[1]["AG"] != rows[2]["AG"]  # other patches
    assert capsys.readouterr().out == "3 rows\n6 rows\n"
    variance = tables.read(tmp_path / "patch_variance.csv")
    assert [(r["batch"], r["patches"]) for r in variance] == [
        (b, n) for b in (2, 8, 2) for n in (1, 32)
    ]
    for name in ("patch term, deviation", "gradient, from patches"):
        assert variance[0][name] > variance[1][name] > 0
