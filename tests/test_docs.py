"""Whatever README and pages show is run: Python as it stands, commands by the programs' options."""

import argparse
import importlib
import inspect
import re
import shlex
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.vgg import cfgs, make_layers

import clip_fusion_loss
from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss, __version__

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
READMES = [*ROOT.glob("*/README.md"), *ROOT.glob("docs/*/README.md")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(READMES), *DOCS]
SIZE = 48
PROGRAM = re.compile(r"(?:examples/|docs/evidence/|-m evidence\.)(\w+)(?:\.py)?(?: (.*))?$")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def titled(pages):
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


def small_clip():
    """The bundled CLIP, but no word is refused."""
    encoder = FrozenCLIP.tiny()
    encoder.vocabulary = None
    return encoder


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """The bundled CLIP, and a VGG-19 of equal weights, in place of those to be downloaded."""
    monkeypatch.setattr(FrozenCLIP, "from_pretrained", lambda *_, **__: small_clip())
    with torch.device("meta"):
        shapes = make_layers(cfgs["E"]).state_dict()
    state = {name: torch.full((), 0.01).expand(value.shape) for name, value in shapes.items()}
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, cache / "vgg19-dcbb9e9d.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(cache)  # pages pass the file too
    (cache / "captions.json").write_text('{"1.png": "a dark, noisy street", "2.png": "a forest"}')


@pytest.fixture
def one_process(monkeypatch):
    """What torchrun tells a program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


class OriginalLoss(torch.nn.Module):
    """As SwinFusion's repository has one: by position, and returning several values."""

    def forward(self, infrared, visible, fused):
        return (fused - infrared - visible).square().mean(), None


def readers_names():
    """What a reader has at hand: a network, a loop's variables, and the names on the page."""
    import adapters
    from networks.densefuse import DenseFuse

    torch.manual_seed(0)
    network = DenseFuse()
    visible, infrared, fused = torch.rand(3, 2, 1, SIZE, SIZE)
    names = {
        "torch": torch,
        "device": torch.device("cpu"),
        "network": network,
        "optimizer": torch.optim.Adam(network.parameters()),
        "loader": DataLoader(TensorDataset(visible, infrared), batch_size=2),
        "visible": visible,
        "infrared": infrared,
        "fused": fused.requires_grad_(),
        "encoder": small_clip(),
        "criterion": LanguageDrivenFusionLoss(encoder=small_clip(), num_patches=4),
        "reconstruction_loss": torch.nn.functional.mse_loss,
        "fusion_loss_vif": OriginalLoss,
        "labels": torch.tensor([1, 0]),
        "names": ["2.png", "1.png"],
        "steered_network": lambda visible, infrared, vector: network(visible, infrared),
        "self": SimpleNamespace(device=torch.device("cpu")),
        "mri": visible,
        "pet": infrared,
    }
    for module in (clip_fusion_loss, adapters):
        names |= {name: value for name, value in vars(module).items() if name[0].isupper()}
    return names


@pytest.mark.filterwarnings("ignore")  # of frameworks about the smallness of all this
@pytest.mark.parametrize("page", titled(page for page in PAGES if blocks(page, "python")))
def test_python(page, weights, one_process, capsys):
    names = readers_names()
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, Python block {number}", "exec"), names)


def test_the_example_without_a_clone_gets_dark(capsys):
    """It needs nothing but what it imports."""
    exec(blocks(ROOT / "docs" / "api.md", "python")[-1], {})
    first, *_, last = (line.split() for line in capsys.readouterr().out.splitlines())
    assert float(last[3].rstrip(",")) < float(first[3].rstrip(","))
    assert float(last[5]) < 0.8 * float(first[5])


def commands(page):
    """(program, arguments) of each command on `page` that runs a program of this repository."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [match.groups("") for match in map(PROGRAM.search, lines) if match]


class ParsedError(Exception):
    """Ends a program where it has read its options."""


@pytest.fixture
def only_parse(monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *arguments, **options):
        parse_args(self, *arguments, **options)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@pytest.mark.parametrize("page", titled(page for page in PAGES if commands(page)))
def test_programs_take_the_options_they_are_shown_with(page, only_parse):
    for program, arguments in commands(page):
        folder = "" if (ROOT / "examples" / f"{program}.py").exists() else "evidence."
        main = importlib.import_module(folder + program).main
        if "..." not in arguments:
            with pytest.raises(ParsedError):
                main(shlex.split(arguments, comments=True))


def anchors(page):
    """What GitHub makes of the headings of `page`."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", titled(PAGES))
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if "://" in target:
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


#: The most words of a page; those of the API count together.
LIMITS = {
    **{"README": 700, "results": 2000, "adapters": 1500, "guarantees": 700, "objectives": 1500},
    **{"performance": 800, "method": 1050, "faq": 600, "encoders": 650, "api": 650, "loops": 800},
}


def test_pages_are_short():
    counts = dict.fromkeys(LIMITS, 0)
    for page in (ROOT / "README.md", *(page for page in DOCS if page.stem != "index")):
        name = "api" if page.stem in ("api_parts", "functional") else page.stem
        counts[name] += len(page.read_text().split())
    assert {name: count for name, count in counts.items() if count > LIMITS[name]} == {}


def test_every_picture_is_shown():
    shown = {name for page in PAGES for name in re.findall(r"images/([\w.-]+)", page.read_text())}
    assert shown == {path.name for path in (ROOT / "docs" / "images").iterdir()}


@pytest.mark.parametrize("page", titled(page for page in PAGES if page.stem != "adapters"))
def test_files_that_are_named_exist(page):
    folders = [
        ROOT,
        page.parent,
        *(ROOT / name for name in ("clip_fusion_loss", "docs", "examples", "tests")),
    ]
    for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
        assert any((folder / name).is_file() for folder in folders), name


def test_the_menu_of_the_site_has_every_page():
    menu = (ROOT / "docs" / "index.md").read_text()
    listed = set(re.findall(r"^(\w+)$", menu, re.MULTILINE))
    assert listed == {page.stem for page in DOCS} - {"index"}


def test_readme_changelog_and_citation_have_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version, date = re.findall(r"^## \[(\d.+?)\] - (.+)$", changelog, re.MULTILINE)[0]
    citation = (ROOT / "CITATION.cff").read_text()
    assert version == __version__
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation
    readme = (ROOT / "README.md").read_text()
    assert f"Version {version}," in readme
    assert "{{" not in readme  # a figure that is still to be filled in


def test_table_of_constructors_is_what_they_build(weights):
    page = (ROOT / "docs" / "api.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.+`.+`.+)` \|$", page, re.MULTILINE))
    loss = LanguageDrivenFusionLoss
    built = [build() for build in (loss, loss.paper, loss.autofuse, loss.tiny)]
    names = [type(criterion.regularizer).__name__.removesuffix("Type") for criterion in built]
    assert rows.pop("regularizer").split("` | `") == names
    for name, cells in rows.items():
        assert cells.split("` | `") == [repr(getattr(criterion, name)) for criterion in built]
    apart = {"objective", "encoder", "regularizer", "generator", "compile"}
    apart |= {"patch_geometry", "patch_scale"}
    for name in inspect.signature(loss).parameters.keys() - rows.keys() - apart:
        assert len({repr(getattr(criterion, name)) for criterion in built}) == 1, name


def test_the_page_on_structure_keeps_the_ratio_of_tiny():
    """Its calculation of a `regularizer_weight` for the paper's weights."""
    section = (ROOT / "docs" / "method.md").read_text().split("### Its weight")[1]
    section = " ".join(section.split("\n## ")[0].split())
    structure, *language = map(
        float, re.search(r"([\d.]+) to ([\d.]+) \+ ([\d.]+)", section).groups()
    )
    tiny = LanguageDrivenFusionLoss.tiny()
    assert structure == tiny.regularizer_weight
    assert language == [tiny.direction_weight, tiny.patch_weight]
    about, result = map(float, re.search(r"about (\d+) .*?which gives (\d+\.\d)", section).groups())
    assert result == round(about * structure / sum(language), 1)
    assert f"Start with {result:.0f}:" in section
