"""Adapters for the language-driven loss to published training loops.

Code bases for infrared-visible fusion differ in the order of the images, in what a criterion
returns and in the range of grey levels. Swapping visible and infrared hardly changes the loss, so
it is easily missed. Therefore each adapter names its arguments, in the order of its code base, and
passes them on by keyword.

Copy this file into the root of the code base; it needs only PyTorch and `clip_fusion_loss`.
`docs/adapters.md` shows the lines to change there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clip_fusion_loss import LanguageDrivenFusionLoss


class Parts(NamedTuple):
    """The weighted terms of a loss, each a scalar; `total` is the sum of the others."""

    total: Tensor
    direction: Tensor  # of the whole image
    patch: Tensor  # direction loss of its patches
    similarity: Tensor  # cosine distance to the sources
    regularizer: Tensor  # plus the original loss of a `Mixed`

    @property
    def language(self) -> Tensor:
        """Direction loss of the image and of its patches."""
        return self.direction + self.patch


def parts_of(
    criterion: LanguageDrivenFusionLoss | Mixed,
    *,
    fused: Tensor,
    visible: Tensor,
    infrared: Tensor,
) -> Parts:
    """The total and the weighted terms of a loss with ``reduction="mean"`` or ``"sum"``."""
    if isinstance(criterion, Mixed):
        return criterion.parts(fused=fused, visible=visible, infrared=infrared)
    terms = criterion.terms(fused=fused, visible=visible, infrared=infrared)
    return Parts(
        total=terms.total,
        direction=criterion.direction_weight * terms.direction,
        patch=criterion.patch_weight * terms.patch,
        similarity=criterion.similarity_weight * terms.similarity,
        regularizer=criterion.regularizer_weight * terms.regularizer,
    )


class Mixed(nn.Module):
    """Weighted sum of the language-driven loss and a network's original loss::

        language_weight * language + original_weight * original

    Most code bases call their criterion by position; `docs/adapters.md` wraps one in keywords.

    Args:
        language: the language-driven loss.
        original: the original loss, called by keyword with images in the `data_range` of
            `language`; returns a scalar. Its scale differs: DenseFuse's is in the hundreds, the
            language-driven loss about 10.
    """

    def __init__(
        self,
        language: LanguageDrivenFusionLoss,
        original: Callable[..., Tensor],
        *,
        language_weight: float = 1.0,
        original_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.language, self.original = language, original
        self.language_weight, self.original_weight = language_weight, original_weight

    def forward(self, *, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        return self.parts(fused=fused, visible=visible, infrared=infrared).total

    def parts(self, *, fused: Tensor, visible: Tensor, infrared: Tensor) -> Parts:
        """As `parts_of`; `regularizer` includes the original loss."""
        images = {"fused": fused, "visible": visible, "infrared": infrared}
        own = Parts(*(self.language_weight * part for part in parts_of(self.language, **images)))
        original = self.original_weight * self.original(**images)
        return own._replace(total=own.total + original, regularizer=own.regularizer + original)


class _Adapter(nn.Module):
    """Holds the loss that an adapter calls."""

    def __init__(self, criterion: LanguageDrivenFusionLoss | Mixed) -> None:
        super().__init__()
        self.criterion = criterion


class SwinFusionCriterion(_Adapter):
    """For SwinFusion's ``criterion(infrared, visible, fused)``, which returns four values.

    They are the total and its terms in the order of that code base's log: language (in place of
    texture), regularizer (of intensity) and similarity (of SSIM).
    """

    def forward(
        self, infrared: Tensor, visible: Tensor, fused: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = parts_of(self.criterion, fused=fused, visible=visible, infrared=infrared)
        return parts.total, parts.language, parts.regularizer, parts.similarity


class CDDFuseCriterion(_Adapter):
    """For CDDFuse's ``criterion(visible, infrared, fused)``, which returns three values.

    They are the total, its language terms and the sum of the others. Only the first channel of the
    visible image is used, as in CDDFuse's criterion: it is the luminance in Y and YCrCb.
    """

    def forward(
        self, visible: Tensor, infrared: Tensor, fused: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = parts_of(self.criterion, fused=fused, visible=visible[:, :1], infrared=infrared)
        return parts.total, parts.language, parts.similarity + parts.regularizer


class SeAFusionCriterion(CDDFuseCriterion):
    """For SeAFusion's ``criterion(visible YCrCb, infrared, label, fused Y, number)``.

    It returns three values, as `CDDFuseCriterion`; SeAFusion calls the fused image `logits`. The
    segmentation label and the number of the training round are ignored.
    """

    def forward(
        self, visible: Tensor, infrared: Tensor, label: object, fused: Tensor, number: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        return super().forward(visible, infrared, fused)


class TextIFCriterion(_Adapter):
    """For Text-IF's ``criterion(visible, infrared, fused, task)`` on RGB: returns five values.

    They are the total and its terms: direction, patch, similarity and regularizer. The task, which
    names the degradation of the inputs, is ignored: the text of the loss describes the output.
    """

    def forward(
        self, visible: Tensor, infrared: Tensor, fused: Tensor, task: object
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return tuple(parts_of(self.criterion, fused=fused, visible=visible, infrared=infrared))


class OverOutputs(_Adapter):
    """Mean loss over a list of fused images, as DenseFuse's PyTorch port returns it."""

    def forward(
        self, *, fused: Tensor | Sequence[Tensor], visible: Tensor, infrared: Tensor
    ) -> Tensor:
        outputs = [fused] if isinstance(fused, Tensor) else fused
        losses = [
            self.criterion(fused=image, visible=visible, infrared=infrared) for image in outputs
        ]
        return torch.stack(losses).mean()


def swapped_at_random(visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
    """Swap images (N, C, H, W) in about half of the samples, as U2Fusion is trained.

    The language-driven loss tells the sources apart: swap only the inputs of the network::

        fused = network(*swapped_at_random(visible, infrared))
        loss = criterion(fused=fused, visible=visible, infrared=infrared)
    """
    swap = (torch.rand(len(visible)) < 0.5).view(-1, 1, 1, 1).to(visible.device)
    return torch.where(swap, infrared, visible), torch.where(swap, visible, infrared)
