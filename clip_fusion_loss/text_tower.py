"""Texts to vectors: words that the model knows, tokens, the text tower."""

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

# Words, numbers and runs of symbols such as emoji; ordinary punctuation is none of them.
WORDS = re.compile(r"[^\W\d_]+|\d+|(?:[^\w\s.,;:!?'\"()\u2018\u2019\u201c\u201d-]|_)+")

# Words that say nothing by themselves.
FUNCTION_WORDS = frozenset(("a", "an", "and", "at", "in", "of", "on", "or", "the", "to", "with"))


def says_nothing(text: str, vocabulary: frozenset[str]) -> bool:
    """Whether `text` has no word of `vocabulary`, articles and prepositions aside."""
    return not vocabulary.difference(FUNCTION_WORDS) & set(WORDS.findall(text.lower()))


class TextTower:
    """A view of a CLIP that shares its text weights, and the tokenizer belonging to it.

    It is no module, so that nothing moves, casts or saves it with its owner.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[..., Tensor]) -> None:
        self.model: Any = copy.copy(model)
        # copy.copy shares the dictionary of children; deleting from that would maim `model`.
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
        """Tokens of `texts`; refuses what open_clip would cut off silently."""
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
    """The texts without other words, of which it warns."""
    unknown = sorted(set(WORDS.findall(" ".join(texts).lower())) - vocabulary)
    if unknown:
        checks.warn(
            f"the model {name!r} was not trained on {', '.join(map(repr, unknown))}; "
            "such words mean nothing to it and are left out. Use words of encoder.vocabulary, "
            "or a real CLIP: FrozenCLIP.from_pretrained()"
        )
    return [
        WORDS.sub(lambda word: word[0] if word[0].lower() in vocabulary else "", text)
        for text in texts
    ]
