"""Files that people have a CLIP in: each kind is read, nothing in them runs, others are refused."""

import argparse
import enum
import io
import pickle
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
    Dangerous,
    assert_same_vectors,
    make_archives,
    openai_like,
    refused,
    renamed,
    save_archive,
)
from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, build_clip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


class TestTorchScript:
    @pytest.mark.parametrize(("kind", "config"), [("ViT", MODEL_CONFIG), ("RN", RESNET)])
    def test_openai_archive(self, kind, config, monkeypatch, tokenizer, tmp_path):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", config)
        model, path = make_archives(tmp_path)[kind]
        loaded = FrozenCLIP.from_pretrained("small", path)
        assert_same_vectors(loaded, FrozenCLIP(model, tokenizer))
        # `small` has GELU, which theirs never have.
        assert loaded.name == f"small-quickgelu/{path}"

    def test_traced_archive(self, small_architecture, tokenizer, path):
        model = openai_like().float()
        save_archive(model, path, "trace")
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(model.half().float(), tokenizer))

    def test_of_another_origin(self, clip_model, tokenizer, small_architecture, path):
        """It keeps the activation of its name, and may have further files."""
        save_archive(clip_model, path, _extra_files={"data.pkl": "of the caller's"})
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))
        assert loaded.name == f"small/{path}"

    def test_code_that_loading_would_run_is_not_run(self, small_architecture, path, capfd):
        save_archive(RunsWhenLoaded(), path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is deprecated
            torch.jit.load(str(path))
        assert "executed" in capfd.readouterr().out
        refused("no image tower", path)
        assert "executed" not in capfd.readouterr().out


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


def training_objects(trace):
    """What training programs put beside the weights, and what nobody should run."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    itself = {}
    itself["itself"] = itself
    return {
        "epoch": 7,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-3, out=trace),
        "nothing": torch.empty(0),
        "stage": Stage.LAST,
        "history": defaultdict(list, {"loss": [np.float64(1), np.ones(2)]}),
        "sampler": {1, 2},
        "callback": Dangerous(trace),
        "circle": itself,
    }


def inside(state, part, wrapper):
    return {name.replace(part, f"{part}{wrapper}"): tensor for name, tensor in state.items()}


def with_attribute(tensor):
    """As nn.Buffer and libraries that mark parameters leave them."""
    tensor = tensor.clone()
    tensor.no_weight_decay = True
    return tensor


LEVELS = {
    "open_clip": lambda state: {"state_dict": renamed(state, "module.")},
    "compiled": lambda state: {"model": renamed(state, "_orig_mod.")},
    "wrapped twice": lambda state: {"model_state_dict": renamed(state, "module.clip_model.")},
    "lightning": lambda state: {
        "state_dict": {**renamed(state, "model."), "head.weight": torch.ones(2)}
    },
    "ddp": lambda state: renamed(state, "module."),
    "list": lambda state: {"models": [state, 3]},
    "compiled tower": lambda state: {"model": inside(state, "visual.", "_orig_mod.")},
    "fsdp": lambda state: {"model": inside(state, "resblocks.1.", "_fsdp_wrapped_module.")},
    "attributes": lambda state: {"model": {name: with_attribute(state[name]) for name in state}},
}


class TestTrainingCheckpoints:
    @pytest.mark.parametrize("level", LEVELS)
    def test_levels_and_prefixes(self, level, clip_model, tokenizer, small_architecture, path):
        trace = path.with_name("executed")
        torch.save({**training_objects(trace), **LEVELS[level](clip_model.state_dict())}, path)
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))
        assert not trace.exists()

    @pytest.mark.parametrize(
        ("dtype", "kind"),
        [(torch.float16, "torch"), (torch.bfloat16, "safetensors"), (torch.float64, "objects")],
    )
    def test_float32_whatever_the_file_holds(
        self, dtype, kind, clip_model, tokenizer, small_architecture, path
    ):
        """Suffixes mean nothing either: they are all called weights.pt."""
        state = clip_model.to(dtype).state_dict()
        if kind == "safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state if kind == "torch" else {"a": Stage.LAST, "b": state}, path)
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model.float(), tokenizer))

    def test_format_before_pytorch_1_6(self, clip_model, tokenizer, small_architecture, path):
        trace = path.with_name("executed")
        state = {"state_dict": clip_model.state_dict()}
        torch.save(state, path, _use_new_zipfile_serialization=False)
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))
        torch.save({**state, **training_objects(trace)}, path, _use_new_zipfile_serialization=False)
        refused("save the state_dict alone", path)
        assert not trace.exists()

    def test_several_clips(self, clip_model, small_architecture, path):
        average = build_clip(seed=1).state_dict()
        torch.save({"model_ema": average, "model": clip_model.state_dict()}, path)
        refused(r"2 CLIPs, under \['model.', 'model_ema.'\]; save the state_dict", path)


def zipped(**contents):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def saved(**more):
    buffer = io.BytesIO()
    torch.save({**build_clip().state_dict(), **more}, buffer)
    return buffer.getvalue()


def flipped(content):
    """With one bit of a weight flipped; the archive's checksums know."""
    content = bytearray(content)
    content[len(content) // 2] ^= 1
    return bytes(content)


OTHERS = {
    "empty": lambda: b"",
    "git-lfs": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "web page": lambda: b"\n<!DOCTYPE html><html>404",
    "zip of something else": lambda: zipped(notes__txt="a"),
    "zip without storages": lambda: zipped(a__data__pkl=b""),
    "pickle of a list": lambda: pickle.dumps([1]),
    "cut short": lambda: saved()[:100_000],
    "cut short, with objects": lambda: saved(stage=Stage.LAST)[:-10],
    "bit flipped": lambda: flipped(saved()),
    "bit flipped, with objects": lambda: flipped(saved(stage=Stage.LAST)),
    "safetensors cut short": lambda: safetensors.torch.save(build_clip().state_dict())[:100_000],
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS.keys())
def test_other_and_damaged_files(content, small_architecture, path):
    path.write_bytes(content())
    message = refused("another file, cut short or damaged", path)
    assert "\n" not in message
    assert "trust" not in message, "PyTorch's advice to run the code in the file"
    assert len(message) < 900


def test_other_weights_are_told_by_their_names(small_architecture, path):
    safetensors.torch.save_file({"features.0.weight": torch.zeros(1)}, path)
    refused(r"with no image tower, but \['features.0.weight'\]", path)


def crafted(*, key="0", count=4, size=(4,), stride=(1,), numbers=bytes(16), compression=0):
    """An archive of PyTorch with an object and a tensor that is as said."""

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
    Pickler(content, 2).dump({"visual.proj": Tensor(), "args": argparse.Namespace()})
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("a/data.pkl", content.getvalue())
        archive.writestr("a/data/0", numbers)
        archive.writestr("a/constants.pkl", b"")  # as in TorchScript
    return buffer.getvalue()


HOSTILE = {
    "beyond its storage": {"size": (400,)},
    "of any size": {"size": (2**40,), "stride": (0,)},
    "from below": {"size": (4,), "stride": (-1,)},
    "not there": {"key": "../../secret"},
    "swelling": {"compression": zipfile.ZIP_DEFLATED, "numbers": bytes(1000)},
    "of no whole numbers": {"size": (1.5,)},
}


@pytest.mark.parametrize("options", [{}, *HOSTILE.values()], ids=["none", *HOSTILE])
def test_hostile_archives(options, small_architecture, path):
    path.write_bytes(crafted(**options))
    refused("cut short or damaged" if options else "weights that fit", path)
