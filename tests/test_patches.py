"""Chunked gradients: the same numbers as ordinary autograd, in the memory of one chunk."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip_fusion_loss import (
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    SourceEmbeddings,
    patches,
)
from conftest import draw_images

CHUNKS = [1, 3, 5, 64, "auto"]


def make(encoder, chunk, **options):
    return LanguageDrivenFusionLoss(
        encoder=encoder,
        num_patches=7,
        patch_chunk=chunk,
        generator=torch.Generator().manual_seed(1),
        **options,
    )


def value_and_gradient(criterion, images, scale=1.0):
    fused = images[0].detach().requires_grad_()
    losses = criterion(fused, *images[1:])
    (losses * scale).sum().backward()
    return losses.detach(), fused.grad


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none", "patch_reduction": "kept"},
        {"reduction": "sum", "min_patch_entropy": None},
        {"direction_weight": 0, "similarity_weight": 0},
        {"patch_weight": 0},
        {"min_patch_entropy": 8.0},
        {"regularizer": IntensityGradientLoss()},
    ],
    ids=str,
)
def test_equals_unchunked(encoder, chunk, options):
    images = draw_images(batch=3, channels=(3, 1, 1))
    expected = value_and_gradient(make(encoder, None, **options), images)
    actual = value_and_gradient(make(encoder, chunk, **options), images)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-3, atol=1e-6)


def test_samples_weighted_differently(encoder):
    images = draw_images(batch=3)
    scale = torch.tensor([0.0, -1.0, 7.0])
    expected = value_and_gradient(make(encoder, None, reduction="none"), images, scale)
    actual = value_and_gradient(make(encoder, 4, reduction="none"), images, scale)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-3, atol=1e-6)
    assert (actual[1][0] == 0).all()


@pytest.mark.parametrize("chunk", [None, 4])
def test_loss_scaling_is_exact(encoder, chunk):
    images = draw_images()
    _, plain = value_and_gradient(make(encoder, chunk), images)
    _, scaled = value_and_gradient(make(encoder, chunk), images, scale=2.0**16)
    assert torch.equal(scaled / 2.0**16, plain)


def test_never_more_than_a_chunk_at_a_time(encoder, encoded_batches):
    images = draw_images(batch=2)
    value_and_gradient(make(encoder, 5, min_patch_entropy=None), images)
    assert encoded_batches == [4, 5, 5, 4, 2]


def test_compiled_towers_see_one_chunk_size(encoder, encoded_batches, monkeypatch):
    monkeypatch.setattr(encoder, "compile", lambda **options: None)
    images = draw_images(batch=2)
    expected = value_and_gradient(make(encoder, None, min_patch_entropy=None), images)
    encoded_batches.clear()
    actual = value_and_gradient(make(encoder, 5, min_patch_entropy=None, compile=True), images)
    assert encoded_batches == [4, 5, 5, 5, 2]
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-3, atol=1e-6)


def test_without_grad(encoder):
    images = draw_images()
    expected = make(encoder, None)(*images)
    with torch.no_grad():
        images[0].requires_grad_()
        loss = make(encoder, 3)(*images)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)


def test_fused_that_needs_no_gradient(encoder):
    images = draw_images()
    loss = make(encoder, 3)(*images)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, make(encoder, None)(*images))


def test_gradients_accumulate(encoder):
    images = draw_images()
    _, once = value_and_gradient(make(encoder, 3), images)
    fused = images[0].requires_grad_()
    loss = make(encoder, 3)(*images)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(fused.grad, 2 * once)


def test_double_backward_through_chunks_is_an_error(encoder):
    images = draw_images()
    images[0].requires_grad_()
    expected = value_and_gradient(make(encoder, 3), images)[1]
    with sdpa_kernel(SDPBackend.MATH):
        (slope,) = torch.autograd.grad(make(encoder, 3)(*images), images[0], create_graph=True)
        torch.testing.assert_close(slope.detach(), expected, rtol=1e-3, atol=1e-6)
        with pytest.raises(RuntimeError, match="patch_chunk=None"):
            slope.square().sum().backward()


def test_double_backward(encoder):
    images = draw_images()
    images[0].requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        loss = make(encoder, None)(*images)
        (slope,) = torch.autograd.grad(loss, images[0], create_graph=True)
        try:
            (second,) = torch.autograd.grad(slope.square().sum(), images[0])
        except RuntimeError as error:
            if "grid_sampler_2d_backward" not in str(error):
                raise
            pytest.skip("this PyTorch has no second derivative of grid_sample")
    assert second.isfinite().all()
    assert second.abs().sum() > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision(encoder, precision):
    images = draw_images()
    expected = value_and_gradient(make(encoder, 3, precision="fp32"), images)
    actual = value_and_gradient(make(encoder, 3, precision=precision), images)
    assert actual[0] != expected[0], "nothing was computed in reduced precision"
    torch.testing.assert_close(actual[0], expected[0], rtol=0.02, atol=0)
    error = (actual[1] - expected[1]).norm() / expected[1].norm()
    assert error < 0.1


def test_fp32_holds_inside_autocast(encoder):
    images = draw_images()
    expected = make(encoder, 3)(*images)
    with torch.autocast("cpu", torch.bfloat16):
        assert make(encoder, 3, precision="fp32")(*images) == expected


class TestEmbedSources:
    def test_same_value(self, encoder):
        images = draw_images(channels=(1, 3, 1))
        criterion = make(encoder, 3)
        sources = criterion.embed_sources(*images[1:])
        loss = criterion(*images, sources=sources)
        assert loss == make(encoder, 3)(*images)

    def test_sources_are_not_encoded_again(self, encoder, encoded_batches):
        images = draw_images()
        criterion = make(encoder, 3, patch_weight=0)
        sources = criterion.embed_sources(*images[1:])
        encoded_batches.clear()
        criterion(*images, sources=sources)
        assert encoded_batches == [2]

    @pytest.mark.parametrize(
        ("sources", "error"),
        [
            (torch.zeros(2, 24), TypeError),
            (SourceEmbeddings(torch.zeros(3, 24), torch.zeros(3, 24)), ValueError),
        ],
    )
    def test_wrong_sources(self, encoder, sources, error):
        with pytest.raises(error, match="`sources`"):
            make(encoder, 3)(*draw_images(), sources=sources)

    def test_wrong_images(self, encoder):
        _, visible, infrared = draw_images()
        with pytest.raises(ValueError, match="`infrared`.*of `visible`"):
            make(encoder, 3).embed_sources(visible, infrared[:1])


@pytest.mark.parametrize("chunk", [0, -1, 2.5, "all", True])
def test_wrong_chunk(encoder, chunk):
    with pytest.raises((TypeError, ValueError), match="`patch_chunk`"):
        make(encoder, chunk)


def test_wrong_precision(encoder):
    with pytest.raises(ValueError, match="`precision`"):
        make(encoder, 3, precision="fp8")


@pytest.mark.parametrize(
    ("device", "size", "chunk"),
    [
        ("cpu", (224, 224), 6),
        ("cpu", (336, 336), 6),
        ("cpu", (96, 96), 32),
        ("cpu", (32, 32), 64),
        ("cuda", (96, 96), 64),
    ],
)
def test_automatic_chunks(device, size, chunk):
    assert patches.default_chunk(torch.device(device), size) == chunk


def test_the_only_chunk_is_not_padded_beyond_all_patches():
    lengths = []

    def score(images, owners):
        lengths.append(len(images))
        return images.mean((1, 2, 3))

    maps = torch.eye(3)[:2].expand(2, 4, 2, 3)
    images, index = torch.rand(2, 1, 8, 8), torch.tensor([1, 5, 6])
    patches.sum_over_patches(images, maps, index, (8, 8), score, chunk=32, pad=True)
    assert lengths == [8]
