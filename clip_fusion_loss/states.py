"""State dicts of CLIPs: where in a checkpoint they are, what they are, and open_clip's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "config_from_transformers",
    "describe",
    "difference",
    "find_clip",
    "from_transformers",
    "is_openai",
    "is_transformers",
    "model_names",
    "without_wrappers",
]

# What comes before the first name of an image tower: "module.", "state_dict.model.", ...
TOWER = re.compile(r"((?:.*?\.)?)(?:visual|vision_model|image_encoder)\.")
SECOND_CHOICE = re.compile(r"ema|averag|swa|teacher|momentum|\b\d+\.", re.IGNORECASE)

# What wrappers of parts of a model put into names: DDP, torch.compile, FSDP, checkpointing.
WRAPPERS = re.compile(r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# Kept in OpenAI's archives, and in no others.
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")

TRANSFORMERS_NAMES = {
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

# Defaults of transformers' CLIPConfig: what its config.json leaves out.
TRANSFORMERS_DEFAULTS = {
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
    },
    "text": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
    },
}

# Weights that are no CLIP's, by a name in them; what there is to say of each.
OTHERS = {
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


def find_clip(names: Iterable[str]) -> list[str]:
    """The prefixes under which a checkpoint keeps CLIPs, the trained weights before averages."""
    matches = (TOWER.match(name) for name in names)
    prefixes = dict.fromkeys(match[1] for match in matches if match)
    prefixes = {prefix: None for prefix in prefixes if "optim" not in prefix}
    return sorted(prefixes, key=lambda prefix: bool(SECOND_CHOICE.search(prefix)))


def without_wrappers(name: str) -> str:
    """A tensor's name as that of the model that is in the wrappers."""
    return WRAPPERS.sub("", name)


def is_openai(state: Mapping[str, Tensor]) -> bool:
    return any(name in state for name in OPENAI_MARKS)


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    return "visual_projection.weight" in state and "text_model.final_layer_norm.weight" in state


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformers CLIPModel under open_clip's names and in its shapes."""
    renamed = {}
    for name, tensor in state.items():
        projection = name in ("visual_projection.weight", "text_projection.weight")
        for theirs, ours in TRANSFORMERS_NAMES.items():
            name = name.replace(theirs, ours)
        if not name.endswith("position_ids"):
            renamed[name] = tensor.T if projection else tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [
            renamed.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")
        ]
        renamed[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return renamed


def config_from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's model_cfg for a transformers CLIPModel's config.json.

    Raises:
        ValueError: open_clip has no such model, in words that go on after "it is".
    """
    kind = config.get("model_type")
    if kind != "clip":
        raise ValueError(
            f"a transformers model of type {kind!r}, of which only 'clip' (CLIPModel, with an "
            "image tower and a text tower) is read"
        )
    vision, text = (
        TRANSFORMERS_DEFAULTS[tower]
        | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
        | (config.get(f"{tower}_config") or {})
        | (config.get(f"{tower}_config_dict") or {})
        for tower in ("vision", "text")
    )
    activation = vision["hidden_act"]
    if activation not in ("quick_gelu", "gelu") or text["hidden_act"] != activation:
        raise ValueError(
            f"a transformers CLIPModel with the activations {activation!r} and "
            f"{text['hidden_act']!r}; open_clip has 'gelu' or 'quick_gelu' for both towers"
        )
    if text["vocab_size"] != TRANSFORMERS_DEFAULTS["text"]["vocab_size"]:
        raise ValueError(
            f"a transformers CLIPModel with a vocabulary of {text['vocab_size']} tokens; CLIP's "
            "tokenizer has 49408"
        )

    def common(tower: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "width": tower["hidden_size"],
            "layers": tower["num_hidden_layers"],
            "mlp_ratio": tower["intermediate_size"] / tower["hidden_size"],
            "norm_kwargs": {"eps": tower["layer_norm_eps"]},
        }

    heads = vision["num_attention_heads"]
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": {
            **common(vision),
            "head_width": vision["hidden_size"] // heads,
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


def describe(state: Mapping[str, Any], kind: str = "a CLIP") -> str:
    """What a state dict is of; the values may be anything unless it is a CLIP's, said as `kind`."""
    if any(name.startswith("vision_model.") for name in state):
        if any(name.startswith("vision_model.head.") for name in state):
            return "a transformers SiglipModel; open_clip has its own files of those"
        if any(name.startswith("text_model.encoder.layer.") for name in state):
            return "a transformers ChineseCLIPModel"
        return "a transformers CLIPVisionModel: it has no text tower"
    if any(name.startswith("visual.trunk.") for name in state):
        return "an open_clip model whose image tower is timm's"
    if any(name.startswith("visual.") for name in state):
        names = model_names(state)
        return f"{kind}, with the weights of {' or '.join(names)}" if names else kind
    for pattern, words in OTHERS.items():
        if any(re.search(pattern, name) for name in state):
            return words
    return f"weights of another kind (of names such as {', '.join(list(state)[:3]) or 'none'})"


def model_names(state: Mapping[str, Tensor]) -> list[str]:
    """Those of open_clip's models that have the sizes of `state`, without timm's towers."""
    import open_clip

    sizes = _sizes(state)
    names = open_clip.list_models()
    return [
        name for name in names if sizes and _config_sizes(open_clip.get_model_config(name)) == sizes
    ]


def _sizes(state: Mapping[str, Tensor]) -> tuple[Any, ...] | None:
    """Layers, widths and lengths of both towers; None if it is neither a ViT nor a ResNet."""
    state = {name.removeprefix("text."): tensor for name, tensor in state.items()}

    def blocks(pattern: str) -> int:
        return len({match[1] for match in map(re.compile(pattern).match, state) if match})

    try:
        text = (len(state["ln_final.weight"]), blocks(r"transformer\.resblocks\.(\d+)"))
        text = (*text, *state["positional_embedding"].shape, len(state["token_embedding.weight"]))
        if "visual.class_embedding" in state:
            width, _, patch, _ = state["visual.conv1.weight"].shape
            tokens = len(state["visual.positional_embedding"])
            layers = blocks(r"visual\.transformer\.resblocks\.(\d+)")
            return (width, layers, patch, tokens, *text)
        counts = [blocks(rf"visual\.layer{stage}\.(\d+)") for stage in (1, 2, 3, 4)]
        width = len(state["visual.layer1.0.conv1.weight"])
        return (width, counts, len(state["visual.attnpool.positional_embedding"]), *text)
    except (KeyError, ValueError):
        return None


def _config_sizes(config: Mapping[str, Any]) -> tuple[Any, ...] | None:
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision or "hf_model_name" in text or "multimodal_cfg" in config:
        return None
    try:
        size, layers, width = vision["image_size"], vision["layers"], vision["width"]
        width_of_text, vocabulary = text["width"], text.get("vocab_size", 49408)
        of_text = (width_of_text, text["layers"], text["context_length"], width_of_text, vocabulary)
        if isinstance(layers, list):
            return (width, layers, (size // 32) ** 2 + 1, *of_text)
        patch = vision["patch_size"]
        return (width, layers, patch, (size // patch) ** 2 + 1, *of_text)
    except (KeyError, TypeError):  # a config of the caller's that leaves sizes to defaults
        return None


def difference(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """In a few words why `state` cannot be loaded as `expected`; nothing if it can."""
    words = []
    missing = [name for name in expected if name not in state]
    more = [name for name in state if name not in expected]
    shapes = [
        f"{name} has the shape {tuple(state[name].shape)} in place of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing:
        words.append(f"it lacks {len(missing)} tensors, such as {missing[0]}")
    if more:
        words.append(f"it has {len(more)} tensors too many, such as {more[0]}")
    if shapes:
        words.append(shapes[0])
    return "; ".join(words)
