"""Fusing folders with a checkpoint."""

import pytest
import torch
from image_files import noise, save_mixed_pairs, write

import fuse
from clip_fusion_loss import EmbeddedFusionModel, FrozenCLIP, FusionObjective
from parts.data.images import luminance, note_in, read_image, save_image, to_8bit
from parts.data.pairs import Pair, find_pairs, read_pair
from parts.networks import fusing
from parts.networks.catalogue import NETWORKS
from parts.networks.conditioned import Conditioned, told
from parts.networks.u2fusion import U2Fusion
from parts.training.checkpoints import Checkpoint, load_network, save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    return save_mixed_pairs(tmp_path / "pairs")


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
        ((checkpoint, tmp_path / "empty", tmp_path / "out"), "no usable pair of images"),
        ((tmp_path / "no.pt", folder, tmp_path / "out"), "there is no checkpoint"),
        ((folder / "ir" / "broken.png", folder, tmp_path / "out"), "is no checkpoint of train.py"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_fuse(*arguments)


def test_says_what_was_taken_for_what(tmp_path, folder, checkpoint, capsys):
    run_fuse(checkpoint, folder, tmp_path / "fused")
    assert "such as visible vi/broken.png and infrared ir/broken.png" in capsys.readouterr().err


@pytest.fixture
def other_checkpoint(tmp_path):
    torch.manual_seed(1)
    return checkpoint_of(NETWORKS["densefuse"](), tmp_path / "other.pt")


def test_images_of_other_weights_options_or_sources_are_not_taken_for_done(
    tmp_path, folder, checkpoint, other_checkpoint, capsys
):
    out = tmp_path / "fused"
    run_fuse(checkpoint, folder, out)
    before = (out / "colour.png").read_bytes()
    with pytest.raises(SystemExit, match="holds 2 images, such as .*colour.png.*--overwrite"):
        run_fuse(other_checkpoint, folder, out)
    with pytest.raises(SystemExit, match="that were not fused from these pairs"):
        run_fuse(checkpoint, folder, out, "--grey")
    assert (out / "colour.png").read_bytes() == before
    write(folder / "ir" / "colour.png", noise(9, 44, 60))
    with pytest.raises(SystemExit, match="holds 1 images"):
        run_fuse(checkpoint, folder, out)
    capsys.readouterr()
    run_fuse(checkpoint, folder, out, "--overwrite")
    assert "1 fused, 1 there already" in capsys.readouterr().out
    assert (out / "colour.png").read_bytes() != before


def test_images_of_unknown_origin_are_not_taken_for_done(tmp_path, folder, checkpoint):
    write(tmp_path / "fused" / "colour.png", noise(9, 44, 60))
    with pytest.raises(SystemExit, match="choose another --out"):
        run_fuse(checkpoint, folder, tmp_path / "fused")
    assert [path.name for path in (tmp_path / "fused").iterdir()] == ["colour.png"]


def test_the_same_weights_in_another_file_go_on(tmp_path, folder, checkpoint, capsys):
    run_fuse(checkpoint, folder, tmp_path / "fused")
    (tmp_path / "moved.pt").write_bytes(checkpoint.read_bytes())
    capsys.readouterr()
    run_fuse(tmp_path / "moved.pt", folder, tmp_path / "fused")
    assert "0 fused, 2 there already" in capsys.readouterr().out


def test_a_pair_that_the_network_cannot_fuse_is_named(
    tmp_path, folder, checkpoint, monkeypatch, capsys
):
    def out_of_memory(network, pair, device):
        if pair.name == "colour":
            raise RuntimeError("out of memory\nand a long trace")
        return fusing.fuse_with(network, pair, device)

    monkeypatch.setattr(fuse, "fuse_with", out_of_memory)
    run_fuse(checkpoint, folder, tmp_path / "fused")
    printed = capsys.readouterr()
    assert "colour.png: cannot be fused: out of memory\n" in printed.err
    assert "1 fused, 0 there already, 2 unusable" in printed.out


def test_nothing_fused_is_no_success(tmp_path, checkpoint):
    for folder in ("ir", "vi"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="no pair of .* could be fused"):
        run_fuse(checkpoint, tmp_path, tmp_path / "fused")


def test_notes_stay_out_of_the_picture(tmp_path):
    image = torch.from_numpy(noise(0, 1, 44, 60))
    save_image(image, tmp_path / "a.png", "made by hand")
    assert note_in(tmp_path / "a.png") == "made by hand"
    assert torch.equal(read_image(tmp_path / "a.png"), image)
    save_image(image, tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    assert note_in(tmp_path / "b.png") is note_in(tmp_path / "c.png") is None


@pytest.fixture
def told_checkpoint(tmp_path):
    """A network that was trained for two sentences, with random weights."""
    texts = ("a dark image", "a bright image")
    bank = EmbeddedFusionModel([FusionObjective(text) for text in texts], FrozenCLIP.tiny())
    torch.manual_seed(0)
    network = Conditioned(NETWORKS["densefuse"](), bank.text_direction.shape[1])
    torch.nn.init.normal_(network.modulation[-1].weight, std=0.05)
    torch.nn.init.constant_(network.network.decoder[-1].convolution.bias, 0.4)
    checkpoint = Checkpoint("densefuse", {}, 1, network.state_dict(), {}, {}, bank, "tiny")
    save_checkpoint(checkpoint, tmp_path / "told.pt")
    return tmp_path / "told.pt"


def test_each_sentence_gets_a_folder(tmp_path, folder, told_checkpoint, monkeypatch, capsys):
    out = tmp_path / "fused"
    known = ["--grey", "--prompt", "a dark image", "--prompt", "a bright image"]
    with monkeypatch.context() as patch:
        patch.setattr(FrozenCLIP, "tiny", None)  # known sentences need no CLIP
        run_fuse(told_checkpoint, folder, out, *known)
    assert "4 fused, 0 there already, 2 unusable" in capsys.readouterr().out
    options = [*known, "--prompt", "a zebra", "--blend", "a dark image", "a bright image", "3"]
    run_fuse(told_checkpoint, folder, out, *options)
    printed = capsys.readouterr()
    assert "8 fused, 4 there already, 6 unusable" in printed.out
    assert "note: the model 'tiny' was not trained on 'zebra'" in printed.err
    blend = "a-dark-image_a-bright-image"
    steps = [f"{blend}/{share}" for share in ("000", "050", "100")]
    written = {path.parent.relative_to(out).as_posix() for path in out.rglob("colour.png")}
    assert written == {"a-dark-image", "a-bright-image", "a-zebra", *steps}

    bank = EmbeddedFusionModel(
        [FusionObjective("a dark image"), FusionObjective("a bright image")], FrozenCLIP.tiny()
    )
    pair = read_pair(next(files for files in find_pairs(folder)[0] if files.name == "colour"))
    network = load_network(told_checkpoint)
    images = {name: read_image(out / name / "colour.png") for name in written}
    dark, bright = bank.text_direction
    for name, vector in {
        "a-dark-image": dark, "a-bright-image": bright, f"{blend}/050": dark + bright,
    }.items():  # fmt: skip
        expected = fusing.fuse_with(told(network, vector), pair, CPU)
        assert (images[name].int() - expected.int()).abs().max() <= 1
    assert torch.equal(images["a-dark-image"], images[f"{blend}/000"])
    assert not torch.equal(images["a-dark-image"], images["a-bright-image"])


def test_images_of_another_sentence_are_not_taken_for_done(tmp_path, folder, told_checkpoint):
    out = tmp_path / "fused"
    run_fuse(told_checkpoint, folder, out, "--prompt", "a dark image")
    (out / "a-dark-image").rename(out / "a-bright-image")
    with pytest.raises(SystemExit, match="holds 2 images, such as"):
        run_fuse(told_checkpoint, folder, out, "--prompt", "a bright image")


def test_sentences_where_they_do_not_belong(tmp_path, folder, checkpoint, told_checkpoint):
    dark = ["--prompt", "a dark image"]
    out = tmp_path / "fused"
    for trained, options, message in (
        (checkpoint, dark, "--prompt is for a network that was .* --prompts, got .*checkpoint.pt"),
        (checkpoint, ["--blend", "a", "b", "3"], "--blend is for a network"),
        (checkpoint, ["--encoder", "tiny"], "--encoder is for a network"),
        (told_checkpoint, [], "--prompt or --blend must be given, got neither .*told.pt"),
        (told_checkpoint, ["--prompt", "a cat", "--encoder", "no"], "--encoder must be tiny, whi"),
    ):
        with pytest.raises(SystemExit, match=f"fuse: error: {message}"):
            run_fuse(trained, folder, out, *options)
    weights = tmp_path / "weights.pt"
    torch.save(NETWORKS["densefuse"]().state_dict(), weights)
    arguments = ["--weights", weights, "--network", "densefuse", "--pairs", folder, "--out", out]
    with pytest.raises(SystemExit, match="--prompt is for a network .* got .*weights.pt"):
        fuse.main([*map(str, arguments), *dark])
    assert not out.exists()


@pytest.mark.parametrize(("steps", "message"), [("1", "from 2"), ("x", "from 2"), ("102", "101")])
def test_blends_of_too_few_or_many_steps(checkpoint, folder, tmp_path, capsys, steps, message):
    with pytest.raises(SystemExit):
        run_fuse(checkpoint, folder, tmp_path, "--blend", "a", "b", steps)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "argument --blend: STEPS must be" in said
    assert message in said


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        fuse.main(["--help"])
    assert end.value.code == 0
    assert "DIR/ir/street.png" in capsys.readouterr().out
