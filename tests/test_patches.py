"""Patches: chunked gradients, eval mode, recomputed steps, and steps in which none passes."""

import copy
import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from clip_fusion_loss import IntensityGradientLoss, LanguageDrivenFusionLoss
from conftest import (
    Trainer,
    draw_images,
    gradients,
    make_criterion,
    named,
    skip_without_double_backward,
)

CHUNKS = [1, 5, "auto"]


def make(encoder, chunk, **options):
    return LanguageDrivenFusionLoss(
        encoder=encoder,
        num_patches=7,
        patch_chunk=chunk,
        generator=torch.Generator().manual_seed(1),
        **options,
    )


def value_and_gradient(criterion, images, scale=1.0):
    fused = images[0].detach().requires_grad_()
    losses = criterion(**named([fused, *images[1:]]))
    (losses * scale).sum().backward()
    return losses.detach(), fused.grad


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none", "patch_reduction": "kept"},
        {"reduction": "sum", "min_patch_entropy": None},
        {"direction_weight": 0, "similarity_weight": 0},
        {"patch_weight": 0},
        {"min_patch_entropy": 8.0},
        {"regularizer": IntensityGradientLoss()},
    ],
    ids=str,
)
def test_equals_unchunked(encoder, chunk, options):
    images = draw_images(batch=3, channels=(3, 1, 1))
    expected = value_and_gradient(make(encoder, None, **options), images)
    actual = value_and_gradient(make(encoder, chunk, **options), images)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-3, atol=1e-6)


def test_samples_weighted_differently(encoder):
    images = draw_images(batch=3)
    scale = torch.tensor([0.0, -1.0, 7.0])
    expected = value_and_gradient(make(encoder, None, reduction="none"), images, scale)
    actual = value_and_gradient(make(encoder, 4, reduction="none"), images, scale)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-3, atol=1e-6)
    assert (actual[1][0] == 0).all()


@pytest.mark.parametrize("chunk", [None, 4])
def test_loss_scaling_is_exact(encoder, chunk):
    images = draw_images()
    _, plain = value_and_gradient(make(encoder, chunk), images)
    _, scaled = value_and_gradient(make(encoder, chunk), images, scale=2.0**16)
    assert torch.equal(scaled / 2.0**16, plain)


def test_never_more_than_a_chunk_and_for_compiled_towers_always_as_many(
    encoder, encoded_batches, monkeypatch
):
    monkeypatch.setattr(encoder, "compile", lambda **options: None)
    images = draw_images(batch=2)
    plain, compiled = (
        value_and_gradient(make(encoder, 5, min_patch_entropy=None, compile=compile), images)
        for compile in (False, True)
    )
    without_padding, padded = encoded_batches[:5], encoded_batches[5:]
    assert (without_padding, padded) == ([4, 5, 5, 4, 2], [4, 5, 5, 5, 2])
    torch.testing.assert_close(compiled[0], plain[0])
    torch.testing.assert_close(compiled[1], plain[1], rtol=1e-3, atol=1e-6)


def test_without_grad(encoder):
    images = draw_images()
    expected = make(encoder, None)(**named(images))
    loss = make(encoder, 3)(**named(images))  # no image needs a gradient
    with torch.no_grad():
        images[0].requires_grad_()
        unrecorded = make(encoder, 3)(**named(images))
    for actual in (loss, unrecorded):
        assert not actual.requires_grad
        torch.testing.assert_close(actual, expected)


def test_gradients_accumulate(encoder):
    images = draw_images()
    _, once = value_and_gradient(make(encoder, 3), images)
    fused = images[0].requires_grad_()
    loss = make(encoder, 3)(**named(images))
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(fused.grad, 2 * once)


def test_double_backward_needs_all_patches_at_once(encoder):
    skip_without_double_backward()
    images = draw_images()
    images[0].requires_grad_()
    expected = value_and_gradient(make(encoder, 3), images)[1]
    with sdpa_kernel(SDPBackend.MATH):
        chunked, whole = (
            torch.autograd.grad(
                make(encoder, chunk)(**named(images)), images[0], create_graph=True
            )[0]
            for chunk in (3, None)
        )
        torch.testing.assert_close(chunked.detach(), expected, rtol=1e-3, atol=1e-6)
        with pytest.raises(RuntimeError, match="patch_chunk=None"):
            chunked.square().sum().backward()
        (second,) = torch.autograd.grad(whole.square().sum(), images[0])
    assert second.isfinite().all()
    assert second.abs().sum() > 0


class TestEvalMode:
    """As of dropout: what is random in training is settled in `eval()`."""

    @pytest.fixture
    def module(self, encoder):
        """A program's module, with the loss as its child."""
        torch.manual_seed(0)
        return Trainer(make_criterion(encoder, generator=None, reduction="none"))

    def test_same_images_same_value_whoever_else_draws(self, module):
        sources = draw_images()[1:]
        module.eval()
        first = module(*sources)
        torch.manual_seed(5)
        torch.rand(3)
        assert torch.equal(module(*sources), first)
        assert torch.equal(copy.deepcopy(module)(*sources), first)
        module.train()
        assert not torch.equal(module(*sources), first)

    def test_an_image_has_the_same_patches_in_any_batch(self, module):
        sources = draw_images(batch=4)[1:]
        module.eval()
        whole = module(*sources)
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(module(*(s[order] for s in sources)), whole[order])
        slices = (slice(0, 1), slice(1, 3), slice(3, 4))
        parts = torch.cat([module(*(source[part] for source in sources)) for part in slices])
        torch.testing.assert_close(parts, whole)

    @pytest.mark.parametrize("own", [True, False])
    def test_trainings_sequence_is_not_disturbed(self, module, own):
        sources, others = draw_images()[1:], draw_images(batch=3, seed=1)[1:]
        if own:
            module.criterion.generator = torch.Generator()

        def run(validate):
            torch.manual_seed(0)
            if own:
                module.criterion.generator.manual_seed(0)
            values = []
            for _ in range(3):
                values.append(module.train()(*sources))
                if validate:
                    with torch.no_grad():
                        module.eval()(*others)
            return torch.stack(values)

        assert torch.equal(run(validate=True), run(validate=False))


def in_order(criterion):
    """The reentrant form of torch.utils.checkpoint passes no keywords."""
    return lambda *images: criterion(**named(images))


@pytest.mark.parametrize("segment", ["loss", "all"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_steps_repeat_torchs_own_numbers(encoder, segment, reentrant):
    """torch.utils.checkpoint calls the loss a second time, in the backward pass."""
    _, visible, infrared = draw_images()
    criterion = make_criterion(encoder, generator=None)

    def run(how):
        torch.manual_seed(0)
        trainer = Trainer(criterion)
        how(trainer).backward()
        return gradients(trainer.network)

    def recomputed(trainer):
        if segment == "loss":
            images = trainer.network(visible, infrared), visible, infrared
            return checkpoint(in_order(criterion), *images, use_reentrant=reentrant)
        # For its reentrant form one of the arguments must need a gradient.
        leaf = visible.clone().requires_grad_()
        return checkpoint(trainer, leaf, infrared, use_reentrant=reentrant)

    expected = run(lambda trainer: trainer(visible, infrared))
    torch.testing.assert_close(run(recomputed), expected)


FLAT = [torch.full((1, 1, 32, 32), 0.5) for _ in range(3)]


class TestStepsWithoutPatches:
    @pytest.fixture
    def criterion(self, encoder):
        return make_criterion(encoder, num_patches=2)

    def warnings_of(self, criterion, steps, lively=lambda step: False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.no_grad():
                for step in range(steps):
                    criterion.min_patch_entropy = 0.0 if lively(step) else 6.0
                    images = draw_images(batch=1) if lively(step) else FLAT
                    assert (criterion.terms(**named(images)).kept > 0) == lively(step)
        return caught

    def test_one_warning_with_the_remedy(self, criterion):
        caught = self.warnings_of(criterion, 40)
        assert [warning.category for warning in caught] == [UserWarning]
        message = str(caught[0].message)
        assert "There the patch term is 0" in message
        assert "lower `min_patch_entropy`" in message
        assert caught[0].filename == __file__

    @pytest.mark.parametrize(
        ("steps", "lively", "count"),
        [
            (40, lambda step: step % 2 == 0, 1),  # half of the steps are enough
            (150, lambda step: step < 120, 1),  # late ones count too
            (150, lambda step: step % 8 > 0, 0),  # a few are none
            (9, lambda step: False, 0),  # nor are the first
        ],
    )
    def test_how_many_it_takes(self, criterion, steps, lively, count):
        assert len(self.warnings_of(criterion, steps, lively)) == count

    def test_nor_are_steps_without_a_filter_or_out_of_training(self, criterion):
        assert not self.warnings_of(criterion.eval(), 20)
        criterion.train().patch_weight = 0.0
        assert not self.warnings_of(criterion, 20)

    def test_the_host_does_not_wait_for_it(self, criterion, reads):
        """Nothing more is read from tensors of the device than how many patches passed."""
        chosen = criterion.embed(["a dark image", "a bright image"])[[1]]
        for objectives in (None, chosen):
            criterion(**named(FLAT), objectives=objectives)
            reads.clear()  # the first call looks at the sources
            criterion(**named(FLAT), objectives=objectives)
            assert reads == ["nonzero"]
