"""Files that are damaged or hostile, disks that are full, processes that come at the same time."""

import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from clip_fusion_loss import EmbeddedFusionModel, FusionObjective


@pytest.fixture
def fusion_model(encoder):
    return EmbeddedFusionModel(FusionObjective(), encoder)


@pytest.fixture
def path(fusion_model, tmp_path):
    path = tmp_path / "objective.safetensors"
    fusion_model.save(path)
    return path


def same(actual, expected):
    return (
        torch.equal(actual.visible_direction, expected.visible_direction)
        and torch.equal(actual.infrared_direction, expected.infrared_direction)
        and actual.objective == expected.objective
        and actual.encoder_name == expected.encoder_name
        and actual.encoder_fingerprint == expected.encoder_fingerprint
    )


def refused_or_harmless(path, expected):
    """Whether `path` is refused; if not it must say what was saved (a flipped blank, say)."""
    try:
        loaded = EmbeddedFusionModel.load(path)
    except ValueError as error:
        return "EmbeddedFusionModel.save" in str(error)
    assert same(loaded, expected)
    return False


def test_truncated_anywhere(path, fusion_model):
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert refused_or_harmless(path, fusion_model)


def test_a_bit_flipped_anywhere(path, fusion_model):
    content = path.read_bytes()
    chance = random.Random(0)
    positions = [chance.randrange(8 * len(content)) for _ in range(1000)]
    refused = 0
    for position in positions:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        refused += refused_or_harmless(path, fusion_model)
    assert refused > 0.97 * len(positions)


def test_random_bytes(path, fusion_model):
    chance = random.Random(0)
    for _ in range(300):
        path.write_bytes(chance.randbytes(chance.randrange(300)))
        assert refused_or_harmless(path, fusion_model)


class Dangerous:
    """Pickles into a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def hostile(kind, trace):
    if kind == "pickle":
        return pickle.dumps(Dangerous(trace))
    if kind == "header of 2**63 bytes":
        return struct.pack("<Q", 2**63) + b"{}"
    header = {
        "header that is no object": b"[]",
        "deeply nested header": b"[" * 100_000,
        "deeply nested objective": b'{"__metadata__":{"format":'
        b'"clip_fusion_loss.EmbeddedFusionModel/1","objective":"' + b"[" * 100_000 + b'"}}',
        "tensor beyond the file": b'{"visible_direction":{"dtype":"F32","shape":[1000000000],'
        b'"data_offsets":[0,4000000000]}}',
        "tensor of negative size": b'{"visible_direction":{"dtype":"F32","shape":[-1],'
        b'"data_offsets":[0,0]}}',
    }[kind]
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "kind",
    [
        "pickle",
        "header of 2**63 bytes",
        "header that is no object",
        "deeply nested header",
        "deeply nested objective",
        "tensor beyond the file",
        "tensor of negative size",
    ],
)
def test_hostile_files(path, fusion_model, kind, tmp_path):
    path.write_bytes(hostile(kind, tmp_path / "executed"))
    assert refused_or_harmless(path, fusion_model)
    assert not (tmp_path / "executed").exists()


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


def test_saving_where_nothing_can_be_written(path, fusion_model, tmp_path):
    with pytest.raises(OSError, match="none"):
        fusion_model.save(tmp_path / "none" / "objective.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        fusion_model.save(folder)
    assert sorted(tmp_path.iterdir()) == [folder, path]


@pytest.mark.slow
def test_first_use_by_several_processes_at_once(tmp_path):
    code = """
import sys, torch
from clip_fusion_loss import EmbeddedFusionModel, LanguageDrivenFusionLoss
torch.manual_seed(0)
criterion = LanguageDrivenFusionLoss.tiny()
criterion.fusion_model.save(sys.argv[1])
EmbeddedFusionModel.load(sys.argv[1], criterion.encoder)
print(criterion(*torch.rand(3, 1, 1, 64, 64)).item())
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
