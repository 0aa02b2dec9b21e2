"""Images on disk become 8-bit tensors, and tensors files."""

import numpy as np
import pytest
import tifffile
import torch
from image_files import COLOUR, GREY, write
from PIL import Image

from parts.data.images import (
    deep_to_8bit,
    luminance,
    read_image,
    save_image,
    saved_to_8bit,
    with_chroma_of,
)


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

    def fail_half_way(image, target, **options):
        target.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_image(torch.from_numpy(255 - GREY)[None], path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def saved(path, stretch=False):
    return read_image(path, stretch=stretch).permute(1, 2, 0).numpy().squeeze()


@pytest.mark.parametrize("levels", [GREY, GREY // 5 + 40, COLOUR, COLOUR // 5 + 40])
def test_a_result_reads_the_same_in_every_type(tmp_path, levels):
    photometric = {2: "minisblack", 3: "rgb"}[levels.ndim]
    write(tmp_path / "a.png", levels)
    tifffile.imwrite(tmp_path / "b.tif", levels.astype(np.uint16) * 257, photometric=photometric)
    for name, dtype in (("c", np.float16), ("d", np.float32), ("e", np.float64)):
        values = (levels / 255).astype(dtype)
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric=photometric)
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(saved(path), levels), path.name


def test_a_result_saved_otherwise_is_refused():
    for values, message in (
        (np.array([0.0, 255.0]), "must be from 0 to 1, got 0 to 255"),
        (np.array([-0.5, 0.5], np.float32), "from 0 to 1, got -0.5 to 0.5"),
        (np.array([np.nan, 0.5]), "got nan"),
        (np.array([-3, 9], np.int32), "must be from 0 to 65535"),
        (np.array([0, 255], np.uint16), "8-bit levels in a deeper dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            saved_to_8bit(values)
    assert saved_to_8bit(np.array([0, 65535], np.int32)).tolist() == [0, 255]
    assert saved_to_8bit(np.zeros(2, np.uint16)).tolist() == [0, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_counts_of_a_sensor_keep_their_detail_in_any_number_of_channels(tmp_path, channels):
    counts = GREY.astype(np.uint16) * 8 + 7000
    stacked = np.stack([counts] * channels, -1).squeeze()
    photometric = {1: "minisblack", 3: "rgb"}[channels]
    tifffile.imwrite(tmp_path / "a.tif", stacked, photometric=photometric)
    image = read_image(tmp_path / "a.tif")
    assert image.shape == (1, 40, 48)
    assert len(image.unique()) > 200
    assert np.abs(image[0].numpy().astype(int) - GREY).max() <= 2
