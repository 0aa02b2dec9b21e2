"""The adapters alone: names, lists and sums. The recipes run them in training loops."""

import pytest
import torch

from adapters import (
    CDDFuseCriterion,
    Mixed,
    OverOutputs,
    SeAFusionCriterion,
    SwinFusionCriterion,
    TextIFCriterion,
    parts_of,
    swapped_at_random,
)
from clip_fusion_loss import IntensityGradientLoss
from conftest import draw_images, make_criterion


@pytest.fixture
def images():
    """Fused, visible and infrared, of different statistics."""
    fused, visible, infrared = draw_images()
    return {"fused": fused, "visible": visible, "infrared": infrared / 2 + 0.4}


@pytest.fixture
def build(encoder):
    """The loss without patches, so that two calls give the same."""

    def build(**options):
        return make_criterion(
            encoder, regularizer=IntensityGradientLoss(), patch_weight=0.0, **options
        )

    return build


def original(*, fused, visible, infrared):
    return (fused - visible).abs().mean() + 3 * (fused - infrared).square().mean()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("adapter", "order", "values"),
    [
        (SwinFusionCriterion, ("infrared", "visible", "fused"), 4),
        (CDDFuseCriterion, ("visible", "infrared", "fused"), 3),
        (SeAFusionCriterion, ("visible", "infrared", "label", "fused", "number"), 3),
        (TextIFCriterion, ("visible", "infrared", "fused", "task"), 5),
    ],
)
def test_order_of_arguments_and_values(adapter, order, values, mixed, build, images):
    criterion = build()
    expected = criterion(**images)
    if mixed:
        criterion = Mixed(criterion, original, language_weight=0.5, original_weight=0.1)
        expected = 0.5 * expected + 0.1 * original(**images)
    total, *parts = adapter(criterion)(*(images.get(name) for name in order))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(sum(parts), expected)
    assert 1 + len(parts) == values


def test_the_original_loss_is_part_of_the_regularizer(build, images):
    mixed = Mixed(build(), original, language_weight=0.5, original_weight=0.1)
    alone, parts = parts_of(mixed.language, **images), parts_of(mixed, **images)
    expected = 0.5 * alone.regularizer + 0.1 * original(**images)
    torch.testing.assert_close(parts.regularizer, expected)
    torch.testing.assert_close(parts.language, 0.5 * alone.language)
    torch.testing.assert_close(mixed(**images), parts.total)


def test_lists_of_outputs_and_grey_levels(build, images):
    grey = {name: 255 * image for name, image in images.items()}
    outputs = [grey.pop("fused"), grey["visible"] / 2]
    first, second = (build()(**images | {"fused": output / 255}) for output in outputs)
    criterion = OverOutputs(build(data_range=(0, 255)))
    torch.testing.assert_close(criterion(fused=outputs, **grey), (first + second) / 2)
    torch.testing.assert_close(criterion(fused=outputs[0], **grey), first)


def test_swaps_are_by_sample_and_lose_nothing():
    torch.manual_seed(0)
    visible, infrared = torch.zeros(64, 1, 2, 2), torch.ones(64, 1, 2, 2)
    first, second = swapped_at_random(visible, infrared)
    assert torch.equal(first + second, visible + infrared)
    swapped = first.flatten(1).mean(1)
    assert set(swapped.tolist()) == {0.0, 1.0}
    assert 16 < swapped.sum() < 48
