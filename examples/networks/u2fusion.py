"""U2Fusion: one densely connected network on both sources at once.

Xu, Ma, Jiang, Guo and Ling, "U2Fusion: A Unified Unsupervised Image Fusion Network", IEEE
Transactions on Pattern Analysis and Machine Intelligence 44(1), 2022; code:
github.com/hanna-xu/U2Fusion.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTH = 44
SLOPE = 0.2


class DenseEncoder(nn.Module):
    """(N, 2, H, W) -> (N, 264, H, W): five layers, each of which sees all outputs before it."""

    def __init__(self, padding: str = "reflect") -> None:
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode=padding)
        self.first = conv(2, WIDTH)
        self.dense = nn.ModuleList(conv(WIDTH * inputs, WIDTH) for inputs in range(1, 6))
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, sources: Tensor) -> Tensor:
        features = self.activation(self.first(sources))
        for layer in self.dense:
            features = torch.cat([features, self.activation(layer(features))], dim=1)
        return features


class U2Fusion(nn.Module):
    """The sources as two channels, a dense encoder, a plain decoder; 659,217 parameters.

    Args:
        padding: "reflect" as in the original, or "zeros" as in "u2fusion-port" in `PORTS`.
        signed: bring the sources to [-1, 1] inside, as that port does.

    Shape:
        visible, infrared: (N, 1, H, W), usually in [0, 1]; H and W at least 2.
        returns: (N, 1, H, W) in (0, 1), by tanh(x) / 2 + 1 / 2.
    """

    def __init__(self, *, padding: str = "reflect", signed: bool = False) -> None:
        super().__init__()
        self.signed = signed
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode=padding)
        self.encoder = DenseEncoder(padding)
        layers: list[nn.Module] = []
        for channels, fewer in pairwise((6 * WIDTH, 128, 64, 32)):
            layers += [conv(channels, fewer), nn.LeakyReLU(SLOPE)]
        self.decoder = nn.Sequential(*layers, conv(32, 1))

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        sources = torch.cat([visible, infrared], dim=1)
        features = self.encoder(2 * sources - 1 if self.signed else sources)
        return self.decoder(features).tanh() / 2 + 0.5
