"""Fuse images of any size in full resolution."""

import torch
from torch import Tensor, nn

from parts.data.images import luminance, to_8bit
from parts.data.pairs import Pair

#: Pixels that go through the network at once; DenseFuse needs about 1 kB of memory for each.
STRIP_PIXELS = 2**16


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

    The image is processed in horizontal strips, so that memory does not limit its size. Each strip
    overlaps its neighbours by `reach` rows. For a convolutional network whose receptive field
    reaches no further, the result is the same as without strips.
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
    """`fuse` in strips if the network has a `REACH`, otherwise without.

    Networks with attention or normalisation over the whole image have no limited reach.
    """
    reach = getattr(network, "REACH", None)
    if reach is None:
        pixels = pair.infrared[0].numel()
        return fuse(network, pair, reach=0, device=device, strip_pixels=pixels)
    return fuse(network, pair, reach=reach, device=device)
