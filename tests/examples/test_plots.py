"""Curves of the loss."""

import numpy as np
import torch

from parts.pages import plots, sheets


def test_odd_prompts_in_pictures(tmp_path):
    grey = torch.zeros(1, 20, 30, dtype=torch.uint8)
    titles = ["100 $ and $x^{", "_hidden", "a long prompt " * 20]
    window = sheets.salient_window(grey, grey)
    for name, as_rows in (("columns", False), ("rows", True)):
        groups = {title: [grey, grey] for title in titles}
        sheets.save_sheet(groups, [window] * 2, tmp_path / f"{name}.png", as_rows=as_rows)
    history = {"total": [3.0, 2.0, 1.0], "kept": [0.0, 1.0, 1.0]}
    plots.save_loss_curves(dict.fromkeys(titles, history), tmp_path / "curves.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "columns.png",
        "curves.png",
        "rows.png",
    ]


def test_running_mean():
    positions, means = plots.running_mean(np.arange(60.0))
    assert len(means) == 55
    np.testing.assert_allclose(positions, means)
