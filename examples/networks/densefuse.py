"""DenseFuse: a small, fully convolutional fusion network.

Li and Wu, "DenseFuse: A Fusion Approach to Infrared and Visible Images", IEEE Transactions on
Image Processing 28(5), 2019 (arXiv 1804.08361); code: github.com/hli1221/imagefusion_densefuse.
"""

import torch
from torch import Tensor, nn

from networks.layers import reflect_conv
from networks.sources import check_sources


class DenseEncoder(nn.Module):
    """(N, 1, H, W) -> (N, 64, H, W): every layer sees the outputs of all layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = reflect_conv(1, 16)
        self.dense = nn.ModuleList(
            [reflect_conv(16, 16), reflect_conv(32, 16), reflect_conv(48, 16)]
        )

    def forward(self, image: Tensor) -> Tensor:
        features = self.first(image).relu()
        for layer in self.dense:
            features = torch.cat([features, layer(features).relu()], dim=1)
        return features


class DenseFuse(nn.Module):
    """One encoder for both sources, features added, one decoder; 74,193 parameters.

    The output is linear, as in the paper: a ReLU there, as some ports have it, leaves about half
    of all random starts with an exactly zero gradient.

    Shape:
        visible, infrared: (N, 1, H, W), usually in [0, 1]; H and W at least 2.
        returns: (N, 1, H, W), unbounded.

    Raises:
        ValueError: if the sources differ in shape, are not grey, or are too small to be padded.
    """

    #: An output pixel depends on the sources up to this many pixels away (eight 3x3 layers).
    REACH = 8

    def __init__(self) -> None:
        super().__init__()
        self.encoder = DenseEncoder()
        self.decoder = nn.Sequential(
            reflect_conv(64, 64),
            nn.ReLU(),
            reflect_conv(64, 32),
            nn.ReLU(),
            reflect_conv(32, 16),
            nn.ReLU(),
            reflect_conv(16, 1),
        )

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        check_sources(
            visible, infrared, minimum=2, reason="DenseFuse reflects one pixel at each border"
        )
        return self.decoder(self.encoder(visible) + self.encoder(infrared))
