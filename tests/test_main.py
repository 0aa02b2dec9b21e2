"""``python -m clip_fusion_loss``."""

import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from clip_fusion_loss.__main__ import main


def test_self_check(capsys):
    assert main() == 0
    report = capsys.readouterr().out
    for word in ("clip_fusion_loss", "torch", "open_clip_torch", "CPU", "CLIP cache", "VGG cache"):
        assert re.search(rf"^{word} +\S", report, re.MULTILINE), word
    assert re.search(
        r"^step on cpu +works \(bundled CLIP on noise\): loss \d", report, re.MULTILINE
    )


@pytest.mark.parametrize("there", [True, False])
def test_says_whether_the_papers_weights_are_there(capsys, monkeypatch, tmp_path, there):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / "ab12"
    for path in (snapshot / "open_clip_config.json", tmp_path / "hub" / "checkpoints" / "a.pth"):
        path.parent.mkdir(parents=True)
        path.touch()
    if there:
        (snapshot / "open_clip_model.safetensors").touch()
        (tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth").touch()
    main()
    found = re.findall(r"^\w+ cache .*: (.*) the paper's weights", capsys.readouterr().out, re.M)
    assert found == ["has" if there else "does not have"] * 2


def test_self_check_tells_what_fails(capsys, monkeypatch):
    monkeypatch.setattr("clip_fusion_loss.loading.BUNDLED", Path("none"))
    assert main() == 1
    assert re.search(r"^step on cpu +failed: ValueError: .*damaged", capsys.readouterr().out, re.M)
