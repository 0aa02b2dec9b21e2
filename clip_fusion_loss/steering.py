"""The objective in force, and objectives for single images: what texts a loss follows."""

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

# Objectives of which directions are kept, 4 KiB each at ViT-B/32. Beyond it they are made anew from
# the texts' vectors, which an encoder keeps on the host for ever, 2 KiB each.
REMEMBERED = 4096


class Steered(nn.Module):
    """Holds an `encoder` and follows texts: the objective in force, or one for each image."""

    encoder: FrozenCLIP
    fusion_model: EmbeddedFusionModel

    def __init__(self) -> None:
        super().__init__()
        self._seen = _SeenObjectives()

    @property
    def objective(self) -> FusionObjective:
        """The texts in force; assigning is `set_objective`."""
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
        """Swap the objective, at any time; the next call uses it.

        Vectors of texts that this encoder has seen before are reused. On an error the old
        objective stays.

        Args:
            objective: as in the class. A plain text, or several, are those for the fused image;
                those of the modalities stay as they are.

        Raises:
            TypeError, ValueError: see `FusionObjective` and `EmbeddedFusionModel`.
            RuntimeError: new texts, but the encoder's text tower was dropped.
        """
        if isinstance(objective, Sequence):
            settled = "fusion_model" in self._modules
            before = self.objective if settled else FusionObjective()
            objective = replace(before, fused=objective)
        if isinstance(objective, FusionObjective):
            fusion_model = EmbeddedFusionModel(objective, self.encoder)
        elif isinstance(objective, EmbeddedFusionModel):
            objective.check_encoder(self.encoder)
            _ = objective.objective  # several are refused
            fusion_model = copy.deepcopy(objective)  # it may serve other losses elsewhere
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
        """Embed several objectives: one for each image of a batch, or a bank to choose from.

        Texts that this encoder has seen before are not embedded again, and new ones in one call
        of the text tower, so that this may be called in every step.

        Args:
            objectives: N texts or `FusionObjective`s, or a mapping of names to such. A text is
                that of the fused image; those of the sources are as in the objective in force.

        Returns:
            The N objectives, with (N, D) directions, on the encoder's device.

        Raises:
            TypeError, ValueError: see `FusionObjective` and `EmbeddedFusionModel`.
            RuntimeError: new texts, but the encoder's text tower was dropped.
        """
        entries, names = as_objectives("objectives", objectives, self.objective)
        directions = self._seen.directions(entries, self.encoder)
        identity = self.encoder.name, self.encoder.fingerprint
        return EmbeddedFusionModel._of(Content(entries, names, *identity, *directions))

    def _fusion_model_for(self, objectives: Any, images: Tensor) -> EmbeddedFusionModel:
        """`objectives` of a call with these (B, C, H, W) images, embedded; None: that in force."""
        if objectives is None:
            return self.fusion_model
        embedded = isinstance(objectives, EmbeddedFusionModel)
        if not embedded and (isinstance(objectives, str) or not isinstance(objectives, Sequence)):
            raise TypeError(
                "`objectives` must be a sequence of texts or FusionObjectives, one for each image, "
                f"or an EmbeddedFusionModel that holds as many, got {checks.shown(objectives)}; "
                f"{_objectives_remedy(objectives)}"
            )
        if len(objectives) != len(images):
            raise ValueError(
                f"`objectives` must be as many as there are images, {len(images)}, got "
                f"{len(objectives)}; several texts for one image are FusionObjective(texts), and "
                "of a bank each image's own is bank[names] or bank[indices]"
            )
        if not embedded:
            return self.embed(objectives)
        objectives.check_encoder(self.encoder)
        device = objectives.visible_direction.device
        if device != images.device:
            raise ValueError(
                f"`objectives` must be on {images.device} like the loss, got {device}; move them, "
                f"or the bank that they are chosen from, with .to({str(images.device)!r}) once"
            )
        return objectives

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "encoder" and "fusion_model" in self._modules:
            # Replicas of DataParallel are assigned copies of it; another would not fit the texts.
            checks.check_type("encoder", value, FrozenCLIP)
            self.fusion_model.check_encoder(value)
        super().__setattr__(name, value)


class _SeenObjectives:
    """Remembers what `text_directions` says of an objective; copies begin with nothing.

    No module with buffers: `DistributedDataParallel` would send those of the first process, with
    its texts, to all the others.
    """

    def __init__(self) -> None:
        # By device too: replicas of DataParallel share this object.
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
        # Stacked on the device: nothing is copied from the host.
        visible, infrared = zip(*(rows[each] for each in objectives), strict=True)
        return torch.stack(visible), torch.stack(infrared)


def _objective_remedy(objective: object) -> str:
    if isinstance(objective, os.PathLike):
        return "a saved one is EmbeddedFusionModel.load(path)"
    if isinstance(objective, Mapping):
        return "texts by role are FusionObjective(**texts)"
    return "several texts are a list"


def _objectives_remedy(objectives: object) -> str:
    if isinstance(objectives, (str, FusionObjective)):
        return "one for all images is criterion.set_objective(...)"
    if isinstance(objectives, Mapping):
        return "of a bank, criterion.embed(mapping), each image's own is bank[names]"
    return "indices are for a bank, bank[indices], and arrays of texts have .tolist()"
