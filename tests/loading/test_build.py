"""Which of the weights in a file fill the model, and with what activation and statistics."""

import json

import open_clip
import pytest
import torch

from clip_files import RESNET, assert_same_vectors, make_archives, refused, save_archive
from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, build_clip


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return make_archives(tmp_path_factory.mktemp("archives"))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("RN50", "RN50"),
        ("ViT-B/16", "ViT-B-16-quickgelu"),
        ("ViT-B/32", "ViT-B-32-quickgelu"),
        ("ViT-L/14@336px", "ViT-L-14-336-quickgelu"),
    ],
)
def test_openai_names(theirs, ours, monkeypatch, archives):
    kind = "RN" if theirs.startswith("RN") else "ViT"
    config = {"RN": RESNET, "ViT": MODEL_CONFIG}[kind]
    known = {ours: {**config, "quick_gelu": ours.endswith("-quickgelu")}}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", known)
    path = archives[kind][1]
    loaded = FrozenCLIP.from_pretrained(theirs, path)
    assert loaded.name == f"{ours.removesuffix('-quickgelu')}-quickgelu/{path}"


def test_archive_of_another_origin_keeps_the_activation_of_its_name(
    clip_model, tokenizer, small_architecture, tmp_path
):
    path = tmp_path / "scripted.pt"
    save_archive(clip_model, path)
    loaded = FrozenCLIP.from_pretrained(small_architecture, path)
    assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))


def test_trained_weights_rather_than_their_average(
    clip_model, tokenizer, small_architecture, tmp_path
):
    path = tmp_path / "epoch_7.pt"
    average = build_clip(seed=1).state_dict()
    torch.save({"model_ema": average, "model": clip_model.state_dict()}, path)
    with pytest.warns(UserWarning, match=r"'model.', 'model_ema.'; the one under 'model.'"):
        loaded = FrozenCLIP.from_pretrained(small_architecture, path)
    assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))


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
