"""The original objectives of the networks, on cases with a known answer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parts.losses import original
from parts.losses.original import (
    ReconstructionLoss,
    SwinFusionLoss,
    U2FusionLoss,
    VGGInformation,
    similarity,
    sobel_edges,
)


@pytest.fixture
def images():
    torch.manual_seed(0)
    fused, visible, infrared = torch.rand(3, 2, 1, 32, 40)
    return fused, visible, infrared / 2


class MeanLevel(nn.Module):
    """Stands in for VGG: the brighter image tells more."""

    def forward(self, image):
        return 10 * image.mean((1, 2, 3))


def test_similarity(images):
    _, image, _ = images
    torch.testing.assert_close(similarity(image, image), torch.ones(2))
    assert (similarity(1 - image, image) < 0).all()
    # Without structure only luminance is left: (2 a b + c) / (a^2 + b^2 + c).
    dark, bright = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.4)
    expected = (2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4)
    assert similarity(dark, bright).item() == pytest.approx(expected, rel=1e-3)


def test_young_networks_may_leave_the_range(images):
    fused, visible, infrared = images
    outside = (5 * fused - 2).requires_grad_()
    SwinFusionLoss()(outside, visible, infrared).backward()
    assert outside.grad.isfinite().all()


def test_reconstruction(images):
    _, image, _ = images
    loss = ReconstructionLoss()
    assert loss(image, image) == pytest.approx(0, abs=1e-3)
    terms = loss.terms(image + 2 / 255, image)
    assert terms.pixels == pytest.approx(4, rel=1e-3)  # squared error in grey levels
    assert terms.ssim == pytest.approx(100 * (1 - similarity(image + 2 / 255, image).mean()))
    assert terms.total == terms.pixels + terms.ssim


def test_u2fusion_prefers_the_source_that_tells_more(images):
    fused, visible, infrared = images
    loss = U2FusionLoss(MeanLevel())
    informations = torch.stack([MeanLevel()(visible), MeanLevel()(infrared)])
    weights = informations.softmax(0)
    assert (weights[0] > 0.9).all()
    expected = sum(
        weight * (1 - similarity(fused, image) + 20 * (fused - image).square().mean((1, 2, 3)))
        for weight, image in zip(weights, (visible, infrared), strict=True)
    ).mean()
    torch.testing.assert_close(loss(fused, visible, infrared), expected)
    assert loss(visible, visible, infrared) < loss(infrared, visible, infrared)


def test_swinfusion_terms(images):
    _, visible, infrared = images
    loss = SwinFusionLoss()
    same = loss.terms(visible, visible, visible)
    assert torch.stack(same).abs().max() < 1e-4
    brighter = torch.maximum(visible, infrared)
    assert loss.terms(brighter, visible, infrared).intensity == 0
    fused = visible + 0.1
    terms = loss.terms(fused, visible, visible / 2)
    assert terms.intensity == pytest.approx(2.0, rel=1e-4)  # 20 x 0.1
    # Half the contrast is half the edges: two thirds of the weight are on the visible image.
    like_visible, like_infrared = (
        similarity(fused, source, black_border=True) for source in (visible, visible / 2)
    )
    expected = 10 * (1 - 2 / 3 * like_visible - 1 / 3 * like_infrared)
    assert terms.ssim == pytest.approx(expected.mean().item(), rel=1e-4)


def test_sobel_edges():
    ramp = torch.arange(8.0).repeat(8, 1)[None, None] / 100
    assert torch.allclose(sobel_edges(ramp)[..., 1:-1, 1:-1], torch.tensor(0.08))
    assert torch.allclose(sobel_edges(ramp.mT), sobel_edges(ramp).mT)
    white = sobel_edges(torch.ones(1, 1, 8, 8))
    assert white[..., 1:-1, 1:-1].abs().max() < 1e-6
    assert white[0, 0, 0, 4] == 4  # black lies beyond the border


def gaussian_means(image, padding):
    steps = torch.arange(-5.0, 6, dtype=image.dtype)
    line = (-steps.square() / (2 * 1.5**2)).exp()
    kernel = torch.outer(line, line) / line.sum() ** 2
    return F.conv2d(image, kernel[None, None], padding=padding)


def plain_ssim(a, b, padding):
    """The formula of Wang et al., and its contrast and structure alone, at each pixel."""
    mean_a, mean_b = (gaussian_means(x, padding) for x in (a, b))
    of_squares = gaussian_means(a * a, padding) + gaussian_means(b * b, padding)
    variances = of_squares - mean_a**2 - mean_b**2
    structure = 2 * (gaussian_means(a * b, padding) - mean_a * mean_b) + 0.03**2
    structure = structure / (variances + 0.03**2)
    return (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4) * structure, structure


def test_similarity_with_a_black_border(images):
    fused, visible, _ = images
    ssim, _ = plain_ssim(fused.double(), visible.double(), padding=5)
    expected = ssim.mean((1, 2, 3)).float()
    torch.testing.assert_close(
        similarity(fused, visible, black_border=True), expected, rtol=1e-3, atol=1e-4
    )
    assert not torch.allclose(similarity(fused, visible), expected, rtol=1e-2)


def test_reconstruction_over_scales():
    torch.manual_seed(0)
    a = torch.rand(2, 1, 176, 176)
    b = (a + 0.3 * torch.rand_like(a)).clamp(0, 1)
    loss, expected, (first, second) = ReconstructionLoss(multiscale=True), 1, (a, b)
    for exponent in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        mirrored = (F.pad(image.double(), [5] * 4, mode="reflect") for image in (first, second))
        ssim, structure = plain_ssim(*mirrored, padding=0)
        inner = structure[..., 5:-5, 5:-5] if exponent != 0.1333 else ssim
        expected = expected * ((1 + inner.mean((1, 2, 3))) / 2) ** exponent
        first, second = (F.avg_pool2d(image, 2) for image in (first, second))
    assert loss.terms(a, b).ssim.item() == pytest.approx(
        100 * (1 - expected.mean().item()), rel=1e-3
    )


@pytest.mark.parametrize("loss", [SwinFusionLoss(), U2FusionLoss(MeanLevel())])
def test_means_over_batches_are_those_of_their_union(images, loss):
    whole = loss(*images)
    halves = [loss(*(image[i : i + 1] for image in images)) for i in range(2)]
    torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.fixture
def small_vgg(monkeypatch):
    """VGG-16 in all but width, with pools at the same places."""

    def build(weights=None):
        if weights is not None:
            raise OSError("no route to host")
        torch.manual_seed(0)
        layers, channels = [], 3
        for _ in range(5):
            layers += [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels = 4
        model = nn.Module()
        model.features = nn.Sequential(*layers)
        return model

    monkeypatch.setattr(original, "vgg16", build)
    return build


def test_vgg_information(small_vgg, tmp_path, images):
    file = tmp_path / "vgg16.pth"
    state = {f"features.{k}": v for k, v in small_vgg().features.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, file)
    information = VGGInformation(file)
    assert not any(p.requires_grad for p in information.parameters())
    flat, textured = torch.full((2, 1, 32, 32), 0.5), images[1]
    assert information(textured).shape == (2,)
    assert (information(textured) > information(flat)).all()

    kernel = torch.tensor([[1.0, 1, 1], [1, -8, 1], [1, 1, 1]]) / 8
    nearest = [i * 32 // 224 for i in range(224)], [i * 40 // 224 for i in range(224)]
    enlarged = textured[:, :, nearest[0]][..., nearest[1]]
    features, expected = 255 * enlarged - information.mean, 0
    for layer in information.features:
        if isinstance(layer, nn.MaxPool2d):
            padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
            gradients = F.conv2d(padded, kernel.repeat(features.shape[1], 1, 1, 1), groups=4)
            expected = expected + gradients.square().mean((1, 2, 3)) / 5 / 3200
        features = layer(features)
    torch.testing.assert_close(information(textured), expected)


def test_vgg_weights_that_are_not_there(small_vgg, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fetch https://.*vgg16_features"):
        VGGInformation()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        VGGInformation(tmp_path / "missing.pth")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the features"):
        VGGInformation(tmp_path / "other.pth")
