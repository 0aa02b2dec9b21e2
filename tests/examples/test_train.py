"""The training script: what it sees, what it writes, and that nothing stops it for good."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from threading import Event

import open_clip
import pytest
import torch
import torch.distributed as dist
from drawn import draw_pairs, save_pairs
from PIL import Image
from torch import nn

import train
from clip_fusion_loss import (
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    functional,
)
from conftest import build_clip
from parts.data.crops import Crops
from parts.data.seeds import seed_for
from parts.losses.combined import NetworkWithLosses
from parts.losses.original import SwinFusionLoss
from parts.networks.densefuse import DenseFuse
from parts.training.checkpoints import load_checkpoint, load_network
from parts.training.processes import Processes
from parts.training.schedule import learning_rate_factor
from parts.training.step import TrainingStep
from parts.training.trainer import Plan, Trainer

EXAMPLES = Path(train.__file__).parent
SMALL = [*("--crop", "32", "--batch", "2", "--patches", "2", "--crops-per-pair", "2")]
SMALL += ["--sample-every", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pairs(draw_pairs(), tmp_path_factory.mktemp("pairs"))


def run(folder, out, *options, network="densefuse"):
    train.main(["--network", network, "--pairs", str(folder), "--out", str(out), *SMALL, *options])
    return read_log(out)


def read_log(out):
    with open(out / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_schedule_is_the_intended_one():
    step = 1 / 100
    factor = partial(learning_rate_factor, warmup=1.0, milestones=(50, 60, 70, 80, 90))
    assert factor(0, step) == pytest.approx(0.01)
    assert factor(0.5, step) == pytest.approx(0.51)
    assert factor(0.99, step) == factor(49.99, step) == 1
    halved = [factor(epoch, step) for epoch in (50, 60, 70, 80, 90, 99.99)]
    assert halved == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32]
    assert learning_rate_factor(0, step, warmup=0, milestones=()) == 1


@pytest.mark.parametrize("network", ["densefuse", "u2fusion", "swinfusion", "ldfusion"])
def test_every_network_trains(tmp_path, folder, network, capsys):
    rows = run(folder, tmp_path, "--steps", "2", "--swap-inputs", network=network)
    assert [row["step"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == [
        *("step", "epoch", "rate", "total"),
        *("language_total", "language_direction", "language_patch", "language_similarity"),
        *("language_regularizer", "language_kept"),
    ]
    assert all(float(value) >= 0 for value in rows[1].values())
    # Six crops an epoch, two a step: the third step would reach the full rate.
    assert [float(row["rate"]) for row in rows] == pytest.approx([5e-4 / 3, 1e-3 / 3])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "log.csv",
        "samples",
    ]
    with Image.open(tmp_path / "samples" / "step_0000002.png") as sheet:
        assert min(sheet.size) > 200
    captured = capsys.readouterr()
    assert "finished" in captured.out
    assert "kept=" in captured.err, "the progress bar says how many patches count"
    fused = load_network(tmp_path / "checkpoint.pt")(*torch.rand(2, 1, 1, 32, 32))
    assert fused.isfinite().all()


def test_original_objectives_and_mixtures(tmp_path, folder):
    alone = run(folder, tmp_path / "a", "--steps", "2", "--loss", "original")
    assert list(alone[0])[3:] == ["total", "original_total", "original_pixels", "original_ssim"]
    weights = ["--language-weight", "0.5", "--original-weight", "0.25"]
    both = run(folder, tmp_path / "b", "--steps", "1", "--loss", "both", *weights)
    (row,) = ({name: float(value) for name, value in row.items()} for row in both)
    expected = 0.5 * row["language_total"] + 0.25 * row["original_total"]
    assert row["total"] == pytest.approx(expected, rel=1e-5)


def test_two_stages(tmp_path, folder):
    """Two thirds of an epoch of three steps are for reconstruction."""
    rows = run(folder, tmp_path, "--steps", "4", "--reconstruction-epochs", "0.6")
    assert [bool(row["original_total"]) for row in rows] == [True, True, False, False]
    assert [bool(row["language_total"]) for row in rows] == [False, False, True, True]
    assert rows[0]["total"] == rows[0]["original_total"]
    assert rows[3]["total"] == rows[3]["language_total"]


def environment():
    """That of a process which computes with one thread, as the tests here do."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_resuming_after_kill_9_gives_the_same_numbers(tmp_path, folder):
    options = ["--save-every", "3", "--accumulate", "2", "--swap-inputs"]
    run(folder, tmp_path / "whole", *options, "--steps", "8")

    out = tmp_path / "killed"
    command = [sys.executable, str(EXAMPLES / "train.py"), "--network", "densefuse"]
    command += ["--pairs", str(folder), "--out", str(out), *SMALL, *options, "--steps", "100000"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not ((out / "log.csv").is_file() and len(read_log(out)) >= 5):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    assert checkpoint.step % 3 == 0
    last = checkpoint.step + 5
    run(folder, out, *options, "--resume", "--steps", str(last))
    run(folder, tmp_path / "whole", *options, "--resume", "--steps", str(last))

    logs, weights = (
        [read(tmp_path / name) for name in ("whole", "killed")]
        for read in (read_log, lambda out: load_checkpoint(out / "checkpoint.pt").weights)
    )
    assert logs[0] == logs[1]
    assert [int(row["step"]) for row in logs[0]] == list(range(1, last + 1))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_interrupting_saves(tmp_path, folder, monkeypatch, capsys):
    steps = Trainer._train_step
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background

    def interrupted(self, *arguments):
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
        return steps(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        with pytest.raises(SystemExit) as end:
            run(folder, tmp_path, "--steps", "5")
    assert end.value.code == 130
    assert "stopped after step 2; --resume continues" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "checkpoint.pt").step == 2
    assert len(run(folder, tmp_path, "--steps", "3", "--resume")) == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(NetworkWithLosses, "_noisy", lambda self, image: image * torch.nan)
    with pytest.raises(SystemExit, match="the loss is nan in step 1"):
        run(folder, tmp_path, "--steps", "2")
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_step_without_a_finite_loss_leaves_the_weights_alone():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    take_step = TrainingStep(
        lambda visible, infrared: {"total": (weight * visible / infrared).sum()},
        optimizer,
        Processes(0, 1, torch.device("cpu")),
    )
    with pytest.raises(ValueError, match="the loss is inf in step 1; try a lower learning rate"):
        take_step(iter([(torch.ones(1), torch.zeros(1))]))
    assert (weight.item(), take_step.done) == (1, 0)
    assert take_step(iter([(torch.ones(1), torch.ones(1))])) == ({"total": 1}, False)
    assert (weight.item(), take_step.done) == (0, 1)


@pytest.mark.parametrize(
    ("max_norm", "moved"), [(None, [3.0, 4.0]), (10, [3.0, 4.0]), (1, [0.6, 0.8])]
)
def test_large_gradients_are_scaled_down(max_norm, moved):
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    take_step = TrainingStep(
        lambda visible, infrared: {"total": (weights[0] * visible + weights[1] * infrared).sum()},
        torch.optim.SGD(weights, lr=1.0),
        Processes(0, 1, torch.device("cpu")),
        max_norm=max_norm,
    )
    take_step(iter([(torch.tensor([3.0]), torch.tensor([4.0]))]))
    assert [-weight.item() for weight in weights] == pytest.approx(moved, rel=1e-5)


def test_the_largest_norm_is_an_option(tmp_path, folder):
    free = run(folder, tmp_path / "free", "--steps", "3")
    held = run(folder, tmp_path / "held", "--steps", "3", "--max-norm", "0")
    assert held[0] == free[0]
    assert held[2] != free[2]


def test_mixed_precision(tmp_path, folder):
    rows = run(folder, tmp_path / "a", "--steps", "2", "--amp", "bf16", "--loss", "both")
    exact = run(folder, tmp_path / "b", "--steps", "2", "--loss", "both")
    assert float(rows[0]["total"]) == pytest.approx(float(exact[0]["total"]), rel=0.05)
    assert rows[0] != exact[0]


def test_noise_reaches_the_network_but_not_the_loss():
    inputs = []

    class Network(nn.Module):
        def forward(self, visible, infrared):
            inputs.append((visible, infrared))
            return (visible + infrared) / 2

    torch.manual_seed(0)
    visible, infrared = torch.rand(2, 4, 1, 32, 32)
    combined = NetworkWithLosses(Network(), None, SwinFusionLoss(), noise=0.03)
    terms = combined(visible, infrared)
    for noisy, clean in zip(inputs[0], (visible, infrared), strict=True):
        assert (noisy - clean).std().item() == pytest.approx(0.03, rel=0.05)
    clean_terms = SwinFusionLoss().terms(sum(inputs[0]) / 2, visible, infrared)
    torch.testing.assert_close(terms["original_total"], clean_terms.total)


def make_trainer(out, processes):
    """A step of DenseFuse on four crops; of two processes each has half of them."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=24)
    generator = torch.Generator()
    language = LanguageDrivenFusionLoss(
        encoder=FrozenCLIP(build_clip(), tokenizer),
        regularizer=IntensityGradientLoss(),
        num_patches=3,
        min_patch_entropy=3.0,
        generator=generator,
    )
    torch.manual_seed(processes.rank)  # the first process decides where all start
    network = DenseFuse()
    combined = NetworkWithLosses(network, language, None)
    crops = Crops(draw_pairs(), 32, 2, augment=True, seed=0)
    plan = Plan("densefuse", {}, out, steps=1, batch=2 // processes.world, accumulate=2)
    optimizer = torch.optim.SGD(network.parameters())
    return Trainer(plan, combined, optimizer, crops, processes, generator)


def train_step(trainer):
    """One step; returns the row of the log and all gradients."""
    row, _ = trainer._train_step(trainer._load_batches(), Event())
    return row, [p.grad.clone() for p in trainer.combined.network.parameters()]


def take_part(_, rank, out):
    """What each of the two processes does."""
    torch.set_num_threads(1)
    meeting = f"file://{out / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    processes = Processes(rank, 2, torch.device("cpu"))
    torch.save(train_step(make_trainer(out, processes)), out / f"result{rank}.pt")

    def fail():
        raise ValueError(f"failed in process {rank}")

    assert processes.share(lambda: rank) == 0
    with pytest.raises(ValueError, match="failed in process 0"):
        processes.share(fail)
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path, monkeypatch):
    other = torch.multiprocessing.spawn(take_part, (1, tmp_path), join=False)
    take_part(0, 0, tmp_path)
    other.join()
    results = [torch.load(tmp_path / f"result{rank}.pt", weights_only=True) for rank in range(2)]
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))

    # Alone, with the patches that the two drew for their crops.
    draw = functional.random_patch_transforms
    ranks = [torch.Generator().manual_seed(seed_for(0, 0, rank)) for rank in range(2)]

    def draw_for_both(batch, *arguments, generator, **options):
        if batch == 1:  # the augmentation of a single crop
            return draw(batch, *arguments, generator=generator, **options)
        halves = [draw(batch // 2, *arguments, generator=each, **options) for each in ranks]
        return torch.cat(halves)

    monkeypatch.setattr(functional, "random_patch_transforms", draw_for_both)
    row, gradients = train_step(make_trainer(tmp_path, Processes(0, 1, torch.device("cpu"))))
    assert row == pytest.approx(results[0][0], rel=1e-4)
    assert row["language_patch"] > 0
    for alone, averaged in zip(gradients, results[0][1], strict=True):
        torch.testing.assert_close(alone, averaged, rtol=1e-3, atol=1e-4)


def test_torchrun(tmp_path, folder):
    """Without patches and noise nothing is drawn by process: two must train as one does."""
    options = ["--patch-weight", "0", "--noise", "0", "--steps", "3"]
    alone = run(folder, tmp_path / "one", *options)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", str(EXAMPLES / "train.py"), "--network", "densefuse"]
    command += ["--pairs", str(folder), "--out", str(tmp_path / "two"), *SMALL, *options]
    command += ["--batch", "1"]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("finished") == 1
    for one, two in zip(alone, read_log(tmp_path / "two"), strict=True):
        for name in one:
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-3)
    # All that counts is the same, so that one process may go on.
    assert len(run(folder, tmp_path / "two", *options, "--steps", "4", "--resume")) == 4


def test_resuming_asks_for_the_same_settings(tmp_path, folder):
    run(folder, tmp_path, "--steps", "1")
    for options, message in (
        ([], "must be a folder without a training, got .*; pass --resume"),
        (["--resume", "--rate", "0.1"], "rate was 0.0005, is 0.1"),
        (["--resume", "--batch", "1"], "global batch was 2, is 1"),
        (["--resume", "--prompt", "a dark image"], "fused was"),
        (["--resume", "--max-pairs", "2"], "number of pairs was 3, is 2"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(folder, tmp_path, "--steps", "2", *options)
    (tmp_path / "checkpoint.pt").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="is no checkpoint of train.py"):
        run(folder, tmp_path, "--steps", "2", "--resume")


def texts(*options):
    required = ["--network", "densefuse", "--pairs", ".", "--out", "."]
    return train.read_objective(train.parse([*required, *options]))


def test_objectives(tmp_path):
    assert texts() == FusionObjective()
    assert texts("--prompt", "a", "--prompt", "b").fused == ("a", "b")
    file = tmp_path / "objective.json"
    file.write_text(json.dumps({"fused": "sharp", "visible": ["a photo", "a picture"]}))
    assert texts("--objective", str(file)) == FusionObjective("sharp", ["a photo", "a picture"])
    assert texts("--objective", str(file), "--visible-text", "v").visible == ("v",)
    file.write_text('{"fused": "a visible gray image"}')
    assert texts("--objective", str(file), "--visible-text", "v").visible == ("v",)
    for content in ('{"fused": 3}', '{"fuse": "sharp"}', "[1]", "{"):
        file.write_text(content)
        with pytest.raises(ValueError, match="--objective"):
            texts("--objective", str(file))


def test_the_recipe_is_that_of_the_paper(tmp_path, folder):
    recipe = f"@{EXAMPLES / 'ldfusion_recipe.txt'}"
    options = train.parse([recipe, "--pairs", ".", "--out", "."])
    expected = {"network": "ldfusion", "rate": 5e-4, "batch": 16, "crop": 224, "epochs": 100}
    expected |= {"crops_per_pair": 10, "noise": 0.03, "patches": 32, "augment": True}
    expected |= {"direction_weight": 2, "patch_weight": 10, "similarity_weight": 6}
    expected |= {"regularizer_weight": 10, "regularizer": "vgg", "loss": "language"}
    expected |= {"encoder": "ViT-B-32-quickgelu/openai", "milestones": [50, 60, 70, 80, 90]}
    assert {name: getattr(options, name) for name in expected} == expected
    assert train.read_objective(options) == FusionObjective()
    small = ["--encoder", "tiny", "--regularizer", "intensity", *SMALL, "--steps", "2"]
    train.main([recipe, "--pairs", str(folder), "--out", str(tmp_path), *small])
    assert len(read_log(tmp_path)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "ldfusion", "--loss", "original"], "must be language"),
        (["--network", "u2fusion", "--loss", "both", "--vgg16", "no.pth"], "no file no.pth"),
        (["--network", "swinfusion", "--reconstruction-epochs", "1"], "only for densefuse"),
        (["--objective", "no.json"], "no.json"),
        (["--encoder", "huge"], "--encoder must be tiny, which"),
        (["--pairs", "nowhere"], "there is no folder nowhere"),
        (["--device", "abacus"], "--device abacus does not work here"),
    ],
)
def test_mistakes_end_in_a_message(tmp_path, folder, options, message):
    with pytest.raises(SystemExit) as end:
        run(folder, tmp_path, "--steps", "1", *options)
    assert end.value.code.startswith("train: error: ")
    assert message in end.value.code
