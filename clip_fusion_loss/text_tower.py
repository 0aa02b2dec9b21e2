"""Embed texts: remove unknown words, tokenize, run the text tower."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks

__all__ = ["TextTower", "says_nothing"]

# Words, numbers and runs of symbols such as emoji, but not ordinary punctuation.
WORDS = re.compile(r"[^\W\d_]+|\d+|(?:[^\w\s.,;:!?'\"()\u2018\u2019\u201c\u201d-]|_)+")

# Words without a meaning of their own.
FUNCTION_WORDS = frozenset(("a", "an", "and", "at", "in", "of", "on", "or", "the", "to", "with"))


def says_nothing(text: str, vocabulary: frozenset[str]) -> bool:
    """Whether `text` has no word of `vocabulary`, apart from `FUNCTION_WORDS`."""
    return not vocabulary.difference(FUNCTION_WORDS) & set(WORDS.findall(text.lower()))


class TextTower:
    """A CLIP without its image tower, sharing its text weights, and its tokenizer.

    It is not a module, so that it is not moved, cast or saved with its owner.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[..., Tensor]) -> None:
        self.model: Any = copy.copy(model)
        # A new dictionary, as copy.copy shares it: deleting from it would change `model`.
        self.model._modules = {k: v for k, v in model._modules.items() if k != "visual"}
        self.model.eval().requires_grad_(False)
        self._tokenizer = tokenizer

    def embed(self, texts: list[str], name: str, vocabulary: frozenset[str] | None) -> Tensor:
        """(T, D) float32 unit vectors on the CPU; see `FrozenCLIP.encode_text`."""
        if vocabulary is not None:
            texts = _known_words(texts, name, vocabulary)
        tokens = self._tokenize(texts).to(next(self.model.parameters()).device)
        with torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu()

    def _tokenize(self, texts: list[str]) -> Tensor:
        """Tokens of `texts`; raises a ValueError for texts that open_clip would truncate."""
        tokens = self._tokenizer(texts)
        length = tokens.shape[1]
        whole = self._tokenizer(texts, context_length=4 * length)[:, :length]
        for text, cut in zip(texts, (whole != tokens).any(1).tolist(), strict=True):
            if cut:
                raise ValueError(
                    f"a text must have at most {length} tokens, start and end included, "
                    f"got {checks.shown(text)}; shorten it, or split it into an ensemble of texts"
                )
        return tokens


def _known_words(texts: list[str], name: str, vocabulary: frozenset[str]) -> list[str]:
    """The texts without the words that are not in `vocabulary`; warns of those."""
    unknown = sorted(set(WORDS.findall(" ".join(texts).lower())) - vocabulary)
    if unknown:
        checks.warn(
            f"the model {name!r} was not trained on {', '.join(map(repr, unknown))}; "
            "these words are removed from the text. Use words of encoder.vocabulary, "
            "or a real CLIP: FrozenCLIP.from_pretrained()"
        )
    return [
        WORDS.sub(lambda word: word[0] if word[0].lower() in vocabulary else "", text)
        for text in texts
    ]
