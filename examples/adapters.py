"""Put the language-driven loss into training loops as they are in the wild.

Code bases for infrared-visible fusion agree on little: which image comes first, what a criterion
returns, which range grey levels have. Mixing up visible and infrared changes the loss by 1 to 3 %
and raises no error, so here names carry the meaning: every adapter's signature says which
argument is which, in the order of the code base it is made for, and passes them on by keyword.

Each docstring holds the lines to change in that code base. `docs/adapters.md` tells the same
story in full.
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
    language: Tensor
    """The steps in CLIP's space, of the whole image and of its patches."""
    similarity: Tensor
    """Nearness to the sources in CLIP's space."""
    regularizer: Tensor
    """Nearness to the sources in pixels or features, and what was mixed in."""


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
        language=criterion.direction_weight * terms.direction
        + criterion.patch_weight * terms.patch,
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
    """For loops that call ``criterion(infrared, visible, fused)`` and unpack four values.

    In SwinFusion's `models/model_plain.py` the loss is set up by name and called as
    ``total_loss, loss_text, loss_int, loss_ssim = self.G_lossfn(self.A, self.B, self.E)``, where
    A is the infrared image; the parts are then logged with ``.item()``. The call stays, only the
    set-up in `define_loss` changes::

        -     self.G_lossfn = fusion_loss_vif().to(self.device)
        +     self.G_lossfn = SwinFusionCriterion(LanguageDrivenFusionLoss.paper()).to(self.device)

    The log's columns then hold, in this order, the total and its parts language (for texture),
    regularizer (for intensity) and similarity (for SSIM). They add up to the total.
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
    """For loops that call ``criterion(visible, infrared, fused)`` and unpack three values.

    So do CDDFuse, PIAFusion and their many descendants. In CDDFuse's `train.py`, second phase::

        - criteria_fusion = Fusionloss()
        + criteria_fusion = CDDFuseCriterion(LanguageDrivenFusionLoss.paper()).to(device)
          ...
          fusionloss, _, _ = criteria_fusion(data_VIS, data_IR, data_Fuse)      # unchanged

    The second and third value, intensity and gradient there, are the language part and the sum
    of all others; they add up to the total.
    """

    def __init__(self, criterion: LanguageDrivenFusionLoss | Mixed) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(
        self, visible: Tensor, infrared: Tensor, fused: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = parts_of(self.criterion, fused=fused, visible=visible, infrared=infrared)
        return parts.total, parts.language, parts.similarity + parts.regularizer


class OverOutputs(nn.Module):
    """For networks that return a list of fused images, and grey levels from 0 to 255.

    Ports of DenseFuse do: their decoder returns a list, one image from each of its heads, and
    the loss is the mean over it. Tell the loss the range, it needs no other change. In the
    training loop of such a port, behind its fusion step::

        + criterion = OverOutputs(LanguageDrivenFusionLoss.paper(data_range=(0, 255)))
          ...
          outputs = model.decoder(model.fusion(model.encoder(ir), model.encoder(vi)))
        - loss = mse_loss(outputs[0], ir) + ...
        + loss = criterion(outputs, visible=vi, infrared=ir)
    """

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(
        self, outputs: Tensor | Sequence[Tensor], *, visible: Tensor, infrared: Tensor
    ) -> Tensor:
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        losses = [
            self.criterion(fused=fused, visible=visible, infrared=infrared) for fused in outputs
        ]
        return torch.stack(losses).mean()


def swapped_at_random(visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
    """The network's two inputs, exchanged in about half of the samples; the names stay outside.

    U2Fusion trains so, to treat both its inputs alike. Its own loss may forget which source was
    which, this one must not: do not swap the variables, swap what goes into the network. In a
    port that works in [-1, 1]::

        + criterion = LanguageDrivenFusionLoss.paper(data_range=(-1, 1)).to(device)
          ...
        - if random.random() < 0.5:
        -     visible, infrared = infrared, visible
        - fused = network(torch.cat([visible, infrared], 1))
        - loss = ssim_mse_loss(fused, visible, infrared)
        + fused = network(torch.cat(swapped_at_random(visible, infrared), 1))
        + loss = criterion(fused=fused, visible=visible, infrared=infrared)

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
    fused images comes as a second stage, with the fusion rule between encoder and decoder::

          for image in images:                                    # unchanged
              loss = reconstruction_loss(decoder(encoder(image)), image)
              ...
        + for visible, infrared in pairs:
        +     fused = decoder(encoder(visible) + encoder(infrared))
        +     loss = criterion(fused=fused, visible=visible, infrared=infrared)
        +     ...

    This module does both behind one call: in stage "reconstruct" both sources count as single
    images, in stage "fuse" the criterion is used. Switch by ``module.stage = "fuse"``, and take a
    new optimizer then: Adam's averages over the first stage's far larger gradients would lead the
    second astray.

    Args:
        network: has `encoder` and `decoder`, and fuses when called with both sources.
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
        if self.stage == "reconstruct":
            images = torch.cat([visible, infrared])
            return self.reconstruction(reconstruct(self.network, images), images)
        if self.stage != "fuse":
            raise ValueError(f'`stage` must be "reconstruct" or "fuse", got {self.stage!r}')
        fused = self.network(visible, infrared)
        return self.criterion(fused=fused, visible=visible, infrared=infrared)


def reconstruct(network: nn.Module, images: Tensor) -> Tensor:
    """What is left of (N, 1, H, W) images behind the network's encoder and decoder."""
    return network.decoder(network.encoder(images))
