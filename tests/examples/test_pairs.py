"""Pairs on disk are read, checked and kept."""

import numpy as np
import pytest
import torch
from image_files import COLOUR, GREY, write
from PIL import Image

from parts.data.pairs import PairFolder, find_pairs, open_pairs, read_pair, spread


def reasons(root):
    _, skipped = open_pairs(root, limit=100)
    return {item.path.relative_to(root).as_posix(): item.reason for item in skipped}


def test_what_cannot_be_used_is_named_and_skipped(tmp_path):
    for folder in ("ir", "vi"):
        write(tmp_path / folder / "good.png")
        write(tmp_path / folder / "truncated.png")
        write(tmp_path / folder / "tiny.png", GREY[:16])
        (tmp_path / folder / "text.png").write_text("no image")
        (tmp_path / folder / "empty.jpg").touch()
    whole = (tmp_path / "ir" / "truncated.png").read_bytes()
    (tmp_path / "ir" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    write(tmp_path / "ir" / "wide.png", GREY)
    write(tmp_path / "vi" / "wide.png", GREY[:, 1:])
    write(tmp_path / "ir" / "hot.png")
    write(tmp_path / "vi" / "cold.png")
    (tmp_path / "vi" / "raw.dat").touch()

    assert [pair.name for pair in open_pairs(tmp_path, limit=100)[0]] == ["good"]
    explained = reasons(tmp_path)
    assert explained.pop("ir/wide.png") == (
        "is 48 x 40 pixels, its visible image 47 x 40; a pair must be aligned and of one size"
    )
    assert explained.pop("vi/tiny.png") == "is 48 x 16 pixels, needed are at least 32 x 32"
    assert explained.pop("ir/hot.png") == "has no visible partner"
    assert explained.pop("vi/cold.png") == "has no infrared partner"
    assert explained.pop("vi/raw.dat") == "not a type of image that Pillow reads"
    assert set(explained) == {"ir/truncated.png", "vi/text.png", "vi/empty.jpg"}
    assert all(reason.startswith("cannot be read: ") for reason in explained.values())


def test_no_pairs_is_an_error_that_shows_the_layouts(tmp_path):
    write(tmp_path / "ir" / "a.png")
    with pytest.raises(ValueError, match="no usable pair") as failure:
        open_pairs(tmp_path, limit=100)
    assert "DIR/ir/street.png" in str(failure.value)
    assert "ir/a.png: has no visible partner" in str(failure.value)


def test_the_limit_is_spread_over_the_folder(tmp_path):
    for folder in ("ir", "vi"):
        for number in range(6):
            write(tmp_path / folder / f"{number}.png")
    pairs, _ = open_pairs(tmp_path, limit=3)
    assert [pair.name for pair in pairs] == ["0", "2", "4"]
    assert spread(2, 5) == [0, 1]
    assert spread(0, 5) == []


def test_pairs_beyond_the_memory_are_read_again(tmp_path):
    for folder in ("ir", "vi"):
        for name in "abc":
            write(tmp_path / folder / f"{name}.png")
    pairs = PairFolder(memory=5 * GREY.nbytes)
    for files in find_pairs(tmp_path)[0]:
        pairs.add(files)
    assert pairs[0] is pairs[0]
    assert pairs[2] is not pairs[2]
    assert pairs[2].name == "c"
    assert torch.equal(pairs[2].visible, pairs[0].visible)
    assert len(list(pairs)) == 3


def test_infrared_is_read_grey_and_visible_as_it_is(tmp_path):
    write(tmp_path / "ir" / "a.png", COLOUR)
    write(tmp_path / "vi" / "a.png", COLOUR)
    pair = read_pair(find_pairs(tmp_path)[0][0])
    assert pair.visible.shape == (3, 40, 48)
    expected = Image.fromarray(COLOUR).convert("L")
    assert np.abs(pair.infrared[0].numpy().astype(int) - np.asarray(expected)).max() <= 1


def test_what_was_taken_for_what_is_said_in_a_line(tmp_path, capsys):
    for folder in ("lwir", "rgb"):
        write(tmp_path / folder / "a.png")
    open_pairs(tmp_path, limit=100)
    assert "visible rgb/a.png and infrared lwir/a.png" in capsys.readouterr().err


def test_a_broken_picture_is_named_whatever_its_decoder_raises(tmp_path):
    for folder in ("ir", "vi"):
        write(tmp_path / folder / "good.png")
        write(tmp_path / folder / "half.tif", GREY.astype(np.uint16) * 200)
        write(tmp_path / folder / "two.gif", Image.fromarray(GREY))
    whole = (tmp_path / "ir" / "half.tif").read_bytes()
    (tmp_path / "ir" / "half.tif").write_bytes(whole[: len(whole) // 2])
    second = Image.fromarray(255 - GREY)
    write(tmp_path / "vi" / "two.gif", Image.fromarray(GREY), save_all=True, append_images=[second])
    explained = reasons(tmp_path)
    assert set(explained) == {"ir/half.tif", "vi/two.gif"}
    assert all(reason.startswith("cannot be read: ") for reason in explained.values())
