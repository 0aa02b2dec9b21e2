"""What a user gets with the import."""

import re
import subprocess
import sys
from pathlib import Path

import clip_fusion_loss
from clip_fusion_loss.__main__ import main


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


def test_self_check(capsys):
    assert main() == 0
    report = capsys.readouterr().out
    for word in ("clip_fusion_loss", "torch", "open_clip_torch", "CPU", "CLIP cache"):
        assert re.search(rf"^{word} +\S", report, re.MULTILINE), word
    assert re.search(
        r"^step on cpu +works \(embedded CLIP on noise\): loss \d", report, re.MULTILINE
    )


def test_self_check_tells_what_fails(capsys, monkeypatch):
    monkeypatch.setattr("clip_fusion_loss.loading.EMBEDDED", Path("none"))
    assert main() == 1
    assert re.search(r"^step on cpu +failed: ValueError: .*damaged", capsys.readouterr().out, re.M)
