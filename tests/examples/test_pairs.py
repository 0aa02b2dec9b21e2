"""Small real files in many formats and layouts."""

import numpy as np
import pytest
import torch
from PIL import Image

from parts.data.images import deep_to_8bit, luminance, read_image, save_image, with_chroma_of
from parts.data.pairs import PairFolder, find_pairs, open_pairs, read_pair, spread

GREY = np.linspace(0, 255, 40 * 48).astype(np.uint8).reshape(40, 48)
COLOUR = np.stack([GREY, GREY.T.reshape(40, 48), 255 - GREY], axis=-1)


def write(path, image=GREY, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


def names(root):
    return [pair.name for pair in find_pairs(root)[0]]


def reasons(root):
    _, skipped = open_pairs(root, limit=100)
    return {item.path.relative_to(root).as_posix(): item.reason for item in skipped}


@pytest.mark.parametrize("infrared", ["ir", "Infrared", "THERMAL", "lwir"])
@pytest.mark.parametrize("visible", ["vi", "VIS", "visible", "rgb"])
def test_folder_names(tmp_path, infrared, visible):
    write(tmp_path / infrared / "a.png")
    write(tmp_path / visible / "a.png")
    (pair,), skipped = find_pairs(tmp_path)
    assert pair == ("a", tmp_path / visible / "a.png", tmp_path / infrared / "a.png")
    assert skipped == []


def test_split_folders_above_and_below_the_modality(tmp_path):
    for split in ("train", "test/night"):
        write(tmp_path / split / "ir" / "a.png")
        write(tmp_path / split / "vi" / "a.png")
        write(tmp_path / "Infrared" / split / "b.png")
        write(tmp_path / "Visible" / split / "b.png")
    assert names(tmp_path) == ["test/night/a", "test/night/b", "train/a", "train/b"]


def test_the_innermost_folder_decides(tmp_path):
    write(tmp_path / "visible" / "ir" / "a.png")
    write(tmp_path / "visible" / "vi" / "a.png")
    assert names(tmp_path / "visible") == ["a"]
    assert names(tmp_path) == ["visible/a"]


def test_extensions_may_differ(tmp_path):
    write(tmp_path / "ir" / "scene.1.bmp")
    write(tmp_path / "vi" / "scene.1.JPG")
    assert names(tmp_path) == ["scene.1"]


def test_equal_extensions_decide_between_files_of_one_name(tmp_path):
    for suffix in ("png", "bmp"):
        write(tmp_path / "ir" / f"a.{suffix}")
        write(tmp_path / "vi" / f"a.{suffix}")
    write(tmp_path / "vi" / "a.tif")
    assert names(tmp_path) == ["a.bmp", "a.png"]
    assert reasons(tmp_path) == {"vi/a.tif": "several images have this name"}


def test_two_folders_of_one_modality_are_not_mixed_up(tmp_path):
    write(tmp_path / "ir" / "a.png")
    write(tmp_path / "vi" / "a.png")
    write(tmp_path / "rgb" / "a.png")
    pairs, skipped = find_pairs(tmp_path)
    assert pairs == []
    assert len(skipped) == 3


def test_hidden_files_and_other_folders_do_not_count(tmp_path):
    for folder in ("ir", "vi"):
        write(tmp_path / folder / "a.png")
        write(tmp_path / folder / "._a.png")
        write(tmp_path / folder / ".thumbnails" / "b.png")
    write(tmp_path / "masks" / "a.png")
    (tmp_path / "README.txt").write_text("read me")
    assert names(tmp_path) == ["a"]
    assert reasons(tmp_path) == {}


def test_linked_folders_are_followed(tmp_path):
    write(tmp_path / "data" / "a.png")
    (tmp_path / "set").mkdir()
    for folder in ("ir", "vi"):
        (tmp_path / "set" / folder).symlink_to(tmp_path / "data")
    assert names(tmp_path / "set") == ["a"]


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
    assert explained.pop("ir/wide.png") == "is 48 x 40 pixels, its visible image 47 x 40"
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


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"no folder .*nowhere"):
        find_pairs(tmp_path / "nowhere")


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


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("L", "tif"), ("L", "pgm"), ("LA", "png"), ("P", "gif"), ("RGB", "bmp")],
)
def test_grey_images_of_any_mode(tmp_path, mode, suffix):
    write(tmp_path / f"a.{suffix}", Image.fromarray(GREY).convert(mode))
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}")[0].numpy(), GREY)


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("RGBA", "tif")])
def test_colour_images_of_any_mode(tmp_path, mode, suffix):
    write(tmp_path / f"a.{suffix}", Image.fromarray(COLOUR).convert(mode))
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}").permute(1, 2, 0).numpy(), COLOUR)


@pytest.mark.parametrize("transparency", [0, bytes(range(256))])
def test_palettes(tmp_path, transparency):
    image = Image.fromarray(COLOUR).quantize(64)
    write(tmp_path / "a.png", image, transparency=transparency)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), expected)


def test_black_and_white(tmp_path):
    write(tmp_path / "a.png", Image.fromarray(GREY).convert("1"))
    assert set(read_image(tmp_path / "a.png").unique().tolist()) == {0, 255}


def test_the_orientation_of_a_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    write(tmp_path / "a.jpg", Image.fromarray(GREY), exif=exif, quality=100)
    turned = np.rot90(GREY, -1).astype(int)
    assert np.abs(read_image(tmp_path / "a.jpg")[0].numpy() - turned).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_images_of_full_range_keep_their_levels(tmp_path, suffix):
    write(tmp_path / f"a.{suffix}", GREY.astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}")[0].numpy(), GREY)


def test_raw_sensor_counts_are_stretched_despite_a_dead_pixel(tmp_path):
    counts = GREY.astype(np.uint16) * 8 + 7000
    counts[0, 0] = 0
    write(tmp_path / "a.tif", counts)
    difference = read_image(tmp_path / "a.tif")[0].numpy().astype(int) - GREY
    assert np.abs(difference).max() <= 2


def test_float_images(tmp_path):
    write(tmp_path / "a.tif", GREY.astype(np.float32) / 255)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0].numpy(), GREY)
    write(tmp_path / "b.tif", GREY.astype(np.float32) - 40)  # degrees Celsius, say
    assert np.abs(read_image(tmp_path / "b.tif")[0].numpy().astype(int) - GREY).max() <= 2


def test_deep_images_without_content():
    assert (deep_to_8bit(np.full((4, 4), 500, np.uint16)) == 0).all()
    with pytest.raises(ValueError, match="not finite"):
        deep_to_8bit(np.array([[0.0, np.nan]]))


def test_colour_is_restored_from_the_visible_image():
    visible = torch.tensor([60, 100, 140], dtype=torch.uint8).repeat(4, 4, 1).permute(2, 0, 1)
    grey = torch.full((1, 4, 4), 120, dtype=torch.uint8)
    restored = with_chroma_of(visible, grey)
    assert (luminance(restored) * 255 - 120).abs().max() < 1
    before, after = (
        Image.fromarray(image.permute(1, 2, 0).numpy()).convert("YCbCr")
        for image in (visible, restored)
    )
    chroma = np.asarray(before).astype(int)[..., 1:] - np.asarray(after)[..., 1:]
    assert np.abs(chroma).max() <= 1
    assert with_chroma_of(grey, grey) is grey


def test_saving_leaves_the_old_file_if_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "fused" / "a.png"
    save_image(torch.from_numpy(GREY)[None], path)
    before = path.read_bytes()

    def fail_half_way(image, target):
        target.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_image(torch.from_numpy(255 - GREY)[None], path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
