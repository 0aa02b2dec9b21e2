"""What the programs' command lines have in common."""

import warnings

import pytest
import torch

import one_network_many_sentences
import quickstart
import train
from parts.command_line import (
    SHARED_OPTIONS,
    Parser,
    add_option,
    choose_device,
    warnings_as_notes,
)


@pytest.mark.parametrize("program", [one_network_many_sentences, quickstart, train])
def test_programs_ask_for_the_same_thing_in_the_same_words(program, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        program.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    shared = 0
    for name, settings in SHARED_OPTIONS.items():
        for line in lines:
            if line.startswith(f"  {name} "):
                assert settings["help"] in line
                shared += 1
    assert shared >= 8


def test_options_show_their_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    parser = Parser("Something\n  as written", "")
    add_option(parser, "--steps", ", no more", default=7)
    add_option(parser, "--other", "a thing", choices=("a", "b"), default="b")
    add_option(parser, "--own", "a thing (default: guess)", default="c")
    assert vars(parser.parse_args(["--steps", "3"])) == {"steps": 3, "other": "b", "own": "c"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Something as written" in printed
    assert "--steps N training steps, no more (default: 7)" in printed
    assert "--other {a,b} a thing (default: b)" in printed
    assert "--own OWN a thing (default: guess)" in printed
    assert SHARED_OPTIONS["--steps"]["help"] == "training steps"


def test_any_gpu_is_used_and_else_the_cpu(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=available: answer)
        assert choose_device(None) == torch.device(expected)


def test_notes_hide_warnings_for_programmers(capsys):
    with warnings_as_notes():
        warnings.warn("mind the gap", stacklevel=1)
        warnings.warn("old function", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: mind the gap\n"
