"""The short training, its crops and sentences, and the loss by the name of its CLIP."""

import pytest
import torch
import torch.nn.functional as F
from image_files import save_pairs

from clip_fusion_loss import (
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    StructureLoss,
)
from networks.densefuse import DenseFuse
from networks.unet import FusionUNet
from pairs import Pair, luminance, open_pairs
from training import (
    Crops,
    DrawnSentences,
    build_criterion,
    load_clip,
    read_sentences,
    region_gap,
    train,
    with_and_without,
)

CPU = torch.device("cpu")


@pytest.fixture
def opened(tmp_path):
    return open_pairs(save_pairs(tmp_path / "pairs", size=(40, 64)))


@pytest.fixture(scope="module")
def criterion():
    return build_criterion("tiny", generator=torch.Generator(), num_patches=2)


def test_crops_are_the_same_windows_of_both_images(opened):
    crops = Crops(opened, side=32, per_pair=2, augment=False, seed=3)
    assert len(crops) == 6
    for number in range(12):
        visible, infrared = crops[number]
        assert visible.shape == infrared.shape == (1, 32, 32)
        ((index, (top, left)),) = (
            (index, place)
            for index, pair in enumerate(opened)
            for place in shows(pair.visible, visible)
        )
        window = luminance(opened[index].infrared)[:, top : top + 32, left : left + 32]
        assert torch.equal(window, infrared)


def shows(image, crop):
    """Where in the image the crop is: (top, left) of each place."""
    side = crop.shape[-1]
    windows = luminance(image)[0].unfold(0, side, 1).unfold(1, side, 1)
    return torch.nonzero((windows == crop).flatten(2).all(-1)).tolist()


def test_an_epoch_has_as_many_crops_of_each_pair_in_another_order(opened):
    crops = Crops(opened, side=40, per_pair=4, augment=False, seed=0)
    seen = [[], []]
    for number in range(24):
        visible, _ = crops[number]
        (index,) = (i for i, pair in enumerate(opened) if shows(pair.visible, visible))
        seen[number // 12].append(index)
    assert [sorted(epoch) for epoch in seen] == [[0] * 4 + [1] * 4 + [2] * 4] * 2
    assert seen[0] != seen[1]


def test_crops_depend_on_number_and_seed_alone(opened):
    first, second, other = (Crops(opened, 32, 2, True, seed) for seed in (0, 0, 1))
    assert torch.equal(first[5][0], [second[n] for n in (1, 3, 5)][2][0])
    assert not torch.equal(first[5][0], other[5][0])
    assert not torch.equal(first[0][0], first[1][0])


@pytest.mark.parametrize("augment", [True, False])
def test_small_images_are_enlarged(opened, augment):
    visible, infrared = Crops(opened, 100, 1, augment, 0)[0]
    assert visible.shape == infrared.shape == (1, 100, 100)


@pytest.mark.parametrize(("augment", "side"), [(False, 32), (True, 32), (False, 60), (True, 60)])
def test_labels_move_along_with_their_crops(augment, side):
    """Each region has a grey level of its own, so the crop tells which label a pixel has."""
    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(3, (5, 8), generator=generator).kron(torch.ones(8, 8)).long() * 100
    grey = regions[None].to(torch.uint8)
    crops = Crops(
        [Pair("scene", grey, grey)], side, 20, augment, 0, [regions + 3000], weights=[1.0] * 50
    )
    several = 0
    for number in range(20):
        visible, _, rows = crops[number]
        assert (rows.shape, rows.dtype) == ((side, side), torch.int64)
        assert torch.equal(rows, crops[number][2])
        if len(rows.unique()) == 1:
            continue
        several += 1
        levels = (255 * visible[0]).round().long()
        inside = -F.max_pool2d(
            -torch.isin(levels, torch.tensor([0, 100, 200])).float()[None], 3, 1, 1
        )
        pairs = torch.stack([levels, rows])[:, inside[0] > 0].unique(dim=1)
        assert pairs.shape[1] == len(pairs[0].unique()) == len(pairs[1].unique())
    assert 4 <= several <= 12  # the others have one sentence everywhere


def test_drawn_regions_have_sentences_by_their_weights(opened):
    crops = Crops(opened, 32, 50, False, 0, "random", weights=[3.0, 1.0, 1.0])
    drawn = [crops[number][2].unique().tolist() for number in range(150)]
    assert {len(rows) for rows in drawn} == {1, 2}
    alone = [rows[0] for rows in drawn if len(rows) == 1]
    assert alone.count(0) / len(alone) == pytest.approx(0.6, abs=0.2)
    one = Crops(opened, 32, 50, False, 0, "random", weights=[1.0])
    assert not any(one[number][2].any() for number in range(9))


def test_the_gap_is_to_images_fused_for_each_label_alone():
    torch.manual_seed(0)
    network = FusionUNet(8)
    torch.nn.init.normal_(network.modulation[-1].weight, std=0.5)
    visible, infrared = torch.rand(2, 3, 1, 32, 32)
    vectors = F.normalize(torch.randn(5, 8), dim=1)
    regions = torch.full((3, 32, 32), 4)
    regions[1, :, 20:] = 2
    regions[2, 8:] = 0
    regions[2, :, 25:] = 3
    fused = network(visible, infrared, vectors, regions=regions)
    images = [network(visible, infrared, vector[None]) for vector in vectors]
    expected = 0.0
    for image, row, column in torch.cartesian_prod(*map(torch.arange, regions.shape)).tolist():
        alone = images[regions[image, row, column]][image, 0, row, column]
        expected += (fused[image, 0, row, column] - alone).abs().item() / regions.numel()
    gap = region_gap(network, fused, visible, infrared, vectors, regions)
    assert gap.item() == pytest.approx(expected, rel=1e-4)
    same = network(visible[:1], infrared[:1], vectors, regions=regions[:1])
    assert region_gap(network, same, visible[:1], infrared[:1], vectors, regions[:1]) < 1e-6


def test_sentences_are_drawn_evenly_by_their_weights(criterion):
    texts = ["a dark image", "a bright image", "a noisy image"]
    bank = criterion.embed(texts)
    torch.manual_seed(0)
    drawn = DrawnSentences(bank, [2.0, 1.0, 1.0])
    rows = []
    for _ in range(100):
        batch = drawn(4)
        names = [objective.fused[0] for objective in batch.objectives]
        assert names.count(texts[0]) == 2, "as even as can be in every batch"
        assert batch.text_direction.shape[0] == 4
        rows += names
    assert [rows.count(text) for text in texts] == [200, 100, 100]
    single = DrawnSentences(bank)
    names = [single(1).objectives[0].fused[0] for _ in range(30)]
    assert all(9 <= names.count(text) <= 11 for text in texts)
    again = DrawnSentences(bank)
    again._first, again.calls = single._first, 7  # as a resumed training does
    assert again(1).objectives[0].fused[0] == names[7]


def test_training_is_that_of_a_plain_loop(opened, criterion):
    torch.manual_seed(0)
    network = DenseFuse()
    plain = DenseFuse()
    plain.load_state_dict(network.state_dict())
    criterion.generator.manual_seed(0)
    history = train(network, criterion, opened, steps=2, seed=5, device=CPU, crop=32, max_norm=1.0)
    criterion.generator.manual_seed(0)
    crops = Crops(opened, 32, 10, False, 5)
    optimizer = torch.optim.Adam(plain.parameters(), lr=2e-3)
    for step in range(2):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1, 0.5)[step]  # on a cosine
        batch = [crops[3 * step + index] for index in range(3)]
        visible, infrared = (torch.stack(images) for images in zip(*batch, strict=True))
        terms = criterion.terms(fused=plain(visible, infrared), visible=visible, infrared=infrared)
        optimizer.zero_grad()
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        for name, value in terms._asdict().items():
            assert history[name][step] == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(dict(network.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("regions", [None, "random"])
def test_training_for_many_sentences(opened, criterion, regions):
    bank = criterion.embed(["a dark image", "a bright image"])
    torch.manual_seed(0)
    network = FusionUNet(bank.text_direction.shape[1])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    given = {"steps": 2, "seed": 0, "device": CPU, "crop": 32, "sentences": bank}
    history = train(network, criterion, opened, regions=regions, **given)
    assert {len(values) for values in history.values()} == {2}
    moved = [name for name, value in network.state_dict().items() if not value.equal(before[name])]
    assert any("modulation" in name for name in moved)


def test_a_loss_that_is_not_finite_stops(opened, criterion):
    network = DenseFuse()
    torch.nn.init.constant_(network.decoder[-1].bias, float("nan"))
    with pytest.raises(ValueError, match="the loss is nan in step 1; try a lower learning rate"):
        train(network, criterion, opened, steps=1, seed=0, device=CPU, crop=32)


def test_the_loss_by_the_name_of_its_clip(tmp_path, small_architecture, clip_model):
    tuned = LanguageDrivenFusionLoss.tiny()
    built = build_criterion("tiny", direction_weight=None, patch_weight=3.0)
    assert built.direction_weight == tuned.direction_weight
    assert built.patch_weight == 3.0
    assert isinstance(built.regularizer, StructureLoss)
    assert build_criterion("tiny", regularizer="none", regions=True).regularizer is None
    for_regions = build_criterion("tiny", regions=True, patch_weight=7.0)
    assert (for_regions.num_patches, for_regions.patch_weight) == (4, 7.0)
    torch.save(clip_model.state_dict(), tmp_path / "clip.pt")
    name = f"{small_architecture}={tmp_path / 'clip.pt'}"
    built = build_criterion(name, regularizer="intensity")
    divided = build_criterion(name, regularizer="none", regions=True)
    assert isinstance(built.regularizer, IntensityGradientLoss)
    assert (built.num_patches, divided.num_patches) == (2, 32)
    assert load_clip(name).fingerprint == built.encoder.fingerprint
    with pytest.raises(ValueError, match="--encoder must be the CLIP of the loss: tiny, .* got no"):
        load_clip("no")


def test_files_of_sentences(tmp_path):
    path = tmp_path / "sentences.txt"
    text = "\ufeff# seasons\na dark image\n\n 2.5 |  a cat \n@night's \\path\n.5|a cat|not: a dog"
    path.write_text(f"{text}\na cat | not: a dog | not:a bird\n", "utf-8")
    sources = FusionObjective(visible="a photo", opposite="a fish")

    def told(fused, *opposite):
        return FusionObjective(fused, visible="a photo", opposite=opposite)

    assert list(read_sentences(path, sources).items()) == [
        (told("a dark image"), 1),
        (told("a cat"), 2.5),
        (told("@night's \\path"), 1),
        (told("a cat", "a dog"), 0.5),
        (told("a cat", "a dog", "a bird"), 1),
    ]


def test_titles_tell_opposites():
    both = with_and_without(["a cat", "a cat", "a dog"], ["a fish", "a bird"])
    told = ("a cat", "a cat, not a fish, a bird", "a dog", "a dog, not a fish, a bird")
    assert tuple(both) == told
    assert both[told[1]] == FusionObjective("a cat", opposite=("a fish", "a bird"))
    assert list(with_and_without(["a cat"], None)) == ["a cat"]
