"""A pretrained CLIP from wherever it is: a name goes in, a model and its tokenizer come out.

The way there: `sources` says which files, `hub` fetches them, `checkpoints` reads their tensors,
`from_transformers` gives those of transformers open_clip's names, `build` makes the model that
they fill, `tokenizer` what goes with it. `kinds` has the words for weights that do not fit.
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
            raise FileNotFoundError(f"`tokenizer` must be an existing folder, got {tokenizer}")
    source = find_source(model_name, pretrained, cache)
    tokenize = find_tokenizer(source, tokenizer, cache)
    model = build_model(source, cache)
    return source.name, model, tokenize


def load_embedded_clip() -> tuple[nn.Module, Callable[..., Tensor], frozenset[str]]:
    """The model that comes with the package, its tokenizer and its words.

    Raises:
        ValueError: its files are not those that SHA256SUMS lists.
    """
    try:
        for line in (EMBEDDED / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
            digest, name = line.split()
            if hashlib.sha256((EMBEDDED / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{name} is not as it was shipped")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the embedded CLIP in {EMBEDDED} is damaged: {error}; install the package again"
        ) from error
    _, model, tokenizer = load_clip(f"local-dir:{EMBEDDED}")
    words = (EMBEDDED / "vocabulary.txt").read_text(encoding="utf-8").split()
    return model, tokenizer, frozenset(words)
