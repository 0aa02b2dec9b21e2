"""The further measures against other implementations, and against definitions in loops."""

import math

import numpy as np
import piq
import pytest
import torch
from scipy import ndimage
from torchmetrics.functional.image import visual_information_fidelity

from parts.measuring.further import (
    artefacts,
    evaluate_further,
    fidelity,
    multiscale_similarity,
    peak_signal_to_noise,
)


def picture(seed, height=176, width=192):
    """Blurred noise, which has structure at several scales."""
    noise = np.random.default_rng(seed).random((height, width))
    smooth = sum(ndimage.gaussian_filter(noise, sigma) * sigma for sigma in (1, 3, 9))
    return np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def disturbed(image, seed, amount=40):
    noise = np.random.default_rng(seed).integers(-amount, amount + 1, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def tensor(image):
    return torch.from_numpy(image.astype(np.float64))[None, None]


@pytest.mark.parametrize("size", [(41, 41), (60, 83), (101, 64)])
def test_vif_is_that_of_torchmetrics_and_piq(size):
    source = picture(0, *size)
    flat = source.copy()
    flat[:, 20:] = 128  # where the source has no variance
    for fused, reference in (
        (disturbed(source, 1), source),
        (255 - source, source),
        (source // 2, source),
        (disturbed(flat, 2), flat),
        (flat, source),
    ):
        value = fidelity(fused, reference)
        images = tensor(fused), tensor(reference)
        assert value == pytest.approx(float(visual_information_fidelity(*images)), rel=1e-9)
        assert value == pytest.approx(float(piq.vif_p(*images, data_range=255)), rel=1e-6, abs=1e-6)


def test_vif_at_its_ends():
    image = picture(0, 64, 48)
    assert fidelity(image, image) == pytest.approx(1)
    assert fidelity(np.full_like(image, 100), image) == pytest.approx(0, abs=1e-9)
    assert math.isnan(fidelity(image, np.zeros_like(image)))
    assert math.isnan(fidelity(image[:40], image[:40]))


def test_ms_ssim_is_that_of_piq():
    # In sizes that halve without rest: piq puts the odd row elsewhere than the authors' code.
    source = picture(0, 176, 192)
    for fused in (disturbed(source, 1), source // 2, picture(1)):
        expected = piq.multi_scale_ssim(tensor(fused), tensor(source), data_range=255)
        assert multiscale_similarity(fused, source) == pytest.approx(float(expected), rel=1e-9)


def test_ms_ssim_of_odd_sizes_and_at_its_ends():
    image = picture(0, 177, 193)
    assert multiscale_similarity(image, image) == pytest.approx(1)
    even = multiscale_similarity(disturbed(image, 1)[:176, :192], image[:176, :192])
    assert multiscale_similarity(disturbed(image, 1), image) == pytest.approx(even, abs=5e-3)
    assert math.isnan(multiscale_similarity(image[:160], image[:160]))
    assert multiscale_similarity(255 - image, image) == 0  # the authors' is complex there


def test_psnr():
    visible, infrared = picture(0, 48, 48), picture(1, 48, 48)
    fused = disturbed(visible, 2)
    squares = [
        (float(f) - float(s)) ** 2
        for source in (visible, infrared)
        for f, s in zip(fused.ravel(), source.ravel(), strict=True)
    ]
    expected = 10 * math.log10(255**2 / (sum(squares) / len(squares)))
    assert peak_signal_to_noise(fused, visible, infrared) == pytest.approx(expected)
    single = piq.psnr(tensor(fused), tensor(visible), data_range=255)
    assert peak_signal_to_noise(fused, visible, visible) == pytest.approx(float(single), rel=1e-6)
    assert math.isnan(peak_signal_to_noise(fused, fused, fused))


def test_cc_is_the_mean_of_pearsons_correlations():
    fused, visible, infrared = (picture(seed, 48, 48) for seed in range(3))
    values = [np.corrcoef(fused.ravel(), image.ravel())[0, 1] for image in (visible, infrared)]
    row = evaluate_further(fused, visible, infrared)
    assert row["CC"] == pytest.approx(np.mean(values))


def edge_measures(fused, visible, infrared):
    """Preserved, lost and added edges as Shreyamsha Kumar defines them, pixel by pixel.

    They are shares of one whole, so that they add up to 1.
    """

    def edge(image, row, column):
        height, width = image.shape
        at = lambda down, across: float(  # noqa: E731
            image[min(max(row + down, 0), height - 1), min(max(column + across, 0), width - 1)]
        )
        vertical = sum(w * (at(d, 1) - at(d, -1)) for d, w in ((-1, 1), (0, 2), (1, 1))) / 8
        horizontal = sum(w * (at(1, a) - at(-1, a)) for a, w in ((-1, 1), (0, 2), (1, 1))) / 8
        if vertical == horizontal == 0:
            angle = 0.0
        else:
            angle = math.atan(vertical / horizontal) if horizontal else math.pi / 2
        return math.hypot(vertical, horizontal), angle

    preserved = lost = added = total = 0.0
    for row, column in np.ndindex(fused.shape):
        of_fused = edge(fused, row, column)
        sources = [edge(image, row, column) for image in (visible, infrared)]
        is_new = all(of_fused[0] > strength for strength, _ in sources)
        for strength, angle in sources:
            ratio = 0.0
            if strength > 0 and of_fused[0] > 0:
                ratio = min(strength / of_fused[0], of_fused[0] / strength)
            turn = abs(abs(angle - of_fused[1]) - math.pi / 2) * 2 / math.pi
            quality = math.sqrt(
                0.9999
                / (1 + math.exp(-19 * (ratio - 0.5)))
                * 0.9995
                / (1 + math.exp(-22 * (turn - 0.5)))
            )
            weight = strength**1.5 if strength >= 2 else 0.001
            preserved += quality * weight
            lost += 0 if is_new else (1 - quality) * weight
            added += (1 - quality) * weight if is_new else 0
            total += weight
    return preserved / total, lost / total, added / total


def test_nabf_is_that_of_its_definition():
    visible, infrared = picture(0, 24, 31), picture(1, 24, 31)
    visible[:8], infrared[:8] = 0, 0  # no edge in any source
    for fused in (disturbed(visible, 2), visible // 2 + infrared // 2, visible, 0 * visible):
        preserved, lost, added = edge_measures(fused, visible, infrared)
        assert preserved + lost + added == pytest.approx(1)
        assert artefacts(fused, visible, infrared) == pytest.approx(added, abs=1e-12)
    assert artefacts(disturbed(visible, 2), visible, infrared) > 0.05
    assert artefacts(visible, visible, infrared) == 0


def test_all_further_measures_take_both_sources_alike():
    fused, visible, infrared = (picture(seed) for seed in range(3))
    row = evaluate_further(fused, visible, infrared)
    assert list(row) == ["CC", "VIF", "MS-SSIM", "PSNR", "Nabf"]
    assert row == pytest.approx(evaluate_further(fused, infrared, visible))
    assert all(isinstance(value, float) for value in row.values())
