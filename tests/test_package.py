"""What a user gets with the import."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import clip_fusion_loss


def test_public_names_are_there_and_documented():
    for name in clip_fusion_loss.__all__:
        assert getattr(clip_fusion_loss, name).__doc__
    for name in clip_fusion_loss.functional.__all__:
        assert getattr(clip_fusion_loss.functional, name).__doc__


@pytest.mark.slow
def test_import_is_light():
    code = (
        "import sys, clip_fusion_loss;"
        "print([m for m in ('open_clip', 'torchvision', 'timm') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_all_of_it_is_installed():
    root = Path(clip_fusion_loss.__file__).parents[1]
    settings = configparser.ConfigParser()
    if not settings.read(root / "setup.cfg"):
        pytest.skip("needs a checkout")
    found = (path.parent.relative_to(root) for path in root.glob("clip_fusion_loss/**/__init__.py"))
    assert settings["options"]["packages"].split() == sorted(".".join(p.parts) for p in found)
