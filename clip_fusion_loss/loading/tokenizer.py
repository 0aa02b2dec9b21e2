"""Find the tokenizer of a CLIP: the standard one of open_clip, or one from the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from .hub import fetch_files
from .sources import TOKENIZER_FILES, Source

__all__ = ["find_tokenizer"]


def find_tokenizer(
    source: Source, given: str | Path | None, cache_dir: str | None
) -> Callable[..., Tensor]:
    """The tokenizer that the model was trained with.

    Args:
        source: the model.
        given: a folder with the files of a tokenizer from the hub, to use instead of a download.
        cache_dir: None uses the hub's default.

    Raises:
        FileNotFoundError: the files are not in the cache and cannot be downloaded.
        ImportError: the tokenizer needs transformers, which is not installed.
    """
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
            f"{TOKENIZER_FILES[2]} of {repository or 'it'} from the hub into a folder, copy the "
            f"folder here and pass it as tokenizer='FOLDER': {error}"
        ) from error
