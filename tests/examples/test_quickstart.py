"""The quickstart from end to end, in a few steps, and the parts of it that users meet."""

import json
import re
from pathlib import Path

import pytest
import torch
from drawn import save_users_pairs
from PIL import Image

import quickstart
from clip_fusion_loss import FrozenCLIP, __version__
from parts.data.images import read_image
from parts.losses.language import build_criterion, load_clip
from parts.training import short

METRICS = ["EN", "SD", "SF", "AG", "MI", "SCD", "SSIM", "Qabf"]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(short, "BATCH_SIZE", 2)
    monkeypatch.setattr(short, "CROP_SIDE", 48)


def run(out, *arguments):
    quickstart.main(["--out", str(out), "--steps", "3", "--device", "cpu", *arguments])
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def user_folder(tmp_path):
    return save_users_pairs(tmp_path / "images")


def test_without_options_it_compares_two_sentences_on_real_pairs(tmp_path, capsys):
    content = run(tmp_path / "out", "--max-pairs", "2", "--seed", "7")
    assert list(content) == ["settings", "average", "runs"]
    assert content["settings"] == {
        "version": __version__,
        "encoder": "tiny",
        "steps": 3,
        "pairs": ["1", "5"],
    }
    assert list(content["average"]) == [*METRICS, "mean"]
    paper = "a clear image with detailed background and salient objects"
    assert [run["prompt"] for run in content["runs"]] == [None, paper, "a dark image"]
    for result in content["runs"]:
        assert list(result) == ["prompt", "seed", "metrics", "seconds"]
        assert result["seed"] == 7
        assert result["seconds"] > 0
        assert list(result["metrics"]) == [*METRICS, "mean"]

    written = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*")}
    folders = (
        "00-without-language",
        "01-a-clear-image-with-detailed-background-a",
        "02-a-dark-image",
    )
    assert {path.as_posix() for path in written} == {
        "contact_sheet.png",
        "loss_curves.png",
        "metrics.json",
        *(f"fused/{folder}/{name}.png" for folder in folders for name in "15"),
    }
    for name in ("contact_sheet.png", "loss_curves.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) > 200
    printed, errors = capsys.readouterr()
    assert "average" in printed
    assert re.search(r'^"a dark image": .* (than|as) without language, contrast', printed, re.M)
    assert "3 steps are too few to see much" in printed
    assert str(tmp_path / "out" / "contact_sheet.png") in printed
    for phase in (
        "training without language", 'training "a dark image"', 'fusing "a dark image"',
    ):  # fmt: skip
        assert phase in errors


def test_the_sentence_shows_after_a_short_training(tmp_path, monkeypatch):
    """What the first run is for: the dark image is dark."""
    monkeypatch.setattr(short, "BATCH_SIZE", 2)
    options = ["--steps", "80", "--max-pairs", "2", "--prompt", "a dark image"]
    silent, dark = run(tmp_path / "out", *options)["runs"]
    assert dark["metrics"]["mean"] < 0.9 * silent["metrics"]["mean"]


def test_without_language_is_the_loss_without_its_language_terms():
    criterion = build_criterion("tiny", torch.Generator())
    weights = criterion.direction_weight, criterion.patch_weight
    with quickstart.objective(criterion, None):
        assert criterion.direction_weight == criterion.patch_weight == 0
    assert (criterion.direction_weight, criterion.patch_weight) == weights
    with quickstart.objective(criterion, "a dark image"):
        assert criterion.objective.fused == ("a dark image",)
        assert (criterion.direction_weight, criterion.patch_weight) == weights


def test_an_effect_in_words():
    silent = {"mean": 100.0, "SD": 40.0, "AG": 4.0}
    dark = {"mean": 59.0, "SD": 20.0, "AG": 5.0}
    assert quickstart.in_words(dark, silent) == (
        "41 % darker than without language, contrast (SD) -50 %, sharpness (AG) +25 %"
    )
    assert quickstart.in_words(silent, silent).startswith("as bright as without language, contr")
    black = dict.fromkeys(silent, 0.0)
    assert quickstart.in_words(dark, black).startswith("as bright")


def test_rendered_pairs_on_demand(tmp_path):
    content = run(tmp_path / "out", "--pairs", "rendered", "--max-pairs", "1")
    assert content["settings"]["pairs"] == ["scene_01"]


def test_images_of_a_user(tmp_path, user_folder, capsys):
    out = tmp_path / "out"
    prompts = ["a sharp image", "A sharp, image!"]
    content = run(out, "--pairs", str(user_folder), "--prompt", prompts[0], "--prompt", prompts[1])
    assert [result["prompt"] for result in content["runs"]] == [None, *prompts]
    for folder in ("01-a-sharp-image", "02-a-sharp-image"):
        assert read_image(out / "fused" / folder / "colour.png").shape == (3, 70, 90)
        assert read_image(out / "fused" / folder / "deep.png").shape == (1, 130, 50)
        assert len(list((out / "fused" / folder).iterdir())) == 2
    assert "unequal.png: is 64 x 64 pixels" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_images(tmp_path, user_folder):
    same = ["--pairs", str(user_folder), "--prompt", "a dark image"]
    results = [
        run(tmp_path / str(number), *same, "--seed", str(seed))
        for number, seed in enumerate((1, 1, 2))
    ]
    figures = [result["runs"][1]["metrics"] for result in results]
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)
    assert figures[0] != pytest.approx(figures[2], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "nowhere"], "there is no folder nowhere"),
        (["--pairs", "."], "Layouts understood"),
        (["--device", "abacus"], "--device abacus does not work here"),
        (["--device", "meta"], "--device meta does not work here"),
        (["--out", "file"], "cannot write to --out file"),
        (["--prompt", " "], "no empty one"),
        (["--encoder", "huge"], "--encoder must be tiny, which"),
        (["--encoder", "no-such-model/openai"], "'no-such-model'"),
        (["--encoder", "weights/missing.pt"], "weights"),
    ],
)
def test_mistakes_end_in_a_message(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as failure:
        quickstart.main(arguments)
    assert failure.value.code.startswith("quickstart: error: ")
    assert message in failure.value.code


@pytest.mark.parametrize(
    "arguments", [["--steps", "0"], ["--steps", "many"], ["--seed", "-1"], ["--bogus"]]
)
def test_wrong_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as failure:
        quickstart.main(arguments)
    assert failure.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        quickstart.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "DIR/ir/street.png" in printed
    assert "--prompt" in printed


def test_interrupting_is_clean(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "train", interrupt)
    with pytest.raises(SystemExit, match="interrupted"):
        run(tmp_path, "--max-pairs", "1")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_word_is_a_note(tmp_path, capsys):
    run(tmp_path, "--max-pairs", "1", "--prompt", "a xylophone")
    printed = capsys.readouterr().err
    assert "note: " in printed
    assert "'xylophone'" in printed
    assert ".py" not in next(line for line in printed.splitlines() if "xylophone" in line)


def test_folder_names_are_safe_and_unique():
    assert quickstart.folder_name(1, "A/../b: c?") == "01-a-b-c"
    assert quickstart.folder_name(2, "清晰的图像") == "02"
    assert len(quickstart.folder_name(3, "word " * 100)) <= 43


@pytest.mark.parametrize(
    ("encoder", "arguments"),
    [
        ("ViT-B-32-quickgelu/openai", ("ViT-B-32-quickgelu", "openai")),
        ("RN50=RN50.pt", ("RN50", Path("RN50.pt"))),
        ("ViT-B/32=/no/such/file.pt", ("ViT-B/32", Path("/no/such/file.pt"))),
        ("RN50.pt", ("ViT-B-32-quickgelu", Path("RN50.pt"))),
        ("clip-vit-base-patch32", ("clip-vit-base-patch32",)),
        ("local-dir:clip=1", ("local-dir:clip=1",)),
        ("hf-hub:org/model", ("hf-hub:org/model",)),
    ],
)
def test_encoders(encoder, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RN50.pt").touch()
    (tmp_path / "clip-vit-base-patch32").mkdir()
    monkeypatch.setattr(FrozenCLIP, "from_pretrained", lambda *given: given)
    assert load_clip(encoder) == arguments
