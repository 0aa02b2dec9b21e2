"""Files that are hostile, disks that are full, threads that save at the same time."""

import pickle
import resource
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from clip_files import Dangerous
from clip_fusion_loss import EmbeddedFusionModel, FusionObjective


@pytest.fixture
def fusion_model(encoder):
    return EmbeddedFusionModel(FusionObjective(), encoder)


@pytest.fixture
def path(fusion_model, tmp_path):
    path = tmp_path / "objective.safetensors"
    fusion_model.save(path)
    return path


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


def test_threads_that_save_to_one_folder_do_not_mix_up_their_files(encoder, tmp_path):
    """As processes of the same number do, each in a container of its own."""
    models = {
        text: EmbeddedFusionModel(FusionObjective(text), encoder)
        for text in ("a dark image", "a bright image", "a sharp image")
    }

    def save(text):
        for number in range(10):
            models[text].save(tmp_path / f"{text} {number}")
            models[text].save(tmp_path / "shared")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(save, models))
    assert EmbeddedFusionModel.load(tmp_path / "shared").objective.fused[0] in models
    for text in models:
        for number in range(10):
            loaded = EmbeddedFusionModel.load(tmp_path / f"{text} {number}")
            assert loaded.objective == FusionObjective(text)
    assert len(list(tmp_path.iterdir())) == 31
