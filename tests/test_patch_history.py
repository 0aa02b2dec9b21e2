"""Patches from step to step: in eval mode, in recomputed steps, and where none passes."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from conftest import Trainer, draw_images, gradients, make_criterion


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
            criterion(leaf, *sources).backward()
            slopes.append(leaf.grad)
        assert torch.equal(*slopes)


def range4():
    return (slice(0, 1), slice(1, 3), slice(3, 4))


class TestRecomputation:
    """torch.utils.checkpoint calls the loss a second time, in the backward pass."""

    def run(self, criterion, segment, **options):
        """Gradients of a network whose loss is checkpointed."""
        torch.manual_seed(0)
        trainer, (_, visible, infrared) = Trainer(criterion), draw_images()
        if segment == "loss":
            fused = trainer.network(visible, infrared)
            loss = checkpoint(criterion, fused, visible, infrared, **options)
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

    @pytest.mark.parametrize("segment", ["loss", "all"])
    @pytest.mark.parametrize("reentrant", [True, False])
    def test_other_patches_are_an_error(self, encoder, segment, reentrant):
        with pytest.raises(RuntimeError, match="(?s)drew other patches.*`generator` at None"):
            self.run(make_criterion(encoder), segment, use_reentrant=reentrant)

    @pytest.mark.parametrize("chunk", [None, 1, 4])
    def test_images_are_encoded_twice_and_not_anew_for_each_chunk(
        self, encoder, encoded_batches, chunk
    ):
        criterion = make_criterion(encoder, generator=None, patch_chunk=chunk)
        self.plain(criterion)
        images = sum(encoded_batches)
        self.run(criterion, "loss", use_reentrant=False)
        assert sum(encoded_batches) == 3 * images

    def test_as_are_torchs_own_if_they_are_not_repeated(self, encoder):
        criterion = make_criterion(encoder, generator=None)
        with pytest.raises(RuntimeError, match="preserve_rng_state"):
            self.run(criterion, "loss", use_reentrant=False, preserve_rng_state=False)

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
        sum(criterion(leaf, *sources) for _ in range(3)).backward()
        torch.manual_seed(0)
        again = fused.clone().requires_grad_()
        sum(
            checkpoint(criterion, again, *sources, use_reentrant=False) for _ in range(3)
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
                    assert (criterion.terms(*images).kept > 0) == lively(step)
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

    def test_the_host_does_not_wait_for_it(self, criterion, monkeypatch):
        """Nothing more is read from tensors of the device than how many patches passed."""
        reads = []
        for name in ("item", "__bool__", "__int__", "__float__", "nonzero", "tolist", "cpu"):
            original = getattr(torch.Tensor, name)

            def read(tensor, *arguments, name=name, original=original):
                # The maps are drawn on the host.
                if tensor.shape != (6,):
                    reads.append(name)
                return original(tensor, *arguments)

            monkeypatch.setattr(torch.Tensor, name, read)
        criterion(*FLAT)
        reads.clear()  # the first call looks at the sources
        criterion(*FLAT)
        assert reads == ["nonzero"]


def test_what_is_remembered_survives_copies(encoder):
    criterion = make_criterion(encoder, generator=None)
    criterion(*draw_images())
    for copied in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert copied(*draw_images()).isfinite()
    assert isinstance(nn.DataParallel(criterion)(*draw_images()), torch.Tensor)
