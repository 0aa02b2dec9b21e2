"""Checks that need more than one call; guarantees/test_wrong_calls.py has all the others."""

from pathlib import Path

import pytest
import torch
from torch import nn

from clip_fusion_loss import (
    FusionObjective,
    LanguageDrivenFusionLoss,
    checks,
)
from conftest import draw_images, make_criterion


def test_warnings_point_to_the_line_that_called(encoder):
    criterion = make_criterion(encoder, data_range=(0, 255))
    with pytest.warns(
        UserWarning, match="`visible` and `infrared` in \\[0, 1\\] although"
    ) as caught:
        criterion(*draw_images())
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.warns(UserWarning, match="'zebra'") as caught:
        LanguageDrivenFusionLoss.tiny("a zebra")
    assert {warning.filename for warning in caught} == {__file__}


def test_values_are_looked_at_on_demand(encoder):
    criterion = make_criterion(encoder)
    criterion(*draw_images())
    fused, visible, infrared = draw_images()
    criterion(fused, visible * 255, infrared)  # not the first call: nothing is read any more
    criterion.check_values(fused * 2 - 0.5, visible, infrared)  # young networks overshoot
    with pytest.raises(ValueError, match="divide by 255"):
        criterion.check_values(fused, visible * 255, infrared)


def test_options_may_be_assigned(encoder):
    images = draw_images()
    criterion = make_criterion(encoder, direction_weight=1.0)
    criterion.direction_weight = 3
    criterion.objective = "a dark image"
    expected = make_criterion(encoder, objective="a dark image", direction_weight=3)
    assert criterion.objective == FusionObjective("a dark image")
    assert criterion(*images) == expected(*images)


def test_all_on_the_wrong_device(encoder):
    with pytest.raises(ValueError, match=r"criterion.to\('meta'\)"):
        make_criterion(encoder)(*(image.to("meta") for image in draw_images()))


@pytest.mark.parametrize("returned", [torch.zeros(()), torch.zeros(2, 1), 0.0, torch.zeros(3)])
def test_regularizer_that_is_not_per_sample(encoder, returned):
    class Wrong(nn.Module):
        def forward(self, *images):
            return returned

    criterion = make_criterion(encoder, regularizer=Wrong())
    with pytest.raises(ValueError, match="`regularizer` must return one loss per sample"):
        criterion(*draw_images())


def test_another_range_has_the_sources_checked_again(encoder):
    criterion = make_criterion(encoder)
    images = draw_images()
    criterion(*images)
    criterion.data_range = (0.0, 0.1)
    with pytest.raises(ValueError, match=r"`visible` must lie in \[0, 0.1\]"):
        criterion(*images)


def test_also_in_a_script_beside_the_package():
    script = str(Path(checks.__file__).parent) + "_training.py"
    code = compile("def train():\n    checks.warn('so it is')\ntrain()", script, "exec")
    with pytest.warns(UserWarning, match="so it is") as caught:
        exec(code, {"checks": checks})
    assert [(warning.filename, warning.lineno) for warning in caught] == [(script, 2)]
