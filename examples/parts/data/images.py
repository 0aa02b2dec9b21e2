"""Images on disk and in memory: uint8 tensors (1, H, W) if grey, (3, H, W) if coloured."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from parts.data.decoding import Values, decode
from parts.files import written_whole

#: The keyword of the text in a PNG that says what the image was made of.
NOTE = "Comment"


def read_image(path: Path, *, stretch: bool = True) -> Tensor:
    """Read an image of any format, depth and colour mode.

    The camera's orientation is applied, transparency is dropped, and an image with equal channels
    becomes grey. `stretch` is for images of more than 8 bits: True for those of a sensor, see
    `deep_to_8bit`; False for results, which must not change, see `saved_to_8bit`.

    Raises:
        OSError, ValueError, ...: as `decoding.decode`; or values are not in the expected range.
    """
    values = decode(path)
    if values.dtype != np.uint8:
        values = deep_to_8bit(values) if stretch else saved_to_8bit(values)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))


def deep_to_8bit(values: Values) -> Values:
    """Integers up to 65535, or floats up to 1 -> uint8 of the same shape, channels alike.

    An image that covers less than a quarter of that range, or exceeds it, has raw sensor counts.
    Without scaling it would look uniformly grey, so it is stretched from its 0.1 to its 99.9
    percentile, which ignores dead pixels.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    is_fraction = values.dtype.kind == "f" and values.max() <= 1
    white = 1.0 if is_fraction else 65535.0
    values = values.astype(np.float64)
    low, high = np.percentile(values, (0.1, 99.9))
    if high - low >= white / 4 and values.min() >= 0 and values.max() <= white:
        low, high = 0.0, white
    scaled = (values - low) / max(high - low, 1e-12)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def saved_to_8bit(values: Values) -> Values:
    """The same grey levels in 8 bits; white is the dtype's maximum, or 1 for floats.

    Raises:
        ValueError: the values show that the image was saved with another range.
    """
    white = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    if values.dtype.kind == "i":  # what Pillow makes of 16 bits in some formats
        white = 65535
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # nor NaN
        raise ValueError(
            f"its values must be from 0 to {white}, got {low:g} to {high:g}; scale them"
        )
    if white > 255 and 0 < high <= 255:
        raise ValueError(
            f"its values go up to {high} of {white}: these are 8-bit levels in a deeper dtype, "
            "which viewers show as black; save it with 8 bits"
        )
    return (values.astype(np.float64) / white * 255).round().astype(np.uint8)


def save_image(image: Tensor, path: Path, note: str | None = None) -> None:
    """Write a uint8 image, replacing the file only when the new one is complete.

    `note` is stored as text in a PNG; see `note_in`.
    """
    about = PngInfo()
    if note is not None:
        about.add_text(NOTE, note)
    with written_whole(path) as temporary:
        to_pil_image(image).save(temporary, pnginfo=about)


def note_in(path: Path) -> str | None:
    """The note that `save_image` stored in a PNG; None if there is none, or it is not an image."""
    try:
        with Image.open(path) as image:
            return image.info.get(NOTE)
    except (OSError, ValueError, SyntaxError):
        return None


def to_8bit(image: Tensor) -> Tensor:
    """[0, 1] -> uint8, clipped and rounded; not stretched, which would raise the metrics."""
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
