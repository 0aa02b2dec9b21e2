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


def test_self_check_says_which_weights_are_in_the_caches(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert main() == 0
    report = capsys.readouterr().out
    assert re.search(r"^CLIP ViT-B/32 +not in the cache; .*downloads 350 MB", report, re.M)
    assert re.search(r"^VGG-19 +not in the cache; .*downloads 550 MB", report, re.M)
    repository = tmp_path / "models--timm--vit_base_patch32_clip_224.openai"
    clip = repository / "snapshots" / "abc" / "open_clip_model.safetensors"
    vgg = tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth"
    for path in (clip, vgg, repository / "refs" / "main"):
        path.parent.mkdir(parents=True)
        path.write_text("abc")
    main()
    report = capsys.readouterr().out
    for name, path in {"CLIP ViT-B/32": clip, "VGG-19": vgg}.items():
        assert re.search(rf"^{name} +{re.escape(str(path))}$", report, re.M)


def test_self_check_tells_what_fails(capsys, monkeypatch):
    monkeypatch.setattr("clip_fusion_loss.loading.BUNDLED", Path("none"))
    assert main() == 1
    assert re.search(r"^step on cpu +failed: ValueError: .*damaged", capsys.readouterr().out, re.M)
