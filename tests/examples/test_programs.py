"""The programs for first steps, briefly; the pictures they draw; what command lines share."""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import noise, save_mixed_pairs, save_pairs
from PIL import Image

import metrics
import one_network_many_sentences
import options
import quickstart
import sheets
from pairs import Pair, read_image

EXAMPLES = Path(quickstart.__file__).parent


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_quickstart(tmp_path, capsys):
    out = tmp_path / "out"
    folder = save_mixed_pairs(tmp_path / "pairs")
    arguments = ["--pairs", str(folder), "--steps", "2", "--device", "cpu", "--out", str(out)]
    quickstart.main([*arguments, "--prompt", "a dark image", "--opposite", "a noisy image"])
    said = capsys.readouterr().out
    assert "2 pairs, 3 trainings of 2 steps on cpu" in said
    assert '"a dark image": brightness' in said
    assert '"a dark image, not a noisy image": brightness' in said
    assert "similarity to the sources (SSIM)" in said
    content = json.loads((out / "metrics.json").read_text("utf-8"))
    assert content["pairs"] == ["colour", "night/grey"]
    rows = content["metrics"]
    titles = ["without language", "a dark image", "a dark image, not a noisy image"]
    assert list(rows) == ["average", *titles]
    fused = read_image(out / "fused" / "01-a-dark-image" / "night" / "grey.png")
    assert fused.shape == (1, 50, 42)
    assert read_image(out / "fused" / "00-without-language" / "colour.png").shape == (3, 44, 60)
    assert {"EN", "Qabf", "invented", "mean"} <= set(rows["average"])
    assert rows["a dark image"] not in (rows["without language"], rows[titles[-1]])
    for name in ("contact_sheet.png", "loss_curves.png"):
        assert pixels(out / name).std() > 10


def test_the_change_in_words():
    row = {"mean": 110.0, "SD": 10.0, "AG": 2.0, "SSIM": 0.5, "Qabf": 0.0}
    silent = {"mean": 100.0, "SD": 20.0, "AG": 1.0, "SSIM": 1.0, "Qabf": 0.0}
    assert quickstart.in_words(row, silent).startswith(
        "brightness +10 %, contrast (SD) -50 %, sharpness (AG) +100 %, similarity to the sources "
        "(SSIM) -50 %"
    )


def test_one_network_for_many_sentences(tmp_path, capsys):
    out, folder = tmp_path / "out", save_pairs(tmp_path / "pairs", count=2)
    arguments = ["--pairs", str(folder), "--steps", "3", "--device", "cpu", "--out", str(out)]
    prompts = ["--prompt", "a dark image", "--prompt", "a bright image"]
    prompts += ["--opposite", "a noisy image"]
    one_network_many_sentences.main(
        [*arguments, *prompts, "--blend", "a dark image", "a foggy image"]
    )
    said = capsys.readouterr().out
    assert "2 pairs, one training of 3 steps for 4 sentences on cpu" in said
    shares = [line.partition(":")[0] for line in said.splitlines() if "mean grey level" in line]
    assert shares == ["a dark image", "17%", "33%", "50%", "67%", "83%", "a foggy image"]
    for name in ("sentences.png", "blend.png"):
        assert pixels(out / name).std() > 10


@pytest.mark.slow
def test_minimal(tmp_path, monkeypatch, capsys):
    """Warnings are errors here, so it also warns of nothing."""
    code = (EXAMPLES / "minimal.py").read_text("utf-8")
    assert "STEPS, CROP = " in code
    shorter = code.replace("100, 192", "25, 192").replace(
        "__file__", repr(str(EXAMPLES / "minimal.py"))
    )
    (tmp_path / "shorter.py").write_text(shorter, "utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "shorter.py"))
    line = capsys.readouterr().out.splitlines()[-2]
    assert '"a dark image": mean grey level ' in line
    before, after = (int(word) for word in line.split() if word.isdecimal())
    assert after < before
    assert pixels(tmp_path / "minimal.png").shape[1] == 4 * 620


@pytest.mark.parametrize("program", ["quickstart", "one_network_many_sentences"])
def test_results_stay_away_from_the_sources_and_other_runs(tmp_path, program):
    given = ["--pairs", str(save_pairs(tmp_path / "out" / "fused")), "--out"]
    main = sys.modules[program].main
    with pytest.raises(SystemExit, match="must not lie among the sources"):
        main([*given, str(tmp_path / "out" / "fused" / "vi")])
    if program == "quickstart":
        with pytest.raises(SystemExit, match="out must not hold the sources in .*ir"):
            main([*given, str(tmp_path / "out")])
    with (
        options.claimed(tmp_path / "runs"),
        pytest.raises(SystemExit, match="another run is writing to --out .*runs"),
    ):
        main([*given, str(tmp_path / "runs")])


def test_an_unusable_sentence_is_reported_before_the_training(tmp_path):
    folder = save_pairs(tmp_path / "pairs")
    arguments = ["--pairs", str(folder), "--out", str(tmp_path / "out"), "--prompt", ""]
    with pytest.raises(SystemExit, match="quickstart: error: "):
        quickstart.main(arguments)


def test_windows_show_the_warm_target():
    infrared = torch.full((1, 60, 100), 40, dtype=torch.uint8)
    infrared[:, 30:38, 70:76] = 250
    rows, columns = sheets.salient_window(Pair("a", torch.full_like(infrared, 90), infrared))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (18, 30)
    assert rows.start <= 30 < 38 <= rows.stop
    assert columns.start <= 70 < 76 <= columns.stop


def test_sheets_show_images_and_details(tmp_path):
    dark, bright = (torch.full((1, 60, 100), level, dtype=torch.uint8) for level in (0, 200))
    colour = torch.from_numpy(noise(0, 3, 60, 100))
    windows = [(slice(10, 40), slice(20, 70))]
    path = tmp_path / "sheet.png"
    sheets.save_sheet(
        {"a $dark \udcff": [dark], "bright " * 40: [bright], "c": [colour]}, windows, path
    )
    sheet = pixels(path)
    width = sheet.shape[1] // 3
    lower = sheet[sheet.shape[0] // 2 :]
    assert (lower[:, width // 2] == 0).all(1).mean() > 0.6
    assert (lower[:, width + width // 2] == 200).all(1).mean() > 0.6
    orange = (np.abs(sheet[:, :width].astype(int) - (255, 127, 14)) < 30).all(-1)
    assert orange.sum() > 200, "the frame of the detail"


def test_curves_have_a_panel_per_term(tmp_path):
    history = {"total": [3.0, 2.0, 1.0], "kept": [0.5, 0.5, 0.5]}
    sheets.save_loss_curves({"a \udcff": history, "b": history}, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").std() > 10


# What command lines share


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("`x` must be y"), "test: error: `x` must be y"),
        (FileNotFoundError(2, "No such file", "a.png"), "test: error: .*a.png"),
        (MemoryError(), "there is not enough memory; use a smaller --batch"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "there is not enough memory"),
        (
            RuntimeError("PytorchStreamWriter failed writing file"),
            "the disk is full; free some space",
        ),
        (OSError(28, "No space left on device"), "the disk is full; free some space"),
        (OSError(12, "Cannot allocate memory"), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "--workers 0"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "--workers 0"),
        (KeyboardInterrupt(), "test: interrupted"),
    ],
)
def test_errors_that_the_user_can_mend_are_one_message(error, message):
    with pytest.raises(SystemExit, match=message), options.errors_as_messages("test"):
        raise error


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), options.errors_as_messages("test"):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize("program", ["train", "fuse", "evaluate", "quickstart"])
def test_help(program, capsys):
    module = __import__(program)
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "DIR/ir/street.png" in said
    assert metrics.DEFINITIONS in said or program != "evaluate"


def test_devices_that_do_not_work_are_named():
    assert options.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device mars does not work here"):
        options.choose_device("mars")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(
    "program", ["minimal", "quickstart", "train", "fuse", "evaluate", "one_network_many_sentences"]
)
def test_every_program_can_be_interrupted_while_it_loads(tmp_path, program):
    (tmp_path / "torch.py").write_text("import os\nos.kill(os.getpid(), 2)\n", "utf-8")
    command = [sys.executable, str(EXAMPLES / f"{program}.py")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_an_interrupt_while_pytorch_loads_leaves_no_traceback():
    command = [sys.executable, str(EXAMPLES / "quickstart.py")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "loading PyTorch\n"
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.returncode != 0
