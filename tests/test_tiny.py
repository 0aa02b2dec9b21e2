"""The embedded CLIP: what ships, what it knows, and that it judges images."""

import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

import clip_fusion_loss
from clip_fusion_loss import FrozenCLIP, FusionObjective, LanguageDrivenFusionLoss
from tiny_clip.evaluate import evaluate, load_pairs
from tiny_clip.renderer import render_pairs

FOLDER = Path(clip_fusion_loss.__file__).parent / "assets" / "tiny_clip"


@pytest.fixture(scope="module")
def tiny():
    return FrozenCLIP.tiny()


def test_small_enough_to_ship():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8e6


def test_loads_through_open_clip_itself(tiny):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    tokens = open_clip.get_tokenizer(f"local-dir:{FOLDER}")(["an infrared image"])
    vector = model.eval().encode_text(tokens, normalize=True)
    torch.testing.assert_close(vector, tiny.encode_text("an infrared image"))


def test_knows_the_papers_words(tiny):
    objective = FusionObjective()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.encode_text([*objective.fused, *objective.visible, *objective.infrared])


def test_warns_of_words_it_does_not_know():
    with pytest.warns(UserWarning, match=r"'dancing', 'elephant', 'purple'.*from_pretrained"):
        LanguageDrivenFusionLoss.tiny("a purple elephant dancing")


def test_says_what_it_is_for():
    for build in (FrozenCLIP.tiny, LanguageDrivenFusionLoss.tiny):
        assert "demonstrations and continuous integration" in " ".join(build.__doc__.split())


def test_options_win_over_the_calibrated_weights(tiny):
    calibrated = LanguageDrivenFusionLoss.tiny(encoder=tiny)
    criterion = LanguageDrivenFusionLoss.tiny(encoder=tiny, patch_weight=7.5, num_patches=3)
    assert criterion.encoder is tiny
    assert (criterion.patch_weight, criterion.num_patches) == (7.5, 3)
    for name in ("direction_weight", "similarity_weight", "regularizer_weight", "patch_reduction"):
        assert getattr(criterion, name) == getattr(calibrated, name)
    assert calibrated.patch_weight != 7.5


@pytest.mark.parametrize(
    ("prompt", "change"),
    [
        ("a blurry dark image", lambda image: 0.4 * nn.functional.avg_pool2d(image, 5, 1, 2)),
        ("a noisy image", lambda image: (image + 0.15 * torch.randn_like(image)).clamp(0, 1)),
    ],
)
def test_an_image_as_the_prompt_says_has_less_loss(tiny, prompt, change):
    torch.manual_seed(0)
    visible, infrared = render_pairs(8, size=96, seed=3)
    average = (visible + infrared) / 2
    criterion = LanguageDrivenFusionLoss.tiny(prompt, encoder=tiny, patch_weight=0)
    as_told = criterion.terms(change(average), visible, infrared).direction
    assert as_told < criterion.terms(average, visible, infrared).direction - 0.2


def test_training_follows_it(tiny):
    torch.manual_seed(0)
    visible, infrared = render_pairs(2, size=64, seed=0)
    criterion = LanguageDrivenFusionLoss.tiny(
        encoder=tiny, num_patches=4, generator=torch.Generator().manual_seed(0)
    )
    network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = criterion(network(torch.cat([visible, infrared], 1)), visible, infrared)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_real_pairs(tiny, real_pairs):
    """The floor under what examples/tiny_clip/README.md reports, on every third pair."""
    tables = evaluate(tiny, load_pairs(real_pairs / "roadscene")[::3])
    for row in tables["degraded below original"].values():
        assert min(row.values()) >= 0.95
    assert tables["modality"]["infrared vs visible"]["accuracy"] >= 0.8
    ranking = tables[f'direction loss, "{FusionObjective().fused[0]}"']
    for worse in ("harsh contrast", "over-sharpened", "embossed", "noisy", "average"):
        assert ranking["good"]["loss"] < ranking[worse]["loss"]


def test_building_a_loss_draws_no_random_numbers():
    before = torch.get_rng_state()
    LanguageDrivenFusionLoss.tiny()
    assert torch.equal(torch.get_rng_state(), before)
