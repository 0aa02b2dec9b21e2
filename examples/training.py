"""What trainings need: loss, crops, sentences; a short training; and fusing whole pairs."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    StructureLoss,
    VGGMaxFeatureLoss,
    functional,
)
from masks import ONE_LABEL, random_regions
from options import ENCODERS, progress
from pairs import Pair, luminance, to_8bit

REGULARIZERS = {
    "vgg": VGGMaxFeatureLoss,
    "structure": StructureLoss,
    "intensity": IntensityGradientLoss,
    "none": lambda: None,
}
#: The crops of short trainings have the input size of the small CLIP, so they are not resized.
BATCH_SIZE, CROP_SIDE, LEARNING_RATE = 3, 96, 2e-3
#: Patches an image with a CLIP other than tiny: a tenth of the time of the paper's 32. With tiny no
#: difference showed; others were not tried (docs/performance.md).
PATCHES = 2
#: For many sentences small steps reach more than few large ones. Their gradients differ tenfold and
#: more; without a limit a few of them can push a network to where it stays washed out.
MANY_BATCH_SIZE, MANY_MAX_NORM = 1, 0.5
#: A factor of the weight of the similarity, without which it follows strong sentences half as far.
MANY_SIMILARITY = 2 / 3
#: With regions only patches in one of them count, so there are more. They keep size and weight:
#: smaller and stronger ones emboss, and then no sentence darkens. Found by trial with tiny.
REGION_PATCHES = 4
#: Of `train`: crops with room for two regions.
REGION_TRAINING: dict[str, Any] = {"crop": 112}
#: Weight of `region_gap`. Patches tell of regions that are larger than they are, and half of what
#: they ask for is done everywhere; with it regions of all sizes follow. Found by trial with tiny.
REGION_GAP_WEIGHT = 20.0
#: Multiples of it, modulo 1, fill the unit interval evenly, however many they are.
GOLDEN_RATIO = (1 + 5**0.5) / 2
#: A line of --prompts: perhaps a weight, a sentence, what the image should not be.
LINE = re.compile(r"(?:(\d*\.?\d+)\s*\|)?(?!\s*not:)\s*([^|]+?)\s*((?:\|\s*not:\s*[^|\s][^|]*)*)")


def build_criterion(
    encoder: str,
    objective: FusionObjective = FusionObjective(),
    *,
    regularizer: str | None = None,
    vgg19: Path | None = None,
    regions: bool = False,
    **options: Any,
) -> LanguageDrivenFusionLoss:
    """The loss with the CLIP that `encoder` names as in `ENCODERS`; raises as `load_clip`.

    `regularizer` is one of `REGULARIZERS`, by default structure with tiny, otherwise the paper's
    vgg, whose weights are in the file `vgg19` or downloaded. `options` are those of the loss; an
    option that is None has its default for this encoder, and for a training with `regions`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    tiny = encoder == "tiny"
    if not tiny:
        few = {} if regions else {"num_patches": PATCHES}  # regions leave many out
        given = few | {"encoder": load_clip(encoder)} | given
    regularizer = regularizer or ("structure" if tiny else "vgg")
    if regions and tiny:
        given = {"num_patches": REGION_PATCHES} | given
    if regularizer == "vgg":
        given["regularizer"] = VGGMaxFeatureLoss(vgg19)
    elif not (tiny and regularizer == "structure"):  # `tiny()` has a tuned one
        given["regularizer"] = REGULARIZERS[regularizer]()
    build = LanguageDrivenFusionLoss.tiny if tiny else LanguageDrivenFusionLoss
    return build(objective, **given)


def load_clip(name: str) -> FrozenCLIP:
    """The CLIP with a name as in `ENCODERS`; an OSError or ValueError if it is not available."""
    if name == "tiny":
        return FrozenCLIP.tiny()
    if name.startswith(("local-dir:", "hf-hub:")) or Path(name).is_dir():
        return FrozenCLIP.from_pretrained(name)
    model, equals, path = name.partition("=")
    if equals:
        return FrozenCLIP.from_pretrained(model, Path(path))
    model, slash, tag = name.rpartition("/")
    if not slash:
        raise ValueError(f"--encoder must be {ENCODERS}, got {name}")
    return FrozenCLIP.from_pretrained(model, tag)


@dataclass(frozen=True)
class Crops(Dataset[tuple[Tensor, ...]]):
    """Grey crops of pairs, visible and infrared at the same place, each (1, side, side) in [0, 1].

    Crop n is the same at any time. An epoch has `per_pair` crops of each pair in random order.
    `augment` rotates, shifts, zooms and shears both crops a little, as the paper does.

    With `regions`, "random" or the (H, W) labels of each pair, a crop has a third part: (side,
    side) int64, for each pixel a row of a bank of sentences. Each label of the crop gets its own,
    drawn by their `weights`; some crops get one everywhere.
    """

    pairs: Sequence[Pair]
    side: int
    per_pair: int
    augment: bool
    seed: int
    regions: Literal["random"] | Sequence[Tensor] | None = None
    weights: Sequence[float] = ()

    def __len__(self) -> int:
        """Crops in an epoch."""
        return len(self.pairs) * self.per_pair

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        epoch, place = divmod(number, len(self))
        order = torch.randperm(len(self), generator=self._generator(0, epoch))
        index = int(order[place]) // self.per_pair
        pair = self.pairs[index]
        generator = self._generator(1, number)
        both = torch.cat([luminance(pair.visible), luminance(pair.infrared)])
        labels = None
        if not isinstance(self.regions, (str, NoneType)):
            labels = self.regions[index][None].float()
        height, width = both.shape[1:]
        if min(height, width) < self.side:
            factor = self.side / min(height, width)
            height, width = round(height * factor), round(width * factor)
            both = functional.resize_images(both[None], (height, width))[0]
            if labels is not None:
                labels = F.interpolate(labels[None], (height, width), mode="nearest-exact")[0]
        if self.augment:
            # As the loss draws its patches: a window is cropped and warped in one sampling.
            share = self.side / min(height, width)
            draw = {"scale": (share, share), "generator": generator}
            transforms = functional.random_patch_transforms(1, 1, (height, width), **draw)
            size = (self.side,) * 2
            both = functional.sample_patches(both[None], transforms, size)[0, 0]
            if labels is not None:
                labels = functional.sample_patches(labels[None], transforms, size, "nearest")[0, 0]
        else:
            for axis, length in enumerate((height, width), 1):
                start = int(torch.randint(length - self.side + 1, (), generator=generator))
                both = both.narrow(axis, start, self.side)
                labels = None if labels is None else labels.narrow(axis, start, self.side)
        if self.regions is None:
            return both[:1], both[1:]
        return both[:1], both[1:], self._rows(labels, self._generator(2, number))

    def _rows(self, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """A row of the bank for each pixel: one for each label, drawn by their weights."""
        if labels is None:
            labels = random_regions(self.side, generator)[None]
        elif torch.rand((), generator=generator) < ONE_LABEL:
            labels = torch.zeros_like(labels)
        names, labels = labels[0].unique(return_inverse=True)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        few = len(names) <= len(weights)  # no two labels of a crop share a sentence if it can be
        rows = weights.multinomial(len(names), replacement=not few, generator=generator)
        return rows[labels]

    def _generator(self, *numbers: int) -> torch.Generator:
        """With a seed of its own for each choice of whole numbers."""
        seed = np.random.SeedSequence((self.seed, *numbers)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def in_words(objective: FusionObjective) -> str:
    """What the fused image should be and what not, as a title."""
    wanted, opposite = (", ".join(texts) for texts in (objective.fused, objective.opposite))
    return f"{wanted}, not {opposite}" if opposite else wanted


def with_and_without(
    prompts: Sequence[str], opposite: Sequence[str] | None
) -> dict[str, FusionObjective]:
    """Each sentence alone and, if there are any, with the opposites, by their titles."""
    ways = [(), tuple(opposite)] if opposite else [()]
    objectives = [FusionObjective(text, opposite=way) for text in prompts for way in ways]
    return {in_words(objective): objective for objective in objectives}


def read_sentences(path: Path, sources: FusionObjective) -> dict[FusionObjective, float]:
    """The sentences in a file of train.py's --prompts, with their weights.

    A sentence a line, optionally after a weight and a bar, and before what the image should not be,
    each after a bar: ``2.5 | a clear image | not: a bright image``. Empty lines and lines that
    begin with # are ignored. `sources` has the texts of the sources. Other files are an OSError or
    ValueError.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path} must be text in UTF-8 ({error}); save it so") from error
    sentences: dict[FusionObjective, float] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None or not 0 < float(match[1] or 1) <= 1e6:
            raise ValueError(
                f"--prompts {path}, line {number}: must be a sentence, or a weight above 0, a bar "
                "and a sentence, either before a bar and what the image should not be, as in "
                f"2.5 | a clear image | not: a bright image; got {line!r}"
            )
        weight, sentence, rest = match.groups()
        opposite = [part.strip().removeprefix("not:").strip() for part in rest.split("|")[1:]]
        sentences[replace(sources, fused=sentence, opposite=opposite)] = float(weight or 1)
    if not sentences:
        raise ValueError(f"--prompts {path} must hold a sentence a line, got none")
    return sentences


class DrawnSentences:
    """Draws a sentence for each image of a batch, as a bank with one row per image.

    By equal steps through the sentences' shares, from a first place that moves on with each batch
    by the golden ratio: so all are used evenly at any time, as often as `weights` say.
    """

    def __init__(self, bank: EmbeddedFusionModel, weights: Sequence[float] | None = None) -> None:
        self.bank = bank
        # On the host, so as not to wait for the device.
        sums = torch.tensor(weights or [1.0] * len(bank), dtype=torch.float64).cumsum(0)
        self._shares = sums / sums[-1]
        self._first = torch.rand((), dtype=torch.float64)
        self.calls = 0  # batches so far; a resumed training sets it

    def __call__(self, count: int) -> EmbeddedFusionModel:
        steps = torch.arange(count) + (self._first + self.calls * GOLDEN_RATIO) % 1
        self.calls += 1
        return self.bank[torch.searchsorted(self._shares, steps / count)]


def train(
    network: nn.Module,
    criterion: LanguageDrivenFusionLoss,
    pairs: Sequence[Pair],
    *,
    steps: int,
    seed: int,
    device: torch.device,
    title: str = "training",
    sentences: EmbeddedFusionModel | None = None,
    regions: Literal["random"] | Sequence[Tensor] | None = None,
    learning_rate: float = LEARNING_RATE,
    batch_size: int | None = None,
    crop: int = CROP_SIDE,
    max_norm: float | None = None,
) -> dict[str, list[float]]:
    """Train a network in place with Adam; returns every step's loss terms.

    `seed` determines the crops. The learning rate falls to 0 on a cosine: then trainings differ
    less from seed to seed. With `sentences`, made by ``criterion.embed``, the network is called
    ``network(visible, infrared, directions)`` and each image gets one of them; with `regions` as in
    `Crops`, whose labels are an argument of the network, each region gets one. A loss that is not
    finite is a ValueError.
    """
    draw = None if sentences is None else DrawnSentences(sentences)
    batch_size = batch_size or (MANY_BATCH_SIZE if draw else BATCH_SIZE)
    max_norm = max_norm or (MANY_MAX_NORM if draw else None)
    weights = [1.0] * (len(sentences) if draw else 0)
    crops = Crops(pairs, crop, 10, False, seed, regions, weights)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: dict[str, list[float]] = defaultdict(list)
    network.train()
    bar = progress(range(steps), title, "step")
    for step in bar:
        batch = [crops[number] for number in range(step * batch_size, (step + 1) * batch_size)]
        images = [torch.stack(parts).to(device) for parts in zip(*batch, strict=True)]
        given = dict(zip(("visible", "infrared", "regions"), images, strict=False))
        if draw is not None:
            given["objectives"] = draw.bank if regions else draw(len(batch))
        terms = loss_terms(network, criterion, given)
        optimizer.zero_grad()
        terms["total"].backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), max_norm)
        optimizer.step()
        schedule.step()
        # All in one transfer, for each would wait for the device on its own.
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        if not math.isfinite(total := values["total"]):
            raise ValueError(f"the loss is {total} in step {step + 1}; try a lower learning rate")
        for name, value in values.items():
            history[name].append(value)
        bar.set_postfix(shown(values, criterion), refresh=False)
    return history


def loss_terms(
    network: nn.Module,
    criterion: LanguageDrivenFusionLoss,
    given: dict[str, Any],
    noisy: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The terms of the loss for what the network makes of `given`, or of `noisy` sources.

    `given` are arguments of the loss, all but `fused`. The network is told the text directions of
    objectives and the labels of regions, and the gap of regions is a term of its own.
    """
    seen = given | (noisy or {})
    inputs = [seen["visible"], seen["infrared"]]
    if "objectives" in given:
        inputs.append(given["objectives"].text_direction)
    if "regions" not in given:
        return criterion.terms(fused=network(*inputs), **given)._asdict()
    fused = network(*inputs, regions=given["regions"])
    terms = criterion.terms(fused=fused, **given)._asdict()
    terms["gap"] = region_gap(network, fused, *inputs, given["regions"])
    terms["total"] = terms["total"] + REGION_GAP_WEIGHT * terms["gap"]
    return terms


def region_gap(
    network: nn.Module,
    fused: Tensor,
    visible: Tensor,
    infrared: Tensor,
    vectors: Tensor,
    regions: Tensor,
) -> Tensor:
    """How far each region is from its place in the image that is fused for its vector alone.

    The mean absolute difference; gradients flow into the regions, not into the whole images.
    """
    with torch.no_grad():
        # Waits for the device: how many passes there are depends on the labels.
        labels = [image.unique() for image in regions]
        whole = torch.zeros_like(fused)
        for number in range(max(map(len, labels))):
            rows = torch.stack([image[min(number, len(image) - 1)] for image in labels])
            alone = network(visible, infrared, vectors[rows])
            whole = torch.where((regions == rows[:, None, None])[:, None], alone, whole)
    return (fused - whole).abs().mean()


def shown(values: dict[str, float], criterion: LanguageDrivenFusionLoss) -> dict[str, float]:
    """What a progress bar shows of a step: without patches not `kept`, which is 0 then."""
    names = ("total", "kept") if criterion.patch_weight else ("total",)
    return {name: values[name] for name in names}


@torch.inference_mode()
def fuse_with(
    network: nn.Module,
    pair: Pair,
    device: torch.device,
    vectors: Tensor | None = None,
    *,
    regions: Tensor | None = None,
) -> Tensor:
    """A whole pair fused in full resolution, as uint8 (1, H, W), in tiles where a network can.

    `vectors` is a text direction (D,) for a network that takes one; it may be a blend. With
    `regions`, labels (1, H, W) for each pixel, it is (R, D), a text direction for each label.
    """
    network.eval()
    inputs = [luminance(image)[None].to(device) for image in (pair.visible, pair.infrared)]
    if vectors is not None:
        vectors = vectors[None] if regions is None else vectors
        inputs.append(F.normalize(vectors, dim=-1).to(device))
    given = {} if regions is None else {"regions": regions.to(device)}
    return to_8bit(getattr(network, "fuse", network)(*inputs, **given)[0]).cpu()
