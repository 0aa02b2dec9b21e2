import pytest
import torch

from parts.networks.densefuse import DenseFuse


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
