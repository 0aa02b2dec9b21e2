"""Images on disk and in memory: uint8 tensors (1, H, W) if grey, (3, H, W) if coloured."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from parts.files import written_whole

Image.init()
#: Extensions of the formats that Pillow reads, in lower case with their dot.
READABLE = frozenset(
    extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN
)


def read_image(path: Path) -> Tensor:
    """Read an image of any format, depth and colour mode that Pillow knows.

    The orientation noted by a camera is applied, transparency is dropped, and an image whose
    channels are all equal is grey. Images of more than 8 bits: see `deep_to_8bit`.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode == "F" or image.mode.startswith("I"):
            return torch.from_numpy(deep_to_8bit(np.asarray(image)))[None]
        if image.has_transparency_data:  # Pillow warns if a palette's transparency is just dropped
            image = image.convert("RGBA")
        colours = pil_to_tensor(image.convert("RGB"))
    is_grey = bool((colours == colours[0]).all())
    return colours[:1] if is_grey else colours


def deep_to_8bit(values: np.ndarray) -> np.ndarray:
    """(H, W) of integers up to 65535, or of floats up to 1 -> uint8.

    An image that spans less than a quarter of that range, or leaves it, holds raw sensor counts.
    They would come out as an even grey, so they are stretched, but for one value in a thousand at
    either end: dead pixels.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    is_fraction = values.dtype.kind == "f" and values.max() <= 1
    white = 1.0 if is_fraction else 65535.0
    low, high = np.percentile(values, (0.1, 99.9))
    if high - low >= white / 4 and values.min() >= 0 and values.max() <= white:
        low, high = 0.0, white
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def save_image(image: Tensor, path: Path) -> None:
    """Write a uint8 image, replacing the file only when the new one is complete."""
    with written_whole(path) as temporary:
        to_pil_image(image).save(temporary)


def to_8bit(image: Tensor) -> Tensor:
    """[0, 1] -> uint8: clipped and rounded, never stretched, which would flatter the metrics."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def luminance(image: Tensor) -> Tensor:
    """uint8 (1 or 3, H, W) -> float (1, H, W) in [0, 1]: the Y of ITU-R BT.601."""
    image = image / 255
    if image.shape[0] == 1:
        return image
    red, green, blue = image.split(1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def with_chroma_of(visible: Tensor, grey: Tensor) -> Tensor:
    """Give the uint8 image `grey` (1, H, W) the colours of `visible`, if it has any.

    That is Cb and Cr of `visible` with `grey` as Y. In BT.601 a change of Y alone adds the same
    amount to red, green and blue, so no conversion to YCbCr and back is needed.
    """
    if visible.shape[0] == 1:
        return grey
    return to_8bit(visible / 255 + grey / 255 - luminance(visible))
