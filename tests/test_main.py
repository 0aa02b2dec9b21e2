"""``python -m clip_fusion_loss``."""

import re
from pathlib import Path

from clip_fusion_loss.__main__ import main


def test_self_check(capsys):
    assert main() == 0
    report = capsys.readouterr().out
    for word in ("clip_fusion_loss", "torch", "open_clip_torch", "CPU"):
        assert re.search(rf"^{word} +\S", report, re.MULTILINE), word
    assert re.search(
        r"^step on cpu +works \(bundled CLIP on noise\): loss \d", report, re.MULTILINE
    )


def test_self_check_tells_what_fails(capsys, monkeypatch):
    monkeypatch.setattr("clip_fusion_loss.loading.BUNDLED", Path("none"))
    assert main() == 1
    assert re.search(r"^step on cpu +failed: ValueError: .*damaged", capsys.readouterr().out, re.M)
