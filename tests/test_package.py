"""What a user gets with the import."""

import subprocess
import sys

import clip_fusion_loss


def test_public_names_are_there_and_documented():
    for name in clip_fusion_loss.__all__:
        assert getattr(clip_fusion_loss, name).__doc__
    for name in clip_fusion_loss.functional.__all__:
        assert getattr(clip_fusion_loss.functional, name).__doc__


def test_import_is_light():
    code = (
        "import sys, clip_fusion_loss;"
        "print([m for m in ('open_clip', 'torchvision', 'timm') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
