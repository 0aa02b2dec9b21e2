"""Trainings that are compared with each other: each from its settings, kept on disk, run once."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import metrics
from adapters import reconstruct
from choices import PATCHES
from clip_fusion_loss import FrozenCLIP, FusionObjective, IntensityGradientLoss
from clip_fusion_loss import LanguageDrivenFusionLoss as Loss
from files import written_whole
from fusing import fuse_with
from images import luminance, read_image, save_image, to_8bit
from networks.densefuse import DenseFuse
from networks.residual import AverageResidual
from networks.u2fusion import U2Fusion
from original_losses import ReconstructionLoss, ReconstructionTerms, U2FusionLoss, VGGInformation
from pairs import Pair
from training import train

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"densefuse": DenseFuse, "u2fusion": U2Fusion}

#: At 1e-3 some trainings of U2Fusion collapse within 200 steps; its own has 1e-4.
LEARNING_RATES = {"densefuse": 1e-3, "u2fusion": 3e-4}

#: In a trial's `metrics.json`, beside the measures of `metrics`.
BRIGHTNESS = "mean"


@dataclass(frozen=True)
class Trial:
    """All that a training depends on, but for the encoder and the images."""

    network: str = "densefuse"
    loss: str = "language"
    """Or "original", for which only network, seed, steps and amp count."""
    seed: int = 0
    steps: int = 300
    prompt: str = FusionObjective().fused[0]
    direction: float = 0.0
    patch: float = 0.0
    similarity: float = 0.0
    regularizer: float = 0.0
    patches: int = PATCHES
    min_entropy: float | None = 6.0
    reduction: str = "kept"
    amp: bool = False

    def weighted_like(self, criterion: Loss) -> "Trial":
        """The same with the weights of `criterion`, and its mean over the patches."""
        return replace(
            self,
            direction=criterion.direction_weight,
            patch=criterion.patch_weight,
            similarity=criterion.similarity_weight,
            regularizer=criterion.regularizer_weight,
            reduction=criterion.patch_reduction,
        )

    def without_language(self) -> "Trial":
        """The same with the sentence taken out: similarity and regularizer are left."""
        return replace(self, direction=0.0, patch=0.0, prompt=Trial.prompt)

    def with_original_loss(self) -> "Trial":
        """The network as it was published, trained with the loss that it was published with."""
        kept = {name: getattr(self, name) for name in ("network", "seed", "steps", "amp")}
        return Trial(loss="original", **kept)

    @property
    def key(self) -> str:
        """A folder name of its own."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.network}-{self.seed}-{digest[:12]}"


@dataclass
class Bench:
    """What all trials share, and where they are kept."""

    encoder: FrozenCLIP
    training: Sequence[Pair]
    test: Sequence[Pair]
    shown: Sequence[Pair]
    folder: Path
    device: torch.device
    vgg16: Path | None = None
    """Weights for U2Fusion's own loss."""

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

    def run(self, trial: Trial) -> dict[str, float]:
        """Mean measures of the test pairs as `trial` fuses them, trained now or before."""
        report = self.folder / trial.key / "metrics.json"
        if not report.is_file():
            self._train(trial)
        return json.loads(report.read_text(encoding="utf-8"))["metrics"]

    def images(self, trial: Trial) -> list[Tensor]:
        """The fused test images of a trial that was run, uint8 (1, H, W) each."""
        folder = self.folder / trial.key
        return [read_image(folder / f"{index:03d}.png") for index in range(len(self.test))]

    def shown_images(self, trial: Trial) -> list[Tensor]:
        """The same of the pairs for pictures; runs the trial if need be."""
        self.run(trial)
        folder = self.folder / trial.key
        return [read_image(folder / f"shown_{index}.png") for index in range(len(self.shown))]

    def measure(self, images: Sequence[Tensor]) -> dict[str, float]:
        """Mean measures of fused test images, uint8 (1, H, W) each."""
        rows = []
        for pair, image in zip(self.test, images, strict=True):
            sources = to_8bit(luminance(pair.visible)), pair.infrared
            row = metrics.evaluate(*(grey[0].numpy() for grey in (image, *sources)))
            rows.append(row | {BRIGHTNESS: image.float().mean().item()})
        return metrics.mean(rows)

    def _train(self, trial: Trial) -> None:
        torch.manual_seed(trial.seed)
        network, criterion = (
            self._original(trial) if trial.loss == "original" else self._ours(trial)
        )
        history = train(
            # Convolutions of few channels are faster so.
            network.to(self.device, memory_format=torch.channels_last),
            criterion.to(self.device),
            self.training,
            steps=trial.steps,
            seed=trial.seed,
            device=self.device,
            title=trial.key,
            amp=trial.amp,
            learning_rate=LEARNING_RATES[trial.network],
        )
        folder = self.folder / trial.key
        images = [fuse_with(network, pair, self.device) for pair in self.test]
        for index, image in enumerate(images):
            save_image(image, folder / f"{index:03d}.png")
        for index, pair in enumerate(self.shown):
            image = fuse_with(network, pair, self.device)
            save_image(image, folder / f"shown_{index}.png")
        last = max(1, trial.steps // 10)
        losses = {name: sum(values[-last:]) / last for name, values in history.items()}
        content = {"trial": asdict(trial), "metrics": self.measure(images), "losses": losses}
        with written_whole(folder / "metrics.json") as temporary:  # last: it says that all is there
            temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")

    def _ours(self, trial: Trial) -> tuple[nn.Module, nn.Module]:
        inner = NETWORKS[trial.network]()
        network = AverageResidual(inner)
        network.REACH = inner.REACH
        criterion = Loss(
            FusionObjective(trial.prompt),
            encoder=self.encoder,
            direction_weight=trial.direction,
            patch_weight=trial.patch,
            similarity_weight=trial.similarity,
            regularizer=IntensityGradientLoss(),
            regularizer_weight=trial.regularizer,
            num_patches=trial.patches,
            min_patch_entropy=trial.min_entropy,
            patch_reduction=trial.reduction,
            generator=torch.Generator().manual_seed(trial.seed),
        )
        return network, criterion

    def _original(self, trial: Trial) -> tuple[nn.Module, nn.Module]:
        if trial.network == "densefuse":
            return AveragedFeatures(), OfBothSources(ReconstructionLoss())
        return U2Fusion(), U2FusionLoss(VGGInformation(self.vgg16))


class AveragedFeatures(nn.Module):
    """DenseFuse as published: it learns to reconstruct, and fuses by the mean of the features.

    The mean, as ports have it, in place of the sum: the sum of two images' features is brighter
    than what the decoder has learnt to draw, and needs the result to be stretched to its range.
    """

    REACH = DenseFuse.REACH

    def __init__(self) -> None:
        super().__init__()
        self.network = DenseFuse()

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        if self.training:
            return reconstruct(self.network, torch.cat([visible, infrared]))
        encoder, decoder = self.network.encoder, self.network.decoder
        return decoder((encoder(visible) + encoder(infrared)) / 2)


class OfBothSources(nn.Module):
    """A loss of single images, called as losses of fused images are."""

    def __init__(self, reconstruction: ReconstructionLoss) -> None:
        super().__init__()
        self.reconstruction = reconstruction

    def terms(
        self, reconstructed: Tensor, visible: Tensor, infrared: Tensor
    ) -> ReconstructionTerms:
        return self.reconstruction.terms(reconstructed, torch.cat([visible, infrared]))
