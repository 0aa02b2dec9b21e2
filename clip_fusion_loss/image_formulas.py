"""The functions of `functional` on images alone: channels, sizes, random patches, entropy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks

__all__ = [
    "match_channels",
    "patch_entropy",
    "random_patch_transforms",
    "resize_images",
    "sample_patches",
    "shrink_images",
    "soften_outliers",
]

# ITU-R BT.601 luma, as usual in infrared-visible fusion.
LUMA = (0.299, 0.587, 0.114)

# Affine jitter of a patch in the paper's code: torchvision's
# RandomAffine(degrees=5, translate=(0, 0.1), scale=(1, 1.5), shear=5).
MAX_ROTATION = 5.0  # degrees, in both directions
MAX_SHIFT = 0.1  # fraction of the patch's side, up or down
MAX_ZOOM = 1.5  # the least is 1
MAX_SHEAR = 5.0  # degrees along x, in both directions


def match_channels(images: Tensor, channels: int) -> Tensor:
    """Repeat grey images to 3 channels, or convert RGB images to BT.601 luma.

    Args:
        images: (N, 1 | 3, H, W), grey or RGB.
        channels: 1 or 3.

    Returns:
        (N, channels, H, W); `images` itself if it has that many channels already.
    """
    checks.check_axes("images", images, "(N, C, H, W)")
    if channels not in (1, 3) or images.shape[1] not in (1, 3):
        raise ValueError(
            f"`images` must have 1 or 3 channels and `channels` be 1 or 3, got "
            f"{images.shape[1]} and {channels!r}; select channels with images[:, :3]"
        )
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images with bilinear interpolation and anti-aliasing.

    Args:
        images: (N, C, H, W).
        size: (height, width) in pixels, each at least 1; the aspect ratio may change.

    Returns:
        (N, C, height, width); `images` itself if it has that size already.
    """
    checks.check_axes("images", images, "(N, C, H, W)")
    checks.check_size("size", size)
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def soften_outliers(images: Tensor, limit: float = 4.0) -> Tensor:
    """Compress values beyond `limit`, of either sign, to a logarithm.

    ``sign(x) * limit * (1 + log(|x| / limit))`` where ``|x| > limit``.

    Large inputs would overflow in the first layer of a float16 network, and clamping would stop
    their gradient. With the default limit 1e4 becomes 35 and the largest float32 becomes 360.

    Args:
        images: a floating point tensor of any shape.
        limit: positive. Values up to it, so all images in [0, 1], do not change.

    Returns:
        A tensor of the same shape.
    """
    size = images.abs()
    softened = images.sign() * limit * (1 + (size.clamp(min=limit) / limit).log())
    return torch.where(size <= limit, images, softened)


def shrink_images(images: Tensor, short_side: int) -> Tensor:
    """Downscale images to a short side of `short_side` pixels, with anti-aliasing.

    Use it before `sample_patches`, which takes one bilinear sample per output pixel and would
    alias on images that are much larger than its output.

    Args:
        images: (N, C, H, W).
        short_side: in pixels, at least 1.

    Returns:
        (N, C, H', W') with ``min(H', W') == short_side``; `images` itself if it is not larger.
    """
    checks.check_axes("images", images, "(N, C, H, W)")
    checks.check_number("short_side", short_side, minimum=1, whole=True)
    height, width = images.shape[-2:]
    factor = short_side / min(height, width)
    if factor >= 1:
        return images
    return resize_images(images, (round(height * factor), round(width * factor)))


def patch_entropy(patches: Tensor, bins: int = 256) -> Tensor:
    """Entropy of the grey-level histogram, in bits.

    Args:
        patches: (..., H, W) grey levels in [0, 1]; values outside count in the first or last bin.
        bins: number of equal bins on [0, 1] (256 in the paper's code).

    Returns:
        (...) entropies from 0 (constant) to ``log2(bins)``. Not differentiable.
    """
    checks.check_axes("patches", patches, "(..., H, W)")
    checks.check_number("bins", bins, minimum=1, whole=True)
    pixels = patches.detach().flatten(-2)
    levels = (pixels * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(*levels.shape[:-1], bins, dtype=torch.float32, device=patches.device)
    counts.scatter_add_(-1, levels, counts.new_ones(()).expand_as(levels))
    # entr(p) = -p ln p, and 0 at p = 0.
    return torch.special.entr(counts / pixels.shape[-1]).sum(-1) / math.log(2)


def random_patch_transforms(
    batch: int,
    patches: int,
    image_size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 0.8),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw random affine transforms for the paper's patches.

    A patch is a square window with a side of ``u * min(H, W)``, u ~ U(`scale`), at a random
    position inside the image, with a small affine transform about its centre: rotation within 5
    degrees, vertical shift within 10 % of the side, zoom 1 to 1.5, shear within 5 degrees along x.
    The paper's code draws one transform for a whole batch; here each sample and patch has its own.

    Args:
        batch: number of images B.
        patches: number of patches N per image.
        image_size: (H, W) in pixels.
        scale: range of the window's side as a fraction of the image's short side, within [0, 1].
        generator: source of the random numbers; None uses torch's global CPU generator.

    Returns:
        (B, N, 2, 3) float32 affine maps on the generator's device, for `sample_patches`. They map
        patch coordinates to image coordinates, x before y, as `torch.nn.functional.affine_grid`
        does with ``align_corners=False``: both run from -1 to 1 between the outer pixel edges.
    """
    checks.check_number("batch", batch, minimum=1, whole=True)
    checks.check_number("patches", patches, minimum=1, whole=True)
    checks.check_size("image_size", image_size)
    scale = checks.check_interval("scale", scale, minimum=0.0, maximum=1.0, empty=True)
    checks.check_type("generator", generator, torch.Generator, optional=True)
    device = generator.device if generator is not None else torch.device("cpu")
    draws = torch.rand(7, batch, patches, generator=generator, device=device, dtype=torch.float32)
    side, left, top, turn, shift, zoom, shear = draws.unbind()

    # The window, as half-sides and centre in image coordinates.
    height, width = image_size
    side = (scale[0] + (scale[1] - scale[0]) * side) * min(height, width)
    half_width, half_height = side / width, side / height
    center_x = (2 * left - 1) * (1 - half_width)
    center_y = (2 * top - 1) * (1 - half_height)

    # Warping looks up the source position of each output pixel, so the map is the inverse of the
    # transform p -> R(turn) @ Shear(shear) @ p * zoom + (0, shift).
    turn = torch.deg2rad(MAX_ROTATION * (2 * turn - 1))
    shear = torch.tan(torch.deg2rad(MAX_SHEAR * (2 * shear - 1)))
    zoom = 1 + (MAX_ZOOM - 1) * zoom
    shift = 2 * MAX_SHIFT * (2 * shift - 1)  # patch coordinates span 2
    cos, sin = torch.cos(turn), torch.sin(turn)
    xx, xy = (cos + shear * sin) / zoom, (sin - shear * cos) / zoom
    yx, yy = -sin / zoom, cos / zoom

    x_row = torch.stack([half_width * xx, half_width * xy, center_x - half_width * xy * shift], -1)
    y_row = torch.stack(
        [half_height * yx, half_height * yy, center_y - half_height * yy * shift], -1
    )
    return torch.stack([x_row, y_row], -2)


def sample_patches(images: Tensor, transforms: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop and warp patches with one bilinear sampling; the image is reflected at its border.

    Args:
        images: (B, C, H, W).
        transforms: (B, N, 2, 3) maps from `random_patch_transforms`, on the device of `images`.
        size: (height, width) of the patches in pixels.

    Returns:
        (B, N, C, height, width), differentiable in `images`.
    """
    checks.check_axes("images", images, "(B, C, H, W)")
    checks.check_axes("transforms", transforms, f"({len(images)}, N, 2, 3)")
    checks.check_size("size", size)
    count, (height, width) = transforms.shape[1], size
    # Not F.affine_grid: under autocast, TF32 or torch.set_float32_matmul_precision its matrix
    # product would compute the sample positions with only 8 or 10 bits.
    x_axis, y_axis, origin = transforms.to(images.dtype)[:, :, None, None].unbind(-1)
    x, y = (
        torch.arange(1, 2 * side, 2, dtype=images.dtype, device=images.device) / side - 1
        for side in (width, height)
    )
    grid = x_axis * x[:, None] + (y_axis * y[:, None, None] + origin)
    # The patches of an image are stacked into one tall output, so the image is not copied.
    grid = grid.flatten(1, 2)
    tall = F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return tall.unflatten(2, (count, height)).transpose(1, 2)
