"""Patches: chunked gradients, eval mode, recomputed steps, and steps in which none passes."""

import copy
import pickle
import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from clip_fusion_loss import IntensityGradientLoss, LanguageDrivenFusionLoss, patches
from conftest import Trainer, draw_images, gradients, make_criterion, named

CHUNKS = [1, 3, 5, 64, "auto"]


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


def test_never_more_than_a_chunk_at_a_time(encoder, encoded_batches):
    images = draw_images(batch=2)
    value_and_gradient(make(encoder, 5, min_patch_entropy=None), images)
    assert encoded_batches == [4, 5, 5, 4, 2]


def test_compiled_towers_see_one_chunk_size(encoder, encoded_batches, monkeypatch):
    monkeypatch.setattr(encoder, "compile", lambda **options: None)
    images = draw_images(batch=2)
    expected = value_and_gradient(make(encoder, None, min_patch_entropy=None), images)
    encoded_batches.clear()
    actual = value_and_gradient(make(encoder, 5, min_patch_entropy=None, compile=True), images)
    assert encoded_batches == [4, 5, 5, 5, 2]
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-3, atol=1e-6)


def test_without_grad(encoder):
    images = draw_images()
    expected = make(encoder, None)(**named(images))
    with torch.no_grad():
        images[0].requires_grad_()
        loss = make(encoder, 3)(**named(images))
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)


def test_fused_that_needs_no_gradient(encoder):
    images = draw_images()
    loss = make(encoder, 3)(**named(images))
    assert not loss.requires_grad
    torch.testing.assert_close(loss, make(encoder, None)(**named(images)))


def test_gradients_accumulate(encoder):
    images = draw_images()
    _, once = value_and_gradient(make(encoder, 3), images)
    fused = images[0].requires_grad_()
    loss = make(encoder, 3)(**named(images))
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(fused.grad, 2 * once)


def test_double_backward_through_chunks_is_an_error(encoder):
    images = draw_images()
    images[0].requires_grad_()
    expected = value_and_gradient(make(encoder, 3), images)[1]
    with sdpa_kernel(SDPBackend.MATH):
        (slope,) = torch.autograd.grad(
            make(encoder, 3)(**named(images)), images[0], create_graph=True
        )
        torch.testing.assert_close(slope.detach(), expected, rtol=1e-3, atol=1e-6)
        with pytest.raises(RuntimeError, match="patch_chunk=None"):
            slope.square().sum().backward()


def test_double_backward(encoder):
    images = draw_images()
    images[0].requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        loss = make(encoder, None)(**named(images))
        (slope,) = torch.autograd.grad(loss, images[0], create_graph=True)
        try:
            (second,) = torch.autograd.grad(slope.square().sum(), images[0])
        except RuntimeError as error:
            if "grid_sampler_2d_backward" not in str(error):
                raise
            pytest.skip("this PyTorch has no second derivative of grid_sample")
    assert second.isfinite().all()
    assert second.abs().sum() > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision(encoder, precision):
    images = draw_images()
    expected = value_and_gradient(make(encoder, 3, precision="fp32"), images)
    actual = value_and_gradient(make(encoder, 3, precision=precision), images)
    assert actual[0] != expected[0], "nothing was computed in reduced precision"
    torch.testing.assert_close(actual[0], expected[0], rtol=0.02, atol=0)
    error = (actual[1] - expected[1]).norm() / expected[1].norm()
    assert error < 0.1


def test_fp32_holds_inside_autocast(encoder):
    images = draw_images()
    expected = make(encoder, 3)(**named(images))
    with torch.autocast("cpu", torch.bfloat16):
        assert make(encoder, 3, precision="fp32")(**named(images)) == expected


@pytest.mark.parametrize("chunk", [0, -1, 2.5, "all", True])
def test_wrong_chunk(encoder, chunk):
    with pytest.raises((TypeError, ValueError), match="`patch_chunk`"):
        make(encoder, chunk)


def test_wrong_precision(encoder):
    with pytest.raises(ValueError, match="`precision`"):
        make(encoder, 3, precision="fp8")


@pytest.mark.parametrize(
    ("device", "size", "chunk"),
    [
        ("cpu", (224, 224), 6),
        ("cpu", (336, 336), 6),
        ("cpu", (96, 96), 32),
        ("cpu", (32, 32), 64),
        ("cuda", (96, 96), 64),
    ],
)
def test_automatic_chunks(device, size, chunk):
    assert patches.default_chunk(torch.device(device), size) == chunk


def test_the_only_chunk_is_not_padded_beyond_all_patches():
    lengths = []

    def score(images, owners):
        lengths.append(len(images))
        return images.mean((1, 2, 3))

    maps = torch.eye(3)[:2].expand(2, 4, 2, 3)
    images, index = torch.rand(2, 1, 8, 8), torch.tensor([1, 5, 6])
    patches.sum_over_patches(images, maps, index, (8, 8), score, chunk=32, pad=True)
    assert lengths == [8]


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
        parts = torch.cat([module(*(source[part] for source in sources)) for part in range4()])
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

    def test_gradient(self, encoder):
        criterion = make_criterion(encoder).eval()
        fused, *sources = draw_images()
        slopes = []
        for _ in range(2):
            leaf = fused.clone().requires_grad_()
            criterion(**named([leaf, *sources])).backward()
            slopes.append(leaf.grad)
        assert torch.equal(*slopes)


def range4():
    return (slice(0, 1), slice(1, 3), slice(3, 4))


def in_order(criterion):
    """The reentrant form of torch.utils.checkpoint passes no keywords."""
    return lambda *images: criterion(**named(images))


class TestRecomputation:
    """torch.utils.checkpoint calls the loss a second time, in the backward pass."""

    def run(self, criterion, segment, **options):
        """Gradients of a network whose loss is checkpointed."""
        torch.manual_seed(0)
        trainer, (_, visible, infrared) = Trainer(criterion), draw_images()
        if segment == "loss":
            fused = trainer.network(visible, infrared)
            loss = checkpoint(in_order(criterion), fused, visible, infrared, **options)
        else:
            # For its reentrant form one of the arguments must need a gradient.
            loss = checkpoint(trainer, visible.clone().requires_grad_(), infrared, **options)
        loss.backward()
        return gradients(trainer.network)

    def plain(self, criterion):
        torch.manual_seed(0)
        trainer = Trainer(criterion)
        trainer(*draw_images()[1:]).backward()
        return gradients(trainer.network)

    @pytest.mark.parametrize("segment", ["loss", "all"])
    @pytest.mark.parametrize("reentrant", [True, False])
    @pytest.mark.parametrize("chunk", [None, "auto"])
    def test_torchs_own_numbers_are_repeated(self, encoder, segment, reentrant, chunk):
        criterion = make_criterion(encoder, generator=None, patch_chunk=chunk)
        expected = self.plain(criterion)
        actual = self.run(criterion, segment, use_reentrant=reentrant)
        torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("chunk", [None, 1, 4])
    def test_images_are_encoded_twice_and_not_anew_for_each_chunk(
        self, encoder, encoded_batches, chunk
    ):
        criterion = make_criterion(encoder, generator=None, patch_chunk=chunk)
        self.plain(criterion)
        images = sum(encoded_batches)
        self.run(criterion, "loss", use_reentrant=False)
        assert sum(encoded_batches) == 3 * images

    def test_in_eval_mode_they_are_the_same_anyway(self, encoder):
        criterion = make_criterion(encoder).eval()
        torch.testing.assert_close(
            self.run(criterion, "loss", use_reentrant=False), self.plain(criterion)
        )

    def test_accumulated_steps(self, encoder):
        """Several forward passes, and then their backward passes."""
        criterion = make_criterion(encoder, generator=None)
        fused, *sources = draw_images()
        torch.manual_seed(0)
        leaf = fused.clone().requires_grad_()
        sum(criterion(**named([leaf, *sources])) for _ in range(3)).backward()
        torch.manual_seed(0)
        again = fused.clone().requires_grad_()
        sum(
            checkpoint(in_order(criterion), again, *sources, use_reentrant=False) for _ in range(3)
        ).backward()
        torch.testing.assert_close(again.grad, leaf.grad)


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
        assert "`kept` is 0" in message
        assert "lower `min_patch_entropy`" in message
        assert caught[0].filename == __file__

    def test_half_of_the_steps_are_enough(self, criterion):
        assert len(self.warnings_of(criterion, 40, lively=lambda step: step % 2 == 0)) == 1

    def test_late_ones_count_too(self, criterion):
        assert len(self.warnings_of(criterion, 150, lively=lambda step: step < 120)) == 1

    def test_a_few_are_none(self, criterion):
        assert not self.warnings_of(criterion, 150, lively=lambda step: step % 8 > 0)

    def test_nor_are_the_first(self, criterion):
        assert not self.warnings_of(criterion, 9)

    def test_nor_are_steps_without_a_filter_or_out_of_training(self, criterion):
        assert not self.warnings_of(criterion.eval(), 20)
        criterion.train().patch_weight = 0.0
        assert not self.warnings_of(criterion, 20)

    def test_the_host_does_not_wait_for_it(self, criterion, reads):
        """Nothing more is read from tensors of the device than how many patches passed."""
        criterion(**named(FLAT))
        reads.clear()  # the first call looks at the sources
        criterion(**named(FLAT))
        assert reads == ["nonzero"]


def test_what_is_remembered_survives_copies(encoder):
    criterion = make_criterion(encoder, generator=None)
    criterion(**named(draw_images()))
    for copied in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert copied(**named(draw_images())).isfinite()
