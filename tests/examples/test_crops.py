"""The crops that train.py sees: what lies in the pairs, the same whenever they are drawn."""

import numpy as np
import pytest
import torch
from drawn import draw_pairs
from image_files import write

from parts.data.crops import Crops, batches
from parts.data.pairs import Pair, open_pairs


def coloured(height=40, width=48):
    """A pair whose every pixel of red and green says where it lies."""
    rows, columns = np.indices((height, width)).astype(np.uint8)
    visible = torch.from_numpy(np.stack([4 * rows, 4 * columns, rows + columns]))
    return Pair("scene", visible, torch.from_numpy(rows * 2 + columns * 3)[None])


def test_a_plain_crop_is_a_window_of_the_luminance():
    pair = coloured()
    red, green, blue = pair.visible.numpy().astype(np.float64) / 255
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    windows = np.lib.stride_tricks.sliding_window_view(luma, (32, 32))
    infrared = np.lib.stride_tricks.sliding_window_view(pair.infrared[0].numpy() / 255, (32, 32))
    crops = Crops([pair], 32, 1, augment=False, seed=0)
    places = set()
    for number in range(12):
        of_visible, of_infrared = (crop[0].numpy() for crop in crops[number])
        distance = np.abs(windows - of_visible).max((2, 3))
        place = np.unravel_index(distance.argmin(), distance.shape)
        assert distance[place] < 1e-6
        assert np.abs(infrared[place] - of_infrared).max() < 1e-6
        places.add(place)
    assert len(places) > 6


def test_augmented_crops_stay_within_the_image():
    pair = coloured()
    plain = torch.cat(Crops([pair], 32, 1, augment=False, seed=0)[0])
    for number in range(6):
        crop = torch.cat(Crops([pair], 32, 1, augment=True, seed=0)[number])
        assert crop.shape == plain.shape
        assert not torch.equal(crop, plain)
        assert 0 < crop.mean() < 1
        assert crop.max() <= 1


def test_crops_of_files_are_those_of_the_same_pairs_in_memory(tmp_path):
    pair = coloured()
    write(tmp_path / "vi" / "scene.png", pair.visible.permute(1, 2, 0).numpy())
    write(tmp_path / "ir" / "scene.png", pair.infrared[0].numpy())
    from_files, _ = open_pairs(tmp_path, limit=10)
    for augment in (False, True):
        options = {"side": 32, "per_pair": 2, "augment": augment, "seed": 3}
        first, second = Crops([pair], **options)[5], Crops(from_files, **options)[5]
        assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("side", [32, 64])
def test_all_crops_of_a_batch_have_one_size(side):
    crops = Crops([*draw_pairs(2), coloured(100, 70)], side, 1, augment=False, seed=0)
    (batch,) = batches(first_step=0, last_step=1, parts=1, batch=3, rank=0, world=1)
    assert [crops[number][0].shape for number in batch] == [(1, side, side)] * 3


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
