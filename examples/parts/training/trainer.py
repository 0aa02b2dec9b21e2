"""The training loop: steps, logs, samples and checkpoints, in one process or many."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from parts.command_line import progress
from parts.data.crops import Crops, batches
from parts.data.images import with_chroma_of
from parts.data.pairs import spread
from parts.data.seeds import seed_for
from parts.files import written_whole
from parts.losses.combined import NetworkWithLosses
from parts.networks.fusing import fuse_with
from parts.pages import sheets
from parts.training.checkpoints import Checkpoint, save_checkpoint
from parts.training.drawn_sentences import DrawnSentences
from parts.training.processes import Processes
from parts.training.schedule import learning_rate_factor
from parts.training.step import TrainingStep

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
SAMPLED_PAIRS = 3
SAMPLED_SENTENCES = 4


@dataclass(frozen=True)
class Plan:
    """How to train; what is not explained here is as `train.py --help` says."""

    network: str
    """Its name in the checkpoints."""
    settings: dict[str, Any]
    """All options that affect the results, as plain values; they must not change on resuming."""
    out: Path
    steps: int
    """When to end, counted from the very beginning."""
    batch: int
    encoder: str = "tiny"
    accumulate: int = 1
    max_norm: float | None = None
    rate: float = 5e-4
    warmup_epochs: float = 1.0
    milestones: Sequence[float] = (50, 60, 70, 80, 90)
    reconstruction_epochs: float = 0.0
    seed: int = 0
    amp: str | None = None
    workers: int = 0
    save_every: int = 500
    sample_every: int = 500


@dataclass
class Trainer:
    """Trains a network under its losses as `plan` says.

    Crops, patches, noise and all other random numbers depend only on the seed, the step and the
    process. So a resumed training continues with the same numbers as one without interruption.
    """

    plan: Plan
    combined: NetworkWithLosses
    optimizer: torch.optim.Optimizer
    crops: Crops
    processes: Processes
    generator: torch.Generator
    """Where the loss takes its patches from."""

    def __post_init__(self) -> None:
        self.take_step = TrainingStep(
            self.combined,
            self.optimizer,
            self.processes,
            self.plan.amp,
            self.plan.accumulate,
            self.plan.max_norm,
        )

    @property
    def step(self) -> int:
        """Steps done."""
        return self.take_step.done

    @property
    def drawn(self) -> DrawnSentences | None:
        """What draws the sentences, of a network that takes one as an input."""
        network = self.combined.network
        return network if isinstance(network, DrawnSentences) else None

    @property
    def network(self) -> nn.Module:
        """What is trained and saved."""
        return self.drawn.network if self.drawn else self.combined.network

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where the checkpoint was written.

        Raises:
            ValueError: if it is of a training with other settings.
        """
        changed = [
            f"{name} was {checkpoint.settings.get(name)!r}, is {value!r}"
            for name, value in self.plan.settings.items()
            if checkpoint.settings.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"--resume must have the settings of the training in {self.plan.out}, but "
                f"{'; '.join(changed)}; pass the same options, or choose another --out"
            )
        self.network.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.take_step.scaler.load_state_dict(checkpoint.scaler)
        self.take_step.done = checkpoint.step

    def run(self, stop: Event) -> bool:
        """Train to the end, or until asked to stop, and save; returns whether it was the end.

        Raises:
            ValueError: if the loss is no longer a finite number; nothing is saved then.
        """
        loader = self._load_batches()
        first, last = self.step, self.plan.steps
        bar = progress(
            range(first, last),
            f"training {self.plan.network}",
            "step",
            keep=True,
            initial=first,
            total=last,
            disable=not self.processes.is_first,
        )
        self.combined.train()
        with bar, self._open_log() as log:
            writer = csv.DictWriter(log, self._columns, restval="", lineterminator="\n")
            for _ in bar:
                row, stopping = self._train_step(loader, stop)
                writer.writerow(row)
                log.flush()
                shown = {"loss": f"{row['total']:.4g}", "rate": f"{row['rate']:.2g}"}
                if "language_kept" in row:  # near 0 the patch term has almost no effect
                    shown["kept"] = f"{row['language_kept']:.2f}"
                bar.set_postfix(shown, refresh=False)
                if self.step == last or stopping or _is_multiple(self.step, self.plan.save_every):
                    self._save()
                if stopping:
                    break
                if self.step == last or _is_multiple(self.step, self.plan.sample_every):
                    self._save_samples()
        return self.step == last

    @property
    def _columns(self) -> list[str]:
        return ["step", "epoch", "rate", *self.combined.names]

    @property
    def _epochs_a_step(self) -> float:
        crops = self.plan.batch * self.plan.accumulate * self.processes.world
        return crops / self.crops.epoch_size

    def _load_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            self.crops,
            batch_sampler=batches(
                first_step=self.step,
                last_step=self.plan.steps,
                parts=self.plan.accumulate,
                batch=self.plan.batch,
                rank=self.processes.rank,
                world=self.processes.world,
            ),
            num_workers=self.plan.workers,
            pin_memory=self.processes.device.type == "cuda",
        )
        return iter(loader)

    def _train_step(
        self, loader: Iterator[tuple[Tensor, Tensor]], stop: Event
    ) -> tuple[dict[str, float], bool]:
        """One update of the weights; returns the row of the log, and whether to stop."""
        plan = self.plan
        epoch = self.step * self._epochs_a_step
        rate = plan.rate * learning_rate_factor(
            epoch, self._epochs_a_step, warmup=plan.warmup_epochs, milestones=plan.milestones
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._enter_stage(epoch)
        seed = seed_for(plan.seed, self.step, self.processes.rank)
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        if self.drawn:
            process = self.step * self.processes.world + self.processes.rank
            self.drawn.calls = process * plan.accumulate

        terms, stopping = self.take_step(loader, stop.is_set)
        return {"step": self.step, "epoch": round(epoch, 6), "rate": rate} | terms, stopping

    def _enter_stage(self, epoch: float) -> None:
        self.combined.reconstructing = epoch < self.plan.reconstruction_epochs
        if epoch - self._epochs_a_step < self.plan.reconstruction_epochs <= epoch:
            # Moving averages of the first stage's far larger gradients would slow the second.
            self.optimizer.state.clear()

    def _open_log(self) -> TextIO:
        """The open log, without the rows that a killed run wrote after its last checkpoint."""
        if not self.processes.is_first:
            return open(os.devnull, "w", encoding="utf-8")
        path = self.plan.out / LOG
        rows = []
        if self.step > 0 and path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= self.step]
        with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return open(path, "a", encoding="utf-8")

    def _save(self) -> None:
        if not self.processes.is_first:
            return
        checkpoint = Checkpoint(
            self.plan.network,
            self.plan.settings,
            self.step,
            self.network.state_dict(),
            self.optimizer.state_dict(),
            self.take_step.scaler.state_dict(),
            self.drawn.bank if self.drawn else None,
            self.plan.encoder if self.drawn else None,
        )
        save_checkpoint(checkpoint, self.plan.out / CHECKPOINT)

    def _save_samples(self) -> None:
        """Pictures of a few pairs, fused with the network as it is now."""
        if not self.processes.is_first:
            return
        pairs = self.crops.pairs
        shown = [pairs[index] for index in spread(len(pairs), SAMPLED_PAIRS)]
        columns = {
            "infrared": [pair.infrared for pair in shown],
            "visible": [pair.visible for pair in shown],
        }
        told = self.drawn.told_some(SAMPLED_SENTENCES) if self.drawn else {"": self.network}
        for sentence, network in told.items():
            columns[f"{sentence} fused after {self.step} steps".strip()] = [
                with_chroma_of(pair.visible, fuse_with(network, pair, self.processes.device))
                for pair in shown
            ]
        path = self.plan.out / "samples" / f"step_{self.step:07d}.png"
        sheets.save_sheet(columns, sheets.salient_windows(shown), path)
        self.combined.train()


def _is_multiple(step: int, period: int) -> bool:
    return period > 0 and step % period == 0
