"""The pairs that come with the examples, and how many of a folder are taken."""

import numpy as np
import pytest
import torch
from PIL import Image

from parts.data.default_pairs import choose_pairs, rendered_pairs


@pytest.fixture
def user_folder(tmp_path):
    """A colour pair, a 16-bit pair of another size and file type, and one that does not match."""
    random = np.random.default_rng(0)
    folder = tmp_path / "images"
    for name, suffix, infrared, visible in (
        (
            "colour",
            "png",
            random.integers(256, size=(70, 90)),
            random.integers(256, size=(70, 90, 3)),
        ),
        (
            "deep",
            "tif",
            random.integers(2**16, size=(130, 50)),
            random.integers(256, size=(130, 50)),
        ),
        (
            "unequal",
            "png",
            random.integers(256, size=(64, 64)),
            random.integers(256, size=(64, 65)),
        ),
    ):
        for modality, values in (("Thermal", infrared), ("RGB", visible)):
            path = folder / modality / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            depth = np.uint16 if values.max() > 255 else np.uint8
            Image.fromarray(values.astype(depth)).save(path)
    return folder


def test_a_large_folder_is_not_taken_whole_without_a_word(user_folder, capsys):
    assert [pair.name for pair in choose_pairs(user_folder, limit=1)] == ["colour"]
    assert "at most 1 pairs are taken" in capsys.readouterr().err
    assert len(choose_pairs(user_folder, limit=10)) == 2
    assert "--max-pairs" not in capsys.readouterr().err


def test_rendered_pairs_are_always_the_same():
    first, second = rendered_pairs(2), rendered_pairs(2)
    assert [pair.name for pair in first] == ["scene_01", "scene_02"]
    assert first[0].visible.dtype == torch.uint8
    assert torch.equal(first[1].infrared, second[1].infrared)
