"""Find the files of a pretrained CLIP by its name, in a folder or on the hub."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .from_transformers import convert_config
from .hub import fetch, fetch_files, repository_folder

__all__ = [
    "TOKENIZER_FILES",
    "Source",
    "check_activation",
    "find_source",
    "processor_values",
    "read_json",
]

# In order of preference.
CONFIGS = ("open_clip_config.json", "config.json")
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the second in transformers 5
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model",
    "sentencepiece.bpe.model", "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".index.json")


@dataclass
class Source:
    """The files and settings of a CLIP."""

    name: str  # for messages and saved files
    config: dict[str, Any]  # open_clip's model_cfg
    weights: Path
    preprocessing: dict[str, Any] = field(default_factory=dict)  # mean and std, if known
    tokenizer: Path | None = None  # a folder with its files; None: those of the hub
    given_as: str = "pretrained"  # the argument that named the weights


def find_source(model_name: str, pretrained: str | Path | None, cache_dir: str | None) -> Source:
    """The files for the arguments of `FrozenCLIP.from_pretrained`, which lists the errors."""
    # Imported here, as the import takes seconds.
    import open_clip

    if model_name.startswith("hf-hub:"):
        return _from_hub(model_name, cache_dir)
    known = open_clip.list_models()
    folder = Path(model_name.removeprefix("local-dir:")).expanduser()
    if model_name.startswith("local-dir:") or (model_name not in known and folder.is_dir()):
        return _from_folder(folder, model_name)
    name = _known_name(model_name, known)
    if pretrained is None:
        raise ValueError(
            "`pretrained` must be a tag or a checkpoint file, got None: a CLIP without trained "
            "weights gives no training signal; pass one of "
            f"open_clip.list_pretrained_tags_by_model({name!r})"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    path = Path(pretrained).expanduser()
    if path.is_dir() and pretrained not in tags:
        path = _weights_in(_snapshot_in(path), "pretrained")
    config = open_clip.get_model_config(name)
    if path.is_file():
        return Source(f"{name}/{pretrained}", config, path, _usual_preprocessing(name, tags))
    if isinstance(pretrained, Path) or pretrained.endswith(SUFFIXES):
        raise FileNotFoundError(
            f"`pretrained` must be an existing file or a tag, got {pretrained}; check the path"
        )
    if pretrained not in tags:
        raise ValueError(
            f"`pretrained` must be a checkpoint file or a tag of {name!r} "
            f"({', '.join(tags) or 'it has none'}), got {pretrained!r}"
        )
    published = open_clip.get_pretrained_cfg(name, pretrained)
    check_activation(name, config, repr(pretrained), bool(published.get("quick_gelu")))
    path = _download(name, pretrained, published, cache_dir)
    return Source(f"{name}/{pretrained}", config, path, published)


def _known_name(model_name: str, known: list[str]) -> str:
    """open_clip's name of the model. OpenAI's names, such as ViT-L/14@336px, mean QuickGELU."""
    name = model_name
    if "/" in name:
        name = f"{name.replace('/', '-').replace('@336px', '-336')}-quickgelu"
    if name in known:
        return name
    if Path(model_name).expanduser().is_file():
        raise ValueError(
            f"`model_name` must name the architecture, got the file {model_name}; write "
            f"FrozenCLIP.from_pretrained('ViT-B-32-quickgelu', {model_name!r}) with the name of "
            "its model"
        )
    close = difflib.get_close_matches(model_name, known) or known[:5]
    raise ValueError(
        f"`model_name` must be one of open_clip.list_models(), one of OpenAI's names (ViT-B/32), "
        f"'local-dir:FOLDER' or 'hf-hub:ORG/REPO', got {model_name!r}; similar names: "
        f"{', '.join(close)}"
    )


def check_activation(
    model_name: str, config: dict[str, Any], weights: str, quick_gelu: bool
) -> None:
    """Raise a ValueError if the weights were trained with another activation than the model's."""
    if quick_gelu != bool(config.get("quick_gelu")):
        activation, remedy = "GELU", model_name.removesuffix("-quickgelu")
        if quick_gelu:
            activation, remedy = "QuickGELU", f"{model_name}-quickgelu"
        raise ValueError(
            f"`model_name` must have the activation that {weights} was trained with "
            f"({activation}), got {model_name!r}, which would silently give wrong embeddings; "
            f"use {remedy!r}"
        )


def _usual_preprocessing(model_name: str, tags: list[str]) -> dict[str, Any]:
    """Mean and std of the model's published weights, if all tags have the same; else empty."""
    import open_clip

    configs = [open_clip.get_pretrained_cfg(model_name, tag) for tag in tags]
    values = {(tuple(config["mean"]), tuple(config["std"])) for config in configs}
    return dict(zip(("mean", "std"), values.pop(), strict=True)) if len(values) == 1 else {}


def _download(model_name: str, tag: str, published: dict[str, Any], cache_dir: str | None) -> Path:
    import open_clip

    repository, _, name = str(published.get("hf_hub", "")).rpartition("/")
    if repository:
        folder = repository_folder(repository, cache_dir)
        name = name or "open_clip_model.safetensors (or open_clip_pytorch_model.bin)"
        files = f"{name} of {repository}"
    else:
        folder = Path(cache_dir or "~/.cache/clip").expanduser()  # open_clip's default
        files = published["url"]
    remedy = f"FrozenCLIP.from_pretrained({model_name!r}, '/path/to/that/file')"
    with _within_reach(f"{model_name!r} ({tag})", files, remedy):
        return Path(
            fetch(lambda: open_clip.download_pretrained(published, cache_dir=cache_dir), folder)
        )


def _from_hub(model_name: str, cache_dir: str | None) -> Source:
    repository = model_name.removeprefix("hf-hub:")
    optional = (*PROCESSORS, *TOKENIZER_FILES)
    remedy = f"FrozenCLIP.from_pretrained('local-dir:FOLDER') with a copy of {repository}"
    with _within_reach(repr(model_name), f"all files of {repository}", remedy):
        folder = fetch_files(repository, (CONFIGS, WEIGHTS), optional, cache_dir)
    return _from_folder(folder, model_name)


@contextmanager
def _within_reach(what: str, files: str, remedy: str) -> Iterator[None]:
    """Turn a failed download into an error that says how to load the files without one."""
    try:
        yield
    except Exception as error:  # of the client or the network
        raise FileNotFoundError(
            f"the weights of {what} are not in the cache and could not be downloaded. On a machine "
            f"with a network, fetch {files}, copy it here and call {remedy}; or copy the hub's "
            f"cache folder here and pass it as cache_dir: {error}"
        ) from error


def _from_folder(folder: Path, model_name: str) -> Source:
    """The source in a folder of open_clip or transformers, or in the hub's cache of one."""
    folder = _snapshot_in(folder)
    config_path = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if config_path is None:
        raise FileNotFoundError(
            "`model_name` must be a folder with weights and either open_clip_config.json, written "
            "by open_clip's push_to_hf_hub.save_for_hf, or config.json, written by transformers' "
            f"CLIPModel.save_pretrained, got {folder}"
        )
    content = read_json(config_path)
    weights = _weights_in(folder, "model_name")
    if "model_cfg" in content:
        config, preprocessing = content["model_cfg"], content.get("preprocess_cfg", {})
    else:
        try:
            config = convert_config(content)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"`model_name` must be a CLIP, got {folder}; it is {error}") from error
        preprocessing = processor_values(folder)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = folder if has_tokenizer else None
    return Source(model_name, config, weights, preprocessing, tokenizer, "model_name")


def processor_values(folder: Path) -> dict[str, Any]:
    """The mean and std of transformers' image processor in a folder, if there is one."""
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
    """The current snapshot if `folder` is the hub's cache of a repository, else `folder` itself."""
    snapshots = sorted((folder / "snapshots").glob("*"))
    main = folder / "refs" / "main"
    if len(snapshots) > 1 and main.is_file():
        return folder / "snapshots" / main.read_text(encoding="utf-8").strip()
    return snapshots[-1] if snapshots else folder


def _weights_in(folder: Path, given_as: str) -> Path:
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()][:1]
    found = found or [path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES]
    if len(found) != 1:
        names = [path.name for path in found or sorted(folder.glob("*"))][:10]
        raise ValueError(
            f"`{given_as}` must be a folder with one file of PyTorch weights, such as "
            f"{WEIGHTS[0]} or model.safetensors, got {folder}, whose weights could not be "
            f"loaded; it holds {', '.join(names) or 'nothing'}"
        )
    return found[0]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the folder `model_name`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise ValueError(
            f"`model_name` must be a folder with valid JSON files, got {path}: {error}; copy or "
            "download it again"
        ) from error
    return content
