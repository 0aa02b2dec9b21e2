"""Captions that say exactly what they assert, and the exact truth of each against an image.

An image is described by a handful of attributes, each known, partly known or unknown; a caption
asserts something about some of them. Both are written as a boolean mask over all attribute
values: the values *possible* for the image, the values *allowed* by the caption. Then

    true     everything possible is allowed     (for every attribute)
    false    nothing possible is allowed        (for some attribute)
    unknown  otherwise

so no pair is ever both true and false, and nothing is taught that was not known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

# Attribute -> values. The order fixes the columns of every mask.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "modality": ("visible", "infrared", "fused"),
    "sharpness": ("blurry", "sharp", "oversharpened"),
    "noise": ("clean", "noisy"),
    "contrast": ("low", "normal", "harsh"),
    "exposure": ("dark", "normal", "bright"),
    "haze": ("clear", "hazy"),
    "detail": ("plain", "detailed"),
    "salience": ("hidden", "salient"),
    "rendering": ("natural", "embossed", "posterised", "inverted", "halo"),
}
SLICES: dict[str, slice] = {}
_start = 0
for _name, _values in ATTRIBUTES.items():
    SLICES[_name] = slice(_start, _start + len(_values))
    _start += len(_values)
WIDTH = _start

PAPER_FUSED = "a clear image with detailed background and salient objects"
PAPER_VISIBLE = "a visible gray image"
PAPER_INFRARED = "an infrared image"

Assertion = dict[str, tuple[str, ...]]  # attribute -> the values a caption allows


@dataclass(frozen=True)
class Caption:
    """A text and what it asserts; attributes left out are not spoken of."""

    text: str
    asserts: Assertion

    def __hash__(self) -> int:
        return hash(self.text)


def mask(values: Assertion) -> Tensor:
    """Boolean mask (WIDTH,) over all attribute values; an absent attribute is all True."""
    result = torch.ones(WIDTH, dtype=torch.bool)
    for attribute, allowed in values.items():
        unknown = set(allowed) - set(ATTRIBUTES[attribute])
        if unknown or not allowed:
            raise ValueError(f"{attribute!r} takes {ATTRIBUTES[attribute]}, got {allowed}")
        result[SLICES[attribute]] = torch.tensor(
            [value in allowed for value in ATTRIBUTES[attribute]]
        )
    return result


def truth(possible: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Truth of every caption about every image.

    Args:
        possible: (N, WIDTH) boolean, the values each image may have.
        allowed: (M, WIDTH) boolean, the values each caption allows.

    Returns:
        `(true, false)`, each (N, M) boolean, never both True; unknown where neither is.
    """
    # Counting common values by a matrix product is exact: the counts are tiny integers.
    true = (possible.float() @ (~allowed).float().T) == 0
    false = torch.zeros_like(true)
    for columns in SLICES.values():
        common = possible[:, columns].float() @ allowed[:, columns].float().T
        false |= common == 0
    return true, false


# --------------------------------------------------------------------------------------------
# The words
# --------------------------------------------------------------------------------------------

_CLEAR: Assertion = {
    "sharpness": ("sharp",),
    "noise": ("clean",),
    "contrast": ("normal",),
    "exposure": ("normal",),
    "haze": ("clear",),
    "rendering": ("natural",),
}
_GOOD: Assertion = {**_CLEAR, "detail": ("detailed",), "salience": ("salient",)}

_NOUNS: dict[str, Assertion] = {
    "image": {},
    "picture": {},
    "photo": {},
    "scene": {},
    "gray image": {},
    "grayscale photo": {},
    "visible image": {"modality": ("visible",)},
    "visible gray image": {"modality": ("visible",)},
    "visible light photo": {"modality": ("visible",)},
    "visible grey photograph": {"modality": ("visible",)},
    "infrared image": {"modality": ("infrared",)},
    "thermal image": {"modality": ("infrared",)},
    "thermal infrared picture": {"modality": ("infrared",)},
    "fused image": {"modality": ("fused",)},
    "fusion of infrared and visible images": {"modality": ("fused",)},
}

_BLURRY: Assertion = {"sharpness": ("blurry",)}
_SHARP: Assertion = {"sharpness": ("sharp",)}
_OVERSHARPENED: Assertion = {"sharpness": ("oversharpened",)}
_NOISY: Assertion = {"noise": ("noisy",)}
_CLEAN: Assertion = {"noise": ("clean",)}
_FLAT: Assertion = {"contrast": ("low",)}
_HARSH: Assertion = {"contrast": ("harsh",)}
_BALANCED: Assertion = {"contrast": ("normal",)}
_STRONG: Assertion = {"contrast": ("normal", "harsh")}
_DARK: Assertion = {"exposure": ("dark",)}
_BRIGHT: Assertion = {"exposure": ("bright",)}
_LIT: Assertion = {"exposure": ("normal", "bright")}
_EXPOSED: Assertion = {"exposure": ("normal",)}
_HAZY: Assertion = {"haze": ("hazy",)}
_HAZELESS: Assertion = {"haze": ("clear",)}
_DETAILED: Assertion = {"detail": ("detailed",)}
_PLAIN: Assertion = {"detail": ("plain",)}
_SALIENT: Assertion = {"salience": ("salient",)}
_HIDDEN: Assertion = {"salience": ("hidden",)}
_NATURAL: Assertion = {"rendering": ("natural",)}
_ARTIFICIAL: Assertion = {"rendering": ("embossed", "posterised", "inverted", "halo")}
_EMBOSSED: Assertion = {"rendering": ("embossed",)}
_POSTERISED: Assertion = {"rendering": ("posterised",)}
_INVERTED: Assertion = {"rendering": ("inverted",)}
_HALO: Assertion = {"rendering": ("halo",)}

_ADJECTIVES: dict[str, Assertion] = {
    "clear": _CLEAR,
    "good": _CLEAR,
    "high quality": _CLEAR,
    "sharp": _SHARP,
    "crisp": _SHARP,
    "focused": _SHARP,
    "blurry": _BLURRY,
    "blurred": _BLURRY,
    "smooth": _BLURRY,
    "soft": _BLURRY,
    "unfocused": _BLURRY,
    "oversharpened": _OVERSHARPENED,
    "noisy": _NOISY,
    "grainy": _NOISY,
    "clean": _CLEAN,
    "noise free": _CLEAN,
    "low contrast": _FLAT,
    "flat": _FLAT,
    "dull": _FLAT,
    "normal contrast": _BALANCED,
    "high contrast": _STRONG,
    "vivid": _STRONG,
    "harsh": _HARSH,
    "dark": _DARK,
    "dim": _DARK,
    "underexposed": _DARK,
    "black": _DARK,
    "bright": _LIT,
    "light": _LIT,
    "overexposed": _BRIGHT,
    "white": _BRIGHT,
    "well exposed": _EXPOSED,
    "hazy": _HAZY,
    "foggy": _HAZY,
    "haze free": _HAZELESS,
    "detailed": _DETAILED,
    "highly detailed": _DETAILED,
    "textured": _DETAILED,
    "natural": _NATURAL,
    "realistic": _NATURAL,
    "artificial": _ARTIFICIAL,
    "distorted": _ARTIFICIAL,
    "embossed": _EMBOSSED,
    "posterised": _POSTERISED,
    "inverted": _INVERTED,
    "negative": _INVERTED,
    "unnatural": _ARTIFICIAL,
}

_PHRASES: dict[str, Assertion] = {
    "with detailed background": _DETAILED,
    "with rich texture": _DETAILED,
    "with fine details": _DETAILED,
    "with clear textures": _DETAILED,
    "full of detail": _DETAILED,
    "without details": _PLAIN,
    "with little texture": _PLAIN,
    "with salient objects": _SALIENT,
    "with salient targets": _SALIENT,
    "with hot people standing out": _SALIENT,
    "with highlighted objects": _SALIENT,
    "with salient pedestrians": _SALIENT,
    "with salient vehicles": _SALIENT,
    "with prominent thermal targets": _SALIENT,
    "with hidden objects": _HIDDEN,
    "where nothing stands out": _HIDDEN,
    "with detailed background and salient objects": {**_DETAILED, **_SALIENT},
    "with rich details and bright targets": {**_DETAILED, **_SALIENT},
    "with sharp edges": _SHARP,
    "with blurry edges": _BLURRY,
    "with strong noise": _NOISY,
    "without noise": _CLEAN,
    "with low contrast": _FLAT,
    "with high contrast": _STRONG,
    "with harsh contrast": _HARSH,
    "in the dark": _DARK,
    "at night": _DARK,
    "in bright light": _LIT,
    "in fog": _HAZY,
    "in haze": _HAZY,
    "with artifacts": _ARTIFICIAL,
    "without artifacts": _NATURAL,
    "with relief": _EMBOSSED,
    "with halos": _HALO,
    "with ringing edges": _HALO,
}

# Pairs of adjectives a user may well join; each pair speaks of two different attributes.
_PAIRED = (
    "blurry", "sharp", "noisy", "clean", "low contrast", "high contrast", "dark", "bright",
    "hazy", "detailed",
)  # fmt: skip

# One pair of opposite (or three rival) texts an attribute, for prompt classification.
PROMPTS: dict[str, tuple[str, ...]] = {
    "modality": (PAPER_VISIBLE, PAPER_INFRARED, "a fused image"),
    "sharpness": ("a blurry image", "a sharp image", "an oversharpened image"),
    "noise": ("a noise free image", "a noisy image"),
    "contrast": ("a low contrast image", "a normal contrast image", "an image with harsh contrast"),
    "exposure": ("a dark image", "a well exposed image", "an overexposed image"),
    "haze": ("a haze free image", "a hazy image"),
    "detail": ("an image without details", "a detailed image"),
    "salience": ("an image with hidden objects", "an image with salient objects"),
    "rendering": (
        "a natural image",
        "an embossed image",
        "a posterised image",
        "an inverted image",
        "an image with halos",
    ),
}

# Objectives a user may train for, besides the paper's; the direction loss is taught on them.
OBJECTIVES: tuple[str, ...] = (
    PAPER_FUSED,
    "a blurry dark image",
    "a clear image",
    "a sharp detailed image",
    "an image with salient objects",
    "a dark image",
    "a bright image",
    "a blurry image",
    "a noisy image",
    "a low contrast image",
    "a high contrast image",
    "a hazy image",
)


def build_captions() -> tuple[Caption, ...]:
    """Every caption there is, each text once, in a fixed order."""
    captions: dict[str, Caption] = {}

    def add(text: str, asserts: Assertion) -> None:
        captions.setdefault(text, Caption(text, asserts))

    add(PAPER_FUSED, _GOOD)
    for noun, asserted in _NOUNS.items():
        add(f"{_article(noun)} {noun}", asserted)
    for (adjective, quality), (noun, asserted) in product(_ADJECTIVES.items(), _NOUNS.items()):
        add(f"{_article(adjective)} {adjective} {noun}", {**asserted, **quality})
    for (phrase, quality), (noun, asserted) in product(_PHRASES.items(), _NOUNS.items()):
        add(f"{_article(noun)} {noun} {phrase}", {**asserted, **quality})
    for (first, one), (second, two) in product(_ADJECTIVES.items(), _ADJECTIVES.items()):
        if first in _PAIRED and second in _PAIRED and not one.keys() & two.keys():
            add(f"{_article(first)} {first} {second} image", {**one, **two})
            add(f"{_article(first)} {first} and {second} image", {**one, **two})
    for phrase, quality in _PHRASES.items():
        for adjective, other in _ADJECTIVES.items():
            merged = _intersect(quality, other)
            if merged is not None:
                add(f"{_article(adjective)} {adjective} image {phrase}", merged)
    return tuple(captions.values())


def vocabulary(captions: tuple[Caption, ...]) -> list[str]:
    """Every word of the captions, lower case, sorted."""
    return sorted({word for caption in captions for word in words(caption.text)})


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"[a-z]+", text.lower())


def _article(following: str) -> str:
    return "an" if following[0] in "aeiou" else "a"


def _intersect(one: Assertion, two: Assertion) -> Assertion | None:
    """Both assertions together, or None where they contradict each other."""
    merged = dict(one)
    for attribute, allowed in two.items():
        common = tuple(value for value in merged.get(attribute, allowed) if value in allowed)
        if not common:
            return None
        merged[attribute] = common
    return merged
