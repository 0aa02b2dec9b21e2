"""The loss as part of other people's programs: in processes, threads and transforms."""

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
from conftest import (
    Trainer,
    build_clip,
    draw_images,
    gradients,
    make_criterion,
    value_and_gradients,
)


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

    @pytest.mark.slow
    def test_spawned_process(self, trainer, sources, tmp_path):
        expected = value_and_gradients(trainer, sources)
        trainer.zero_grad()
        torch.multiprocessing.spawn(train_in_a_process, (trainer, sources, tmp_path / "result"))
        actual = torch.load(tmp_path / "result", weights_only=True)
        torch.testing.assert_close(actual, expected)

    @pytest.mark.slow
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
