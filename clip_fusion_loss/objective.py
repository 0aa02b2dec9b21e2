"""What the fused image should be: the words, the words as directions, and both in files."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import operator
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
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

# The formats of files with one objective and with several.
ONE = "clip_fusion_loss.EmbeddedFusionModel/1"
SEVERAL = "clip_fusion_loss.EmbeddedFusionModel/2"


@dataclass(frozen=True)
class FusionObjective:
    """Texts that describe the fused, the visible and the infrared image.

    The defaults are the paper's (arXiv 2402.16267). Each field is a text, or a sequence of texts,
    whose embeddings are averaged; after construction it is a tuple of texts.

    Raises:
        TypeError: a field is neither a text nor a sequence of texts.
        ValueError: a field is empty or a file name; or `fused` has the texts of a source.
    """

    fused: str | Sequence[str] = "a clear image with detailed background and salient objects"
    visible: str | Sequence[str] = "a visible gray image"
    infrared: str | Sequence[str] = "an infrared image"

    def __post_init__(self) -> None:
        for field in fields(self):
            texts = checks.check_texts(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, texts)
        for name in ("visible", "infrared"):
            if set(self.fused) == set(getattr(self, name)):
                raise ValueError(f"`fused` and `{name}` must differ, got {self.fused!r} for both")


Texts = Sequence[str | FusionObjective]


class EmbeddedFusionModel(FrozenModule):
    """One or several embedded objectives: the text directions from each source to the fused image.

    Texts are embedded once, at construction. The directions follow `.to(device)` and stay float32;
    they are neither parameters nor buffers. Several objectives are a bank, from which each image of
    a batch can use another one:

        bank = criterion.embed({"day": "a bright image", "night": "a dark image"})
        chosen = bank[["night", "day", "night"]]  # or integers: a list, or a (B,) tensor
        loss = criterion(fused=fused, visible=visible, infrared=infrared, objectives=chosen)

    Args:
        objective: one `FusionObjective`; or, for a bank, a sequence of N objectives or a mapping
            of names to N objectives, in which a text stands for `FusionObjective(text)`.
        encoder: the CLIP that embeds the texts, all in one call of its text tower.

    Raises:
        TypeError, ValueError: an argument is not as described; or the encoder knows no word of a
            text, or gives the fused image and a source the same vector.
        RuntimeError: a text is new and the encoder's text tower was dropped.

    `visible_direction` and `infrared_direction` are float32 unit vectors, (D,), for a bank (N, D);
    `names` are the N names of a bank made from a mapping, otherwise None.
    """

    frozen = ("visible_direction", "infrared_direction")
    visible_direction: Tensor
    infrared_direction: Tensor
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
        visible, infrared = text_directions(objectives, encoder)
        if isinstance(objective, FusionObjective):
            visible, infrared = visible[0], infrared[0]
        self._set(objectives, names, encoder.name, encoder.fingerprint, visible, infrared)

    def _set(self, objectives: tuple[FusionObjective, ...], *content: Any) -> None:
        self._objectives = objectives
        self._chosen: Tensor | None = None  # rows of `_objectives`
        self.names, self.encoder_name, self.encoder_fingerprint, *directions = content
        self.visible_direction, self.infrared_direction = directions

    @classmethod
    def _of(cls, *content: Any) -> EmbeddedFusionModel:
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._set(*content)
        return model

    @property
    def objectives(self) -> tuple[FusionObjective, ...]:
        """The texts of all N objectives. Waits for the device if a tensor on it chose them."""
        if self._chosen is not None:
            self._objectives = tuple(self._objectives[row] for row in self._chosen.tolist())
            self._chosen = None
        return self._objectives

    @property
    def objective(self) -> FusionObjective:
        """The texts of a single objective. Raises a ValueError for a bank."""
        if self.visible_direction.ndim > 1:
            raise ValueError(
                f"`objective` must be a single one, got a bank of {len(self)}; choose bank[name]"
            )
        return self.objectives[0]

    @property
    def text_direction(self) -> Tensor:
        """The `functional.mean_direction`, for a network that follows the texts: (D,) or (N, D)."""
        return functional.mean_direction(self.visible_direction, self.infrared_direction)

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
        directions = [
            torch.atleast_2d(direction).index_select(0, index)
            for direction in (self.visible_direction, self.infrared_direction)
        ]
        if one:
            directions = [direction[0] for direction in directions]
        identity = self.encoder_name, self.encoder_fingerprint
        model = self._of(self.objectives, None, *identity, *directions)
        # Looked up once they are asked for. A copy, as the caller may reuse its tensor.
        model._chosen = index.clone() if rows is None else torch.tensor(rows, device="cpu")
        return model

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
                raise KeyError(f"`choice` must be {known}, got {entry!r}")
            return names.index(entry)
        if not isinstance(entry, Integral) or isinstance(entry, bool):
            raise TypeError(f"`choice` must hold names or indices, got {checks.shorten(entry)}")
        row = operator.index(entry)
        if not 0 <= row < len(self):
            raise IndexError(f"`choice` must hold indices from 0 to {len(self) - 1}, got {row}")
        return row

    def forward(
        self, embedding: Tensor, visible_embedding: Tensor, infrared_embedding: Tensor, *,
        index: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Direction loss per embedding, (..., D) to (...); see `functional.direction_loss`.

        For a bank, `index` has (P,) integers, the objective of each of P embeddings; None: i of i.
        """
        directions = [self.visible_direction, self.infrared_direction]
        if index is not None and self.visible_direction.ndim > 1:
            directions = [direction[index] for direction in directions]
        of_sources = visible_embedding, infrared_embedding
        return functional.direction_loss(embedding, *of_sources, *directions)

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
        tensors = {name: getattr(self, name).cpu().contiguous() for name in self.frozen}
        texts = [asdict(objective) for objective in self.objectives]
        if self.visible_direction.ndim == 1:
            metadata = {"format": ONE, "objective": json.dumps(texts[0])}
        else:
            metadata = {"format": SEVERAL, "objectives": json.dumps(texts)}
            metadata["names"] = json.dumps(self.names)
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
        except (ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError) as e:
            expected = "`path` must be a complete file written by EmbeddedFusionModel.save"
            raise ValueError(f"{expected}, got {path}: {e}; save it again") from e
        if encoder is not None:
            model.check_encoder(encoder)
        return model

    def extra_repr(self) -> str:
        # Not the texts: reading them may wait for the device.
        return f"{len(self)} objectives, names={self.names}, encoder={self.encoder_name!r}"


def embed_one(objective: Any, encoder: FrozenCLIP, before: FusionObjective) -> EmbeddedFusionModel:
    """See `LanguageDrivenFusionLoss.set_objective`; `before` has the texts of the sources."""
    if isinstance(objective, Sequence):
        objective = replace(before, fused=objective)
    if isinstance(objective, FusionObjective):
        return EmbeddedFusionModel(objective, encoder)
    if not isinstance(objective, EmbeddedFusionModel):
        raise TypeError(
            "`objective` must be a text, a list of texts, a FusionObjective(**texts) or an "
            f"EmbeddedFusionModel, such as of .load(path), got {checks.shorten(objective)}"
        )
    objective.check_encoder(encoder)
    _ = objective.objective  # raises for a bank
    if not encoder.keep_text:
        encoder.drop_text()
    return copy.deepcopy(objective).to(encoder.device)  # other losses on other devices may use it


def embed_all(objectives: Any, encoder: FrozenCLIP, before: FusionObjective) -> EmbeddedFusionModel:
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
        return embed_all(objectives, encoder, current.objective)
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
    name: str, value: object, before: FusionObjective
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
            entry = replace(before, fused=entry)
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
    """(N, D) directions of N objectives from "visible" and from "infrared"."""
    roles = [texts for each in objectives for texts in (each.fused, each.visible, each.infrared)]
    texts = [text for role in roles for text in role]
    for text in texts:
        if encoder.has_no_known_word(text):
            raise ValueError(
                f"a text must have a word that the encoder {encoder.name!r} knows, got {text!r}; "
                "use words of encoder.vocabulary, or a real CLIP: FrozenCLIP.from_pretrained()"
            )
    # One call for all texts: an encoder may drop its text tower after the first.
    embeddings = encoder._on_host(texts).split([len(role) for role in roles])
    means = torch.stack([F.normalize(role.mean(0), dim=-1) for role in embeddings])
    fused, visible, infrared = means.unflatten(0, (-1, 3)).unbind(1)
    for name, source in (("visible", visible), ("infrared", infrared)):
        gaps = (fused - source).norm(dim=-1).tolist()
        if min(gaps) < functional.DIRECTION_EPS:
            objective = objectives[gaps.index(min(gaps))]
            raise ValueError(
                f"`fused` and `{name}` must differ for {encoder.name!r}, got the same vector for "
                f"{objective.fused!r} and {getattr(objective, name)!r}; change the wording of one"
            )
    both = (functional.direction(source, fused) for source in (visible, infrared))
    visible, infrared = (direction.to(encoder.device) for direction in both)
    return visible, infrared


def _read(path: Path) -> tuple[Any, ...]:
    """The arguments of `EmbeddedFusionModel._set`, from a file of `save`."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") not in (ONE, SEVERAL):
            raise ValueError(f"its format is {metadata.get('format')!r}, not {SEVERAL!r}")
        tensors = {name: file.get_tensor(name) for name in EmbeddedFusionModel.frozen}
    if metadata.pop("sha256") != _digest(metadata, tensors):
        raise ValueError("its content does not match its checksum")
    if metadata["format"] == ONE:
        texts, names, axes = [json.loads(metadata["objective"])], None, []
    else:
        texts, names = json.loads(metadata["objectives"]), json.loads(metadata["names"])
        axes = [len(texts)]
    fingerprint = metadata["encoder_fingerprint"]
    objectives = tuple(FusionObjective(**roles) for roles in texts)
    for tensor in tensors.values():
        fits = tensor.numel() and tensor.dtype == torch.float32 and [*tensor.shape[:-1]] == axes
        unit = ((tensor.norm(dim=-1) - 1).abs() < 1e-3).all()  # NaN is none either
        if not (fits and unit) or tensor.shape != tensors["visible_direction"].shape:
            raise ValueError("a direction is not a float32 unit vector per objective")
    if names is not None:
        if {*map(type, names)} != {str} or not len({*names}) == len(names) == len(objectives):
            raise ValueError("it does not have one name per objective")
        names = tuple(names)
    return objectives, names, metadata["encoder_name"], fingerprint, *tensors.values()


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """A checksum of metadata and tensors, as flipped bits could look like other directions."""
    content = json.dumps(metadata, sort_keys=True).encode() + safetensors.torch.save(tensors)
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
