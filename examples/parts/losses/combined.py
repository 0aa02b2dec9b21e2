"""A network and its losses as one module, whose output is the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapters import reconstruct, swapped_at_random
from clip_fusion_loss import FusionLossTerms, LanguageDrivenFusionLoss
from parts.losses.original import (
    ReconstructionLoss,
    ReconstructionTerms,
    SwinFusionLoss,
    SwinFusionTerms,
    U2FusionLoss,
    U2FusionTerms,
)
from parts.training.drawn_sentences import DrawnSentences

OriginalLoss = ReconstructionLoss | SwinFusionLoss | U2FusionLoss
TERMS = {
    ReconstructionLoss: ReconstructionTerms,
    SwinFusionLoss: SwinFusionTerms,
    U2FusionLoss: U2FusionTerms,
}


class NetworkWithLosses(nn.Module):
    """Computes the loss from the sources in one call, as DistributedDataParallel needs it.

    Its trainable parameters are those of the network. As in the paper, the network's inputs get
    noise and the losses clean images.

    Args:
        network: called as ``network(visible, infrared)``.
        language: the language-driven loss, or None. `DrawnSentences` is both network and loss.
        original: the network's original loss, or None. A `ReconstructionLoss` compares single
            images with their reconstructions, other losses use fused images.
        language_weight, original_weight: the weights of both losses.
        noise: standard deviation of the noise (paper: 0.03 for sources in [0, 1]).
        swap: exchange the network's inputs at random, as U2Fusion does.

    Attributes:
        reconstructing: True in DenseFuse's first stage: the loss is `original` alone, with weight
            1, and must be a `ReconstructionLoss`.
    """

    def __init__(
        self,
        network: nn.Module,
        language: LanguageDrivenFusionLoss | DrawnSentences | None,
        original: OriginalLoss | None,
        *,
        language_weight: float = 1.0,
        original_weight: float = 1.0,
        noise: float = 0.0,
        swap: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.language = language
        self.original = original
        self.language_weight = language_weight
        self.original_weight = original_weight
        self.noise = noise
        self.swap = swap
        self.reconstructing = False

    @property
    def names(self) -> list[str]:
        """The terms that `forward` may return, in its order."""
        names = ["total"]
        if self.language is not None:
            names += [f"language_{name}" for name in FusionLossTerms._fields]
        if self.original is not None:
            names += [f"original_{name}" for name in TERMS[type(self.original)]._fields]
        return names

    def forward(self, visible: Tensor, infrared: Tensor) -> dict[str, Tensor]:
        """(N, 1, H, W) crops in [0, 1] -> the total to minimise and all terms, each ()."""
        with_language = self.language is not None and not self.reconstructing
        original_weight = 1.0 if self.reconstructing else self.original_weight
        with_original = self.original is not None and original_weight > 0
        fused = None
        if with_language or not isinstance(self.original, ReconstructionLoss):
            fused = self._fuse(visible, infrared)

        terms: dict[str, Tensor] = {}
        total = visible.new_zeros(())
        if with_language:
            language = self.language.terms(fused, visible, infrared)
            total = total + self.language_weight * language.total
            terms |= {f"language_{name}": term for name, term in language._asdict().items()}
        if with_original:
            original = self._original_terms(fused, visible, infrared)
            total = total + original_weight * original.total
            terms |= {f"original_{name}": term for name, term in original._asdict().items()}
        return {"total": total} | terms

    def _fuse(self, visible: Tensor, infrared: Tensor) -> Tensor:
        inputs = self._noisy(visible), self._noisy(infrared)
        return self.network(*(swapped_at_random(*inputs) if self.swap else inputs))

    def _original_terms(
        self, fused: Tensor | None, visible: Tensor, infrared: Tensor
    ) -> ReconstructionTerms | SwinFusionTerms | U2FusionTerms:
        if isinstance(self.original, ReconstructionLoss):
            images = torch.cat([visible, infrared])
            judged = (reconstruct(self.network, self._noisy(images)), images)
        else:
            judged = (fused, visible, infrared)
        # Under autocast the windows of SSIM would be summed with the 8 bits of bfloat16.
        with torch.autocast(visible.device.type, enabled=False):
            return self.original.terms(judged[0].float(), *judged[1:])

    def _noisy(self, image: Tensor) -> Tensor:
        return image + self.noise * torch.randn_like(image) if self.noise > 0 else image
