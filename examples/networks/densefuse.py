"""DenseFuse: a small, fully convolutional fusion network.

Li and Wu, "DenseFuse: A Fusion Approach to Infrared and Visible Images", IEEE Transactions on
Image Processing 28(5), 2019 (arXiv 1804.08361); code: github.com/hli1221/imagefusion_densefuse.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

#: 3x3, stride 1, the border reflected, so that the size is kept.
reflect_conv = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode="reflect")


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
    """One encoder for both sources, one decoder; 74,193 parameters.

    The defaults are the paper's. The options reproduce its PyTorch port, "densefuse-port" in
    `networks.PORTS`, so that the port's weights give the same images as there.

    Args:
        fusion: "add" the features of the sources, or "average" them as the port does.
        relu: end with a ReLU, as the port does. Use it with trained weights only: with about half
            of all random initialisations the gradient is exactly zero.
        levels: the value of white inside the network; 255 for the port's weights.

    Shape:
        visible, infrared: (N, 1, H, W), usually in [0, 1]; H and W at least 2.
        returns: (N, 1, H, W), in the units of the sources; unbounded, but for the ReLU.
    """

    #: An output pixel depends on the sources up to this many pixels away (eight 3x3 layers).
    REACH = 8

    def __init__(
        self,
        *,
        fusion: Literal["add", "average"] = "add",
        relu: bool = False,
        levels: float = 1.0,
    ) -> None:
        super().__init__()
        self.share = 1.0 if fusion == "add" else 0.5
        self.relu = relu
        self.levels = levels
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
        features = self.encoder(self.levels * visible) + self.encoder(self.levels * infrared)
        fused = self.decoder(self.share * features) / self.levels
        return fused.relu() if self.relu else fused
