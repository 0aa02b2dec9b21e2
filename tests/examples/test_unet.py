"""The U-Net of the examples: its start, its sizes, its training, its tiles and its modulation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import unet
from networks.unet import MARGIN, FusionUNet

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
    pair = [image.double() for image in sources(403, 517)]
    network = FusionUNet(DIMENSION).double().eval()
    network.load_state_dict(trained.state_dict())
    small, large = (network.fuse(*pair, vectors().double(), tile=tile) for tile in (32, 128))
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


@pytest.mark.parametrize(
    ("dimension", "vector", "message"),
    [
        (None, torch.ones(1, 128), r"must have shape None, got \(1, 128\).*FusionUNet"),
        (128, None, r"must have shape \(2, 128\) or \(1, 128\), got None"),
        (128, torch.ones(3, 128), r"got \(3, 128\)"),
        (128, torch.ones(2, 64), r"got \(2, 64\)"),
    ],
)
def test_wrong_vectors(dimension: int | None, vector: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusionUNet(dimension)(*sources(32, 32, count=2), vector)
