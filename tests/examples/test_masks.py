"""Regions: drawn, from label images and masks, and where it is hot."""

import numpy as np
import pytest
import torch
from image_files import COLOUR, GREY, noise, save_pairs, write
from PIL import Image

from masks import hot_region, open_labels, random_regions, read_labels, region_of
from pairs import Pair, UnusableImageError, find_pairs, folders_of


def pair_of(infrared):
    infrared = torch.from_numpy(infrared)[None]
    return Pair("scene", infrared.clone(), infrared)


def test_drawn_regions_are_of_three_kinds_and_of_some_size():
    counts = [0, 0, 0]
    for seed in range(300):
        labels = random_regions(64, torch.Generator().manual_seed(seed))
        assert (labels.shape, labels.dtype) == ((64, 64), torch.int64)
        assert torch.equal(labels, random_regions(64, torch.Generator().manual_seed(seed)))
        share = labels.double().mean()
        border = torch.cat([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        if share == 0:
            counts[0] += 1
        else:
            assert 0.04 < share < 0.95
            corners = labels[[0, 0, -1, -1], [0, -1, 0, -1]]
            counts[1 if corners.any() or border.double().mean() > 0.5 else 2] += 1
    assert [count / 300 for count in counts] == pytest.approx([0.6, 0.2, 0.2], abs=0.1)


def test_label_images_of_all_kinds(tmp_path):
    labels = np.zeros((40, 48), np.uint8)
    labels[10:30, 20:] = 7
    palette = Image.fromarray(labels, "P")
    palette.putpalette([value for colour in range(256) for value in (colour, 255 - colour, 9)])
    kinds = {
        "palette": palette,
        "grey": Image.fromarray(labels),
        "deep": Image.fromarray(labels.astype(np.uint16) * 300),
        "colour": Image.fromarray(np.stack([labels, labels * 2, 255 - labels], -1)),
        "binary": Image.fromarray(labels > 0),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        found = read_labels(tmp_path / f"{name}.png")
        assert found.dtype == torch.int64
        assert np.array_equal(found.unique(return_inverse=True)[1].numpy(), labels // 7), name
    assert read_labels(tmp_path / "palette.png").max() == 7
    assert read_labels(tmp_path / "deep.png").max() == 2100


def test_label_images_belong_to_pairs_by_name(tmp_path):
    files = find_pairs(folders_of(save_pairs(tmp_path, count=2)))
    write(tmp_path / "seg" / "SCENE1.png", np.full((48, 56), 5, np.uint8))
    with pytest.raises(ValueError, match="seg must hold a label image .* none for scene0"):
        open_labels(tmp_path / "seg", files)
    write(tmp_path / "seg" / "scene0.png", np.full((56, 48), 4, np.uint8))
    with pytest.raises(UnusableImageError, match="scene0.png: is 48 x 56, the pair 56 x 48 pixels"):
        open_labels(tmp_path / "seg", files)
    write(tmp_path / "seg" / "scene0.png", np.full((48, 56), 4, np.uint8))
    labels = open_labels(tmp_path / "seg", files)
    assert [int(image.max()) for image in labels] == [4, 5]
    with pytest.raises(NotADirectoryError, match="there is no folder .*masks"):
        open_labels(tmp_path / "masks", files)


@pytest.mark.parametrize("white", [1, 255])
def test_masks_for_all_pairs_or_each(tmp_path, white):
    pair = pair_of(noise(0, 40, 48))
    mask = np.zeros((40, 48), np.uint8)
    mask[5:9, 7:30] = white
    write(tmp_path / "one.png", mask)
    write(tmp_path / "each" / "scene.bmp", 1 - np.minimum(mask, 1))
    assert np.array_equal(region_of(pair, str(tmp_path / "one.png")).numpy(), mask > 0)
    assert np.array_equal(region_of(pair, str(tmp_path / "each")).numpy(), mask == 0)


def test_masks_that_cannot_be_used(tmp_path):
    pair = pair_of(noise(0, 40, 48))
    write(tmp_path / "empty.png", np.zeros((40, 48), np.uint8))
    write(tmp_path / "small.png", COLOUR[:20])
    write(tmp_path / "each" / "other.png", GREY)
    for name, message in (
        ("empty.png", "empty.png: is an empty mask; paint the region white"),
        ("small.png", "small.png: is 48 x 20, the pair 48 x 40 pixels"),
        ("each", "scene: has no mask in .*each"),
        ("no.png", "no.png: cannot be read: .*No such file"),
    ):
        with pytest.raises(UnusableImageError, match=message):
            region_of(pair, str(tmp_path / name))


def test_hot_is_the_person_and_not_its_noise():
    random = np.random.default_rng(0)
    levels = random.normal(90, 6, (120, 160))
    levels[:, :60] += 15  # a warm wall
    levels[40:80, 100:112] = random.normal(230, 6, (40, 12))  # a person in a coat, half as warm
    levels[80:90, 100:112] = random.normal(160, 6, (10, 12))
    levels[10, 10] = 255
    person = np.zeros((120, 160), bool)
    person[40:90, 100:112] = True
    hot = hot_region(torch.from_numpy(levels.clip(0, 255).astype(np.uint8))[None]).numpy()
    assert hot[person].mean() > 0.95
    near = np.zeros_like(person)
    near[38:92, 98:114] = True
    assert not hot[~near].any()
    assert np.array_equal(region_of(pair_of(levels.clip(0, 255).astype(np.uint8)), "hot"), hot)


@pytest.mark.parametrize("spread", [0, 4])
def test_nothing_is_hot_in_a_flat_image(spread):
    levels = np.random.default_rng(0).normal(90, spread, (80, 80)).astype(np.uint8)
    assert hot_region(torch.from_numpy(levels)[None]) is None
