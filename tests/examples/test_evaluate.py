"""Measuring folders of fused images."""

import csv
import json

import numpy as np
import pytest
import tifffile
from image_files import noise, save_mixed_pairs, write
from PIL import Image
from scipy import stats

import evaluate
from parts.measuring import metrics
from parts.measuring.further import evaluate_further


def run_evaluate(fused, pairs, *options):
    folders = fused if isinstance(fused, list) else [fused]
    evaluate.main(["--fused", *map(str, folders), "--pairs", str(pairs), *map(str, options)])


def figures(path):
    return {
        (row["method"], row["image"]): row for row in json.loads(path.read_text(encoding="utf-8"))
    }


@pytest.fixture
def folder(tmp_path):
    return save_mixed_pairs(tmp_path / "pairs")


@pytest.fixture
def fused(tmp_path):
    write(tmp_path / "fused" / "colour.png", noise(5, 44, 60))
    write(tmp_path / "fused" / "night" / "grey.png", noise(6, 50, 42))
    return tmp_path / "fused"


def test_measures_a_folder(tmp_path, folder, fused, capsys):
    run_evaluate(fused, folder, "--per-image", tmp_path / "figures.csv")
    printed = capsys.readouterr()
    assert "1 of 3 pairs left out" in printed.out
    assert "fused, left out: broken" in printed.err
    assert "means ± standard deviations over 2 images" in printed.out
    assert "evaluated as saved" in printed.out
    with open(tmp_path / "figures.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["colour", "night/grey"]
    table = {line.split()[0]: line.split()[1:] for line in printed.out.splitlines() if line}
    for name in ("EN", "SD", "VIF", "Qabf", "PSNR"):
        values = [float(row[name]) for row in rows]
        mean, sign, spread = table[name]
        assert sign == "±"
        assert float(mean) == pytest.approx(np.mean(values), abs=6e-4)
        assert float(spread) == pytest.approx(np.std(values, ddof=1), abs=6e-4)
    greys = [
        np.asarray(Image.open(path))
        for path in (
            fused / "night" / "grey.png",
            folder / "night" / "vi" / "grey.bmp",
            folder / "night" / "ir" / "grey.png",
        )
    ]
    expected = metrics.evaluate(*greys) | evaluate_further(*greys)
    for name, value in expected.items():
        if np.isfinite(value):
            assert float(rows[1][name]) == pytest.approx(value)


def test_figures_do_not_depend_on_the_type_of_file(tmp_path, folder):
    levels = noise(5, 44, 60) // 5 + 40  # so little contrast that a sensor's would be stretched
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    write(tmp_path / "a" / "colour.png", levels)
    write(tmp_path / "b" / "colour.png", levels.astype(np.uint16) * 257)
    tifffile.imwrite(tmp_path / "c" / "colour.tif", (levels / 255).astype(np.float32))
    file = tmp_path / "figures.json"
    run_evaluate([tmp_path / name for name in ("a", "b", "c")], folder, "--per-image", file)
    first, second, third = (
        {name: row[name] for name in evaluate.COLUMNS} for row in figures(file).values()
    )
    assert first == second == third
    assert first["SD"] == pytest.approx(levels.std())


def test_several_methods_in_one_table(tmp_path, folder, fused, capsys):
    for name, seed in (("first", 1), ("second", 5)):
        write(tmp_path / name / "colour.jpg", noise(seed, 44, 60))
        write(tmp_path / name / "night" / "grey.jpg", noise(seed, 50, 42))
    file = tmp_path / "figures.json"
    run_evaluate(
        [tmp_path / "first", fused], folder, "--vs", tmp_path / "second", "--per-image", file
    )
    printed = capsys.readouterr().out
    means, differences = printed.split("\n\n")
    assert means.splitlines()[2].split() == ["first", "fused", "second"]
    assert "differences from second, with 95% intervals" in differences
    assert differences.splitlines()[1].split() == ["first", "fused"]
    rows = figures(file)
    expected = np.mean(
        [
            rows["first", name]["SD"] - rows["second", name]["SD"]
            for name in ("colour", "night/grey")
        ]
    )
    row = next(line for line in differences.splitlines() if line.startswith("SD")).split()
    assert float(row[1]) == pytest.approx(expected, abs=6e-4)


def test_the_interval_is_that_of_resampled_means():
    values = np.random.default_rng(0).normal(0.3, 1, 40)
    mean, low, high = (float(word.strip("[],")) for word in evaluate.difference(values).split())
    assert mean == pytest.approx(values.mean(), abs=6e-4)
    # For a mean of many images it comes near to Student's.
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=0.05)
    assert evaluate.difference(values) == evaluate.difference(values)
    assert evaluate.difference(np.full(5, 0.5)) == "+0.500 [+0.500, +0.500]"
    assert evaluate.difference(values[:1]) == f"{values[0]:+.3f}"


def test_what_is_not_defined_is_named_and_costs_no_mean(tmp_path, capsys):
    for name in ("bright", "black", "small"):
        size = (50, 36) if name == "small" else (50, 48)
        write(tmp_path / "set" / "vi" / f"{name}.png", noise(0, *size))
        dark = 0 if name == "black" else 1
        write(tmp_path / "set" / "ir" / f"{name}.png", noise(1, *size) * np.uint8(dark))
        for method, seed in (("a", 2), ("b", 3)):
            write(tmp_path / method / f"{name}.png", noise(seed, *size))
    file = tmp_path / "figures.json"
    folders = [tmp_path / "a", tmp_path / "b"]
    run_evaluate(folders, tmp_path / "set", "--per-image", file)
    printed = capsys.readouterr()
    assert "VIF is not defined for black, small; left out" in printed.err
    assert "MS-SSIM is not defined for black, bright, small; left out" in printed.err
    assert "over 3 images" in printed.out
    table = {line.split()[0]: line.split()[1:] for line in printed.out.splitlines() if line}
    assert table["MS-SSIM"] == ["-", "-"]
    assert float(table["VIF"][0]) == pytest.approx(figures(file)["a", "bright"]["VIF"], abs=6e-4)
    assert figures(file)["a", "black"]["VIF"] is None
    assert "nan" not in printed.out


def test_one_bad_picture_is_named_and_left_out(tmp_path, folder, fused, capsys):
    write(folder / "vi" / "wide.png", noise(2, 44, 60))
    write(folder / "ir" / "wide.png", noise(3, 44, 60))
    write(fused / "wide.png", noise(4, 44, 61))
    write(folder / "vi" / "twice.png", noise(2, 44, 60))
    write(folder / "ir" / "twice.png", noise(3, 44, 60))
    write(fused / "twice.png", noise(4, 44, 60))
    write(fused / "twice.bmp", noise(5, 44, 60))
    write(fused / "broken.png", noise(5, 44, 44))
    (fused / "colour.png").write_bytes(b"no image")
    run_evaluate(fused, folder)
    printed = capsys.readouterr()
    assert "over 1 images" in printed.out
    for message in (
        "wide.png: must have the size of its sources, 60 x 44, got 61 x 44",
        "twice.bmp: twice.png has the same name; remove one of them",
        "colour.png: cannot be read",
        "left out broken: ",
    ):
        assert message in printed.err


def test_methods_are_called_by_what_tells_them_apart(tmp_path):
    folders = [tmp_path / "a" / "fused", tmp_path / "b" / "fused"]
    assert evaluate.labels(folders) == ["a/fused", "b/fused"]
    assert evaluate.labels(folders[:1]) == ["fused"]
    with pytest.raises(ValueError, match="the same folder"):
        evaluate.labels([folders[0], folders[0]])


def test_measuring_against_the_wrong_sources(tmp_path, folder):
    write(tmp_path / "small" / "colour.png", noise(0, 44, 44))
    write(tmp_path / "other" / "name.png", noise(0, 44, 60))
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("small", "no image could be evaluated"),
        (
            "other",
            "no image in .*other has the name of a pair: expected a name such as broken, got name",
        ),
        ("empty", "such as broken, got no image at all"),
        ("nowhere", "there is no folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_evaluate(tmp_path / name, folder)
    with pytest.raises(SystemExit, match="no usable pair of images"):
        run_evaluate(tmp_path / "small", tmp_path / "empty")


def test_figures_need_a_type_of_file_that_is_known(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_evaluate(tmp_path, tmp_path, "--per-image", "figures.xlsx")
    assert "must end in .csv or .json, got figures.xlsx" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "DIR/ir/street.png" in printed
    assert all(f"\n  {name} " in printed for name in evaluate.COLUMNS)
