"""The notebook: short, with the outputs of a real run, and it runs."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import training

NOTEBOOK = Path(training.__file__).with_name("tour.ipynb")


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def test_it_is_short_and_keeps_outputs_of_a_real_run(notebook):
    assert len(notebook.cells) <= 15
    assert NOTEBOOK.stat().st_size < 600_000
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not {"error", "stderr"} & {
        each.get("name", each.output_type) for each in outputs(notebook)
    }
    assert sum("image/jpeg" in output.get("data", ()) for output in outputs(notebook)) == 4
    assert not re.search(r"/(root|home|tmp)/", texts(notebook))


@pytest.mark.slow
def test_it_runs(notebook, monkeypatch, tmp_path):
    """With two steps a training, and without an answer of the hub."""
    environment = {"TOUR_STEPS": "2", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment["PYTHONWARNINGS"] = "ignore:IProgress"  # of tqdm without ipywidgets
    environment["OMP_NUM_THREADS"] = "1"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.chdir(NOTEBOOK.parent)
    kept = [sorted(output.get("data", ())) for output in outputs(notebook)]
    for cell in notebook.cells:
        cell.pop("outputs", None)
    NotebookClient(notebook, timeout=300).execute()
    assert [sorted(output.get("data", ())) for output in outputs(notebook)] == kept
    assert "cannot be downloaded and is not in the cache" in texts(notebook)


def test_outside_a_clone_it_asks_for_the_address(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    setup = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    with pytest.raises(ValueError, match="enter the address of the repository as REPOSITORY"):
        exec(setup, {})


def test_outside_a_clone_it_clones(notebook, monkeypatch, tmp_path):
    commands = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.path", [])
    setup = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    exec(setup.replace('REPOSITORY = ""', 'REPOSITORY = "an address"'), names := {})
    clone, install = commands
    assert clone[:2] == ["git", "clone"]
    assert clone[-2:] == ["an address", str(tmp_path / "clone")]
    assert install[-1] == f"{tmp_path / 'clone'}[examples]"
    assert names["sys"].path == [
        os.fspath(tmp_path / "clone"),
        str(tmp_path / "clone" / "examples"),
    ]
