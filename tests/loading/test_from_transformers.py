"""Hugging Face transformers' CLIPModel: folders, files and parts."""

import json
import shutil

import open_clip
import pytest
import torch

from clip_files import (
    TRANSFORMERS_TEXT,
    assert_equals_theirs,
    transformers_clip,
)
from clip_fusion_loss import FrozenCLIP

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    return transformers_clip()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip-vit-tiny"
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prefix", ["local-dir:", ""])
def test_folder(prefix, folder, model):
    encoder = FrozenCLIP.from_pretrained(f"{prefix}{folder}")
    assert_equals_theirs(encoder, model)
    assert encoder.image_size == (32, 32)


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("bin", "gelu"), ("parts", "quick_gelu"), ("parts of bin", "gelu"), ("half", "gelu")],
)
def test_folders_of_other_makes(activation, kind, tmp_path):
    model = transformers_clip(activation)
    if kind == "half":
        model.half().save_pretrained(tmp_path)
        model.float()
    elif kind == "parts":
        model.save_pretrained(tmp_path, max_shard_size="4MB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    else:
        model.config.save_pretrained(tmp_path)
        state = model.state_dict()
        # As older versions wrote it.
        state["text_model.embeddings.position_ids"] = torch.arange(24)[None]
        names = ["pytorch_model.bin"]
        if kind == "parts of bin":
            names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
            parts = {name: names[number % 2] for number, name in enumerate(state)}
            index = tmp_path / "pytorch_model.bin.index.json"
            index.write_text(json.dumps({"weight_map": parts}))
        for number, name in enumerate(names):
            torch.save(dict(list(state.items())[number :: len(names)]), tmp_path / name)
    assert_equals_theirs(FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}"), model)


def test_mean_and_std_of_the_preprocessor(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    text = json.dumps({"image_mean": mean, "image_std": std})
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert_equals_theirs(FrozenCLIP.from_pretrained(str(tmp_path)), model, mean, std)


def test_mean_and_std_of_the_processor(folder, model, tmp_path):
    """transformers 5 writes them with CLIPProcessor's own."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    content = {"image_processor": {"do_normalize": True, "image_mean": mean, "image_std": std}}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert_equals_theirs(FrozenCLIP.from_pretrained(str(tmp_path)), model, mean, std)


def test_images_that_are_not_normalised(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    text = json.dumps({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert_equals_theirs(FrozenCLIP.from_pretrained(str(tmp_path)), model, [0.0] * 3, [1.0] * 3)


@pytest.fixture
def named(monkeypatch):
    """Its architecture under a name that open_clip knows, as published ones are."""
    config = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": 24, "width": 48, "heads": 3, "layers": 1, "mlp_ratio": 2.0,
        },
    }  # fmt: skip
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-hf-quickgelu", config)
    plain = {**config, "quick_gelu": False}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-hf", plain)
    return "tiny-hf-quickgelu"


class TestFile:
    def test_with_the_models_name(self, named, folder, model, tmp_path):
        path = tmp_path / "clip.safetensors"
        shutil.copy(folder / "model.safetensors", path)
        assert_equals_theirs(FrozenCLIP.from_pretrained(named, path), model)

    def test_folder_in_its_place(self, named, folder, model):
        assert_equals_theirs(FrozenCLIP.from_pretrained(named, folder), model)

    def test_in_a_training_checkpoint(self, named, model, tmp_path):
        state = {f"module.clip.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        assert_equals_theirs(FrozenCLIP.from_pretrained(named, tmp_path / "last.ckpt"), model)

    def test_the_config_beside_it_tells_the_activation(self, named, folder):
        with pytest.raises(ValueError, match=r"\(QuickGELU\), got 'tiny-hf'.*use 'tiny-hf-quickg"):
            FrozenCLIP.from_pretrained("tiny-hf", folder / "model.safetensors")

    def test_the_processor_beside_it_tells_mean_and_std(self, named, folder, model, tmp_path):
        shutil.copy(folder / "model.safetensors", tmp_path)
        mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
        text = json.dumps({"image_mean": mean, "image_std": std})
        (tmp_path / "preprocessor_config.json").write_text(text)
        encoder = FrozenCLIP.from_pretrained(named, tmp_path / "model.safetensors")
        assert_equals_theirs(encoder, model, mean, std)

    def test_of_another_architecture(self, named, folder, small_architecture):
        with pytest.raises(ValueError, match="a transformers CLIPModel, with the weights of tiny"):
            FrozenCLIP.from_pretrained(small_architecture, folder / "model.safetensors")

    def test_one_part_alone(self, named, model, tmp_path):
        model.save_pretrained(tmp_path, max_shard_size="4MB")
        part = sorted(tmp_path.glob("*-of-*"))[0]
        with pytest.raises(ValueError, match="one of several parts; pass the folder"):
            FrozenCLIP.from_pretrained(named, part)
        part.unlink()
        with pytest.raises(ValueError, match=f"of which {part.name} is missing"):
            FrozenCLIP.from_pretrained(str(tmp_path))


class TestOtherModels:
    def test_vision_model_alone(self, model, tmp_path):
        vision = transformers.CLIPVisionModelWithProjection(model.config.vision_config)
        vision.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="type 'clip_vision_model'.*only 'clip'"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")
        with pytest.raises(ValueError, match="a transformers CLIPVisionModel: it has no text"):
            FrozenCLIP.from_pretrained("ViT-B-32", tmp_path / "model.safetensors")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"model_type": "siglip"}, "a transformers model of type 'siglip'"),
            (
                {"text_config": {**TRANSFORMERS_TEXT, "vocab_size": 100}},
                "a vocabulary of 100 tokens",
            ),
            ({"vision_config": {"hidden_act": "silu"}}, "activations 'silu' and 'quick_gelu'"),
            ({"vision_config": 7}, "it is"),
        ],
    )
    def test_what_open_clip_has_not(self, change, words, folder, tmp_path):
        config = json.loads((folder / "config.json").read_text())
        shutil.copy(folder / "model.safetensors", tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=f"`model_name` must be a CLIP.*{words}"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")

    def test_weights_of_tensorflow_alone(self, folder, tmp_path):
        shutil.copy(folder / "config.json", tmp_path)
        (tmp_path / "tf_model.h5").write_bytes(b"weights")
        with pytest.raises(ValueError, match="file of PyTorch weights.*it holds.*tf_model.h5"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")
