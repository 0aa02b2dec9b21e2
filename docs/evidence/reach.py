"""How far each network of the examples sees: the inputs that an output pixel depends on.

    cd docs && python -m evidence.reach

With fresh weights and random images, an input lies within the reach of an output pixel if its
gradient is not exactly zero. Networks that pool or normalise over the image see all of it; for the
latter, the reach without the normalisations is printed too.
"""

from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import NETWORKS

#: Sides of the images: small ones first, as many networks see little. Who sees to the border of the
#: last one sees the whole image.
SIDES = (96, 192, 384)
#: Strides let the reach depend on the place, which repeats after so many pixels.
PERIOD = 16


def reach(network: nn.Module) -> int | None:
    """The largest distance in rows or columns to an input that counts; None: the whole image."""
    generator = torch.Generator().manual_seed(0)
    network.eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():  # zeros, from which a training may begin, stop gradients
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    for side in SIDES:
        sources = torch.rand(2, 1, 1, side, side, generator=generator).requires_grad_()
        fused = network(*sources)
        distance = 0
        for place in range(side // 2, side // 2 + PERIOD):
            pixel = fused[0, 0, place, place]
            (gradient,) = torch.autograd.grad(pixel, sources, retain_graph=True)
            distance = max(distance, farthest(gradient, place))
            if distance >= side - place - 1:  # the border may have cut it
                break
        else:
            return distance
    return None


def farthest(gradient: Tensor, place: int) -> int:
    """Distance of the farthest entry that is not zero from (`place`, `place`)."""
    rows, columns = gradient.flatten(0, 2).abs().sum(0).nonzero(as_tuple=True)
    return int(torch.cat([rows - place, columns - place]).abs().max())


def in_words(network: nn.Module) -> str:
    distance = reach(network)
    if distance is not None:
        return str(distance)

    def same(features: Tensor, *_: object, **__: object) -> Tensor:
        return features

    with patch.object(F, "group_norm", same), patch.object(F, "instance_norm", same):
        distance = reach(network)
    return "the whole image" if distance is None else f"{distance}, and statistics of the image"


def main() -> None:
    print("| network | reach, pixels | parameters |\n|---|---:|---:|")
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        network = build()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        print(f"| `{name}` | {in_words(network)} | {parameters:,} |", flush=True)


if __name__ == "__main__":
    main()
