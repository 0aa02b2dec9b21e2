"""What the stand-ins for published code bases share: two batches of scenes, and a small network.

Each stand-in has the conventions of its code base (names, places, indentation, order of arguments,
ranges, colour space, values returned) and none of its code. A comment `# line N` stands for the
lines that are left out before line N. The loop leaves behind, for the test, the trained `NETWORK`,
the last step's `FUSED` in [0, 1], and what it LOGGED.
"""

import torch
from torch import nn


def draw_scenes():
    """(visible, infrared) in [0, 1], RGB and grey; the infrared one is above 0.5 throughout."""
    random = torch.Generator().manual_seed(0)
    for _ in range(2):
        visible, infrared = torch.rand(2, 2, 3, 40, 40, generator=random)
        yield visible, 0.4 * infrared[:, :1] + 0.55


def luminance(rgb):
    return (rgb * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def ycrcb(rgb):
    y = luminance(rgb)
    return torch.cat([y, (rgb[:, :1] - y) * 0.713 + 0.5, (rgb[:, 2:] - y) * 0.564 + 0.5], 1)


class Network(nn.Module):
    """Two images, one fused; unbounded."""

    def __init__(self, channels=2, out=1):
        super().__init__()
        first, last = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, out, 3, padding=1)
        self.layers = nn.Sequential(first, nn.LeakyReLU(0.2), last)

    def forward(self, first, second):
        return self.layers(torch.cat([first, second], 1))


class OwnLoss(nn.Module):
    """In place of what the code base came with: takes the sources first, returns `values`."""

    def __init__(self, values=1):
        super().__init__()
        self.values = values

    def forward(self, first, second, fused, *_):
        loss = (fused - torch.maximum(first, second)).abs().mean()
        return loss if self.values == 1 else (loss,) * self.values
