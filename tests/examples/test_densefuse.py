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


def test_has_the_parameters_of_the_paper(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 74_193


@pytest.mark.parametrize("size", [(2, 2), (2, 9), (31, 17)])
def test_keeps_the_size(network, size):
    images = torch.rand(3, 1, *size)
    assert network(images, images).shape == (3, 1, *size)


def test_output_is_linear(network):
    torch.nn.init.constant_(network.decoder[-1].bias, -5.0)
    fused = network(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8))
    assert (fused < 0).all()
    fused.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_adds_the_features_of_both_sources(network):
    visible, infrared = torch.rand(2, 1, 1, 8, 8)
    torch.testing.assert_close(network(visible, infrared), network(infrared, visible))
    features = network.encoder(visible) + network.encoder(infrared)
    torch.testing.assert_close(network(visible, infrared), network.decoder(features))


def test_averages_and_cuts_as_the_port_does(network):
    port = DenseFuse(fusion="average", relu=True, levels=255)
    port.load_state_dict(network.state_dict())
    visible, infrared = torch.rand(2, 1, 1, 8, 8)
    features = (network.encoder(255 * visible) + network.encoder(255 * infrared)) / 2
    expected = network.decoder(features).relu() / 255
    torch.testing.assert_close(port(visible, infrared), expected)
    with pytest.raises(ValueError, match="`fusion` must be"):
        DenseFuse(fusion="mean")


@pytest.mark.parametrize(
    ("visible", "infrared", "message"),
    [
        ((1, 1, 1, 8), (1, 1, 1, 8), "at least 2 x 2 pixels, got 1 x 8"),
        ((1, 3, 8, 8), (1, 1, 8, 8), r"`visible` must have shape \(N, 1, H, W\)"),
        ((1, 1, 8, 8), (8, 8), r"`infrared` must have shape \(N, 1, H, W\)"),
        ((1, 1, 8, 8), (1, 1, 8, 9), "must have the same shape"),
    ],
)
def test_refuses_what_it_cannot_fuse(network, visible, infrared, message):
    with pytest.raises(ValueError, match=message):
        network(torch.rand(visible), torch.rand(infrared))


def test_residual_is_bounded_and_starts_near_the_average(network):
    visible, infrared = torch.rand(2, 4, 1, 32, 32)
    fused = AverageResidual(network)(visible, infrared)
    torch.testing.assert_close(fused, (visible + infrared) / 2, atol=0.1, rtol=0)
    black, white = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    for source in (black, white):
        fused = AverageResidual(network)(source, source)
        assert ((fused > 0) & (fused < 1)).all()


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
