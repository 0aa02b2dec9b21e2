"""What spoils an image, how strongly, and which statements about it become true.

Every degradation takes images (N, 1, H, W) in [0, 1] and a strength (N, 1, 1, 1) in [0, 1] and
returns images of the same shape and range. They are applied at the model's own input size:
noise or blur put on a larger image would be washed out by the resize that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import SLICES, assertion, mask

Operation = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Degradation:
    """An image operation and its effect on what is known about the image."""

    apply: Operation
    asserted: Tensor
    """(WIDTH,) boolean, the values that are possible for the result, whatever was true before."""
    touched: Tensor
    """(WIDTH,) boolean, the columns of all attributes that it decides or makes unknown."""

    def describe(self, possible: Tensor) -> Tensor:
        """What is possible after it: `possible` (N, WIDTH) with the touched columns replaced."""
        return torch.where(self.touched, self.asserted, possible)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own sigma (N, 1, 1, 1) in pixels; edges are renormalised."""
    rows = _blur_matrix(images.shape[-2], sigma)
    columns = _blur_matrix(images.shape[-1], sigma)
    return rows @ images @ columns.mT


def _blur_matrix(size: int, sigma: Tensor) -> Tensor:
    axis = torch.arange(size, dtype=torch.float32)
    weights = torch.exp(-((axis[:, None] - axis) ** 2) / (2 * sigma.clamp(min=0.05) ** 2))
    return weights / weights.sum(-1, keepdim=True)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """One random number per image, (N, 1, 1, 1)."""
    return low + (high - low) * torch.rand(len(like), 1, 1, 1, generator=generator)


def _noise_like(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator)


def blur(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur of sigma 0.6 to 3.4 pixels."""
    return gaussian_blur(images, 0.6 + 2.8 * strength)


def noise(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of deviation 0.03 to 0.2, in half of the images slightly correlated."""
    grain = _noise_like(images, generator)
    soft = gaussian_blur(grain, _uniform(images, 0.4, 0.9, generator))
    soft = soft / soft.std((-1, -2), keepdim=True)
    grain = torch.where(_uniform(images, 0, 1, generator) < 0.5, grain, soft)
    return images + (0.03 + 0.17 * strength) * grain


def low_contrast(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Squeeze the grey levels to between 60 and 12 % of their range."""
    mean = images.mean((-1, -2), keepdim=True)
    centre = 0.6 * mean + 0.4 * _uniform(images, 0.3, 0.7, generator)
    return centre + (0.6 - 0.48 * strength) * (images - mean)


def dark(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Less light: a gain of 0.65 to 0.15, or a gamma that takes as much."""
    gain = 0.65 - 0.5 * strength
    by_gamma = images.clamp(min=1e-3) ** (1 + 2.5 * strength) * (0.85 - 0.3 * strength)
    return torch.where(_uniform(images, 0, 1, generator) < 0.6, gain * images, by_gamma)


def bright(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Too much light: what is bright is lost in white."""
    return images * (1.3 + 1.2 * strength) + 0.1 + 0.2 * strength


def haze(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Bright air light of uneven thickness, thicker towards the top in half of the images."""
    size = images.shape[-1]
    clouds = gaussian_blur(_noise_like(images, generator), torch.full((len(images), 1, 1, 1), 14.0))
    clouds = clouds / clouds.std((-1, -2), keepdim=True)
    height = torch.linspace(0.15, -0.15, size)[:, None]
    tilt = (_uniform(images, 0, 1, generator) < 0.5).float()
    veil = (0.35 + 0.45 * strength + 0.05 * clouds + tilt * height).clamp(0.1, 0.92)
    return images * (1 - veil) + veil * _uniform(images, 0.65, 0.95, generator)


def harsh(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast so strong that shadows and lights are clipped."""
    mean = images.mean((-1, -2), keepdim=True)
    return 0.5 + (1.5 + 2.5 * strength) * (images - mean)


def oversharpen(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Unsharp mask, far too strong."""
    base = gaussian_blur(images, _uniform(images, 0.6, 1.6, generator))
    return images + (1.5 + 4 * strength) * (images - base)


def emboss(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Relief: the derivative along a random direction, on grey or on the image itself."""
    # Faint relief counts too: that is how a fusion network starts.
    angle = _uniform(images, 0, 6.2832, generator)
    soft = gaussian_blur(images, _uniform(images, 0.1, 1.2, generator))
    down, right = torch.gradient(soft, dim=(-2, -1))
    relief = (0.8 + 5 * strength) * (torch.sin(angle) * down + torch.cos(angle) * right)
    keep = torch.where(_uniform(images, 0, 1, generator) < 0.6, 1.0, strength)
    return keep * images + (1 - keep) * 0.5 + relief


def high_pass(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Only the fine structure, on grey."""
    base = gaussian_blur(images, _uniform(images, 1.0, 4.0, generator))
    return 0.5 + (1 + 2 * strength) * (images - base)


def random_kernel(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Image plus a random zero-mean 5 x 5 filter of it, odd (pure relief) in half of the images."""
    kernels = torch.randn(len(images), 1, 5, 5, generator=generator)
    kernels = kernels - kernels.mean((-1, -2), keepdim=True)
    odd = _uniform(images, 0, 1, generator) < 0.5
    return add_relief(images, torch.where(odd, odd_part(kernels), kernels), 0.06 + 0.16 * strength)


def odd_part(kernels: Tensor) -> Tensor:
    """The antisymmetric part of filters (N, 1, K, K): it shifts and embosses, never sharpens."""
    return (kernels - kernels.flip(-1, -2)) / 2


def add_relief(images: Tensor, kernels: Tensor, amount: Tensor) -> Tensor:
    """Add to each image its own filter response, scaled to a deviation of `amount` (N, 1, 1, 1)."""
    count, width = len(images), images.shape[-1]
    edge = kernels.shape[-1] // 2
    padded = F.pad(images, (edge,) * 4, mode="reflect").view(1, count, -1, width + 2 * edge)
    relief = F.conv2d(padded, kernels, groups=count).view_as(images)
    return images + amount * relief / (relief.std((-1, -2), keepdim=True) + 0.01)


def posterise(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Only 5 to 2 grey levels."""
    steps = (4 - 3 * strength).round()
    return (images * steps).round() / steps


def invert(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The negative."""
    return 1 - images * (0.8 + 0.2 * strength)


def halo(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Wide rims along edges; in half of the images only the dark ones."""
    base = gaussian_blur(images, _uniform(images, 2.0, 5.0, generator))
    rim = (0.8 + 1.6 * strength) * (images - base)
    dark_only = _uniform(images, 0, 1, generator) < 0.5
    return images + torch.where(dark_only, 1.5 * rim.clamp(max=0), rim)


def _degradation(apply: Operation, asserts: str, forgets: str) -> Degradation:
    touched = torch.zeros_like(mask({}))
    for attribute in (*assertion(asserts), *forgets.split()):
        touched[SLICES[attribute]] = True
    return Degradation(apply, mask(assertion(asserts)), touched)


# Quality losses that occur in photographs.
QUALITY: dict[str, Degradation] = {
    "blur": _degradation(blur, "sharpness=blurry detail=plain", "noise salience"),
    "noise": _degradation(noise, "noise=noisy", "detail salience"),
    "low_contrast": _degradation(
        low_contrast, "contrast=low salience=hidden", "detail exposure haze"
    ),
    "dark": _degradation(dark, "exposure=dark", "contrast detail haze salience"),
    "haze": _degradation(haze, "haze=hazy salience=hidden", "contrast detail exposure"),
    "bright": _degradation(bright, "exposure=bright", "contrast detail haze salience"),
}

# What a fusion network can do to please a loss without fusing well.
_ALL_ELSE = "sharpness noise contrast exposure haze detail salience"
ARTEFACTS: dict[str, Degradation] = {
    "harsh": _degradation(harsh, "contrast=harsh", "detail exposure haze noise salience"),
    "oversharpen": _degradation(
        oversharpen,
        "sharpness=oversharpened",
        "contrast detail exposure noise rendering haze salience",
    ),
    "noise": QUALITY["noise"],
    "emboss": _degradation(emboss, "rendering=embossed", _ALL_ELSE),
    "high_pass": _degradation(high_pass, "rendering=embossed", _ALL_ELSE),
    "random_kernel": _degradation(random_kernel, "rendering=embossed|halo", _ALL_ELSE),
    "posterise": _degradation(posterise, "rendering=posterised", _ALL_ELSE),
    "invert": _degradation(invert, "rendering=inverted", _ALL_ELSE),
    "halo": _degradation(halo, "rendering=halo", _ALL_ELSE),
}

# The prompts on whose line a quality loss must move an image: (attribute, before, after).
QUALITY_PROMPTS: dict[str, tuple[str, int, int]] = {
    "blur": ("sharpness", 1, 0),
    "noise": ("noise", 0, 1),
    "low_contrast": ("contrast", 1, 0),
    "dark": ("exposure", 1, 0),
    "haze": ("haze", 0, 1),
    "bright": ("exposure", 1, 2),
}


def degrade(
    images: Tensor,
    possible: Tensor,
    chosen: Tensor,
    degradations: list[Degradation],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Apply to each image the degradation of its number, at a random strength.

    `images` (N, 1, H, W) in [0, 1] and `possible` (N, WIDTH), what is known of each, come back
    changed; `chosen` (N,) are indices into `degradations`, -1 leaves the image alone.
    """
    images, possible = images.clone(), possible.clone()
    strength = torch.rand(len(images), 1, 1, 1, generator=generator)
    for number, degradation in enumerate(degradations):
        rows = (chosen == number).nonzero()[:, 0]
        if len(rows):
            images[rows] = degradation.apply(images[rows], strength[rows], generator).clamp(0, 1)
            possible[rows] = degradation.describe(possible[rows])
    return images, possible


def vary_look(
    images: Tensor, possible: Tensor, generator: torch.Generator, probability: float = 0.6
) -> tuple[Tensor, Tensor]:
    """Change the look of every image at random, and forget what that touched.

    Without it a model tells infrared from visible by grain or contrast, which holds for
    renderings and not for cameras.

    A quarter of the images (N, 1, H, W) stay as they are; on the others each change falls with
    this probability. `possible` is (N, WIDTH).
    """
    count, size = len(images), images.shape[-1]
    possible = possible.clone()
    varied = _uniform(images, 0, 1, generator) < 0.75

    def switch(*attributes: str) -> Tensor:
        """Choose the images an operation falls on; forget these attributes there."""
        chosen = varied & (_uniform(images, 0, 1, generator) < probability)
        touched = ~mask({})
        for attribute in attributes:
            touched[SLICES[attribute]] = True
        possible.logical_or_(chosen[:, 0, 0] & touched)
        return chosen

    def draw(low: float, high: float) -> Tensor:
        return _uniform(images, low, high, generator)

    chosen = switch("sharpness", "noise", "detail", "contrast")
    images = torch.where(chosen, _tilt_spectrum(images, draw(-0.6, 0.5)), images)
    chosen = switch("sharpness", "noise", "detail")
    images = torch.where(chosen, gaussian_blur(images, draw(0.2, 1.5)), images)
    chosen = switch("contrast", "exposure", "detail", "salience", "rendering", "haze")
    base = gaussian_blur(images, draw(4, 16))
    spread = gaussian_blur((images - base) ** 2, draw(6, 16)).clamp(min=1e-4).sqrt()
    equalised = 0.5 + draw(0.1, 0.22) * (images - base) / (spread + 0.03)
    equalised = equalised + draw(0.2, 1) * (base - 0.5)
    # Seldom, since it takes away what sky and ground tell.
    chosen &= draw(0, 1) < 0.4
    images = torch.where(chosen, equalised, images)
    chosen = switch("sharpness", "noise", "contrast", "rendering")
    base = gaussian_blur(images, draw(0.6, 2.5))
    images = torch.where(chosen, images + draw(0, 2.0) * (images - base), images)
    chosen = switch("contrast", "exposure", "haze", "salience")
    mean = images.mean((-1, -2), keepdim=True)
    images = torch.where(
        chosen, mean + draw(-0.2, 0.2) + draw(0.35, 1.7) * (images - mean), images
    ).clamp(0, 1)
    chosen = switch("contrast", "exposure")
    images = torch.where(chosen, images.clamp(min=1e-3) ** draw(0.5, 1.8), images)
    chosen = switch("noise")
    rows = torch.randn(count, 1, size, 1, generator=generator)
    grain = _noise_like(images, generator)
    images = torch.where(chosen, images + draw(0, 0.03) * rows + draw(0, 0.05) * grain, images)
    chosen = switch("exposure")
    axis = torch.linspace(-1, 1, size)
    vignette = 1 - draw(0.1, 0.5) * (axis[:, None] ** 2 + axis**2) / 2
    return torch.where(chosen, images * vignette, images).clamp(0, 1), possible


def _tilt_spectrum(images: Tensor, slope: Tensor) -> Tensor:
    """Multiply the spectrum by frequency^slope: coarser below zero, finer above."""
    size = images.shape[-1]
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size))
    mean = images.mean((-1, -2), keepdim=True)
    # The pivot of four cycles per image keeps the overall contrast about where it was.
    gain = (frequency * size / 4).clamp(min=0.25) ** slope
    return mean + torch.fft.irfft2(torch.fft.rfft2(images - mean) * gain, s=(size, size))
