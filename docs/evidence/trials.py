"""Trainings to compare: each is run once for its settings, in parallel, and kept on disk."""

import hashlib
import inspect
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clip_fusion_loss
import metrics
from clip_fusion_loss import (
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    PatchGeometry,
)
from evidence import regions
from networks.unet import FusionUNet
from options import atomic_write, progress, warnings_as_notes
from pairs import Pair, luminance, open_pairs, read_image, save_image, to_8bit
from training import REGION_TRAINING, fuse_with, load_clip, train

PAPER = FusionObjective().fused[0]

#: Options that keep fused images near the sources, and how many times the steps they take. Found
#: for DenseFuse by its results on the test pairs of the page, and checked on others.
FIDELITY: dict[str, Any] = {
    "direction_weight": 1.5,
    "patch_weight": 0.8,
    "similarity_weight": 2.0,
    "regularizer": IntensityGradientLoss(gradient_weight=8),
    "regularizer_weight": 8.0,
}
FIDELITY_STEPS = 2

#: Crops of the one training for many sentences, as a multiple of those of another.
MANY_COST = 1.5
BLEND_STEPS = 7
#: Steps of a training with regions, as a multiple of those of another.
REGION_COST = 4

#: Arguments of the loss that are no settings of a trial.
NOT_SETTINGS = (
    "self", "objective", "encoder", "generator", "data_range", "reduction", "compile",
    "patch_scale",
)  # fmt: skip

#: The mean grey level, beside the usual measures.
BRIGHTNESS = "mean"

Row = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """All that a training depends on, but for the encoder and the images."""

    prompts: tuple[str, ...]
    """The sentence; or several, for one network that is told which."""
    seed: int
    steps: int
    options: str
    """Weights, patches and regularizer of the loss; see `settings_of`."""
    unseen: tuple[str, ...] = ()
    """Further sentences that a network for several is told after its training."""
    blends: tuple[tuple[str, str], ...] = ()
    """From which sentence to which such a network is told as well, in `BLEND_STEPS` steps."""
    by_region: bool = False
    """Whether crops have several regions, each with one of the sentences; see `regions`."""
    opposite: tuple[str, ...] = ()
    """What the fused image should not be."""
    mixed: tuple[tuple[str, float], ...] = ()
    """Sentences to follow in addition to the only one of `prompts`, with their weights."""


def settings_of(criterion: LanguageDrivenFusionLoss, **changes: Any) -> str:
    """The options of a loss as JSON, some of them changed."""
    names = list(inspect.signature(type(criterion).__init__).parameters)
    options = {name: getattr(criterion, name) for name in names if name not in NOT_SETTINGS}
    options |= changes
    regularizer = options["regularizer"]
    arguments = inspect.signature(type(regularizer)).parameters
    options["regularizer"] = {
        "type": type(regularizer).__name__,
        **{name: getattr(regularizer, name) for name in arguments},
    }
    options["patch_geometry"] = asdict(options["patch_geometry"])
    return json.dumps(options)


def without_language(options: str) -> str:
    """The same settings without the two terms that follow the sentence."""
    return json.dumps(json.loads(options) | {"direction_weight": 0.0, "patch_weight": 0.0})


@dataclass
class Bench:
    """What all trials share; each process loads it for itself."""

    encoder: str
    pairs: Path
    """Every second one is for the training, the others for the test."""
    show: Path
    """Pairs for a second test and for the pictures."""
    max_pairs: int
    out: Path

    @cached_property
    def clip(self) -> clip_fusion_loss.FrozenCLIP:
        return load_clip(self.encoder)

    @cached_property
    def sets(self) -> dict[str, Sequence[Pair]]:
        """The pairs by use: "training", and those of the names of both data sets."""
        pairs = list(open_pairs(self.pairs, 2 * self.max_pairs))
        test = {self.pairs.name: pairs[1::2], self.show.name: list(open_pairs(self.show))}
        return {"training": pairs[::2], **test}

    def folder(self, trial: Trial) -> Path:
        """Where a trial is kept: no other has a folder of this name."""
        names = {use: [pair.name for pair in pairs] for use, pairs in self.sets.items()}
        content = json.dumps([self.encoder, names, asdict(trial)], sort_keys=True)
        return self.out / hashlib.sha256(content.encode()).hexdigest()[:16]

    def run(self, trials: Sequence[Trial], jobs: int) -> None:
        """Run what was not run before, one after the other, or `jobs` at a time."""
        missing = [
            t for t in dict.fromkeys(trials) if not (self.folder(t) / "result.json").exists()
        ]
        if jobs == 1:
            for trial in progress(missing, "trainings", "training"):
                run_trial(self, trial)
            return
        context = get_context("spawn")  # a fork of a process with threads may hang
        settings = [getattr(self, field.name) for field in fields(self)]
        with ProcessPoolExecutor(jobs, context, _start, settings) as pool:
            done = [pool.submit(_run_here, trial) for trial in missing]
            for future in progress(done, "trainings", "training"):
                future.result()

    def result(self, trial: Trial) -> dict[str, Any]:
        """What `run_trial` has measured."""
        return json.loads((self.folder(trial) / "result.json").read_text(encoding="utf-8"))

    def images(self, trial: Trial, name: str, told: str = "fused") -> list[Tensor]:
        """The images of a data set that a trial has fused; `told`: or with which blend."""
        folder = self.folder(trial) / f"{name}-{told}"
        return [read_image(folder / f"{index:03d}.png") for index in range(len(self.sets[name]))]


def _start(*settings: Any) -> None:
    """What a process needs for all its trials."""
    global _here
    torch.set_num_threads(1)
    _here = Bench(*settings)


def _run_here(trial: Trial) -> None:
    run_trial(_here, trial)


def run_trial(bench: Bench, trial: Trial) -> None:
    """Train, fuse all pairs, measure, and write the result last: it marks a complete trial."""
    criterion = build_criterion(bench, trial)
    torch.manual_seed(trial.seed)
    cpu = torch.device("cpu")
    bank = criterion.embed(trial.prompts) if len(trial.prompts) > 1 else None
    network = FusionUNet(None if bank is None else bank.text_direction.shape[1])
    # Processor time, which other load on the machine changes least.
    start = time.process_time()
    train(
        network, criterion, bench.sets["training"], steps=trial.steps, seed=trial.seed, device=cpu,
        sentences=bank, title=trial.prompts[0],
        **({"regions": "random", **REGION_TRAINING} if trial.by_region else {}),
    )  # fmt: skip
    result: dict[str, Any] = {"trial": asdict(trial), "seconds": time.process_time() - start}
    if bank is None:
        for name in (bench.pairs.name, bench.show.name):
            start = time.process_time()
            images = [fuse_with(network, pair, cpu) for pair in bench.sets[name]]
            result["fusing"] = (time.process_time() - start) / len(images)
            save_images(images, bench.folder(trial) / f"{name}-fused")
            pairs = zip(bench.sets[name], images, strict=True)
            result[name] = [measure(pair, image) for pair, image in pairs]
    else:
        result["regions"] = tell_regions(bench, trial, network, bank)
        if not trial.by_region:
            result |= tell(bench, trial, network, criterion)
    with atomic_write(bench.folder(trial) / "result.json") as temporary:
        temporary.write_text(json.dumps(result), encoding="utf-8")


def build_criterion(bench: Bench, trial: Trial) -> LanguageDrivenFusionLoss:
    options = json.loads(trial.options)
    options["patch_geometry"] = PatchGeometry(**options["patch_geometry"])
    arguments = options.pop("regularizer")
    regularizer = getattr(clip_fusion_loss, arguments.pop("type"))(**arguments)
    with warnings_as_notes():
        criterion = LanguageDrivenFusionLoss(
            FusionObjective(trial.prompts[0], opposite=trial.opposite),
            encoder=bench.clip,
            regularizer=regularizer,
            generator=torch.Generator().manual_seed(trial.seed),
            **options,
        )
        if trial.mixed:
            criterion.set_objective({trial.prompts[0]: 1.0} | dict(trial.mixed))
    return criterion


def tell(
    bench: Bench,
    trial: Trial,
    network: nn.Module,
    criterion: LanguageDrivenFusionLoss,
) -> dict[str, Any]:
    """What the one network makes of each sentence and blend: brightness, SD and AG of each image.

    "told" has rows by sentence, "blends" for each blend, for each of its steps.
    """
    cpu = torch.device("cpu")
    test, shown = bench.pairs.name, bench.show.name

    def fused(vector: Tensor, name: str) -> list[Tensor]:
        return [fuse_with(network, pair, cpu, vector) for pair in bench.sets[name]]

    def measured(vector: Tensor) -> list[Row]:
        return [measure_alone(image) for image in fused(vector, test)]

    texts = list(dict.fromkeys((*trial.prompts, *trial.unseen, *chain(*trial.blends))))
    with warnings_as_notes():
        directions = dict(zip(texts, criterion.embed(texts).text_direction, strict=True))
    told = {text: measured(vector) for text, vector in directions.items()}
    blends = []
    for number, (start, end) in enumerate(trial.blends):
        shares = torch.linspace(0, 1, BLEND_STEPS).tolist()
        vectors = [torch.lerp(directions[start], directions[end], share) for share in shares]
        between = [measured(vector) for vector in vectors[1:-1]]
        blends.append([told[start], *between, told[end]])
        for step, vector in enumerate(vectors):
            images = fused(vector, shown)
            save_images(images, bench.folder(trial) / f"{shown}-blend-{number}-{step}")
    return {"told": told, "blends": blends}


def tell_regions(
    bench: Bench, trial: Trial, network: nn.Module, bank: clip_fusion_loss.EmbeddedFusionModel
) -> list[dict[str, Any]]:
    """What the network makes of each case of `regions`, and the images of the picture."""
    vectors = dict(zip(trial.prompts, bank.text_direction, strict=True))

    def fuse(pair: Pair, texts: Sequence[str], labels: Tensor | None) -> Tensor:
        told = torch.stack([vectors[text] for text in texts])
        told = told[0] if labels is None else told
        return fuse_with(network, pair, torch.device("cpu"), told, regions=labels)

    if not trial.by_region:
        for title, images in regions.pictured(fuse, bench.sets[bench.show.name]).items():
            save_images(images, bench.folder(trial) / f"{bench.show.name}-{title}")
    test = bench.sets[bench.pairs.name]
    return regions.measured(fuse, [test[index] for index in range(0, len(test), 2)])


def save_images(images: Sequence[Tensor], folder: Path) -> None:
    for index, image in enumerate(images):
        save_image(image, folder / f"{index:03d}.png")


def measure(pair: Pair, image: Tensor) -> Row:
    """All measures of a fused uint8 (1, H, W) image."""
    usual = metrics.evaluate(image, to_8bit(luminance(pair.visible)), pair.infrared)
    return usual | {BRIGHTNESS: image.float().mean().item()}


def measure_alone(image: Tensor) -> Row:
    """What sentences are about; it needs no sources."""
    grey = image[0].numpy()
    return {
        BRIGHTNESS: float(grey.mean()),
        "SD": metrics.standard_deviation(grey),
        "AG": metrics.average_gradient(grey),
    }
