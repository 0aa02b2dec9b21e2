"""A network that corrects the average."""

import torch

from parts.networks.densefuse import DenseFuse
from parts.networks.residual import AverageResidual


def test_residual_is_bounded_and_starts_near_the_average():
    torch.manual_seed(0)
    network = DenseFuse()
    visible, infrared = torch.rand(2, 4, 1, 32, 32)
    fused = AverageResidual(network)(visible, infrared)
    torch.testing.assert_close(fused, (visible + infrared) / 2, atol=0.1, rtol=0)
    black, white = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    for source in (black, white):
        fused = AverageResidual(network)(source, source)
        assert ((fused > 0) & (fused < 1)).all()
