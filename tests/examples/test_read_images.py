"""Reading images: whole depth, upright, one image, nothing made up; and writing them."""

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from image_files import COLOUR, GREY, write
from PIL import Image

import options
from pairs import decode, luminance, read_image, to_grey_levels, with_chroma_of

DEEP = (np.arange(40 * 48) + 7000).astype(np.uint16).reshape(40, 48)
DEEP_COLOUR = np.stack([DEEP, DEEP + 1, DEEP + 2], -1)
OPAQUE = np.full((40, 48, 1), 65535, np.uint16)


def write_png(path, values):
    path.write_bytes(imagecodecs.png_encode(values))


def with_alpha(values):
    return np.concatenate([values if values.ndim == 3 else values[..., None], OPAQUE], -1)


@pytest.mark.parametrize("values", [DEEP, DEEP_COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("kind", ["png", "tif", "zlib.tif", "lzw.tif", "big.tif"])
def test_16_bits_are_kept(tmp_path, values, alpha, kind):
    path = tmp_path / f"a.{kind}"
    stored = with_alpha(values) if alpha else values
    if kind == "png":
        write_png(path, stored)
    else:
        tifffile.imwrite(
            path,
            stored,
            photometric="rgb" if values.ndim == 3 else "minisblack",
            planarconfig="contig" if stored.ndim == 3 else None,
            extrasamples=["unassalpha"] if alpha else None,
            compression={"zlib.tif": "zlib", "lzw.tif": "lzw"}.get(kind),
            byteorder=">" if kind == "big.tif" else "<",
        )
    decoded, _ = decode(path)
    assert np.array_equal(decoded, values)
    assert decoded.dtype == np.uint16


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u4", "i2", "i1"])
def test_other_number_types_of_tiff_are_kept(tmp_path, dtype):
    values = (DEEP % 100).astype(dtype) - (50 if dtype[0] == "i" else 0)
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert np.array_equal(decode(tmp_path / "a.tif")[0], values)
    tifffile.imwrite(tmp_path / "b.tif", np.stack([values] * 3, -1), photometric="rgb")
    assert np.array_equal(decode(tmp_path / "b.tif")[0], np.stack([values] * 3, -1))


@pytest.mark.parametrize("values", [GREY, DEEP])
def test_white_as_zero(tmp_path, values):
    inverted = np.iinfo(values.dtype).max - values
    tifffile.imwrite(tmp_path / "b.tif", inverted, photometric="miniswhite")
    assert np.array_equal(decode(tmp_path / "b.tif")[0], values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "values", [GREY, COLOUR, DEEP, DEEP_COLOUR], ids=["8", "8x3", "16", "16x3"]
)
def test_tiffs_are_upright(tmp_path, values, orientation):
    # Where the first row and the first column of the file lie: TIFF 6.0, page 36.
    expected = {
        1: values,
        2: np.fliplr(values),
        3: np.rot90(values, 2),
        4: np.flipud(values),
        5: np.flipud(np.rot90(values)),
        6: np.rot90(values, -1),
        7: np.fliplr(np.rot90(values)),
        8: np.rot90(values),
    }[orientation]
    tifffile.imwrite(
        tmp_path / "a.tif",
        values,
        photometric="rgb" if values.ndim == 3 else "minisblack",
        compression="zlib" if orientation % 2 else None,
        extratags=[(274, 3, 1, orientation, True)],
    )
    assert np.array_equal(decode(tmp_path / "a.tif")[0], expected)


def test_several_images_in_a_file_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([DEEP, DEEP]), photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", np.stack([GREY, GREY]), photometric="minisblack")
    second = Image.fromarray(255 - GREY)
    for name in ("c.gif", "d.png", "e.webp"):
        write(tmp_path / name, Image.fromarray(GREY), save_all=True, append_images=[second])
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match="it holds 2 images; save the one that is meant"):
            decode(path)


def test_a_preview_is_no_second_image(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(DEEP, photometric="minisblack", metadata=None)
        tiff.write(DEEP[::4, ::4], photometric="minisblack", subfiletype=1, metadata=None)
    assert np.array_equal(decode(tmp_path / "a.tif")[0], DEEP)


def test_what_nothing_reads_whole_is_refused_with_the_remedy(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", with_alpha(DEEP_COLOUR), photometric="separated")
    with pytest.raises(ValueError, match="uint16 SEPARATED YXS; save it as grey or RGB"):
        decode(tmp_path / "a.tif")


def test_half_a_deep_file_is_an_error(tmp_path):
    write_png(tmp_path / "a.png", DEEP_COLOUR)
    tifffile.imwrite(tmp_path / "b.tif", DEEP_COLOUR, photometric="rgb")
    tifffile.imwrite(tmp_path / "c.tif", DEEP_COLOUR, photometric="rgb", compression="zlib")
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises((OSError, ValueError, RuntimeError)):
            decode(path)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("L", "tif"), ("LA", "png"), ("P", "gif"), ("RGB", "bmp")],
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


def test_the_orientation_of_a_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    write(tmp_path / "a.jpg", Image.fromarray(GREY), exif=exif, quality=100)
    turned = np.rot90(GREY, -1).astype(int)
    assert np.abs(read_image(tmp_path / "a.jpg")[0].numpy() - turned).max() <= 3


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
    assert (to_grey_levels(np.full((4, 4), 500, np.uint16), None) == 0).all()
    with pytest.raises(ValueError, match="not finite"):
        to_grey_levels(np.array([[0.0, np.nan]]), None)


def test_colour_is_restored_from_the_visible_image():
    visible = torch.tensor([60, 100, 140], dtype=torch.uint8).repeat(4, 4, 1).permute(2, 0, 1)
    grey = torch.full((1, 4, 4), 120, dtype=torch.uint8)
    restored = with_chroma_of(visible, grey)
    assert (luminance(restored) * 255 - 120).abs().max() < 1
    before, after = (image.int() - image.int()[:1] for image in (visible, restored))
    assert (before - after).abs().max() <= 1, "the same distances of red, green and blue"
    assert with_chroma_of(grey, grey) is grey


def test_results_have_8_bits(tmp_path):
    write(tmp_path / "a.png", GREY // 5 + 40)
    result = read_image(tmp_path / "a.png", stretch=False)
    assert np.array_equal(result[0].numpy(), GREY // 5 + 40)
    for name, values in (("b.tif", DEEP), ("c.tif", GREY.astype(np.float32) / 255)):
        tifffile.imwrite(tmp_path / name, values)
        with pytest.raises(ValueError, match="a result must have 8 bits; scale it"):
            read_image(tmp_path / name, stretch=False)


NODATA = 42113  # the tag of GDAL


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("f4", -9999, "-9999"),
        ("f4", -3.4028234663852886e38, "-3.40282346638529e+38"),
        ("f4", np.nan, "nan"),
        ("i2", -32768, "-32768"),
        ("u2", 65535, "65535"),
        ("u2", 0, "-9999"),  # a value that the file cannot hold marks nothing
    ],
)
def test_missing_values_do_not_stretch_the_others(tmp_path, capsys, dtype, value, text):
    options.note.cache_clear()
    counts = GREY.astype(dtype) * 4 + 7000
    marked = np.zeros(GREY.shape, bool)
    if float(text) == value or text == "nan":
        marked[10:20, 5:30] = True
        marked[0] = True
    counts[marked] = value
    tag = [(NODATA, 2, len(text) + 1, text, True)]
    tifffile.imwrite(tmp_path / "a.tif", counts, extratags=tag)
    image = read_image(tmp_path / "a.tif")[0].numpy().astype(int)
    assert (image[marked] == 0).all()
    low, high = np.percentile(GREY[~marked], (0.1, 99.9))
    expected = ((GREY[~marked] - low) / (high - low)).clip(0, 1) * 255
    assert np.abs(image[~marked] - expected).max() <= 1
    assert ("marked as missing" in capsys.readouterr().err) == marked.any()


def test_missing_values_of_8_bits_are_black(tmp_path):
    image = GREY.copy()
    image[:5] = 255
    tifffile.imwrite(tmp_path / "a.tif", image, extratags=[(NODATA, 2, 4, "255", True)])
    expected = np.where(image == 255, 0, image)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0].numpy(), expected)


KELVIN = GREY.astype("u2") * 24 + 28000  # in hundredths


@pytest.mark.parametrize(
    ("counts", "border", "said"),
    [
        (GREY.astype("f4") / 16 + 20, -9999, "a.tif: has only 2 grey levels in 8 bits"),
        (KELVIN, 0, "a.tif: has only 23 grey levels in 8 bits"),
        (KELVIN, 65535, "a.tif: has only 23 grey levels in 8 bits"),
        (KELVIN, 28000, ""),
        (KELVIN // 2**14, 3, ""),  # few levels in the file too
    ],
)
def test_an_image_with_few_levels_left_is_named(tmp_path, capsys, counts, border, said):
    options.note.cache_clear()
    counts = counts.copy()
    counts[:5] = border  # without a tag
    tifffile.imwrite(tmp_path / "a.tif", counts)
    read_image(tmp_path / "a.tif")
    printed = capsys.readouterr().err
    assert said in printed
    assert bool(said) == bool(printed)


@pytest.mark.parametrize("text", ["", "none"])
def test_a_missing_value_that_is_no_number_is_ignored(tmp_path, capsys, text):
    options.note.cache_clear()
    tag = [(NODATA, 2, len(text) + 1, text, True)]
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=tag)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0].numpy(), GREY)
    assert "a.tif: its GDAL_NODATA is no number and is ignored" in capsys.readouterr().err


def test_formats_that_pillow_reads_with_8_bits_only_are_refused(tmp_path):
    """Also behind the name of another format; find_pairs names the remedy for their own."""
    for name, encode in (("a", imagecodecs.avif_encode), ("b", imagecodecs.jpeg2k_encode)):
        (tmp_path / f"{name}.png").write_bytes(encode(COLOUR))
        with pytest.raises(OSError, match="cannot identify image file"):
            decode(tmp_path / f"{name}.png")
