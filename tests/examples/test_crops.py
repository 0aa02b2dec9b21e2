"""The crops that train.py sees: the same whenever and wherever they are drawn."""

import pytest
import torch
from drawn import draw_pairs

from parts.data.crops import Crops, batches
from parts.data.pairs import Pair


@pytest.mark.parametrize("augment", [False, True])
def test_crops_are_the_same_whenever_asked_for(augment):
    pairs = draw_pairs()
    crops, again = (Crops(pairs, 32, 2, augment=augment, seed=5) for _ in range(2))
    other = Crops(pairs, 32, 2, augment=augment, seed=6)
    numbers = [7, 0, 13]
    for number in numbers:
        visible, infrared = crops[number]
        assert visible.shape == infrared.shape == (1, 32, 32)
        assert visible.min() >= 0
        assert visible.max() <= 1
        assert torch.equal(visible, again[number][0])
    assert not all(torch.equal(crops[number][0], other[number][0]) for number in numbers)


@pytest.mark.parametrize("augment", [False, True])
def test_both_crops_are_of_the_same_place(augment):
    pairs = [pair._replace(infrared=pair.visible) for pair in draw_pairs()]
    crops = Crops(pairs, 32, 1, augment=augment, seed=0)
    for number in range(6):
        assert torch.equal(*crops[number])


def test_an_epoch_shows_every_pair_equally_often():
    pairs = [Pair(str(i), *torch.full((2, 1, 40, 40), i, dtype=torch.uint8)) for i in range(5)]
    crops = Crops(pairs, 32, 3, augment=False, seed=0)
    assert crops.epoch_size == 15
    epochs = [
        [round(255 * crops[15 * epoch + place][0].mean().item()) for place in range(15)]
        for epoch in range(2)
    ]
    assert all(sorted(epoch) == sorted(3 * [0, 1, 2, 3, 4]) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_small_pairs_are_enlarged():
    crops = Crops(draw_pairs(size=(40, 60)), 64, 1, augment=False, seed=0)
    assert crops[0][0].shape == (1, 64, 64)


def test_processes_share_the_crops_of_a_step():
    options = {"first_step": 3, "last_step": 5, "parts": 2}
    alone = list(batches(**options, batch=6, rank=0, world=1))
    assert [number for batch in alone for number in batch] == list(range(36, 60))
    ranks = [list(batches(**options, batch=2, rank=rank, world=3)) for rank in range(3)]
    assert [[*first, *second, *third] for first, second, third in zip(*ranks, strict=True)] == alone
