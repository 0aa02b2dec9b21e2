"""What the fused image should be: the words, the words as directions, and both in files."""

from __future__ import annotations

import copy
import ctypes
import errno
import hashlib
import json
import math
import operator
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks, functional
from .encoder import FrozenCLIP, same_clip
from .frozen import FrozenModule, default_torch_state

# The format of files; and those of 0.2.0, with one objective and with several.
FORMAT = "clip_fusion_loss.EmbeddedFusionModel/3"
ONE = "clip_fusion_loss.EmbeddedFusionModel/1"
SEVERAL = "clip_fusion_loss.EmbeddedFusionModel/2"

# Fields of a `FusionObjective` that may not have the same texts, or the same vectors.
DISTINCT = (
    ("fused", "visible"), ("fused", "infrared"),
    ("opposite", "visible"), ("opposite", "infrared"), ("opposite", "fused"),
)  # fmt: skip


@dataclass(frozen=True)
class FusionObjective:
    """Texts that describe the fused, the visible and the infrared image, and what it should not be.

    The defaults are the paper's (arXiv 2402.16267), which has no opposite. A field is a text, or a
    sequence of texts, whose embeddings are averaged; after construction it is a tuple of texts.

    CLIP ignores "no" and "without", so say what to avoid as `opposite`, for example "a blurry dark
    image". Its direction D_o counts with `opposite_weight` w, at least 0; 0.5 was found in trials
    with the bundled CLIP, where 1 also takes much of what the sentence and its opposite share. The
    direction loss is ``(1 - <d, D>) + w (1 + <d, D_o>)``.

    Raises:
        TypeError: a field is neither a text nor a sequence of texts; the weight is no number.
        ValueError: a field but `opposite` is empty, or is a file name; the texts of two roles are
            the same; the weight is negative or not finite.
    """

    fused: str | Sequence[str] = "a clear image with detailed background and salient objects"
    visible: str | Sequence[str] = "a visible gray image"
    infrared: str | Sequence[str] = "an infrared image"
    opposite: str | Sequence[str] = ()
    opposite_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("fused", "visible", "infrared", "opposite"):
            texts = getattr(self, name)
            none = name == "opposite" and texts in ((), [])
            object.__setattr__(self, name, () if none else checks.check_texts(name, texts))
        weight = checks.check_number("opposite_weight", self.opposite_weight)
        object.__setattr__(self, "opposite_weight", weight)
        for name, other in DISTINCT:
            texts = getattr(self, name)
            if set(texts) == set(getattr(self, other)):
                raise ValueError(f"`{name}` and `{other}` must differ, got {texts!r} for both")


Texts = Sequence[str | FusionObjective]
# What one embedded objective says: an objective, or several with their weights.
Words = FusionObjective | dict[FusionObjective, float]

_weight = partial(checks.check_number, "weights", minimum=-math.inf)


class EmbeddedFusionModel(FrozenModule):
    """One or several embedded objectives: the text directions from each source to the fused image.

    Texts are embedded once, at construction. The directions follow `.to(device)` and stay float32;
    they are neither parameters nor buffers. Several objectives are a bank, from which each image of
    a batch can use another one:

        bank = criterion.embed({"day": "a bright image", "night": "a dark image"})
        chosen = bank[["night", "day", "night"]]  # or integers: a list, or a (B,) tensor
        loss = criterion(fused=fused, visible=visible, infrared=infrared, objectives=chosen)
        criterion.set_objective(bank.mix({"night": 1.0, "day": -0.5}))  # night, and not day

    Args:
        objective: one `FusionObjective`; or, for a bank, a sequence of N objectives or a mapping
            of names to N objectives, in which a text stands for `FusionObjective(text)`.
        encoder: the CLIP that embeds the texts, all in one call of its text tower.

    Raises:
        TypeError, ValueError: an argument is not as described; or the encoder knows no word of a
            text, or gives the fused image and a source the same vector.
        RuntimeError: a text is new and the encoder's text tower was dropped.

    `visible_direction` and `infrared_direction` are float32 vectors, (D,), for a bank (N, D): unit
    vectors, with opposites their weighted sum; `names` are those of a bank from a mapping, or None.
    """

    frozen = ("visible_direction", "infrared_direction", "_parts", "_weights", "_total_weight")
    visible_direction: Tensor
    infrared_direction: Tensor
    _parts: Tensor  # (N, K, 2, D): the unit directions from both sources that are summed
    _weights: Tensor  # (N, K): their weights
    _total_weight: Tensor  # (), for a bank (N,): the sum of their weights without sign
    names: tuple[str, ...] | None
    encoder_name: str
    encoder_fingerprint: str

    def __init__(
        self, objective: FusionObjective | Texts | Mapping[str, str | FusionObjective],
        encoder: FrozenCLIP,
    ) -> None:  # fmt: skip
        super().__init__()
        checks.check_type("encoder", encoder, FrozenCLIP)
        several = [objective] if isinstance(objective, FusionObjective) else objective
        objectives, names = _as_objectives("objective", several, FusionObjective())
        content = text_directions(objectives, encoder)
        one = isinstance(objective, FusionObjective)
        self._set(objectives, *content, one, names, encoder.name, encoder.fingerprint)

    def _set(self, texts: Any, parts: Tensor, weights: Tensor, one: bool, *identity: Any) -> None:
        self._objectives = texts  # or a function: they are looked up once they are asked for
        self.names, self.encoder_name, self.encoder_fingerprint = identity
        self._parts, self._weights = parts, weights
        # A weight of 1 leaves the only direction as it is, to the bit.
        both, total = (weights[..., None, None] * parts).sum(1), weights.abs().sum(1)
        both, self._total_weight = (both[0], total[0]) if one else (both, total)
        self.visible_direction, self.infrared_direction = both.unbind(-2)

    @classmethod
    def _of(cls, *content: Any) -> EmbeddedFusionModel:
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._set(*content)
        return model

    def _derived(self, *content: Any) -> EmbeddedFusionModel:
        return self._of(*content, None, self.encoder_name, self.encoder_fingerprint)

    @property
    def objectives(self) -> tuple[Words, ...]:
        """The texts of all N objectives, of a mixture with their weights, as a dictionary.

        Waits for the device if a tensor on it chose or mixed them.
        """
        self._objectives = _found(self._objectives)
        return self._objectives

    @property
    def objective(self) -> Words:
        """The texts of a single objective. Raises a ValueError for a bank."""
        if self.visible_direction.ndim > 1:
            raise ValueError(
                f"`objective` must be a single one, got a bank of {len(self)}; choose bank[name]"
            )
        return self.objectives[0]

    @property
    def text_direction(self) -> Tensor:
        """The unit vector of `functional.mean_direction`, for a network: (D,) or (N, D)."""
        total = self._total_weight[..., None]  # small weights are not short directions
        both = self.visible_direction / total, self.infrared_direction / total
        return functional.mean_direction(*both)

    def __len__(self) -> int:
        """The number of objectives."""
        return 1 if self.visible_direction.ndim == 1 else len(self.visible_direction)

    def __iter__(self) -> Iterator[str | int]:
        """The keys of `model[...]`: the names, or without names the indices."""
        return iter(self.names or range(len(self)))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.inference_mode(False)
    def __getitem__(self, choice: int | str | Sequence[int | str] | Tensor) -> EmbeddedFusionModel:
        """Choose one objective, or one for each image of a batch.

        `choice` is a name or an index from 0 to N - 1, for one objective with (D,) directions; or
        for B objectives a sequence of B of them, or a (B,) tensor of indices. Anything else is a
        TypeError, ValueError, KeyError or IndexError. A tensor on an accelerator is not read, as
        the host would wait: there a wrong index is an error of the device.
        """
        one = isinstance(choice, (str, Integral))
        index, rows = self._index([choice] if one else choice)
        parts, weights = (each.index_select(0, index) for each in (self._parts, self._weights))
        # A copy, as the caller may reuse its tensor.
        texts = partial(_choose, self._objectives, index.clone() if rows is None else rows)
        return self._derived(texts, parts, weights, one)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.inference_mode(False)
    def mix(
        self, weights: Mapping[Any, float] | Sequence[Mapping[Any, float]] | Tensor
    ) -> EmbeddedFusionModel:
        """Add objectives, each with a weight: ``sum_n w_n loss_n``, in the time of one.

        A negative weight makes an opposite of a text, ``|w_n| (2 - loss_n)``. `weights` maps names
        or indices to numbers, for one objective with (D,) directions; for B objectives it is a
        sequence of B mappings, or a (B, N) tensor. Wrong ones, such as weights that cancel out, are
        a KeyError, IndexError, TypeError or ValueError. To find them it waits for the device; a
        tensor on an accelerator is not read.
        """
        one, bank, read = isinstance(weights, Mapping), self, True
        if isinstance(weights, Tensor):
            read = weights.device.type == "cpu"
            table = weights.detach().float().clone()  # the caller may reuse it
        else:
            rows: Any = [weights] if one else checks.check_type("weights", weights, Sequence)
            rows = [checks.check_type("weights", row, Mapping) for row in rows]
            keys = list(dict.fromkeys(key for row in rows for key in row))
            bank = self[keys]
            numbers = [[_weight(row.get(key, 0.0)) for key in keys] for row in rows]
            table = torch.tensor(numbers, dtype=torch.float32, device="cpu")
        if table.ndim != 2 or table.shape[1] != len(bank):
            expected = f"have shape (B, {len(bank)}), a row for each image"
            raise ValueError(f"`weights` must {expected}, got {tuple(table.shape)}")
        signed = (table.to(bank._weights.device)[..., None] * bank._weights).flatten(1)
        parts = bank._parts.flatten(0, 1).expand(len(table), -1, -1, -1)
        mixed = self._derived(partial(_mixtures, bank._objectives, table), parts, signed, one)
        directions = torch.stack([mixed.visible_direction, mixed.infrared_direction])
        lengths = directions.norm(dim=-1) / mixed._total_weight
        if read and not (lengths > functional.DIRECTION_EPS).all():  # NaN is not either
            raise ValueError(
                "`weights` must be finite and not cancel out, got a sum of nearly zero for "
                f"{checks.shorten(weights)}; change one of them"
            )
        return mixed

    def _index(self, choice: Any) -> tuple[Tensor, list[int] | None]:
        """(B,) indices on the directions' device, and as a list if the host knows them."""
        device = self.visible_direction.device
        if isinstance(choice, Tensor) and choice.device.type != "cpu":
            return choice.to(device), None  # wrong dtypes and shapes are errors of index_select
        entries = choice.tolist() if hasattr(choice, "tolist") else choice
        if isinstance(entries, bytes) or not isinstance(entries, Sequence):
            raise TypeError(
                "`choice` must be a name, an index, a sequence of them or a tensor of indices, got "
                f"{checks.shorten(choice)}; pass a list"
            )
        if not entries:
            raise ValueError("`choice` must hold at least one name or index, got none")
        rows = [self._row(entry) for entry in entries]
        index = torch.tensor(rows, dtype=torch.int64, device="cpu")
        return index.to(device, non_blocking=True), rows

    def _row(self, entry: Any) -> int:
        if isinstance(entry, str):
            names = list(self.names or ())
            if entry not in names:
                known = f"one of the names {checks.shorten(names)}"
                raise KeyError(f"a key must be {known}, got {entry!r}")
            return names.index(entry)
        if not isinstance(entry, Integral) or isinstance(entry, bool):
            raise TypeError(f"keys must be names or indices, got {checks.shorten(entry)}")
        row = operator.index(entry)
        if not 0 <= row < len(self):
            raise IndexError(f"indices must be from 0 to {len(self) - 1}, got {row}")
        return row

    def forward(
        self, embedding: Tensor, visible_embedding: Tensor, infrared_embedding: Tensor, *,
        index: Tensor | None = None, link: str = "linear", counted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Direction loss per embedding, (..., D) to (...); see `functional.direction_loss`.

        For a bank, `index` has (P,) integers, the objective of each of P embeddings; None: i of i.
        `link` is "linear", or "exponential" for `functional.exponential_direction_loss`.
        """
        formula: Any = functional.direction_loss
        wanted = [self.visible_direction, self.infrared_direction, self._total_weight]
        single = self.visible_direction.ndim == 1
        if link == "exponential":
            formula = functional.exponential_direction_loss
            wanted = [self._parts[..., 0, :], self._parts[..., 1, :], self._weights]
            wanted = [each[0] for each in wanted] if single else wanted
        if index is not None and not single:
            # Not each[index], which counts a negative index from the end.
            wanted = [each.index_select(0, index) for each in wanted]
        return formula(embedding, visible_embedding, infrared_embedding, *wanted, counted)

    def check_encoder(self, encoder: FrozenCLIP) -> None:
        """Raise a ValueError unless `encoder`, or a copy in another precision, embedded it."""
        if not same_clip(encoder.fingerprint, self.encoder_fingerprint):
            raise ValueError(
                f"`encoder` must be the CLIP that embedded the objective, {self.encoder_name!r}, "
                f"got {encoder.name!r} with other weights, activation or preprocessing; embed the "
                "objective anew with EmbeddedFusionModel(objective, encoder)"
            )

    def save(self, path: str | Path) -> None:
        """Write everything to a safetensors file, whole or not at all; replaces an existing one."""
        path = checks.check_path("path", path)
        tensors = {"directions": self._parts, "weights": self._weights}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        # A mixture as pairs, as objects of JSON have texts for keys.
        texts = [list(each.items()) if isinstance(each, dict) else each for each in self.objectives]
        metadata = {"format": FORMAT, "names": json.dumps(self.names)}
        single = self.visible_direction.ndim == 1
        content = json.dumps(texts[0] if single else texts, default=asdict)
        metadata["objective" if single else "objectives"] = content
        metadata["encoder_name"] = self.encoder_name
        metadata["encoder_fingerprint"] = self.encoder_fingerprint
        metadata["sha256"] = _digest(metadata, tensors)
        _atomic_write(path, safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path, encoder: FrozenCLIP | None = None) -> EmbeddedFusionModel:
        """Read a file written by `save`, onto the CPU. No text tower is needed.

        A file that is not a complete one of `save`, or of another CLIP than `encoder`, if that is
        given, is a ValueError.
        """
        path = checks.check_file("path", path)
        checks.check_type("encoder", encoder, FrozenCLIP, optional=True)
        try:
            with default_torch_state():
                model = cls._of(*_read(path))
        except (ValueError, TypeError, KeyError, RuntimeError, safetensors.SafetensorError) as e:
            expected = "`path` must be a complete file written by EmbeddedFusionModel.save"
            raise ValueError(f"{expected}, got {path}: {e}; save it again") from e
        if encoder is not None:
            model.check_encoder(encoder)
        return model

    def extra_repr(self) -> str:
        # Not the texts: reading them may wait for the device.
        return f"{len(self)} objectives, names={self.names}, encoder={self.encoder_name!r}"


def embed_one(objective: Any, encoder: FrozenCLIP, before: Words) -> EmbeddedFusionModel:
    """See `LanguageDrivenFusionLoss.set_objective`; `before` has the texts of the sources."""
    if isinstance(objective, Sequence):
        objective = _with_sources(objective, before)
    if isinstance(objective, FusionObjective):
        return EmbeddedFusionModel(objective, encoder)
    if isinstance(objective, Mapping) and not any(isinstance(w, str) for w in objective.values()):
        bank = embed_all(tuple(objective), encoder, before)
        return bank.mix(dict(enumerate(objective.values())))
    if not isinstance(objective, EmbeddedFusionModel):
        raise TypeError(
            "`objective` must be texts, a FusionObjective(**texts), a mapping of these to weights "
            f"or an EmbeddedFusionModel, as of .load(path), got {checks.shorten(objective)}"
        )
    objective.check_encoder(encoder)
    _ = objective.objective  # raises for a bank
    if not encoder.keep_text:
        encoder.drop_text()
    return copy.deepcopy(objective).to(encoder.device)  # other losses on other devices may use it


def _with_sources(fused: str | Sequence[str], before: Words) -> FusionObjective:
    """A text for the fused image, with the texts of the sources of `before`."""
    sources = next(iter(before)) if isinstance(before, dict) else before
    return FusionObjective(fused, sources.visible, sources.infrared)


def _found(texts: Any) -> tuple[Words, ...]:
    """The objectives that `EmbeddedFusionModel._set` got, or got a function for."""
    return texts() if callable(texts) else texts


def _choose(texts: Any, rows: Tensor | list[int]) -> tuple[Words, ...]:
    objectives = _found(texts)
    return tuple(objectives[row] for row in (rows.tolist() if isinstance(rows, Tensor) else rows))


def _mixtures(texts: Any, table: Tensor) -> tuple[Words, ...]:
    """The texts and weights of mixtures, of which the objectives may be mixtures themselves."""
    objectives = _found(texts)
    mixtures: list[Any] = [{} for _ in table]
    for mixture, row in zip(mixtures, table.tolist(), strict=True):
        for objective, weight in zip(objectives, row, strict=True):
            parts = objective if isinstance(objective, dict) else {objective: 1.0}
            for part, own in parts.items() if weight else ():
                mixture[part] = mixture.get(part, 0.0) + weight * own
    return tuple(mixtures)


def embed_all(objectives: Any, encoder: FrozenCLIP, before: Words) -> EmbeddedFusionModel:
    """See `LanguageDrivenFusionLoss.embed`; `before` has the texts of the sources."""
    entries, names = _as_objectives("objectives", objectives, before)
    named = entries if names is None else dict(zip(names, entries, strict=True))
    return EmbeddedFusionModel(named, encoder)


def embed_for_batch(
    objectives: Any, batch: int | None, encoder: FrozenCLIP, current: EmbeddedFusionModel
) -> EmbeddedFusionModel:
    """`objectives`, one for each of `batch` images, embedded; for None `current`.

    Without `batch` they are a whole bank, for the labels of regions.
    """
    single = isinstance(objectives, EmbeddedFusionModel) and objectives.visible_direction.ndim == 1
    if batch is None and (objectives is None or single):
        raise ValueError(
            "`objectives` must be a bank with a row for each label of `regions`, got "
            f"{'one objective' if single else None}; pass criterion.embed([...]) or texts"
        )
    if objectives is None:
        return current
    embedded = isinstance(objectives, EmbeddedFusionModel)
    if not embedded and (isinstance(objectives, str) or not isinstance(objectives, Sequence)):
        raise TypeError(
            "`objectives` must be a sequence of texts or FusionObjectives, one per image, got "
            f"{checks.shorten(objectives)}; set one for all images with "
            "criterion.set_objective(...), choose from a bank with bank[names] or bank[indices]"
        )
    if batch is not None and len(objectives) != batch:
        raise ValueError(
            f"`objectives` must be as many as there are images, {batch}, got {len(objectives)}; "
            "pass several texts for one image as FusionObjective(texts)"
        )
    if not embedded:
        words = current.objective
        if not isinstance(words, dict) or None not in objectives:
            entries = [words if entry is None else entry for entry in objectives]
            return embed_all(entries, encoder, words)
        own = [entry for entry in objectives if entry is not None]
        mixture, rows = dict(enumerate(words.values())), count(len(words))
        return embed_all([*words, *own], encoder, words).mix(
            [mixture if entry is None else {next(rows): 1.0} for entry in objectives]
        )
    if batch is not None and objectives.names is not None:
        raise ValueError("`objectives` must be one per image, got a whole bank; pass bank[names]")
    objectives.check_encoder(encoder)
    if objectives.visible_direction.device != encoder.device:
        raise ValueError(
            f"`objectives` must be on {encoder.device} like the loss, got "
            f"{objectives.visible_direction.device}; move them with .to({str(encoder.device)!r})"
        )
    return objectives


def _as_objectives(
    name: str, value: object, before: Words
) -> tuple[tuple[FusionObjective, ...], tuple[str, ...] | None]:
    """The objectives of a sequence or mapping, and the names of a mapping, else None."""
    names = None
    if isinstance(value, Mapping):
        names, value = tuple(value), tuple(value.values())
    several = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not several or not all(isinstance(key, str) for key in names or ()):
        raise TypeError(
            f"`{name}` must be a sequence of texts or FusionObjectives, or a mapping of str names "
            f"to them, got {names or value!r}; pass a single text in a list"
        )
    objectives = []
    for entry in cast(Sequence[object], value):
        if isinstance(entry, str):
            entry = _with_sources(entry, before)
        if not isinstance(entry, FusionObjective):
            raise TypeError(
                f"`{name}` must hold texts or FusionObjectives, got {entry!r} among them; pass "
                "several texts for one image as FusionObjective(texts)"
            )
        objectives.append(entry)
    return tuple(objectives), names


@default_torch_state()
def text_directions(
    objectives: Sequence[FusionObjective], encoder: FrozenCLIP
) -> tuple[Tensor, Tensor]:
    """(N, K, 2, D) unit directions of N objectives, from "visible" and "infrared", (N, K) weights.

    K is 2 if any has an opposite; for those without, it has no weight.
    """
    roles = ["fused", "visible", "infrared"]
    if any(each.opposite for each in objectives):
        roles.append("opposite")
    groups = [getattr(each, role) or each.fused for each in objectives for role in roles]
    texts = [text for group in groups for text in group]
    for text in texts:
        if encoder.has_no_known_word(text):
            raise ValueError(
                f"a text must have a word that the encoder {encoder.name!r} knows, got {text!r}; "
                "use words of encoder.vocabulary, or a real CLIP: FrozenCLIP.from_pretrained()"
            )
    # One call for all texts: an encoder may drop its text tower after the first.
    embeddings = encoder._on_host(texts).split([len(group) for group in groups])
    means = torch.stack([F.normalize(group.mean(0), dim=-1) for group in embeddings])
    vectors = dict(zip(roles, means.unflatten(0, (-1, len(roles))).unbind(1), strict=True))
    for name, other in DISTINCT if "opposite" in roles else DISTINCT[:2]:
        gaps = (vectors[name] - vectors[other]).norm(dim=-1).tolist()
        for objective, gap in zip(objectives, gaps, strict=True):
            if gap < functional.DIRECTION_EPS and getattr(objective, name):
                both = f"{getattr(objective, name)!r} and {getattr(objective, other)!r}"
                raise ValueError(
                    f"`{name}` and `{other}` must differ for {encoder.name!r}, got the same vector "
                    f"for {both}; change the wording of one"
                )
    fused, *sources = (vectors.pop(role) for role in roles[:3])
    ends = torch.stack([fused, *vectors.values()], 1)[:, :, None]
    directions = functional.direction(torch.stack(sources, 1)[:, None], ends)
    weights = [[1.0, -each.opposite_weight if each.opposite else 0.0] for each in objectives]
    signed = torch.tensor(weights, dtype=torch.float32)[:, : directions.shape[1]]
    return directions.to(encoder.device), signed.to(encoder.device)


def _read(path: Path) -> tuple[Any, ...]:
    """The arguments of `EmbeddedFusionModel._set`, from a file of `save`."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") not in (FORMAT, ONE, SEVERAL):
            raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.pop("sha256") != _digest(metadata, tensors):
        raise ValueError("its content does not match its checksum")
    if metadata["format"] != FORMAT:  # of 0.2.0
        both = [torch.atleast_2d(tensors[f"{name}_direction"]) for name in ("visible", "infrared")]
        directions = torch.stack(both, 1)[:, None]
        tensors = {"directions": directions, "weights": torch.ones_like(directions[..., 0, 0])}
    single = "objective" in metadata
    names = None if metadata["format"] == ONE else json.loads(metadata["names"])
    texts = f"[{metadata['objective']}]" if single else metadata["objectives"]
    objectives = tuple(
        {FusionObjective(**texts): _weight(weight) for texts, weight in entry}
        if isinstance(entry, list) and entry
        else FusionObjective(**entry)
        for entry in json.loads(texts)
    )
    parts, weights = tensors["directions"], tensors["weights"]
    fits = parts.ndim == 4 and (*weights.shape, 2) == parts.shape[:3] and parts.numel()
    fits = fits and parts.dtype == weights.dtype == torch.float32 and len(parts) == len(objectives)
    # NaN is not in a range either.
    fits = fits and ((parts.norm(dim=-1) - 1).abs() < 1e-3).all()
    if not (fits and (weights.abs().sum(1) > 0).all() and weights.abs().sum().isfinite()):
        raise ValueError("its directions are not float32 unit vectors with weights per objective")
    if names is not None:
        if {*map(type, names)} != {str} or not len({*names}) == len(names) == len(objectives):
            raise ValueError("it does not have one name per objective")
        names = tuple(names)
    identity = names, metadata["encoder_name"], metadata["encoder_fingerprint"]
    return objectives, parts, weights, single, *identity


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """A checksum of metadata and tensors, as flipped bits could look like other directions."""
    content = json.dumps(metadata, sort_keys=True).encode()
    if metadata["format"] != FORMAT:  # 0.2.0 took the bytes of the file
        content += safetensors.torch.save(tensors)
    else:
        for name, tensor in sorted(tensors.items()):
            content += f"{name}{[*tensor.shape]}".encode()
            content += ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    return hashlib.sha256(content).hexdigest()


def _atomic_write(path: Path, content: bytes) -> None:
    """Write a temporary file in the same folder and rename it, so no reader sees a partial file."""
    target = path.resolve()  # a link stays one
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Not tempfile, whose files nobody else may read.
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:  # name the caller's path, not the temporary file
        reason = f"`path` cannot be written: {error.strerror or error}"
        raise OSError(error.errno, reason, str(path)) from None
    finally:
        with suppress(OSError):  # usually it has been renamed; its folder may not exist either
            temporary.unlink()
