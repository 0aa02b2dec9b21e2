"""Small image files that the tests of reading share."""

import numpy as np
from PIL import Image

GREY = np.linspace(0, 255, 40 * 48).astype(np.uint8).reshape(40, 48)
COLOUR = np.stack([GREY, GREY.T.reshape(40, 48), 255 - GREY], axis=-1)


def write(path, image=GREY, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
