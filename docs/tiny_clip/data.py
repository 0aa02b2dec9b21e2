"""Scenes, and the batches of described images that are drawn from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .captions import SLICES, WIDTH, assertion, mask
from .degradations import ARTEFACTS, QUALITY, Degradation, degrade, vary_look
from .renderer import fuse_by_hand, render_scene, scene_seed

SCENE_SIZE = 224
_QUALITY = list(QUALITY.values())
_QUALITY_NAMES = list(QUALITY)
_ARTEFACTS = list(ARTEFACTS.values())
# What fusion networks actually do comes more often.
_FREQUENT = ("harsh", "oversharpen", "noise", "emboss", "halo")
_ARTEFACT_WEIGHTS = torch.tensor([2.0 if name in _FREQUENT else 1.0 for name in ARTEFACTS])


class Variant(IntEnum):
    """The images of one scene in a batch, in their order."""

    VISIBLE = 0  # both sources as they are
    INFRARED = 1
    FUSED = 2  # the fusion to wish for
    AVERAGE = 3  # the fusion to improve on
    ARTEFACT = 4  # a fusion spoilt by an artefact
    SPOILT = 5  # a fusion with two quality losses, such as blurry and dark
    BETWEEN = 6  # a blend of two of the above fusions, for the order along the way
    DEGRADED = 7  # a source or the wished-for fusion with one quality loss
    VISIBLE_LOOK = 8  # both sources, their look varied at random
    INFRARED_LOOK = 9


_FINE = "sharpness=sharp noise=clean haze=clear rendering=natural modality=fused"
_CLEAN_FUSED = assertion(
    f"{_FINE} contrast=normal exposure=normal detail=detailed salience=salient"
)
_CLEAN_AVERAGE = assertion(
    f"{_FINE} contrast=low|normal exposure=dark|normal detail=plain salience=hidden"
)
_CLEAN_INFRARED = assertion("modality=infrared noise=clean haze=clear rendering=natural")
_CLEAN_VISIBLE = assertion("modality=visible noise=clean rendering=natural")

# From where to where BETWEEN may lie.
_WAYS = (
    (Variant.AVERAGE, Variant.FUSED),
    (Variant.AVERAGE, Variant.FUSED),
    (Variant.FUSED, Variant.ARTEFACT),
    (Variant.FUSED, Variant.SPOILT),
    (Variant.AVERAGE, Variant.SPOILT),
)


@dataclass(frozen=True)
class SceneBank:
    """Scenes ready for cropping.

    Attributes:
        images: (N, 3, S, S) uint8: visible, infrared, wished-for fusion.
        flags: (N, 4) bool: night, hazy, has targets, is a photograph.
    """

    images: NDArray[np.uint8]
    flags: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Batch:
    """Described images of B scenes, K = len(Variant) of each.

    Attributes:
        images: (B, K, H, W) float32 in [0, 1], in the order of `Variant`.
        possible: (B, K, WIDTH) boolean, what is known of each image.
        origin: (B,) the variant that DEGRADED was made of.
        quality_loss: (B,) what was done to it, as an index into `QUALITY`.
        start, end: (B,) the two variants that BETWEEN blends.
    """

    images: Tensor
    possible: Tensor
    origin: Tensor
    quality_loss: Tensor
    start: Tensor
    end: Tensor


def make_bank(
    count: int, seed: int, *, workers: int, pairs: Path | None = None, skip: Collection[str] = ()
) -> SceneBank:
    """`count` scenes of the series `seed`, rendered by `workers` processes.

    Crops of the real `pairs`, but those to `skip`, are added as one scene in five.
    """
    seeds = [scene_seed(seed, index) for index in range(count)]
    images = np.empty((count, 3, SCENE_SIZE, SCENE_SIZE), np.uint8)
    flags = np.zeros((count, 4), np.bool_)
    # Spawned, not forked: a fork of a process with threads may hang.
    with get_context("spawn").Pool(workers) as pool:
        results = pool.imap(_render_one, seeds, chunksize=16)
        for index, (image, flag) in enumerate(tqdm(results, "render", count, unit="scene")):
            images[index], flags[index, :3] = image, flag
    if pairs is None:
        return SceneBank(images, flags)
    photographs = _photographs(pairs, skip, max(1, count // 4), seed)
    both = zip((images, flags), photographs, strict=True)
    return SceneBank(*(np.concatenate(arrays) for arrays in both))


def _render_one(seed: int) -> tuple[NDArray[np.uint8], tuple[bool, bool, bool]]:
    scene = render_scene(seed, SCENE_SIZE)
    stack = np.stack([scene.visible, scene.infrared, scene.fused])
    return _to_bytes(stack), (scene.night, scene.hazy, scene.has_targets)


def _to_bytes(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (image * 255 + 0.5).astype(np.uint8)


def _photographs(
    folder: Path, skip: Collection[str], count: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Random crops of real pairs (`folder/vi/NAME`, `folder/ir/NAME`), fused by hand."""
    rng = np.random.default_rng(seed)
    names = sorted(path.name for path in (folder / "vi").iterdir() if path.name not in skip)
    if not names:
        raise ValueError(f"no images in {folder / 'vi'}")
    images = np.empty((count, 3, SCENE_SIZE, SCENE_SIZE), np.uint8)
    sources = {
        name: [Image.open(folder / side / name).convert("L") for side in ("vi", "ir")]
        for name in names
    }
    for index in range(count):
        pair = sources[names[index % len(names)]]
        width, height = pair[0].size
        side = rng.uniform(0.4, 1) * min(width, height)
        wide, high = min(width, side * rng.uniform(0.8, 1.4)), side
        left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
        box = (left, top, left + wide, top + high)
        size = (SCENE_SIZE, SCENE_SIZE)
        visible, infrared = (
            np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box), np.float32) / 255
            for image in pair
        )
        fused = fuse_by_hand(visible, infrared, rng)
        images[index] = _to_bytes(np.stack([visible, infrared, fused]))
    return images, np.tile(np.array([False, False, True, True]), (count, 1))


def draw_batch(bank: SceneBank, scenes: int, size: int, generator: torch.Generator) -> Batch:
    """Draw `scenes` scenes, crop them, and make the variants of each at `size` pixels."""
    rows = torch.randint(len(bank), (scenes,), generator=generator)
    whole, part, small = _crops(bank, rows, size, generator)
    everyone = torch.arange(scenes)
    images = torch.empty(scenes, len(Variant), size, size)
    possible = torch.ones(scenes, len(Variant), WIDTH, dtype=torch.bool)

    def put(variant: Variant, image: Tensor, described: Tensor) -> None:
        images[:, variant], possible[:, variant] = image, described

    def spoil(origin: Tensor, kinds: Tensor, degradations: list[Degradation]) -> tuple[Tensor, ...]:
        """Image and mask of another variant of each scene after a degradation."""
        image, before = images[everyone, origin], possible[everyone, origin]
        spoilt, described = degrade(image[:, None], before, kinds, degradations, generator)
        return spoilt[:, 0], described

    def some_fusion(average: float) -> Tensor:
        """FUSED, or with this probability AVERAGE."""
        plain = torch.rand(scenes, generator=generator) < average
        return torch.where(plain, Variant.AVERAGE, Variant.FUSED)

    known = _known(torch.from_numpy(bank.flags[rows.numpy()]), small)
    put(Variant.VISIBLE, whole[:, 0], known[:, 0])
    put(Variant.INFRARED, whole[:, 1], known[:, 1])
    fused = _vary_exposure(part[:, 2], generator)
    average = _exposed_like(part[:, :2].mean(1), fused, generator)
    put(Variant.FUSED, fused, mask(_CLEAN_FUSED))
    put(Variant.AVERAGE, average, mask(_CLEAN_AVERAGE))

    looks = (Variant.VISIBLE_LOOK, Variant.INFRARED_LOOK)
    for look, source in zip(looks, (Variant.VISIBLE, Variant.INFRARED), strict=True):
        image, described = vary_look(images[:, source, None], possible[:, source], generator)
        put(look, image[:, 0], described)
    # Only images of varied look teach the modality.
    possible[:, : Variant.FUSED, SLICES["modality"]] = True

    kinds = torch.multinomial(_ARTEFACT_WEIGHTS, scenes, replacement=True, generator=generator)
    put(Variant.ARTEFACT, *spoil(some_fusion(0.25), kinds, _ARTEFACTS))
    first, second = _two_losses(scenes, generator)
    put(Variant.SPOILT, *spoil(some_fusion(0.5), first, _QUALITY))
    put(Variant.SPOILT, *spoil(torch.full((scenes,), Variant.SPOILT), second, _QUALITY))

    way = torch.randint(len(_WAYS), (scenes,), generator=generator)
    start, end = torch.tensor(_WAYS)[way].unbind(1)
    blend = 0.3 + 0.4 * torch.rand(scenes, 1, 1, generator=generator)
    middle = torch.lerp(images[everyone, start], images[everyone, end], blend)
    put(Variant.BETWEEN, middle, possible[everyone, start] | possible[everyone, end])

    origin = torch.randint(Variant.AVERAGE, (scenes,), generator=generator)
    quality_loss = torch.randint(len(_QUALITY), (scenes,), generator=generator)
    put(Variant.DEGRADED, *spoil(origin, quality_loss, _QUALITY))
    return Batch(images, possible, origin, quality_loss, start, end)


def _vary_exposure(images: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast and brightness of images (B, H, W) changed so little that they stay good."""
    contrast, offset, gamma = torch.rand(3, len(images), 1, 1, generator=generator)
    mean = images.mean((-1, -2), keepdim=True)
    images = mean + 0.12 * (offset - 0.5) + (0.8 + 0.4 * contrast) * (images - mean)
    return images.clamp(1e-3, 1) ** (0.85 + 0.3 * gamma)


def _exposed_like(images: Tensor, model: Tensor, generator: torch.Generator) -> Tensor:
    """Give images (B, H, W) part of the mean and deviation of others, up to a little too much.

    Were a fusion always stronger in contrast than the average, contrast is what a network
    trained for a good fusion would give, and not detail.
    """
    share = 1.1 * torch.rand(len(images), 1, 1, generator=generator)
    (mean, deviation), (new_mean, new_deviation) = (
        (x.mean((-1, -2), keepdim=True), x.std((-1, -2), keepdim=True)) for x in (images, model)
    )
    gain = torch.lerp(torch.ones_like(share), new_deviation / deviation.clamp(min=0.02), share)
    return (torch.lerp(mean, new_mean, share) + gain * (images - mean)).clamp(0, 1)


def _two_losses(scenes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two different quality losses per scene; blurry and dark in a good third of them."""
    first = torch.randint(len(_QUALITY), (scenes,), generator=generator)
    step = torch.randint(1, len(_QUALITY), (scenes,), generator=generator)
    second = (first + step) % len(_QUALITY)
    gloomy = torch.rand(scenes, generator=generator) < 0.35
    first = torch.where(gloomy, _QUALITY_NAMES.index("blur"), first)
    second = torch.where(gloomy, _QUALITY_NAMES.index("dark"), second)
    return first, second


def _crops(
    bank: SceneBank, rows: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop, mirror and resize.

    Returns:
        The crops for the sources and the ones for the fusions, (B, 3, size, size) each; in a part
        of the scenes the latter are sub-crops of the former, as in the patch term of the loss.
        Third, (B,) boolean: the crop had to be enlarged, so nothing is known of its sharpness.
    """
    full = bank.images.shape[-1]
    wholes, parts, small = [], [], []
    for row in rows.tolist():
        chance = torch.rand(9, generator=generator).tolist()
        side = full if chance[0] < 0.35 else full * (0.32 + 0.68 * chance[1])
        aspect = 0.7 + 0.6 * chance[2]
        height, width = min(full, round(side)), min(full, round(side * aspect))
        top, left = int(chance[3] * (full - height + 1)), int(chance[4] * (full - width + 1))
        crop = bank.images[row, :, top : top + height, left : left + width]
        whole = torch.from_numpy(crop.astype(np.float32) / 255)
        if chance[5] < 0.5:
            whole = whole.flip(-1)
        part = whole
        if chance[6] < 0.6 and min(height, width) >= 100:
            edge = round((0.5 + 0.3 * chance[7]) * min(height, width))
            y, x = int(chance[8] * (height - edge)), int(chance[3] * (width - edge))
            part = whole[:, y : y + edge, x : x + edge]
        wholes.append(_resize(whole, size))
        parts.append(_resize(part, size))
        small.append(min(height, width) < size)
    return torch.stack(wholes), torch.stack(parts), torch.tensor(small)


def _resize(image: Tensor, size: int) -> Tensor:
    """Squash to the model's input as the library does: bilinear, anti-aliased."""
    return F.interpolate(
        image[None], (size, size), mode="bilinear", antialias=True, align_corners=False
    )[0]


def _known(flags: Tensor, small: Tensor) -> Tensor:
    """What is known of the visible and the infrared image of each scene: (B, 2, WIDTH)."""
    masks = []
    for (night, hazy, targets, photo), blown in zip(flags.tolist(), small.tolist(), strict=True):
        masks += [_visible_mask(night, hazy, photo, blown), _infrared_mask(targets, blown)]
    return torch.stack(masks).view(len(flags), 2, -1)


def _visible_mask(night: bool, hazy: bool, photo: bool, blown: bool) -> Tensor:
    if photo:
        return mask({"modality": ("visible",), "rendering": ("natural",)})
    asserts = dict(_CLEAN_VISIBLE)
    asserts["haze"] = ("hazy",) if hazy else ("clear",)
    asserts["exposure"] = ("dark", "normal") if night else ("normal", "bright")
    if night or hazy:
        asserts["salience"] = ("hidden",)
    if not blown:
        asserts["sharpness"] = ("sharp",)
        if not (night or hazy):
            asserts["detail"] = ("detailed",)
    return mask(asserts)


def _infrared_mask(targets: bool, blown: bool) -> Tensor:
    asserts = dict(_CLEAN_INFRARED)
    if targets and not blown:  # a small crop may well miss them
        asserts["salience"] = ("salient",)
    return mask(asserts)
