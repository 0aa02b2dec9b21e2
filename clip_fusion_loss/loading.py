"""Load a pretrained CLIP and its tokenizer: from files, from a folder or from the hub.

open_clip, or transformers for its own CLIPModel, builds the model. It is filled strictly with the
weights of a file that `archives` reads.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import checks
from .archives import read_tensors

__all__ = ["load_bundled_clip", "load_clip"]

BUNDLED = Path(__file__).parent / "assets" / "tiny_clip"

# Names of files, in order of preference.
CONFIGS = ("open_clip_config.json", "config.json")
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the second in transformers 5
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model",
    "sentencepiece.bpe.model", "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

# The prefix before an image tower's name: "module.", "state_dict.model.", ...
TOWER = re.compile(r"((?:.*?\.)?)(?:visual|vision_model)\.")

# What wrappers insert into names: DDP, torch.compile, FSDP, activation checkpointing.
WRAPPERS = re.compile(r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# Only OpenAI's archives have these. All of OpenAI's weights were trained with QuickGELU.
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")

# Masks and positions that older versions stored; the architecture determines them.
IGNORED = ("attn_mask", "position_ids")

ANSWER_LIMIT = 5.0  # seconds to wait for the hub's first answer; its client retries for a minute


def load_clip(
    model_name: str,
    pretrained: str | Path | None = None,
    cache_dir: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> tuple[str, nn.Module, Callable[..., Tensor]]:
    """Name, model and tokenizer; see `FrozenCLIP.from_pretrained`."""
    checks.check_type("model_name", model_name, str)
    if pretrained is not None:
        checks.check_path("pretrained", pretrained)
    cache = None if cache_dir is None else str(checks.check_path("cache_dir", cache_dir))
    if tokenizer is not None:
        tokenizer = checks.check_path("tokenizer", tokenizer)
        if not tokenizer.is_dir():
            raise FileNotFoundError(f"`tokenizer` must be an existing folder, got {tokenizer}")
    folder = _folder_of(model_name, cache)
    if folder is None:
        name, weights, config, preprocessing = _named(model_name, pretrained, cache)
    else:
        name, weights = model_name, _first(folder, WEIGHTS)
        content = _read_json(_first(folder, CONFIGS))
        config, preprocessing = content.get("model_cfg", {}), content.get("preprocess_cfg", {})
        if tokenizer is None and any((folder / file).is_file() for file in TOKENIZER_FILES):
            tokenizer = folder
    state = _read_state(weights)
    model: Any
    if any(key.startswith("vision_model.") for key in state):
        model = _build_transformers(weights, None if folder else (model_name, config))
        length = model.text_model.config.max_position_embeddings
        tokenize = _tokenizer({"context_length": length}, name, None, None)
        preprocessing = {**preprocessing, **_of_processor(weights.parent)}
    else:
        if any(mark in state for mark in OPENAI_MARKS) and not config.get("quick_gelu"):
            config["quick_gelu"] = True
            name = f"{model_name}-quickgelu/{pretrained}"
        tokenize = _tokenizer(config.get("text_cfg", {}), name, tokenizer, cache)
        model = _build(config, name)
    _fill(model, state, weights, name)
    known = {key: preprocessing.get(key) for key in ("mean", "std")}
    model.visual.preprocess_cfg = {key: value for key, value in known.items() if value}
    return name, model, tokenize


def load_bundled_clip() -> tuple[nn.Module, Callable[..., Tensor], frozenset[str]]:
    """The model that comes with the package, its tokenizer and its vocabulary.

    Raises:
        ValueError: a file is missing or damaged.
    """
    try:
        _, model, tokenizer = load_clip(f"local-dir:{BUNDLED}")
        words = (BUNDLED / "vocabulary.txt").read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        reason = f"the bundled CLIP in {BUNDLED} is damaged: {error}; install the package again"
        raise ValueError(reason) from error
    return model, tokenizer, frozenset(words)


def _folder_of(model_name: str, cache_dir: str | None) -> Path | None:
    """The folder with config and weights that `model_name` means; None for open_clip's names."""
    import open_clip

    if model_name.startswith("hf-hub:"):
        repository = model_name.removeprefix("hf-hub:")
        remedy = f"FrozenCLIP.from_pretrained('local-dir:FOLDER') with a copy of {repository}"
        optional = (*PROCESSORS, *TOKENIZER_FILES)
        return _fetch(repository, (CONFIGS, WEIGHTS), optional, cache_dir, "all files", remedy)
    folder = Path(model_name.removeprefix("local-dir:")).expanduser()
    named = model_name in open_clip.list_models() or not folder.is_dir()
    if named and not model_name.startswith("local-dir:"):
        return None
    snapshots = sorted((folder / "snapshots").glob("*"))  # of the hub's cache
    main = folder / "refs" / "main"
    if main.is_file():
        return folder / "snapshots" / main.read_text(encoding="utf-8").strip()
    return snapshots[-1] if snapshots else folder


def _first(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(path.name for path in sorted(folder.glob("*"))[:10])
    raise FileNotFoundError(
        f"`model_name` must be a folder of open_clip or of a transformers CLIPModel with "
        f"{' or '.join(names)}, got {folder}, which holds {found or 'nothing'}"
    )


def _named(
    model_name: str, pretrained: str | Path | None, cache_dir: str | None
) -> tuple[str, Path, dict[str, Any], dict[str, Any]]:
    """Name, weights, open_clip's model_cfg, and mean and std as far as they are known."""
    import open_clip

    name = model_name
    if "/" in name:  # OpenAI's names, such as ViT-L/14@336px, mean QuickGELU
        name = f"{name.replace('/', '-').replace('@336px', '-336')}-quickgelu"
    known = open_clip.list_models()
    if name not in known:
        close = ", ".join(difflib.get_close_matches(model_name, known) or known[:5])
        raise ValueError(
            "`model_name` must be one of open_clip.list_models(), one of OpenAI's names "
            "(ViT-B/32), 'local-dir:FOLDER' or 'hf-hub:ORG/REPO', got "
            f"{model_name!r}; similar names: {close}; a file of weights is passed as `pretrained`"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    config = open_clip.get_model_config(name)
    if pretrained in tags:
        published = open_clip.get_pretrained_cfg(name, pretrained)
        _check_activation(name, config, repr(pretrained), bool(published.get("quick_gelu")))
        repository, _, file = published["hf_hub"].rpartition("/")
        names = [f"{file.removesuffix('.bin')}.safetensors", file] if file else WEIGHTS[:3]
        remedy = f"FrozenCLIP.from_pretrained({name!r}, '/path/to/that/file')"
        folder = _fetch(repository, (names,), (), cache_dir, names[0], remedy)
        return f"{name}/{pretrained}", _first(folder, names), config, published
    path = Path(pretrained or "").expanduser()
    if not path.is_file():
        wrong = FileNotFoundError if path.suffix in SUFFIXES else ValueError
        raise wrong(
            f"`pretrained` must be an existing file of weights or a tag of {name!r} "
            f"({', '.join(tags) or 'it has none'}), got {pretrained!r}; check the path, and pass "
            "folders as model_name='local-dir:FOLDER'"
        )
    # The mean and std of the model's published weights, if all of them have the same.
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    values = {(tuple(each["mean"]), tuple(each["std"])) for each in published}
    mean, std = values.pop() if len(values) == 1 else (None, None)
    return f"{name}/{pretrained}", path, config, {"mean": mean, "std": std}


def _check_activation(name: str, config: dict[str, Any], weights: str, quick_gelu: bool) -> None:
    if quick_gelu == bool(config.get("quick_gelu")):
        return
    kind, remedy = "GELU", name.removesuffix("-quickgelu")
    if quick_gelu:
        kind, remedy = "QuickGELU", f"{name}-quickgelu"
    raise ValueError(
        f"`model_name` must have the activation that {weights} was trained with ({kind}), got "
        f"{name!r}, which would silently give wrong embeddings; use {remedy!r}"
    )


def _read_state(weights: Path) -> dict[str, Tensor]:
    """The weights of the one CLIP in a file."""
    try:
        tensors = read_tensors(weights)
        matches = (TOWER.match(name) for name in tensors)
        prefixes = {match[1] for match in matches if match and "optim" not in match[1]}
        if len(prefixes) != 1:
            found = f"a file of {len(prefixes)} CLIPs, under {sorted(prefixes)}"
            if not prefixes:
                found = f"without an image tower, with {list(tensors)[:3]}"
            raise ValueError(f"{found}; save the state_dict() of one CLIP to a file of its own")
    except ValueError as error:
        raise ValueError(
            f"`pretrained` must hold the weights of a CLIP, got {weights}; it is {error}"
        ) from error
    prefix = prefixes.pop()
    return {
        WRAPPERS.sub("", name.removeprefix(prefix)): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves out random initialisation, as weights are loaded after it.

    It takes time and draws from the caller's random numbers, whose state cannot be saved and
    restored safely while other threads draw.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options, name = kwargs or {}, getattr(function, "__name__", "")
        if name in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"):
            return args[0] if args else options["tensor"]
        return (torch.zeros if name in ("rand", "randn") else function)(*args, **options)


def _build(config: dict[str, Any], name: str) -> Any:
    """The architecture, as `open_clip.create_model` builds it, which logs and warns."""
    import open_clip

    config = copy.deepcopy(config)
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
        with _NoRandomNumbers():
            return kind(**config).float()
    except Exception as error:  # of open_clip, timm or transformers
        raise ValueError(f"open_clip cannot build {name!r}: {error!r}") from error


class _TransformersCLIP(nn.Module):
    """A CLIPModel of transformers with the image tower and the method of open_clip's CLIPs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual: Any = _TransformersTower()
        self.visual.vision_model = model.vision_model
        self.visual.visual_projection = model.visual_projection
        self.visual.image_size = model.config.vision_config.image_size
        self.text_model: Any = model.text_model
        self.text_projection = model.text_projection

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text_projection(self.text_model(input_ids=tokens).pooler_output)


class _TransformersTower(nn.Module):
    vision_model: Any
    visual_projection: nn.Linear

    def forward(self, images: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixel_values=images).pooler_output)


def _build_transformers(weights: Path, named: tuple[str, dict[str, Any]] | None) -> Any:
    """The CLIPModel whose config.json is beside `weights`; like open_clip's model `named`."""
    path = weights.parent / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            "`pretrained` must have its config.json beside it, as the weights of a transformers "
            f"CLIPModel, got {weights}; copy it there"
        )
    content = _read_json(path)
    from transformers import CLIPConfig, CLIPModel

    try:
        if content.get("model_type") != "clip":
            raise ValueError(f"its type is {content.get('model_type')!r}, not 'clip'")
        config = CLIPConfig(**content)
        with _NoRandomNumbers():
            model = _TransformersCLIP(CLIPModel(config).float())
    except Exception as error:  # transformers can raise nearly anything for a wrong config
        raise ValueError(
            f"`model_name` must be a transformers CLIPModel, got {path}: {error!r}"
        ) from error
    vision: Any = config.vision_config
    if named:
        _check_activation(*named, str(weights), vision.hidden_act == "quick_gelu")
        ours = named[1]["vision_cfg"]
        if (vision.hidden_size, vision.patch_size) != (ours.get("width"), ours.get("patch_size")):
            raise ValueError(
                f"`pretrained` must hold weights that fit {named[0]!r}, got {weights}, whose "
                f"{path} has another width or patch size; pass model_name='local-dir:FOLDER'"
            )
    return model


def _fill(model: nn.Module, state: dict[str, Tensor], weights: Path, name: str) -> None:
    """Load all weights of a model, and no others."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    if isinstance(model, _TransformersCLIP):
        state = {re.sub("^(?=vis)", "visual.", key): value for key, value in state.items()}
    else:
        state = convert_state_dict(model, state)  # of Apple's MobileCLIP
        if not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
    state = {
        key: value
        for key, value in state.items()
        if not key.endswith(IGNORED) and not key.startswith(("logit_", *OPENAI_MARKS))
    }
    for key, value in model.state_dict().items():
        if key.startswith("logit_"):  # scale and bias of logits, which are not used here
            state[key] = value
        elif key.endswith("num_batches_tracked"):
            state.setdefault(key, value)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"`pretrained` must hold weights that fit {name!r}, got {weights}: "
            f"{checks.shorten(' '.join(str(error).split()))}; pass the name of their model"
        ) from error


def _of_processor(folder: Path) -> dict[str, Any]:
    """The mean and std of transformers' image processor in a folder, if there is one."""
    values: dict[str, Any] = {}
    for path in (folder / name for name in PROCESSORS):
        if path.is_file():
            content = _read_json(path)
            values |= content.get("image_processor", content)
    if values.get("do_normalize") is False:
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return {key: values[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in values}


def _tokenizer(
    text: dict[str, Any], name: str, folder: Path | None, cache_dir: str | None
) -> Callable[..., Tensor]:
    """CLIP's tokenizer; or the one that the model's text_cfg names, from `folder` or the hub."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    options = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    repository = text.get("hf_tokenizer_name")
    if not repository:
        return SimpleTokenizer(**options)
    files = f"{', '.join(TOKENIZER_FILES[:3])} (the tokenizer of {name!r})"
    if folder is None:
        optional = (*TOKENIZER_FILES, "config.json")
        remedy = "FrozenCLIP.from_pretrained(..., tokenizer='FOLDER')"
        folder = _fetch(repository, (TOKENIZER_FILES,), optional, cache_dir, files, remedy)
    try:
        return HFTokenizer(str(folder), tokenizer_mode=text.get("tokenizer_mode"), **options)
    except Exception as error:  # of transformers, or that it is not installed
        kind = ImportError if isinstance(error, ImportError) else ValueError
        raise kind(
            f"`tokenizer` must be a folder with {files}, to be read by transformers and "
            f"sentencepiece, got {folder}: {error}"
        ) from error


def _fetch(
    repository: str, wanted: Sequence[Sequence[str]], optional: Sequence[str],
    cache_dir: str | None, what: str, remedy: str,
) -> Path:  # fmt: skip
    """The folder with files of a repository: from the hub's cache, or else downloaded.

    Of each list in `wanted` it has the first file that exists, and of `optional` all that exist.
    The FileNotFoundError names the files as `what`, and `remedy`, the call that takes them.
    """
    from huggingface_hub import constants, get_session, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def first(names: Sequence[str], local: bool) -> Path:
        for name in names:
            with suppress(EntryNotFoundError):
                options: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local}
                return Path(hf_hub_download(repository, name, **options)).parent
        raise FileNotFoundError(f"it has none of {', '.join(names)}")

    for local in (True, False):
        try:
            if not local and not constants.HF_HUB_OFFLINE:
                get_session().head(constants.ENDPOINT, timeout=ANSWER_LIMIT)
            folders = [first(names, local) for names in wanted]
            for name in optional:
                with suppress(FileNotFoundError):
                    first([name], local)
            return folders[0]
        except Exception as error:  # of the client or the network
            failure = error
    raise FileNotFoundError(
        f"{what} of {repository} cannot be downloaded and is not in the cache. On a machine with a "
        f"network, fetch it, copy it here and call {remedy}; or copy the hub's cache folder here "
        f"and pass it as cache_dir: {failure}"
    ) from failure


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`model_name` must be a folder with valid JSON files, got {path}: {error}; copy or "
            "download it again"
        ) from error
