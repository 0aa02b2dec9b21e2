"""The patch term with low memory use: draw, filter, then encode and differentiate in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from . import checks, functional

# Patches to encode at a time, 18 MiB each with ViT-B/32: many on accelerators, 6 of 224 px on CPUs.
CPU_CHUNK = 6
ACCELERATOR_CHUNK = 64

# Patches whose histograms are computed at a time.
FILTER_CHUNK = 32

# Warn after this many steps without a patch in a window, if they are this part of its steps so far.
WINDOW = 100
EMPTY_STEPS = 10
EMPTY_PART = 0.25


@dataclass(frozen=True)
class PatchGeometry:
    """How random patches are cut, see `functional.random_patch_transforms`; by default the paper's.

    Args:
        scale: range of its side as a fraction of the image's short side, in [0.05, 1].
        rotation: largest rotation in degrees, to either side, 0 to 180.
        shift: largest shift up or down as a fraction of the side, 0 to 1.
        zoom: largest enlargement of what it shows, 1 to 4; the least is 1.
        shear, vertical_shear: largest shears along x and y in degrees, to either side, 0 to 45.
    """

    scale: tuple[float, float] = (0.5, 0.8)
    rotation: float = 5.0
    shift: float = 0.1
    zoom: float = 1.5
    shear: float = 5.0
    vertical_shear: float = 0.0

    def __post_init__(self) -> None:
        scale = checks.check_interval("scale", self.scale, minimum=0.05, maximum=1.0, empty=True)
        object.__setattr__(self, "scale", scale)
        bounds = (0, 180), (0, 1), (1, 4), (0, 45), (0, 45)
        for field, (least, most) in zip(fields(self)[1:], bounds, strict=True):
            value = getattr(self, field.name)
            value = checks.check_number(field.name, value, minimum=least, maximum=most)
            object.__setattr__(self, field.name, value)


def patch_term(
    fused: Tensor, visible: Tensor, infrared: Tensor, regions: Tensor | None,
    score: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    *, count: int, size: tuple[int, int], geometry: PatchGeometry, min_entropy: float | None,
    each: bool, region_share: float, reduction: str, generator: torch.Generator | None,
    chunk: int | str | None, pad: bool, empty_steps: EmptySteps | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw patches, keep those with enough entropy, and average a score over them.

    `score` maps (P, C, height, width) patches, the (P,) indices of their images and those of their
    objectives to (P,) scores. With `each`, a patch is kept if one source has enough entropy, and
    the fourth argument of `score` is (P, 2), True for sources that have; otherwise it is None.
    With `regions`, (B, H, W) labels, a patch is kept if one label covers `region_share` of it.

    Images are (B, 1 | 3, H, W) in [0, 1]; `count` is the number N of patches per image, `size` is
    (height, width) of a patch. Without `empty_steps`, the record of a training, all images get the
    same patches in every call, and no random number of the training is used. The other arguments
    are those of the functions below and of `functional`.

    Returns (B,) losses, differentiable in `fused`, and (B, N) True for kept patches.
    """
    # At this size even the smallest patch, before its zoom, has a source pixel for each of its own.
    short_side = round(max(size) / geometry.scale[0])
    fused, visible, infrared = (
        functional.shrink_images(images, short_side) for images in (fused, visible, infrared)
    )
    batch, _, height, width = fused.shape
    drawn = batch
    if empty_steps is None:
        drawn, generator = 1, torch.Generator("cpu").manual_seed(0)
    transforms = functional.random_patch_transforms(
        drawn, count, (height, width), **asdict(geometry), generator=generator
    )
    transforms = transforms.expand(batch, -1, -1, -1).to(fused.device, non_blocking=True)
    labels = None
    if regions is not None:  # in full size, as labels cannot be averaged
        labels = functional.patch_labels(regions, transforms, region_share)
    passed, kept, index = choose_patches(
        visible, infrared, transforms, size, min_entropy=min_entropy, each=each, labels=labels
    )
    if empty_steps is not None and (min_entropy is not None or labels is not None):
        empty_steps.count(len(index), min_entropy, labels is not None)
    if isinstance(chunk, str):  # "auto"
        on_cpu = min(max(CPU_CHUNK, CPU_CHUNK * 224**2 // math.prod(size)), ACCELERATOR_CHUNK)
        chunk = on_cpu if fused.device.type == "cpu" else ACCELERATOR_CHUNK

    def score_chosen(patches: Tensor, part: Tensor) -> Tensor:
        owners = part // count
        rows = owners if labels is None else labels.flatten()[part]
        return score(patches, owners, rows, passed.flatten(0, 1)[part] if each else None)

    sums = sum_over_patches(fused, transforms, index, size, score_chosen, chunk=chunk, pad=pad)
    return functional.mean_over_patches(sums, kept, reduction), kept


@torch.no_grad()
def choose_patches(
    visible: Tensor, infrared: Tensor, transforms: Tensor, size: tuple[int, int], *,
    min_entropy: float | None, each: bool, labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(B, N, 2) True for sources of patches above `min_entropy` bits; (B, N) True for patches of
    which both are, or with `each` one; and the (K,) indices b * N + n of these patches. Those in no
    region, with -1 in the (B, N) `labels`, are left out too.
    """
    passed = torch.ones(*transforms.shape[:2], 2, dtype=torch.bool, device=visible.device)
    kept = passed[..., 0] if labels is None else labels >= 0
    if min_entropy is None and labels is None:
        return passed, kept, torch.arange(kept.numel(), device=visible.device)
    with record_function("clip_fusion_loss.filter"):
        if min_entropy is not None:
            pair = [functional.match_channels(image, 1) for image in (visible, infrared)]
            grey = torch.cat(pair, 1)
            parts = []
            for part in transforms.split(max(1, FILTER_CHUNK // len(grey)), dim=1):
                patches = functional.sample_patches(grey, part, size)
                parts.append(functional.patch_entropy(patches) > min_entropy)
            passed = torch.cat(parts, 1)
            kept = kept & (passed.any(-1) if each else passed.all(-1))
        # The only synchronisation of a step: the host must know how many patches to encode.
        return passed, kept, kept.flatten().nonzero().squeeze(1)


class EmptySteps:
    """Counts training steps in which no patch passed the filter; warns once if they are many."""

    def __init__(self) -> None:
        self._steps = self._empty = 0
        self._warned = False

    def count(self, kept: int, min_entropy: float | None, regions: bool = False) -> None:
        """Record how many patches a step kept."""
        if self._steps == WINDOW:
            self._steps = self._empty = 0
        self._steps += 1
        self._empty += kept == 0
        many = self._empty >= max(EMPTY_STEPS, EMPTY_PART * self._steps)
        if kept == 0 and many and not self._warned:
            self._warned = True
            missing, remedies = [], []
            if regions:
                missing.append("lies in one region")
                remedies.append("give most crops one label, or use larger regions")
            if min_entropy is not None:
                missing.append(f"has more than {min_entropy:g} bits of entropy in the sources")
                remedies.append("use larger crops, or lower `min_patch_entropy` (None keeps all)")
            checks.warn(
                f"no patch passed the filter in {self._empty} of the last {self._steps} steps "
                f"(`kept` is 0): none {' and '.join(missing)}. There the patch term is 0; "
                f"{'; '.join(remedies)}"
            )


def sum_over_patches(
    images: Tensor, transforms: Tensor, index: Tensor, size: tuple[int, int],
    score: Callable[[Tensor, Tensor], Tensor], *, chunk: int | None, pad: bool = False,
) -> Tensor:  # fmt: skip
    """(B,) sums of a score over the patches of each image; zero for an image without patches.

    With a `chunk`, the gradient with respect to `images` is computed in the forward pass, so only
    the activations of one chunk exist at a time; the backward pass scales that gradient. Value and
    gradient are those of the plain sum, which None computes with ordinary autograd.

    Args:
        images: (B, C, H, W).
        transforms: (B, N, 2, 3) maps of all patches, of `size` (height, width).
        index: (K,) patches to use, as b * N + n, ascending.
        score: maps (P, C, height, width) patches and their (P,) part of `index` to (P,) scores,
            each of which depends on its own patch only.
        chunk, pad: patches at a time, and whether to fill the last chunk with repeated ones.
    """
    count = transforms.shape[1]
    if len(index) == 0:  # the host knows the length: no synchronisation
        return images.new_zeros(len(images))
    if chunk is None:
        patches = functional.sample_patches(images, transforms, size).flatten(0, 1)[index]
        owners = index // count
        return images.new_zeros(len(images)).index_add(0, owners, score(patches, index))

    chunk = min(chunk, len(images) * count)

    def run(images: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
        sums, gradient = images.new_zeros(len(images)), torch.zeros_like(images)
        for part in index.split(chunk):
            used = len(part)
            if pad and used < chunk:
                part = torch.cat([part, part[:1].expand(chunk - used)])
            owners = part // count
            with torch.set_grad_enabled(differentiate), _without_hooks():
                with record_function("clip_fusion_loss.crop"):
                    sources = images[owners].requires_grad_(differentiate)
                    maps = transforms.flatten(0, 1)[part].unsqueeze(1)
                    patches = functional.sample_patches(sources, maps, size).squeeze(1)
                scores = score(patches, part)[:used]
            sums.index_add_(0, owners[:used], scores.detach())
            if differentiate:
                # A backward pass must run outside autocast, and the caller may be inside.
                with (
                    record_function("clip_fusion_loss.backward"),
                    torch.autocast(images.device.type, enabled=False),
                ):
                    (slope,) = torch.autograd.grad(scores, sources, torch.ones_like(scores))
                gradient.index_add_(0, owners, slope)
        return sums, gradient

    if torch.is_grad_enabled() and images.requires_grad:
        return _SumWithGradient.apply(images, run)[0]
    return run(images, False)[0]


def _without_hooks() -> AbstractContextManager[Any]:
    """Disable the caller's saved-tensor hooks while a chunk is computed and differentiated.

    Otherwise `torch.utils.checkpoint` would run the whole loss again for each chunk.
    """
    # Under torch.func such hooks are disabled already.
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


class _SumWithGradient(torch.autograd.Function):
    """Per-image sums whose gradient is computed in the forward pass."""

    @staticmethod
    def forward(images: Tensor, run: Callable[[Tensor, bool], Any]) -> Any:
        return run(images.detach(), True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        (images, _), (_, gradient) = inputs, output
        ctx.mark_non_differentiable(gradient)
        ctx.save_for_backward(images, gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        images, gradient = ctx.saved_tensors
        scaled = gradient * grad_outputs[0].view(-1, 1, 1, 1)
        return _DifferentiatedOnce.apply(scaled, images), None


class _DifferentiatedOnce(torch.autograd.Function):
    """Passes a gradient on; raises an error if it is differentiated again."""

    @staticmethod
    def forward(gradient: Tensor, images: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        raise RuntimeError(
            "the patch term cannot be differentiated twice; pass patch_chunk=None, and use an "
            "attention that supports it: torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        )
