"""Trainings of one network for many sentences, each kept on disk and run once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TypedDict

import torch
from torch import Tensor

from parts.data.images import read_image, save_image
from parts.files import kept_json
from parts.measuring.metrics import average_gradient, standard_deviation
from parts.measuring.trials import BRIGHTNESS, Bench, Trial, digest_of
from parts.networks.conditioned import Conditioned, told
from parts.networks.fusing import fuse_with
from parts.training.drawn_sentences import MAX_NORM, DrawnSentences


@dataclass(frozen=True)
class ManyTrial:
    """All that such a training and its measurement depend on, but for encoder and images."""

    like: Trial
    """Loss, seed, crops and steps; its sentence is not used."""
    sentences: tuple[str, ...]
    """Those of the training."""
    held_out: tuple[str, ...]
    """Others that the trained network is told as well."""
    blends: tuple[tuple[str, str], ...]
    """From which sentence to which."""
    blend_steps: int = 7
    max_norm: float = MAX_NORM

    @property
    def key(self) -> str:
        """A folder name of its own."""
        return f"many-{self.like.seed}-{digest_of(asdict(self))}"


class Outcome(TypedDict):
    """What is measured of every fused test image: mean grey level, SD and AG."""

    told: dict[str, list[dict[str, float]]]
    """By sentence, for each image."""
    blends: list[list[list[dict[str, float]]]]
    """For each blend, for each of its steps, for each image."""


def outcome(bench: Bench, trial: ManyTrial) -> Outcome:
    """Train, tell the network everything that `trial` names, and measure; or what was measured."""
    return kept_json(bench.folder / trial.key / "outcome.json", lambda: _train(bench, trial))


def shown_images(bench: Bench, trial: ManyTrial, index: int) -> list[Tensor]:
    """A shown pair as the network fuses it for each sentence of its training."""
    outcome(bench, trial)
    folder = bench.folder / trial.key
    return [
        read_image(folder / f"{number}_shown_{index}.png") for number in range(len(trial.sentences))
    ]


def measure(image: Tensor) -> dict[str, float]:
    """What sentences are about, of a fused uint8 (1, H, W) image; needs no sources."""
    grey = image[0].numpy()
    return {
        BRIGHTNESS: float(grey.mean()),
        "SD": standard_deviation(grey),
        "AG": average_gradient(grey),
    }


def seconds_a_step(bench: Bench, trial: ManyTrial) -> float:
    """Median time of a training step; measured once and kept on disk."""

    def both() -> tuple[DrawnSentences, DrawnSentences]:
        drawn = _build(bench, trial)
        return drawn, drawn

    return bench.seconds(trial.key, both, trial.like)


def _build(bench: Bench, trial: ManyTrial) -> DrawnSentences:
    network, criterion = bench.build(trial.like)
    bank = criterion.embed(trial.sentences)
    conditioned = Conditioned(network, bank.text_direction.shape[1]).to(bench.device)
    return DrawnSentences(conditioned, criterion, bank)


def _train(bench: Bench, trial: ManyTrial) -> Outcome:
    drawn = _build(bench, trial)
    bench.fit(drawn, drawn, trial.like, trial.max_norm)
    conditioned, criterion = drawn.network, drawn.criterion

    def measured(vector: Tensor) -> list[dict[str, float]]:
        instructed = told(conditioned, vector)
        return [measure(fuse_with(instructed, pair, bench.device)) for pair in bench.test]

    def directions(texts: Sequence[str]) -> Tensor:
        return criterion.embed(texts).text_direction

    for number, vector in enumerate(drawn.bank.text_direction):
        for index, pair in enumerate(bench.shown):
            image = fuse_with(told(conditioned, vector), pair, bench.device)
            save_image(image, bench.folder / trial.key / f"{number}_shown_{index}.png")
    texts = dict.fromkeys((*trial.sentences, *trial.held_out, *chain(*trial.blends)))
    measures = dict(zip(texts, map(measured, directions(list(texts))), strict=True))

    def strip(start: str, end: str) -> list[list[dict[str, float]]]:
        shares = torch.linspace(0, 1, trial.blend_steps).tolist()[1:-1]
        ends = directions((start, end))
        between = [measured(torch.lerp(*ends, share)) for share in shares]
        return [measures[start], *between, measures[end]]

    return {"told": measures, "blends": [strip(*blend) for blend in trial.blends]}
