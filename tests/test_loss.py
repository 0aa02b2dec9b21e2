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
    SourceEmbeddings,
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
    criterion = make_criterion(
        encoder,
        regularizer=IntensityGradientLoss(),
        direction_weight=0.5,
        patch_weight=3.0,
        similarity_weight=0.25,
        regularizer_weight=7.0,
        reduction="none",
    )
    terms = criterion.terms(**named(images))
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
        make_criterion(encoder, reduction=name).terms(**named(images))
        for name in ("none", "mean", "sum")
    )
    assert none.total.shape == (3,)
    for name in ("total", "direction", "patch", "similarity", "regularizer"):
        torch.testing.assert_close(getattr(mean, name), getattr(none, name).mean())
        torch.testing.assert_close(getattr(total, name), getattr(none, name).sum())
    assert none.kept.shape == (3,)
    assert mean.kept == total.kept == none.kept.mean()


def test_call_returns_the_total(encoder):
    images = draw_images()
    assert (
        make_criterion(encoder)(**named(images))
        == make_criterion(encoder).terms(**named(images)).total
    )


def test_same_seed_same_value_and_other_seed_other_value(encoder):
    images = draw_images()
    values = [
        make_criterion(encoder, generator=torch.Generator().manual_seed(seed))(**named(images))
        for seed in (5, 5, 6)
    ]
    assert values[0] == values[1] != values[2]


def test_every_call_draws_new_patches(encoder):
    images = draw_images()
    criterion = make_criterion(encoder)
    assert criterion(**named(images)) != criterion(**named(images))


def test_global_seed_without_generator(encoder):
    images = draw_images()
    criterion = make_criterion(encoder, generator=None)
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(criterion(**named(images)))
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
    criterion = make_criterion(
        encoder, regularizer=IntensityGradientLoss(), patch_reduction=patch_reduction
    )
    loss = criterion(fused=fused, visible=visible, infrared=infrared)
    loss.backward()
    assert loss.isfinite()
    assert fused.grad.isfinite().all()


def test_no_patch_passes(encoder):
    fused, visible, infrared = draw_images()
    fused.requires_grad_()
    terms = make_criterion(encoder, min_patch_entropy=8.0).terms(
        fused=fused, visible=visible, infrared=infrared
    )
    terms.total.backward()
    assert terms.kept == 0
    assert terms.patch == 0
    assert fused.grad.abs().sum() > 0


def test_dropped_patches_are_not_encoded(encoder, encoded_batches):
    terms = make_criterion(encoder, num_patches=10).terms(**named(draw_images(batch=2)))
    assert 0 < terms.kept < 1
    sources, *patches, fused = encoded_batches
    assert (sources, fused) == (4, 2)
    assert sum(patches) == round(20 * terms.kept.item())


def test_filter_off_keeps_all(encoder):
    terms = make_criterion(encoder, min_patch_entropy=None).terms(**named(draw_images()))
    assert terms.kept == 1
    assert terms.patch > 0


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


def test_gradient_reaches_only_the_fused_image(encoder):
    images = [image.requires_grad_() for image in draw_images()]
    make_criterion(encoder, regularizer=IntensityGradientLoss())(**named(images)).backward()
    assert images[0].grad.abs().sum() > 0
    assert images[1].grad is None
    assert images[2].grad is None
    assert all(p.grad is None for p in encoder.network.parameters())


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


def test_fused_outside_the_range_is_accepted(encoder):
    fused, visible, infrared = draw_images()
    loss = make_criterion(encoder)(fused=fused * 5 - 2, visible=visible, infrared=infrared)
    assert loss.isfinite()


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


def test_memory_layout_is_irrelevant(encoder):
    fused, visible, infrared = draw_images(channels=(3, 3, 3))
    expected = make_criterion(encoder)(fused=fused, visible=visible, infrared=infrared)
    strided = torch.stack([visible, visible], -1)[..., 0]
    fused = fused.to(memory_format=torch.channels_last)
    loss = make_criterion(encoder)(**named([fused, strided, infrared]))
    torch.testing.assert_close(loss, expected)


class Reduction(str, Enum):
    NONE = "none"


CASES = [
    ("direction_weight", np.float32(0.5), 0.5),
    ("direction_weight", np.float64(0.5), 0.5),
    ("direction_weight", np.int64(2), 2),
    ("direction_weight", torch.tensor(0.5), 0.5),
    ("direction_weight", torch.tensor(2), 2),
    ("direction_weight", np.array(0.5), 0.5),
    ("regularizer_weight", torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    ("num_patches", np.int32(3), 3),
    ("num_patches", torch.tensor(3), 3),
    ("patch_scale", [0.5, 0.75], (0.5, 0.75)),
    ("patch_scale", np.array([0.5, 0.75]), (0.5, 0.75)),
    ("patch_scale", torch.tensor([0.5, 0.75]), (0.5, 0.75)),
    ("patch_scale", UserList([0.5, 0.75]), (0.5, 0.75)),  # as OmegaConf's lists are
    ("data_range", [np.float32(0), np.float32(255)], (0.0, 255.0)),
    ("min_patch_entropy", np.float32(5.5), 5.5),
    ("patch_chunk", np.int64(4), 4),
    ("patch_chunk", np.str_("auto"), "auto"),
    ("reduction", np.str_("sum"), "sum"),
    ("reduction", Reduction.NONE, "none"),
    ("precision", np.str_("fp32"), "fp32"),
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


def test_a_list_that_changes_later_does_not(encoder):
    scale = [0.5, 0.75]
    criterion = make_criterion(encoder, patch_scale=scale)
    scale[0] = 7.0
    assert criterion.patch_scale == (0.5, 0.75)


def test_regularizers_too():
    kept = IntensityGradientLoss(np.float32(0.5)).gradient_weight
    assert kept == 0.5
    assert type(kept) is float


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("direction_weigth", "direction_weight"),
        ("patch_weights", "patch_weight"),
        ("num_patch", "num_patches"),
        ("data_ranges", "data_range"),
        ("min_entropy_patch", None),
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


def test_images_are_passed_by_keyword_alone(encoder):
    criterion = make_criterion(encoder)
    for call in (criterion, criterion.terms, criterion.check_values):
        with pytest.raises(TypeError, match="positional argument"):
            call(*draw_images())


def test_a_weight_that_learns_is_refused_with_the_remedy(encoder):
    criterion = make_criterion(encoder)
    with pytest.raises(TypeError, match="carry no gradient: pass value.item()"):
        criterion.direction_weight = torch.nn.Parameter(torch.ones(()))
    assert not list(criterion.parameters())


class TestWhatIsGivenOutIsTakenBack:
    def test_options(self, encoder):
        criterion = make_criterion(encoder, patch_scale=[0.5, 0.6], regularizer=None)
        options = {name: getattr(criterion, name) for name in OPTIONS}
        again = LanguageDrivenFusionLoss(criterion.objective, encoder=criterion.encoder, **options)
        for name in OPTIONS:
            assert getattr(again, name) == getattr(criterion, name)
            setattr(again, name, getattr(criterion, name))

    @pytest.mark.parametrize(
        "given_out",
        [
            lambda criterion: criterion.objective,
            lambda criterion: criterion.objective.fused,
            lambda criterion: list(criterion.objective.fused),
            lambda criterion: criterion.fusion_model,
            lambda criterion: criterion.fusion_model.objective,
            lambda criterion: np.array(criterion.objective.fused).tolist(),
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
        if not isinstance(given, list | tuple):  # those say nothing of the sources
            assert make_criterion(encoder, objective=given).objective == mine
        else:
            assert make_criterion(encoder, objective=given).objective.fused == mine.fused

    def test_numpys_texts_become_plain(self, encoder):
        criterion = make_criterion(encoder, objective=np.str_("a sharp image"))
        criterion.set_objective([np.str_("a dark image"), "a dim image"])
        assert [type(text) for text in criterion.objective.fused] == [str, str]


def test_those_of_the_structure_loss():
    loss = StructureLoss(
        window=np.int64(7), flat_energy=torch.tensor(0.25), layout_weight=np.float32(0.5)
    )
    kept = (loss.window, loss.flat_energy, loss.layout_weight)
    assert kept == (7, 0.25, 0.5)
    assert [type(value) for value in kept] == [int, float, float]


class TestObjective:
    def test_text_is_a_fused_text(self, encoder):
        criterion = make_criterion(encoder, objective="a blurry dark image")
        assert criterion.objective == FusionObjective("a blurry dark image")

    def test_swap_changes_the_next_value_and_back(self, encoder):
        images = draw_images()
        criterion = make_criterion(encoder)
        first = criterion(**named(images))
        criterion.set_objective("a blurry dark image")
        criterion.generator.manual_seed(1)
        second = criterion(**named(images))
        criterion.set_objective(FusionObjective())
        criterion.generator.manual_seed(1)
        assert criterion(**named(images)) == first != second

    @pytest.mark.parametrize("embedded", [False, True])
    def test_assigning_is_setting(self, encoder, embedded):
        criterion = make_criterion(encoder)
        objective = FusionObjective("a blurry dark image")
        criterion.objective = EmbeddedFusionModel(objective, encoder) if embedded else objective
        assert criterion.objective == criterion.fusion_model.objective == objective
        assert "objective" not in dict(criterion.named_children())
        criterion.objective = ["a sharp image", "a clear image"]
        assert criterion.objective.fused == ("a sharp image", "a clear image")

    def test_a_text_leaves_those_of_the_sources(self, encoder):
        mine = FusionObjective("a brain", visible="an MRI scan", infrared="a PET scan")
        criterion = make_criterion(encoder, objective=mine)
        criterion.set_objective("a clear brain")
        assert criterion.objective == replace(mine, fused="a clear brain")

    def test_another_encoder_is_refused(self, encoder, tokenizer):
        criterion = make_criterion(encoder)
        for other in (FrozenCLIP(build_clip(seed=1), tokenizer, name="other"), None):
            with pytest.raises((TypeError, ValueError), match="`encoder` must be"):
                criterion.encoder = other
            assert criterion.encoder is encoder
        criterion.encoder = FrozenCLIP(build_clip(), tokenizer)  # a copy of the same weights

    def test_compile_is_settled_at_construction(self, encoder):
        criterion = make_criterion(encoder)
        with pytest.raises(TypeError, match="`compile` is fixed at construction"):
            criterion.compile = True
        assert callable(criterion.compile)

    def test_vectors_free_a_text_tower_that_is_not_to_be_kept(self, tokenizer):
        encoders = [FrozenCLIP(build_clip(), tokenizer, keep_text=keep) for keep in (True, False)]
        vectors = EmbeddedFusionModel(FusionObjective("a blurry dark image"), encoders[0])
        kept, dropped = (make_criterion(encoder, objective=vectors) for encoder in encoders)
        kept.set_objective("a sharp image")
        with pytest.raises(RuntimeError, match="was dropped"):
            dropped.set_objective("a sharp image")
        assert dropped.objective == vectors.objective

    @pytest.mark.parametrize("wrong", ["", 3, FusionObjective("An INFRARED image"), None])
    def test_swap_is_atomic(self, encoder, wrong):
        criterion = make_criterion(encoder)
        before = criterion.fusion_model
        with pytest.raises((TypeError, ValueError)):
            criterion.set_objective(wrong)
        assert criterion.fusion_model is before

    def test_known_texts_are_not_embedded_again(self, clip_model, encoder):
        criterion = make_criterion(encoder)
        criterion.set_objective("a blurry dark image")
        clip_model.encode_text = None
        encoder.drop_text()
        criterion.set_objective(FusionObjective())
        criterion.set_objective("a blurry dark image")

    def test_embedded_fusion_model_of_another_encoder(self, encoder, tokenizer):
        other = FrozenCLIP(build_clip(seed=1), tokenizer, name="other")
        embedded = EmbeddedFusionModel(FusionObjective(), other)
        with pytest.raises(ValueError, match="'other'.*'custom'"):
            make_criterion(encoder, objective=embedded)


class TestEmbedSources:
    def test_same_value(self, encoder):
        images = draw_images(channels=(1, 3, 1))
        criterion = make_criterion(encoder)
        sources = criterion.embed_sources(*images[1:])
        loss = criterion(**named(images), sources=sources)
        assert loss == make_criterion(encoder)(**named(images))

    def test_sources_are_not_encoded_again(self, encoder, encoded_batches):
        images = draw_images()
        criterion = make_criterion(encoder, patch_weight=0)
        sources = criterion.embed_sources(*images[1:])
        encoded_batches.clear()
        criterion(**named(images), sources=sources)
        assert encoded_batches == [2]

    @pytest.mark.parametrize(
        ("sources", "error"),
        [
            (torch.zeros(2, 24), TypeError),
            (SourceEmbeddings(torch.zeros(3, 24), torch.zeros(3, 24)), ValueError),
        ],
    )
    def test_wrong_sources(self, encoder, sources, error):
        with pytest.raises(error, match="`sources`"):
            make_criterion(encoder)(**named(draw_images()), sources=sources)

    def test_wrong_images(self, encoder):
        _, visible, infrared = draw_images()
        with pytest.raises(ValueError, match="`infrared`.*of `visible`"):
            make_criterion(encoder).embed_sources(visible, infrared[:1])


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
