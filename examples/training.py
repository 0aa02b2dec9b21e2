"""What trainings need: loss, crops, sentences; a short training; and fusing whole pairs."""

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
#: For many sentences small steps reach more than few large ones. Their gradients differ tenfold and
#: more; without a limit a few of them can push a network to where it stays washed out.
MANY_BATCH_SIZE, MANY_MAX_NORM = 1, 0.5
#: A factor of the weight of the similarity, without which it follows strong sentences half as far.
MANY_SIMILARITY = 2 / 3
#: Multiples of it, modulo 1, fill the unit interval evenly, however many they are.
GOLDEN_RATIO = (1 + 5**0.5) / 2


def build_criterion(
    encoder: str,
    objective: FusionObjective = FusionObjective(),
    *,
    regularizer: str | None = None,
    vgg19: Path | None = None,
    **options: Any,
) -> LanguageDrivenFusionLoss:
    """The loss with the CLIP that `encoder` names as in `ENCODERS`; raises as `load_clip`.

    `regularizer` is one of `REGULARIZERS`, by default structure with tiny, otherwise the paper's
    vgg, whose weights are in the file `vgg19` or downloaded. `options` are those of the loss; an
    option that is None has its default for this encoder.
    """
    given = {name: value for name, value in options.items() if value is not None}
    tiny = encoder == "tiny"
    if not tiny:
        given["encoder"] = load_clip(encoder)
    regularizer = regularizer or ("structure" if tiny else "vgg")
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
class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Grey crops of pairs, visible and infrared at the same place, each (1, side, side) in [0, 1].

    Crop n is the same at any time. An epoch has `per_pair` crops of each pair in random order.
    `augment` rotates, shifts, zooms and shears both crops a little, as the paper does.
    """

    pairs: Sequence[Pair]
    side: int
    per_pair: int
    augment: bool
    seed: int

    def __len__(self) -> int:
        """Crops in an epoch."""
        return len(self.pairs) * self.per_pair

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(number, len(self))
        order = torch.randperm(len(self), generator=self._generator(0, epoch))
        pair = self.pairs[int(order[place]) // self.per_pair]
        generator = self._generator(1, number)
        both = torch.cat([luminance(pair.visible), luminance(pair.infrared)])
        height, width = both.shape[1:]
        if min(height, width) < self.side:
            factor = self.side / min(height, width)
            height, width = round(height * factor), round(width * factor)
            both = functional.resize_images(both[None], (height, width))[0]
        if self.augment:
            # As the loss draws its patches: a window is cropped and warped in one sampling.
            share = self.side / min(height, width)
            draw = {"scale": (share, share), "generator": generator}
            transforms = functional.random_patch_transforms(1, 1, (height, width), **draw)
            both = functional.sample_patches(both[None], transforms, (self.side,) * 2)[0, 0]
        else:
            for axis, length in enumerate((height, width), 1):
                start = int(torch.randint(length - self.side + 1, (), generator=generator))
                both = both.narrow(axis, start, self.side)
        return both[:1], both[1:]

    def _generator(self, *numbers: int) -> torch.Generator:
        """With a seed of its own for each choice of whole numbers."""
        seed = np.random.SeedSequence((self.seed, *numbers)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def read_sentences(path: Path) -> dict[str, float]:
    """The sentences in a file of train.py's --prompts, with their weights.

    A sentence a line, optionally after a weight and a bar: ``2.5 | a dark image``. Empty lines and
    lines that begin with # are ignored. Other files are an OSError or ValueError.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path} must be text in UTF-8 ({error}); save it so") from error
    sentences: dict[str, float] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        weight, _, sentence = (part.strip() for part in line.rpartition("|"))
        value = math.nan
        with suppress(ValueError):
            value = float(weight or 1)
        if not sentence or not 0 < value <= 1e6:
            raise ValueError(
                f"--prompts {path}, line {number}: must be a sentence, or a weight above 0, a bar "
                f"and a sentence, as in 2.5 | a dark image; got {line!r}"
            )
        sentences[sentence] = value
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
    learning_rate: float = LEARNING_RATE,
    batch_size: int | None = None,
    crop: int = CROP_SIDE,
    max_norm: float | None = None,
) -> dict[str, list[float]]:
    """Train a network in place with Adam; returns every step's loss terms.

    `seed` determines the crops. The learning rate falls to 0 on a cosine: then trainings differ
    less from seed to seed. With `sentences`, made by ``criterion.embed``, the network is called
    ``network(visible, infrared, directions)`` and each image gets one of them. A loss that is not
    finite is a ValueError.
    """
    draw = None if sentences is None else DrawnSentences(sentences)
    batch_size = batch_size or (MANY_BATCH_SIZE if draw else BATCH_SIZE)
    max_norm = max_norm or (MANY_MAX_NORM if draw else None)
    crops = Crops(pairs, crop, per_pair=10, augment=False, seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: dict[str, list[float]] = defaultdict(list)
    network.train()
    bar = progress(range(steps), title, "step")
    for step in bar:
        batch = [crops[number] for number in range(step * batch_size, (step + 1) * batch_size)]
        visible, infrared = (torch.stack(images).to(device) for images in zip(*batch, strict=True))
        inputs, given = [visible, infrared], {"visible": visible, "infrared": infrared}
        if draw is not None:
            given["objectives"] = drawn = draw(len(visible))
            inputs.append(drawn.text_direction)
        terms = criterion.terms(fused=network(*inputs), **given)
        optimizer.zero_grad()
        terms.total.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), max_norm)
        optimizer.step()
        schedule.step()
        # All in one transfer, for each would wait for the device on its own.
        values = dict(zip(terms._fields, torch.stack(terms).tolist(), strict=True))
        if not math.isfinite(total := values["total"]):
            raise ValueError(f"the loss is {total} in step {step + 1}; try a lower learning rate")
        for name, value in values.items():
            history[name].append(value)
        bar.set_postfix({name: values[name] for name in ("total", "kept")}, refresh=False)
    return history


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
