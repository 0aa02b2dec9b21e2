"""DenseFuse: a small, fully convolutional fusion network.

Li and Wu, "DenseFuse: A Fusion Approach to Infrared and Visible Images", IEEE Transactions on
Image Processing 28(5), 2019 (arXiv 1804.08361); code: github.com/hli1221/imagefusion_densefuse.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

#: 3x3, stride 1, the border reflected, so that the size is kept.
reflect_conv = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode="reflect")


class DenseEncoder(nn.Module):
    """(N, 1, H, W) -> (N, 64, H, W): every layer sees the outputs of all layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = reflect_conv(1, 16)
        self.dense = nn.ModuleList(reflect_conv(channels, 16) for channels in (16, 32, 48))

    def forward(self, image: Tensor) -> Tensor:
        features = self.first(image).relu()
        for layer in self.dense:
            features = torch.cat([features, layer(features).relu()], dim=1)
        return features


class DenseFuse(nn.Module):
    """One encoder for both sources, one decoder; 74,193 parameters.

    Args: the paper's by default; others are for the weights of "densefuse-port" in `PORTS`.
        share: of each source's features; 1/2 averages them.
        relu: end with a ReLU, which stops all gradients of half of all fresh networks.
        levels: the value of white inside the network.

    Shape:
        visible, infrared: (N, 1, H, W), usually in [0, 1]; H and W at least 2.
        returns: (N, 1, H, W), in the units of the sources; unbounded, but for the ReLU.
    """

    def __init__(self, *, share: float = 1.0, relu: bool = False, levels: float = 1.0) -> None:
        super().__init__()
        self.share, self.relu, self.levels = share, relu, levels
        self.encoder = DenseEncoder()
        layers: list[nn.Module] = []
        for channels, fewer in pairwise((64, 64, 32, 16)):
            layers += [reflect_conv(channels, fewer), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, reflect_conv(16, 1))

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        features = self.encoder(self.levels * visible) + self.encoder(self.levels * infrared)
        fused = self.decoder(self.share * features) / self.levels
        return fused.relu() if self.relu else fused
