"""Describe for error messages which model weights belong to, and why they do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["describe", "difference", "model_names"]

# The kind of a model by the names of its weights; the first pattern that matches any name counts.
CLIP = "a CLIP"
KINDS = {
    r"^vision_model\.head\.": "a transformers SiglipModel; use open_clip's files of that model",
    r"^text_model\.encoder\.layer\.": "a transformers ChineseCLIPModel",
    r"^vision_model\.": "a transformers CLIPVisionModel: it has no text tower",
    r"^visual\.trunk\.": "an open_clip model whose image tower is timm's",
    r"^visual\.": CLIP,
    r"visible_direction$": "an objective that EmbeddedFusionModel.save wrote; read it with "
    "EmbeddedFusionModel.load and pass it to the loss",
    r"lora_[AB]\b": "a LoRA adapter; merge it into its model and save the model",
    r"(first|cond)_stage_model\.": "a Stable Diffusion checkpoint",
    r"\bunet\.|down_blocks\.": "a diffusion model",
    r"visual_encoder\.": "a BLIP or ALBEF model",
    r"embeddings\.patch_embedding\.": "a transformers CLIPVisionModel: it has no text tower",
    r"text_model\.|embeddings\.token_embedding\.": "a transformers CLIPTextModel: it has no image "
    "tower",
    r"features\.\d+\.weight$": "a VGG or AlexNet of torchvision; pass VGG-19 to VGGMaxFeatureLoss",
    r"layer1\.0\.conv1\.weight$": "a ResNet classifier",
    r"blocks\.0\.attn\.qkv\.": "a vision transformer of timm or DINO: it has no text tower",
    r"encoder\.layer\.0\.": "a BERT",
    r"resblocks\.": "one tower of a CLIP",
}


def describe(state: Mapping[str, Any], kind: str = CLIP) -> str:
    """The kind of model that a state dict belongs to, in words that continue "it is".

    A CLIP is called `kind`, and the models of open_clip that have its shapes are named. Only then
    must the values be tensors.
    """
    for pattern, words in KINDS.items():
        if any(re.search(pattern, name) for name in state):
            if words != CLIP:
                return words
            names = model_names(state)
            return f"{kind}, with the weights of {' or '.join(names)}" if names else kind
    return f"weights of an unknown kind (with names such as {', '.join(list(state)[:3]) or 'none'})"


def model_names(state: Mapping[str, Tensor]) -> list[str]:
    """The models of open_clip with the shapes of `state`, except those with timm towers."""
    import open_clip

    shapes = _shapes({name.removeprefix("text."): tensor for name, tensor in state.items()})
    names = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        size, vision, text = (config[key] for key in ("embed_dim", "vision_cfg", "text_cfg"))
        # Comparing one shape first saves building most of the models.
        likely = shapes.get("text_projection") == (text.get("width"), size)
        if likely and "timm_model_name" not in vision:
            with torch.device("meta"):
                model = open_clip.CLIP(size, vision, text)
            if _shapes(model.state_dict()) == shapes:
                names.append(name)
    return names


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.startswith("logit_") and not name.endswith(("attn_mask", "num_batches_tracked"))
    }


def difference(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Why `state` cannot be loaded as `expected`, in a few words; empty if it can."""
    missing = [name for name in expected if name not in state]
    more = [name for name in state if name not in expected]
    shapes = [
        f"{name} has the shape {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    words = [f"it lacks {len(missing)} tensors, such as {missing[0]}"] if missing else []
    words += [f"it has {len(more)} unexpected tensors, such as {more[0]}"] if more else []
    return "; ".join(words + shapes[:1])
