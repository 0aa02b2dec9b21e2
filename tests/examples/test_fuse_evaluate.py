"""Fusing folders with a checkpoint, and measuring what came out."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import fuse
from evaluate import fidelity
from parts.data.images import luminance, read_image, to_8bit
from parts.data.pairs import Pair, find_pairs, read_pair
from parts.networks import fusing
from parts.networks.catalogue import NETWORKS
from parts.networks.u2fusion import U2Fusion
from parts.training.checkpoints import Checkpoint, load_network, save_checkpoint

CPU = torch.device("cpu")


def noise(seed, *size):
    return np.random.default_rng(seed).integers(0, 256, size=size, dtype=np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def folder(tmp_path):
    """A coloured pair, a grey one in a subfolder, and one whose visible image is broken."""
    folder = tmp_path / "pairs"
    write(folder / "vi" / "colour.png", noise(0, 44, 60, 3))
    write(folder / "ir" / "colour.png", noise(1, 44, 60))
    write(folder / "night" / "vi" / "grey.bmp", noise(2, 50, 42))
    write(folder / "night" / "ir" / "grey.png", noise(3, 50, 42))
    write(folder / "ir" / "broken.png", noise(4, 44, 44))
    (folder / "vi" / "broken.png").write_bytes(b"no image")
    return folder


def checkpoint_of(network, path, name="densefuse"):
    save_checkpoint(Checkpoint(name, {}, 1, network.state_dict(), {}, {}), path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = NETWORKS["densefuse"]()
    torch.nn.init.constant_(network.decoder[-1].bias, 0.4)
    return checkpoint_of(network, tmp_path / "checkpoint.pt")


def run_fuse(checkpoint, folder, out, *options):
    arguments = ["--checkpoint", str(checkpoint), "--pairs", str(folder), "--out", str(out)]
    fuse.main([*arguments, "--device", "cpu", *options])


def test_fuses_a_folder_in_full_size_and_colour(tmp_path, folder, checkpoint, capsys):
    out = tmp_path / "fused"
    run_fuse(checkpoint, folder, out)
    printed = capsys.readouterr()
    assert "2 fused, 0 there already, 1 unusable" in printed.out
    assert "broken.png: cannot be read" in printed.err
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert written == {"colour.png", "night/grey.png"}

    network = load_network(checkpoint)
    pairs = {files.name: files for files in find_pairs(folder)[0]}
    for name in ("colour", "night/grey"):
        pair = read_pair(pairs[name])
        sources = luminance(pair.visible)[None], luminance(pair.infrared)[None]
        expected = to_8bit(network(*sources)[0].detach())
        fused = read_image(out / f"{name}.png")
        assert fused.shape == pair.visible.shape
        inside = ((fused > 0) & (fused < 255)).all(0)  # elsewhere colours were cut off
        assert inside.float().mean() > 0.05
        difference = (255 * luminance(fused) - expected)[:, inside]
        assert difference.abs().max() <= 1


def test_grey_output(tmp_path, folder, checkpoint):
    run_fuse(checkpoint, folder, tmp_path / "fused", "--grey")
    assert read_image(tmp_path / "fused" / "colour.png").shape == (1, 44, 60)


def test_goes_on_where_it_was(tmp_path, folder, checkpoint, monkeypatch, capsys):
    out = tmp_path / "fused"
    count = []

    def interrupted(*arguments):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return fusing.fuse_with(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fuse, "fuse_with", interrupted)
        with pytest.raises(SystemExit, match="interrupted"):
            run_fuse(checkpoint, folder, out)
    assert [path.name for path in out.iterdir()] == ["colour.png"]
    before = (out / "colour.png").stat().st_mtime_ns
    run_fuse(checkpoint, folder, out)
    assert "1 fused, 1 there already" in capsys.readouterr().out
    assert (out / "colour.png").stat().st_mtime_ns == before


def test_memory_does_not_grow_with_the_folder(tmp_path, folder, checkpoint, monkeypatch):
    """Each pair is read when its turn comes, and given up after it."""
    events = []
    read, fuse_one = fuse.read_pair, fuse.fuse_with
    monkeypatch.setattr(fuse, "read_pair", lambda files: (events.append("read"), read(files))[1])
    monkeypatch.setattr(
        fuse, "fuse_with", lambda *arguments: (events.append("fuse"), fuse_one(*arguments))[1]
    )
    run_fuse(checkpoint, folder, tmp_path / "fused")
    assert events == ["read", "read", "fuse", "read", "fuse"]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_fuses_whole_images(tmp_path, name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    loaded = load_network(checkpoint_of(network, tmp_path / "c.pt", name))
    pair = Pair("scene", *(torch.from_numpy(noise(seed, 1, 37, 43)) for seed in range(2)))
    fused = fusing.fuse_with(loaded, pair, CPU)
    sources = luminance(pair.visible)[None], luminance(pair.infrared)[None]
    expected = to_8bit(network.eval()(*sources)[0].detach())
    assert (fused.int() - expected.int()).abs().max() <= 1


def test_u2fusion_in_strips():
    torch.manual_seed(0)
    pair = Pair("scene", *(torch.from_numpy(noise(seed, 1, 64, 33)) for seed in range(2)))
    network, reach = U2Fusion(), U2Fusion.REACH
    whole = fusing.fuse(network, pair, reach=reach, device=CPU)
    strips = fusing.fuse(network, pair, reach=reach, device=CPU, strip_pixels=33 * 7)
    assert (whole.int() - strips.int()).abs().max() <= 1


def test_fusing_nothing_is_an_error(tmp_path, checkpoint, folder):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((checkpoint, tmp_path / "empty", tmp_path / "out"), "no pair of images"),
        ((tmp_path / "no.pt", folder, tmp_path / "out"), "there is no checkpoint"),
        ((folder / "ir" / "broken.png", folder, tmp_path / "out"), "is no checkpoint of train.py"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_fuse(*arguments)


def run_evaluate(fused, pairs, *options):
    evaluate.main(["--fused", str(fused), "--pairs", str(pairs), *map(str, options)])


def test_fidelity():
    image = noise(0, 64, 48)
    assert fidelity(image, image) == pytest.approx(1)
    smooth = np.kron(noise(1, 8, 8) // 2, np.ones((8, 8))).astype(np.uint8)
    stretched = 2 * smooth
    assert fidelity(stretched, smooth) > 1 > fidelity(smooth, stretched) > 0.5
    assert fidelity(np.full_like(image, 100), image) == pytest.approx(0, abs=1e-3)
    assert fidelity(noise(2, 64, 48), image) < 0.1  # nothing in common
    with pytest.raises(ValueError, match="at least 41 x 41 pixels, got 64 x 40"):
        fidelity(image[:40].repeat(2, 1)[:, :64], image[:40].repeat(2, 1)[:, :64])


def test_measures_a_folder(tmp_path, folder, checkpoint, capsys):
    run_fuse(checkpoint, folder, tmp_path / "fused")
    capsys.readouterr()
    run_evaluate(tmp_path / "fused", folder, "--csv", tmp_path / "figures.csv")
    printed = capsys.readouterr().out
    assert "1 of 3 pairs left out" in printed
    assert "means over 2 images" in printed
    assert "Measured as saved" in printed
    assert printed.split("\n")[2].split() == list(evaluate.COLUMNS)
    with open(tmp_path / "figures.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["colour", "night/grey"]
    mean = np.mean([float(row["VIF"]) for row in rows])
    assert f"{mean:.3f}" in printed


def test_two_methods_side_by_side(tmp_path, folder, capsys):
    for name, seed in (("first", 1), ("second", 5)):
        write(tmp_path / name / "colour.jpg", noise(seed, 44, 60))
    write(tmp_path / "first" / "night" / "grey.png", noise(6, 50, 42))
    run_evaluate(tmp_path / "first", folder, "--vs", tmp_path / "second")
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "2 of 3 pairs left out: not fused by all"
    assert lines[1] == "means over 1 images"
    assert [line.split()[0] for line in lines[3:6]] == ["first", "second", "difference"]
    table = np.array([line.split()[-9:] for line in lines[3:6]], float)
    assert np.allclose(table[0] - table[1], table[2], atol=2e-3)


def test_methods_are_called_by_what_tells_them_apart(tmp_path):
    folders = [tmp_path / "a" / "fused", tmp_path / "b" / "fused"]
    assert evaluate.labels(folders) == ["a/fused", "b/fused"]
    assert evaluate.labels(folders[:1]) == ["fused"]
    with pytest.raises(ValueError, match="the same folder"):
        evaluate.labels([folders[0], folders[0]])


def test_measuring_against_the_wrong_sources(tmp_path, folder):
    write(tmp_path / "small" / "colour.png", noise(0, 44, 44))
    write(tmp_path / "other" / "name.png", noise(0, 44, 60))
    write(tmp_path / "bad" / "broken.png", noise(0, 44, 44))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "colour.png").write_bytes(b"no image")
    for name, message in (
        ("small", "has another size"),
        ("other", "no image of .*other has the name of a pair"),
        ("bad", "cannot measure against .*broken.png"),
        ("cut", "colour.png cannot be read"),
        ("nowhere", "there is no folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_evaluate(tmp_path / name, folder)


@pytest.mark.parametrize("program", [fuse, evaluate])
def test_help(program, capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    assert "DIR/ir/street.png" in capsys.readouterr().out
