"""What the fused image should be, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

__all__ = ["FusionObjective", "as_objectives", "as_texts"]

# A file's name in place of a text would be embedded like any other words.
FILE_SUFFIXES = (".safetensors", ".json", ".txt", ".pt", ".pth")


@dataclass(frozen=True)
class FusionObjective:
    """The texts that say what to make of which sources.

    The defaults are the paper's (arXiv 2402.16267). Several texts for one role are an ensemble:
    their vectors are averaged.

    Args:
        fused: what the fused image should be; a text or a sequence of texts.
        visible: what the visible image is.
        infrared: what the infrared image is.

    Raises:
        TypeError: a field is neither a text nor a sequence of texts.
        ValueError: a field is empty, holds a file's name, or `fused` has the very texts of a
            modality, from which no direction could lead to it.

    After construction every field is a tuple of texts:

        >>> FusionObjective("a sharp photo").fused
        ('a sharp photo',)
    """

    fused: str | Sequence[str] = "a clear image with detailed background and salient objects"
    visible: str | Sequence[str] = "a visible gray image"
    infrared: str | Sequence[str] = "an infrared image"

    def __post_init__(self) -> None:
        for field in fields(self):
            texts = as_texts(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, texts)
        for name in ("visible", "infrared"):
            if set(self.fused) == set(getattr(self, name)):
                raise ValueError(
                    f"`fused` and `{name}` must differ, got {self.fused!r} for both; "
                    f"describe in `fused` what the fused image has that the {name} image lacks"
                )


def as_objectives(
    name: str, value: object, sources: FusionObjective
) -> tuple[tuple[FusionObjective, ...], tuple[str, ...] | None]:
    """Objectives and, of a mapping, their names; a text is one with the texts of `sources`."""
    names = None
    if isinstance(value, Mapping):
        names, value = tuple(value), tuple(value.values())
        if not all(isinstance(key, str) for key in names):
            raise TypeError(f"`{name}` must have texts as names, got {names!r}")
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(
            f"`{name}` must be a sequence of texts or FusionObjectives, or a mapping of names to "
            f"such, got {value!r}; arrays have .tolist(), and one text is a list of one"
        )
    if not value:
        raise ValueError(f"`{name}` must hold at least one text or FusionObjective, got {value!r}")
    objectives = []
    for entry in value:
        if isinstance(entry, str):
            entry = replace(sources, fused=entry)
        elif not isinstance(entry, FusionObjective):
            raise TypeError(
                f"`{name}` must hold texts or FusionObjectives, got {entry!r} among them; several "
                "texts for one image are FusionObjective(texts)"
            )
        objectives.append(entry)
    return tuple(objectives), names


def as_texts(name: str, value: object) -> tuple[str, ...]:
    """One text or several as a tuple; raises unless there is one and none is empty."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"`{name}` must be a text or a sequence of texts, got {value!r}")
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"`{name}` must hold at least one text and no empty one, got {value!r}")
    for text in texts:
        if text.strip().endswith(FILE_SUFFIXES):
            raise ValueError(
                f"`{name}` must be a text, got what seems to be a file, {text!r}; "
                "EmbeddedFusionModel.load(path) reads a saved objective, and other files are "
                "yours to read"
            )
    return tuple(map(str, texts))  # NumPy's texts become Python's, which any checkpoint may hold
