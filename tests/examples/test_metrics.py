"""Every measure on images whose figure can be worked out by hand, then on real ones."""

from pathlib import Path

import numpy as np
import pytest

from parts.data.images import luminance, to_8bit
from parts.data.pairs import open_pairs
from parts.measuring import metrics
from parts.measuring.baselines import average

TNO = Path(__file__).parents[3] / "shared" / "pairs" / "tno"


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


def test_edge_transfer_heeds_orientation():
    # Away from the black beyond the border, edges of equal strength at right angles.
    strips = np.tile(np.arange(64) % 32 * 8, (64, 1)).astype(np.uint8)
    along = metrics.edge_transfer(strips, strips, strips)
    across = metrics.edge_transfer(strips.T.copy(), strips, strips)
    assert across < along / 2


def test_evaluate_combines_both_sources():
    fused, visible, infrared = noise(0), noise(1), noise(2)
    result = metrics.evaluate(fused, visible, infrared)
    assert list(result) == ["EN", "SD", "SF", "AG", "MI", "SCD", "SSIM", "Qabf"]
    assert all(isinstance(value, float) for value in result.values())
    assert result == pytest.approx(metrics.evaluate(fused, infrared, visible))
    assert metrics.evaluate(fused, fused, infrared)["MI"] > result["MI"]


def test_mean():
    assert metrics.mean([{"EN": 1.0, "SD": 5.0}, {"EN": 2.0, "SD": 7.0}]) == {"EN": 1.5, "SD": 6.0}


@pytest.mark.skipif(not TNO.is_dir(), reason=f"no TNO pairs in {TNO}")
def test_average_of_tno_resembles_published_tables():
    pairs, _ = open_pairs(TNO, limit=100)
    row = metrics.mean(
        [
            metrics.evaluate(
                average(pair)[0].numpy(),
                to_8bit(luminance(pair.visible))[0].numpy(),
                pair.infrared[0].numpy(),
            )
            for pair in pairs
        ]
    )
    # Published are means over 25 pairs of which these are five; hence the wide margins.
    assert row["EN"] == pytest.approx(6.23, abs=0.3)
    assert row["SD"] == pytest.approx(26.1, rel=0.2)
    assert row["SF"] == pytest.approx(6.96, rel=0.2)
    assert row["AG"] == pytest.approx(2.67, rel=0.25)
    assert row["SCD"] == pytest.approx(1.54, abs=0.1)
    assert row["Qabf"] == pytest.approx(0.356, abs=0.05)
