"""FrozenCLIP: images to vectors."""

import open_clip
import pytest
import torch

from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, build_clip
from reference import MEAN, STD, Reference


def reference(tokenizer):
    return Reference(build_clip(), tokenizer, ["a"], ["b"], ["c"])


class TestEncodeImage:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [(32, 32), (16, 16), (100, 41)])
    def test_equals_the_reference(self, clip_model, tokenizer, channels, size):
        images = torch.rand(3, channels, *size, dtype=torch.float64)
        vectors = FrozenCLIP(clip_model, tokenizer).encode_image(images.float())
        embed = reference(tokenizer).embed_image
        expected = torch.stack([embed(image) for image in images])
        torch.testing.assert_close(vectors.double(), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_unit_float32_vectors_whatever_comes_in(self, encoder, dtype):
        vectors = encoder.encode_image(torch.rand(2, 1, 40, 40).to(dtype))
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))

    def test_differentiable_in_the_images_alone(self, encoder):
        images = torch.rand(2, 1, 40, 40, requires_grad=True)
        encoder.encode_image(images)[:, 0].sum().backward()
        assert images.grad.abs().sum() > 0
        assert all(p.grad is None for p in encoder.network.parameters())

    def test_the_models_own_size_mean_and_std(self, clip_model, tokenizer):
        images = torch.rand(1, 3, 32, 32)
        mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
        clip_model.visual.preprocess_cfg = {"size": 32, "mean": mean.tolist(), "std": std.tolist()}
        vectors = FrozenCLIP(clip_model, tokenizer).encode_image(images)
        normalised = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(vectors, clip_model.encode_image(normalised, normalize=True))

    def test_statistics_keep_their_precision(self, encoder):
        encoder.half()
        torch.testing.assert_close(encoder._mean.flatten(), torch.tensor(MEAN), atol=0, rtol=0)
        torch.testing.assert_close(encoder._std.flatten(), torch.tensor(STD), atol=0, rtol=0)

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_towers_of_mixed_precision(self, tokenizer, precision):
        model = open_clip.model.CLIP(
            **MODEL_CONFIG, cast_dtype=open_clip.model.get_cast_dtype(precision)
        )
        open_clip.model.convert_weights_to_lp(model, open_clip.model.get_cast_dtype(precision))
        encoder = FrozenCLIP(model, tokenizer).to("cpu")
        assert model.visual.ln_post.weight.dtype == torch.float32
        assert encoder.encode_image(torch.rand(1, 1, 20, 20)).isfinite().all()

    def test_towers_that_return_tokens_too(self, clip_model, tokenizer):
        images = torch.rand(1, 3, 32, 32)
        expected = FrozenCLIP(clip_model, tokenizer).encode_image(images)
        clip_model.visual.output_tokens = True
        vectors = FrozenCLIP(clip_model, tokenizer).encode_image(images)
        assert torch.equal(vectors, expected)
