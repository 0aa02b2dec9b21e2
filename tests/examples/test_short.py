"""Short trainings on random crops."""

import numpy as np
import pytest
import torch

from parts.data.default_pairs import rendered_pairs
from parts.data.pairs import Pair
from parts.losses.language import build_criterion
from parts.networks.densefuse import DenseFuse
from parts.networks.residual import AverageResidual
from parts.training import short


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(short, "BATCH_SIZE", 2)
    monkeypatch.setattr(short, "CROP_SIDE", 48)


def test_crops_show_the_same_place_of_both_images():
    image = torch.randint(256, (1, 130, 150), dtype=torch.uint8)
    pairs = [Pair("scene", image, 255 - image)]
    visible, infrared = short.random_crops(pairs, torch.Generator().manual_seed(0))
    assert visible.shape == (short.BATCH_SIZE, 1, short.CROP_SIDE, short.CROP_SIDE)
    torch.testing.assert_close(visible + infrared, torch.ones_like(visible))
    assert not torch.equal(visible[0], visible[1])


def test_crops_shrink_to_the_smallest_image():
    pairs = [
        Pair("grey", *torch.zeros(2, 1, 40, 300, dtype=torch.uint8)),
        Pair("colour", torch.zeros(3, 300, 40, dtype=torch.uint8), torch.zeros(1, 300, 40)),
    ]
    visible, _ = short.random_crops(pairs, torch.Generator().manual_seed(0))
    assert visible.shape == (short.BATCH_SIZE, 1, 40, 40)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    criterion = build_criterion("tiny", generator)
    history = short.train(
        AverageResidual(DenseFuse()),
        criterion,
        rendered_pairs(1),
        steps=40,
        seed=0,
        device=torch.device("cpu"),
    )
    assert list(history) == ["total", "direction", "patch", "similarity", "regularizer", "kept"]
    assert np.mean(history["direction"][-10:]) < np.mean(history["direction"][:10]) - 0.05
