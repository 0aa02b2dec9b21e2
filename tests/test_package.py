"""What a user gets with the import."""

import ast
import inspect
from itertools import chain
from pathlib import Path

import clip_fusion_loss
from clip_fusion_loss import StructureLoss, checks
from conftest import draw_images, make_criterion, named


def test_public_names_are_there_and_documented():
    for name in clip_fusion_loss.__all__:
        assert getattr(clip_fusion_loss, name).__doc__
    for name in clip_fusion_loss.functional.__all__:
        assert getattr(clip_fusion_loss.functional, name).__doc__


ROOMS = [
    ["checks", "functional", "frozen", "towers", "archives"],
    ["loading", "patches", "regularizers"],
    ["encoder"],
    ["objective"],
    ["loss"],
    ["__init__"],
    ["__main__"],
]


def test_no_circle_and_formulas_import_nothing_of_ours():
    """A file imports only files above it in this list."""
    folder = Path(clip_fusion_loss.__file__).parent
    assert sorted(path.stem for path in folder.glob("*.py")) == sorted(chain(*ROOMS))
    above: set[str] = set()
    for floor in ROOMS:
        for room in floor:
            tree = ast.parse((folder / f"{room}.py").read_text())
            ours = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
            names = {n.module or alias.name for n in ours for alias in n.names}
            assert names - {"__version__"} <= above, room
        above.update(floor)
    assert "from ." not in (folder / "functional.py").read_text()


def test_what_a_step_checks_is_checked_once(encoder, monkeypatch):
    """At the door: no formula checks again, so the number does not grow with the patches."""
    calls = []
    for name, function in vars(checks).items():
        if inspect.isfunction(function) and function.__module__ == checks.__name__:

            def counted(*arguments, function=function, **options):
                calls.append(function.__name__)
                return function(*arguments, **options)

            monkeypatch.setattr(checks, name, counted)
    numbers = []
    for count in (4, 32):
        criterion = make_criterion(encoder, num_patches=count, regularizer=StructureLoss())
        criterion(**named(draw_images()))
        calls.clear()
        criterion(**named(draw_images()))
        numbers.append(len(calls))
    assert max(numbers) <= 30
    assert numbers[0] == numbers[1]
