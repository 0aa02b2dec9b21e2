"""One training for many sentences: each image of a batch draws its own."""

import torch
from torch import Tensor, nn

from clip_fusion_loss import EmbeddedFusionModel, FusionLossTerms, LanguageDrivenFusionLoss
from parts.networks.conditioned import Conditioned


class DrawnSentences(nn.Module):
    """A conditioned network and its loss in the place of a plain network and a plain loss.

    A training loop calls it as ``network(visible, infrared)`` and then, for the same batch, as
    ``criterion.terms(fused, visible, infrared)``. The first draws a sentence for each image from
    torch's global generator, the second judges each image by the one it drew.

    Args:
        network: trained; called with the vector of each image's sentence.
        criterion: the loss.
        bank: the sentences to draw from, evenly, made by ``criterion.embed(sentences)``.
    """

    def __init__(
        self, network: Conditioned, criterion: LanguageDrivenFusionLoss, bank: EmbeddedFusionModel
    ) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.bank = bank
        self._drawn: EmbeddedFusionModel | None = None

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        self._drawn = self.bank[torch.randint(len(self.bank), (len(visible),))]
        return self.network(visible, infrared, self._drawn.text_direction)

    def terms(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> FusionLossTerms:
        return self.criterion.terms(fused, visible, infrared, objectives=self._drawn)
