"""Images of any size, strip by strip."""

import pytest
import torch

from parts.data.pairs import Pair
from parts.networks.densefuse import DenseFuse
from parts.networks.fusing import fuse
from parts.networks.residual import AverageResidual


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DenseFuse()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strip_pixels", [1, 37 * 5, 37 * 16])
def test_fusing_in_strips_equals_fusing_at_once(network, channels, strip_pixels):
    visible = torch.randint(256, (channels, 50, 37), dtype=torch.uint8)
    infrared = torch.randint(256, (1, 50, 37), dtype=torch.uint8)
    pair = Pair("scene", visible, infrared)
    residual = AverageResidual(network)
    options = {"reach": DenseFuse.REACH, "device": torch.device("cpu")}
    whole = fuse(residual, pair, **options)
    strips = fuse(residual, pair, **options, strip_pixels=strip_pixels)
    assert whole.shape == (1, 50, 37)
    assert (whole.int() - strips.int()).abs().max() <= 1  # one at most: rounding to 8 bits
    assert (whole == strips).float().mean() > 0.99
