"""The files that people have a CLIP in: each kind is read, and whatever else it is, is named."""

import argparse
import enum
import gzip
import io
import pickle
import tarfile
import warnings
import zipfile
from collections import defaultdict

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch

from clip_files import (
    RESNET,
    assert_same_vectors,
    make_archives,
    openai_like,
    refused,
    renamed,
    save_archive,
)
from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, build_clip


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return make_archives(tmp_path_factory.mktemp("archives"))


class TestTorchScript:
    @pytest.mark.parametrize(("kind", "config"), [("ViT", MODEL_CONFIG), ("RN", RESNET)])
    def test_openai_archive(self, kind, config, monkeypatch, tokenizer, archives):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", config)
        model, path = archives[kind]
        loaded = FrozenCLIP.from_pretrained("small", path)
        assert_same_vectors(loaded, FrozenCLIP(model, tokenizer))
        # `small` has GELU, which theirs never have.
        assert loaded.name == f"small-quickgelu/{path}"

    def test_traced_archive(self, small_architecture, tokenizer, tmp_path):
        model = openai_like().float()
        save_archive(model, tmp_path / "traced.pt", "trace")
        loaded = FrozenCLIP.from_pretrained("small", tmp_path / "traced.pt")
        assert_same_vectors(loaded, FrozenCLIP(model.half().float(), tokenizer))

    def test_further_files_in_it(self, clip_model, tokenizer, small_architecture, tmp_path):
        path = tmp_path / "scripted.pt"
        save_archive(clip_model, path, _extra_files={"data.pkl": "of the caller's"})
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))

    def test_code_that_loading_would_run_is_not_run(self, small_architecture, tmp_path, capfd):
        path = tmp_path / "hostile.pt"
        save_archive(RunsWhenLoaded(), path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is deprecated
            torch.jit.load(str(path))
        assert "executed" in capfd.readouterr().out
        refused("weights of an unknown kind", path)
        assert "executed" not in capfd.readouterr().out

    def test_archive_of_another_architecture(self, small_architecture, monkeypatch, archives):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "other", RESNET)
        refused("a CLIP, with the weights of other: it lacks", archives["RN"][1])


class RunsWhenLoaded(torch.nn.Module):
    """TorchScript calls this when it reads the archive, before anybody calls anything."""

    @torch.jit.export
    def __getstate__(self) -> bool:
        return self.training

    @torch.jit.export
    def __setstate__(self, state: bool) -> None:
        print("executed")
        self.training = state


class Stage(enum.Enum):
    LAST = 3


class Dangerous:
    """Pickles into a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return type(self.trace).touch, (self.trace,)


def training_objects(trace):
    """What training programs put beside the weights, and what nobody should run."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    return {
        "epoch": 7,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-3, out=trace),
        "stage": Stage.LAST,
        "history": defaultdict(list, {"loss": [np.float64(1), np.ones(2)]}),
        "sampler": {1, 2},
        "callback": Dangerous(trace),
    }


def inside(state, part, wrapper):
    return {name.replace(part, f"{part}{wrapper}"): tensor for name, tensor in state.items()}


def with_attribute(tensor):
    """As nn.Buffer and libraries that mark parameters leave them."""
    tensor = tensor.clone()
    tensor.no_weight_decay = True
    return tensor


class TestTrainingCheckpoints:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"state_dict": renamed(state, "module.")},
            lambda state: {"model": state},
            lambda state: {"model": renamed(state, "_orig_mod.")},
            lambda state: {"model_state_dict": renamed(state, "module.clip_model.")},
            lambda state: {
                "state_dict": {**renamed(state, "model."), "head.weight": torch.ones(2)}
            },
            lambda state: {"state_dict_ema": state},
            lambda state: renamed(state, "module."),
            lambda state: {"models": [state, 3]},
            lambda state: {"model": inside(state, "visual.", "_orig_mod.")},
            lambda state: {"model": inside(state, "visual.", "module.")},
            lambda state: {"model": inside(state, "resblocks.0.", "_checkpoint_wrapped_module.")},
            lambda state: {"model": inside(state, "resblocks.1.", "_fsdp_wrapped_module.")},
            lambda state: {"model": {name: with_attribute(state[name]) for name in state}},
        ],
        ids=[
            "open_clip",
            "model",
            "compiled",
            "wrapped twice",
            "lightning",
            "ema alone",
            "ddp",
            "list",
            "compiled tower",
            "ddp of a tower",
            "checkpointing",
            "fsdp",
            "attributes",
        ],
    )
    def test_nesting_and_prefixes(self, wrap, clip_model, tokenizer, small_architecture, tmp_path):
        path = tmp_path / "epoch_7.pt"
        trace = tmp_path / "executed"
        torch.save({**training_objects(trace), **wrap(clip_model.state_dict())}, path)
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))
        assert not trace.exists()

    def test_module_pickled_whole(self, clip_model, tokenizer, small_architecture, tmp_path):
        path = tmp_path / "model.pth"
        torch.save(clip_model, path)
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_float32_whatever_the_file_holds(
        self, dtype, suffix, clip_model, tokenizer, small_architecture, tmp_path
    ):
        path = tmp_path / f"weights{suffix}"
        clip_model.to(dtype)
        save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
        save(clip_model.state_dict(), path)
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model.float(), tokenizer))

    def test_format_before_pytorch_1_6(self, clip_model, tokenizer, small_architecture, tmp_path):
        path, trace = tmp_path / "old.pt", tmp_path / "executed"
        state = {"state_dict": clip_model.state_dict()}
        torch.save(state, path, _use_new_zipfile_serialization=False)
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))
        torch.save({**state, **training_objects(trace)}, path, _use_new_zipfile_serialization=False)
        refused("format before 1.6 with more than tensors in it.*save_file", path)
        assert not trace.exists()

    def test_suffixes_mean_nothing(self, clip_model, tokenizer, small_architecture, tmp_path):
        expected = FrozenCLIP(clip_model, tokenizer)
        state = clip_model.state_dict()
        safetensors.torch.save_file(state, tmp_path / "a.pt")
        torch.save(state, tmp_path / "b.safetensors")
        torch.save(state, tmp_path / "blob")
        for path in tmp_path.iterdir():
            assert_same_vectors(FrozenCLIP.from_pretrained(small_architecture, path), expected)


def zipped(**contents):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def as_tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))
    return buffer.getvalue()


def saved():
    buffer = io.BytesIO()
    torch.save(build_clip().state_dict(), buffer)
    return buffer.getvalue()


def flipped(content):
    """With one bit of a weight flipped; the archive's checksums know."""
    content = bytearray(content)
    content[len(content) // 2] ^= 1
    return bytes(content)


FOREIGN = {
    "empty": (lambda: b"", "empty"),
    "git-lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs"),
    "HTML": (lambda: b"\n<!DOCTYPE html><html>404", "a web page"),
    "JSON": (lambda: b'{"error": "Not Found"}', "a JSON text"),
    "gzip": (lambda: gzip.compress(b"weights"), "a gzip archive"),
    "tar": (as_tar, "a tar archive"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "TensorFlow and Keras"),
    "image": (lambda: b"\xff\xd8\xff\xe0" + bytes(64), "not a file of weights: it begins with"),
    "zip of something else": (lambda: zipped(notes__txt="a"), r"it holds \['notes/txt'\]"),
    "arrays": (lambda: zipped(**{"w.npy": b""}), r"it holds \['w.npy'\]"),
    "zip cut short": (lambda: saved()[:100_000], "a zip archive.* cut short"),
    "flipped bit": (lambda: flipped(saved()), "a zip archive.* damaged"),
    "safetensors cut short": (
        lambda: safetensors.torch.save(build_clip().state_dict())[:100_000],
        "a safetensors file that is cut short",
    ),
    "pickle of a list": (lambda: pickle.dumps([1]), "a pickle"),
    "no storage": (lambda: zipped(a__data__pkl=b""), "zip archive without PyTorch weights"),
}


@pytest.mark.parametrize(("content", "words"), FOREIGN.values(), ids=FOREIGN.keys())
def test_other_files_are_named(content, words, small_architecture, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content())
    refused(words, path)


def crafted(*, key="0", count=4, size=(4,), stride=(1,), numbers=bytes(16), compression=0):
    """An archive of PyTorch whose one tensor is as said."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, size, stride, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", torch.FloatStorage, key, "cpu", count)
            return None

    content, buffer = io.BytesIO(), io.BytesIO()
    Pickler(content, 2).dump({"visual.proj": Tensor()})
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("a/data.pkl", content.getvalue())
        archive.writestr("a/data/0", numbers)
    return buffer.getvalue()


HOSTILE = {
    "beyond its storage": {"size": (400,)},
    "of any size": {"size": (2**40,), "stride": (0,)},
    "from below": {"size": (4,), "stride": (-1,)},
    "not there": {"key": "../../secret"},
    "swelling": {"compression": zipfile.ZIP_DEFLATED, "numbers": bytes(1000)},
    "of no whole numbers": {"size": (1.5,)},
}


@pytest.mark.parametrize("options", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives(options, small_architecture, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(crafted())
    refused("a CLIP: it lacks", path)  # read as it is
    path.write_bytes(crafted(**options))
    refused("damaged|compressed", path)


STORAGE_DTYPE = vars(torch.FloatStorage)["dtype"]


@pytest.mark.parametrize(
    "code",
    [
        b'cbuiltins\neval\n(S\'open("executed", "w")\'\ntR.',
        b"(S'touch executed'\nios\nsystem\n.",
        b"cposix\nsystem\n(S'touch executed'\ntR.",
        b"ctorch\nFloatStorage\n}(S'dtype'\nNdtb.",
        b"\x80\x02]q\0h\0a.",
        b"\x80\x02" + b"]" * 5_000 + b"a" * 4_999 + b".",
    ],
)
def test_hostile_pickles(code, small_architecture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    path.write_bytes(zipped(**{"a__data.pkl": code}))
    refused("damaged|weights of an unknown kind", path)
    assert list(tmp_path.iterdir()) == [path]
    assert vars(torch.FloatStorage)["dtype"] is STORAGE_DTYPE


def test_a_zip_archive_of_a_version_that_does_not_exist(small_architecture, tmp_path):
    """As one flipped bit makes it."""
    content = bytearray(crafted())
    content[content.rindex(b"PK\1\2") + 6] = 255
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    refused("a zip archive, the format of PyTorch, that is cut short or damaged", path)
