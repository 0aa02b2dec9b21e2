"""Whole depth, upright, one image: what decoders return for files of all kinds."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from image_files import COLOUR, GREY, write
from PIL import Image

from parts.data.decoding import decode, upright

DEEP = (np.arange(40 * 48) + 7000).astype(np.uint16).reshape(40, 48)
DEEP_COLOUR = np.stack([DEEP, DEEP + 1, DEEP + 2], -1)
OPAQUE = np.full((40, 48, 1), 65535, np.uint16)
#: The colour types of PNG: grey, RGB, grey with alpha, RGBA.
PNG_TYPES = {1: 0, 3: 2, 2: 4, 4: 6}


def write_png(path, values):
    """A PNG of 16 bits, written from its specification."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1).astype(">u2")
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    kind = PNG_TYPES[1 if values.ndim == 2 else values.shape[2]]
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(data),
        b"IEND": b"",
    }
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in parts.items()
        )
    )


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
    decoded = decode(path)
    assert np.array_equal(decoded, values)
    assert decoded.dtype == np.uint16


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u4", "i2", "i1"])
def test_other_number_types_of_tiff_are_kept(tmp_path, dtype):
    values = (DEEP % 100).astype(dtype) - (50 if dtype[0] == "i" else 0)
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert np.array_equal(decode(tmp_path / "a.tif"), values)
    tifffile.imwrite(tmp_path / "b.tif", np.stack([values] * 3, -1), photometric="rgb")
    assert np.array_equal(decode(tmp_path / "b.tif"), np.stack([values] * 3, -1))


def test_planes_and_white_as_zero(tmp_path):
    planes = np.moveaxis(DEEP_COLOUR, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(decode(tmp_path / "a.tif"), DEEP_COLOUR)
    tifffile.imwrite(tmp_path / "b.tif", 65535 - DEEP, photometric="miniswhite")
    assert np.array_equal(decode(tmp_path / "b.tif"), DEEP)


def test_jpeg_2000(tmp_path):
    for name, values in (("a", DEEP_COLOUR), ("b", COLOUR)):
        path = tmp_path / f"{name}.jp2"
        path.write_bytes(imagecodecs.jpeg2k_encode(values, level=0, reversible=True))
        assert np.array_equal(decode(path), values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    "values", [GREY, COLOUR, DEEP, DEEP_COLOUR], ids=["8", "8x3", "16", "16x3"]
)
def test_tiffs_are_upright(tmp_path, values, compression, orientation):
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
        compression=compression,
        extratags=[(274, 3, 1, orientation, True)],
    )
    assert np.array_equal(decode(tmp_path / "a.tif"), expected)
    assert np.array_equal(upright(values, orientation), expected)


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
    assert np.array_equal(decode(tmp_path / "a.tif"), DEEP)


def test_what_nothing_reads_whole_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6\n48 40\n65535\n" + DEEP_COLOUR.astype(">u2").tobytes())
    with pytest.raises(ValueError, match="not read from PPM files; save it as PNG or TIFF"):
        decode(tmp_path / "a.ppm")
    tifffile.imwrite(tmp_path / "b.tif", with_alpha(DEEP_COLOUR), photometric="separated")
    with pytest.raises(ValueError, match="SEPARATED of 4 x 16 bits, expected grey or RGB"):
        decode(tmp_path / "b.tif")


def test_half_a_deep_file_is_an_error(tmp_path):
    write_png(tmp_path / "a.png", DEEP_COLOUR)
    tifffile.imwrite(tmp_path / "b.tif", DEEP_COLOUR, photometric="rgb")
    tifffile.imwrite(tmp_path / "c.tif", DEEP_COLOUR, photometric="rgb", compression="zlib")
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises((OSError, ValueError, RuntimeError)):
            decode(path)
