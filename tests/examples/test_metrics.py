"""Every measure on images whose figure can be worked out by hand, then on real ones."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

import metrics
from pairs import TNO, luminance, open_pairs, to_8bit
from quickstart import average


def constant(level=100):
    return np.full((32, 32), level, np.uint8)


def noise(seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (64, 48), dtype=np.uint8)


def ramp(step=2):
    """Grows by `step` from column to column."""
    return np.tile(np.arange(0, 32 * step, step, dtype=np.uint8), (32, 1))


def every_level():
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_entropy():
    assert metrics.entropy(constant()) == 0
    assert metrics.entropy(np.repeat([0, 255], 128).astype(np.uint8)) == pytest.approx(1)
    assert metrics.entropy(every_level()) == pytest.approx(8)


def test_standard_deviation():
    assert metrics.standard_deviation(constant()) == 0
    assert metrics.standard_deviation(np.array([[90, 110]], np.uint8)) == pytest.approx(10)


def test_spatial_frequency():
    assert metrics.spatial_frequency(constant()) == 0
    assert metrics.spatial_frequency(ramp(3)) == pytest.approx(3)
    assert metrics.spatial_frequency(ramp(3).T) == pytest.approx(3)
    checkerboard = np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 10
    assert metrics.spatial_frequency(checkerboard) == pytest.approx(np.hypot(10, 10))


def test_average_gradient():
    assert metrics.average_gradient(constant()) == 0
    assert metrics.average_gradient(ramp(3)) == pytest.approx(3 / np.sqrt(2))
    assert metrics.average_gradient(ramp(1) + ramp(2).T) == pytest.approx(np.sqrt(2.5))


def test_mutual_information():
    image = every_level()
    assert metrics.mutual_information(image, image) == pytest.approx(8)
    assert metrics.mutual_information(image, 255 - image) == pytest.approx(8)
    assert metrics.mutual_information(image, np.zeros_like(image)) == pytest.approx(0)
    rows, columns = (level.astype(np.uint8) for level in np.indices((16, 16)))
    assert metrics.mutual_information(rows, columns) == pytest.approx(0)  # independent


def test_sum_of_correlations_of_differences():
    visible, infrared = noise(0, high=128), noise(1, high=128)
    scd = metrics.sum_of_correlations_of_differences
    assert scd(visible + infrared, visible, infrared) == pytest.approx(2)
    assert scd(constant(), constant(), constant(7)) == 0
    # Fused is visible: its difference from infrared still holds half of each, nothing is left
    # for infrared.
    expected = np.corrcoef(visible.ravel() - infrared.astype(float).ravel(), visible.ravel())[0, 1]
    assert scd(visible, visible, infrared) == pytest.approx(expected)


def test_similarity():
    assert metrics.similarity(noise(), noise()) == pytest.approx(1)
    # Without structure only luminance is left: (2 a b + c) / (a^2 + b^2 + c).
    c = (0.01 * 255) ** 2
    expected = (2 * 50 * 100 + c) / (50**2 + 100**2 + c)
    assert metrics.similarity(constant(50), constant(100)) == pytest.approx(expected)


def test_edge_transfer():
    image = noise()
    best = 0.9994 / (1 + np.exp(-15 * 0.5)) * 0.9879 / (1 + np.exp(-22 * 0.2))
    assert metrics.edge_transfer(image, image, image) == pytest.approx(best)
    assert metrics.edge_transfer(255 - image, image, image) > 0.8  # the same edges, reversed
    black = np.zeros_like(image)
    assert metrics.edge_transfer(image, black, black) == 0  # no edges to transfer
    assert metrics.edge_transfer(black, image, image) < 0.01  # none transferred
    assert metrics.edge_transfer(image, image, black) == pytest.approx(best)


def test_evaluate_combines_both_sources():
    fused, visible, infrared = noise(0), noise(1), noise(2)
    result = metrics.evaluate(fused, visible, infrared, further=True)
    assert " ".join(result) == ("EN SD SF AG MI SCD SSIM Qabf invented CC VIF MS-SSIM PSNR Nabf")
    assert all(isinstance(value, float) for value in result.values())
    swapped = metrics.evaluate(fused, infrared, visible, further=True)
    assert result == pytest.approx(swapped, nan_ok=True)
    assert metrics.evaluate(fused, fused, infrared)["MI"] > result["MI"]
    tensors = [torch.from_numpy(image)[None] for image in (fused, visible, infrared)]
    assert metrics.evaluate(*tensors) == {name: result[name] for name in list(result)[:9]}


def test_the_values_of_earlier_releases():
    """The average of the five pairs of the examples, as 0.2.0 measured it."""
    rows = [
        metrics.evaluate(average(pair), to_8bit(luminance(pair.visible)), pair.infrared)
        for pair in open_pairs(TNO)
    ]
    expected = {
        "EN": 6.1928802867051385,
        "SD": 23.33787986148398,
        "SF": 7.373459243481088,
        "AG": 3.1941940062360095,
        "MI": 2.254226471151565,
        "SCD": 1.5244136865334146,
        "SSIM": 0.7149766668118898,
        "Qabf": 0.36692385593253574,
    }
    row = metrics.mean(rows)
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def picture(seed, height=176, width=192):
    """Blurred noise, which has structure at several scales."""
    noise = np.random.default_rng(seed).random((height, width))
    smooth = sum(ndimage.gaussian_filter(noise, sigma) * sigma for sigma in (1, 3, 9))
    return np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def disturbed(image, seed, amount=40):
    noise = np.random.default_rng(seed).integers(-amount, amount + 1, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def plain_invented(fused, visible, infrared):
    """The definition in loops: the residual of a least-squares fit in each window."""
    left = total = 0.0
    for top in range(fused.shape[0] - 8):
        for start in range(fused.shape[1] - 8):
            window = (slice(top, top + 9), slice(start, start + 9))
            f, v, r = (
                image[window].ravel() - image[window].mean() for image in (fused, visible, infrared)
            )
            normal = np.array([[v @ v, v @ r], [v @ r, r @ r]]) / 81 + 0.5 * np.eye(2)
            a, b = np.linalg.solve(normal, np.array([f @ v, f @ r]) / 81)
            left += (f @ f - a * (f @ v) - b * (f @ r)) / 81
            total += f @ f / 81
    return left / total


def test_invented_detail_is_what_no_mixture_of_the_sources_explains():
    visible, infrared = picture(0, 24, 31), picture(1, 24, 31)
    mixture = (0.3 * visible + 0.6 * infrared + 9).astype(np.uint8)
    for fused in (mixture, disturbed(mixture, 2), 255 - visible):
        value = metrics.invented_detail(fused, visible, infrared)
        assert value == pytest.approx(plain_invented(fused, visible, infrared), rel=1e-6)
    assert metrics.invented_detail(mixture, visible, infrared) < 0.01
    assert metrics.invented_detail(disturbed(mixture, 2), visible, infrared) > 0.5
    assert metrics.invented_detail(constant(), constant(), constant()) == 0


def test_vif_and_ms_ssim_where_they_are_defined():
    image = picture(0)
    assert metrics.fidelity(image, image) == pytest.approx(1, abs=1e-5)
    assert metrics.fidelity(np.full_like(image, 100), image) == pytest.approx(0, abs=1e-6)
    assert math.isnan(metrics.fidelity(image, np.zeros_like(image)))
    assert math.isnan(metrics.fidelity(image[:40], image[:40]))
    assert metrics.multiscale_similarity(image, image) == pytest.approx(1)
    assert math.isnan(metrics.multiscale_similarity(image[:160], image[:160]))
    for measure in (metrics.fidelity, metrics.multiscale_similarity):
        assert measure(disturbed(image, 1, 80), image) < measure(disturbed(image, 1), image) < 1


def test_psnr():
    visible, infrared = picture(0, 48, 48), picture(1, 48, 48)
    fused = disturbed(visible, 2)
    squares = [
        (float(f) - float(s)) ** 2
        for source in (visible, infrared)
        for f, s in zip(fused.ravel(), source.ravel(), strict=True)
    ]
    expected = 10 * math.log10(255**2 / (sum(squares) / len(squares)))
    assert metrics.peak_signal_to_noise(fused, visible, infrared) == pytest.approx(expected)
    assert math.isnan(metrics.peak_signal_to_noise(fused, fused, fused))


def test_cc_is_the_mean_of_pearsons_correlations():
    fused, visible, infrared = (picture(seed, 48, 48) for seed in range(3))
    values = [np.corrcoef(fused.ravel(), image.ravel())[0, 1] for image in (visible, infrared)]
    row = metrics.evaluate(fused, visible, infrared, further=True)
    assert row["CC"] == pytest.approx(np.mean(values))


def added_edges(fused, visible, infrared):
    """Added edges as Shreyamsha Kumar defines them, pixel by pixel."""

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

    added = total = 0.0
    for row, column in np.ndindex(fused.shape):
        of_fused = edge(fused, row, column)
        sources = [edge(image, row, column) for image in (visible, infrared)]
        is_new = all(of_fused[0] > strength for strength, _ in sources)
        for strength, angle in sources:
            ratio = 0.0
            if strength > 0 and of_fused[0] > 0:
                ratio = min(strength / of_fused[0], of_fused[0] / strength)
            turn = abs(abs(angle - of_fused[1]) - math.pi / 2) * 2 / math.pi
            kept = 0.9999 / (1 + math.exp(-19 * (ratio - 0.5)))
            quality = math.sqrt(kept * 0.9995 / (1 + math.exp(-22 * (turn - 0.5))))
            weight = strength**1.5 if strength >= 2 else 0.001
            added += (1 - quality) * weight if is_new else 0
            total += weight
    return added / total


def test_nabf_is_that_of_its_definition():
    visible, infrared = picture(0, 24, 31), picture(1, 24, 31)
    visible[:8], infrared[:8] = 0, 0  # no edge in any source
    for fused in (disturbed(visible, 2), visible // 2 + infrared // 2, visible, 0 * visible):
        added = added_edges(fused, visible, infrared)
        assert metrics.artefacts(fused, visible, infrared) == pytest.approx(added, abs=1e-12)
    assert metrics.artefacts(disturbed(visible, 2), visible, infrared) > 0.05
    assert metrics.artefacts(visible, visible, infrared) == 0
