"""Load a pretrained CLIP and its tokenizer: from files, from a folder or from the hub.

open_clip, or transformers for its own CLIPModel, builds the model. It is filled strictly with the
weights of a file that `archives` reads.
"""

from __future__ import annotations

import copy
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

BUNDLED = Path(__file__).parent / "assets" / "tiny_clip"

# Names of files, in order of preference: of open_clip first, then of transformers.
CONFIGS = ("open_clip_config.json", "config.json")
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the second in transformers 5

# The prefix before an image tower's name: "module.", "state_dict.model.", ...
TOWER = re.compile(r"((?:.*?\.)?)(?:visual|vision_model)\.")

# What wrappers insert into names: DDP, torch.compile, FSDP, activation checkpointing.
WRAPPERS = re.compile(r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# Only OpenAI's archives have these. All of OpenAI's weights were trained with QuickGELU.
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")

# What is not used here, or is determined by the architecture.
IGNORED = re.compile(
    r"logit_.*|(.*\.)?(num_batches_tracked|attn_mask|position_ids)|" + "|".join(OPENAI_MARKS)
)

ANSWER_LIMIT = 5.0  # seconds to wait for the hub's first answer; its client retries for a minute


def load_clip(
    model_name: str, pretrained: str | Path | None = None, cache_dir: str | Path | None = None
) -> tuple[str, nn.Module, Callable[..., Tensor]]:
    """Name, model and tokenizer; see `FrozenCLIP.from_pretrained`."""
    checks.check_type("model_name", model_name, str)
    cache = None if cache_dir is None else str(checks.check_path("cache_dir", cache_dir))
    folder = _folder_of(model_name, cache)
    if folder is None:
        name, weights, config, preprocessing = _named(model_name, pretrained, cache)
    else:
        name, weights = model_name, _first(folder, WEIGHTS)
        config = _read_json(_first(folder, CONFIGS))
        preprocessing = config.get("preprocess_cfg") or _of_processor(folder)
        config = config.get("model_cfg", config)
    state = _read_state(weights)
    if any(mark in state for mark in OPENAI_MARKS) and not config.get("quick_gelu"):
        config["quick_gelu"] = True
        name = f"{model_name}-quickgelu/{pretrained}"
    model: Any = _build(config, name)
    _fill(model, state, weights, name)
    model = _TransformersCLIP(model) if "model_type" in config else model
    known = {key: preprocessing[key] for key in ("mean", "std") if preprocessing.get(key)}
    model.visual.preprocess_cfg = known
    # As in open_clip, a folder that the caller names has the files of its tokenizer.
    local = None if model_name.startswith("hf-hub:") else folder
    return name, model, _tokenizer(config, local, cache)


def load_bundled_clip() -> tuple[nn.Module, Callable[..., Tensor], frozenset[str]]:
    """The bundled CLIP: model, tokenizer and vocabulary."""
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
        remedy = "all its files and call FrozenCLIP.from_pretrained('local-dir:FOLDER')"
        wanted = (CONFIGS, WEIGHTS, (*PROCESSORS, CONFIGS[0]))  # open_clip's has no processor
        return _fetch(model_name.removeprefix("hf-hub:"), wanted, cache_dir, remedy)
    folder = Path(model_name.removeprefix("local-dir:")).expanduser()
    if model_name.startswith("local-dir:"):
        return folder
    return folder if folder.is_dir() and model_name not in open_clip.list_models() else None


def _first(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(path.name for path in sorted(folder.glob("*"))[:10]) or "nothing"
    raise FileNotFoundError(
        f"`model_name` must be a folder of a CLIP with {' or '.join(names)}, got {folder}, which "
        f"holds {found}"
    )


def _named(
    model_name: str, pretrained: str | Path | None, cache_dir: str | None
) -> tuple[str, Path, dict[str, Any], dict[str, Any]]:
    """Name, weights, open_clip's model_cfg, and mean and std as far as they are known."""
    import open_clip

    name = model_name
    if "/" in name:  # OpenAI's names, such as ViT-L/14@336px, mean QuickGELU
        name = f"{name.replace('/', '-').replace('@336px', '-336')}-quickgelu"
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise ValueError(
            "`model_name` must be one of open_clip.list_models(), 'local-dir:FOLDER' or "
            f"'hf-hub:ORG/REPO', got {model_name!r}; a file of weights is passed as `pretrained`"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained in tags:
        published = open_clip.get_pretrained_cfg(name, pretrained)
        quick_gelu = bool(published.get("quick_gelu"))
        if quick_gelu != bool(config.get("quick_gelu")):
            remedy = f"{name}-quickgelu" if quick_gelu else name.removesuffix("-quickgelu")
            raise ValueError(
                f"`model_name` must have the activation that {pretrained!r} was trained with "
                f"({'QuickGELU' if quick_gelu else 'GELU'}), got {name!r}; use {remedy!r}"
            )
        repository, _, file = published["hf_hub"].rpartition("/")
        files = [f"{file.removesuffix('.bin')}.safetensors", file] if file else WEIGHTS[:3]
        remedy = f"{files[0]} and call FrozenCLIP.from_pretrained({name!r}, '/path/to/it')"
        folder = _fetch(repository, (files,), cache_dir, remedy)
        return f"{name}/{pretrained}", _first(folder, files), config, published
    path = checks.check_path("pretrained", pretrained or "")
    if not path.is_file():
        wrong = FileNotFoundError if path.suffix else ValueError
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


def _read_state(weights: Path) -> dict[str, Tensor]:
    """The weights of the one CLIP in a file."""
    tensors = read_tensors(weights)
    matches = (TOWER.match(name) for name in tensors)
    prefixes = {match[1] for match in matches if match and "optim" not in match[1]}
    if len(prefixes) != 1:
        several = f"{len(prefixes)} CLIPs, under {sorted(prefixes)}"
        found = several if prefixes else f"no image tower, but {list(tensors)[:3]}"
        raise ValueError(
            f"`pretrained` must hold the weights of one CLIP, got {weights} with {found}; save the "
            "state_dict() of the CLIP to a file of its own"
        )
    (prefix,) = prefixes
    return {
        WRAPPERS.sub("", name.removeprefix(prefix)): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves out random initialisation, which would draw from the caller's random numbers."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options, name = kwargs or {}, getattr(function, "__name__", "")
        if name in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"):
            return args[0] if args else options["tensor"]
        return (torch.zeros if name in ("rand", "randn") else function)(*args, **options)


def _build(config: dict[str, Any], name: str) -> Any:
    """The architecture; of open_clip as its `create_model` builds it, which logs and warns."""
    import open_clip

    config = copy.deepcopy(config)
    try:
        with _NoRandomNumbers():
            if config.get("model_type") == "clip":
                import transformers

                return transformers.CLIPModel(transformers.CLIPConfig(**config)).float()
            vision, text = config["vision_cfg"], config["text_cfg"]
            custom_text = config.pop("custom_text", False) or "hf_model_name" in text
            kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
            kind = open_clip.CoCa if "multimodal_cfg" in config else kind
            vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
            return kind(**config).float()
    except Exception as error:  # of open_clip, timm or transformers
        raise ValueError(
            f"`model_name` must be a CLIP of open_clip or a transformers CLIPModel, got {name!r} "
            f"of type {config.get('model_type')!r}, which cannot be built: {error!r}"
        ) from error


class _TransformersCLIP(nn.Module):
    """A CLIPModel of transformers with the image tower and the method of open_clip's CLIPs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual: Any = _TransformersTower()
        self.visual.vision_model = model.vision_model
        self.visual.visual_projection = model.visual_projection
        self.visual.image_size = model.config.vision_config.image_size
        self.text_model = model.text_model
        self.text_projection = model.text_projection

    def encode_text(self: Any, tokens: Tensor) -> Tensor:
        return self.text_projection(self.text_model(input_ids=tokens).pooler_output)


class _TransformersTower(nn.Module):
    def forward(self: Any, images: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixel_values=images).pooler_output)


def _of_processor(folder: Path) -> dict[str, Any]:
    """The mean and std of transformers' image processor in a folder, if there is one."""
    values: dict[str, Any] = {}
    for path in (folder / name for name in PROCESSORS):
        if path.is_file():
            content = _read_json(path)
            values |= content.get("image_processor", content)
    return {key: values.get(f"image_{key}") for key in ("mean", "std")}


def _fill(model: nn.Module, state: dict[str, Tensor], weights: Path, name: str) -> None:
    """Load all weights of a model, and no others."""
    from open_clip.model import convert_to_custom_text_state_dict

    if hasattr(model, "text"):
        state = convert_to_custom_text_state_dict(state)
    state = {key: value for key, value in state.items() if not IGNORED.fullmatch(key)}
    kept = {key: value for key, value in model.state_dict().items() if IGNORED.fullmatch(key)}
    try:
        model.load_state_dict(state | kept)
    except RuntimeError as error:
        raise ValueError(
            f"`pretrained` must hold weights that fit {name!r}, got {weights}: "
            f"{checks.shorten(' '.join(str(error).split()))}; pass the name of their model, or "
            "weights of transformers with their config.json as model_name='local-dir:FOLDER'"
        ) from error


def _tokenizer(
    config: dict[str, Any], folder: Path | None, cache_dir: str | None
) -> Callable[..., Tensor]:
    """CLIP's tokenizer; or the one that the model's config names, from `folder` or the hub."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text = config.get("text_cfg") or config.get("text_config", {})
    length = text.get("context_length", text.get("max_position_embeddings", 77))
    options = {"context_length": length, **text.get("tokenizer_kwargs", {})}
    if not text.get("hf_tokenizer_name"):
        return SimpleTokenizer(**options)
    source = str(folder or text["hf_tokenizer_name"])
    mode = text.get("tokenizer_mode")
    return HFTokenizer(source, cache_dir=cache_dir, tokenizer_mode=mode, **options)


def _fetch(
    repository: str, wanted: Sequence[Sequence[str]], cache_dir: str | None, remedy: str
) -> Path:
    """The folder with the first file of each list in `wanted`, from the cache or the hub."""
    from huggingface_hub import constants, get_session, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def first(names: Sequence[str], local: bool) -> Path:
        for name in names:
            with suppress(EntryNotFoundError):
                path = hf_hub_download(
                    repository, name, cache_dir=cache_dir, local_files_only=local
                )
                return Path(path).parent
        raise FileNotFoundError(f"it has none of {', '.join(names)}")

    # Last without the processor, which a repository may lack.
    for local, lists in ((True, wanted), (False, wanted), (True, wanted[:2])):
        try:
            if not local and not constants.HF_HUB_OFFLINE:
                get_session().head(constants.ENDPOINT, timeout=ANSWER_LIMIT)
            folders = [first(names, local) for names in lists]
            return folders[0]
        except Exception as error:  # of the client or the network
            if lists is wanted:
                failure = error
    raise FileNotFoundError(
        f"{repository} cannot be downloaded and is not in the cache. On a machine with a network "
        f"fetch {remedy}; or copy the hub's cache folder here and pass it as cache_dir: {failure}"
    ) from failure


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        reason = f"`model_name` must be a folder with valid JSON files, got {path}: {error}"
        raise ValueError(reason) from error
