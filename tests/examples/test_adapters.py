"""The loss in training loops like those of the published code bases.

The loops stand in for SwinFusion, the CDDFuse family, DenseFuse and U2Fusion: they have their
conventions (order of arguments, values returned, ranges, wrappers, initialisation, optimizer) and
none of their code.
"""

import pytest
import torch
from torch import nn

from adapters import (
    CDDFuseCriterion,
    Mixed,
    OverOutputs,
    SwinFusionCriterion,
    TwoStage,
    parts_of,
    swapped_at_random,
)
from clip_fusion_loss import IntensityGradientLoss, LanguageDrivenFusionLoss
from conftest import draw_images
from parts.losses.original import ReconstructionLoss, SwinFusionLoss
from parts.networks.densefuse import DenseFuse


class SmallNetwork(nn.Module):
    """Both sources as channels, one convolution."""

    def __init__(self, low=0.0, high=1.0):
        super().__init__()
        self.layer = nn.Conv2d(2, 1, 3, padding=1)
        self.low, self.high = low, high

    def forward(self, sources):
        return self.low + (self.high - self.low) * self.layer(sources).sigmoid()


def initialise(module):
    """What `net.apply(...)` does in many code bases, to every module it reaches."""
    for parameter in module.parameters(recurse=False):
        nn.init.normal_(parameter, std=0.1)


@pytest.fixture
def sources():
    """Visible and infrared, of different statistics."""
    _, visible, infrared = draw_images(batch=2)
    return visible, (infrared / 2 + 0.4).clamp(0, 1)


@pytest.fixture
def build(encoder):
    """The loss with a small CLIP; without patches, so that two calls give the same."""

    def build(**options):
        defaults = {"encoder": encoder, "regularizer": IntensityGradientLoss(), "patch_weight": 0.0}
        return LanguageDrivenFusionLoss(**(defaults | options))

    return build


def snapshot(criterion):
    return [p.detach().clone() for p in criterion.encoder.network.parameters()]


class SwinFusionLoop:
    """Stands in for SwinFusion: a wrapped network, a criterion that gives four values."""

    def __init__(self, criterion):
        network = SmallNetwork()
        network.apply(initialise)
        self.wrapped = nn.DataParallel(network)
        self.wrapped.train()
        self.criterion = criterion.to("cpu")
        trained = [p for _, p in self.wrapped.named_parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=1e-2)
        self.log = {}

    def step(self, infrared, visible):
        fused = self.wrapped(torch.cat([infrared, visible], 1))
        self.optimizer.zero_grad()
        total, texture, intensity, ssim = self.criterion(infrared, visible, fused)
        total.backward()
        self.optimizer.step()
        self.log = {"total": total.item(), "text": texture.item()}
        self.log |= {"int": intensity.item(), "ssim": ssim.item()}
        return fused


def test_swinfusion_loop(build, sources):
    visible, infrared = sources
    criterion = build(num_patches=2, patch_weight=10.0, min_patch_entropy=None)
    before = snapshot(criterion)
    loop = SwinFusionLoop(SwinFusionCriterion(criterion))
    totals = []
    for _ in range(8):
        loop.step(infrared, visible)
        totals.append(loop.log["total"])
        parts = [loop.log[name] for name in ("text", "int", "ssim")]
        assert sum(parts) == pytest.approx(loop.log["total"], rel=1e-5)
        assert len({*parts, 0.0}) == 4  # three terms, none a placeholder
    assert totals[-1] < totals[0]
    assert all(map(torch.equal, before, snapshot(criterion)))


def test_cddfuse_loop(build, sources):
    visible, infrared = sources
    criterion = build()
    adapter = CDDFuseCriterion(criterion)
    network = nn.DataParallel(SmallNetwork())
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    totals = []
    for _ in range(8):
        network.zero_grad()
        fused = network(torch.cat([visible, infrared], 1))
        loss, second, third = adapter(visible, infrared, fused)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), max_norm=0.01, norm_type=2)
        optimizer.step()
        totals.append(loss.item())
        assert second.item() + third.item() == pytest.approx(loss.item(), rel=1e-5)
    assert totals[-1] < totals[0]


def test_names_survive_every_order_of_arguments(build, sources):
    visible, infrared = sources
    fused = torch.rand_like(visible)
    criterion = build()
    expected = criterion(fused, visible, infrared)
    assert not torch.isclose(expected, criterion(fused, infrared, visible), rtol=1e-4)
    for adapter, positions in (
        (SwinFusionCriterion(criterion), (infrared, visible, fused)),
        (CDDFuseCriterion(criterion), (visible, infrared, fused)),
    ):
        torch.testing.assert_close(adapter(*positions)[0], expected)
        named = adapter(fused=fused, infrared=infrared, visible=visible)
        torch.testing.assert_close(named[0], expected)


class PortedDenseFuse(nn.Module):
    """Stands in for ports of DenseFuse: grey levels to 255, a decoder that returns a list."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Conv2d(1, 4, 3, padding=1)
        self.decode = nn.Conv2d(4, 1, 3, padding=1)

    def encoder(self, image):
        return [self.encode(image).relu()]

    def fusion(self, first, second):
        return [(first[0] + second[0]) / 2]

    def decoder(self, features):
        return [self.decode(features[0])]


def test_list_outputs_and_grey_levels(build, sources):
    visible, infrared = (255 * image for image in sources)
    model = PortedDenseFuse()
    criterion = OverOutputs(build(data_range=(0, 255)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        features = model.fusion(model.encoder(infrared), model.encoder(visible))
        outputs = model.decoder(features)
        loss = criterion(outputs, visible=visible, infrared=infrared)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    image, unit = outputs[0].detach(), build()
    expected = unit(image / 255, *sources)
    torch.testing.assert_close(criterion(image, visible=visible, infrared=infrared), expected)
    other = unit(image / 510, *sources)
    two = criterion([image, image / 2], visible=visible, infrared=infrared)
    torch.testing.assert_close(two, (expected + other) / 2)


def test_swapping_inputs_in_a_range_around_zero(build, sources):
    """Stands in for ports of U2Fusion: [-1, 1], both sources as channels, RMSProp."""
    visible, infrared = (2 * image - 1 for image in sources)
    network = SmallNetwork(-1, 1)
    network.apply(initialise)
    criterion = build(data_range=(-1, 1))
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        fused = network(torch.cat(swapped_at_random(visible, infrared), 1))
        loss = criterion(fused=fused, visible=visible, infrared=infrared)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    torch.testing.assert_close(
        criterion(fused, visible, infrared), build()((fused + 1) / 2, *sources)
    )


def test_swaps_are_by_sample_and_lose_nothing():
    torch.manual_seed(0)
    visible, infrared = torch.zeros(64, 1, 2, 2), torch.ones(64, 1, 2, 2)
    first, second = swapped_at_random(visible, infrared)
    assert torch.equal(first + second, visible + infrared)
    swapped = first.flatten(1).mean(1)
    assert set(swapped.tolist()) == {0.0, 1.0}
    assert 16 < swapped.sum() < 48


def test_two_stages(build, sources):
    visible, infrared = sources
    torch.manual_seed(0)
    network = DenseFuse()
    training = TwoStage(network, ReconstructionLoss(), build())
    assert {id(p) for p in training.parameters()} == {id(p) for p in network.parameters()}

    def train(steps):
        losses = []
        trained = [p for p in training.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=1e-3)
        for _ in range(steps):
            loss = training(visible, infrared)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    first = train(25)
    assert first[-1] < first[0]
    images = torch.cat(sources)
    expected = ReconstructionLoss()(network.decoder(network.encoder(images)), images)
    torch.testing.assert_close(training(visible, infrared), expected)
    training.stage = "fuse"
    expected = build()(network(visible, infrared), visible, infrared)
    torch.testing.assert_close(training(visible, infrared), expected)
    second = train(25)
    assert second[-1] < second[0]


def test_mixing_with_the_original_loss(build, sources):
    visible, infrared = sources
    fused = torch.rand_like(visible)
    language, swinfusion = build(), SwinFusionLoss()

    def by_position(infrared, visible, fused):
        return tuple(swinfusion.terms(fused, visible, infrared))

    mixed = Mixed(
        language,
        lambda *, fused, visible, infrared: by_position(infrared, visible, fused)[0],
        language_weight=0.5,
        original_weight=0.1,
    )
    original = swinfusion(fused, visible, infrared)
    expected = 0.5 * language(fused, visible, infrared) + 0.1 * original
    torch.testing.assert_close(mixed(fused, visible, infrared), expected)

    parts = parts_of(mixed, fused=fused, visible=visible, infrared=infrared)
    torch.testing.assert_close(sum(parts[1:]), parts.total)
    alone = parts_of(language, fused=fused, visible=visible, infrared=infrared)
    torch.testing.assert_close(parts.regularizer, 0.5 * alone.regularizer + 0.1 * original)
    total, *rest = SwinFusionCriterion(mixed)(infrared, visible, fused)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(sum(rest), expected)


def test_a_loss_inside_the_model_is_left_alone(build, sources):
    """Some code bases keep the criterion in the network, initialise and freeze all, save all."""
    visible, infrared = sources
    model = nn.Module()
    model.network = SmallNetwork()
    model.criterion = SwinFusionCriterion(build())
    fused = torch.rand_like(visible)
    before = model.criterion(infrared, visible, fused)[0]
    model.apply(initialise)
    model.train()
    model.requires_grad_(True)
    torch.testing.assert_close(model.criterion(infrared, visible, fused)[0], before)
    assert not model.criterion.criterion.encoder.network.training
    names = {"network.layer.weight", "network.layer.bias"}
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()} == names
