"""Which files a pretrained CLIP is made from: found by a name, in a folder or on the hub."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import states
from .hub import fetch, fetch_files, repository_folder

__all__ = [
    "TOKENIZER_FILES",
    "Source",
    "check_activation",
    "find_source",
    "processor_values",
    "read_json",
]

# In the order in which they are looked for.
CONFIGS = ("open_clip_config.json", "config.json")
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the latter of transformers 5
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".index.json")


@dataclass
class Source:
    """What a CLIP is made from."""

    name: str
    """For messages and saved files."""
    config: dict[str, Any]
    """open_clip's model_cfg."""
    weights: Path
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """Its mean and std, where known."""
    tokenizer: Path | None = None
    """A folder with the tokenizer's files, where they need not come from the hub."""
    given_as: str = "pretrained"
    """The argument that named it."""
    kind: str = "a CLIP"
    """What the file turned out to be."""


def find_source(model_name: str, pretrained: str | Path | None, cache_dir: str | None) -> Source:
    # Imported here: it takes seconds, and users who bring their own model have it already.
    import open_clip

    known = open_clip.list_models()
    if model_name.startswith("hf-hub:"):
        return _from_hub(model_name, cache_dir)
    if model_name.startswith("local-dir:"):
        return _from_folder(Path(model_name.removeprefix("local-dir:")), model_name)
    if model_name not in known and Path(model_name).expanduser().is_dir():
        return _from_folder(Path(model_name), model_name)
    name = _known_name(model_name, known)
    if pretrained is None:
        raise ValueError(
            "`pretrained` must be a tag or a checkpoint file, got None: a CLIP without trained "
            "weights gives no training signal"
        )
    path = Path(pretrained).expanduser()
    if path.is_dir() and pretrained not in open_clip.list_pretrained_tags_by_model(name):
        path = _weights_in(path, "pretrained")
    if path.is_file():
        config = open_clip.get_model_config(name)
        return Source(f"{name}/{pretrained}", config, path, _usual_preprocessing(name))
    if isinstance(pretrained, Path) or pretrained.endswith(SUFFIXES):
        raise FileNotFoundError(f"`pretrained` must be an existing file or a tag, got {pretrained}")
    _check_tag(name, pretrained)
    return _from_tag(name, pretrained, cache_dir)


def _known_name(model_name: str, known: list[str]) -> str:
    """open_clip's name for it; OpenAI's own, such as ViT-L/14@336px, have QuickGELU."""
    name = model_name
    if "/" in name:
        name = f"{name.replace('/', '-').replace('@336px', '-336')}-quickgelu"
    if name in known:
        return name
    if Path(model_name).expanduser().is_file():
        raise ValueError(
            f"`model_name` must say the architecture, got the file {model_name}; write "
            f"FrozenCLIP.from_pretrained('ViT-B-32-quickgelu', {model_name!r}), or whichever "
            "model it is"
        )
    close = difflib.get_close_matches(model_name, known) or known[:5]
    raise ValueError(
        f"`model_name` must be one of open_clip.list_models(), one of OpenAI's names (ViT-B/32), "
        f"'local-dir:FOLDER' or 'hf-hub:ORG/REPO', got {model_name!r}; close names: "
        f"{', '.join(close)}"
    )


def _check_tag(model_name: str, tag: str) -> None:
    """Refuse unknown tags and an activation that the weights do not have."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag not in tags:
        raise ValueError(
            f"`pretrained` must be a checkpoint file or a tag of {model_name!r} "
            f"({', '.join(tags) or 'it has none'}), got {tag!r}"
        )
    trained_with = bool(open_clip.get_pretrained_cfg(model_name, tag).get("quick_gelu"))
    check_activation(model_name, open_clip.get_model_config(model_name), repr(tag), trained_with)


def check_activation(
    model_name: str, config: Mapping[str, Any], weights: str, quick_gelu: bool
) -> None:
    if quick_gelu != bool(config.get("quick_gelu")):
        activation, remedy = "GELU", model_name.removesuffix("-quickgelu")
        if quick_gelu:
            activation, remedy = "QuickGELU", f"{model_name}-quickgelu"
        raise ValueError(
            f"`model_name` must have the activation that {weights} was trained with "
            f"({activation}), got {model_name!r}, whose vectors would be wrong without notice; "
            f"use {remedy!r}"
        )


def _usual_preprocessing(model_name: str) -> dict[str, Any]:
    """Mean and std of the model's published weights, where all of them have the same."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model_name)
    configs = [open_clip.get_pretrained_cfg(model_name, tag) for tag in tags]
    values = {(tuple(config["mean"]), tuple(config["std"])) for config in configs}
    return dict(zip(("mean", "std"), values.pop(), strict=True)) if len(values) == 1 else {}


def _from_tag(model_name: str, tag: str, cache_dir: str | None) -> Source:
    import open_clip

    published = open_clip.get_pretrained_cfg(model_name, tag)
    repository, _, name = str(published.get("hf_hub", "")).rpartition("/")
    folder = Path(cache_dir or "~/.cache/clip").expanduser()  # where open_clip puts other files
    if repository:
        folder = repository_folder(repository, cache_dir)
    try:
        path = fetch(lambda: open_clip.download_pretrained(published, cache_dir=cache_dir), folder)
    except Exception as error:  # the client's, or one of the network
        files = published["url"]
        if repository:
            files = f"{name or 'open_clip_model.safetensors (or open_clip_pytorch_model.bin)'}"
            files = f"{files} of {repository}"
        raise _unreachable(
            f"the weights of {model_name!r} ({tag})",
            files,
            f"FrozenCLIP.from_pretrained({model_name!r}, '/path/to/that/file')",
            error,
        ) from error
    config = open_clip.get_model_config(model_name)
    return Source(f"{model_name}/{tag}", config, Path(path), published)


def _from_hub(model_name: str, cache_dir: str | None) -> Source:
    repository = model_name.removeprefix("hf-hub:")
    optional = (*PROCESSORS, *TOKENIZER_FILES)
    try:
        folder = fetch_files(repository, (CONFIGS, WEIGHTS), optional, cache_dir)
    except Exception as error:
        raise _unreachable(
            f"the weights of {model_name!r}",
            f"all files of {repository}",
            f"FrozenCLIP.from_pretrained('local-dir:FOLDER') with a copy of {repository}",
            error,
        ) from error
    return _from_folder(folder, model_name)


def _unreachable(what: str, files: str, remedy: str, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"{what} are not in the cache and could not be downloaded. Without a network: on a "
        f"machine that has one, fetch {files}, copy it here and call {remedy}; or copy the hub's "
        f"cache folder and pass it as cache_dir: {error}"
    )


def _from_folder(folder: Path, model_name: str) -> Source:
    """A folder of open_clip or transformers, or the hub's cache of such a one."""
    folder = _snapshot_in(folder.expanduser())
    config_path = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if config_path is None:
        raise FileNotFoundError(
            "`model_name` must be a folder with weights and open_clip_config.json, as open_clip's "
            "push_to_hf_hub.save_for_hf writes it, or config.json, as transformers' "
            f"CLIPModel.save_pretrained does, got {folder}"
        )
    content = read_json(config_path)
    weights = _weights_in(folder, "model_name")
    if "model_cfg" in content:
        config, preprocessing = content["model_cfg"], content.get("preprocess_cfg", {})
    else:
        try:
            config = states.config_from_transformers(content)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"`model_name` must be a CLIP, got {folder}; it is {error}") from error
        preprocessing = processor_values(folder)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = folder if has_tokenizer else None
    return Source(model_name, config, weights, preprocessing, tokenizer, "model_name")


def processor_values(folder: Path) -> dict[str, Any]:
    """Mean and std with which transformers normalises."""
    values: dict[str, Any] = {}
    for name in PROCESSORS:
        if (folder / name).is_file():
            content = read_json(folder / name)
            values |= content.get("image_processor", content)
    if values.get("do_normalize") is False:
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    names = {"mean": "image_mean", "std": "image_std"}
    return {ours: values[theirs] for ours, theirs in names.items() if theirs in values}


def _snapshot_in(folder: Path) -> Path:
    """Of the hub's cache of a repository the snapshot that is in use; else the folder itself."""
    snapshots = sorted((folder / "snapshots").glob("*"))
    main = folder / "refs" / "main"
    if len(snapshots) > 1 and main.is_file():
        return folder / "snapshots" / main.read_text(encoding="utf-8").strip()
    return snapshots[-1] if snapshots else folder


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        raise ValueError("it holds no object")
    except ValueError as error:
        raise ValueError(f"`model_name` must hold whole JSON files, got {path}: {error}") from error


def _weights_in(folder: Path, given_as: str) -> Path:
    folder = _snapshot_in(folder)
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        found = [path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES]
        if len(found) != 1:
            names = [path.name for path in found or sorted(folder.glob("*"))][:10]
            raise ValueError(
                f"`{given_as}` must be a folder with one file of PyTorch weights, such as "
                f"{WEIGHTS[0]} or model.safetensors, got {folder}, so the weights could not be "
                f"loaded; it holds {', '.join(names) or 'nothing'}"
            )
    return found[0]
