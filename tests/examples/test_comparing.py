"""Trials against each other."""

import pytest

from parts.measuring.comparing import gains, wins
from parts.pages.tables import table


def test_gains_and_spreads():
    rows = [{"SF": 12.0, "AG": 4.0, "SSIM": 0.7}, {"SF": 11.0, "AG": 4.0, "SSIM": 0.6}]
    others = [{"SF": 10.0, "AG": 4.0, "SSIM": 0.8}, {"SF": 10.0, "AG": 4.0, "SSIM": 0.8}]
    more = gains(rows, others)
    assert [row["SF, %"] for row in more] == pytest.approx([20, 10])
    assert [row["SSIM"] for row in more] == pytest.approx([-0.1, -0.2])
    assert table({"a": more}).splitlines()[-1] == (
        "| a | 15.00 ± 5.00 | 0.000 ± 0.000 | -0.150 ± 0.050 |"
    )


def test_wins_against_a_filter():
    row = dict.fromkeys(("EN", "SD", "SF", "AG"), 2.0) | {"mean": 9.0, "layout": 1.0}
    other = dict.fromkeys(row, 1.0) | {"AG": 1.999, "SF": 3.0}
    assert wins([row], [other]) == [2]
