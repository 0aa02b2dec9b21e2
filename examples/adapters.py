"""Put the language-driven loss into training loops as they are in the wild.

Code bases for infrared-visible fusion agree on little: which image comes first, what a criterion
returns, which range grey levels have. Mixing up visible and infrared changes the loss little, so
here names carry the meaning: every adapter's signature says which argument is which, in the order
of the code base it is made for, and passes them on by keyword.

`docs/adapters.md` has the lines to change in each code base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from clip_fusion_loss import LanguageDrivenFusionLoss


class Parts(NamedTuple):
    """A loss taken apart for a log; each () and as weighted, so that the parts add up to it."""

    total: Tensor
    direction: Tensor
    """The steps in CLIP's space, of the whole image."""
    patch: Tensor
    """Those of its patches."""
    similarity: Tensor
    """Nearness to the sources in CLIP's space."""
    regularizer: Tensor
    """Nearness to the sources in pixels or features, and what was mixed in."""

    @property
    def language(self) -> Tensor:
        """All steps in CLIP's space."""
        return self.direction + self.patch


class Criterion(Protocol):
    """What adapters pass images on to, by name; `LanguageDrivenFusionLoss` and `Mixed` are such."""

    def __call__(self, *, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor: ...


def parts_of(
    criterion: LanguageDrivenFusionLoss | Mixed,
    *,
    fused: Tensor,
    visible: Tensor,
    infrared: Tensor,
) -> Parts:
    """The criterion's total and the weighted parts that it is the sum of.

    Args:
        criterion: the loss, with ``reduction="mean"`` or ``"sum"``, or a `Mixed` of it.
        fused, visible, infrared: see `LanguageDrivenFusionLoss.forward`.
    """
    if isinstance(criterion, Mixed):
        return criterion.parts(fused=fused, visible=visible, infrared=infrared)
    terms = criterion.terms(fused, visible, infrared)
    return Parts(
        total=terms.total,
        direction=criterion.direction_weight * terms.direction,
        patch=criterion.patch_weight * terms.patch,
        similarity=criterion.similarity_weight * terms.similarity,
        regularizer=criterion.regularizer_weight * terms.regularizer,
    )


class Mixed(nn.Module):
    """The language-driven loss and the loss a network came with, each at a weight::

        language_weight * language + original_weight * original

    A code base's own criterion takes its arguments by position; say once which is which::

        swinfusion_loss = fusion_loss_vif().to(device)          # from the code base
        criterion = Mixed(
            LanguageDrivenFusionLoss.paper(),
            lambda *, fused, visible, infrared: swinfusion_loss(infrared, visible, fused)[0],
            original_weight=0.1,
        )

    Args:
        language: the loss.
        original: called by keyword, returns a scalar; images are in the range of `language`.
        language_weight: its weight.
        original_weight: likewise. The scales differ widely: DenseFuse's original is in the
            hundreds where the language-driven loss is about 10.
    """

    def __init__(
        self,
        language: LanguageDrivenFusionLoss,
        original: Criterion,
        *,
        language_weight: float = 1.0,
        original_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.language = language
        self.original = original
        self.language_weight = language_weight
        self.original_weight = original_weight

    def forward(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        return self.parts(fused=fused, visible=visible, infrared=infrared).total

    def parts(self, *, fused: Tensor, visible: Tensor, infrared: Tensor) -> Parts:
        """As `parts_of`; the original loss counts towards `regularizer`."""
        images = {"fused": fused, "visible": visible, "infrared": infrared}
        own = Parts(*(self.language_weight * part for part in parts_of(self.language, **images)))
        original = self.original_weight * self.original(**images)
        return own._replace(total=own.total + original, regularizer=own.regularizer + original)


class SwinFusionCriterion(nn.Module):
    """For SwinFusion's ``criterion(infrared, visible, fused)``, which gives four values.

    They are the total and its parts, in the order of that code base's log: language (for texture),
    regularizer (for intensity) and similarity (for SSIM).
    """

    def __init__(self, criterion: LanguageDrivenFusionLoss | Mixed) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(
        self, infrared: Tensor, visible: Tensor, fused: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = parts_of(self.criterion, fused=fused, visible=visible, infrared=infrared)
        return parts.total, parts.language, parts.regularizer, parts.similarity


class CDDFuseCriterion(nn.Module):
    """For CDDFuse's ``criterion(visible, infrared, fused)``, which gives three values.

    They are the total, its language part and the sum of all others. Of the visible image the first
    channel counts, as in that code base's own criterion: it is the luminance in Y and YCrCb.
    """

    def __init__(self, criterion: LanguageDrivenFusionLoss | Mixed) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(
        self, visible: Tensor, infrared: Tensor, fused: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = parts_of(self.criterion, fused=fused, visible=visible[:, :1], infrared=infrared)
        return parts.total, parts.language, parts.similarity + parts.regularizer


class SeAFusionCriterion(CDDFuseCriterion):
    """For SeAFusion's ``criterion(visible YCrCb, infrared, label, fused Y, number)``: three values.

    The fused image is called `logits` there. Label and number, of the segmentation and of the
    round, are passed by.
    """

    def forward(
        self, visible: Tensor, infrared: Tensor, label: object, fused: Tensor, number: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        return super().forward(visible, infrared, fused)


class TextIFCriterion(nn.Module):
    """For Text-IF's ``criterion(visible, infrared, fused, task)`` on RGB, which gives five values.

    They are the total and its parts: direction, patch, similarity and regularizer. The task, which
    says how the inputs were degraded, is passed by: the objective's sentence is about the output.
    """

    def __init__(self, criterion: LanguageDrivenFusionLoss | Mixed) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(
        self, visible: Tensor, infrared: Tensor, fused: Tensor, task: object
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return tuple(parts_of(self.criterion, fused=fused, visible=visible, infrared=infrared))


class OverOutputs(nn.Module):
    """For networks that return a list of fused images, as the decoder of DenseFuse's port does.

    The loss is the mean over the list.
    """

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(
        self, fused: Tensor | Sequence[Tensor], *, visible: Tensor, infrared: Tensor
    ) -> Tensor:
        losses = [
            self.criterion(fused=image, visible=visible, infrared=infrared)
            for image in _listed(fused)
        ]
        return torch.stack(losses).mean()


def swapped_at_random(visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
    """The network's two inputs, exchanged in about half of the samples; the names stay outside.

    U2Fusion trains so, to treat both its inputs alike. Its own loss may forget which source was
    which, this one must not: do not swap the variables, swap what goes into the network::

        fused = network(*swapped_at_random(visible, infrared))
        loss = criterion(fused=fused, visible=visible, infrared=infrared)

    Args:
        visible, infrared: (N, C, H, W), of one shape.

    Returns:
        The first and the second input.
    """
    swap = (torch.rand(len(visible)) < 0.5).view(-1, 1, 1, 1).to(visible.device)
    return torch.where(swap, infrared, visible), torch.where(swap, visible, infrared)


class TwoStage(nn.Module):
    """Train encoder and decoder on single images first, and on fused ones afterwards.

    DenseFuse's own training ends with the first stage: no fused image occurs in it, so a loss on
    fused images comes as a second stage, with the fusion rule between encoder and decoder.

    This module does both behind one call: in stage "reconstruct" both sources count as single
    images, in stage "fuse" the criterion is used. Switch by ``module.stage = "fuse"``, and take a
    new optimizer then: Adam's averages over the first stage's far larger gradients would lead the
    second astray.

    Args:
        network: has `encoder` and `decoder`, and fuses by its ``fusion(features, features)``, or
            else when called with both sources. The decoder may return a list.
        reconstruction: the loss of the first stage, called ``(reconstructed, image)``.
        criterion: the loss of the second.
    """

    def __init__(self, network: nn.Module, reconstruction: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.network = network
        self.reconstruction = reconstruction
        self.criterion = criterion
        self.stage = "reconstruct"

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        """The loss of this stage."""
        if self.stage not in ("reconstruct", "fuse"):
            raise ValueError(f'`stage` must be "reconstruct" or "fuse", got {self.stage!r}')
        network = self.network
        if self.stage == "reconstruct":
            images = torch.cat([visible, infrared])
            outputs = _listed(reconstruct(network, images))
            return torch.stack([self.reconstruction(image, images) for image in outputs]).mean()
        if hasattr(network, "fusion"):
            features = network.fusion(network.encoder(infrared), network.encoder(visible))
            fused = network.decoder(features)
        else:
            fused = network(visible, infrared)
        return OverOutputs(self.criterion)(fused, visible=visible, infrared=infrared)


def reconstruct(network: nn.Module, images: Tensor) -> Tensor | Sequence[Tensor]:
    """What is left of (N, 1, H, W) images behind the network's encoder and decoder."""
    return network.decoder(network.encoder(images))


def _listed(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs
