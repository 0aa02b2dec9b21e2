"""Fuse images of any size in full resolution."""

import torch
from torch import Tensor, nn

from clip_fusion_loss.functional import resize_images
from images import luminance, to_8bit
from pairs import Pair

#: Pixels that go through the network at once; DenseFuse needs about 1 kB of memory for each.
STRIP_PIXELS = 2**16


def average(pair: Pair) -> Tensor:
    """The fusion to beat: the mean of both images as uint8 (1, H, W)."""
    return to_8bit((luminance(pair.visible) + luminance(pair.infrared)) / 2)


def maximum(pair: Pair) -> Tensor:
    """The brighter source at each pixel, as uint8 (1, H, W)."""
    return to_8bit(torch.maximum(luminance(pair.visible), luminance(pair.infrared)))


def laplacian_pyramid(pair: Pair, levels: int = 4) -> Tensor:
    """The stronger detail on each level and the mean of what is left, as uint8 (1, H, W).

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


@torch.inference_mode()
def fuse(
    network: nn.Module,
    pair: Pair,
    *,
    reach: int,
    device: torch.device,
    strip_pixels: int = STRIP_PIXELS,
) -> Tensor:
    """`network(visible, infrared)` of a whole pair, as uint8 (1, H, W).

    The image goes through in horizontal strips, so that its size is not limited by memory. Each
    strip is `reach` rows longer at either end than what is kept of it: for a convolutional
    network that sees no further than that, the result is the same as in one piece.
    """
    network.eval()
    visible = luminance(pair.visible)[None]
    infrared = luminance(pair.infrared)[None]
    height, width = visible.shape[2:]
    rows = max(1, strip_pixels // width)
    strips = []
    for top in range(0, height, rows):
        first = max(0, top - reach)
        seen = slice(first, top + rows + reach)
        fused = network(visible[:, :, seen].to(device), infrared[:, :, seen].to(device))
        strips.append(to_8bit(fused[0, :, top - first :][:, :rows]).cpu())
    return torch.cat(strips, dim=1)


def fuse_with(network: nn.Module, pair: Pair, device: torch.device) -> Tensor:
    """`fuse` in strips where the network says how far it sees, by `REACH`, or else in one piece.

    Attention and normalisation over the whole image see without limit.
    """
    reach = getattr(network, "REACH", None)
    if reach is None:
        pixels = pair.infrared[0].numel()
        return fuse(network, pair, reach=0, device=device, strip_pixels=pixels)
    return fuse(network, pair, reach=reach, device=device)
