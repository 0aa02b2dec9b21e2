"""The pairs that come with the examples, and how many of a folder are taken."""

import pytest
import torch
from drawn import save_users_pairs

from parts.data.default_pairs import choose_pairs, rendered_pairs


@pytest.fixture
def user_folder(tmp_path):
    return save_users_pairs(tmp_path / "images")


def test_a_large_folder_is_not_taken_whole_without_a_word(user_folder, capsys):
    assert [pair.name for pair in choose_pairs(user_folder, limit=1)] == ["colour"]
    assert "at most 1 pairs are used" in capsys.readouterr().err
    assert len(choose_pairs(user_folder, limit=10)) == 2
    assert "--max-pairs" not in capsys.readouterr().err


def test_rendered_pairs_are_always_the_same():
    first, second = rendered_pairs(2), rendered_pairs(2)
    assert [pair.name for pair in first] == ["scene_01", "scene_02"]
    assert first[0].visible.dtype == torch.uint8
    assert torch.equal(first[1].infrared, second[1].infrared)
