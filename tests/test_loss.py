"""LanguageDrivenFusionLoss against a float64 reference, and as part of a training program."""

import copy
import pickle

import pytest
import torch
from torch import nn

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    functional,
)
from conftest import build_clip, draw_images
from reference import Reference

PAPER = ("a clear image with detailed background and salient objects",)
VISIBLE = ("a visible gray image",)
INFRARED = ("an infrared image",)


def make(encoder, **options):
    options.setdefault("num_patches", 6)
    options.setdefault("generator", torch.Generator().manual_seed(1))
    return LanguageDrivenFusionLoss(encoder=encoder, **options)


def same_transforms(criterion, images, seed=1):
    """The maps that `criterion` draws next for `images` from a generator seeded with `seed`."""
    short = round(32 / criterion.patch_scale[0])
    size = functional.shrink_images(images, short).shape[-2:]
    return functional.random_patch_transforms(
        len(images),
        criterion.num_patches,
        tuple(size),
        scale=criterion.patch_scale,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("over", ["all", "kept"])
@pytest.mark.parametrize(
    ("channels", "size", "threshold"),
    [
        ((1, 1, 1), (40, 48), 6.0),
        ((3, 3, 1), (33, 57), 5.5),
        ((1, 3, 1), (16, 21), 5.7),
        ((3, 1, 3), (150, 97), 5.6),
    ],
)
def test_terms_and_gradient_equal_the_reference(
    encoder, tokenizer, channels, size, threshold, over
):
    images = draw_images(channels=channels, size=size, dtype=torch.float64)
    options = {"patch_reduction": over, "min_patch_entropy": threshold}
    criterion = make(encoder, reduction="none", **options)
    fused, visible, infrared = (image.float() for image in images)
    fused.requires_grad_()
    terms = criterion.terms(fused, visible, infrared)
    terms.total.sum().backward()

    images[0].requires_grad_()
    reference = Reference(encoder_model(encoder), tokenizer, PAPER, VISIBLE, INFRARED)
    expected = reference.terms(
        *images, same_transforms(criterion, images[0]), over=over, threshold=threshold
    )
    total = 2 * expected.direction + 10 * expected.patch + 6 * expected.similarity
    total.sum().backward()

    assert 0 < expected.kept.mean() < 1, "the filter must have something to decide"
    torch.testing.assert_close(terms.kept.double(), expected.kept)
    for name in ("direction", "patch", "similarity"):
        actual = getattr(terms, name).double()
        torch.testing.assert_close(actual, getattr(expected, name), atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.total.double(), total, atol=1e-5 * 18, rtol=0)
    scale = images[0].grad.abs().max()
    assert (fused.grad.double() - images[0].grad).abs().max() < 1e-5 * scale


def encoder_model(encoder):
    """The CLIP inside, as one model again."""
    model = copy.copy(encoder._text[0])
    model._modules = {**model._modules, "visual": encoder.network}
    return model


def test_total_is_the_weighted_sum_of_the_parts(encoder):
    images = draw_images()
    criterion = make(
        encoder,
        regularizer=IntensityGradientLoss(),
        direction_weight=0.5,
        patch_weight=3.0,
        similarity_weight=0.25,
        regularizer_weight=7.0,
        reduction="none",
    )
    terms = criterion.terms(*images)
    expected = (
        0.5 * terms.direction
        + 3.0 * terms.patch
        + 0.25 * terms.similarity
        + 7.0 * IntensityGradientLoss()(*images)
    )
    torch.testing.assert_close(terms.total, expected)


def test_reductions(encoder):
    images = draw_images(batch=3)
    none, mean, total = (
        make(encoder, reduction=name).terms(*images) for name in ("none", "mean", "sum")
    )
    assert none.total.shape == (3,)
    for name in ("total", "direction", "patch", "similarity", "regularizer"):
        torch.testing.assert_close(getattr(mean, name), getattr(none, name).mean())
        torch.testing.assert_close(getattr(total, name), getattr(none, name).sum())
    assert none.kept.shape == (3,)
    assert mean.kept == total.kept == none.kept.mean()


def test_call_returns_the_total(encoder):
    images = draw_images()
    assert make(encoder)(*images) == make(encoder).terms(*images).total


def test_same_seed_same_value_and_other_seed_other_value(encoder):
    images = draw_images()
    values = [
        make(encoder, generator=torch.Generator().manual_seed(seed))(*images) for seed in (5, 5, 6)
    ]
    assert values[0] == values[1] != values[2]


def test_every_call_draws_new_patches(encoder):
    images = draw_images()
    criterion = make(encoder)
    assert criterion(*images) != criterion(*images)


def test_global_seed_without_generator(encoder):
    images = draw_images()
    criterion = make(encoder, generator=None)
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(criterion(*images))
    assert values[0] == values[1]


@pytest.mark.parametrize("case", ["visible", "infrared", "black", "white", "constant", "all black"])
@pytest.mark.parametrize("patch_reduction", ["all", "kept"])
def test_degenerate_images_give_finite_loss_and_gradient(encoder, case, patch_reduction):
    fused, visible, infrared = draw_images()
    fused = {
        "visible": visible,
        "infrared": infrared,
        "black": torch.zeros_like(fused),
        "white": torch.ones_like(fused),
        "constant": torch.full_like(fused, 0.4),
        "all black": torch.zeros_like(fused),
    }[case].clone()
    if case == "all black":
        visible, infrared = torch.zeros_like(visible), torch.zeros_like(infrared)
    fused.requires_grad_()
    criterion = make(encoder, regularizer=IntensityGradientLoss(), patch_reduction=patch_reduction)
    loss = criterion(fused, visible, infrared)
    loss.backward()
    assert loss.isfinite()
    assert fused.grad.isfinite().all()


def test_no_patch_passes(encoder):
    fused, visible, infrared = draw_images()
    fused.requires_grad_()
    terms = make(encoder, min_patch_entropy=8.0).terms(fused, visible, infrared)
    terms.total.backward()
    assert terms.kept == 0
    assert terms.patch == 0
    assert fused.grad.abs().sum() > 0


def test_dropped_patches_are_not_encoded(encoder, encoded_batches):
    terms = make(encoder, num_patches=10).terms(*draw_images(batch=2))
    assert 0 < terms.kept < 1
    assert encoded_batches == [4, 2, round(20 * terms.kept.item())]


def test_filter_off_keeps_all(encoder):
    terms = make(encoder, min_patch_entropy=None).terms(*draw_images())
    assert terms.kept == 1
    assert terms.patch > 0


def test_weights_of_zero_leave_their_terms_uncomputed(encoder):
    class Explosive(nn.Module):
        def forward(self, *images):
            raise AssertionError("called for nothing")

    criterion = make(encoder, patch_weight=0, regularizer=Explosive(), regularizer_weight=0)
    terms = criterion.terms(*draw_images())
    assert (terms.patch, terms.regularizer, terms.kept) == (0, 0, 0)
    torch.testing.assert_close(terms.total, 2 * terms.direction + 6 * terms.similarity)


def test_gradient_reaches_only_the_fused_image(encoder):
    images = [image.requires_grad_() for image in draw_images()]
    make(encoder, regularizer=IntensityGradientLoss())(*images).backward()
    assert images[0].grad.abs().sum() > 0
    assert images[1].grad is None
    assert images[2].grad is None
    assert all(p.grad is None for p in encoder.network.parameters())


def test_works_without_grad(encoder):
    with torch.no_grad():
        loss = make(encoder)(*draw_images())
    assert not loss.requires_grad


@pytest.mark.parametrize("data_range", [(0, 255), (-1, 1)])
def test_data_range(encoder, data_range):
    low, high = data_range
    images = draw_images()
    scaled = [low + image * (high - low) for image in images]
    torch.testing.assert_close(
        make(encoder, data_range=data_range)(*scaled), make(encoder)(*images), rtol=1e-4, atol=1e-4
    )


def test_fused_outside_the_range_is_accepted(encoder):
    fused, visible, infrared = draw_images()
    loss = make(encoder)(fused * 5 - 2, visible, infrared)
    assert loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sources", ["same dtype", "float32"])
def test_reduced_precision_images(encoder, dtype, sources):
    images = draw_images()
    # Without the filter: rounding the sources moves patches across its threshold.
    expected = make(encoder, min_patch_entropy=None)(*images)
    fused, visible, infrared = (image.to(dtype) for image in images)
    if sources == "float32":
        visible, infrared = images[1:]
    fused.requires_grad_()
    loss = make(encoder, min_patch_entropy=None)(fused, visible, infrared)
    loss.backward()
    assert loss.dtype == torch.float32
    assert fused.grad.dtype == dtype
    assert fused.grad.isfinite().all()
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(encoder, dtype):
    images = draw_images()
    expected = make(encoder)(*images)
    images[0].requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = make(encoder)(*images)
    loss.backward()
    assert loss.dtype == torch.float32
    assert images[0].grad.isfinite().all()
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


def test_memory_layout_is_irrelevant(encoder):
    fused, visible, infrared = draw_images(channels=(3, 3, 3))
    expected = make(encoder)(fused, visible, infrared)
    strided = torch.stack([visible, visible], -1)[..., 0]
    loss = make(encoder)(fused.to(memory_format=torch.channels_last), strided, infrared)
    torch.testing.assert_close(loss, expected)


class TestObjective:
    def test_text_is_a_fused_text(self, encoder):
        criterion = make(encoder, objective="a blurry dark image")
        assert criterion.objective == FusionObjective("a blurry dark image")

    def test_swap_changes_the_next_value_and_back(self, encoder):
        images = draw_images()
        criterion = make(encoder)
        first = criterion(*images)
        criterion.set_objective("a blurry dark image")
        criterion.generator.manual_seed(1)
        second = criterion(*images)
        criterion.set_objective(FusionObjective())
        criterion.generator.manual_seed(1)
        assert criterion(*images) == first != second

    def test_swap_equals_construction(self, encoder):
        images = draw_images()
        criterion = make(encoder)
        criterion.set_objective("a blurry dark image")
        assert criterion(*images) == make(encoder, objective="a blurry dark image")(*images)

    @pytest.mark.parametrize("wrong", ["", 3, FusionObjective("An INFRARED image"), None])
    def test_swap_is_atomic(self, encoder, wrong):
        criterion = make(encoder)
        before = criterion.fusion_model
        with pytest.raises((TypeError, ValueError)):
            criterion.set_objective(wrong)
        assert criterion.fusion_model is before

    def test_known_texts_are_not_embedded_again(self, clip_model, encoder):
        criterion = make(encoder)
        criterion.set_objective("a blurry dark image")
        clip_model.encode_text = None
        encoder._text = None
        criterion.set_objective(FusionObjective())
        criterion.set_objective("a blurry dark image")

    def test_embedded_fusion_model(self, encoder, tmp_path):
        images = draw_images()
        embedded = EmbeddedFusionModel(FusionObjective("a blurry dark image"), encoder)
        embedded.save(tmp_path / "objective.safetensors")
        loaded = EmbeddedFusionModel.load(tmp_path / "objective.safetensors")
        encoder._text = None  # as on a machine without the text tower
        criterion = make(encoder, objective=loaded)
        assert criterion.objective == embedded.objective
        assert criterion(*images) == make(encoder, objective=embedded)(*images)

    def test_embedded_fusion_model_of_another_encoder(self, encoder, tokenizer):
        other = FrozenCLIP(build_clip(seed=1), tokenizer, name="other")
        embedded = EmbeddedFusionModel(FusionObjective(), other)
        with pytest.raises(ValueError, match="'other'.*'custom'"):
            make(encoder, objective=embedded)


class Trainer(nn.Module):
    """A user's module that holds the criterion."""

    def __init__(self, encoder):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 1, 1))
        self.criterion = make(encoder)

    def forward(self, visible, infrared):
        fused = self.network(torch.cat([visible, infrared], 1)).sigmoid()
        return self.criterion(fused, visible, infrared)


class TestInsideAUsersModule:
    def test_state_dict_and_parameters(self, encoder):
        trainer = Trainer(encoder)
        names = {"network." + name for name in trainer.network.state_dict()}
        assert set(trainer.state_dict()) == names
        assert {name for name, _ in trainer.named_parameters()} == names
        assert trainer.load_state_dict(trainer.state_dict(), strict=True)

    def test_train_apply_and_requires_grad_pass_by(self, encoder):
        weights = copy.deepcopy(encoder.network.state_dict())
        trainer = Trainer(encoder)
        trainer.train()

        @torch.no_grad()
        def zero(module):
            for parameter in module.parameters(recurse=False):
                parameter.zero_()

        trainer.apply(zero)
        trainer.requires_grad_(True)
        assert not encoder.network.training
        assert not any(p.requires_grad for p in encoder.network.parameters())
        for name, weight in encoder.network.state_dict().items():
            assert torch.equal(weight, weights[name])

    def test_half_and_back(self, encoder):
        images = draw_images()
        criterion = make(encoder)
        expected = criterion(*images)
        directions = criterion.fusion_model.visible_direction.clone()
        criterion.half()
        assert next(encoder.network.parameters()).dtype == torch.float16
        assert torch.equal(criterion.fusion_model.visible_direction, directions)
        criterion.generator.manual_seed(1)
        loss = criterion(*images)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)

    def test_to_empty_keeps_what_no_checkpoint_could_restore(self, encoder):
        images = draw_images()
        criterion = make(encoder)
        expected = criterion(*images)
        criterion.to_empty(device="cpu")
        criterion.generator.manual_seed(1)
        assert criterion(*images) == expected

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_deepcopy_and_pickle(self, encoder, clone):
        images = draw_images()
        criterion = make(encoder)
        copied = clone(criterion)
        assert criterion(*images) == copied(*images)
        copied.set_objective("a blurry dark image")
        assert criterion.objective == FusionObjective()

    def test_training_lowers_the_loss(self, encoder):
        torch.manual_seed(0)
        trainer = Trainer(encoder)
        _, visible, infrared = draw_images()
        optimizer = torch.optim.Adam(trainer.parameters(), 1e-2)
        losses = []
        for _ in range(60):
            trainer.criterion.generator.manual_seed(1)
            loss = trainer(visible, infrared)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(encoder):
    images = draw_images()
    expected = make(encoder)(*images)
    criterion = make(encoder).cuda()
    fused, visible, infrared = (image.cuda() for image in images)
    fused.requires_grad_()
    loss = criterion(fused, visible, infrared)
    loss.backward()
    assert fused.grad.isfinite().all()
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-3, atol=1e-3)
    criterion.set_objective("a blurry dark image")
    assert criterion(fused, visible, infrared) != loss
