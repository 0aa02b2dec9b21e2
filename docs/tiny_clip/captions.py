"""Captions that say exactly what they assert, and the exact truth of each against an image.

An image is described by a few attributes, each known, partly known or unknown; a caption asserts
something about some of them. Both are boolean masks over all attribute values: the values
*possible* for the image, the values *allowed* by the caption. Then

    true     everything possible is allowed     (for every attribute)
    false    nothing possible is allowed        (for some attribute)
    unknown  otherwise

so nothing is taught that was not known.
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
WIDTH = 0
for _name, _values in ATTRIBUTES.items():
    SLICES[_name] = slice(WIDTH, WIDTH + len(_values))
    WIDTH += len(_values)

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


def assertion(written: str) -> Assertion:
    """What "contrast=normal|harsh noise=clean" asserts."""
    parts = (part.split("=") for part in written.split())
    return {attribute: tuple(values.split("|")) for attribute, values in parts}


def mask(values: Assertion) -> Tensor:
    """Boolean mask (WIDTH,) over all attribute values; an absent attribute is all True."""
    result = torch.ones(WIDTH, dtype=torch.bool)
    for attribute, allowed in values.items():
        if not allowed or set(allowed) - set(ATTRIBUTES[attribute]):
            raise ValueError(f"{attribute!r} takes {ATTRIBUTES[attribute]}, got {allowed}")
        result[SLICES[attribute]] = torch.tensor([v in allowed for v in ATTRIBUTES[attribute]])
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


def _table(rows: str) -> dict[str, Assertion]:
    """Words, in their order, of lines "assertion: word, word"."""
    table: dict[str, Assertion] = {}
    for row in rows.strip().splitlines():
        written, words = row.split(":")
        table |= {word.strip(): assertion(written) for word in words.split(",")}
    return table


_CLEAR = "sharpness=sharp noise=clean contrast=normal exposure=normal haze=clear rendering=natural"
_ARTIFICIAL = "rendering=embossed|posterised|inverted|halo"

_NOUNS = _table("""
: image, picture, photo, scene, gray image, grayscale photo
modality=visible: visible image, visible gray image, visible light photo, visible grey photograph
modality=infrared: infrared image, thermal image, thermal infrared picture
modality=fused: fused image, fusion of infrared and visible images
""")
_ADJECTIVES = _table(f"""
{_CLEAR}: clear, good, high quality
sharpness=sharp: sharp, crisp, focused
sharpness=blurry: blurry, blurred, smooth, soft, unfocused
sharpness=oversharpened: oversharpened
noise=noisy: noisy, grainy
noise=clean: clean, noise free
contrast=low: low contrast, flat, dull
contrast=normal: normal contrast
contrast=normal|harsh: high contrast, vivid
contrast=harsh: harsh
exposure=dark: dark, dim, underexposed, black
exposure=normal|bright: bright, light
exposure=bright: overexposed, white
exposure=normal: well exposed
haze=hazy: hazy, foggy
haze=clear: haze free
detail=detailed: detailed, highly detailed, textured
rendering=natural: natural, realistic
{_ARTIFICIAL}: artificial, distorted
rendering=embossed: embossed
rendering=posterised: posterised
rendering=inverted: inverted, negative
{_ARTIFICIAL}: unnatural
""")
_PHRASES = _table(f"""
detail=detailed: with detailed background, with rich texture, with fine details
detail=detailed: with clear textures, full of detail
detail=plain: without details, with little texture
salience=salient: with salient objects, with salient targets, with hot people standing out
salience=salient: with highlighted objects, with salient pedestrians, with salient vehicles
salience=salient: with prominent thermal targets
salience=hidden: with hidden objects, where nothing stands out
detail=detailed salience=salient: with detailed background and salient objects
detail=detailed salience=salient: with rich details and bright targets
sharpness=sharp: with sharp edges
sharpness=blurry: with blurry edges
noise=noisy: with strong noise
noise=clean: without noise
contrast=low: with low contrast
contrast=normal|harsh: with high contrast
contrast=harsh: with harsh contrast
exposure=dark: in the dark, at night
exposure=normal|bright: in bright light
haze=hazy: in fog, in haze
{_ARTIFICIAL}: with artifacts
rendering=natural: without artifacts
rendering=embossed: with relief
rendering=halo: with halos, with ringing edges
""")

# Pairs of adjectives a user may well join; each pair speaks of two different attributes.
_PAIRED = (
    "blurry", "sharp", "noisy", "clean", "low contrast", "high contrast", "dark", "bright",
    "hazy", "detailed",
)  # fmt: skip

# One text for each value of an attribute, in the order of its values, for prompt classification.
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
        "a natural image", "an embossed image", "a posterised image", "an inverted image",
        "an image with halos",
    ),
}  # fmt: skip

# Objectives a user may train for, besides the paper's; the direction loss is taught on them.
OBJECTIVES: tuple[str, ...] = (
    PAPER_FUSED, "a blurry dark image", "a clear image", "a sharp detailed image",
    "an image with salient objects", "a dark image", "a bright image", "a blurry image",
    "a noisy image", "a low contrast image", "a high contrast image", "a hazy image",
)  # fmt: skip


def build_captions() -> tuple[Caption, ...]:
    """Every caption there is, each text once, in a fixed order."""
    captions: dict[str, Caption] = {}

    def add(text: str, asserts: Assertion) -> None:
        captions.setdefault(text, Caption(text, asserts))

    add(PAPER_FUSED, assertion(f"{_CLEAR} detail=detailed salience=salient"))
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
    for (phrase, quality), (adjective, other) in product(_PHRASES.items(), _ADJECTIVES.items()):
        merged = _intersect(quality, other)
        if merged is not None:
            add(f"{_article(adjective)} {adjective} image {phrase}", merged)
    return tuple(captions.values())


def vocabulary(captions: tuple[Caption, ...]) -> list[str]:
    """Every word of the captions, lower case, sorted."""
    return sorted({word for c in captions for word in re.findall(r"[a-z]+", c.text.lower())})


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
