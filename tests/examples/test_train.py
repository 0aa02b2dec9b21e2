"""The training program: what it sees and writes, that it resumes, and that nothing is lost."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState, GradientState
from image_files import noise, save_pairs, write
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import options
import pairs
import train
import training
from clip_fusion_loss import EmbeddedFusionModel, FusionObjective
from networks import NETWORKS
from networks.weights import load_trained
from train import WEIGHTS

EXAMPLES = Path(train.__file__).parent
SMALL = ["--crop", "32", "--batch", "2", "--patches", "2", "--crops-per-pair", "2"]
SMALL += ["--sample-every", "0", "--device", "cpu", "--encoder", "tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(autouse=True)
def _forget_the_last_accelerator():
    """Accelerate keeps its settings, such as the precision, for all of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


def run(folder, out, *options):
    train.main(["--pairs", str(folder), "--out", str(out), *SMALL, *map(str, options)])
    return read_log(out)


def read_log(out):
    with open(out / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(out):
    return safetensors.torch.load_file(out / "network.safetensors")


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def stop_after(monkeypatch, step, stop=lambda: os.kill(os.getpid(), signal.SIGINT)):
    """Ctrl-C in the given step."""
    write_row = train.log_row

    def log_row(path, row):
        write_row(path, row)
        if row["step"] == step:
            stop()

    monkeypatch.setattr(train, "log_row", log_row)


@pytest.mark.parametrize("network", ["unet", "densefuse", "u2fusion", "ldfusion-smooth"])
def test_every_network_trains(tmp_path, folder, network, capsys):
    rows = run(folder, tmp_path, "--network", network, "--steps", 1, "--rate", "1e-3")
    assert list(rows[0]) == [
        *("step", "total", "direction", "patch", "similarity", "regularizer", "kept", "rate")
    ]
    assert all(float(value) >= 0 for value in rows[0].values())
    with Image.open(tmp_path / "samples" / "step_0000001.png") as sheet:
        assert min(sheet.size) > 200
    assert "finished" in capsys.readouterr().out
    trained = load_trained(tmp_path)
    assert (trained.sentences, trained.encoder) == (None, "tiny")
    torch.manual_seed(0)  # the weights have moved
    fresh = NETWORKS[network]().state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in weights(tmp_path).items())
    assert trained.network(*torch.rand(2, 1, 1, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [["--network", "swinfusion", "--batch", "1"], ["--network", "densefuse", "--accumulate", "2"]],
)
def test_a_resumed_training_has_the_weights_of_one_without_interruption(
    tmp_path, folder, monkeypatch, capfd, options
):
    options = [*options, "--steps", 4]  # swinfusion skips blocks at random
    whole = run(folder, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(SystemExit) as end:
            run(folder, tmp_path / "halves", *options)
    assert end.value.code == 130
    said = capfd.readouterr()
    assert "stopping after this step, then saving" in said.err
    assert "stopped after step 2; --resume continues" in said.out
    halves = run(folder, tmp_path / "halves", *options, "--resume")
    assert halves == whole
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "halves"))
    states = [path.name for path in (tmp_path / "halves").glob("*state*")]
    assert states == ["state-0000004"], "older states go"


@pytest.mark.parametrize("regions", [None, "random", "folder"])
def test_many_sentences_resume_and_are_told_to_the_network(tmp_path, folder, monkeypatch, regions):
    file = tmp_path / "sentences.txt"
    text = "\ufeff# seasons\na dark image\n\n 2.5 | a bright image | not: a noisy image\n"
    file.write_text(text, "utf-8")
    options = ["--prompts", file, "--steps", 3]
    if regions == "folder":
        regions = tmp_path / "seg"
        for index in range(3):
            write(regions / f"scene{index}.png", noise(index, 48, 56) // 86)
    options += ["--regions", regions] if regions else []
    run(folder, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(SystemExit):
            run(folder, tmp_path / "halves", *options)
    run(folder, tmp_path / "halves", *options, "--resume")
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "halves"))
    bank = EmbeddedFusionModel.load(tmp_path / "whole" / "sentences.safetensors")
    expected = FusionObjective("a bright image", opposite="a noisy image")
    assert bank.objectives == (FusionObjective("a dark image"), expected)
    network = load_trained(tmp_path / "whole").network
    assert network.dimension == bank.text_direction.shape[1]
    row = {name: float(value) for name, value in read_log(tmp_path / "whole")[0].items()}
    expected = training.build_criterion("tiny", regions=regions is not None)
    expected.similarity_weight *= training.MANY_SIMILARITY
    total = sum(getattr(expected, name) * row[name.removesuffix("_weight")] for name in WEIGHTS)
    total += training.REGION_GAP_WEIGHT * row.get("gap", 0)
    assert row["total"] == pytest.approx(total, rel=1e-5)
    assert ("gap" in row) == (regions is not None)


def test_an_opposite_is_trained_away_from(tmp_path, folder):
    given = ["--opposite", "a bright image", "--opposite", "a noisy image"]
    rows = run(folder, tmp_path, "--steps", 1, "--prompt", "a dark image", *given)
    assert float(rows[0]["direction"]) > 0
    built = train.build_loss(
        train.parse(["--out", "x", *SMALL, "--prompt", "a dark image", *given])
    )
    assert built.objective.fused == ("a dark image",)
    assert built.objective.opposite == ("a bright image", "a noisy image")


def test_one_step_is_that_of_a_plain_loop(tmp_path, folder):
    """Clean images for the loss, noise for the network, Adam, the warm-up of the schedule."""
    given = ["--network", "densefuse", "--no-augment", "--max-norm", "0.5"]
    run(folder, tmp_path, "--steps", 1, *given)
    options = train.parse(["--out", "x", *SMALL, "--no-augment"])
    opened = pairs.open_pairs(folder)
    crops = training.Crops(opened, 32, 2, False, 0)
    torch.manual_seed(0)
    criterion = train.build_loss(options)
    network = NETWORKS["densefuse"]()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    visible, infrared = (torch.stack(images) for images in zip(crops[0], crops[1], strict=True))
    noisy = [image + 0.03 * torch.randn_like(image) for image in (visible, infrared)]
    criterion(fused=network(*noisy), visible=visible, infrared=infrared).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
    optimizer.step()
    torch.testing.assert_close(weights(tmp_path), dict(network.state_dict()))


def test_the_schedule_is_the_papers_for_any_length():
    factors = [train.rate_factor(step, 1000) for step in (0, 4, 9, 499, 500, 600, 700, 800, 999)]
    assert factors == pytest.approx([0.1, 0.5, 1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32])
    assert train.rate_factor(0, 3) == 1


def test_other_settings_are_no_resumption(tmp_path, folder):
    run(folder, tmp_path, "--steps", 1)
    with pytest.raises(SystemExit, match="holds a training; pass --resume"):
        run(folder, tmp_path, "--steps", 2)
    with pytest.raises(SystemExit, match="others are given for noise; pass the same options"):
        run(folder, tmp_path, "--steps", 2, "--resume", "--noise", "0.1")
    with pytest.raises(SystemExit, match="given for prompt; pass"):
        run(folder, tmp_path, "--steps", 2, "--resume", "--prompt", "a dark image")
    assert len(run(folder, tmp_path, "--steps", 2, "--resume")) == 2
    with pytest.raises(SystemExit, match=r"--out must be a name in Unicode, got .*udcb3"):
        run(folder, tmp_path / os.fsdecode(b"\xb3\xa1"), "--steps", 1)
    with pytest.raises(SystemExit, match="--steps must exceed the 2 steps done, got 1"):
        run(folder, tmp_path, "--steps", 1, "--resume")


def test_a_damaged_log(tmp_path, folder):
    run(folder, tmp_path, "--steps", 1)
    (tmp_path / "log.csv").write_bytes(b"\0" * 4096)  # after a power cut
    train.main(["--pairs", str(folder), "--out", str(tmp_path), *SMALL, "--steps", "2", "--resume"])
    assert b"\0002," in (tmp_path / "log.csv").read_bytes()


def test_a_second_training_in_the_same_folder_is_refused(tmp_path, folder, monkeypatch):
    refused = []

    def another():
        try:
            with options.claimed(tmp_path):
                pass
        except ValueError as error:
            refused.append(str(error))

    stop_after(monkeypatch, 1, stop=another)
    run(folder, tmp_path, "--steps", 1)
    (message,) = refused
    assert f"process {os.getpid()} on " in message
    assert "choose another folder" in message
    with options.claimed(tmp_path):  # free again
        pass


def test_the_claim_of_a_killed_process_is_void(tmp_path):
    code = (
        f"import os, options; c = options.claimed(options.Path({str(tmp_path)!r})); c.__enter__(); "
    )
    code += "os.kill(os.getpid(), 9)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".claimed-by").is_file()
    with options.claimed(tmp_path):
        pass


def test_only_folders_of_states_are_taken_for_states(tmp_path, folder):
    others = ["state-best", "state-0000001-good", "state-1"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "state-0000009").write_text("a file")
    run(folder, tmp_path, "--steps", 1)
    run(folder, tmp_path, "--steps", 2, "--resume")
    there = {path.name for path in tmp_path.glob("state-*")}
    assert there == {*others, "state-0000009", "state-0000002"}


@pytest.mark.parametrize("damage", ["cut", "emptied", "missing"])
@pytest.mark.parametrize("name", ["model.s*", "optimizer.bin", "scheduler.bin", "random*_0.pkl"])
def test_a_damaged_state_is_named(tmp_path, folder, name, damage):
    given = ["--network", "densefuse", "--steps"]
    run(folder, tmp_path, *given, 1)
    (path,) = tmp_path.glob(f"state-0000001/{name}")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    with pytest.raises(SystemExit, match=r"state-0000001 is damaged \(.*\); delete this folder"):
        run(folder, tmp_path, *given, 2, "--resume")
    path.write_bytes(content)
    run(folder, tmp_path, *given, 2, "--resume")


def test_a_new_training_takes_nothing_from_a_killed_one(tmp_path, folder):
    (tmp_path / "sentences.txt").write_text("a dark image", "utf-8")
    run(folder, tmp_path, "--steps", 1, "--prompts", tmp_path / "sentences.txt")
    (state,) = tmp_path.glob("state-*")
    shutil.rmtree(state)
    run(folder, tmp_path, "--steps", 1)
    assert load_trained(tmp_path).sentences is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_a_closed_terminal_saves(tmp_path, folder, monkeypatch):
    def close():  # the shell and the system both say so
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)

    muted = []
    monkeypatch.setattr(train, "mute_terminal", lambda: muted.append(True))
    stop_after(monkeypatch, 1, stop=close)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with pytest.raises(SystemExit) as end:
            run(folder, tmp_path, "--steps", 9)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (end.value.code, muted) == (130, [True])
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-0000001"]


def test_a_full_disk_is_named_and_the_last_state_kept(tmp_path, folder, monkeypatch):
    run(folder, tmp_path, "--steps", 1)

    def full(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file\nand a trace")

    monkeypatch.setattr(train.Accelerator, "save_state", full)
    with pytest.raises(SystemExit, match=r"state of step 2 cannot be written to .*full\?"):
        run(folder, tmp_path, "--steps", 2, "--resume")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-0000001"]
    assert len(run(folder, tmp_path, "--steps", 2, "--resume")) >= 2


def test_a_source_that_vanishes_loses_no_steps(tmp_path, monkeypatch):
    folder = save_pairs(tmp_path / "pairs", count=2)

    def vanish():
        pairs._kept_pair.cache_clear()
        for path in folder.glob("*/*.png"):
            path.unlink()

    stop_after(monkeypatch, 2, stop=vanish)
    with pytest.raises(SystemExit, match="cannot be read"):
        run(folder, tmp_path / "out", "--steps", 9)
    (state,) = (tmp_path / "out").glob("state-*")
    assert state.name >= "state-0000002"


def test_losses_that_are_not_finite_stop(tmp_path, folder):
    with pytest.raises(SystemExit, match="the loss is (nan|inf) in step .*; try a lower --rate"):
        run(folder, tmp_path, "--network", "densefuse", "--steps", 9, "--rate", "1e12")


@pytest.mark.parametrize("network", ["unet", "densefuse"])
def test_tensorboard_bf16_and_workers(tmp_path, folder, network):
    """Its files have what log.csv and the sheets of samples have."""
    options = ["--log-to", "tensorboard", "--amp", "bf16", "--network", network]
    options += ["--sample-every", "1", "--workers", int(network == "densefuse")]
    rows = run(folder, tmp_path, "--steps", 2, *options)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == rows[0].keys() - {"step"}
    for name in events.Tags()["scalars"]:
        points = {point.step: point.value for point in events.Scalars(name)}
        assert points == pytest.approx({int(row["step"]): float(row[name]) for row in rows})
    assert events.Tags()["images"] == ["samples"]
    sheets = events.Images("samples")
    assert [sheet.step for sheet in sheets] == [1, 2]
    for sheet in sheets:
        path = tmp_path / "samples" / f"step_{sheet.step:07d}.png"
        with Image.open(BytesIO(sheet.encoded_image_string)) as shown, Image.open(path) as saved:
            assert shown.tobytes() == saved.convert("RGB").tobytes()


def test_wandb_gets_a_list_of_images_and_other_trackers_none(tmp_path):
    Image.new("RGB", (5, 4), "red").save(tmp_path / "sheet.png")
    given = []

    def log_images(values, step):
        given.append((values["samples"].shape, step))

    for name in ("wandb", "mlflow"):
        train.show_samples(
            SimpleNamespace(name=name, log_images=log_images), tmp_path / "sheet.png", 7
        )
    assert given == [((1, 4, 5, 3), 7)]


def test_a_tracker_that_is_not_installed(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    message = "--log-to wandb needs its package; pip install wandb"
    with pytest.raises(SystemExit, match=message), pytest.warns(UserWarning, match="log_with"):
        run(folder, tmp_path, "--steps", 1, "--log-to", "wandb")
    with pytest.raises(SystemExit, match="Unsupported logging capability: tensorbord"):
        run(folder, tmp_path, "--steps", 1, "--log-to", "tensorbord")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-norm", "0"], "--max-norm: must be a number above 0, got 0"),
        (["--rate", "0"], "--rate: must be a number above 0, got 0"),
        (["--rate", "nan"], "--rate: must be a number above 0, got nan"),
        (["--steps", "0"], "--steps: must be a whole number from 1, got 0"),
        (["--noise", "-1"], "--noise: must be a number of at least 0, got -1"),
    ],
)
def test_options_that_would_train_nothing(tmp_path, folder, capsys, options, message):
    with pytest.raises(SystemExit):
        run(folder, tmp_path, *options)
    assert message in capsys.readouterr().err


def test_the_clip_must_be_chosen(folder, tmp_path):
    message = "--encoder must name .*: ViT-B-32-quickgelu/openai is the paper's, .*; tiny"
    with pytest.raises(SystemExit, match=message):
        train.main(["--pairs", str(folder), "--out", str(tmp_path / "out"), "--steps", "1"])
    assert not (tmp_path / "out").exists()


def test_help_has_the_numbers_of_the_loss(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--patches N patches per crop (default: 2; the paper's: 32)" in said
    assert "--direction-weight N (default: 2; with tiny 3.2)" in said
    assert "(default: 0.5 with --prompts, else none)" in said


def test_options_that_do_not_go_together(tmp_path, folder):
    file = tmp_path / "sentences.txt"
    for content, given, message in (
        ("a dark image", ["--prompt", "a cat"], "must be used without --prompt"),
        ("a dark image", ["--opposite", "a cat"], "--opposite and .*; write `a clear image . not:"),
        ("a dark image", ["--network", "densefuse"], "with --network unet"),
        ("", [], "must hold a sentence a line, got none"),
        ("0 | a dark image", [], "line 1: must be a sentence, or a weight above 0"),
        ("a dark image\nx | y", [], "line 2: must be a sentence"),
        ("not: a dark image", [], "line 1: must be a sentence"),
        ("a dark image | not: ", [], "line 1: must be a sentence"),
        (
            "a dark image | a cat",
            [],
            "line 1: must be .*, as in 2.5 . a clear image . not: a bright",
        ),
    ):
        file.write_text(content, "utf-8")
        with pytest.raises(SystemExit, match=message):
            run(folder, tmp_path / "out", "--prompts", file, *given)
    file.write_bytes("a dark image".encode("utf-16"))
    with pytest.raises(SystemExit, match="must be text in UTF-8"):
        run(folder, tmp_path / "out", "--prompts", file)
    with pytest.raises(SystemExit, match="No such file.*no.txt"):
        run(folder, tmp_path / "out", "--prompts", "no.txt")
    with pytest.raises(SystemExit, match="--regions must be used with --prompts"):
        run(folder, tmp_path / "out", "--regions", "random")
    file.write_text("a dark image", "utf-8")
    with pytest.raises(SystemExit, match="there is no folder randm; check the path"):
        run(folder, tmp_path / "out", "--prompts", file, "--regions", "randm")
    with pytest.raises(SystemExit, match="must not lie among the sources"):
        run(folder, folder / "ir" / "out")
    assert not (folder / "ir" / "out").exists()


def test_prompts_with_an_at_sign_or_apostrophe_are_prompts(tmp_path, folder):
    for prompt in ("@night", "the street's dark image"):
        assert train.parse(["--out", "x", "--prompt", prompt]).prompt == [prompt]


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    """Both see their own crops, and the gradient is the mean: as one process with all crops."""
    folder = save_pairs(tmp_path / "pairs", count=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--network", "densefuse", "--noise", "0", "--no-augment", "--steps", "2"]
    options += ["--patch-weight", "0", "--batch", "1"]
    arguments = ["--pairs", str(folder), *SMALL, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES), *sys.path])
    command += [str(EXAMPLES / "train.py"), *arguments, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 1
    train.main([*arguments, "--batch", "2", "--out", str(tmp_path / "one")])
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"))
    one, two = ([float(row["total"]) for row in read_log(tmp_path / out)] for out in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-4)
