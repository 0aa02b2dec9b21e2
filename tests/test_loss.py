"""LanguageDrivenFusionLoss against a float64 reference, and as part of a training program."""

import io
from collections import UserList
from dataclasses import replace
from enum import Enum

import numpy as np
import pytest
import torch
from torch import nn

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    PatchGeometry,
    StructureLoss,
)
from clip_fusion_loss.loss import OPTIONS
from conftest import build_clip, draw_images, make_criterion, named, same_transforms
from reference import Reference

PAPER = ("a clear image with detailed background and salient objects",)
VISIBLE = ("a visible gray image",)
INFRARED = ("an infrared image",)


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
    criterion = make_criterion(encoder, reduction="none", **options)
    fused, visible, infrared = (image.float() for image in images)
    fused.requires_grad_()
    terms = criterion.terms(fused=fused, visible=visible, infrared=infrared)
    terms.total.sum().backward()

    images[0].requires_grad_()
    reference = Reference(build_clip(), tokenizer, PAPER, VISIBLE, INFRARED)
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


def test_total_is_the_weighted_sum_of_the_parts(encoder):
    images = draw_images()
    weights = {"direction": 0.5, "patch": 3.0, "similarity": 0.25, "regularizer": 7.0}
    options = {f"{name}_weight": weight for name, weight in weights.items()}
    criterion = make_criterion(
        encoder, regularizer=IntensityGradientLoss(), reduction="none", **options
    )
    terms = criterion.terms(**named(images))
    torch.testing.assert_close(terms.regularizer, IntensityGradientLoss()(*images))
    expected = sum(weight * getattr(terms, name) for name, weight in weights.items())
    torch.testing.assert_close(terms.total, expected)


def test_reductions(encoder):
    images = draw_images(batch=3)
    none, mean, total = (
        make_criterion(encoder, reduction=name).terms(**named(images))
        for name in ("none", "mean", "sum")
    )
    assert none.total.shape == (3,)
    for name in ("total", "direction", "patch", "similarity", "regularizer"):
        torch.testing.assert_close(getattr(mean, name), getattr(none, name).mean())
        torch.testing.assert_close(getattr(total, name), getattr(none, name).sum())
    assert none.kept.shape == (3,)
    assert mean.kept == total.kept == none.kept.mean()


def test_seeds_decide_which_patches(encoder):
    images = named(draw_images())
    seeded = [
        make_criterion(encoder, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    ]
    values = [criterion(**images) for criterion in seeded]
    assert values[0] == values[1] != values[2]
    assert seeded[0](**images) == seeded[1].terms(**images).total != values[0]
    criterion = make_criterion(encoder, generator=None)
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(criterion(**images))
    assert values[0] == values[1]


def test_dropped_patches_are_not_encoded(encoder, encoded_batches):
    terms = make_criterion(encoder, num_patches=10).terms(**named(draw_images(batch=2)))
    assert 0 < terms.kept < 1
    sources, *patches, fused = encoded_batches
    assert (sources, fused) == (4, 2)
    assert sum(patches) == round(20 * terms.kept.item())


def test_weights_of_zero_leave_their_terms_uncomputed(encoder):
    class Explosive(nn.Module):
        def forward(self, *images):
            raise AssertionError("called for nothing")

    criterion = make_criterion(
        encoder, patch_weight=0, regularizer=Explosive(), regularizer_weight=0
    )
    terms = criterion.terms(**named(draw_images()))
    assert (terms.patch, terms.regularizer, terms.kept) == (0, 0, 0)
    torch.testing.assert_close(terms.total, 2 * terms.direction + 6 * terms.similarity)


@pytest.mark.parametrize("data_range", [(0, 255), (-1, 1)])
def test_data_range(encoder, data_range):
    low, high = data_range
    images = draw_images()
    scaled = [low + image * (high - low) for image in images]
    torch.testing.assert_close(
        make_criterion(encoder, data_range=data_range)(**named(scaled)),
        make_criterion(encoder)(**named(images)),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sources", ["same dtype", "float32"])
def test_reduced_precision_images(encoder, dtype, sources):
    images = draw_images()
    # Without the filter: rounding the sources moves patches across its threshold.
    expected = make_criterion(encoder, min_patch_entropy=None)(**named(images))
    fused, visible, infrared = (image.to(dtype) for image in images)
    if sources == "float32":
        visible, infrared = images[1:]
    fused.requires_grad_()
    loss = make_criterion(encoder, min_patch_entropy=None)(
        fused=fused, visible=visible, infrared=infrared
    )
    loss.backward()
    assert loss.dtype == torch.float32
    assert fused.grad.dtype == dtype
    assert fused.grad.isfinite().all()
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)


class Reduction(str, Enum):
    NONE = "none"


CASES = [
    ("direction_weight", np.float32(0.5), 0.5),
    ("direction_weight", np.int64(2), 2),
    ("direction_weight", np.array(0.5), 0.5),
    ("regularizer_weight", torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    ("num_patches", torch.tensor(3), 3),
    ("data_range", [np.float32(0), np.float32(255)], (0.0, 255.0)),
    ("min_patch_entropy", np.float32(5.5), 5.5),
    ("patch_chunk", np.int64(4), 4),
    ("patch_chunk", np.str_("auto"), "auto"),
    ("reduction", Reduction.NONE, "none"),
]


@pytest.mark.parametrize(("name", "value", "plain"), CASES)
def test_kept_as_plain_python_values(encoder, name, value, plain):
    kept = [LanguageDrivenFusionLoss(encoder=encoder, **{name: value}), make_criterion(encoder)]
    setattr(kept[1], name, value)
    for criterion in kept:
        stored = getattr(criterion, name)
        assert stored == plain
        assert type(stored) is type(plain)
        # As a training writes its settings and, in a safe way, reads them again.
        file = io.BytesIO()
        torch.save(stored, file)
        file.seek(0)
        assert torch.load(file, weights_only=True) == plain


def test_regularizers_and_geometry_too():
    for scale in (
        np.array([0.5, 0.75]), torch.tensor([0.5, 0.75]), UserList([0.5, 0.75]),  # OmegaConf's
    ):  # fmt: skip
        geometry = PatchGeometry(scale, rotation=np.float32(4), shear=torch.tensor(2))
        assert repr(geometry) == (
            "PatchGeometry(scale=(0.5, 0.75), rotation=4.0, shift=0.1, zoom=1.5, shear=2, "
            "vertical_shear=0.0)"
        )
    loss = StructureLoss(window=np.int64(7), flat_energy=torch.tensor(0.25))
    kept = (loss.window, loss.flat_energy, IntensityGradientLoss(np.float32(0.5)).gradient_weight)
    assert kept == (7, 0.25, 0.5)
    assert [type(value) for value in kept] == [int, float, float]


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("direction_weigth", "direction_weight"),
        ("num_patch", "num_patches"),
        ("data_ranges", "data_range"),
        ("note", None),
        ("_patch_weight", None),
    ],
)
def test_a_misspelt_option_names_the_one_that_was_meant(encoder, misspelt, meant):
    criterion = make_criterion(encoder)
    if meant is None:  # users may keep something of their own on a module
        setattr(criterion, misspelt, 3)
        assert getattr(criterion, misspelt) == 3
        return
    with pytest.raises(AttributeError, match=f"no option `{misspelt}`; did you mean `{meant}`"):
        setattr(criterion, misspelt, 3)
    assert not hasattr(criterion, misspelt)


class TestWhatIsGivenOutIsTakenBack:
    def test_options(self, encoder):
        criterion = make_criterion(encoder, min_patch_entropy=5, regularizer=None)
        options = {name: getattr(criterion, name) for name in OPTIONS}
        again = LanguageDrivenFusionLoss(criterion.objective, encoder=criterion.encoder, **options)
        for name in OPTIONS:
            assert getattr(again, name) == getattr(criterion, name)
            setattr(again, name, getattr(criterion, name))

    @pytest.mark.parametrize(
        "given_out",
        [
            lambda criterion: criterion.objective,
            lambda criterion: list(criterion.objective.fused),
            lambda criterion: criterion.fusion_model,
        ],
    )
    def test_objectives(self, encoder, given_out):
        mine = FusionObjective(["a sharp image", "a detailed image"], visible="a photo")
        criterion = make_criterion(encoder, objective=mine)
        expected = criterion(**named(draw_images()))
        given = given_out(criterion)
        for put_back in (
            lambda: criterion.set_objective(given),
            lambda: setattr(criterion, "objective", given),
        ):
            put_back()
            criterion.generator.manual_seed(1)
            assert criterion(**named(draw_images())) == expected
            assert criterion.objective == mine
        again = make_criterion(encoder, objective=given).objective
        assert again.fused == mine.fused
        # Texts alone say nothing of the sources.
        assert isinstance(given, list) or again == mine


class TestObjective:
    def test_swap_changes_the_next_value_and_back(self, encoder):
        images = draw_images()
        criterion = make_criterion(encoder, objective="a sharp image")
        values = []
        for text in ("a sharp image", "a blurry dark image", "a sharp image"):
            criterion.set_objective(text)
            assert criterion.objective == FusionObjective(text)
            criterion.generator.manual_seed(1)
            values.append(criterion(**named(images)))
        assert values[0] == values[2] != values[1]

    @pytest.mark.parametrize("embedded", [False, True])
    def test_assigning_is_setting(self, encoder, embedded):
        criterion = make_criterion(encoder)
        objective = FusionObjective("a blurry dark image")
        criterion.objective = EmbeddedFusionModel(objective, encoder) if embedded else objective
        assert criterion.objective == criterion.fusion_model.objective == objective
        criterion.objective = ["a sharp image", "a clear image"]
        assert criterion.objective.fused == ("a sharp image", "a clear image")

    def test_a_text_leaves_those_of_the_sources(self, encoder):
        mine = FusionObjective("a brain", visible="an MRI scan", infrared="a PET scan")
        criterion = make_criterion(encoder, objective=mine)
        criterion.set_objective("a clear brain")
        assert criterion.objective == replace(mine, fused="a clear brain")

    def test_another_encoder_is_refused(self, encoder, tokenizer):
        criterion = make_criterion(encoder)
        other = FrozenCLIP(build_clip(seed=1), tokenizer, name="other")
        for wrong in (other, None):
            with pytest.raises((TypeError, ValueError), match="`encoder` must be"):
                criterion.encoder = wrong
            assert criterion.encoder is encoder
        criterion.encoder = FrozenCLIP(build_clip(), tokenizer)  # a copy of the same weights
        with pytest.raises(ValueError, match="'other'.*'custom'"):
            make_criterion(encoder, objective=EmbeddedFusionModel(FusionObjective(), other))

    def test_vectors_free_a_text_tower_that_is_not_to_be_kept(self, tokenizer):
        encoders = [FrozenCLIP(build_clip(), tokenizer, keep_text=keep) for keep in (True, False)]
        vectors = EmbeddedFusionModel(FusionObjective("a blurry dark image"), encoders[0])
        kept, dropped = (make_criterion(encoder, objective=vectors) for encoder in encoders)
        kept.set_objective("a sharp image")
        with pytest.raises(RuntimeError, match="was dropped"):
            dropped.set_objective("a sharp image")
        assert dropped.objective == vectors.objective


def test_sources_that_are_embedded_once_are_not_encoded_again(encoder, encoded_batches):
    images = draw_images(channels=(1, 3, 1))
    expected = make_criterion(encoder)(**named(images))
    criterion = make_criterion(encoder)
    sources = criterion.embed_sources(*images[1:])
    assert criterion(**named(images), sources=sources) == expected
    encoded_batches.clear()
    criterion.patch_weight = 0
    criterion(**named(images), sources=sources)
    assert encoded_batches == [2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(encoder):
    images = draw_images()
    expected = make_criterion(encoder)(**named(images))
    criterion = make_criterion(encoder).cuda()
    fused, visible, infrared = (image.cuda() for image in images)
    fused.requires_grad_()
    loss = criterion(fused=fused, visible=visible, infrared=infrared)
    loss.backward()
    assert fused.grad.isfinite().all()
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-3, atol=1e-3)
    criterion.set_objective("a blurry dark image")
    assert criterion(fused=fused, visible=visible, infrared=infrared) != loss
