"""What a fused image gains by a plain filter: the controls that a loss has to beat."""

import statistics
from collections.abc import Callable, Sequence

import torch
from scipy.optimize import brentq
from skimage.exposure import equalize_adapthist
from torch import Tensor

from images import to_8bit
from metrics import average_gradient
from tiny_clip.degradations import gaussian_blur


def unsharp(image: Tensor, amount: float) -> Tensor:
    """Unsharp mask of a uint8 (1, H, W) image with a Gaussian of 2 pixels."""
    values = image[None] / 255
    blurred = gaussian_blur(values, torch.full((1, 1, 1, 1), 2.0))
    return to_8bit((values + amount * (values - blurred))[0])


def clahe(image: Tensor, amount: float) -> Tensor:
    """Contrast-limited adaptive histogram equalisation, blended with the original."""
    values = image[0].numpy() / 255
    equalised = equalize_adapthist(values, clip_limit=0.03)
    return to_8bit(torch.from_numpy(values + amount * (equalised - values))[None].float())


def matched(
    control: Callable[[Tensor, float], Tensor], images: Sequence[Tensor], target: float
) -> list[Tensor]:
    """`images` filtered so strongly that their mean average gradient is `target`."""

    def excess(amount: float) -> float:
        gradients = [average_gradient(control(image, amount)[0].numpy()) for image in images]
        return statistics.mean(gradients) - target

    low, high = 0.0, 1.0
    while excess(high) < 0 and high < 64:
        high *= 2
    if excess(low) >= 0 or excess(high) <= 0:
        amount = low if excess(low) >= 0 else high
    else:
        amount = brentq(excess, low, high, xtol=1e-2)
    return [control(image, amount) for image in images]
