"""CLIPs by the names that users give them."""

import re
from pathlib import Path

import pytest
import torch

from parts.losses import language
from parts.losses.language import build_criterion


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ViT-B-32-quickgelu/openai", ("ViT-B-32-quickgelu", "openai")),
        ("hf-hub:someone/clip", ("hf-hub:someone/clip",)),
        ("local-dir:/models/clip", ("local-dir:/models/clip",)),
        (__file__, ("ViT-B-32-quickgelu", Path(__file__))),
    ],
)
def test_names_of_encoders(monkeypatch, name, arguments):
    def give_back(*received):
        raise ValueError(received)

    monkeypatch.setattr(language.FrozenCLIP, "from_pretrained", give_back)
    with pytest.raises(ValueError, match=re.escape(str(arguments))):
        build_criterion(name, torch.Generator())
