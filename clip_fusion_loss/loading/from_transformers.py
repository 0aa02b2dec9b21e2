"""Convert weights and config of Hugging Face transformers' CLIPModel to those of open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["convert_config", "convert_state"]

NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    ".self_attn.": ".attn.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}

VOCABULARY = 49408  # tokens of CLIP's tokenizer

# Defaults of transformers' CLIPConfig, for keys that its config.json leaves out.
DEFAULTS = {
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "text_config": {
        "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 77, "vocab_size": VOCABULARY,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
}  # fmt: skip


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with open_clip's names and shapes."""
    renamed = {}
    for name, tensor in state.items():
        projection = name in ("visual_projection.weight", "text_projection.weight")
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if not name.endswith("position_ids"):
            renamed[name] = tensor.T if projection else tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = (renamed.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv")
        renamed[name.replace("q_proj.", "in_proj_")] = torch.cat(tuple(parts))
    return renamed


def convert_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's model_cfg for a transformers config.json.

    Raises:
        ValueError: open_clip has no such model. The message continues "it is".
    """
    kind = config.get("model_type")
    if kind != "clip":
        raise ValueError(
            f"a transformers model of type {kind!r}; only 'clip' (CLIPModel, with an image tower "
            "and a text tower) can be read"
        )
    vision, text = (
        DEFAULTS[name] | (config.get(name) or {}) | (config.get(f"{name}_dict") or {})
        for name in ("vision_config", "text_config")
    )
    activation = vision["hidden_act"]
    if activation not in ("quick_gelu", "gelu") or text["hidden_act"] != activation:
        raise ValueError(
            f"a transformers CLIPModel with the activations {activation!r} and "
            f"{text['hidden_act']!r}; open_clip has 'gelu' or 'quick_gelu' for both towers"
        )
    if text["vocab_size"] != VOCABULARY:
        raise ValueError(
            f"a transformers CLIPModel with a vocabulary of {text['vocab_size']} tokens; CLIP's "
            f"tokenizer has {VOCABULARY}"
        )

    def common(tower: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "width": tower["hidden_size"],
            "layers": tower["num_hidden_layers"],
            "mlp_ratio": tower["intermediate_size"] / tower["hidden_size"],
            "norm_kwargs": {"eps": tower["layer_norm_eps"]},
        }

    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": {
            **common(vision),
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            **common(text),
            "heads": text["num_attention_heads"],
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
        },
    }
