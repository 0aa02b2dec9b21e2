"""Which files are pairs, which are not and why, and that nothing is written among them."""

import unicodedata
from pathlib import Path

import pytest
import torch
from image_files import noise, save_mixed_pairs, save_pairs, write

import options
import pairs
from pairs import find_pairs, folders_of, keep_apart, open_pairs, read_pair, spread


@pytest.fixture(autouse=True)
def _notes_are_new():
    options.note.cache_clear()
    pairs._kept_pair.cache_clear()


def names(root):
    return [files.name for files in find_pairs(folders_of(root))]


@pytest.mark.parametrize(
    ("infrared", "visible"),
    [("ir", "vi"), ("IR", "VIS"), ("thermal", "rgb"), ("Infrared", "visible"),
     ("cropinfrared", "crop_LR_visible")],
)  # fmt: skip
def test_the_folders_by_the_words_of_the_field(tmp_path, capsys, infrared, visible):
    write(tmp_path / infrared / "a.png")
    write(tmp_path / visible / "a.jpg")
    (found,) = find_pairs(folders_of(tmp_path))
    assert found == ("a", tmp_path / visible / "a.jpg", tmp_path / infrared / "a.png")
    elsewhere = folders_of(None, tmp_path / infrared, tmp_path / visible)
    assert find_pairs(elsewhere) == [found]
    assert "skipped" not in capsys.readouterr().err


def test_subfolders_letter_case_and_stored_accents(tmp_path):
    write(tmp_path / "ir" / "night" / "Straße.PNG")
    write(tmp_path / "vi" / "night" / "STRASSE.tif")
    name = "café"
    write(tmp_path / "ir" / f"{unicodedata.normalize('NFD', name)}.png")
    write(tmp_path / "vi" / f"{unicodedata.normalize('NFC', name)}.png")
    assert names(tmp_path) == ["café", "night/STRASSE"]


def test_files_that_are_not_used_are_named_with_the_reason(tmp_path, capsys):
    for name in ("ir/a.png", "vi/a.png", "vi/a.jpg", "ir/b_T.jpg", "vi/.hidden.png", "vi/c.png"):
        write(tmp_path / name)
    for name in ("ir/d.npy", "vi/e.heic", "vi/f.avif", "vi/g.jp2"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="no infrared image has the name of a visible one"):
        find_pairs(folders_of(tmp_path))
    said = capsys.readouterr().err
    for part in (
        "skipped a: several images have this name: ",
        "b_T.jpg: has no visible partner",
        "c.png: has no infrared partner",
        "d.npy: is of no type that is read; save it as PNG or TIFF",
        "e.heic: is of no type that is read; save it as PNG or TIFF",
        "f.avif: is of no type that is read; save it as PNG or TIFF",
        "g.jp2: is of no type that is read; save it as PNG or TIFF",
    ):
        assert part in said
    assert said.count("\n") == 7


def test_links_are_followed(tmp_path):
    real = save_pairs(tmp_path / "real", count=1)
    (tmp_path / "linked").mkdir()
    for kind in ("ir", "vi"):
        (tmp_path / "linked" / kind).symlink_to(real / kind)
    assert names(tmp_path / "linked") == ["scene0"]


def test_folders_that_are_not_there_or_not_meant(tmp_path):
    for name in ("good/ir/a.png", "good/vi/a.png", "half/vi/a.png"):
        write(tmp_path / name)
    for name in ("ir", "thermal", "vi"):
        write(tmp_path / "two" / name / "a.png")
    infrared, visible = tmp_path / "good" / "ir", tmp_path / "good" / "vi"
    for arguments, message in (
        ((tmp_path / "half",), "one folder named ir or infrared or thermal or lwir, got vi"),
        ((tmp_path / "two",), "got ir, thermal"),
        ((tmp_path / "good", infrared, visible), "without --pairs"),
        ((None, infrared, None), "must be given together"),
        ((None, infrared, infrared), "must be two folders"),
        ((None, infrared, tmp_path / "no"), "there is no folder .*no"),
        ((tmp_path / "no",), "there is no folder .*no"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            folders_of(*arguments)


def test_opening_reads_each_pair_and_names_what_is_unusable(tmp_path, capsys):
    folder = save_mixed_pairs(tmp_path)
    write(folder / "vi" / "size.png", noise(5, 40, 50))
    write(folder / "ir" / "size.png", noise(5, 40, 51))
    write(folder / "vi" / "tiny.png", noise(5, 20, 50))
    write(folder / "ir" / "tiny.png", noise(5, 20, 50))
    opened = open_pairs(folder)
    assert [pair.name for pair in opened] == ["colour", "night/grey"]
    assert opened[0].visible.shape == (3, 44, 60)
    assert opened[0].infrared.shape == (1, 44, 60)
    said = capsys.readouterr().err
    assert f"5 pairs; infrared in {folder / 'ir'}, visible in {folder / 'vi'}" in said
    assert "broken.png: cannot be read" in said
    assert "size.png: is 51 x 40, its visible image 50 x 40 pixels" in said
    assert "tiny.png: is 50 x 20 pixels, smaller than 32" in said


def test_nothing_usable_is_an_error(tmp_path):
    write(tmp_path / "ir" / "a.png")
    write(tmp_path / "vi" / "b.png")
    with pytest.raises(ValueError, match="no infrared image has the name"):
        open_pairs(tmp_path)
    (tmp_path / "vi" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the pairs can be used"):
        open_pairs(tmp_path)


def test_false_colours_of_infrared_images_are_said_once(tmp_path, capsys):
    for name in ("a", "b"):
        write(tmp_path / "vi" / f"{name}.png")
        write(tmp_path / "ir" / f"{name}.png", noise(0, 40, 48, 3))
    opened = open_pairs(tmp_path)
    assert opened[0].infrared.shape == (1, 40, 48)
    assert capsys.readouterr().err.count("are coloured; their luminance is used") == 1


def test_a_limit_spreads_over_the_folder(tmp_path):
    save_pairs(tmp_path, count=5)
    assert [pair.name for pair in open_pairs(tmp_path, 2)] == ["scene0", "scene2"]
    assert spread(5, 2) == [0, 2]
    assert spread(2, 5) == spread(2, None) == [0, 1]


def test_a_vanished_source_is_named(tmp_path):
    opened = open_pairs(save_pairs(tmp_path, count=2))
    pairs._kept_pair.cache_clear()
    (tmp_path / "ir" / "scene1.png").unlink()
    assert torch.equal(opened[0].infrared, read_pair(opened.files[0]).infrared)
    with pytest.raises(pairs.UnusableImageError, match="scene1.png: cannot be read"):
        opened[1]


def test_results_never_lie_among_the_sources(tmp_path, monkeypatch):
    folders = folders_of(save_pairs(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "ir")
    for out in ("ir", "vi/new", "link", "link/new", "ir/../vi/new"):
        with pytest.raises(ValueError, match="must not lie among the sources"):
            keep_apart(tmp_path / out, folders)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="among the sources"):
        keep_apart(Path("ir/new"), folders)
    for out in (tmp_path, tmp_path / "fused", Path("relative")):
        keep_apart(out, folders)
