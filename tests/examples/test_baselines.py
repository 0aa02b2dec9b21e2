"""Fusions without training, and filters at equal sharpness."""

import numpy as np
import pytest
import torch
from drawn import draw_pairs

from parts.measuring.baselines import average, clahe, laplacian_pyramid, matched, maximum, unsharp
from parts.measuring.metrics import average_gradient


@pytest.mark.parametrize("control", [unsharp, clahe])
def test_controls_reach_the_gradient_that_is_asked_for(control):
    images = [average(pair) for pair in draw_pairs(2)]
    before = np.mean([average_gradient(image[0].numpy()) for image in images])
    filtered = matched(control, images, 1.3 * before)
    after = np.mean([average_gradient(image[0].numpy()) for image in filtered])
    assert after == pytest.approx(1.3 * before, rel=0.02)
    weaker = matched(control, images, 0.5 * before)  # they only ever add
    torch.testing.assert_close(weaker, images, rtol=0, atol=1)


def test_fusions_without_training():
    pair = draw_pairs(1)[0]
    torch.testing.assert_close(maximum(pair), torch.maximum(pair.visible, pair.infrared))
    same = pair._replace(infrared=pair.visible)
    torch.testing.assert_close(laplacian_pyramid(same), pair.visible, rtol=0, atol=1)
    flat = pair._replace(infrared=torch.full_like(pair.infrared, 100))
    fused, source = laplacian_pyramid(flat).float(), pair.visible.float()
    # All detail is the visible image's, what is left the mean of both.
    torch.testing.assert_close(fused.diff(), source.diff(), rtol=0, atol=2)
    assert fused.mean().item() == pytest.approx((source.mean().item() + 100) / 2, abs=2)
