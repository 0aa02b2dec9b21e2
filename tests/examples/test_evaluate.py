"""Measuring folders: what is compared, what is left out, what is written."""

import contextlib
import csv
import os
import shutil
import sys

import numpy as np
import pytest
from image_files import noise, save_pairs, write

import evaluate
import metrics
from pairs import read_image


@pytest.fixture
def folder(tmp_path):
    """Three pairs, and two methods: one that shows the visible images, and noise."""
    root = save_pairs(tmp_path)
    for index in range(3):
        source = tmp_path / "vi" / f"scene{index}.png"
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / "copy")
        write(tmp_path / "noise" / f"scene{index}.bmp", noise(index, 48, 56))
    return root


def run(folder, *methods, more=()):
    fused = [str(folder / method) for method in methods]
    evaluate.main(["--fused", *fused, "--pairs", str(folder), *map(str, more)])


def table(text):
    """The printed rows by measure: means and deviations of each method."""
    rows = (line.split("  ") for line in text.splitlines())
    return {row[0].strip(): [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}


def test_prints_means_and_deviations_over_the_pairs(folder, capsys):
    run(folder, "copy", "noise", more=["--per-image", folder / "all.csv"])
    printed = table(capsys.readouterr().out)
    rows = {}
    for name in ("copy", "noise"):
        rows[name] = []
        for index in range(3):
            paths = (next((folder / kind).glob(f"scene{index}.*")) for kind in (name, "vi", "ir"))
            images = [read_image(path)[0].numpy() for path in paths]
            rows[name].append(metrics.evaluate(*images, further=True))
    for measure in ("EN", "Qabf", "invented", "Nabf", "VIF"):
        for column, name in enumerate(rows):
            values = np.array([row[measure] for row in rows[name]])
            mean, spread = map(float, printed[measure][column].split(" ± "))
            assert mean == pytest.approx(values.mean(), abs=5.1e-4)
            assert spread == pytest.approx(values.std(ddof=1), abs=5.1e-4)
    assert printed["MS-SSIM"] == ["-", "-"]  # the images are too small for it
    with open(folder / "all.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [(row["method"], row["image"]) for row in written[:2]] == [
        (str(folder / "copy"), "scene0"),
        (str(folder / "copy"), "scene1"),
    ]
    assert float(written[4]["EN"]) == pytest.approx(rows["noise"][1]["EN"])
    assert written[0]["MS-SSIM"] == ""


def test_images_that_cannot_be_measured_are_named_and_left_out(folder, capsys):
    (folder / "copy" / "scene0.png").unlink()
    write(folder / "copy" / "scene1.png", noise(0, 40, 56))
    run(folder, "copy", "noise")
    said = capsys.readouterr()
    assert f"left out scene0: not in {folder / 'copy'}" in said.err
    assert "scene1.png: must have its sources' size 56 x 48, got 56 x 40" in said.err
    assert "over 1 images" in said.out
    write(folder / "copy" / "scene2.bmp", noise(0, 48, 56))
    with pytest.raises(SystemExit, match="no image could be measured"):
        run(folder, "copy")
    assert f"2 images in {folder / 'copy'} have its name" in capsys.readouterr().err


def test_targets_are_checked_before_the_work(folder, monkeypatch):
    monkeypatch.setattr(metrics, "evaluate", None)
    (folder / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot write to --per-image .*file"):
        run(folder, "copy", more=["--per-image", folder / "file" / "x.csv"])


def test_the_table_is_printed_before_files_are_written(folder, monkeypatch, capsys):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(evaluate, "save_rows", full)
    with pytest.raises(SystemExit, match="disk full"):
        run(folder, "copy", more=["--per-image", folder / "all.csv"])
    assert "means ± standard deviations over 3 images" in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_output_loses_no_file(folder, monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit, match="evaluate: error: .*No space left on device"):
            run(folder, "copy", more=["--per-image", folder / "all.csv"])
        sys.stdout.flush()  # as at the exit
        with contextlib.suppress(OSError):
            full.close()
    assert len((folder / "all.csv").read_text("utf-8").splitlines()) == 4


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_names_that_are_not_unicode_are_escaped(folder, capsys):
    name = os.fsdecode(b"\xb3\xa1.png")  # GBK
    try:
        for kind in ("ir", "vi", "copy"):
            (folder / kind / "scene0.png").rename(folder / kind / name)
        (folder / "copy" / "scene1.png").unlink()
    except OSError:
        pytest.skip("this file system has Unicode names only")
    run(folder, "copy", more=["--per-image", folder / "all.csv"])
    assert "over 2 images" in capsys.readouterr().out
    assert "udcb3" in (folder / "all.csv").read_text("utf-8")


def test_folders_without_images_of_the_pairs(folder, capsys):
    with pytest.raises(SystemExit, match="there is no folder .*no"):
        run(folder, "no")
    write(folder / "few" / "scene0.png", noise(0, 48, 56))
    write(folder / "more" / "scene1.png", noise(0, 48, 56))
    with pytest.raises(SystemExit, match="no image could be measured; name images like"):
        run(folder, "few", "more")
    assert f"left out scene2: not in {folder / 'few'}" in capsys.readouterr().err
