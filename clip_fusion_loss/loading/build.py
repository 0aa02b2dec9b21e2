"""Build the model of a source as open_clip does, and load the weights of its file."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .. import checks
from .checkpoints import open_tensors
from .from_transformers import convert_config, convert_state
from .hub import fetch_files
from .kinds import CLIP, describe, difference
from .sources import Source, check_activation, processor_values, read_json

__all__ = ["build_model"]

# The prefix before an image tower's name: "module.", "state_dict.model.", ...
TOWER = re.compile(r"((?:.*?\.)?)(?:visual|vision_model|image_encoder)\.")
SECOND_CHOICE = re.compile(r"ema|averag|swa|teacher|momentum|\b\d+\.", re.IGNORECASE)

# What wrappers insert into names: DDP, torch.compile, FSDP, activation checkpointing.
WRAPPERS = re.compile(r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# Only OpenAI's archives have these.
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")

# Masks and positions that older versions stored; the architecture determines them.
IGNORED = ("attn_mask", "position_ids")


def build_model(source: Source, cache_dir: str | None) -> nn.Module:
    """The CLIP of `source`, as float32.

    If the weights are OpenAI's, `source.name` and `source.config` are changed to QuickGELU, the
    activation that they were trained with.

    Raises:
        ValueError: open_clip cannot build the model, or the file does not hold its weights.
    """
    if source.weights.suffix == ".npz":
        return _from_big_vision(source, cache_dir)
    state, kind = _read_state(source)
    model = _build(source, cache_dir)
    _fill(model, state, source, kind)
    _check_config_beside(source)
    return model


def _read_state(source: Source) -> tuple[dict[str, Tensor], str]:
    """The weights of the CLIP in a file, under open_clip's names, and their kind in words."""
    kind = CLIP
    try:
        with open_tensors(source.weights) as tensors:
            prefixes = _prefixes_of_clips(tensors)
            if not prefixes:
                raise ValueError(describe(tensors))
            if len(prefixes) > 1:
                checks.warn(
                    f"{source.weights} holds several models, {', '.join(map(repr, prefixes))}; the "
                    f"one under {prefixes[0]!r} is used. To use another, save it to a file alone"
                )
            state = {
                WRAPPERS.sub("", name.removeprefix(prefixes[0])): read()
                for name, read in tensors.items()
                if name.startswith(prefixes[0])
            }
        if any(name.startswith("vision_model.") for name in state):
            if not {"visual_projection.weight", "text_model.final_layer_norm.weight"} <= set(state):
                raise ValueError(describe(state))
            kind, state = "a transformers CLIPModel", convert_state(state)
            if source.given_as == "pretrained":  # a file; its processor may be in the same folder
                beside = processor_values(source.weights.parent)
                source.preprocessing = source.preprocessing | beside
    except ValueError as error:
        raise ValueError(
            f"`{source.given_as}` must hold the weights of a CLIP, got {source.weights}; it is "
            f"{error}"
        ) from error
    if any(name in state for name in OPENAI_MARKS):
        source.config["quick_gelu"] = True  # all of OpenAI's weights were trained with it
        model, slash, rest = source.name.partition("/")
        if source.given_as == "pretrained" and not model.endswith("-quickgelu"):
            source.name = f"{model}-quickgelu{slash}{rest}"
        state = {name: state[name] for name in state if name not in OPENAI_MARKS}
    return state, kind


def _prefixes_of_clips(names: Iterable[str]) -> list[str]:
    """The prefixes of the CLIPs in a checkpoint, with averaged weights last."""
    matches = map(TOWER.match, names)
    prefixes = dict.fromkeys(match[1] for match in matches if match and "optim" not in match[1])
    return sorted(prefixes, key=lambda prefix: bool(SECOND_CHOICE.search(prefix)))


def _build(source: Source, cache_dir: str | None) -> nn.Module:
    """The architecture, as `open_clip.create_model` builds it, with random weights."""
    import open_clip

    config = copy.deepcopy(source.config)
    try:
        vision, text = config["vision_cfg"], config["text_cfg"]
        custom_text = config.pop("custom_text", False) or "hf_model_name" in text
        kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
        if custom_text and "multimodal_cfg" in config:
            kind = open_clip.CoCa
        if "timm_model_name" in vision:
            vision["timm_model_pretrained"] = False
        if "hf_model_name" in text:
            text["hf_model_pretrained"] = False
            files = fetch_files(text["hf_model_name"], (("config.json",),), (), cache_dir)
            text["hf_model_name"] = str(files)
        with torch.random.fork_rng(devices=()):  # random initialisation precedes the loading
            model = kind(**config).float()
    except Exception as error:  # of open_clip, timm, transformers or the hub's client
        raise ValueError(f"open_clip cannot build {source.name!r}: {error}") from error
    known = {name: source.preprocessing.get(name) for name in ("mean", "std")}
    model.visual.preprocess_cfg = {name: value for name, value in known.items() if value}
    return model


def _fill(model: nn.Module, given: dict[str, Tensor], source: Source, kind: str) -> None:
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    expected = model.state_dict()
    state = convert_state_dict(model, given)  # of Apple's MobileCLIP
    if not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state = {name: state[name] for name in state if not name.endswith(IGNORED)}
    for name, value in expected.items():
        if name.startswith("logit_"):  # scale and bias of logits, which are not used here
            state[name] = value
        elif name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    unlike = difference(state, expected)
    if unlike:
        raise ValueError(
            f"`{source.given_as}` must hold weights that fit {source.name!r}, got "
            f"{source.weights}; it is {describe(given, kind)}: {unlike}; pass the name of the "
            "model that these weights belong to"
        )
    model.load_state_dict(state)


def _check_config_beside(source: Source) -> None:
    """Check the activation of a single file by transformers' config in the same folder, if any."""
    beside = source.weights.parent / "config.json"
    if source.given_as != "pretrained" or not beside.is_file():
        return
    try:
        theirs = convert_config(read_json(beside))
    except (AttributeError, TypeError, ValueError):  # not the config of a CLIP
        return
    model_name = source.name.partition("/")[0]
    check_activation(model_name, source.config, str(source.weights), theirs["quick_gelu"])


def _from_big_vision(source: Source, cache_dir: str | None) -> nn.Module:
    """Google's SigLIP in its original format: NumPy arrays, which open_clip converts."""
    from open_clip.convert import load_big_vision_weights

    model = _build(source, cache_dir)
    try:
        load_big_vision_weights(model, str(source.weights))
    except Exception as error:  # open_clip does not check names and shapes
        raise ValueError(
            f"`{source.given_as}` must hold SigLIP weights of {source.name!r} in big_vision's "
            f"format, got {source.weights}: {error}"
        ) from error
    return model
