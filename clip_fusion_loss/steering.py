"""The current objective of a loss, and objectives for single images of a batch."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .building import building
from .encoder import FrozenCLIP
from .fusion_model import EmbeddedFusionModel, text_directions
from .objective import FusionObjective, as_objectives
from .objective_files import Content

__all__ = ["Steered"]

# Objectives whose directions are cached, 4 KiB each with ViT-B/32. Others are computed again from
# the text embeddings, 2 KiB each, which the encoder always keeps on the host.
REMEMBERED = 4096


class Steered(nn.Module):
    """Holds an `encoder` and the current objective; also embeds objectives for single images."""

    encoder: FrozenCLIP
    fusion_model: EmbeddedFusionModel

    def __init__(self) -> None:
        super().__init__()
        self._seen = _SeenObjectives()

    @property
    def objective(self) -> FusionObjective:
        """The current texts. Assigning calls `set_objective`."""
        return self.fusion_model.objective

    @objective.setter
    def objective(
        self, objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str]
    ) -> None:
        self.set_objective(objective)

    @building()
    def set_objective(
        self, objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str]
    ) -> None:
        """Replace the current objective, from the next call on.

        Texts that this encoder has embedded before are not embedded again. On an error the
        objective does not change.

        Args:
            objective: as in the class. A text, or several, describe the fused image; the texts of
                the sources do not change.

        Raises:
            TypeError, ValueError: see `FusionObjective` and `EmbeddedFusionModel`.
            RuntimeError: a text is new and the encoder's text tower was dropped.
        """
        if isinstance(objective, Sequence):
            constructed = "fusion_model" in self._modules
            before = self.objective if constructed else FusionObjective()
            objective = replace(before, fused=objective)
        if isinstance(objective, FusionObjective):
            fusion_model = EmbeddedFusionModel(objective, self.encoder)
        elif isinstance(objective, EmbeddedFusionModel):
            objective.check_encoder(self.encoder)
            _ = objective.objective  # raises for a bank
            fusion_model = copy.deepcopy(objective)  # other losses on other devices may use it
            if not self.encoder.keep_text:
                self.encoder.drop_text()
        else:
            raise TypeError(
                "`objective` must be a text, a FusionObjective or an EmbeddedFusionModel, got "
                f"{checks.shown(objective)}; {_objective_remedy(objective)}"
            )
        self.fusion_model = fusion_model.to(self.encoder.device)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def embed(
        self, objectives: Sequence[str | FusionObjective] | Mapping[str, str | FusionObjective]
    ) -> EmbeddedFusionModel:
        """Embed several objectives: one per image of a batch, or a bank to choose from.

        It may be called in every step: texts that this encoder has embedded before are not embedded
        again, and new ones take a single call of the text tower. The encoder keeps text embeddings
        on the host; the directions of up to 4096 objectives are kept on its device.

        Args:
            objectives: N texts or `FusionObjective`s, or a mapping of names to them. A text
                describes the fused image; the texts of the sources are those of the current
                objective.

        Returns:
            The N objectives, with (N, D) directions, on the encoder's device.

        Raises:
            TypeError, ValueError: see `FusionObjective` and `EmbeddedFusionModel`.
            RuntimeError: a text is new and the encoder's text tower was dropped.
        """
        entries, names = as_objectives("objectives", objectives, self.objective)
        directions = self._seen.directions(entries, self.encoder)
        identity = self.encoder.name, self.encoder.fingerprint
        return EmbeddedFusionModel._of(Content(entries, names, *identity, *directions))

    def _fusion_model_for(self, objectives: Any, images: Tensor) -> EmbeddedFusionModel:
        """`objectives`, one per image of `images`, embedded; for None the current objective."""
        if objectives is None:
            return self.fusion_model
        embedded = isinstance(objectives, EmbeddedFusionModel)
        if not embedded and (isinstance(objectives, str) or not isinstance(objectives, Sequence)):
            raise TypeError(
                "`objectives` must be a sequence of texts or FusionObjectives, one per image, "
                f"or an EmbeddedFusionModel that holds as many, got {checks.shown(objectives)}; "
                f"{_objectives_remedy(objectives)}"
            )
        if len(objectives) != len(images):
            raise ValueError(
                f"`objectives` must be as many as there are images, {len(images)}, got "
                f"{len(objectives)}; pass several texts for one image as FusionObjective(texts), "
                "and choose from a bank with bank[names] or bank[indices]"
            )
        if not embedded:
            return self.embed(objectives)
        objectives.check_encoder(self.encoder)
        device = objectives.visible_direction.device
        if device != images.device:
            raise ValueError(
                f"`objectives` must be on {images.device} like the loss, got {device}; move them, "
                f"or the bank that they come from, with .to({str(images.device)!r}) once"
            )
        return objectives

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "objective":  # nn.Module would take an EmbeddedFusionModel for a child
            object.__setattr__(self, name, value)
            return
        if name == "encoder" and "fusion_model" in self._modules:
            # DataParallel assigns copies to its replicas; another encoder would not fit the texts.
            checks.check_type("encoder", value, FrozenCLIP)
            self.fusion_model.check_encoder(value)
        super().__setattr__(name, value)


class _SeenObjectives:
    """Caches the results of `text_directions` per objective; copies of it begin empty.

    Not a module with buffers: `DistributedDataParallel` would copy those of the first process,
    with its texts, to all the others.
    """

    def __init__(self) -> None:
        # Keyed by device too, as replicas of DataParallel share this object.
        self._known: dict[tuple[FusionObjective, torch.device], tuple[Tensor, Tensor]] = {}

    def __reduce__(self) -> Any:  # of copy and pickle
        return type(self), ()

    @torch.inference_mode(False)
    def directions(
        self, objectives: Sequence[FusionObjective], encoder: FrozenCLIP
    ) -> tuple[Tensor, Tensor]:
        """(N, D) directions from "visible" and from "infrared", on the encoder's device."""
        device = encoder.device
        known = {each: self._known.get((each, device)) for each in objectives}
        rows = {each: row for each, row in known.items() if row is not None}
        new = [each for each, row in known.items() if row is None]
        if new:
            with building():
                rows.update(zip(new, text_directions(new, encoder), strict=True))
            if len(self._known) + len(new) > REMEMBERED:
                self._known.clear()
            self._known.update({(each, device): rows[each] for each in new[:REMEMBERED]})
        # Stacked on the device, so nothing is copied from the host.
        visible, infrared = zip(*(rows[each] for each in objectives), strict=True)
        return torch.stack(visible), torch.stack(infrared)


def _objective_remedy(objective: object) -> str:
    if isinstance(objective, os.PathLike):
        return "load a saved one with EmbeddedFusionModel.load(path)"
    if isinstance(objective, Mapping):
        return "pass texts by role as FusionObjective(**texts)"
    return "pass several texts as a list"


def _objectives_remedy(objectives: object) -> str:
    if isinstance(objectives, (str, FusionObjective)):
        return "set one for all images with criterion.set_objective(...)"
    if isinstance(objectives, Mapping):
        return "make a bank with criterion.embed(mapping) and choose from it with bank[names]"
    return "choose from a bank with bank[indices], and convert arrays of texts with .tolist()"
