"""Small image files and pairs that the tests of the examples share."""

import numpy as np
from PIL import Image

GREY = np.linspace(0, 255, 40 * 48).astype(np.uint8).reshape(40, 48)
COLOUR = np.stack([GREY, GREY.T.reshape(40, 48), 255 - GREY], axis=-1)


def write(path, image=GREY, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


def noise(seed, *size):
    return np.random.default_rng(seed).integers(0, 256, size=size, dtype=np.uint8)


def save_pairs(folder, count=3, size=(48, 56)):
    """Grey pairs with some structure: noise on a ramp."""
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 120, size[1])
    for index in range(count):
        for kind in ("ir", "vi"):
            image = (random.integers(0, 130, size=size) + ramp).astype(np.uint8)
            write(folder / kind / f"scene{index}.png", image)
    return folder


def save_mixed_pairs(folder):
    """A coloured pair, a grey one in a subfolder, and one whose visible image is broken."""
    write(folder / "vi" / "colour.png", noise(0, 44, 60, 3))
    write(folder / "ir" / "colour.png", noise(1, 44, 60))
    write(folder / "vi" / "night" / "grey.bmp", noise(2, 50, 42))
    write(folder / "ir" / "night" / "grey.png", noise(3, 50, 42))
    write(folder / "ir" / "broken.png", noise(4, 44, 44))
    (folder / "vi" / "broken.png").write_bytes(b"no image")
    return folder
