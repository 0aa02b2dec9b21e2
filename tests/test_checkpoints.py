"""The files that people have a CLIP in: each kind is read, and whatever else it is, is named."""

import argparse
import enum
import gzip
import io
import json
import pickle
import re
import shutil
import tarfile
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch

from clip_fusion_loss import EmbeddedFusionModel, FrozenCLIP, FusionObjective
from conftest import MODEL_CONFIG, build_clip

RESNET = {
    **MODEL_CONFIG,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
}
IMAGES = torch.linspace(0, 1, 2 * 3 * 40 * 40).view(2, 3, 40, 40)
TEXTS = ["a", "b c"]


def assert_same_vectors(loaded, expected):
    assert {weight.dtype for weight in loaded.network.parameters()} == {torch.float32}
    assert torch.equal(loaded.encode_image(IMAGES), expected.encode_image(IMAGES))
    assert torch.equal(loaded.encode_text(TEXTS), expected.encode_text(TEXTS))


def refused(words, path, model_name="small"):
    with pytest.raises(ValueError, match=rf"`pretrained`.*{path.name}.*{words}") as caught:
        FrozenCLIP.from_pretrained(model_name, path)
    assert "weights_only" not in str(caught.value)
    return str(caught.value)


def openai_like(config=MODEL_CONFIG):
    """With OpenAI's activation, precision and the numbers that their archives carry."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = open_clip.CLIP(**config, quick_gelu=True)
    open_clip.convert_weights_to_lp(model)
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    for name, number in {
        "input_resolution": size,
        "context_length": length,
        "vocab_size": 49408,
    }.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(number))
    return model.eval()


def save_archive(model, path, how="script", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its files stay
        if how == "script":
            archive = torch.jit.script(model)
        else:
            size = model.visual.image_size[0]
            inputs = {
                "encode_image": (torch.rand(1, 3, size, size),),
                "encode_text": (torch.zeros(1, 24, dtype=torch.long),),
            }
            archive = torch.jit.trace_module(model.float(), inputs, check_trace=False).half()
        torch.jit.save(archive, str(path), **options)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Models with OpenAI's marks and the archives that they are scripted to."""
    made = {}
    for name, config in {"ViT": MODEL_CONFIG, "RN": RESNET}.items():
        path = tmp_path_factory.mktemp("archives") / f"{name}.pt"
        model = openai_like(config)
        save_archive(model, path)
        made[name] = (model.float(), path)
    return made


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

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            ("RN50", "RN50"),
            ("ViT-B/16", "ViT-B-16-quickgelu"),
            ("ViT-B/32", "ViT-B-32-quickgelu"),
            ("ViT-L/14@336px", "ViT-L-14-336-quickgelu"),
        ],
    )
    def test_openai_names(self, theirs, ours, monkeypatch, archives):
        kind = "RN" if theirs.startswith("RN") else "ViT"
        config = {"RN": RESNET, "ViT": MODEL_CONFIG}[kind]
        known = {ours: {**config, "quick_gelu": ours.endswith("-quickgelu")}}
        monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", known)
        path = archives[kind][1]
        loaded = FrozenCLIP.from_pretrained(theirs, path)
        assert loaded.name == f"{ours.removesuffix('-quickgelu')}-quickgelu/{path}"

    def test_archive_of_another_origin_keeps_the_activation_of_its_name(
        self, clip_model, tokenizer, small_architecture, tmp_path
    ):
        path = tmp_path / "scripted.pt"
        save_archive(clip_model, path)
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))

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
        refused("weights of another kind", path)
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


def renamed(state, prefix):
    return OrderedDict((f"{prefix}{name}", tensor) for name, tensor in state.items())


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

    def test_trained_weights_rather_than_their_average(
        self, clip_model, tokenizer, small_architecture, tmp_path
    ):
        path = tmp_path / "epoch_7.pt"
        average = build_clip(seed=1).state_dict()
        torch.save({"model_ema": average, "model": clip_model.state_dict()}, path)
        with pytest.warns(UserWarning, match=r"'model.', 'model_ema.'; the one under 'model.'"):
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

    def test_home_folder(self, clip_model, tokenizer, small_architecture, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        torch.save(clip_model.state_dict(), tmp_path / "weights.pt")
        loaded = FrozenCLIP.from_pretrained(small_architecture, "~/weights.pt")
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))


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
    "image": (lambda: b"\xff\xd8\xff\xe0" + bytes(64), "no file of weights: it begins with"),
    "zip of something else": (lambda: zipped(notes__txt="a"), r"it holds \['notes/txt'\]"),
    "arrays": (lambda: zipped(**{"w.npy": b""}), r"it holds \['w.npy'\]"),
    "zip cut short": (lambda: saved()[:100_000], "a zip archive.* cut short"),
    "flipped bit": (lambda: flipped(saved()), "a zip archive.* damaged"),
    "safetensors cut short": (
        lambda: safetensors.torch.save(build_clip().state_dict())[:100_000],
        "a safetensors file that is cut short",
    ),
    "pickle of a list": (lambda: pickle.dumps([1]), "a pickle"),
    "no storage": (lambda: zipped(a__data__pkl=b""), "zip archive without weights"),
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
    refused("damaged|weights of another kind", path)
    assert list(tmp_path.iterdir()) == [path]
    assert vars(torch.FloatStorage)["dtype"] is STORAGE_DTYPE


OTHER_WEIGHTS = {
    "features.0.weight": "VGG-19 goes to VGGMaxFeatureLoss",
    "layer1.0.conv1.weight": "a ResNet classifier",
    "blocks.0.attn.qkv.weight": "a vision transformer of timm or DINO",
    "text_model.encoder.layers.0.mlp.fc1.weight": "a transformers CLIPTextModel",
    "embeddings.patch_embedding.weight": "a transformers CLIPVisionModel",
    "vision_model.embeddings.patch_embedding.weight": "a transformers CLIPVisionModel",
    "vision_model.head.probe": "a transformers SiglipModel",
    "base_model.model.q_proj.lora_A.weight": "a LoRA adapter",
    "cond_stage_model.transformer.weight": "a Stable Diffusion checkpoint",
    "visual_encoder.blocks.0.norm1.weight": "a BLIP",
    "conv.weight": "weights of another kind .of names such as conv.weight.",
}


@pytest.mark.parametrize(("name", "words"), OTHER_WEIGHTS.items())
def test_other_weights_are_named(name, words, small_architecture, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({name: torch.zeros(1)}, path)
    refused(words, path)


def test_a_saved_objective_is_named(encoder, small_architecture, tmp_path):
    path = tmp_path / "objective.safetensors"
    EmbeddedFusionModel(FusionObjective(), encoder).save(path)
    refused("an objective that EmbeddedFusionModel.save wrote", path)


@pytest.mark.parametrize(
    ("model_name", "names"),
    [
        ("ViT-L-14", "ViT-L-14 or ViT-L-14-quickgelu"),
        ("ViT-B-32-256", "ViT-B-32-256"),
        ("RN101", "RN101 or RN101-quickgelu"),
    ],
)
def test_published_architectures_are_named(model_name, names):
    from clip_fusion_loss.states import model_names

    with torch.device("meta"):
        state = open_clip.CLIP(**open_clip.get_model_config(model_name)).state_dict()
    assert " or ".join(model_names(state)).startswith(names)


def test_the_difference_is_told_in_a_few_words(small_architecture, tmp_path):
    path = tmp_path / "weights.pt"
    state = build_clip().state_dict()
    state["visual.proj"] = state["visual.proj"][:, :8]
    state["head.weight"] = state.pop("ln_final.weight")
    torch.save(state, path)
    message = refused("it lacks 1 tensors, such as ln_final.weight; it has 1 tensors too", path)
    assert "visual.proj has the shape (32, 8) in place of (32, 24)" in message
    assert len(message) < 600


def test_the_input_size_is_not_interpolated(small_architecture, tmp_path):
    config = {**MODEL_CONFIG, "vision_cfg": {**MODEL_CONFIG["vision_cfg"], "image_size": 64}}
    path = tmp_path / "weights.pt"
    torch.save(open_clip.CLIP(**config).state_dict(), path)
    refused("visual.positional_embedding has the shape", path)


class TestPreprocessing:
    def test_that_of_the_models_published_weights(self, monkeypatch, tmp_path):
        name = "ViT-B-16-SigLIP"
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, MODEL_CONFIG)
        torch.save(build_clip().state_dict(), tmp_path / "weights.pt")
        loaded = FrozenCLIP.from_pretrained(name, tmp_path / "weights.pt")
        assert loaded._mean.flatten().tolist() == [0.5, 0.5, 0.5]

    def test_that_of_the_folder(self, tmp_path):
        config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"mean": [0.1] * 3}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        torch.save(build_clip().state_dict(), tmp_path / "anything.pt")
        loaded = FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")
        assert loaded._mean.flatten().tolist() == pytest.approx([0.1] * 3)
        assert loaded._std.flatten().tolist() == pytest.approx(
            [0.26863, 0.26130, 0.27578], abs=1e-5
        )


def test_a_file_in_place_of_the_name(tmp_path):
    (tmp_path / "ViT-B-32.pt").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"`model_name`.*the file .*from_pretrained\('ViT-B-32-q"):
        FrozenCLIP.from_pretrained(str(tmp_path / "ViT-B-32.pt"))


def documented_table():
    page = Path(__file__).parents[1] / "docs" / "encoders.md"
    codes = re.findall(r"\| `(FrozenCLIP[^`]*)` \|$", page.read_text(), re.MULTILINE)
    assert len(codes) > 10
    return codes


@pytest.mark.parametrize("code", documented_table())
def test_the_documented_table(code, disk, tokenizer):
    names = {"FrozenCLIP": FrozenCLIP, "model": build_clip(), "tokenizer": tokenizer}
    encoder = eval(code, names)
    assert encoder.encode_image(IMAGES).shape == encoder.encode_text(TEXTS).shape == (2, 24)


@pytest.fixture
def disk(files, monkeypatch):
    """A folder with all that the table names, and architectures that are small under its names."""
    for name in ("ViT-B-32", "RN50", "ViT-B-16-SigLIP"):
        config = RESNET if name == "RN50" else MODEL_CONFIG
        if name == "ViT-B-16-SigLIP":
            text = {**MODEL_CONFIG["text_cfg"], "hf_tokenizer_name": f"timm/{name}"}
            config = {**MODEL_CONFIG, "text_cfg": text}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        quick = {**config, "quick_gelu": True}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, f"{name}-quickgelu", quick)
    monkeypatch.chdir(files)
    Path("openai").mkdir(exist_ok=True)  # a folder that is no tag's
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(files))


@pytest.fixture(scope="module")
def files(archives, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("disk"))
        shutil.copy(archives["ViT"][1], "ViT-B-32.pt")
        shutil.copy(archives["RN"][1], "RN50.pt")
        state = build_clip().state_dict()
        torch.save({"state_dict": renamed(state, "module.")}, "epoch_32.pt")
        for name in ("open_clip_model.safetensors", "siglip.safetensors"):
            safetensors.torch.save_file(state, name)
        published = Path("models--timm--vit_base_patch32_clip_224.openai")
        theirs = Path("models--openai--clip-vit-base-patch32")
        for repository in (published, theirs):
            (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text("0" * 40)
        shutil.copy("open_clip_model.safetensors", published / "snapshots" / ("0" * 40))
        config = transformers.CLIPConfig(
            text_config={
                "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 24,
            },
            vision_config={
                "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
            },
            projection_dim=24,
        )  # fmt: skip
        with torch.random.fork_rng():
            transformers.CLIPModel(config).save_pretrained("clip-vit-base-patch32")
        for path in Path("clip-vit-base-patch32").iterdir():
            shutil.copy(path, theirs / "snapshots" / ("0" * 40))
        shutil.copy("clip-vit-base-patch32/model.safetensors", ".")
        Path("my-open-clip").mkdir()
        shutil.copy("open_clip_model.safetensors", "my-open-clip")
        Path("my-open-clip/open_clip_config.json").write_text(
            json.dumps({"model_cfg": MODEL_CONFIG})
        )
        words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="a"))
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", unk_token="a"
        ).save_pretrained("siglip-tokenizer")
        return Path.cwd()


def test_a_zip_archive_of_a_version_that_does_not_exist(small_architecture, tmp_path):
    """As one flipped bit makes it."""
    content = bytearray(crafted())
    content[content.rindex(b"PK\1\2") + 6] = 255
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    refused("a zip archive, as PyTorch writes them, that is cut short or damaged", path)
