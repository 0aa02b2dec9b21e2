"""The recipes of docs/adapters.md, applied to stand-ins for the published code bases and run."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from clip_fusion_loss import LanguageDrivenFusionLoss
from networks import NETWORKS
from networks.densefuse import DenseFuse

STAND_INS = Path(__file__).parent / "code_bases"
PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
RECIPES, REST = PAGE.split("\n## How to read a recipe")[1].split("\n## ", 1)
SECTIONS = {section.partition("\n")[0]: section for section in RECIPES.split("\n### ")[1:]}
#: Title: how many values the adapter returns.
VALUES = dict(re.findall(r"^\| ([A-Z][^|]+) \|[^|]+\|[^|]+\|[^|]+\| (\d): .+ \|$", PAGE, re.M))

#: A step: what to do at which line, and the lines to paste.
STEP = re.compile(
    r"^(?:(?P<verb>Before|After|Replace|Delete|In) `(?P<line>[^`]+)`"
    r"(?: in `(?P<function>\w+)`)?(?: \((?P<said>[^)]*)\))?"
    r"(?: write `(?P<new>[^`]+)` in place of `(?P<old>[^`]+)`)?"
    r"|Replace lines (?P<first>\d+) to (?P<last>\d+), which hold neither (?P<not_there>[^:]+))[:.]"
    r"(?:\n\n```py\n(?P<code>.*?)^```)?$",
    re.MULTILINE | re.DOTALL,
)
INDENTATIONS = {"indented by one tab": "\t", "not indented": ""}


class WrongPlaceError(Exception):
    """What the page says of a line does not hold."""


def indentation(line):
    return line[: len(line) - len(line.lstrip())]


def function_of(lines, name):
    """The numbers of the lines of the function `name`; of all lines if it is None."""
    if name is None:
        return range(len(lines))
    starts = [n for n, line in enumerate(lines) if line.strip().startswith(f"def {name}(")]
    if len(starts) != 1:
        raise WrongPlaceError(f"{len(starts)} functions {name}")
    outer = len(indentation(lines[starts[0]]))
    for n in range(starts[0] + 1, len(lines)):
        if lines[n].strip(" #") and len(indentation(lines[n])) <= outer:
            return range(starts[0], n)
    return range(starts[0], len(lines))


def find(lines, anchor, function, said):
    """The number, from 0, of the one line for which all holds that the page says of it."""
    pattern = re.escape(anchor.removesuffix("...")) + ("" if anchor.endswith("...") else r"\s*$")
    found = [n for n in function_of(lines, function) if re.match(rf"\s*{pattern}", lines[n])]
    number = None
    for fact in said.split(", ") if said else []:
        if place := re.fullmatch(r"(after )?line (\d+)", fact):
            number = int(place[2]) - (not place[1])
            while place[1] and not lines[number].strip(" #"):
                number += 1
            continue
        spaces = re.fullmatch(r"indented by (\d+) spaces", fact)
        space = " " * int(spaces[1]) if spaces else INDENTATIONS[fact]
        found = [n for n in found if indentation(lines[n]) == space]
    if len(found) != 1 or number not in (None, *found):
        raise WrongPlaceError(f"{anchor!r} in lines {[n + 1 for n in found]}, said of it: {said}")
    return found[0]


def apply(section, text):
    """`text` after the steps of a section, whose numbers are those before any change."""
    lines, edits = text.splitlines(), []
    for step in map(re.Match.groupdict, STEP.finditer(section)):
        if step["first"]:
            start, stop = int(step["first"]) - 1, int(step["last"])
            for other in re.findall("`(.+?)`", step["not_there"]):
                if any(other in line for line in lines[start:stop]):
                    raise WrongPlaceError(f"{other!r} in lines {start + 1} to {stop}")
        else:
            start = find(lines, step["line"], step["function"], step["said"])
            stop = start + 1
        space, added = indentation(lines[start]), (step["code"] or "").splitlines()
        if step["verb"] == "In":
            if lines[start].count(step["old"]) != 1:
                raise WrongPlaceError(f"not one {step['old']!r} in line {start + 1}")
            added = [lines[start].strip().replace(step["old"], step["new"])]
        elif step["verb"] == "Before":
            stop = start
        elif step["verb"] == "After":
            start = stop
        if "\t" in space:
            added = [line.replace("    ", "\t") for line in added]
        edits.append((start, stop, [space + line for line in added]))
    for start, stop, added in sorted(edits, reverse=True):
        lines[start:stop] = added
    return "\n".join(lines) + "\n"


def stand_in(title):
    """The stand-in's text, with lines that say nothing in place of those that are left out."""
    lines = []
    for line in (STAND_INS / f"{title.lower().replace(' ', '_')}.py").read_text().splitlines():
        if match := re.fullmatch(r"\s*# line (\d+)", line):
            missing = int(match[1]) - 1 - len(lines)
            assert missing >= 0, line
            lines += ["#"] * missing
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def test_each_code_base_has_row_recipe_and_stand_in():
    assert len(SECTIONS) == 10
    assert SECTIONS.keys() == VALUES.keys()
    files = {path.stem for path in STAND_INS.glob("*.py")} - {"common"}
    assert {title.lower().replace(" ", "_") for title in SECTIONS} == files
    for section in SECTIONS.values():
        steps = list(STEP.finditer(section))
        assert section.count("```py\n") == sum(bool(step["code"]) for step in steps)
        assert len(re.findall("^(?:Before|After|Replace|Delete|In) ", section, re.M)) == len(steps)


class Unlike(nn.Module):
    """A regularizer that makes roles count, and that notes what it was given as which."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, fused, visible, infrared):
        self.calls.append((visible, infrared))
        return ((fused - visible).square() + 2 * (fused - infrared).abs()).flatten(1).mean(1)


@pytest.fixture
def build(encoder):
    """The loss without patches, so that two calls give the same."""

    def build(**options):
        defaults = {"encoder": encoder, "regularizer": Unlike(), "patch_weight": 0.0}
        return LanguageDrivenFusionLoss(**(defaults | options))

    return build


@pytest.mark.parametrize("title", SECTIONS)
def test_recipe_applies_runs_and_keeps_the_roles(title, build, tmp_path, monkeypatch):
    criteria = []

    def paper(**options):
        criteria.append(build(**options))
        return criteria[-1]

    monkeypatch.setattr(LanguageDrivenFusionLoss, "paper", paper)
    monkeypatch.setattr(sys, "path", [str(STAND_INS), *sys.path])
    torch.manual_seed(0)
    path = tmp_path / "stand_in.py"
    path.write_text(apply(SECTIONS[title], stand_in(title)))
    left = runpy.run_path(str(path), run_name="__main__")

    (criterion,) = criteria
    calls = criterion.regularizer.calls
    # In Text-IF two more validate; U2Fusion's other task has its own loss.
    assert len(calls) == (4 if title == "Text-IF" else 2)
    from common import draw_scenes, luminance

    visible, infrared = list(draw_scenes())[-1]
    if title not in ("Text-IF", "RFC"):
        visible = luminance(visible)
    fused = left["FUSED"]
    assert all(seen.min() < 0.3 for seen, _ in calls)
    assert all(seen.min() > 0.5 for _, seen in calls)
    torch.testing.assert_close(calls[-1][0], visible)
    torch.testing.assert_close(calls[-1][1][:, :1], infrared)

    logged, options = left["LOGGED"], {"objective": criterion.objective}
    with torch.no_grad():
        value = build(**options)(fused=fused, visible=visible, infrared=infrared).item()
        swapped = build(**options)(fused=fused, visible=infrared, infrared=visible).item()
    assert logged[0] == pytest.approx(value, rel=1e-5)
    assert value != pytest.approx(swapped, rel=1e-3)
    assert all(parameter.grad.any() for parameter in left["NETWORK"].parameters())
    for name, weight in left.get("SAVED", {}).items():
        assert torch.equal(weight, left["NETWORK"].state_dict()[name])
    if len(logged) > 1:
        assert len(logged) == int(VALUES[title])
        assert sum(logged[1:]) == pytest.approx(logged[0], rel=1e-5)


def spoilt(lines, step):
    """What can be wrong with the place of a step: how, the lines then, whether it must be seen."""
    if step["line"]:
        number = find(lines, step["line"], step["function"], step["said"])
        before, line, after = lines[:number], lines[number], lines[number + 1 :]
        yield "missing", [*before, indentation(line) + "pass", *after], True
        yield "twice", [*before, line, line, *after], True
        if "indented" in (step["said"] or ""):
            yield "indented otherwise", [*before, f" {line}", *after], True
        if step["function"]:
            there = f"def {step['function']}("
            yield "another function", [x.replace(there, "def other(") for x in lines], True
    if step["first"] or " line " in f" {step['said']}":
        yield "moved down", ["#", *lines], False
        yield "moved up", lines[1:], False


@pytest.mark.parametrize("title", SECTIONS)
def test_recipe_lands_nowhere_else(title):
    lines = stand_in(title).splitlines()
    for step in STEP.finditer(SECTIONS[title]):
        right = apply(step[0], stand_in(title))
        for how, changed, must_fail in spoilt(lines, step):
            try:
                landed = apply(step[0], "\n".join(changed))
            except WrongPlaceError:
                continue
            # Lines before the place may be more or fewer where its name alone decides.
            assert not must_fail, (how, step[0])
            assert landed.endswith(right.partition("\n")[2]), (how, step[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of scipy.misc, which is empty
@pytest.mark.parametrize("name", ["torch", "scipy", "kornia"])
def test_lines_that_newer_releases_need(name, tmp_path):
    if name == "kornia":
        pytest.importorskip(name)
    ((theirs, ours),) = re.findall(rf"^\| \w+ \| `(.+{name}.+)` \| `?(.+?)`? \|$", REST, re.M)
    with pytest.raises((ImportError, AttributeError)):
        exec(theirs, {})
    if name != "scipy":
        exec(ours, {})
        return
    names = {}
    exec(re.search(r"```py\n(.*?)```", REST, re.DOTALL)[1], names)
    image = torch.arange(12, dtype=torch.uint8).view(3, 4).numpy()
    names["imsave"](tmp_path / "image.png", image)
    assert (names["imread"](tmp_path / "image.png", mode="L") == image).all()
    doubled = names["imresize"](image, [6, 8], interp="nearest")
    assert (doubled == image.repeat(2, 0).repeat(2, 1)).all()


def test_a_relu_at_the_end_stops_half_of_all_starts():
    images, stopped = torch.rand(2, 1, 1, 16, 16), 0
    for seed in range(60):
        torch.manual_seed(seed)
        network = DenseFuse(relu=True)
        network(*images).sum().backward()
        stopped += not any(parameter.grad.any() for parameter in network.parameters())
    assert 15 <= stopped <= 45


@pytest.mark.parametrize("name", ["densefuse", "u2fusion"])
def test_reach_of_short_networks(name):
    said = int(re.search(rf"^\| {name} \| (\d+) \|$", REST, re.M)[1])
    torch.manual_seed(0)
    sources = torch.rand(2, 1, 1, 33, 33, requires_grad=True)
    NETWORKS[name]().double()(*sources.double())[0, 0, 16, 16].backward()
    seen = sources.grad.abs().sum((0, 1, 2)).nonzero()
    assert (seen - 16).abs().max() == said
