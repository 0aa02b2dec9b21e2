"""One training for many sentences, and the program that shows it."""

import pytest
import torch
from drawn import draw_pairs, save_pairs

import one_network_many_sentences
from clip_fusion_loss import LanguageDrivenFusionLoss
from conftest import draw_images
from parts.data.images import read_image
from parts.networks.conditioned import Conditioned
from parts.networks.densefuse import DenseFuse
from parts.training import short
from parts.training.drawn_sentences import DrawnSentences


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(short, "BATCH_SIZE", 2)
    monkeypatch.setattr(short, "CROP_SIDE", 48)


def test_each_image_is_judged_by_the_sentence_its_network_was_told():
    criterion = LanguageDrivenFusionLoss.tiny(
        patch_weight=0.0, generator=torch.Generator().manual_seed(0)
    )
    bank = criterion.embed(["a dark image", "a bright image", "a blurry image"])
    told = []

    class Network(torch.nn.Module):
        def forward(self, visible, infrared, vectors):
            told.append(vectors)
            return (visible + infrared) / 2

    _, visible, infrared = draw_images(4)
    both = DrawnSentences(Network(), criterion, bank)
    torch.manual_seed(0)
    fused = both(visible, infrared)
    indices = (told[0] @ bank.text_direction.T).argmax(1)
    assert len(set(indices.tolist())) > 1
    torch.testing.assert_close(told[0], bank.text_direction[indices])
    expected = criterion.terms(fused, visible, infrared, objectives=bank[indices])
    torch.testing.assert_close(both.terms(fused, visible, infrared), expected)


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, (1 / 3, 1 / 3, 1 / 3)), ([1e6, 5e5, 0.5], (2 / 3, 1 / 3, 0))]
)
def test_sentences_are_drawn_by_weight(weights, expected):
    criterion = LanguageDrivenFusionLoss.tiny()
    bank = criterion.embed(["a dark image", "a bright image", "a blurry image"])
    told = []
    network = lambda visible, infrared, vectors: told.append(vectors)  # noqa: E731
    drawn = DrawnSentences(torch.nn.Module(), criterion, bank, weights)
    drawn.network.forward = network
    torch.manual_seed(0)
    for _ in range(1000):
        drawn(*torch.zeros(2, 2, 1, 1, 1))
    indices = (torch.stack(told) @ bank.text_direction.T).argmax(2)
    frequencies = torch.bincount(indices.flatten(), minlength=3) / 2000
    # Four standard deviations of a share of 1000.
    torch.testing.assert_close(frequencies, torch.tensor(expected), rtol=0, atol=0.06)
    if weights is None:  # none is drawn twice before another is
        assert (indices[:, 0] != indices[:, 1]).all()


def test_sentences_are_spread_over_steps_of_one_image():
    criterion = LanguageDrivenFusionLoss.tiny()
    bank = criterion.embed(["a dark image", "a bright image", "a blurry image", "a sharp image"])
    torch.manual_seed(0)
    drawn = DrawnSentences(torch.nn.Module(), criterion, bank)
    told = []
    drawn.network.forward = lambda visible, infrared, vectors: told.append(vectors[0])
    for _ in range(60):
        drawn(*torch.zeros(2, 1, 1, 1, 1))
    indices = (torch.stack(told) @ bank.text_direction.T).argmax(1)
    for start in range(40):  # drawn at random, some sentence would be missing from every tenth
        counts = torch.bincount(indices[start : start + 20], minlength=4)
        assert counts.min() >= 4
        assert counts.max() <= 6
    drawn.calls = 7
    drawn(*torch.zeros(2, 1, 1, 1, 1))
    assert told[-1].equal(told[7])


def test_training_trains_what_takes_the_vector():
    criterion = LanguageDrivenFusionLoss.tiny(generator=torch.Generator().manual_seed(0))
    bank = criterion.embed(["a dark image", "a bright image"])
    network = Conditioned(DenseFuse(), bank.text_direction.shape[1])
    drawn = DrawnSentences(network, criterion, bank)
    history = short.train(drawn, drawn, draw_pairs(2), steps=2, seed=0, device=torch.device("cpu"))
    assert len(history["total"]) == 2
    assert network.modulation[-1].weight.abs().sum() > 0


def test_the_program(tmp_path, capsys):
    folder = save_pairs(draw_pairs(2), tmp_path)
    options = ["--pairs", folder, "--out", tmp_path / "out", "--steps", "1", "--device", "cpu"]
    options += ["--prompt", "a dark image", "--prompt", "a bright image"]
    one_network_many_sentences.main([str(option) for option in options])
    said = capsys.readouterr().out.splitlines()
    assert said.pop(0) == "2 pairs, one training of 1 steps for 2 sentences on cpu"
    assert [line.split(":")[0] for line in said[:7]] == [
        "a dark image", "17%", "33%", "50%", "67%", "83%", "a bright image",
    ]  # fmt: skip
    for name in ("sentences.png", "blend.png"):
        assert str(tmp_path / "out" / name) in said
        assert read_image(tmp_path / "out" / name).shape[2] > 500
