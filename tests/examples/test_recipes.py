"""The diffs of docs/adapters.md, applied to stand-ins for the published code bases and run."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawn import draw_pairs, save_pairs
from torch import nn

import fuse
from adapters import OverOutputs, TwoStage, parts_of
from clip_fusion_loss import IntensityGradientLoss, LanguageDrivenFusionLoss, functional, patches
from conftest import draw_images, make_criterion
from parts.data.images import luminance, read_image
from parts.data.pairs import find_pairs, read_pair
from parts.losses.original import ReconstructionLoss, SwinFusionLoss
from parts.networks.catalogue import NETWORKS, PORTS
from parts.networks.densefuse import DenseFuse
from parts.networks.u2fusion import U2Fusion
from parts.training.checkpoints import load_weights

STAND_INS = Path(__file__).parent / "code_bases"
PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n### ")[1:]}
DIFFS = {
    title: re.search(r"```diff\n(.*?)```", section, re.DOTALL)[1]
    for title, section in SECTIONS.items()
}
ROWS = {
    row[0].replace(", PyTorch port", "").replace(", port", " port"): row
    for row in re.findall(r"^\| ([^|]+) \|[^|]+\|[^|]+\|[^|]+\| (\d+) \| (\d): .+ \|$", PAGE, re.M)
}


def folder_of(title):
    return STAND_INS / title.lower().replace(" ", "_")


def test_each_code_base_has_recipe_row_and_stand_in():
    folders = {path.parent for path in STAND_INS.glob("*/*")}
    assert len(DIFFS) == 9
    assert DIFFS.keys() == ROWS.keys()
    assert {folder_of(title) for title in DIFFS} == folders


class UnlikeRoles(nn.Module):
    """A regularizer that makes roles count: those of a random CLIP hardly do."""

    def forward(self, fused, visible, infrared):
        return ((fused - visible).square() + 2 * (fused - infrared).abs()).flatten(1).mean(1)


@pytest.fixture
def build(encoder):
    """The loss without patches, so that two calls give the same."""

    def build(**options):
        defaults = {"encoder": encoder, "regularizer": UnlikeRoles(), "patch_weight": 0.0}
        return LanguageDrivenFusionLoss(**(defaults | options))

    return build


@pytest.mark.parametrize("title", DIFFS)
def test_diff_applies_runs_and_keeps_the_names(title, build, tmp_path, monkeypatch):
    shutil.copytree(folder_of(title), tmp_path, dirs_exist_ok=True)
    diff = DIFFS[title]
    command = ["git", "apply", "--unidiff-zero", "-"]
    subprocess.run(command, input=diff, text=True, cwd=tmp_path, check=True)
    monkeypatch.setattr(LanguageDrivenFusionLoss, "paper", build)
    monkeypatch.setattr(sys, "path", [str(STAND_INS), *sys.path])
    steps = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *a: (steps.append(self), step(self, *a))
    )
    torch.manual_seed(0)
    (file,) = re.findall(r"^\+\+\+ b/(.+)", diff, re.M)
    left = runpy.run_path(str(tmp_path / file), run_name="__main__")
    with torch.no_grad():
        truth, logged = left["TRUTH"], left["LOGGED"]
        value = build()(**truth).item()
        roles = {"visible": truth["infrared"], "infrared": truth["visible"]}
        swapped = build()(fused=truth["fused"], **roles).item()
    assert logged[0] == pytest.approx(value, rel=1e-5)
    assert value != pytest.approx(swapped, rel=1e-3)
    assert [optimizer is steps[-1] for optimizer in steps][-2:] == [True, True]
    assert all(parameter.grad.any() for parameter in left["NETWORK"].parameters())

    lines, values = map(int, ROWS[title][1:])
    assert len(re.findall(r"^[+-](?![+-])", diff, re.M)) == lines
    if len(logged) > 1:
        assert len(logged) == values
        assert sum(logged[1:]) == pytest.approx(logged[0], rel=1e-5)


def test_two_stages_of_a_port_with_lists(build, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(STAND_INS), *sys.path])
    source = (STAND_INS / "densefuse" / "train_densefuse.py").read_text()
    names = {}
    exec(source[: source.index("def train")], names)
    network, pair = names["DenseFuse_net"](), [255 * image for image in draw_images()[1:]]
    training = TwoStage(network, nn.MSELoss(), build(data_range=(0, 255)))
    images = torch.cat(pair)
    expected = (network.decoder(network.encoder(images))[0] - images).square().mean()
    torch.testing.assert_close(training(*pair), expected)
    training.stage = "fuse"
    outputs = network.decoder(network.fusion(*map(network.encoder, pair)))
    expected = build()(outputs[0] / 255, *(image / 255 for image in pair))
    torch.testing.assert_close(training(*pair), expected)
    training(*pair).backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    training.stage = "other"
    with pytest.raises(ValueError, match="`stage` must be"):
        training(*pair)


def port_of_densefuse(state):
    """Fused grey levels, in plain functions of the port's features: lists, an average, a ReLU."""

    def conv(x, name):
        padded = nn.functional.pad(x, [1] * 4, mode="reflect")
        return nn.functional.conv2d(
            padded, *(state[f"{name}.{part}"] for part in ("weight", "bias"))
        ).relu()

    def encode(image):
        features = conv(image, "conv1")
        for i in range(3):
            features = torch.cat([features, conv(features, f"DB1.{i}")], 1)
        return features

    def fuse(visible, infrared):
        features = (encode(infrared) + encode(visible)) / 2
        for i in range(2, 6):
            features = conv(features, f"conv{i}")
        return features

    return fuse


@pytest.fixture
def published(tmp_path):
    """A file with weights of DenseFuse's layers under other names, and the fusion they make."""
    torch.manual_seed(0)
    names = ["conv1", "DB1.0", "DB1.1", "DB1.2", "conv2", "conv3", "conv4", "conv5"]
    parts = [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    state = dict(zip(parts, DenseFuse().state_dict().values(), strict=True))
    state["conv5.bias"] += 100
    path = tmp_path / "densefuse.pt"
    torch.save({"model": state, "epoch": 4}, path)
    return path, port_of_densefuse(state)


def test_published_weights_fuse_as_published(published, tmp_path, capsys):
    path, expected = published
    network, by_order = load_weights(path, "densefuse-port")
    images = 255 * torch.rand(2, 1, 1, 20, 20)
    torch.testing.assert_close(255 * network(*(images / 255)), expected(*images))
    assert by_order  # two layers have 16 x 32 channels
    save_pairs(draw_pairs(1), tmp_path)
    arguments = ["--weights", str(path), "--network", "densefuse-port", "--device", "cpu"]
    fuse.main([*arguments, "--pairs", str(tmp_path), "--out", str(tmp_path / "fused")])
    assert "matched in the order of the file" in capsys.readouterr().err
    (pair,) = draw_pairs(1)
    fused = expected(pair.visible[None].float(), pair.infrared[None].float())[0]
    assert (read_image(tmp_path / "fused" / "scene0.png") - fused).abs().max() <= 0.51
    with pytest.raises(SystemExit, match="2"):
        fuse.main([*arguments[:2], "--pairs", str(tmp_path), "--out", str(tmp_path / "fused")])
    assert "--weights and --network must be given together" in capsys.readouterr().err


def test_layers_are_told_by_shape_where_that_is_enough(tmp_path):
    torch.manual_seed(0)
    network = U2Fusion()
    state = {
        f"module.{i // 2}.{k.rpartition('.')[2]}": v
        for i, (k, v) in enumerate(network.state_dict().items())
    }
    torch.save(dict(reversed(state.items())), tmp_path / "weights.pth")
    loaded, by_order = load_weights(tmp_path / "weights.pth", "u2fusion")
    images = torch.rand(2, 1, 1, 16, 16)
    torch.testing.assert_close(loaded(*images), network(*images))
    assert not by_order

    torch.save(network.state_dict(), tmp_path / "own.pth")
    port, _ = load_weights(tmp_path / "own.pth", "u2fusion-port")
    own = U2Fusion(padding="zeros")
    own.load_state_dict(network.state_dict())
    torch.testing.assert_close(port(*images), own(*(2 * images - 1)))
    assert not torch.allclose(own(*images), network(*images))  # the padding counts

    with pytest.raises(
        ValueError, match="does not hold the layers of densefuse; .*number of layers"
    ):
        load_weights(tmp_path / "own.pth", "densefuse")
    torch.save(network, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="must hold one state_dict and no other objects"):
        load_weights(tmp_path / "whole.pth", "u2fusion")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_weights(tmp_path / "missing.pth", "u2fusion")


def test_page_names_the_networks_whose_weights_are_taken():
    section = PAGE[PAGE.index("## Published weights") : PAGE.index("## Together")]
    named = re.findall(r"^\| ([a-z0-9, -]+) \|", section, re.M)
    assert {name for row in named for name in row.split(", ")} == NETWORKS.keys() | PORTS.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of scipy.misc, which is empty
@pytest.mark.parametrize("name", ["torch", "scipy", "kornia"])
def test_lines_that_newer_releases_need(name):
    section = PAGE[PAGE.index("## Python and") : PAGE.index("## Published weights")]
    rows = [
        row for row in re.findall(r"^\|.*\| `(.+)` \| `(.+)` \|$", section, re.M) if name in row[0]
    ]
    if name == "kornia":
        pytest.importorskip(name)
    for theirs, ours in rows:
        with pytest.raises((ImportError, AttributeError)):
            exec(theirs, {})
        exec(ours, {})
    assert len(rows) == 1


def test_a_relu_at_the_end_stops_half_of_all_starts():
    images, stopped = torch.rand(2, 1, 1, 16, 16), 0
    for seed in range(60):
        torch.manual_seed(seed)
        network = DenseFuse(relu=True)
        network(*images).sum().backward()
        stopped += not any(parameter.grad.any() for parameter in network.parameters())
    assert 15 <= stopped <= 45


def test_sizes_of_the_losses(encoder):
    _, visible, infrared = draw_images(size=(64, 64))
    torch.manual_seed(0)
    network, gradients = DenseFuse(), {}
    language = make_criterion(encoder, regularizer=IntensityGradientLoss())
    training = TwoStage(network, ReconstructionLoss(), OverOutputs(language))
    for training.stage in ("reconstruct", "fuse"):
        network.zero_grad()
        loss = training(visible, infrared)
        loss.backward()
        norm = torch.stack([parameter.grad.norm() for parameter in network.parameters()]).norm()
        gradients[training.stage] = loss.item(), norm.item()
    (first_loss, first), (second_loss, second) = gradients.values()
    assert first > 100 * second
    assert first_loss > 100 * second_loss
    fused = network(visible, infrared)
    parts = parts_of(language, fused=fused, visible=visible, infrared=infrared)
    assert 0.1 < SwinFusionLoss()(fused, visible, infrared) / parts.total < 10


@pytest.fixture(scope="module")
def scenes(real_pairs):
    """Every second one of RoadScene."""
    return [read_pair(files) for files in find_pairs(real_pairs / "roadscene")[0][::2]]


def crops(scenes, side):
    """(N, 1, side, side) of those that are large enough."""
    random, taken = torch.Generator().manual_seed(0), []
    for pair in scenes:
        if min(pair.infrared.shape[1:]) >= side:
            top, left = (
                int(torch.randint(s - side + 1, (), generator=random))
                for s in pair.infrared.shape[1:]
            )
            window = slice(top, top + side), slice(left, left + side)
            taken.append([luminance(image)[(..., *window)] for image in pair[1:]])
    return [torch.stack(images) for images in zip(*taken, strict=True)]


def numbers(pattern):
    (found,) = re.findall(pattern, PAGE.replace("\n", " "))
    return [float(number) for number in found]


def test_what_swapping_changes(scenes):
    low, high, median = numbers(
        r"RoadScene by ([\d.]+) to (\d+) %, for half of them by less than ([\d.]+) %"
    )
    visible, infrared = crops(scenes, 224)
    criterion = LanguageDrivenFusionLoss.tiny(num_patches=8, reduction="none")
    values = []
    for sources in ((visible, infrared), (infrared, visible)):
        criterion.generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            values.append(criterion((visible + infrared) / 2, *sources))
    changes = 100 * (values[1] / values[0] - 1).abs()
    assert changes.min() == pytest.approx(low, abs=0.2)
    assert changes.median() == pytest.approx(median, abs=0.5)
    assert changes.max() == pytest.approx(high, abs=1)


def test_how_many_patches_count(scenes):
    stated = numbers(
        r"on RoadScene (\d+) % of the patches .* (\d+) % at 128 and (\d+) % at 224 pixels"
    )
    for side, expected in zip((64, 128, 224), stated, strict=True):
        sources = crops(scenes, side)
        transforms = functional.random_patch_transforms(
            len(sources[0]), 8, (side, side), generator=torch.Generator().manual_seed(0)
        )
        kept, _ = patches.choose_patches(*sources, transforms, (96, 96), min_entropy=6.0)
        assert 100 * kept.float().mean() == pytest.approx(expected, abs=4)
