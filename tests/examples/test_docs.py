"""Whatever README and documentation show is run: Python as it stands, commands by their options."""

import importlib
import inspect
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import vgg19

from clip_fusion_loss import FrozenCLIP, FusionObjective, LanguageDrivenFusionLoss, __version__
from clip_fusion_loss.options import OPTIONS
from conftest import build_clip
from parts.networks.densefuse import DenseFuse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SIZE = 48


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def titled(pages):
    return [pytest.param(page, id=page.stem) for page in pages]


@pytest.fixture
def stand_ins(monkeypatch, tokenizer):
    """Random weights in place of those that would be downloaded."""

    def load(*_, **__):
        return FrozenCLIP(build_clip(), tokenizer)

    def features(_):
        with torch.random.fork_rng():
            return vgg19().features[:23]

    monkeypatch.setattr(FrozenCLIP, "from_pretrained", load)
    monkeypatch.setattr("clip_fusion_loss.regularizers._vgg19_features", features)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))


class OriginalLoss(torch.nn.Module):
    """As SwinFusion's repository has one: by position, and returning several values."""

    def forward(self, infrared, visible, fused):
        return (fused - infrared - visible).square().mean(), None


def user_code(tokenizer):
    """What a reader has at hand: a network, a loop's variables, and the names on the page."""
    import adapters
    import clip_fusion_loss

    torch.manual_seed(0)
    network = DenseFuse()
    visible, infrared, fused = torch.rand(3, 2, 1, SIZE, SIZE)
    fused.requires_grad_()
    names = {
        "torch": torch,
        "device": torch.device("cpu"),
        "network": network,
        "optimizer": torch.optim.Adam(network.parameters()),
        "loader": DataLoader(TensorDataset(visible, infrared), batch_size=2),
        "visible": visible,
        "infrared": infrared,
        "fused": fused,
        "encoder": FrozenCLIP(build_clip(), tokenizer),
        "criterion": clip_fusion_loss.LanguageDrivenFusionLoss(
            encoder=FrozenCLIP(build_clip(), tokenizer)
        ),
        "reconstruction_loss": torch.nn.functional.mse_loss,
        "fusion_loss_vif": OriginalLoss,
        "labels": torch.tensor([1, 0]),
        "steered_network": lambda visible, infrared, vector: network(visible, infrared),
        "self": SimpleNamespace(device=torch.device("cpu")),
    }
    names |= dict.fromkeys(("mri", "dark", "near"), visible)
    names |= dict.fromkeys(("pet", "bright", "far"), infrared)
    for module in (clip_fusion_loss, adapters):
        names |= {name: value for name, value in vars(module).items() if name[0].isupper()}
    return names


@pytest.mark.filterwarnings("ignore")  # of frameworks about the smallness of all this
@pytest.mark.parametrize("page", titled(page for page in PAGES if blocks(page, "python")))
def test_python(page, stand_ins, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = user_code(tokenizer)
    for number, block in enumerate(blocks(page, "python"), 1):
        code = compile(block, f"{page.name}, Python block {number}", "exec")
        exec(code, names)


@pytest.mark.parametrize("page", titled(page for page in PAGES if blocks(page, "bash")))
def test_commands_have_the_options_they_are_shown_with(page, capsys):
    commands = "".join(blocks(page, "bash")).replace("\\\n", " ")
    for script, arguments in re.findall(r"examples/(\w+)\.py ?([^\n#&]*)", commands):
        with pytest.raises(SystemExit):
            importlib.import_module(script).main(["--help"])
        known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        assert set(re.findall(r"--[\w-]+", arguments)) <= known, script


@pytest.mark.parametrize("page", titled(PAGES))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_table_of_options_is_that_of_the_signature():
    page = (ROOT / "docs" / "api.md").read_text()
    names = {"FusionObjective": FusionObjective}
    table = {
        name: eval(default, names)
        for name, default in re.findall(r"^\| `(\w+)` \| `(.+?)` \|", page, re.MULTILINE)
    }
    parameters = inspect.signature(LanguageDrivenFusionLoss).parameters.values()
    assert table == {parameter.name: parameter.default for parameter in parameters}


def test_table_of_constructors_is_what_they_build(stand_ins):
    page = (ROOT / "docs" / "api.md").read_text()
    table = page.split("### The three constructors")[1].split("###")[0]
    loss = LanguageDrivenFusionLoss
    criteria = [build() for build in (loss, loss.paper, loss.tiny)]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE))
    for name, cells in rows.items():
        said = [cell.strip("` ") for cell in cells.split("|")]
        if name == "encoder":
            assert [criterion.encoder.name == "tiny" for criterion in criteria] == [
                cell == "embedded" for cell in said
            ]
        elif name == "regularizer":
            kinds = [type(criterion.regularizer).__name__ + "()" for criterion in criteria]
            assert [kind.replace("NoneType()", "None") for kind in kinds] == said
        else:
            assert [repr(getattr(criterion, name)) for criterion in criteria] == said
    differ = {
        name
        for name in OPTIONS
        if len({repr(getattr(criterion, name)) for criterion in criteria}) > 1
    }
    assert differ <= set(rows), "the page says that all other options are the same"


def test_the_front_page_leads_to_every_page_and_names_the_version():
    front = (ROOT / "docs" / "index.md").read_text()
    others = {page.name for page in PAGES} - {"README.md", "index.md"}
    assert others <= set(re.findall(r"\]\(([\w.]+)", front))
    assert others == {f"{name}.md" for name in re.findall(r"^(\w+)$", front, re.MULTILINE)}
    assert f"Version {__version__}," in front


def test_changelog_and_citation_have_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version, date = re.findall(r"^## \[(\d.+?)\] - (.+)$", changelog, re.MULTILINE)[0]
    citation = (ROOT / "CITATION.cff").read_text()
    assert version == __version__
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation


def test_the_readme_has_the_results_of_the_page():
    page = (ROOT / "docs" / "results.md").read_text()
    summary = " ".join(page.split("\n\n")[1].split())
    assert summary.startswith("- **The sentence changes")
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert summary in readme
    published = readme.split("**Published methods**")[1].split(" - **")[0]
    section = page.split("## Compared with other fusions")[1].split("Among")[0]
    ours = "ours, the paper's sentence"
    for row in ("Laplacian pyramid", ours, f"{ours}, tuned (300 steps)"):
        pattern = rf"^\| {re.escape(row)} \|.* ([\d.]+) \| [-\d]+ \|$"
        [rank] = re.findall(pattern, section, re.MULTILINE)
        assert rank in published
