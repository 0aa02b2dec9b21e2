"""Days of training in short: nothing piles up."""

import gc
from pathlib import Path

import pytest
import torch
from torch import nn

from clip_fusion_loss import IntensityGradientLoss
from conftest import draw_images, make_criterion
from parts.data.pairs import Pair
from parts.training.short import train

STATUS = Path("/proc/self/statm")


class OneLayer(nn.Module):
    """As fast as can be, so that there can be many steps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, visible, infrared):
        return self.layer(torch.cat([visible, infrared], dim=1))


def resident_memory():
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(STATUS.read_text().split()[1]) * 4096


@pytest.mark.skipif(not STATUS.exists(), reason="reads resident memory as Linux tells it")
def test_two_thousand_steps_of_the_quickstarts_training(encoder):
    """No growth of memory and, since warnings are errors here, no warning."""
    _, visible, infrared = (
        (images * 255).to(torch.uint8) for images in draw_images(batch=6, size=(20, 24))
    )
    pairs = [Pair(str(i), v, r) for i, (v, r) in enumerate(zip(visible, infrared, strict=True))]
    criterion = make_criterion(
        encoder, num_patches=2, min_patch_entropy=5.0, regularizer=IntensityGradientLoss()
    )
    torch.manual_seed(0)
    network = OneLayer()

    def go_on(steps, seed):
        options = {"steps": steps, "seed": seed, "device": torch.device("cpu")}
        return train(network, criterion, pairs, **options)

    go_on(300, 0)
    before = resident_memory()
    history = go_on(1700, 1)
    assert len(history["total"]) == 1700
    assert resident_memory() - before < 4e6
