"""A network that takes the sentence as an input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parts.networks.conditioned import Conditioned, told
from parts.networks.densefuse import DenseFuse
from parts.networks.ldfusion import LDFusion
from parts.networks.residual import AverageResidual
from parts.networks.u2fusion import U2Fusion

DIMENSION = 12


def inputs(count=3, size=(34, 32)):
    generator = torch.Generator().manual_seed(0)
    visible, infrared = torch.rand(2, count, 1, *size, generator=generator)
    return visible, infrared, F.normalize(torch.randn(count, DIMENSION, generator=generator))


def moved(network):
    """The same after training has changed how it takes vectors."""
    torch.manual_seed(1)
    nn.init.normal_(network.modulation[-1].weight, std=0.05)
    return network


@pytest.mark.parametrize(
    "build", [DenseFuse, U2Fusion, LDFusion, lambda: AverageResidual(U2Fusion())]
)
def test_starts_as_the_network_itself(build):
    torch.manual_seed(0)
    plain = build()
    visible, infrared, vectors = inputs()
    before = plain(visible, infrared)
    torch.testing.assert_close(Conditioned(plain, DIMENSION)(visible, infrared, vectors), before)


@pytest.mark.parametrize("build", [DenseFuse, U2Fusion, LDFusion])
def test_each_image_follows_its_own_vector(build):
    torch.manual_seed(0)
    network = moved(Conditioned(build(), DIMENSION)).eval()
    visible, infrared, vectors = inputs()
    together = network(visible, infrared, vectors)
    for index in range(3):
        alone = network(*(part[index : index + 1] for part in (visible, infrared, vectors)))
        torch.testing.assert_close(together[index : index + 1], alone)
    assert not torch.allclose(together, network(visible, infrared, vectors[:1]), atol=1e-3)


def test_gradients_reach_everything():
    network = moved(Conditioned(DenseFuse(), DIMENSION))
    network(*inputs()).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_told_is_a_network_of_two_sources():
    network = moved(Conditioned(DenseFuse(), DIMENSION))
    visible, infrared, vectors = inputs(1)
    fused = told(network, 3 * vectors[0])  # of any length
    torch.testing.assert_close(fused(visible, infrared), network(visible, infrared, vectors))
    assert fused.REACH == DenseFuse.REACH
    assert not hasattr(
        told(Conditioned(nn.Sequential(nn.Conv2d(1, 1, 1)), DIMENSION), vectors[0]), "REACH"
    )


def test_nothing_is_left_behind_by_a_call():
    network = Conditioned(DenseFuse(), DIMENSION)
    with pytest.raises(ValueError, match="visible"):
        network(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), inputs(1)[2])
    visible, infrared, vectors = inputs()
    network(visible, infrared, vectors)
    twin = copy.deepcopy(network)  # would fail on a tensor with a history
    torch.testing.assert_close(*(each(visible, infrared, vectors) for each in (network, twin)))


@pytest.mark.parametrize("shape", [(2, DIMENSION), (3, DIMENSION + 1), (DIMENSION,)])
def test_vectors_of_other_shapes_are_refused(shape):
    visible, infrared, _ = inputs()
    with pytest.raises(ValueError, match=r"`vector` must have shape \(3, 12\) or \(1, 12\)"):
        Conditioned(DenseFuse(), DIMENSION)(visible, infrared, torch.zeros(shape))


def test_a_network_without_convolutions_is_refused():
    with pytest.raises(ValueError, match="`network` must hold convolutions, got Linear"):
        Conditioned(nn.Linear(2, 2), DIMENSION)
