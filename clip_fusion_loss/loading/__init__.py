"""Load a pretrained CLIP and its tokenizer by name, from files or from the Hugging Face hub.

`sources` finds the files, `hub` fetches them and `checkpoints` reads their tensors.
`from_transformers` renames those of transformers, `build` makes the model and `tokenizer` its
tokenizer. `kinds` describes weights that do not fit, for error messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from .. import checks
from .build import build_model
from .sources import find_source
from .tokenizer import find_tokenizer

__all__ = ["load_clip", "load_embedded_clip"]

EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny_clip"


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
            raise FileNotFoundError(
                f"`tokenizer` must be an existing folder, got {tokenizer}; check the path"
            )
    source = find_source(model_name, pretrained, cache)
    tokenize = find_tokenizer(source, tokenizer, cache)
    model = build_model(source, cache)
    return source.name, model, tokenize


def load_embedded_clip() -> tuple[nn.Module, Callable[..., Tensor], frozenset[str]]:
    """The model that comes with the package, its tokenizer and its vocabulary.

    Raises:
        ValueError: a file is missing or does not match SHA256SUMS.
    """
    try:
        for line in (EMBEDDED / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
            digest, name = line.split()
            if hashlib.sha256((EMBEDDED / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{name} has another checksum than the released file")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the embedded CLIP in {EMBEDDED} is damaged: {error}; install the package again"
        ) from error
    _, model, tokenizer = load_clip(f"local-dir:{EMBEDDED}")
    words = (EMBEDDED / "vocabulary.txt").read_text(encoding="utf-8").split()
    return model, tokenizer, frozenset(words)
