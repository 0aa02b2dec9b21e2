"""A plain version of the published training step, for the benchmark to compare with.

Wang et al., "Infrared and Visible Image Fusion with Language-Driven Loss in CLIP Embedding
Space" (arXiv 2402.16267) and `src/trainer.py` of its code. It keeps what makes that slow: CLIP's
weights have gradients, sources are encoded with a graph, all patches are encoded and dropped ones
multiplied by zero, crops and entropies run in Python loops with one synchronisation each, and all
activations are kept until the backward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms import RandomAffine, RandomCrop, Resize

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEXTS = (
    "a clear image with detailed background and salient objects",
    "a visible gray image",
    "an infrared image",
)


class PublishedStep:
    """Forward and backward of ``2 direction + 10 patch + 6 similarity``.

    Args:
        model: an open_clip model on its device and in its precision; its weights are not frozen.
        tokenizer: the tokenizer belonging to it.
        patches: patches per image.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[..., Tensor], patches: int) -> None:
        weight = next(model.visual.parameters())
        self.model, self.patches = model, patches
        self.resize = Resize(model.visual.image_size, antialias=True)
        self.augment = RandomAffine(degrees=5, translate=(0, 0.1), scale=(1, 1.5), shear=5)
        self.mean = torch.tensor(MEAN, device=weight.device, dtype=weight.dtype).view(3, 1, 1)
        self.std = torch.tensor(STD, device=weight.device, dtype=weight.dtype).view(3, 1, 1)
        with torch.no_grad():
            tokens = tokenizer(list(TEXTS)).to(weight.device)
            fused, visible, infrared = model.encode_text(tokens, normalize=True)
        self.from_visible, self.from_infrared = unit(fused - visible), unit(fused - infrared)

    def __call__(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> None:
        """One step on (B, 1, H, W) images in [0, 1]; leaves the gradient in ``fused.grad``."""
        v_f, v_v, v_r = (self.encode(self.resize(x)) for x in (fused, visible, infrared))
        patches, kept = [], []
        for _ in range(self.patches):
            images = self.crop(torch.cat([fused, visible, infrared], 1))
            patches.append(images[:, :1])
            kept.append([min(entropy(v), entropy(r)) > 6 for _, v, r in images])
        v_p = self.encode(torch.cat(patches)).unflatten(0, (self.patches, len(fused)))
        kept = torch.tensor(kept, device=fused.device)
        patch = (kept * self.direction(v_p, v_v, v_r)).mean(0)
        similarity = 1 - ((v_f * v_v).sum(-1) + (v_f * v_r).sum(-1)) / 2
        loss = 2 * self.direction(v_f, v_v, v_r) + 10 * patch + 6 * similarity
        loss.mean().backward()

    def encode(self, images: Tensor) -> Tensor:
        images = (images.expand(-1, 3, -1, -1) - self.mean) / self.std
        return self.model.encode_image(images, normalize=True)

    def crop(self, images: Tensor) -> Tensor:
        """One random window and warp for the whole batch, resampled three times."""
        short = min(images.shape[2:])
        side = int(short * (0.5 + 0.3 * torch.rand(()).item()))
        return self.resize(self.augment(RandomCrop(side)(images)))

    def direction(self, e: Tensor, v_v: Tensor, v_r: Tensor) -> Tensor:
        toward_visible = 1 - unit(e - v_v) @ self.from_visible
        toward_infrared = 1 - unit(e - v_r) @ self.from_infrared
        return (toward_visible + toward_infrared) / 2


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def entropy(image: Tensor) -> float:
    """Grey-level entropy in bits of one (H, W) image."""
    counts = torch.histc(image.detach().float(), 256, 0, 1)
    shares = counts[counts > 0] / counts.sum()
    return -(shares * shares.log2()).sum().item()
