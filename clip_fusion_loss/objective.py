"""FusionObjective: the texts that describe the fused image and its sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

__all__ = ["FusionObjective", "as_objectives", "as_texts"]

# A file name passed by mistake would be embedded like any other text.
FILE_SUFFIXES = (".safetensors", ".json", ".txt", ".pt", ".pth")


@dataclass(frozen=True)
class FusionObjective:
    """Texts that describe the fused image and both source images.

    The defaults are the paper's (arXiv 2402.16267). Several texts for one image are an ensemble:
    their embeddings are averaged.

    Args:
        fused: description of the fused image; a text or a sequence of texts.
        visible: likewise of the visible image.
        infrared: likewise of the infrared image.

    Raises:
        TypeError: a field is neither a text nor a sequence of texts.
        ValueError: a field is empty or a file name; or `fused` has the same texts as `visible` or
            `infrared`, so there is no direction between them.

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
                    f"describe in `fused` how the fused image differs from the {name} one"
                )


def as_objectives(
    name: str, value: object, sources: FusionObjective
) -> tuple[tuple[FusionObjective, ...], tuple[str, ...] | None]:
    """The objectives of a sequence or mapping, and the names of a mapping, else None.

    A plain text is for the fused image; the texts of its sources are those of `sources`.
    """
    names = None
    if isinstance(value, Mapping):
        names, value = tuple(value), tuple(value.values())
        if not all(isinstance(key, str) for key in names):
            raise TypeError(f"`{name}` must have str names, got {names!r}; use str(name) as keys")
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(
            f"`{name}` must be a sequence of texts or FusionObjectives, or a mapping of names to "
            f"them, got {value!r}; convert arrays with .tolist(), and pass a single text in a list"
        )
    if not value:
        raise ValueError(f"`{name}` must hold at least one text or FusionObjective, got {value!r}")
    objectives = []
    for entry in value:
        if isinstance(entry, str):
            entry = replace(sources, fused=entry)
        elif not isinstance(entry, FusionObjective):
            raise TypeError(
                f"`{name}` must hold texts or FusionObjectives, got {entry!r} among them; pass "
                "several texts for one image as FusionObjective(texts)"
            )
        objectives.append(entry)
    return tuple(objectives), names


def as_texts(name: str, value: object) -> tuple[str, ...]:
    """One text or several as a tuple of `str`.

    Raises:
        TypeError: `value` is neither a text nor a sequence of texts.
        ValueError: there is no text, or one is empty or looks like a file name.
    """
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"`{name}` must be a text or a sequence of texts, got {value!r}")
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"`{name}` must hold at least one text and no empty one, got {value!r}")
    for text in texts:
        if text.strip().endswith(FILE_SUFFIXES):
            raise ValueError(
                f"`{name}` must be a text, got what seems to be a file name, {text!r}; load a "
                "saved objective with EmbeddedFusionModel.load(path), or pass the text in the file"
            )
    return tuple(map(str, texts))  # NumPy strings become plain ones, which checkpoints may hold
