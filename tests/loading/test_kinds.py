"""Weights that are no CLIP's, or another one's, are named."""

import open_clip
import pytest
import safetensors.torch
import torch

from clip_files import refused
from clip_fusion_loss import EmbeddedFusionModel, FusionObjective
from conftest import build_clip

OTHER_WEIGHTS = {
    "features.0.weight": "pass VGG-19 to VGGMaxFeatureLoss",
    "layer1.0.conv1.weight": "a ResNet classifier",
    "blocks.0.attn.qkv.weight": "a vision transformer of timm or DINO",
    "text_model.encoder.layers.0.mlp.fc1.weight": "a transformers CLIPTextModel",
    "embeddings.patch_embedding.weight": "a transformers CLIPVisionModel",
    "vision_model.embeddings.patch_embedding.weight": "a transformers CLIPVisionModel",
    "vision_model.head.probe": "a transformers SiglipModel",
    "base_model.model.q_proj.lora_A.weight": "a LoRA adapter",
    "cond_stage_model.transformer.weight": "a Stable Diffusion checkpoint",
    "visual_encoder.blocks.0.norm1.weight": "a BLIP",
    "conv.weight": "weights of an unknown kind .with names such as conv.weight.",
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
    from clip_fusion_loss.loading.kinds import model_names

    with torch.device("meta"):
        state = open_clip.CLIP(**open_clip.get_model_config(model_name)).state_dict()
    assert " or ".join(model_names(state)).startswith(names)


def test_the_difference_is_told_in_a_few_words(small_architecture, tmp_path):
    path = tmp_path / "weights.pt"
    state = build_clip().state_dict()
    state["visual.proj"] = state["visual.proj"][:, :8]
    state["head.weight"] = state.pop("ln_final.weight")
    torch.save(state, path)
    message = refused("it lacks 1 tensors, such as ln_final.weight; it has 1 unexpected", path)
    assert "visual.proj has the shape (32, 8) instead of (32, 24)" in message
    assert len(message) < 600
