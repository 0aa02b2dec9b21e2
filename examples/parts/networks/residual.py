"""A residual network that corrects the average of the sources."""

import torch
from torch import Tensor, nn


class AverageResidual(nn.Module):
    """fused = sigmoid(logit(average) + network(visible, infrared)), always inside (0, 1).

    Adding on the logit scale bounds the output without a clamp, which would stop the gradient of
    every pixel it touches. A fresh network's output is near zero, so training starts close to
    the average of the sources.

    Shape:
        visible, infrared: (N, 1, H, W) in [0, 1].
        returns: (N, 1, H, W) in (0, 1).
    """

    #: The average is kept this far from black and white, whose logits are infinite.
    MARGIN = 0.01

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        average = (visible + infrared) / 2
        return torch.sigmoid(average.logit(self.MARGIN) + self.network(visible, infrared))
