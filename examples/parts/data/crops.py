"""Numbered training crops: crop n is the same at any time and in any process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_fusion_loss import functional
from parts.data.images import luminance
from parts.data.pairs import Pair
from parts.data.seeds import generator_for

#: Keep the order of the pairs and the place of the crops independent of each other.
ORDER, PLACE = 0, 1


@dataclass(frozen=True)
class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Grey crops of pairs, visible and infrared at the same place, each (1, side, side) in [0, 1].

    An epoch has `per_pair` crops of each pair in random order. Numbers continue over the epochs.

    Args:
        pairs: where to crop from; a pair smaller than `side` is enlarged.
        side: height and width of a crop in pixels.
        per_pair: crops of a pair in an epoch (paper: 10).
        augment: whether to rotate, shift, zoom and shear both crops a little, as the paper does.
        seed: determines order, positions and augmentation.
    """

    pairs: Sequence[Pair]
    side: int
    per_pair: int
    augment: bool
    seed: int

    @property
    def epoch_size(self) -> int:
        """Crops in an epoch."""
        return len(self.pairs) * self.per_pair

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(number, self.epoch_size)
        pair = self.pairs[_order(self.epoch_size, self.seed, epoch)[place] // self.per_pair]
        both = torch.cat([luminance(pair.visible), luminance(pair.infrared)])
        visible, infrared = self._cut(both, generator_for(self.seed, PLACE, number)).split(1)
        return visible, infrared

    def _cut(self, image: Tensor, generator: torch.Generator) -> Tensor:
        height, width = image.shape[1:]
        if min(height, width) < self.side:
            factor = self.side / min(height, width)
            height, width = round(height * factor), round(width * factor)
            image = functional.resize_images(image[None], (height, width))[0]
        if self.augment:
            # As the loss draws its patches: a window is cropped and warped in one sampling.
            share = self.side / min(height, width)
            transforms = functional.random_patch_transforms(
                1, 1, (height, width), scale=(share, share), generator=generator
            )
            return functional.sample_patches(image[None], transforms, (self.side, self.side))[0, 0]
        top = int(torch.randint(height - self.side + 1, (), generator=generator))
        left = int(torch.randint(width - self.side + 1, (), generator=generator))
        return image[:, top : top + self.side, left : left + self.side]


def batches(
    *, first_step: int, last_step: int, parts: int, batch: int, rank: int, world: int
) -> Iterator[list[int]]:
    """The crops that process `rank` of `world` sees: `parts` batches for each step.

    All processes together see ``parts * world * batch`` consecutive crops in a step, none twice.
    """
    for part in range(first_step * parts, last_step * parts):
        first = (part * world + rank) * batch
        yield list(range(first, first + batch))


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(size, generator=generator_for(seed, ORDER, epoch)).tolist()
