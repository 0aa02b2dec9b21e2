"""The loss as part of other people's programs: it leaves their state alone and goes along."""

import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from torch import nn

from clip_fusion_loss import (
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
)
from conftest import Trainer, build_clip, draw_images, gradients, make_criterion


@pytest.fixture
def criterion(encoder):
    # torch's own generator: another one does not survive the way to a spawned process.
    return make_criterion(encoder, regularizer=IntensityGradientLoss(), generator=None)


@pytest.fixture
def trainer(criterion):
    torch.manual_seed(0)
    return Trainer(criterion)


@pytest.fixture
def sources():
    return draw_images()[1:]


def saved(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return file.getvalue()


def value_and_gradients(trainer, sources):
    trainer.zero_grad()
    torch.manual_seed(1)
    loss = trainer(*sources)
    loss.backward()
    return loss.detach(), gradients(trainer)


class TestCheckpoints:
    def test_not_a_byte_more(self, criterion):
        torch.manual_seed(0)
        without = Trainer()
        trainer = copy.deepcopy(without)
        trainer.criterion = criterion
        assert list(trainer.state_dict()) == list(without.state_dict())
        assert saved(trainer) == saved(without)

    def test_each_part_alone(self, criterion):
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


class TestParallel:
    def test_data_parallel(self, trainer, sources):
        expected = value_and_gradients(trainer, sources)
        trainer.zero_grad()
        torch.manual_seed(1)
        loss = nn.DataParallel(trainer)(*sources)
        loss.backward()
        actual = loss.detach(), gradients(trainer)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    def test_replicas_on_other_devices_have_their_own_network(self, encoder):
        # What nn.DataParallel does, with a device that every machine has.
        replica = encoder._replicate_for_data_parallel()
        replica._buffers = {name: b.to("meta") for name, b in encoder._buffers.items()}
        for _ in range(2):
            assert replica.encode_image(torch.empty(2, 1, 20, 20, device="meta")).is_meta
        assert len(encoder._hidden) == 2
        assert encoder.encode_image(torch.rand(2, 1, 20, 20)).isfinite().all()
        encoder.double()
        assert len(encoder._hidden) == 1

    def test_spawned_process(self, trainer, sources, tmp_path):
        expected = value_and_gradients(trainer, sources)
        trainer.zero_grad()
        torch.multiprocessing.spawn(train_in_a_process, (trainer, sources, tmp_path / "result"))
        actual = torch.load(tmp_path / "result", weights_only=True)
        torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("where", ["inside", "beside", "sharded"])
    def test_distributed(self, where, tmp_path):
        """Two processes with half a batch each have the gradient of one with all of it."""
        if where == "sharded" and not hasattr(torch.distributed.fsdp, "fully_shard"):
            pytest.skip("this PyTorch has no fully_shard")
        torch.multiprocessing.spawn(train_a_part, (where, tmp_path), nprocs=2)
        ranks = [torch.load(tmp_path / f"result{rank}", weights_only=True) for rank in range(2)]
        trainer, sources = distributed_trainer(), draw_images(batch=4)[1:]
        trainer(*sources).backward()
        for rank in ranks:
            assert rank["keys"] == list(trainer.network.state_dict())
            torch.testing.assert_close(
                rank["gradients"], gradients(trainer.network), rtol=1e-4, atol=1e-6
            )

    def test_threads_do_not_share_state(self, tokenizer, sources):
        fused = draw_images()[0]
        texts = ["a sharp image", "a blurry dark image"]

        encoders = {text: FrozenCLIP(build_clip(), tokenizer) for text in texts}

        def work(text, losses):
            criterion = make_criterion(encoders[text], objective=text)
            for _ in range(5):
                losses.append(criterion(fused, *sources))
                criterion.set_objective(FusionObjective())
                criterion.set_objective(text)

        alone, together = ([[], []] for _ in range(2))
        for text, losses in zip(texts, alone, strict=True):
            work(text, losses)
        threads = [
            threading.Thread(target=work, args=arguments)
            for arguments in zip(texts, together, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert alone[0] != alone[1]
        assert together == alone


def train_in_a_process(_, trainer, sources, path):
    torch.set_num_threads(1)
    torch.save(value_and_gradients(trainer, sources), path)


def distributed_trainer():
    """The same in every process; no random patches, which would differ between processes."""
    import open_clip

    torch.manual_seed(0)
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=24)
    encoder = FrozenCLIP(build_clip(), tokenizer)
    return Trainer(make_criterion(encoder, patch_weight=0.0))


def train_a_part(rank, where, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch about itself
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    trainer = distributed_trainer()
    visible, infrared = (source.chunk(2)[rank] for source in draw_images(batch=4)[1:])
    if where == "inside":
        wrapped = nn.parallel.DistributedDataParallel(trainer)
        wrapped(visible, infrared).backward()
    elif where == "beside":
        network = nn.parallel.DistributedDataParallel(trainer.network)
        trainer.criterion(network(visible, infrared), visible, infrared).backward()
    else:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        torch.distributed.fsdp.fully_shard(trainer, mesh=mesh)
        assert not any(
            isinstance(p, dist.tensor.DTensor)
            for p in trainer.criterion.encoder.network.parameters()
        )
        trainer(visible, infrared).backward()
    slopes = [
        slope.full_tensor() if hasattr(slope, "full_tensor") else slope
        for slope in gradients(trainer.network)
    ]
    keys = list(trainer.network.state_dict())
    torch.save({"gradients": slopes, "keys": keys}, folder / f"result{rank}")
    dist.destroy_process_group()


class TestTransforms:
    """torch.func on the loss."""

    @pytest.mark.parametrize("chunk", [None, 4])
    def test_grad(self, encoder, chunk):
        fused, *sources = draw_images()
        criterion = make_criterion(encoder, patch_chunk=chunk)
        actual = torch.func.grad(lambda image: criterion(image, *sources))(fused)
        criterion.generator.manual_seed(1)
        leaf = fused.clone().requires_grad_()
        criterion(leaf, *sources).backward()
        torch.testing.assert_close(actual, leaf.grad)

    def test_what_has_no_rule_is_an_error(self, encoder):
        fused, *sources = draw_images(batch=1)
        fused = fused.clone().requires_grad_()
        criterion = make_criterion(encoder)
        with pytest.raises(RuntimeError, match="vmap"):
            torch.func.vmap(lambda image: criterion(image[None], *sources))(fused)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms(trainer, sources, deterministic):
    expected = value_and_gradients(trainer, sources)
    for _ in range(2):
        torch.testing.assert_close(value_and_gradients(trainer, sources), expected, rtol=0, atol=0)


def test_prompt_swap_in_mid_training_changes_the_very_next_value(trainer, sources):
    optimizer = torch.optim.SGD(trainer.parameters(), 0.01)
    value_and_gradients(trainer, sources)
    optimizer.step()
    old, _ = value_and_gradients(trainer, sources)
    trainer.criterion.set_objective("a blurry dark image")
    new, _ = value_and_gradients(trainer, sources)
    trainer.criterion = make_criterion(
        trainer.criterion.encoder,
        objective="a blurry dark image",
        regularizer=IntensityGradientLoss(),
        generator=None,
    )
    assert old != new == value_and_gradients(trainer, sources)[0]


def test_training_lowers_the_loss(trainer, sources):
    optimizer = torch.optim.Adam(trainer.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        losses.append(value_and_gradients(trainer, sources)[0].item())
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
