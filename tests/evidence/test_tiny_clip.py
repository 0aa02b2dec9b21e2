"""The recipe of the bundled CLIP: scenes, truths, degradations, and the training."""

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_fusion_loss import FusionObjective
from tiny_clip import captions as c
from tiny_clip import losses
from tiny_clip.data import SceneBank, Variant, draw_batch
from tiny_clip.degradations import ARTEFACTS, QUALITY, degrade, vary_look
from tiny_clip.model import Config, build_model, export
from tiny_clip.renderer import fuse_by_hand, render_pairs, render_scene
from tiny_clip.train import Trainer

TINY = Config(
    steps=4,
    batch=2,
    captions=16,
    perturbed=0.5,
    image_size=32,
    embed_dim=16,
    vision_width=8,
    text_width=16,
    text_layers=1,
)


@pytest.fixture(scope="module")
def bank():
    scenes = [render_scene(seed, 64) for seed in range(3)]
    images = np.stack([np.stack([s.visible, s.infrared, s.fused]) for s in scenes])
    flags = np.array([[s.night, s.hazy, s.has_targets, False] for s in scenes])
    return SceneBank((images * 255).astype(np.uint8), flags)


def test_render_pairs_shape_range_and_seed():
    visible, infrared = render_pairs(3, size=48, seed=5)
    for images in (visible, infrared):
        assert images.shape == (3, 1, 48, 48)
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
    again = render_pairs(3, size=48, seed=5)
    assert torch.equal(visible, again[0])
    assert torch.equal(infrared, again[1])
    assert not torch.equal(visible, render_pairs(3, size=48, seed=6)[0])
    assert torch.equal(visible[:1], render_pairs(1, size=48, seed=5)[0])  # a prefix of the series


@pytest.mark.parametrize("seed", range(12))
def test_scenes_of_all_kinds_are_finite_images(seed):
    scene = render_scene(seed, 64)
    for image in (scene.visible, scene.infrared, scene.fused):
        assert image.shape == (64, 64)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert 0 <= image.min() <= image.max() <= 1
        assert image.std() > 0.005


def test_hand_fusion_takes_texture_from_visible_and_targets_from_infrared():
    rng = np.random.default_rng(0)
    visible = np.full((96, 96), 0.4, np.float32)
    visible[:, :48] += 0.2 * (np.indices((96, 48)).sum(0) % 4 < 2)
    infrared = np.full((96, 96), 0.3, np.float32)
    infrared[40:56, 64:80] = 1.0
    fused = fuse_by_hand(visible, infrared, rng)
    assert fused[:, :40].std() > 0.05
    assert fused[44:52, 68:76].mean() > fused[10:20, 68:76].mean() + 0.2


def test_no_caption_is_both_true_and_false_and_knowledge_decides():
    captions = c.build_captions()
    allowed = torch.stack([c.mask(caption.asserts) for caption in captions])
    generator = torch.Generator().manual_seed(0)
    possible = torch.rand(50, c.WIDTH, generator=generator) < 0.5
    for columns in c.SLICES.values():  # something is always possible
        possible[:, columns.start] |= ~possible[:, columns].any(1)
    true, false = c.truth(possible, allowed)
    assert not (true & false).any()

    # Of an image of which all is known, every caption is either true or false.
    known = torch.zeros(20, c.WIDTH, dtype=torch.bool)
    for columns in c.SLICES.values():
        width = columns.stop - columns.start
        known[torch.arange(20), columns.start + torch.randint(width, (20,))] = True
    true, false = c.truth(known, allowed)
    assert (true ^ false).all()

    # Of an image of which nothing is known, only captions that assert nothing are decided.
    true, false = c.truth(torch.ones(1, c.WIDTH, dtype=torch.bool), allowed)
    assert not false.any()
    assert [cap.text for cap, hit in zip(captions, true[0], strict=True) if hit] == [
        cap.text for cap in captions if not cap.asserts
    ]


def test_truth_of_single_statements():
    def verdict(image, caption):
        true, false = c.truth(c.mask(image)[None], c.mask(caption)[None])
        return {(True, False): True, (False, True): False, (False, False): None}[
            (true.item(), false.item())
        ]

    dark = {"exposure": ("dark",)}
    assert verdict(dark, dark) is True
    assert verdict({"exposure": ("bright",)}, dark) is False
    assert verdict({}, dark) is None
    assert verdict({"exposure": ("normal", "bright")}, dark) is False
    assert verdict({"exposure": ("dark", "normal")}, dark) is None
    assert verdict({**dark, "noise": ("noisy",)}, {**dark, "noise": ("clean",)}) is False
    with pytest.raises(ValueError, match="exposure"):
        c.mask({"exposure": ("purple",)})


def test_paper_texts_prompts_and_objectives_are_captions():
    texts = {caption.text for caption in c.build_captions()}
    default = FusionObjective()
    assert {*default.fused, *default.visible, *default.infrared} <= texts
    assert set(c.OBJECTIVES) <= texts
    assert {text for values in c.PROMPTS.values() for text in values} <= texts
    assert [len(texts) for texts in c.PROMPTS.values()] == [len(v) for v in c.ATTRIBUTES.values()]


def test_prompts_assert_the_value_they_stand_for():
    captions = {caption.text: caption for caption in c.build_captions()}
    for attribute, texts in c.PROMPTS.items():
        for value, text in zip(c.ATTRIBUTES[attribute], texts, strict=True):
            assert captions[text].asserts[attribute] == (value,), text


def test_vocabulary_holds_every_word_of_every_caption():
    captions = c.build_captions()
    known = set(c.vocabulary(captions))
    for caption in captions:
        assert set(re.findall(r"\w+", caption.text.lower())) <= known
    assert {"clear", "detailed", "sharp", "blurry", "dark", "bright", "contrast", "noisy", "hazy",
            "salient", "thermal"} <= known  # fmt: skip
    assert len({caption.text for caption in captions}) == len(captions)


@pytest.mark.parametrize("name", [*QUALITY, *ARTEFACTS])
def test_degradations_keep_shape_and_range_and_assert_themselves(name):
    degradation = (QUALITY | ARTEFACTS)[name]
    generator = torch.Generator().manual_seed(0)
    images = render_pairs(4, size=48)[0]
    possible = torch.ones(4, c.WIDTH, dtype=torch.bool)
    chosen = torch.tensor([0, 0, -1, 0])
    result, described = degrade(images, possible, chosen, [degradation], generator)
    assert result.shape == images.shape
    assert 0 <= result.min() <= result.max() <= 1
    assert not torch.equal(result[0], images[0])
    assert torch.equal(result[2], images[2])
    assert torch.equal(described[0], degradation.asserted)
    assert described[2].all()


def test_varied_look_forgets_what_it_touches_and_keeps_the_modality():
    generator = torch.Generator().manual_seed(0)
    images = render_pairs(12, size=48)[0]
    known = torch.stack([c.mask({name: values[:1] for name, values in c.ATTRIBUTES.items()})] * 12)
    result, possible = vary_look(images, known, generator)
    assert result.shape == images.shape
    assert 0 <= result.min() <= result.max() <= 1
    touched = (result != images).flatten(1).any(1)
    assert 0 < touched.sum() < 12
    assert torch.equal(possible[~touched], known[~touched])
    assert torch.equal(possible[:, c.SLICES["modality"]], known[:, c.SLICES["modality"]])
    assert possible[..., c.SLICES["sharpness"]].all(-1).any()


def test_batch_is_complete_and_decided_by_its_generator(bank):
    batch = draw_batch(bank, 4, 32, torch.Generator().manual_seed(3))
    again = draw_batch(bank, 4, 32, torch.Generator().manual_seed(3))
    assert batch.images.shape == (4, len(Variant), 32, 32)
    assert batch.possible.shape == (4, len(Variant), c.WIDTH)
    assert 0 <= batch.images.min() <= batch.images.max() <= 1
    assert torch.equal(batch.images, again.images)
    assert torch.equal(batch.possible, again.possible)
    for columns in c.SLICES.values():
        assert batch.possible[..., columns].any(-1).all()
    objective = c.mask(next(x.asserts for x in c.build_captions() if x.text == c.PAPER_FUSED))
    true, false = c.truth(batch.possible.flatten(0, 1), objective[None])
    assert true.view(4, -1)[:, Variant.FUSED].all()
    assert false.view(4, -1)[:, [Variant.AVERAGE, Variant.ARTEFACT, Variant.SPOILT]].all()


def test_direction_losses_agree_with_the_package():
    from clip_fusion_loss.functional import direction, direction_loss

    vectors = torch.nn.functional.normalize(
        torch.randn(9, 16, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    images, sources, objectives, texts = vectors[:2], vectors[2:4], vectors[4:7], vectors[7:]
    result = losses.direction_losses(images[None], sources[None], objectives, texts)
    assert result.shape == (1, 2, 3)
    for k in range(2):
        for o in range(3):
            expected = direction_loss(
                images[k], *sources, *(direction(text, objectives[o]) for text in texts)
            )
            torch.testing.assert_close(result[0, k, o], expected, atol=1e-4, rtol=0)


def test_contrastive_ignores_pairs_of_unknown_truth():
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(4, 8, generator=generator), dim=-1)
    true = torch.zeros(3, 4, dtype=torch.bool)
    true[[0, 1, 2], [0, 1, 2]] = True
    false = ~true
    false[:, 3] = False
    scale = torch.tensor(10.0)
    moved = texts.clone()
    moved[3] = -texts[3]
    torch.testing.assert_close(
        losses.contrastive(images, texts, true, false, scale),
        losses.contrastive(images, moved, true, false, scale),
    )


def _train(bank, **changes):
    trainer = Trainer(replace(TINY, **changes), bank)
    return trainer, trainer.run()


def test_training_is_decided_by_its_seed(bank):
    trainer, terms = _train(bank)
    assert sum(terms.values()) == pytest.approx(2 * terms["total"], rel=1e-3)
    again, other = (_train(bank, seed=seed)[0].average.state_dict() for seed in (0, 1))
    for name, value in trainer.average.state_dict().items():
        assert torch.equal(value, again[name]), name
    assert not torch.equal(other["logit_scale"], again["logit_scale"])


def test_exported_folder_loads_with_open_clip(bank, tmp_path):
    import open_clip

    captions = c.build_captions()
    trainer, _ = _train(bank, steps=1)
    export(trainer.average, TINY, captions, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "SHA256SUMS",
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "vocabulary.txt",
    ]
    model = open_clip.create_model(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([c.PAPER_FUSED])
    assert tokens.shape == (1, TINY.context)
    torch.testing.assert_close(
        model.encode_text(tokens), trainer.average.encode_text(tokens), atol=2e-2, rtol=2e-2
    )
    assert (tmp_path / "vocabulary.txt").read_text().split() == c.vocabulary(captions)
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_token_rows_without_training_stay_equal(bank):
    trainer, _ = _train(bank, steps=2)
    unused = torch.ones(49408, dtype=torch.bool)
    unused[trainer.texts.tokens.unique()] = False
    assert unused.sum() > 49000
    assert (trainer.average.token_embedding.weight[unused] == 0).all()
    fresh = build_model(TINY, trainer.texts)
    assert (fresh.token_embedding.weight[~unused] != 0).any()
