"""What the stand-ins for published code bases share: two batches of scenes, and a small network.

Each stand-in has the conventions of its code base (order of arguments, ranges, colour space, values
returned, where names are defined) and none of its code. Its loop leaves behind, for the test, the
trained `NETWORK`, the last step's images by name and in [0, 1] as `TRUTH`, and what it LOGGED.
"""

import torch
from torch import nn

torch.manual_seed(0)


def scenes():
    """(visible, infrared) in [0, 1], RGB and grey, which differ in brightness."""
    for _ in range(2):
        yield torch.rand(2, 3, 40, 40), 0.4 * torch.rand(2, 1, 40, 40) + 0.5


def luminance(rgb):
    red, green, blue = rgb.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


class Network(nn.Module):
    """Two images, one fused; unbounded."""

    def __init__(self, channels=2, out=1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(4, out, 3, padding=1)
        )

    def forward(self, first, second):
        return self.layers(torch.cat([first, second], 1))


def own_loss(first, second, fused):
    """In place of what the code base came with."""
    return (fused - torch.maximum(first, second)).abs().mean()
