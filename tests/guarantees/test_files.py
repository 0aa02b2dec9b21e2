"""Files that are hostile, disks that are full, processes that come at the same time."""

import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from clip_fusion_loss import EmbeddedFusionModel, FusionObjective


@pytest.fixture
def fusion_model(encoder):
    return EmbeddedFusionModel(FusionObjective(), encoder)


@pytest.fixture
def path(fusion_model, tmp_path):
    path = tmp_path / "objective.safetensors"
    fusion_model.save(path)
    return path


class Dangerous:
    """Pickles into a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


HEADERS = {
    "no object": b"[]",
    "deeply nested": b"[" * 100_000,
    "deeply nested objective": b'{"__metadata__":{"format":"clip_fusion_loss.EmbeddedFusionModel/1"'
    b',"objective":"' + b"[" * 100_000 + b'"}}',
    "tensor beyond the file": b'{"visible_direction":{"dtype":"F32","shape":[1000000000],'
    b'"data_offsets":[0,4000000000]}}',
    "tensor of negative size": b'{"visible_direction":{"dtype":"F32","shape":[-1],'
    b'"data_offsets":[0,0]}}',
}


@pytest.mark.parametrize("kind", ["pickle", "header of 2**63 bytes", *HEADERS])
def test_hostile_files(path, kind, tmp_path):
    trace = tmp_path / "executed"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Dangerous(trace)))
    elif kind in HEADERS:
        path.write_bytes(struct.pack("<Q", len(HEADERS[kind])) + HEADERS[kind])
    else:
        path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="EmbeddedFusionModel.save"):
        EmbeddedFusionModel.load(path)
    assert not trace.exists()


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path`"):
        EmbeddedFusionModel.load(tmp_path)


@contextmanager
def full_disk():
    """No file can grow beyond 100 bytes, as on a full disk; the process is told by an OSError."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_saving_to_a_full_disk_loses_nothing(path, fusion_model):
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match="too large"):
        fusion_model.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@contextmanager
def ordinary_user():
    """Root may write anywhere, so be nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_saving_to_a_read_only_folder_loses_nothing(fusion_model):
    with tempfile.TemporaryDirectory() as folder:  # one that others may enter, unlike tmp_path
        path = Path(folder) / "objective.safetensors"
        fusion_model.save(path)
        before = path.read_bytes()
        os.chmod(folder, 0o555)
        with ordinary_user(), pytest.raises(PermissionError):
            fusion_model.save(path)
        os.chmod(folder, 0o755)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]


def test_threads_that_save_to_one_folder_do_not_mix_up_their_files(encoder, tmp_path):
    """As processes of the same number do, each in a container of its own."""
    models = {
        text: EmbeddedFusionModel(FusionObjective(text), encoder)
        for text in ("a dark image", "a bright image", "a sharp image")
    }

    def save(text):
        for number in range(20):
            models[text].save(tmp_path / f"{text} {number}")
            models[text].save(tmp_path / "shared")

    threads = [threading.Thread(target=save, args=(text,)) for text in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert EmbeddedFusionModel.load(tmp_path / "shared").objective.fused[0] in models
    for text in models:
        for number in range(20):
            loaded = EmbeddedFusionModel.load(tmp_path / f"{text} {number}")
            assert loaded.objective == FusionObjective(text)
    assert len(list(tmp_path.iterdir())) == 61


@pytest.mark.slow
def test_first_use_by_several_processes_at_once(tmp_path):
    code = """
import sys, torch
from clip_fusion_loss import EmbeddedFusionModel, LanguageDrivenFusionLoss
torch.manual_seed(0)
criterion = LanguageDrivenFusionLoss.tiny()
criterion.fusion_model.save(sys.argv[1])
EmbeddedFusionModel.load(sys.argv[1], criterion.encoder)
fused, visible, infrared = torch.rand(3, 1, 1, 64, 64)
print(criterion(fused=fused, visible=visible, infrared=infrared).item())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "shared.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)
    ]
    outputs = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(outputs) == 1
    assert float(outputs.pop()) > 0
    assert len(list(tmp_path.iterdir())) == 1
