"""train.py --prompts: one network for many sentences."""

import subprocess
import sys

import pytest
import torch
from drawn import draw_pairs, save_pairs
from test_train import EXAMPLES, SMALL, environment, read_log, run

from parts.networks.conditioned import told
from parts.training.checkpoints import FORMAT, load_checkpoint, load_network

SENTENCES = "a dark image\n3 | a bright image\n# no sentence\na blurry image\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pairs(draw_pairs(), tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text(SENTENCES)
    return path


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("densefuse", ["--swap-inputs"]),
        ("u2fusion", ["--amp", "bf16", "--accumulate", "2"]),
        ("swinfusion", ["--loss", "both"]),
        ("ldfusion", []),
    ],
)
def test_every_network_learns_to_be_told(tmp_path, folder, prompts, network, options):
    options = ["--prompts", str(prompts), "--visible-text", "a gray photo", *options]
    out = tmp_path / "out"
    run(folder, out, "--steps", "2", *options, "--rate", "0.005", network=network)
    assert (out / "samples" / "step_0000002.png").is_file()
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    texts = [(each.fused, each.visible) for each in checkpoint.bank.objectives]
    names = ["a dark image", "a bright image", "a blurry image"]
    assert texts == [((name,), ("a gray photo",)) for name in names]
    assert checkpoint.encoder == "tiny"
    trained = load_network(out / "checkpoint.pt")
    sources = torch.rand(2, 1, 1, 32, 32)
    dark, bright, _ = (told(trained, vector)(*sources) for vector in checkpoint.bank.text_direction)
    assert dark.isfinite().all()
    assert not torch.equal(dark, bright)


def test_resuming_gives_the_same_numbers(tmp_path, folder, prompts):
    options = ["--prompts", str(prompts), "--accumulate", "2"]
    whole = run(folder, tmp_path / "whole", *options, "--steps", "4")
    run(folder, tmp_path / "parts", *options, "--steps", "2")
    assert run(folder, tmp_path / "parts", *options, "--steps", "4", "--resume") == whole
    weights = [load_checkpoint(tmp_path / n / "checkpoint.pt").weights for n in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_resuming_asks_for_the_same_sentences(tmp_path, folder, prompts):
    out = tmp_path / "out"
    run(folder, out, "--steps", "1", "--prompts", str(prompts))
    resumed = ("--steps", "2", "--resume")
    with pytest.raises(SystemExit, match="fused was .*1.0 | a dark image"):
        run(folder, out, *resumed)
    for content in (SENTENCES.replace("3", "2"), SENTENCES + "a noisy image\n"):
        prompts.write_text(content)
        with pytest.raises(SystemExit, match="fused was"):
            run(folder, out, *resumed, "--prompts", str(prompts))
    moved = tmp_path / "moved.txt"
    moved.write_text(SENTENCES.replace("# no sentence", ""))
    assert len(run(folder, out, *resumed, "--prompts", str(moved))) == 2


def test_torchrun(tmp_path, folder, prompts):
    """Of one sentence nothing is drawn by process: two must train as one does."""
    prompts.write_text("a dark image")
    options = ["--patch-weight", "0", "--noise", "0", "--steps", "2", "--prompts", str(prompts)]
    alone = run(folder, tmp_path / "one", *options)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", str(EXAMPLES / "train.py"), "--network", "densefuse"]
    command += ["--pairs", str(folder), "--out", str(tmp_path / "two"), *SMALL, *options]
    command += ["--batch", "1"]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    for one, two in zip(alone, read_log(tmp_path / "two"), strict=True):
        for name in one:
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a"], "--prompts must be used without --prompt, got 'a' and the file"),
        (
            ["--loss", "original"],
            "--prompts must be used with --loss language or both, got --loss original",
        ),
        (
            ["--loss", "both"],
            "--prompts with densefuse must be used with --loss language, got --loss both",
        ),
        (["--reconstruction-epochs", "1"], "must be used without --reconstruction-epochs, got 1"),
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt cannot be read"),
    ],
)
def test_mistakes_end_in_a_message_before_anything_is_written(
    tmp_path, folder, prompts, options, message
):
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="train: error: .*") as end:
        run(folder, out, "--steps", "1", "--prompts", str(prompts), *options)
    assert message in end.value.code
    assert not out.exists()


def test_an_objective_beside_the_sentences_says_the_sources_alone(tmp_path, folder, prompts):
    file = tmp_path / "objective.json"
    file.write_text('{"fused": "sharp"}')
    options = ["--steps", "1", "--prompts", str(prompts), "--objective", str(file)]
    with pytest.raises(SystemExit, match="`fused` must be left out with --prompts"):
        run(folder, tmp_path / "a", *options)
    file.write_text('{"visible": "a photo"}')
    run(folder, tmp_path / "b", *options)
    bank = load_checkpoint(tmp_path / "b" / "checkpoint.pt").bank
    assert {each.visible for each in bank.objectives} == {("a photo",)}


def test_checkpoints_from_before_there_were_sentences(tmp_path, folder):
    run(folder, tmp_path, "--steps", "1")
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    assert content["format"] == FORMAT
    del content["bank"], content["encoder"]
    torch.save(content, path)
    assert load_checkpoint(path).bank is None
    assert len(run(folder, tmp_path, "--steps", "2", "--resume")) == 2


def test_a_damaged_bank_is_no_checkpoint(tmp_path, folder, prompts):
    run(folder, tmp_path / "out", "--steps", "1", "--prompts", str(prompts))
    path = tmp_path / "out" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["bank"][-1] ^= 1
    torch.save(content, path)
    with pytest.raises(ValueError, match="is no checkpoint of train.py: .*checksum"):
        load_checkpoint(path)
