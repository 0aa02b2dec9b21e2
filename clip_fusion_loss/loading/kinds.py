"""What weights are of, in words for a message, and why they do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["describe", "difference", "model_names"]

# What weights are of, by a name among them: the first that matches.
CLIP = "a CLIP"
KINDS = {
    r"^vision_model\.head\.": "a transformers SiglipModel; open_clip has its own files of those",
    r"^text_model\.encoder\.layer\.": "a transformers ChineseCLIPModel",
    r"^vision_model\.": "a transformers CLIPVisionModel: it has no text tower",
    r"^visual\.trunk\.": "an open_clip model whose image tower is timm's",
    r"^visual\.": CLIP,
    r"visible_direction$": "an objective that EmbeddedFusionModel.save wrote; it goes to the loss",
    r"lora_[AB]\b": "a LoRA adapter; merge it into its model and save that",
    r"(first|cond)_stage_model\.": "a Stable Diffusion checkpoint",
    r"\bunet\.|down_blocks\.": "a diffusion model",
    r"visual_encoder\.": "a BLIP or ALBEF model",
    r"embeddings\.patch_embedding\.": "a transformers CLIPVisionModel: it has no text tower",
    r"text_model\.|embeddings\.token_embedding\.": "a transformers CLIPTextModel: it has no image "
    "tower",
    r"features\.\d+\.weight$": "a VGG or AlexNet of torchvision; VGG-19 goes to VGGMaxFeatureLoss",
    r"layer1\.0\.conv1\.weight$": "a ResNet classifier",
    r"blocks\.0\.attn\.qkv\.": "a vision transformer of timm or DINO: it has no text tower",
    r"encoder\.layer\.0\.": "a BERT",
    r"resblocks\.": "one tower of a CLIP",
}


def describe(state: Mapping[str, Any], kind: str = CLIP) -> str:
    """What a state dict is of; the values may be anything unless it is a CLIP's, said as `kind`."""
    for pattern, words in KINDS.items():
        if any(re.search(pattern, name) for name in state):
            if words != CLIP:
                return words
            names = model_names(state)
            return f"{kind}, with the weights of {' or '.join(names)}" if names else kind
    return f"weights of another kind (of names such as {', '.join(list(state)[:3]) or 'none'})"


def model_names(state: Mapping[str, Tensor]) -> list[str]:
    """Those of open_clip's models that have the shapes of `state`, without timm's towers."""
    import open_clip

    shapes = _shapes({name.removeprefix("text."): tensor for name, tensor in state.items()})
    names = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        size, vision, text = (config[key] for key in ("embed_dim", "vision_cfg", "text_cfg"))
        # A glance at one shape saves most of the building.
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
    """In a few words why `state` cannot be loaded as `expected`; nothing if it can."""
    missing = [name for name in expected if name not in state]
    more = [name for name in state if name not in expected]
    shapes = [
        f"{name} has the shape {tuple(state[name].shape)} in place of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    words = [f"it lacks {len(missing)} tensors, such as {missing[0]}"] if missing else []
    words += [f"it has {len(more)} tensors too many, such as {more[0]}"] if more else []
    return "; ".join(words + shapes[:1])
