"""Small image pairs that the tests of training share."""

import numpy as np
import torch
from PIL import Image

from parts.data.pairs import Pair


def draw_pairs(count=3, size=(48, 56)):
    """Pairs with some structure: noise on a ramp."""
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 120, size[1])
    images = (random.integers(0, 130, size=(2, count, *size)) + ramp).astype(np.uint8)
    return [
        Pair(f"scene{i}", *(torch.from_numpy(image[i])[None] for image in images))
        for i in range(count)
    ]


def save_pairs(pairs, folder):
    """Write grey pairs as the examples read them."""
    for pair in pairs:
        for name, image in (("vi", pair.visible), ("ir", pair.infrared)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / name / f"{pair.name}.png")
    return folder
