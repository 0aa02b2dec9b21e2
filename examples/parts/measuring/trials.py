"""Trainings to compare: each is run once for its settings and kept on disk."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_fusion_loss import (
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    StructureLoss,
)
from clip_fusion_loss import LanguageDrivenFusionLoss as Loss
from parts.data.images import luminance, read_image, save_image, to_8bit
from parts.data.pairs import Pair
from parts.files import kept_json, written_whole
from parts.measuring import metrics
from parts.measuring.baselines import matched
from parts.networks.densefuse import DenseFuse
from parts.networks.fusing import fuse_with
from parts.networks.residual import AverageResidual
from parts.training.short import BATCH_SIZE, LEARNING_RATE, train

#: In addition to `metrics`: mean grey level, and correlation with the maximum of the sources after
#: averaging over 16 x 16 pixels, which is near 1 if the fused image shows the same scene.
BRIGHTNESS = "mean"
LAYOUT = "layout"


@dataclass(frozen=True)
class Trial:
    """The settings of a training of DenseFuse, except the encoder and the images."""

    seed: int = 0
    steps: int = 150
    crops: int = BATCH_SIZE
    prompt: str = FusionObjective().fused[0]
    direction: float = 0.0
    patch: float = 0.0
    similarity: float = 0.0
    regularizer: float = 0.0
    structure: bool = True
    """Whether `StructureLoss` is the regularizer, or else `IntensityGradientLoss`."""
    window: int = 9
    flat_energy: float = 0.05
    layout_weight: float = 1.0
    gradient_weight: float = 2.0
    patches: int = 4
    min_entropy: float | None = 6.0
    reduction: str = "kept"
    learning_rate: float = LEARNING_RATE
    amp: bool = False

    def weighted_like(self, criterion: Loss) -> "Trial":
        """The same with the weights of `criterion`, its patches and its `StructureLoss`."""
        structure = criterion.regularizer
        return replace(
            self,
            direction=criterion.direction_weight,
            patch=criterion.patch_weight,
            similarity=criterion.similarity_weight,
            regularizer=criterion.regularizer_weight,
            window=structure.window,
            flat_energy=structure.flat_energy,
            layout_weight=structure.layout_weight,
            patches=criterion.num_patches,
            min_entropy=criterion.min_patch_entropy,
            reduction=criterion.patch_reduction,
        )

    def without_language(self) -> "Trial":
        """The same without the language terms: similarity and regularizer remain."""
        return replace(self, direction=0.0, patch=0.0, prompt=Trial.prompt)

    @property
    def key(self) -> str:
        """A unique folder name."""
        return f"{self.seed}-{digest_of(asdict(self))}"


@dataclass
class Bench:
    """What all trials share: encoder, images, device and the folder for results."""

    encoder: FrozenCLIP
    training: Sequence[Pair]
    test: Sequence[Pair]
    shown: Sequence[Pair]
    folder: Path
    device: torch.device
    names: tuple[str, str] = ("test", "shown")
    """What to call the test and the shown pairs."""
    published: Path | None = None
    """Fused images of published methods, SET/METHOD/NAME.png, where there are any."""

    def __post_init__(self) -> None:
        names = {
            part: [pair.name for pair in getattr(self, part)]
            for part in ("training", "test", "shown")
        }
        content = self.folder / "pairs.json"
        if not content.is_file():
            with written_whole(content) as temporary:
                temporary.write_text(json.dumps(names, indent=2), encoding="utf-8")
        elif json.loads(content.read_text(encoding="utf-8")) != names:
            raise ValueError(f"{self.folder} holds runs with other pairs; choose another --out")

    def run(self, trial: Trial, part: str = "test") -> dict[str, float]:
        """Mean metrics of the "test" or "shown" pairs; trains first if that was not done before."""
        return metrics.mean(self.rows(trial, part))

    def rows(self, trial: Trial, part: str = "test") -> list[dict[str, float]]:
        """The measures of each of those pairs."""
        report = self.folder / trial.key / "metrics.json"
        if not report.is_file():
            self._train(trial)
        return json.loads(report.read_text(encoding="utf-8"))[part]

    def images(self, trial: Trial) -> list[Tensor]:
        """The fused test images of a trial that was run, uint8 (1, H, W) each."""
        folder = self.folder / trial.key
        return [read_image(folder / f"{index:03d}.png") for index in range(len(self.test))]

    def shown_images(self, trial: Trial) -> list[Tensor]:
        """The same of the pairs for pictures; runs the trial if need be."""
        self.run(trial)
        folder = self.folder / trial.key
        return [read_image(folder / f"shown_{index}.png") for index in range(len(self.shown))]

    def measure(self, images: Sequence[Tensor], part: str = "test") -> list[dict[str, float]]:
        """Measures of fused test (or shown) images, uint8 (1, H, W) each."""
        return [
            measure(pair, image) for pair, image in zip(getattr(self, part), images, strict=True)
        ]

    def filtered(
        self, trial: Trial, control: Callable[[Tensor, float], Tensor], gradient: float
    ) -> dict[str, float]:
        """Mean measures of a trial's test images, filtered to this mean average gradient."""
        return kept_json(
            self.folder / trial.key / f"{control.__name__}-{gradient:.4f}.json",
            lambda: metrics.mean(self.measure(matched(control, self.images(trial), gradient))),
        )

    def seconds_a_step(self, trial: Trial) -> float:
        """Median time of a training step; measured once and kept on disk."""
        return self.seconds(trial.key, lambda: self.build(trial), trial)

    def seconds(
        self, key: str, build: Callable[[], tuple[nn.Module, nn.Module]], trial: Trial
    ) -> float:
        """The same for any network and criterion that `build` returns, kept in the folder `key`."""

        def measured() -> float:
            network, criterion = build()
            seconds = []
            for _ in range(9):
                start = time.perf_counter()
                self.fit(network, criterion, replace(trial, steps=1))
                seconds.append(time.perf_counter() - start)
            return statistics.median(seconds)

        return kept_json(self.folder / key / "seconds.json", measured)

    def _train(self, trial: Trial) -> None:
        network, criterion = self.build(trial)
        history = self.fit(network, criterion, trial)
        folder = self.folder / trial.key
        content = {"trial": asdict(trial)}
        for part, name in (("test", "{:03d}.png"), ("shown", "shown_{}.png")):
            images = [fuse_with(network, pair, self.device) for pair in getattr(self, part)]
            for index, image in enumerate(images):
                save_image(image, folder / name.format(index))
            content[part] = self.measure(images, part)
        last = max(1, trial.steps // 10)
        content["losses"] = {name: sum(values[-last:]) / last for name, values in history.items()}
        with written_whole(folder / "metrics.json") as temporary:  # last: it marks a complete run
            temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")

    def fit(
        self,
        network: nn.Module,
        criterion: nn.Module,
        trial: Trial,
        max_norm: float | None = None,
    ) -> dict[str, list[float]]:
        """Train in place; returns every step's loss terms."""
        return train(
            network,
            criterion,
            self.training,
            steps=trial.steps,
            seed=trial.seed,
            device=self.device,
            title=trial.key,
            amp=trial.amp,
            learning_rate=trial.learning_rate,
            batch_size=trial.crops,
            max_norm=max_norm,
        )

    def build(self, trial: Trial) -> tuple[nn.Module, Loss]:
        """A new network and the loss of the trial, on the device."""
        torch.manual_seed(trial.seed)
        network = AverageResidual(DenseFuse())
        network.REACH = DenseFuse.REACH
        criterion = Loss(
            FusionObjective(trial.prompt),
            encoder=self.encoder,
            direction_weight=trial.direction,
            patch_weight=trial.patch,
            similarity_weight=trial.similarity,
            regularizer=(
                StructureLoss(
                    window=trial.window,
                    flat_energy=trial.flat_energy,
                    layout_weight=trial.layout_weight,
                )
                if trial.structure
                else IntensityGradientLoss(trial.gradient_weight)
            ),
            regularizer_weight=trial.regularizer,
            num_patches=trial.patches,
            min_patch_entropy=trial.min_entropy,
            patch_reduction=trial.reduction,
            generator=torch.Generator().manual_seed(trial.seed),
        )
        return network.to(self.device), criterion.to(self.device)


def digest_of(settings: dict[str, Any]) -> str:
    """Twelve characters for a folder name that only these settings have."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def measure(pair: Pair, image: Tensor) -> dict[str, float]:
    """All measures of a fused uint8 (1, H, W) image."""
    visible = to_8bit(luminance(pair.visible))
    greys = (image[0].numpy() for image in (image, visible, pair.infrared))
    brighter = torch.maximum(visible, pair.infrared)
    coarse = [F.avg_pool2d(grey.float()[None], 16, 8).flatten() for grey in (image, brighter)]
    return metrics.evaluate(*greys) | {
        BRIGHTNESS: image.float().mean().item(),
        LAYOUT: torch.corrcoef(torch.stack(coarse))[0, 1].nan_to_num().item(),
    }
