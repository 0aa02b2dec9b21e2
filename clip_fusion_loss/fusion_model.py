"""EmbeddedFusionModel: objectives as text directions in CLIP's embedding space."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks, functional, objective_files
from .building import building
from .encoder import FrozenCLIP
from .frozen import FixedBuffers
from .identity import is_current, same_clip
from .objective import FusionObjective, as_objectives
from .objective_files import Content

__all__ = ["EmbeddedFusionModel", "text_directions"]


class EmbeddedFusionModel(FixedBuffers):
    """One or several embedded objectives: the text directions from each source to the fused image.

    Texts are embedded once, at construction. If a role has several texts, their embeddings are
    averaged and normalised. The directions are buffers that stay out of checkpoints and stay
    float32 when the owner is cast.

    With several objectives it is a bank. Each image of a batch can use a different one of them:

        bank = criterion.embed({"day": "a bright image", "night": "a dark image"})
        chosen = bank[["night", "day", "night"]]  # or integers: a list, or a (B,) tensor
        loss = criterion(fused=fused, visible=visible, infrared=infrared, objectives=chosen)

    Args:
        objective: one `FusionObjective`; or, for a bank, a sequence of N objectives or a mapping
            of names to N objectives, in which a text stands for `FusionObjective(text)`.
        encoder: the CLIP that embeds the texts, all in one call of its text tower.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: there is no objective; or the encoder gives the texts `fused` and `visible` or
            `infrared` the same vector, so there is no direction between them.
        RuntimeError: a text is new and the encoder's text tower was dropped.

    Attributes:
        visible_direction: float32 unit vectors, (D,) for one objective, (N, D) for a bank. Zero if
            the encoder has a vocabulary and no word of `fused` is in it: such a text has no effect.
        infrared_direction: likewise, from the infrared image's text.
        names: the N names of a bank made from a mapping; otherwise None.
        encoder_name: the name of the encoder.
        encoder_fingerprint: a digest of the encoder, see `check_encoder`.
    """

    visible_direction: Tensor
    infrared_direction: Tensor
    names: tuple[str, ...] | None

    @building()
    def __init__(
        self,
        objective: FusionObjective
        | Sequence[str | FusionObjective]
        | Mapping[str, str | FusionObjective],
        encoder: FrozenCLIP,
    ) -> None:
        super().__init__()
        checks.check_type("encoder", encoder, FrozenCLIP)
        one = isinstance(objective, FusionObjective)
        objectives, names = as_objectives(
            "objective", [objective] if one else objective, FusionObjective()
        )
        rows = text_directions(objectives, encoder)
        visible, infrared = rows[0] if one else map(torch.stack, zip(*rows, strict=True))
        self._set(Content(objectives, names, encoder.name, encoder.fingerprint, visible, infrared))

    @classmethod
    def _of(cls, content: Content) -> EmbeddedFusionModel:
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._set(content)
        return model

    def _set(self, content: Content) -> None:
        self._objectives = content.objectives
        self._chosen: Tensor | None = None
        self.names = content.names
        self.encoder_name = content.encoder_name
        self.encoder_fingerprint = content.encoder_fingerprint
        for name in ("visible_direction", "infrared_direction"):
            self.register_buffer(name, getattr(content, name), persistent=False)

    def _content(self) -> Content:
        return Content(*(getattr(self, name) for name in Content._fields))

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
                f"`objective` must be a single one, got a bank of {len(self)}; choose one with "
                "bank[name] or bank[index], or read bank.objectives for all"
            )
        return self.objectives[0]

    @property
    def text_direction(self) -> Tensor:
        """The vector for a network that is conditioned on the objective; (D,), (N, D) for a bank.

        It is the normalised mean of both directions (`functional.mean_direction`), in which the
        loss moves the fused image. Float32 unit vectors without gradient, with entries in [-1, 1]
        of about 1 / sqrt(D); zero if the text has no effect.
        """
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

        Args:
            choice: a name or an index, for one objective; or a sequence of B of them; or a (B,)
                tensor of indices, on the CPU or on the device of the directions. Indices go from
                0 to N - 1.

        Returns:
            A single objective with (D,) directions, or B objectives with (B, D) directions.

        Raises:
            TypeError: `choice` is of another type.
            ValueError: there is no such name or index. Indices on an accelerator are not read, as
                the host would have to wait; there a wrong one is an error of the device, on CUDA
                a device-side assert.
        """
        one = isinstance(choice, (str, Integral))
        index, rows = self._index([choice] if one else choice)
        objectives = self.objectives
        if rows is not None:
            objectives = tuple(objectives[row] for row in rows)
        directions = [
            torch.atleast_2d(direction).index_select(0, index)
            for direction in (self.visible_direction, self.infrared_direction)
        ]
        if one:
            directions = [direction[0] for direction in directions]
        identity = self.encoder_name, self.encoder_fingerprint
        model = self._of(Content(objectives, None, *identity, *directions))
        model._chosen = index.clone() if rows is None else None  # the caller may reuse its tensor
        return model

    def _index(self, choice: Any) -> tuple[Tensor, list[int] | None]:
        """(B,) indices on the directions' device, and as a list if the host knows them."""
        device = self.visible_direction.device
        if isinstance(choice, Tensor):
            checks.check_indices("choice", choice, device)
            rows = choice.tolist() if choice.device.type == "cpu" else None
        elif isinstance(choice, (bytes, Mapping)) or not hasattr(choice, "__getitem__"):
            raise TypeError(
                "`choice` must be a name, an index, a sequence of them or a tensor of indices, got "
                f"{checks.shown(choice)}; pass a list"
            )
        else:
            rows = [_row(entry, self.names or ()) for entry in choice]
            choice = torch.tensor(rows, dtype=torch.int64, device="cpu")
        wrong = [row for row in rows or () if not 0 <= row < len(self)]
        if wrong or len(choice) == 0:
            raise ValueError(
                f"`choice` must hold indices from 0 to {len(self) - 1}, got "
                f"{checks.shown(wrong) if wrong else 'none'}"
            )
        return choice.to(device, torch.int64, non_blocking=True), rows

    def forward(
        self,
        embedding: Tensor,
        visible_embedding: Tensor,
        infrared_embedding: Tensor,
        *,
        index: Tensor | None = None,
    ) -> Tensor:
        """Direction loss per embedding; see `functional.direction_loss`.

        Args:
            embedding: (..., D) embeddings of fused images or patches.
            visible_embedding: (..., D) embeddings of the whole visible images.
            infrared_embedding: (..., D) embeddings of the whole infrared images.
            index: for a bank, (P,) integers on its device: the objective of each of P embeddings.
                None: embedding i has objective i. Not used with a single objective.

        Returns:
            (...) losses in [0, 2].

        Raises:
            TypeError, ValueError: a tensor has a wrong type or shape.
        """
        directions = [self.visible_direction, self.infrared_direction]
        if index is not None and self.visible_direction.ndim > 1:
            directions = [direction[index] for direction in directions]
        return functional.direction_loss(
            embedding, visible_embedding, infrared_embedding, *directions
        )

    def check_encoder(self, encoder: FrozenCLIP) -> None:
        """Raise a ValueError unless `encoder` is the CLIP that embedded the objective.

        It compares fingerprints of weights, activation, input size, mean and std; copies cast to
        float16 or bfloat16 are accepted.
        """
        if not is_current(self.encoder_fingerprint):
            raise ValueError(
                "`objective` must be saved by this version, got a file of an older one, which does "
                "not identify the CLIP's activation and text tower; with an encoder that has its "
                "text tower, make it anew with "
                "EmbeddedFusionModel(EmbeddedFusionModel.load(path).objective, encoder).save(path)"
            )
        if not same_clip(encoder.fingerprint, self.encoder_fingerprint):
            raise ValueError(
                f"`encoder` must be the CLIP that embedded the objective, {self.encoder_name!r}, "
                f"got {encoder.name!r} with another activation, input size, mean or std, or other "
                "weights of the image or text tower; embed the objective anew with "
                "EmbeddedFusionModel(objective, encoder)"
            )

    def save(self, path: str | Path) -> None:
        """Write directions, texts, names and the encoder's identity to a safetensors file.

        The file is written completely or not at all.

        Args:
            path: the file; an existing one is replaced.

        Raises:
            TypeError: `path` is not a path.
            OSError: the file cannot be written; an existing one is unchanged.
        """
        objective_files.write(checks.check_path("path", path), self._content())

    @classmethod
    @building()
    def load(cls, path: str | Path, encoder: FrozenCLIP | None = None) -> EmbeddedFusionModel:
        """Read a file written by `save`, onto the CPU. No text tower is needed.

        Args:
            path: the file.
            encoder: the CLIP that it will be used with, to check it here already; the loss
                checks it in any case.

        Raises:
            TypeError: an argument has a wrong type.
            FileNotFoundError: there is no such file.
            ValueError: the file was not written by `save`, is incomplete, or was made with another
                encoder.
        """
        path = checks.check_path("path", path)
        checks.check_type("encoder", encoder, FrozenCLIP, optional=True)
        if not path.is_file():
            raise FileNotFoundError(f"`path` must be an existing file, got {path}")
        model = cls._of(objective_files.read(path))
        if encoder is not None:
            model.check_encoder(encoder)
        return model

    def extra_repr(self) -> str:
        if self.visible_direction.ndim == 1:
            what = f"objective={self.objective}"
        else:  # not the texts: reading them may wait for the device
            what = f"{len(self)} objectives, names={self.names}"
        return f"{what}, encoder={self.encoder_name!r}"


def _row(entry: Any, names: Sequence[str]) -> int:
    if isinstance(entry, str):
        if entry not in names:
            raise ValueError(
                f"`choice` must be one of the names {checks.shown(list(names))}, got {entry!r}"
            )
        return names.index(entry)
    if not isinstance(entry, Integral) or isinstance(entry, bool):
        raise TypeError(f"`choice` must hold names or indices, got {checks.shown(entry)}")
    return operator.index(entry)


def text_directions(
    objectives: Sequence[FusionObjective], encoder: FrozenCLIP
) -> list[tuple[Tensor, Tensor]]:
    """The directions of each objective from "visible" and from "infrared": (D,) unit vectors."""
    roles = [texts for each in objectives for texts in (each.fused, each.visible, each.infrared)]
    # One call for all texts: an encoder may drop its text tower after the first.
    embeddings = encoder.encode_text([text for texts in roles for text in texts])
    means = [
        F.normalize(texts.mean(0), dim=-1) for texts in embeddings.split([len(t) for t in roles])
    ]
    return [
        _directions_of(objective, encoder, *means[3 * number : 3 * number + 3])
        for number, objective in enumerate(objectives)
    ]


def _directions_of(
    objective: FusionObjective,
    encoder: FrozenCLIP,
    fused: Tensor,
    visible: Tensor,
    infrared: Tensor,
) -> tuple[Tensor, Tensor]:
    if all(map(encoder.says_nothing, objective.fused)):
        # Unknown words give no direction, and so no gradient; any other vector would be random.
        return torch.zeros_like(visible), torch.zeros_like(infrared)
    for name, embedding in (("visible", visible), ("infrared", infrared)):
        if torch.dist(fused, embedding) < functional.DIRECTION_EPS:
            raise ValueError(
                f"`fused` and `{name}` must differ for the encoder, got {objective.fused!r} and "
                f"{getattr(objective, name)!r}, to which {encoder.name!r} gives the same vector; "
                "change the wording of one of them"
            )
    return functional.direction(visible, fused), functional.direction(infrared, fused)
