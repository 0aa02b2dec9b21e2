"""The loss as part of a module: nobody trains it, saves it or forgets it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from clip_fusion_loss import (
    FrozenCLIP,
    FusionObjective,
)
from conftest import Trainer, make_criterion, value_and_gradients


def saved(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return file.getvalue()


class TestCheckpoints:
    def test_not_a_byte_more(self, trainer):
        torch.manual_seed(0)
        without = Trainer()
        assert list(trainer.state_dict()) == list(without.state_dict())
        assert saved(trainer) == saved(without)

    def test_each_part_alone(self, trainer):
        criterion = trainer.criterion
        for part in (criterion, criterion.encoder, criterion.fusion_model):
            owner = nn.ModuleDict({"part": part})
            assert saved(owner) == saved(nn.ModuleDict())
            assert part.state_dict() == {}

    def test_old_checkpoints_load_strictly(self, trainer):
        old = Trainer().state_dict()
        trainer.load_state_dict(old, strict=True)
        assert all(torch.equal(old[name], value) for name, value in trainer.state_dict().items())

    def test_a_regularizer_that_learns_is_saved(self, encoder, sources):
        class Learns(nn.Module):
            def __init__(self):
                super().__init__()
                self.normalization = nn.BatchNorm2d(1)

            def forward(self, fused, visible, infrared):
                return self.normalization(fused).square().mean((1, 2, 3))

        trainer = Trainer(make_criterion(encoder, regularizer=Learns()))
        trainer(*sources)
        state = trainer.state_dict()
        name = "criterion.regularizer.normalization"
        assert state[f"{name}.running_mean"] != 0
        assert state._metadata[name] == {"version": 2}
        fresh = Trainer(make_criterion(encoder, regularizer=Learns()))
        fresh.load_state_dict(state, strict=True)
        assert saved(fresh) == saved(trainer)


class TestModuleMethods:
    def test_parameters_and_optimizers_see_nothing(self, trainer):
        own = list(trainer.network.parameters())
        assert [id(p) for p in trainer.parameters()] == [id(p) for p in own]
        assert not list(trainer.criterion.buffers()) or all(
            not buffer.requires_grad for buffer in trainer.criterion.buffers()
        )

    def test_train_apply_and_requires_grad_pass_by(self, trainer):
        tower = trainer.criterion.encoder.network
        weights = copy.deepcopy(tower.state_dict())

        @torch.no_grad()
        def zero(module):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm):
                    tensor.zero_()

        trainer.train().apply(zero).requires_grad_(True)
        assert not any(module.training for module in tower.modules())
        assert not any(p.requires_grad for p in tower.parameters())
        assert all(torch.equal(weights[name], value) for name, value in tower.state_dict().items())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_casts(self, trainer, sources, dtype):
        # Without the filter: rounding the sources moves patches across its threshold.
        trainer.criterion.min_patch_entropy = None
        expected, _ = value_and_gradients(trainer, sources)
        criterion = trainer.criterion
        directions = criterion.fusion_model.visible_direction.clone()
        trainer.to(dtype)
        assert next(criterion.encoder.network.parameters()).dtype == dtype
        assert torch.equal(criterion.fusion_model.visible_direction, directions)
        loss, slopes = value_and_gradients(trainer, [source.to(dtype) for source in sources])
        assert loss.dtype == torch.float32
        assert all(slope.dtype == dtype and slope.isfinite().all() for slope in slopes)
        tolerance = 1e-5 if dtype == torch.float64 else 0.02
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)

    def test_to_a_device(self, trainer):
        trainer.to("meta")
        criterion = trainer.criterion
        assert next(criterion.encoder.network.parameters()).is_meta
        assert criterion.fusion_model.visible_direction.is_meta
        assert criterion.encoder.device.type == "meta"

    def test_to_empty_keeps_what_no_checkpoint_could_restore(self, trainer, sources):
        state = copy.deepcopy(trainer.state_dict())
        expected = value_and_gradients(trainer, sources)
        trainer.to_empty(device="cpu").load_state_dict(state)
        torch.testing.assert_close(value_and_gradients(trainer, sources), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_deepcopy_and_pickle(self, trainer, sources, clone):
        copied = clone(trainer)
        expected = value_and_gradients(trainer, sources)
        torch.testing.assert_close(value_and_gradients(copied, sources), expected, rtol=0, atol=0)
        copied.criterion.set_objective("a blurry dark image")
        assert trainer.criterion.objective == FusionObjective()

    def test_torch_save_of_the_whole_module(self, trainer, sources, tmp_path):
        torch.save(trainer, tmp_path / "whole.pt")
        loaded = torch.load(tmp_path / "whole.pt", weights_only=False)
        expected = value_and_gradients(trainer, sources)
        torch.testing.assert_close(value_and_gradients(loaded, sources), expected, rtol=0, atol=0)

    def test_moving_average_of_the_weights(self, trainer, sources):
        average = torch.optim.swa_utils.AveragedModel(trainer)
        optimizer = torch.optim.SGD(trainer.parameters(), 0.1)
        for _ in range(2):
            value_and_gradients(trainer, sources)
            optimizer.step()
            average.update_parameters(trainer)
        assert average(*sources).isfinite()


class TestEncoderAlone:
    def test_the_models_own_children_stay(self, clip_model, tokenizer):
        FrozenCLIP(clip_model, tokenizer)
        assert clip_model.encode_image(torch.rand(1, 3, 32, 32)).shape == (1, 24)

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_deepcopy_and_pickle(self, encoder, clone):
        images = torch.rand(1, 1, 20, 20)
        copied = clone(encoder)
        assert torch.equal(copied.encode_image(images), encoder.encode_image(images))
        assert torch.equal(copied.encode_text("new"), encoder.encode_text("new"))
        assert copied.fingerprint == encoder.fingerprint
        encoder.half()
        assert copied.network.conv1.weight.dtype == torch.float32
