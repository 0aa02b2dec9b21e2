"""The loss as part of a module: nobody trains it, saves it or forgets it."""

import copy
import io
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from clip_fusion_loss import FrozenCLIP, FusionObjective, LanguageDrivenFusionLoss
from clip_fusion_loss.frozen import FrozenModule
from conftest import Trainer, build_clip, make_criterion, value_and_gradients


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
        assert not list(trainer.buffers())
        assert not list(trainer.criterion.encoder.children())

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


class Holder(FrozenModule):
    frozen = ("network", "vector")

    def __init__(self):
        super().__init__()
        self.network = nn.BatchNorm1d(2)
        self.vector = torch.ones(3)


class TestFrozenModule:
    def test_networks_and_tensors_are_nobodys(self):
        owner = nn.ModuleDict({"holder": Holder()})
        assert not [*owner.parameters(), *owner.buffers(), *owner["holder"].children()]
        assert owner.state_dict() == {}
        network = owner["holder"].network
        assert not network.training
        assert not network.weight.requires_grad
        owner.train().requires_grad_(True)
        assert not network.training
        assert not network.weight.requires_grad

    def test_both_follow(self):
        holder = nn.ModuleDict({"holder": Holder()}).double()["holder"]
        assert holder.network.weight.dtype == torch.float64
        assert holder.vector.dtype == torch.float32
        holder.to("meta")
        assert holder.network.weight.is_meta
        assert holder.network.running_mean.is_meta
        assert holder.vector.is_meta

    def test_a_new_value_is_frozen_too(self):
        holder = Holder()
        holder.network = nn.Linear(2, 2)
        holder.vector = torch.zeros(3)
        assert not [*holder.parameters(), *holder.buffers()]
        assert not holder.network.weight.requires_grad


NEW_PROCESS = """
import logging, random, signal, sys, warnings
import torch

def state():
    loggers = logging.root.manager.loggerDict.items()
    return {
        "root": (list(logging.root.handlers), logging.root.level, logging.root.filters[:]),
        "disabled": logging.root.manager.disable,
        "class": logging.getLoggerClass(),
        "loggers": {
            name: (logger.level, list(logger.handlers), logger.propagate, logger.disabled)
            for name, logger in loggers if isinstance(logger, logging.Logger)
        },
        "hooks": (sys.excepthook, warnings.showwarning, signal.getsignal(signal.SIGINT)),
        "random": (random.getstate(), torch.get_rng_state().tolist()),
        "torch": (
            torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        ),
    }

mine = logging.getLogger("mine")
mine.setLevel(logging.INFO)
before = state()
import clip_fusion_loss
from clip_fusion_loss import LanguageDrivenFusionLoss
print([m for m in ("open_clip", "torchvision", "timm") if m in sys.modules])
criterion = LanguageDrivenFusionLoss.tiny(num_patches=2, min_patch_entropy=None)
criterion.set_objective("a dark image")
after = state()
# Libraries that are imported on the way have loggers of their own.
after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}
assert after == before, [name for name in before if after[name] != before[name]]
fused, visible, infrared = torch.rand(3, 1, 1, 40, 40)
criterion(fused=fused, visible=visible, infrared=infrared)
logging.basicConfig(filename=sys.argv[1], level=logging.INFO)
assert len(logging.root.handlers) == 1
handler = logging.StreamHandler(sys.stdout)
mine.addHandler(handler)
mine.info("epoch 1")
"""


class TestProcess:
    @pytest.mark.slow
    def test_a_process_and_its_log_are_as_without_the_loss(self, tmp_path):
        log = tmp_path / "train.log"
        command = [sys.executable, "-c", NEW_PROCESS, str(log)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert log.read_text() == "INFO:mine:epoch 1\n"
        # The import is light; the line is printed once, by the handler that the program gave it.
        assert result.stdout == "[]\nepoch 1\n"
        assert result.stderr == ""

    def test_building_touches_nothing_global_even_for_a_moment(self, monkeypatch):
        """Another thread could see it, or keep it for good."""

        def touched(*_):
            raise AssertionError("global state was changed")

        before = torch.get_rng_state()
        with monkeypatch.context() as patch:
            for name in ("set_default_dtype", "set_default_device", "set_rng_state", "manual_seed"):
                patch.setattr(torch, name, touched)
            patch.setattr("logging.Logger.addHandler", touched)
            patch.setattr("logging.basicConfig", touched)
            LanguageDrivenFusionLoss.tiny("a dark image")
        assert torch.equal(torch.get_rng_state(), before)

    def test_built_in_many_threads_at_once(self):
        """With another default dtype, which all of them must leave and none may use."""
        expected = LanguageDrivenFusionLoss.tiny().fusion_model.visible_direction
        built, dtypes = [], set()

        def build():
            built.append(LanguageDrivenFusionLoss.tiny().fusion_model.visible_direction)
            dtypes.add(torch.get_default_dtype())

        torch.set_default_dtype(torch.float64)
        try:
            threads = [threading.Thread(target=build) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        assert dtypes == {torch.float64}
        assert len(built) == 6
        assert all(torch.equal(vector, expected) for vector in built)


class TestMeta:
    """What large-model tools put around the construction of a user's module."""

    def test_where_parameters_have_no_values_it_is_refused(self, clip_model, tokenizer):
        accelerate = pytest.importorskip("accelerate")
        for build in (LanguageDrivenFusionLoss.tiny, lambda: FrozenCLIP(clip_model, tokenizer)):
            with (
                accelerate.init_empty_weights(),
                pytest.raises(RuntimeError, match="must be built outside.*init_empty_weights"),
            ):
                build()
        assert FrozenCLIP(build_clip(), tokenizer).encode_text("a").isfinite().all()

    @pytest.mark.parametrize("context", ["accelerate", "torch"])
    def test_where_new_tensors_are_on_meta_it_is_on_the_cpu(self, context):
        empty = torch.device("meta")
        if context == "accelerate":
            accelerate = pytest.importorskip("accelerate")
            empty = accelerate.init_empty_weights(include_buffers=True)
        with empty:
            encoder = FrozenCLIP.tiny()
        assert encoder.device.type == "cpu"
        assert encoder.encode_image(torch.rand(1, 1, 20, 20)).isfinite().all()
