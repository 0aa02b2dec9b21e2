"""The U-Net of the examples: its start, its sizes, its training, its tiles and its modulation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import unet
from networks.unet import MARGIN, RAMP, FusionUNet

DIMENSION = 128  # of the bundled CLIP


def sources(*size: int, count: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth scenes with a little noise."""
    generator = torch.Generator().manual_seed(seed)

    def image() -> Tensor:
        coarse = torch.rand(count, 1, 7, 9, generator=generator)
        smooth = F.interpolate(coarse, size, mode="bicubic")
        noise = torch.randn(count, 1, *size, generator=generator)
        return (smooth + 0.05 * noise).clamp(0, 1)

    return image(), image()


def vectors(count: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIMENSION, generator=generator), dim=1)


@pytest.fixture(scope="module")
def trained() -> FusionUNet:
    """As a short training leaves it: told one vector, it darkens, told another, it sharpens."""
    torch.manual_seed(0)
    network = FusionUNet(DIMENSION)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    told = vectors(2)
    for step in range(30):
        visible, infrared = sources(64, 64, count=2, seed=step)
        brighter = torch.maximum(visible, infrared)[1:]
        wanted = torch.cat([0.3 * visible[:1], brighter])
        loss = F.mse_loss(network(visible, infrared, told), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("dimension", [None, DIMENSION, 512])
def test_is_small(dimension: int | None) -> None:
    assert sum(weight.numel() for weight in FusionUNet(dimension).parameters()) <= 400_000


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (96, 96), (131, 50)])
def test_starts_as_the_average_of_the_logits_at_any_size(size: tuple[int, int]) -> None:
    visible, infrared = sources(*size, count=2)
    fused = FusionUNet()(visible, infrared)
    logits = [image.double().clamp(MARGIN, 1 - MARGIN).logit() for image in (visible, infrared)]
    torch.testing.assert_close(fused.double(), torch.sigmoid(sum(logits) / 2), atol=1e-6, rtol=0)


def test_stays_inside_the_range_at_extremes(trained: FusionUNet) -> None:
    black, white = torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)
    for pair in [(black, black), (black, white), (white, white)]:
        fused = trained(*pair, vectors())
        assert fused.isfinite().all()
        assert (fused > 0).all()
        assert (fused < 1).all()


def test_every_weight_has_a_gradient_after_a_step() -> None:
    torch.manual_seed(0)
    network = FusionUNet(DIMENSION)
    optimizer = torch.optim.Adam(network.parameters())
    visible, infrared = sources(64, 64, count=2)
    for _ in range(3):  # the last layer, then what it multiplies, then what that depends on
        optimizer.zero_grad()
        (network(visible, infrared, vectors(2)) - visible).square().mean().backward()
        optimizer.step()
    without = [name for name, weight in network.named_parameters() if not weight.grad.any()]
    assert without == []


def test_a_vector_changes_nothing_before_training_and_much_after(trained: FusionUNet) -> None:
    visible, infrared = sources(64, 64, count=2)
    fresh = FusionUNet(DIMENSION)
    one, other = vectors(2).split(1)
    assert torch.equal(fresh(visible, infrared, one), fresh(visible, infrared, other))
    darker, brighter = (trained(visible, infrared, vector).mean() for vector in (one, other))
    assert brighter - darker > 0.2
    each = trained(visible, infrared, torch.cat([one, other]))
    torch.testing.assert_close(each[:1], trained(visible[:1], infrared[:1], one))
    torch.testing.assert_close(each[1:], trained(visible[1:], infrared[1:], other))


def test_small_images_are_fused_as_in_a_call(trained: FusionUNet) -> None:
    pair = sources(75, 120, count=2)
    assert torch.equal(trained.fuse(*pair, vectors(2)), trained(*pair, vectors(2)))


@torch.inference_mode()
def test_tiles_are_close_to_the_whole(trained: FusionUNet) -> None:
    """Within two grey levels on average: what differs is the statistics, estimated from windows."""
    pair = sources(403, 517, count=2)
    whole = trained(*pair, vectors(2))
    images = zip(*(image.split(1) for image in (*pair, vectors(2))), strict=True)
    tiled = torch.cat([trained.fuse(*image, tile=64) for image in images])
    assert (tiled - whole).abs().mean() < 2 / 255
    assert (tiled - whole).abs().max() < 8 / 255
    with pytest.raises(ValueError, match="must be one large image at a time, got 2"):
        trained.fuse(*pair, vectors(2), tile=64)


@torch.inference_mode()
def test_tiles_leave_no_seams(trained: FusionUNet) -> None:
    """With the same statistics, tiles of any size give the same image."""
    pair = [image.double() for image in sources(200, 270)]
    network = FusionUNet(DIMENSION).double().eval()
    network.load_state_dict(trained.state_dict())
    small, large = (network.fuse(*pair, vectors().double(), tile=tile) for tile in (32, 64))
    torch.testing.assert_close(small, large, atol=1e-12, rtol=0)
    assert not any(block.norm.shares for block in network.down)


def test_reach_is_what_a_pixel_depends_on() -> None:
    torch.manual_seed(0)
    network = FusionUNet().double()
    nn.init.normal_(network.last.weight)
    for block in (*network.down, *network.up):
        block.norm = nn.Identity()
    reach = 0
    for row in range(96, 96 + unet.STRIDE):
        pair = [torch.rand(1, 1, 208, 16, dtype=torch.float64, requires_grad=True) for _ in "vi"]
        network(*pair)[0, 0, row].sum().backward()
        rows = sum(image.grad.abs().sum((0, 1, 3)) for image in pair).nonzero()
        reach = max(reach, row - int(rows.min()), int(rows.max()) - row)
    assert reach == FusionUNet.REACH


# Regions


def halves(height: int, width: int, count: int = 1) -> Tensor:
    """Label 1 in the right half, and label 0 in the left."""
    return (torch.arange(width) >= width // 2).long().expand(count, height, width)


@torch.inference_mode()
def test_one_label_everywhere_is_the_network_without_regions(trained: FusionUNet) -> None:
    pair = sources(75, 90, count=2)
    told = vectors(3)
    for label in range(3):
        everywhere = torch.full((1, 75, 90), label)
        expected = trained(*pair, told[label : label + 1])
        found = trained(*pair, told, regions=everywhere)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    each = torch.tensor([2, 0])[:, None, None].expand(2, 75, 90)
    expected = trained(*pair, told[[2, 0]])
    torch.testing.assert_close(trained(*pair, told, regions=each), expected, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_each_region_follows_its_vector_without_a_step_between_them(trained: FusionUNet) -> None:
    """Here on a flat scene, where all steps are of our making; label 0 darkens, 1 does not."""
    pair = [torch.full((1, 1, 96, 160), 0.5)] * 2
    dark, bright = (trained(*pair, vector).mean() for vector in vectors(2).split(1))
    row = trained(*pair, vectors(2), regions=halves(96, 160))[0, 0, 48]
    assert row[:32].mean() < dark + 0.2 * (bright - dark)
    assert row[-32:].mean() > bright - 0.2 * (bright - dark)
    # The shares move by at most 1 / (RAMP + 1) a pixel; the logit scale makes a little more of it.
    assert row.diff().abs().max() < 1.2 / (RAMP + 1) * (bright - dark)
    swapped = trained(*pair, vectors(2).flip(0), regions=1 - halves(96, 160))[0, 0, 48]
    torch.testing.assert_close(swapped, row)


@torch.inference_mode()
def test_shares_are_those_of_the_area(trained: FusionUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each layer, scale and shift are mixed by the shares of the labels in a cell."""
    maps = []
    blend = unet._modulated

    def record(features: Tensor, change: Tensor | None) -> Tensor:
        maps.append(change)
        return blend(features, change)

    monkeypatch.setattr(unet, "_modulated", record)
    monkeypatch.setattr(unet, "RAMP", 0)
    regions = torch.randint(3, (2, 64, 96), generator=torch.Generator().manual_seed(0))
    network, told, pair = trained.double(), vectors(3).double(), sources(64, 96, count=2)
    try:
        network(*(image.double() for image in pair), told, regions=regions)
        changes = network.modulation(told * DIMENSION**0.5).split(network._sizes, dim=1)
    finally:
        trained.float()
    one_hot = F.one_hot(regions, 3).double()
    for found, change, stride in zip(maps, changes, (1, 2, 4, 8, 16, 8, 4, 2, 1, 1), strict=True):
        cells = one_hot.unflatten(1, (-1, stride)).unflatten(3, (-1, stride)).mean((2, 4))
        expected = torch.einsum("nhwr,rc->nchw", cells, change)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@torch.inference_mode()
def test_tiles_with_regions_leave_no_seams(trained: FusionUNet) -> None:
    pair = [image.double() for image in sources(200, 270)]
    network = FusionUNet(DIMENSION).double().eval()
    network.load_state_dict(trained.state_dict())
    regions = halves(200, 270) + (torch.arange(200) >= 150)[:, None].long()
    tiles = [
        network.fuse(*pair, vectors(3).double(), regions=regions, tile=tile) for tile in (32, 64)
    ]
    torch.testing.assert_close(*tiles, atol=1e-12, rtol=0)
    whole = network(*pair, vectors(3).double(), regions=regions)
    assert (tiles[0] - whole).abs().mean() < 2 / 255


@pytest.mark.parametrize(
    ("dimension", "told", "regions", "message"),
    [
        (None, torch.ones(1, 128), None, r"must have shape None, got \(1, 128\).*FusionUNet"),
        (128, None, None, r"`vectors` must have shape \(2, 128\) or \(1, 128\), got None"),
        (128, torch.ones(3, 128), None, r"got \(3, 128\)"),
        (128, torch.ones(2, 64), None, r"got \(2, 64\)"),
        (128, None, halves(32, 32), r"`vectors` must have shape .*, got None"),
        (128, torch.ones(3, 64), halves(32, 32), r"must have shape \(3, 128\), got \(3, 64\)"),
        (None, None, halves(32, 32), "`regions` must be given to a FusionUNet that is built for"),
        (128, torch.ones(2, 128), halves(32, 31), r"of shape \(2, 32, 32\) or \(1, 32, 32\)"),
        (128, torch.ones(2, 128), halves(32, 32)[0], r"got torch.int64 of shape \(32, 32\)"),
        (128, torch.ones(2, 128), halves(32, 32).float(), "must be integers .*torch.float32"),
        (128, torch.ones(1, 128), halves(32, 32), "labels from 0 to 0, .* got 0 to 1; pass a vec"),
        (128, torch.ones(2, 128), halves(32, 32) - 1, "labels from 0 to 1, .* got -1 to 0"),
    ],
)
def test_wrong_vectors_and_regions(
    dimension: int | None, told: Tensor | None, regions: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FusionUNet(dimension)(*sources(32, 32, count=2), told, regions=regions)
