"""Pretrained CLIPs: weights read, architecture built, tokenizer found."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checks, states
from .checkpoints import open_tensors
from .hub import fetch_files
from .sources import (
    TOKENIZER_FILES,
    Source,
    check_activation,
    find_source,
    processor_values,
    read_json,
)

__all__ = ["check_digests", "load_clip"]

# Masks and positions that older versions stored; they follow from the architecture.
IGNORED = ("attn_mask", "position_ids")


def load_clip(
    model_name: str,
    pretrained: str | Path | None,
    cache_dir: str | Path | None,
    tokenizer: str | Path | None,
) -> tuple[str, nn.Module, Callable[..., Tensor]]:
    """Name, model and tokenizer; see `FrozenCLIP.from_pretrained`."""
    cache_dir = None if cache_dir is None else str(cache_dir)
    source = find_source(model_name, pretrained, cache_dir)
    tokenize = _tokenizer(source, tokenizer, cache_dir)
    if source.weights.suffix == ".npz":
        return source.name, _load_big_vision(source, cache_dir), tokenize
    state = _read_state(source)
    model = _build(source, cache_dir)
    _fill(model, state, source)
    _check_config_beside(source)
    return source.name, model, tokenize


def check_digests(folder: Path) -> None:
    """Raise a ValueError unless the files are those that SHA256SUMS lists."""
    try:
        for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
            digest, name = line.split()
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{name} is not as it was shipped")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the embedded CLIP in {folder} is damaged: {error}; install the package again"
        ) from error


def _read_state(source: Source) -> dict[str, Tensor]:
    """The weights of the CLIP that a file holds, under open_clip's names."""
    refusal = f"`{source.given_as}` must hold weights of a CLIP, got {source.weights}; it is "
    try:
        with open_tensors(source.weights) as tensors:
            prefixes = states.find_clip(tensors)
            if not prefixes:
                raise ValueError(states.describe(tensors))
            if len(prefixes) > 1:
                checks.warn(
                    f"{source.weights} holds several models, {', '.join(map(repr, prefixes))}; the "
                    f"one under {prefixes[0]!r} is taken. Save another one alone to have it"
                )
            state = {
                states.without_wrappers(name.removeprefix(prefixes[0])): read()
                for name, read in tensors.items()
                if name.startswith(prefixes[0])
            }
        if any(name.startswith("vision_model.") for name in state):
            if not states.is_transformers(state):
                raise ValueError(states.describe(state))
            state = states.from_transformers(state)
            source.kind = "a transformers CLIPModel"
            if source.given_as == "pretrained":  # the file alone; its processor may lie beside it
                beside = processor_values(source.weights.parent)
                source.preprocessing = source.preprocessing | beside
    except ValueError as error:
        raise ValueError(f"{refusal}{error}") from error
    if states.is_openai(state):
        source.config["quick_gelu"] = True  # all of theirs were trained with it
        model, slash, rest = source.name.partition("/")
        if source.given_as == "pretrained" and not model.endswith("-quickgelu"):
            source.name = f"{model}-quickgelu{slash}{rest}"
        state = {name: state[name] for name in state if name not in states.OPENAI_MARKS}
    return state


def _check_config_beside(source: Source) -> None:
    """A file passed by itself: transformers' config beside it may still say the activation."""
    beside = source.weights.parent / "config.json"
    if source.given_as != "pretrained" or not beside.is_file():
        return
    try:
        theirs = states.config_from_transformers(read_json(beside))
    except (AttributeError, TypeError, ValueError):  # of something else
        return
    model_name = source.name.partition("/")[0]
    check_activation(model_name, source.config, str(source.weights), theirs["quick_gelu"])


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
        with torch.random.fork_rng(devices=()):  # weights are drawn before they are loaded
            model = kind(**config).float()
    except Exception as error:  # of open_clip, timm, transformers or the hub's client
        raise ValueError(f"open_clip cannot build {source.name!r}: {error}") from error
    known = {name: source.preprocessing.get(name) for name in ("mean", "std")}
    model.visual.preprocess_cfg = {name: value for name, value in known.items() if value}
    return model


def _fill(model: nn.Module, state: dict[str, Tensor], source: Source) -> None:
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    expected, given = model.state_dict(), state
    state = convert_state_dict(model, state)  # of Apple's MobileCLIP
    if not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state = {name: state[name] for name in state if not name.endswith(IGNORED)}
    for name, value in expected.items():
        if name.startswith("logit_"):  # of a score that no loss here takes
            state[name] = value
        elif name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    difference = states.difference(state, expected)
    if difference:
        what = states.describe(given, source.kind)
        raise ValueError(
            f"`{source.given_as}` must hold weights that fit {source.name!r}, got "
            f"{source.weights}; it is {what}: {difference}; pass the name of the model that the "
            "weights are of"
        )
    model.load_state_dict(state)


def _load_big_vision(source: Source, cache_dir: str | None) -> nn.Module:
    """Google's SigLIP as its authors published it: NumPy arrays, which open_clip converts."""
    from open_clip.convert import load_big_vision_weights

    model = _build(source, cache_dir)
    try:
        load_big_vision_weights(model, str(source.weights))
    except Exception as error:  # names and shapes are not checked there
        raise ValueError(
            f"`{source.given_as}` must hold SigLIP's weights as big_vision writes them that fit "
            f"{source.name!r}, got {source.weights}: {error}"
        ) from error
    return model


def _tokenizer(
    source: Source, given: str | Path | None, cache_dir: str | None
) -> Callable[..., Tensor]:
    """CLIP's own, which comes with open_clip, or one of the hub, as the model wants."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text = source.config["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    options.setdefault("context_length", text.get("context_length", 77))
    repository = text.get("hf_tokenizer_name")
    if given is None and not repository:
        return SimpleTokenizer(**options)
    try:
        folder = given or source.tokenizer
        if folder is None:
            optional = (*TOKENIZER_FILES, "config.json")
            folder = fetch_files(repository, (TOKENIZER_FILES,), optional, cache_dir)
        return HFTokenizer(str(folder), tokenizer_mode=text.get("tokenizer_mode"), **options)
    except ImportError as error:
        raise ImportError(
            f"the tokenizer of {source.name!r} needs transformers ({error}); "
            "pip install transformers sentencepiece"
        ) from error
    except Exception as error:  # of transformers or the hub's client
        raise FileNotFoundError(
            f"the weights of {source.name!r} are here, but its tokenizer is not. On a machine "
            f"with a network, fetch {TOKENIZER_FILES[0]}, {TOKENIZER_FILES[1]} and "
            f"{TOKENIZER_FILES[2]} of {repository or 'it'} from the hub, put them into a folder, "
            f"copy that here and pass it as tokenizer='FOLDER': {error}"
        ) from error
