"""Fusing folders: full size, colours, sentences, published weights, and nothing destroyed."""

import os
import sys
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from image_files import noise, save_mixed_pairs, save_pairs, write

import fuse
import options
from clip_fusion_loss import EmbeddedFusionModel, FrozenCLIP, FusionObjective
from networks import NETWORKS, PORTS
from networks.unet import FusionUNet
from networks.weights import SENTENCES, load_published, load_trained, save_trained
from pairs import (
    Pair,
    find_pairs,
    folders_of,
    luminance,
    read_image,
    read_pair,
    save_image,
    to_8bit,
)
from training import fuse_with

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _notes_are_new():
    options.note.cache_clear()
    torch.manual_seed(0)


@pytest.fixture
def folder(tmp_path):
    return save_mixed_pairs(tmp_path / "pairs")


def trained(folder, name="densefuse"):
    network = NETWORKS[name]()
    if name == "densefuse":
        torch.nn.init.constant_(network.decoder[-1].bias, 0.4)
    save_trained(network, folder, name, "tiny")
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    return trained(tmp_path / "run")


def run(checkpoint, folder, out, *more):
    arguments = ["--checkpoint", checkpoint, "--pairs", folder, "--out", out, "--device", "cpu"]
    fuse.main([*map(str, arguments), *more])


def pair_named(folder, name):
    files = next(files for files in find_pairs(folders_of(folder)) if files.name == name)
    return read_pair(files)


def test_fuses_a_folder_in_full_size_and_colour(tmp_path, folder, checkpoint, capsys):
    out = tmp_path / "fused"
    run(checkpoint, folder, out)
    printed = capsys.readouterr()
    assert "2 fused, 0 there already, 1 unusable" in printed.out
    assert "broken.png: cannot be read" in printed.err
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert written == {"colour.png", "night/grey.png"}
    network = load_trained(checkpoint).network
    for name in ("colour", "night/grey"):
        pair = pair_named(folder, name)
        expected = to_8bit(network(*(luminance(i)[None] for i in pair[1:]))[0].detach())
        fused = read_image(out / f"{name}.png")
        assert fused.shape == pair.visible.shape
        inside = ((fused > 0) & (fused < 255)).all(0)  # elsewhere colours were cut off
        assert inside.float().mean() > 0.05
        assert (255 * luminance(fused) - expected)[:, inside].abs().max() <= 1


def test_images_that_are_there_are_left_unless_overwritten(tmp_path, folder, checkpoint, capsys):
    out = tmp_path / "fused"
    write(out / "colour.png", noise(9, 44, 60))
    before = (out / "colour.png").read_bytes()
    run(checkpoint, folder, out)
    assert "1 fused, 1 there already" in capsys.readouterr().out
    assert (out / "colour.png").read_bytes() == before
    run(checkpoint, folder, out, "--overwrite", "--grey")
    assert read_image(out / "colour.png").shape == (1, 44, 60)


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_sources_are_never_written_to(tmp_path, folder, checkpoint, more):
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    (tmp_path / "link").symlink_to(folder / "vi")
    for out in (folder / "vi", folder / "ir" / "new", tmp_path / "link"):
        with pytest.raises(SystemExit, match="must not lie among the sources"):
            run(checkpoint, folder, out, *more)
    out = tmp_path / "fused"
    out.mkdir()
    (out / "colour.png").symlink_to(folder / "vi" / "colour.png")
    with pytest.raises(SystemExit, match="colour.png: links to sources"):
        run(checkpoint, folder, out, *more)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_writers_in_one_folder_do_not_mix_their_images(tmp_path):
    """Threads share the process id, as the first processes of two containers do."""
    images = [torch.full((1, 32, 32), level, dtype=torch.uint8) for level in (20, 200)]
    mixed = []

    def write_all(number):
        for index in range(60):
            path = tmp_path / f"{number}-{index}.png"
            save_image(images[number], path)
            if not torch.equal(read_image(path), images[number]):
                mixed.append(path)

    threads = [threading.Thread(target=write_all, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mixed == []
    assert len(list(tmp_path.iterdir())) == 120  # and no unfinished ones


def test_a_failed_write_leaves_the_old_file_and_follows_links(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with (
        pytest.raises(OSError, match="disk full"),
        options.atomic_write(tmp_path / "link.txt") as t,
    ):
        fail(t)
    assert (tmp_path / "link.txt").read_text() == "old"
    with options.atomic_write(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert len(list(tmp_path.iterdir())) == 2


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_fuses_whole_images(tmp_path, name):
    loaded = load_trained(trained(tmp_path, name)).network
    pair = Pair("scene", *(torch.from_numpy(noise(seed, 1, 37, 43)) for seed in range(2)))
    expected = to_8bit(loaded(*(luminance(i)[None] for i in pair[1:]))[0].detach())
    assert (fuse_with(loaded, pair, CPU).int() - expected.int()).abs().max() <= 1


@pytest.fixture
def told(tmp_path):
    """A network that was trained for two sentences, with random weights."""
    texts = ("a dark image", "a bright image")
    bank = EmbeddedFusionModel([FusionObjective(text) for text in texts], FrozenCLIP.tiny())
    network = FusionUNet(bank.text_direction.shape[1])
    torch.nn.init.normal_(network.modulation[-1].weight, std=0.5)
    save_trained(network, tmp_path / "told", "unet", "tiny")
    bank.save(tmp_path / "told" / SENTENCES)
    return tmp_path / "told"


def test_each_sentence_gets_a_folder(tmp_path, folder, told, monkeypatch, capsys):
    out = tmp_path / "fused"
    known = ["--grey", "--prompt", "a dark image", "--prompt", "a bright image"]
    with monkeypatch.context() as patch:
        patch.setattr(FrozenCLIP, "tiny", None)  # known sentences need no CLIP
        run(told, folder, out, *known)
    assert "4 fused, 0 there already, 2 unusable" in capsys.readouterr().out
    new = ["--prompt", "a foggy image", "--blend", "a dark image", "a bright image", "3"]
    run(told, folder, out, *known, *new)
    assert "8 fused, 4 there already, 6 unusable" in capsys.readouterr().out
    blend = "a-dark-image_a-bright-image"
    steps = [f"{blend}/{share}" for share in ("000", "050", "100")]
    written = {path.parent.relative_to(out).as_posix() for path in out.rglob("colour.png")}
    assert written == {"a-dark-image", "a-bright-image", "a-foggy-image", *steps}
    network, bank, _ = load_trained(told)
    dark, bright = bank.text_direction
    pair = pair_named(folder, "colour")
    images = {name: read_image(out / name / "colour.png") for name in written}
    for name, vector in (("a-dark-image", dark), (f"{blend}/050", dark + bright)):
        expected = fuse_with(network, pair, CPU, vector)
        assert (images[name].int() - expected.int()).abs().max() <= 1
    assert torch.equal(images["a-dark-image"], images[f"{blend}/000"])
    assert not torch.equal(images["a-dark-image"], images["a-bright-image"])


def test_regions_get_sentences_of_their_own(tmp_path, told, capsys):
    folder = save_pairs(tmp_path / "pairs", count=2)
    left, top = np.zeros((2, 48, 56), np.uint8)
    left[:, :30] = 255
    top[:10] = 255
    for name in ("scene0", "scene1"):
        write(tmp_path / "masks" / f"{name}.png", left)
        write(folder / "ir" / f"{name}.png", np.full((48, 56), 90, np.uint8))
    write(tmp_path / "top.png", top)
    more = ["--region", str(tmp_path / "masks"), "a bright image"]
    more += ["--region", str(tmp_path / "top.png"), "a foggy image"]
    more += ["--region", "hot", "a noisy image"]
    out = tmp_path / "fused"
    blend = ["--blend", "a dark image", "a bright image", "2"]
    run(told, folder, out, "--prompt", "a dark image", *blend, *more)
    printed = capsys.readouterr()
    assert "6 fused" in printed.out
    assert printed.err.count("nothing in the infrared image is hot") == 2
    written = {path.parent.relative_to(out).as_posix() for path in out.rglob("scene0.png")}
    (name,) = (name for name in written if "/" not in name)
    assert name.startswith("a-dark-image_")
    assert name.endswith("_hot-a-noisy-image")
    assert len(written) == 3
    network, bank, _ = load_trained(told)
    objectives = [
        replace(bank.objectives[0], fused=text) for text in ("a foggy image", "a noisy image")
    ]
    new = EmbeddedFusionModel(objectives, FrozenCLIP.tiny()).text_direction
    regions = torch.from_numpy(np.where(top, 2, left // 255).astype(np.int64))[None]
    expected = fuse_with(
        network,
        pair_named(folder, "scene0"),
        CPU,
        torch.cat([bank.text_direction, new]),
        regions=regions,
    )
    assert torch.equal(read_image(out / name / "scene0.png"), expected)


def test_masks_that_cannot_be_used_are_named(tmp_path, folder, told, capsys):
    write(tmp_path / "mask.png", noise(0, 44, 60))
    given = ["--prompt", "a dark image", "--region", str(tmp_path / "mask.png"), "a bright image"]
    run(told, folder, tmp_path / "fused", *given)  # fits one of the pairs
    printed = capsys.readouterr()
    assert "1 fused, 0 there already, 2 unusable" in printed.out
    assert "mask.png: is 60 x 44, the pair 42 x 50 pixels" in printed.err


def test_opposites(tmp_path, folder, told, monkeypatch):
    """Sentences of the training keep theirs; --opposite is one for all, and names the folder."""
    clip = FrozenCLIP.tiny()
    texts = ("a clear image", "a dark image", "a dark image")
    opposites = ((), ("a noisy image",), ())
    objectives = [FusionObjective(t, opposite=o) for t, o in zip(texts, opposites, strict=True)]
    EmbeddedFusionModel(objectives[:2], clip).save(told / SENTENCES)
    network, pair = load_trained(told).network, pair_named(folder, "colour")

    def expected(objective):
        return fuse_with(network, pair, CPU, EmbeddedFusionModel(objective, clip).text_direction)

    def fused(*more):
        out = tmp_path / f"fused-{len(list(tmp_path.iterdir()))}"
        run(told, folder, out, "--grey", *more)
        return {path.parent.name: read_image(path) for path in out.rglob("colour.png")}

    with monkeypatch.context() as patch:
        patch.setattr(FrozenCLIP, "tiny", None)  # known sentences need no CLIP
        saved = fused("--prompt", "a dark image")
        same = fused("--prompt", "a dark image", "--opposite", "a noisy image")
    assert torch.equal(saved["a-dark-image"], expected(objectives[1]))
    ((name, image),) = same.items()
    assert name.startswith("a-dark-image-not-a-noisy-image-")
    assert torch.equal(image, saved["a-dark-image"])

    more = ("--opposite", "a bright image", "--opposite", "a noisy image")
    new = fused("--prompt", "a clear image", *more)
    other = FusionObjective("a clear image", opposite=("a bright image", "a noisy image"))
    ((name, image),) = new.items()
    assert name.startswith("a-clear-image-not-a-bright-image-a-noisy")
    assert torch.equal(image, expected(other))
    assert not torch.equal(image, expected(objectives[0]))

    EmbeddedFusionModel(objectives, clip).save(told / SENTENCES)  # with and without: without
    assert torch.equal(fused("--prompt", "a dark image")["a-dark-image"], expected(objectives[2]))


def test_no_two_sentences_share_a_folder(tmp_path, folder, told, capsys):
    assert options.readable_name("a dark image 2") == "a-dark-image-2"
    long = "an image of a street at night with many people and "
    texts = ["a dark image", "A dark image", "a dark image!", "a-dark image", "a  dark image"]
    texts += ["夜", "昼", "\udcff", f"{long}cars", f"{long}cats"]
    assert len(set(map(options.readable_name, texts))) == len(texts)
    for text in (f"{long}cars", f"{long}cats"):
        run(
            told, folder, tmp_path / "fused", "--prompt", text, "--blend", text, "a dark image", "2"
        )
        assert "6 fused, 0 there already" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["infrared", "visible"])
def test_a_sentence_does_not_name_a_folder_of_sources(tmp_path, folder, told, text):
    with pytest.raises(SystemExit, match="be named like them beside them"):
        run(told, folder, folder, "--overwrite", "--prompt", text)
    assert sorted(path.name for path in folder.iterdir()) == ["ir", "vi"]


def test_sentences_where_they_do_not_belong(tmp_path, folder, checkpoint, told):
    out = tmp_path / "fused"
    for source, more, message in (
        (checkpoint, ["--prompt", "a dark image"], "--prompt is for a network of .*run"),
        (checkpoint, ["--blend", "a", "b", "3"], "--blend is for a network"),
        (checkpoint, ["--region", "hot", "a dark image"], "--region is for a network"),
        (checkpoint, ["--opposite", "a noisy image"], "--opposite is for a network"),
        (told, ["--opposite", "a noisy image"], "--prompt or --blend must be given"),
        (told, [], '--prompt or --blend must be given for .*told.* --prompt "a dark image"'),
        (told, ["--prompt", "a cat", "--encoder", "no"], "--encoder must be the CLIP of the loss"),
    ):
        with pytest.raises(SystemExit, match=f"fuse: error: {message}"):
            run(source, folder, out, *more)
    assert not out.exists()


def test_wrong_calls(tmp_path, folder, checkpoint, capsys):
    for arguments, message in (
        ((tmp_path / "no", folder, tmp_path / "out"), "there is no file .*no"),
        ((folder / "ir" / "broken.png", folder, tmp_path / "out"), "is no network of train.py"),
        ((checkpoint, tmp_path, tmp_path / "out"), "must hold one folder named ir"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*arguments)
    for steps in ("1", "x", "102"):
        with pytest.raises(SystemExit):
            run(checkpoint, folder, tmp_path, "--blend", "a", "b", steps)
        assert "--blend: STEPS must be from 2 to 101" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fuse.main(["--weights", "x", "--out", "y"])
    assert "--weights and --network must be given together" in capsys.readouterr().err


def test_a_pair_that_is_too_large_is_named(tmp_path, folder, checkpoint, monkeypatch, capsys):
    def too_large(network, pair, *more, **regions):
        if pair.name == "colour":
            raise RuntimeError("CUDA out of memory\nand a long trace")
        return fuse_with(network, pair, *more, **regions)

    monkeypatch.setattr(fuse, "fuse_with", too_large)
    run(checkpoint, folder, tmp_path / "fused")
    printed = capsys.readouterr()
    assert "colour.png: cannot be fused: there is not enough memory" in printed.err
    assert "1 fused, 0 there already, 2 unusable" in printed.out


def test_without_standard_error(tmp_path, folder, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    run(checkpoint, folder, tmp_path / "fused")
    sys.stderr.close()
    assert "2 fused" in capsys.readouterr().out


# Published weights


def run_published(path, name, folder, out):
    fuse.main(
        ["--weights", str(path), "--network", name, "--pairs", str(folder), "--out", str(out)]
    )


def assert_loads(path, name, network):
    loaded = load_published(path, name)
    expected, found = network.state_dict(), loaded.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_weights_of_other_names_are_matched_by_order(tmp_path, folder, capsys):
    network = PORTS["u2fusion-port"]()
    state = {f"net.{i}.{key}": value for i, (key, value) in enumerate(network.state_dict().items())}
    renamed = {}
    for index, (name, value) in enumerate(state.items()):
        renamed[f"layer{index // 2}.{name.rpartition('.')[2]}"] = value
    torch.save({"model": renamed, "epoch": 3}, tmp_path / "a.pth")
    assert_loads(tmp_path / "a.pth", "u2fusion-port", network)
    run_published(tmp_path / "a.pth", "u2fusion-port", folder, tmp_path / "fused")
    assert "2 fused" in capsys.readouterr().out


def test_numbers_of_numpy_beside_the_weights(tmp_path):
    """U2Fusion's model.pth has them, from numpy 1, which calls their module differently."""
    network = NETWORKS["u2fusion"]()
    numbers = {"train_loss_1": [np.float64(3.0), np.float32(1)], "epoch": np.int64(3)}
    torch.save({"model": network.state_dict(), **numbers}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as target,
    ):
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, content.replace(b"numpy._core.m", b"numpy.core.m"))
    for name in ("a.pth", "b.pth"):
        assert_loads(tmp_path / name, "u2fusion", network)


def test_a_generator_saved_with_its_vgg(tmp_path):
    class FusionModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vgg = torchvision.models.vgg11().features
            self.generator = NETWORKS["u2fusion"]()

    model = FusionModel()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    assert_loads(tmp_path / "a.pth", "u2fusion", model.generator)


def test_files_that_are_not_read_are_refused_in_our_words(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    (tmp_path / "half.pth").write_bytes(b"PK\3\4half")
    (tmp_path / "model.ckpt").write_bytes(b"tensors")
    torch.save(NETWORKS["u2fusion"]().state_dict(), tmp_path / "other.pth")
    for name, message in (
        ("module.pth", "holds other objects than tensors and numbers"),
        ("half.pth", "half.pth is damaged, of TensorFlow, or holds other objects"),
        ("model.ckpt", "is damaged, of TensorFlow, or"),
        ("no.pth", "there is no file"),
        ("other.pth", r"does not hold the weights of densefuse, 16 tensors from \[16, 1, 3, 3\]"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            load_published(tmp_path / name, "densefuse")
        assert "weights_only" not in str(error.value)


def test_images_that_are_nearly_white_are_said(tmp_path, folder, capsys):
    network = NETWORKS["densefuse"]()
    torch.nn.init.constant_(network.decoder[-1].bias, 2.0)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    run_published(tmp_path / "a.pth", "densefuse", folder, tmp_path / "white")
    said = capsys.readouterr().err
    assert said.count("fused images are nearly white: are these the weights of") == 1
    assert "densefuse-port" in said
    torch.nn.init.constant_(network.decoder[-1].bias, 0.4)
    torch.save(network.state_dict(), tmp_path / "b.pth")
    run_published(tmp_path / "b.pth", "densefuse", folder, tmp_path / "grey")
    assert "nearly white" not in capsys.readouterr().err
