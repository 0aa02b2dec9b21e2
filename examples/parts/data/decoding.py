"""Decode image files with their full bit depth, upright, without transparency."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin

Values = NDArray[Any]

Image.init()
#: Extensions of the formats that Pillow reads, in lower case with their dot.
READABLE = frozenset(
    extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN
)
# Pillow's own decoder for uncompressed files scrambles images with a rotation by 90 degrees;
# libtiff does not.
TiffImagePlugin.READ_LIBTIFF = True

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: Formats whose further frames are previews or layers of the one image that is meant.
ONE_IMAGE_OF_SEVERAL_FRAMES = ("MPO", "PSD", "TIFF")
EXIF_ORIENTATION = 0x0112
SEVERAL_IMAGES = "it holds {} images; save the one that is meant as a file of its own"


def decode(path: Path) -> Values:
    """An image as (H, W) if grey or (H, W, 3) if coloured, in the dtype of the file.

    Pillow decodes images of 8 bits; tifffile and imagecodecs those that it would reduce to 8 bits.

    Raises:
        OSError, ValueError, ...: the file is broken, has several images, or more than 8 bits in a
            format that is not supported; decoders can raise nearly anything.
    """
    with open(path, "rb") as file:
        is_tiff = file.read(4) in TIFF_STARTS
    if is_tiff and (values := _deep_tiff(path)) is not None:
        return values
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format not in ONE_IMAGE_OF_SEVERAL_FRAMES:
            raise ValueError(SEVERAL_IMAGES.format(frames))
        if (values := _cut_by_pillow(path, image)) is not None:
            return upright(without_alpha(values), image.getexif().get(EXIF_ORIENTATION, 1))
        turned = ImageOps.exif_transpose(image)
        if turned.mode == "F" or turned.mode.startswith("I"):
            return np.array(turned)
        if turned.has_transparency_data:  # Pillow warns if a palette's transparency is just dropped
            turned = turned.convert("RGBA")
        return np.array(turned if turned.mode == "L" else turned.convert("RGB"))


def _deep_tiff(path: Path) -> Values | None:
    """The image in a TIFF of more than 8 bits or with a sign; None for all others."""
    import tifffile  # imported here, as it is slow to load

    with tifffile.TiffFile(path) as tiff:
        pages = [page for page in tiff.pages if not page.is_reduced and not page.is_mask]
        if len(pages) > 1:
            raise ValueError(SEVERAL_IMAGES.format(len(pages)))
        page = pages[0]
        if page.dtype is not None and page.dtype in (np.uint8, np.bool_):
            return None
        colours = getattr(page.photometric, "name", str(page.photometric))
        if (
            colours not in ("MINISBLACK", "MINISWHITE", "RGB")
            or page.axes not in ("YX", "YXS", "SYX")
            or page.samplesperpixel > 4
        ):
            raise ValueError(
                f"it holds {colours} of {page.samplesperpixel} x {page.bitspersample} bits, "
                "expected grey or RGB; save it as a grey or RGB image"
            )
        values = page.asarray()
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    values = without_alpha(values)
    if colours == "MINISWHITE" and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    orientation = page.tags.get(EXIF_ORIENTATION)
    return upright(values, 1 if orientation is None else int(orientation.value))


def _cut_by_pillow(path: Path, image: Image.Image) -> Values | None:
    """The image where Pillow would cut its channels to 8 bits; None where it would not."""
    if image.mode.startswith("I") or not image.tile:
        return None
    details = image.tile[0][3]
    details = details if isinstance(details, tuple) else (details,)
    layout = str(details[0])  # of the file's bytes, such as RGB;16B. BGR;16 is 5, 6 and 5 bits.
    is_deep = ";16" in layout and not layout.startswith("BGR")
    if image.format == "PPM":
        is_deep = layout == "RGB" and details[1] > 255
    if image.format == "JPEG2000":  # whose header Pillow does not tell
        import imagecodecs

        values = imagecodecs.jpeg2k_decode(path.read_bytes())
        return None if values.dtype == np.uint8 else values
    if not is_deep:
        return None
    if image.format == "PNG":
        import imagecodecs

        return imagecodecs.png_decode(path.read_bytes())
    raise ValueError(
        f"it has more than 8 bits per channel, which are not read from {image.format} files; save "
        "it as PNG or TIFF"
    )


def without_alpha(values: Values) -> Values:
    """(H, W, 2) -> (H, W) and (H, W, 4) -> (H, W, 3)."""
    if values.ndim == 2:
        return values
    return values[..., 0] if values.shape[2] < 3 else values[..., :3]


def upright(values: Values, orientation: int) -> Values:
    """Apply the orientation that Exif and TIFF number 1 to 8; other numbers mean nothing."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
