"""Baselines: fusions without training, and image filters as controls."""

import statistics
from collections.abc import Callable, Sequence

import torch
from scipy.optimize import brentq
from skimage.exposure import equalize_adapthist
from torch import Tensor

from clip_fusion_loss.functional import resize_images
from parts.data.images import luminance, to_8bit
from parts.data.pairs import Pair
from parts.measuring.metrics import average_gradient
from tiny_clip.degradations import gaussian_blur


def average(pair: Pair) -> Tensor:
    """The mean of both sources, as uint8 (1, H, W)."""
    return to_8bit((luminance(pair.visible) + luminance(pair.infrared)) / 2)


def maximum(pair: Pair) -> Tensor:
    """The brighter source at each pixel, as uint8 (1, H, W)."""
    return to_8bit(torch.maximum(luminance(pair.visible), luminance(pair.infrared)))


def laplacian_pyramid(pair: Pair, levels: int = 4) -> Tensor:
    """Laplacian pyramid fusion: the larger magnitude per level, the mean of the last level.

    Returns uint8 (1, H, W).

    Burt and Adelson, "The Laplacian Pyramid as a Compact Image Code", IEEE Transactions on
    Communications 1983, with bilinear resizing.
    """
    sources = torch.stack([luminance(pair.visible), luminance(pair.infrared)])
    details = []
    for _ in range(levels):
        size = sources.shape[2:]
        smaller = resize_images(sources, (max(1, size[0] // 2), max(1, size[1] // 2)))
        detail = sources - resize_images(smaller, tuple(size))
        details.append(torch.where(detail[0].abs() >= detail[1].abs(), *detail))
        sources = smaller
    fused = sources.mean(0)
    for detail in reversed(details):
        fused = resize_images(fused[None], tuple(detail.shape[1:]))[0] + detail
    return to_8bit(fused)


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
    """`images` filtered with the strength at which their mean average gradient is `target`."""

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
