"""One training for many sentences: a random sentence for each image of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clip_fusion_loss import EmbeddedFusionModel, FusionLossTerms, LanguageDrivenFusionLoss
from parts.data.pairs import spread
from parts.networks.conditioned import Conditioned, told

#: Short trainings for many sentences take steps of one crop each: many small steps reach more than
#: few large ones. The gradients of single steps differ tenfold and more; without a limit a few of
#: them can push a network to where it stays washed out.
BATCH_SIZE = 1
MAX_NORM = 0.5

#: Multiples of it, modulo 1, fill the unit interval evenly, however many they are.
GOLDEN_RATIO = (1 + 5**0.5) / 2


class DrawnSentences(nn.Module):
    """A conditioned network and its loss, usable in place of a plain network and a plain loss.

    A training loop calls it as ``network(visible, infrared)`` and then, for the same batch, as
    ``criterion.terms(fused, visible, infrared)``. The first call chooses a sentence per image; the
    second computes the loss of each image for its sentence. Which comes first is drawn from torch's
    global generator; the others follow so that all are used evenly at any time.

    Args:
        network: the network to train; it gets the text direction of each image's sentence.
        criterion: the loss.
        bank: the sentences to draw from, made by ``criterion.embed(sentences)``.
        weights: how often each is used, relative to the others; None: evenly.
    """

    calls: int
    """Batches so far; a resumed training sets it."""

    def __init__(
        self,
        network: Conditioned,
        criterion: LanguageDrivenFusionLoss,
        bank: EmbeddedFusionModel,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.bank = bank
        self.calls = 0
        self._first = torch.rand((), dtype=torch.float64)
        # Not a buffer: chosen on the host, so as not to wait for the device.
        sums = torch.tensor(weights or [1.0] * len(bank), dtype=torch.float64).cumsum(0)
        self._shares = sums / sums[-1]
        self._drawn: EmbeddedFusionModel | None = None

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        # Systematic sampling: equal steps through the shares. The sentences of a batch differ as
        # far as they can, and so do those of batches in a row, as the first step moves on.
        steps = torch.arange(len(visible)) + (self._first + self.calls * GOLDEN_RATIO) % 1
        self.calls += 1
        self._drawn = self.bank[torch.searchsorted(self._shares, steps / len(visible))]
        return self.network(visible, infrared, self._drawn.text_direction)

    def terms(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> FusionLossTerms:
        return self.criterion.terms(fused, visible, infrared, objectives=self._drawn)

    def told_some(self, count: int) -> dict[str, nn.Module]:
        """The network with a fixed sentence, for at most `count` sentences, by the quoted text."""
        return {
            f'"{self.bank.objectives[row].fused[0]}"': told(
                self.network, self.bank.text_direction[row]
            )
            for row in spread(len(self.bank), count)
        }
