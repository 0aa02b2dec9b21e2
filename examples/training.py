"""The loss by the name of its CLIP, a short training without files, and fusing whole pairs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    StructureLoss,
    VGGMaxFeatureLoss,
)
from options import progress
from pairs import Pair, luminance, random_crops, to_8bit

REGULARIZERS = {
    "vgg": VGGMaxFeatureLoss,
    "structure": StructureLoss,
    "intensity": IntensityGradientLoss,
    "none": lambda: None,
}
CHECKPOINT_MODEL = "ViT-B-32-quickgelu"
ENCODERS = (
    "the CLIP of the loss: tiny, a small one for demonstrations that comes with the package; "
    f"MODEL/TAG with names of open_clip, such as {CHECKPOINT_MODEL}/openai, downloaded once; "
    "MODEL=FILE, such as RN50=RN50.pt, with weights of open_clip, OpenAI or transformers; FILE "
    f"with weights of {CHECKPOINT_MODEL}; FOLDER of open_clip or of a transformers CLIPModel; "
    "hf-hub:ORG/REPO"
)

#: The crops of short trainings have the input size of the small CLIP, so they are not resized.
BATCH_SIZE = 3
CROP_SIDE = 96
LEARNING_RATE = 2e-3

#: One training for many sentences takes steps of one crop each: many small steps reach more than
#: few large ones. The gradients of single steps differ tenfold and more; without a limit a few of
#: them can push a network to where it stays washed out.
MANY_BATCH_SIZE = 1
MANY_MAX_NORM = 0.5

#: Multiples of it, modulo 1, fill the unit interval evenly, however many they are.
GOLDEN_RATIO = (1 + 5**0.5) / 2

#: Pixels that go through a network in one strip; DenseFuse needs about 1 kB of memory for each.
STRIP_PIXELS = 2**16


def build_criterion(
    encoder: str,
    objective: FusionObjective = FusionObjective(),
    *,
    regularizer: str | None = None,
    vgg19: Path | None = None,
    **options: Any,
) -> LanguageDrivenFusionLoss:
    """The loss with the CLIP that `encoder` names.

    Args:
        encoder: see `ENCODERS`.
        objective: the texts.
        regularizer: one of `REGULARIZERS`; None: structure with tiny, otherwise vgg, the paper's.
        vgg19: weights of the regularizer vgg; None downloads them.
        options: further options of `LanguageDrivenFusionLoss`; those that are None have their
            default for this encoder.

    Raises:
        OSError, ValueError: there is no such model, or its weights are not available.
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
    """The CLIP with a name as in `ENCODERS`; raises as `build_criterion`."""
    if name == "tiny":
        return FrozenCLIP.tiny()
    if name.startswith(("local-dir:", "hf-hub:")) or Path(name).is_dir():
        return FrozenCLIP.from_pretrained(name)
    if Path(name).is_file():
        return FrozenCLIP.from_pretrained(CHECKPOINT_MODEL, Path(name))
    model, equals, path = name.partition("=")
    if equals:
        return FrozenCLIP.from_pretrained(model, Path(path))
    model, slash, tag = name.rpartition("/")
    if not slash:
        raise ValueError(f"--encoder must be {ENCODERS}, got {name}")
    try:
        return FrozenCLIP.from_pretrained(model, tag)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}\n(here: --encoder MODEL=FILE or FOLDER)") from error


class DrawnSentences:
    """Draws a sentence for each image of a batch, as a bank with one row per image.

    By systematic sampling: equal steps through the sentences' shares, from a first place that moves
    on with each batch by the golden ratio. So the sentences of a batch differ as far as they can,
    and all are used evenly at any time.

    Args:
        bank: the sentences, made by ``criterion.embed(sentences)``.
        weights: how often each is used, relative to the others; None: evenly.
    """

    def __init__(self, bank: EmbeddedFusionModel, weights: Sequence[float] | None = None) -> None:
        self.bank = bank
        # On the host, so as not to wait for the device.
        sums = torch.tensor(weights or [1.0] * len(bank), dtype=torch.float64).cumsum(0)
        self._shares = sums / sums[-1]
        self._first = torch.rand((), dtype=torch.float64)
        self._calls = 0

    def __call__(self, count: int) -> EmbeddedFusionModel:
        steps = torch.arange(count) + (self._first + self._calls * GOLDEN_RATIO) % 1
        self._calls += 1
        return self.bank[torch.searchsorted(self._shares, steps / count)]

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "calls": self._calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first, self._calls = state["first"], state["calls"]


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

    `seed` determines the crops. The learning rate falls to 0 on a cosine: trainings that end at a
    small rate differ less from seed to seed than any setting does. With `sentences`, made by
    ``criterion.embed``, the network is called ``network(visible, infrared, directions)`` and each
    image gets one of them; batch size and the limit of the gradients' norm are then those for many
    sentences, if they are not given.

    Raises:
        ValueError: the loss is not finite.
    """
    if sentences is not None:
        draw = DrawnSentences(sentences)
        batch_size, max_norm = batch_size or MANY_BATCH_SIZE, max_norm or MANY_MAX_NORM
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: dict[str, list[float]] = {}
    network.train()
    bar = progress(range(steps), title, "step")
    for step in bar:
        crops = random_crops(pairs, generator, batch_size or BATCH_SIZE, crop)
        visible, infrared = (images.to(device) for images in crops)
        sources = {"visible": visible, "infrared": infrared}
        if sentences is None:
            terms = criterion.terms(fused=network(visible, infrared), **sources)
        else:
            drawn = draw(len(visible))
            fused = network(visible, infrared, drawn.text_direction)
            terms = criterion.terms(fused=fused, **sources, objectives=drawn)
        optimizer.zero_grad()
        terms.total.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), max_norm)
        optimizer.step()
        schedule.step()
        # All in one transfer, for each would wait for the device on its own.
        values = dict(zip(terms._fields, torch.stack(terms).tolist(), strict=True))
        if not math.isfinite(values["total"]):
            raise ValueError(
                f"the loss is {values['total']} in step {step + 1}; try a lower learning rate"
            )
        for name, value in values.items():
            history.setdefault(name, []).append(value)
        bar.set_postfix({name: values[name] for name in ("total", "kept")}, refresh=False)
    return history


@torch.inference_mode()
def fuse_with(
    network: nn.Module,
    pair: Pair,
    device: torch.device,
    vector: Tensor | None = None,
    strip_pixels: int = STRIP_PIXELS,
) -> Tensor:
    """A whole pair fused in full resolution, as uint8 (1, H, W).

    A network with a method `fuse` tiles large images itself. One with a `REACH`, the pixels around
    an output pixel on which it depends, gets horizontal strips that overlap by it: the result is
    the same as without strips. Others, with attention or normalisation over the whole image, get
    it whole.

    Args:
        network: on `device`; set to evaluation mode.
        pair: the sources.
        device: where to compute.
        vector: a text direction (D,), for a network that takes one; it is normalised, so it may be
            an interpolation of two.
        strip_pixels: pixels of a strip.
    """
    network.eval()
    visible, infrared = (luminance(image)[None] for image in (pair.visible, pair.infrared))
    if hasattr(network, "fuse"):
        told = None if vector is None else F.normalize(vector, dim=0)[None].to(device)
        return to_8bit(network.fuse(visible.to(device), infrared.to(device), told)[0]).cpu()
    height, width = visible.shape[2:]
    reach = getattr(network, "REACH", None)
    rows = height if reach is None else max(1, strip_pixels // width)
    strips = []
    for top in range(0, height, rows):
        first = max(0, top - (reach or 0))
        seen = slice(first, top + rows + (reach or 0))
        fused = network(visible[:, :, seen].to(device), infrared[:, :, seen].to(device))
        strips.append(to_8bit(fused[0, :, top - first :][:, :rows]).cpu())
    return torch.cat(strips, dim=1)
