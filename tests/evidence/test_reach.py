"""The reach of networks for which it is plain."""

import pytest
import torch.nn.functional as F
from torch import nn

from evidence.reach import in_words, reach


class Network(nn.Module):
    """Layers on the sum of both sources."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, visible, infrared):
        return self.layers(visible + infrared)


class Pooled(Network):
    def forward(self, visible, infrared):
        return super().forward(visible, infrared) + visible.mean()


class Halved(Network):
    """As far as a convolution at half resolution sees, which depends on the place."""

    def forward(self, visible, infrared):
        return F.interpolate(super().forward(visible, infrared), scale_factor=2, mode="nearest")


def convolution(size, **options):
    return nn.Conv2d(1, 1, size, padding=size // 2, **options)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Network(nn.Identity()), 0),
        (Network(convolution(3), convolution(5)), 3),
        (Network(nn.Conv2d(1, 1, 3, dilation=60, padding=60)), 60),  # beyond the first images
        (Halved(convolution(3, stride=2)), 2),  # output 2 i + 1 sees inputs 2 i - 1 to 2 i + 1
        (Pooled(convolution(3)), None),
        (Network(convolution(3), nn.InstanceNorm2d(1)), None),
    ],
    ids=["pixel", "two", "wide", "stride", "pooled", "normalised"],
)
def test_reach(network, expected):
    assert reach(network) == expected


def test_reach_in_words():
    normalised = Network(convolution(3), nn.GroupNorm(1, 1), convolution(3))
    assert in_words(normalised) == "2, and statistics of the image"
    assert in_words(Pooled(convolution(3))) == "the whole image"
    assert in_words(Network(convolution(3))) == "1"
