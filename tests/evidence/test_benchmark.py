"""The benchmark: that the published step, rewritten, computes the same loss, and what it writes."""

import json

import open_clip
import pytest
import torch

from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss
from conftest import build_clip
from evidence import benchmark
from evidence.published_step import PublishedStep

SMALL = ["--size", "40", "--patches", "3", "--repeats", "2", "--device", "cpu"]


@pytest.fixture
def small_clip(monkeypatch, tokenizer):
    """A CLIP of no size for whatever model is asked for, also where memory is measured."""
    monkeypatch.setattr(open_clip, "create_model", lambda _: build_clip())
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: tokenizer)

    def peak_memory(options, which, *variant):
        return benchmark.peak_memory_here(benchmark.parse([*SMALL, f"--peak-of={which}"]))

    monkeypatch.setattr(benchmark, "peak_memory", peak_memory)


@pytest.mark.parametrize(("levels", "kept"), [(256, 1), (16, 0)])
def test_published_step_is_our_loss(clip_model, tokenizer, levels, kept):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 1, 32, 32, generator=generator)
    fused, visible, infrared = (images * (levels - 1)).round() / (levels - 1)
    fused.requires_grad_()
    published = PublishedStep(clip_model, tokenizer, patches=2)
    published.crop = published.resize  # whole images for patches: ours are cut otherwise
    published(fused, visible, infrared)
    criterion = LanguageDrivenFusionLoss(
        encoder=FrozenCLIP(build_clip(), tokenizer),
        direction_weight=2 + 10 * kept,
        patch_weight=0,
    )
    ours = criterion(fused=fused, visible=visible, infrared=infrared)
    (expected,) = torch.autograd.grad(ours, fused)
    torch.testing.assert_close(fused.grad, expected, rtol=1e-3, atol=1e-5 * expected.abs().max())


def test_published_crops_are_windows_of_all_three_alike(clip_model, tokenizer):
    image = torch.rand(2, 1, 60, 48)
    patches = PublishedStep(clip_model, tokenizer, 1).crop(image.expand(-1, 3, -1, -1))
    assert patches.shape == (2, 3, 32, 32)
    torch.testing.assert_close(patches, patches[:, :1].expand_as(patches))


def test_comparison(small_clip, tmp_path, capsys):
    file = tmp_path / "result.json"
    variants = ["--count", "4", "--ours", "3", "1", "--precision", "fp32", "bf16"]
    benchmark.main([*SMALL, *variants, "--json", str(file)])
    result = json.loads(file.read_text())
    lines = capsys.readouterr().out.splitlines()[-4:]
    for row, line in zip(result["ours"], lines, strict=True):
        assert row["speedup_min"] <= row["speedup"] <= row["speedup_max"]
        assert row["peak_memory_ratio"] > 0
        assert row["kept"] == 1  # random images
        assert row["bound"] == pytest.approx(3 * 6 / (2 * row["patches"] + 4))
        assert line.startswith(f"| {row['patches']} patches, {row['precision']} | 1.00 | ")


def test_the_variants_are_those_that_are_asked_for(small_clip, encoder, encoded_batches):
    options = benchmark.parse(SMALL)
    (images,) = benchmark.load_images(options)
    benchmark.build_ours(options, encoder, 2, "fp32")(*images)
    assert sum(encoded_batches) == 2 * 2 + 3 * 2  # patches, and the fused image with its sources


def test_curves(small_clip, tmp_path, capsys):
    curve = tmp_path / "curve.json"
    benchmark.main([*SMALL, "--curve", "size", "--json", str(curve)])
    columns = json.loads(curve.read_text())
    assert columns["value"] == [64, 128, 224, 512, 1024]
    assert len(columns["seconds"]) == len(columns["peak_memory"]) == 5
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_reading_real_pairs(real_pairs):
    options = benchmark.parse(["--pairs", str(real_pairs / "tno"), "--batch", "3"])
    ((fused, visible, infrared),) = benchmark.load_images(options)
    assert fused.shape == visible.shape == infrared.shape == (3, 1, 224, 224)
    torch.testing.assert_close(fused.detach(), (visible + infrared) / 2)
