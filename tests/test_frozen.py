"""The loss as part of a module: nobody trains it, saves it or forgets it."""

import copy
import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

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


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


class TestCheckpoints:
    def test_no_key_more(self, trainer):
        assert list(trainer.state_dict()) == list(Trainer().state_dict())

    def test_each_part_alone(self, trainer):
        criterion = trainer.criterion
        for part in (criterion, criterion.encoder, criterion.fusion_model):
            assert part.state_dict() == nn.ModuleDict({"part": part}).state_dict() == {}

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
        assert state["criterion.regularizer.normalization.running_mean"] != 0
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

    @pytest.mark.parametrize("clone", [copy.deepcopy, through_pickle, through_torch_save])
    def test_copies(self, trainer, sources, clone):
        copied = clone(trainer)
        expected = value_and_gradients(trainer, sources)
        torch.testing.assert_close(value_and_gradients(copied, sources), expected, rtol=0, atol=0)
        copied.criterion.set_objective("a blurry dark image")
        assert trainer.criterion.objective == FusionObjective()


class Holder(FrozenModule):
    frozen = ("network", "vector")

    def __init__(self):
        super().__init__()
        self.network = nn.BatchNorm1d(2)
        self.vector = torch.ones(3)


def test_a_frozen_module():
    """Networks and tensors are nobody's, follow every move, and keep this when assigned anew."""
    holder = Holder()
    owner = nn.ModuleDict({"holder": holder}).double()
    assert holder.network.weight.dtype == torch.float64
    assert holder.vector.dtype == torch.float32
    for network in (holder.network, nn.BatchNorm1d(2)):
        holder.network, holder.vector = network, torch.zeros(3)
        owner.train().requires_grad_(True)
        assert not [*owner.parameters(), *owner.buffers(), *holder.children()]
        assert owner.state_dict() == {}
        assert not network.training
        assert not network.weight.requires_grad
    holder.to("meta")
    assert all(t.is_meta for t in (network.weight, network.running_mean, holder.vector))


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

        with monkeypatch.context() as patch:
            for name in ("set_default_dtype", "set_default_device", "set_rng_state", "manual_seed"):
                patch.setattr(torch, name, touched)
            patch.setattr("logging.Logger.addHandler", touched)
            patch.setattr("logging.basicConfig", touched)
            LanguageDrivenFusionLoss.tiny("a dark image")

    def test_built_in_many_threads_at_once(self):
        """With another default dtype, which all of them must leave and none may use."""
        expected = LanguageDrivenFusionLoss.tiny().fusion_model.visible_direction

        def build(_):
            vector = LanguageDrivenFusionLoss.tiny().fusion_model.visible_direction
            return vector, torch.get_default_dtype()

        torch.set_default_dtype(torch.float64)
        try:
            with ThreadPoolExecutor(6) as pool:
                built, dtypes = zip(*pool.map(build, range(6)), strict=True)
            assert {torch.get_default_dtype(), *dtypes} == {torch.float64}
        finally:
            torch.set_default_dtype(torch.float32)
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

    def test_where_new_tensors_are_on_meta_it_is_on_the_cpu(self):
        accelerate = pytest.importorskip("accelerate")
        with accelerate.init_empty_weights(include_buffers=True):
            encoder = FrozenCLIP.tiny()
        assert encoder.device.type == "cpu"
        assert encoder.encode_image(torch.rand(1, 1, 20, 20)).isfinite().all()
