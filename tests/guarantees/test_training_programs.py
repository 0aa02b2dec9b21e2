"""The loss as part of other people's programs: in processes, threads and transforms."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from torch import nn

from clip_fusion_loss import FrozenCLIP, FusionObjective
from conftest import (
    Trainer,
    build_clip,
    draw_images,
    gradients,
    make_criterion,
    named,
    value_and_gradients,
)

TEXTS = ["a dark image", "a bright image", "a haze", "a sharp image"]


class TestParallel:
    @pytest.mark.slow
    def test_spawned_process(self, trainer, sources, tmp_path):
        expected = value_and_gradients(trainer, sources)
        trainer.zero_grad()
        torch.multiprocessing.spawn(train_in_a_process, (trainer, sources, tmp_path / "result"))
        actual = torch.load(tmp_path / "result", weights_only=True)
        torch.testing.assert_close(actual, expected)

    @pytest.mark.slow
    def test_distributed(self, tmp_path):
        """Two processes with half a batch and its texts have the gradient of one with all."""
        torch.multiprocessing.spawn(train_parts, (tmp_path,), nprocs=2)
        trainer, sources = distributed_trainer(), draw_images(batch=4)[1:]
        trainer(*sources, TEXTS).backward()
        for rank in range(2):
            results = torch.load(tmp_path / f"result{rank}", weights_only=True)
            # Each process keeps its own sentence, which broadcasts of buffers once replaced.
            fresh = distributed_trainer().criterion
            fresh.set_objective(TEXTS[rank])
            vectors = fresh.fusion_model.visible_direction
            assert torch.equal(results.pop("own sentence"), vectors)
            for where, (keys, slopes) in results.items():
                assert keys == list(trainer.network.state_dict()), where
                expected = gradients(trainer.network)
                torch.testing.assert_close(slopes, expected, rtol=1e-4, atol=1e-6, msg=where)

    def test_threads_share_nothing(self, tokenizer, sources):
        images = named([draw_images()[0], *sources])
        encoders = {text: FrozenCLIP(build_clip(), tokenizer) for text in TEXTS[:2]}

        def work(text):
            criterion = make_criterion(encoders[text], objective=text)
            losses = []
            for _ in range(5):
                losses.append(criterion(**images))
                criterion.set_objective(FusionObjective())
                criterion.set_objective(text)
            return losses

        alone = [work(text) for text in encoders]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(work, encoders))
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
    return Trainer(make_criterion(FrozenCLIP(build_clip(), tokenizer), patch_weight=0.0))


def train_parts(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch about itself
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    results = {}
    visible, infrared = (source.chunk(2)[rank] for source in draw_images(batch=4)[1:])
    texts = TEXTS[2 * rank : 2 * rank + 2]
    for where in ("inside", "beside", "sharded"):
        trainer = distributed_trainer()
        if where == "inside":
            wrapped = nn.parallel.DistributedDataParallel(trainer)
            wrapped(visible, infrared, texts).backward()
        elif where == "beside":
            network = nn.parallel.DistributedDataParallel(trainer.network)
            images = named([network(visible, infrared), visible, infrared])
            trainer.criterion(**images, objectives=texts).backward()
        elif hasattr(torch.distributed.fsdp, "fully_shard"):  # not in PyTorch 2.4
            mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
            torch.distributed.fsdp.fully_shard(trainer, mesh=mesh)
            clip = trainer.criterion.encoder.network
            assert not any(isinstance(p, dist.tensor.DTensor) for p in clip.parameters())
            trainer(visible, infrared, texts).backward()
        else:
            continue
        slopes = [
            slope.full_tensor() if hasattr(slope, "full_tensor") else slope
            for slope in gradients(trainer.network)
        ]
        results[where] = list(trainer.network.state_dict()), slopes
    trainer = distributed_trainer()
    trainer.criterion.set_objective(TEXTS[rank])
    wrapped = nn.parallel.DistributedDataParallel(trainer)
    for _ in range(2):  # buffers are broadcast before a forward pass
        wrapped(visible, infrared).backward()
    results["own sentence"] = trainer.criterion.fusion_model.visible_direction
    torch.save(results, folder / f"result{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("chunk", [None, 4])
def test_torch_func_grad(encoder, chunk):
    fused, *sources = draw_images()
    criterion = make_criterion(encoder, patch_chunk=chunk)
    actual = torch.func.grad(lambda image: criterion(**named([image, *sources])))(fused)
    criterion.generator.manual_seed(1)
    leaf = fused.clone().requires_grad_()
    criterion(**named([leaf, *sources])).backward()
    torch.testing.assert_close(actual, leaf.grad)


def test_training_lowers_the_loss(trainer, sources):
    optimizer = torch.optim.Adam(trainer.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        losses.append(value_and_gradients(trainer, sources)[0].item())
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
