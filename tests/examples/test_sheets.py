"""Sheets of images and their details."""

import pytest
import torch

from parts.data.images import read_image
from parts.pages import sheets


@pytest.mark.parametrize(("as_rows", "groups"), [(True, 10), (False, 5)])
def test_sheets_are_at_most_as_tall_as_a_screen(tmp_path, as_rows, groups):
    images = [torch.zeros(1, 48, 64, dtype=torch.uint8)] * 3
    named = {f"{number}, a title of several lines " * 3: images for number in range(groups)}
    windows = [sheets.salient_window(image, image) for image in images]
    sheets.save_sheet(named, windows, tmp_path / "sheet.png", as_rows=as_rows)
    assert 900 < read_image(tmp_path / "sheet.png").shape[1] <= 1000


def test_the_detail_shows_the_warm_target():
    random = torch.Generator().manual_seed(0)
    visible = torch.randint(100, 120, (1, 90, 120), generator=random, dtype=torch.uint8)
    infrared = visible.clone()
    infrared[:, 40:50, 70:76] = 255
    infrared[:, :3] = 255  # a frame
    rows, columns = sheets.salient_window(visible, infrared)
    assert rows.start <= 40
    assert rows.stop >= 50
    assert columns.start <= 70
    assert columns.stop >= 76
    assert (rows.stop - rows.start, columns.stop - columns.start) == (27, 36)


def test_the_details_of_a_sceptic():
    random = torch.Generator().manual_seed(0)
    visible = torch.randint(60, 120, (1, 240, 200), generator=random, dtype=torch.uint8)
    visible[:, 10:110, 20:120] = 90  # sky
    visible[:, 130:230, 10:100] = 90  # a wall, as flat as the sky
    visible[:, 130:230, 110:190] //= 4  # shadow
    rows, columns = sheets.sky_window(visible, visible)
    assert 10 <= rows.start < rows.stop <= 110
    assert 20 <= columns.start < columns.stop <= 120
    rows, columns = sheets.darkest_window(visible, visible)
    assert 130 <= rows.start < rows.stop <= 230
    assert 110 <= columns.start < columns.stop <= 190
