"""One step of training, the same in short trainings and in long ones."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from parts.command_line import AMP_TYPES
from parts.training.processes import Processes


@dataclass
class TrainingStep:
    """Computes the loss of a few crops and updates the weights, once per call."""

    loss: Callable[[Tensor, Tensor], dict[str, Tensor]]
    """(visible, infrared) -> all terms by name, each (), among them the "total" to minimise. For
    many processes it must be a module."""
    optimizer: torch.optim.Optimizer
    processes: Processes
    amp: str | None = None
    """A key of `AMP_TYPES`; None computes in float32."""
    parts: int = 1
    """Batches of each process whose gradients make one step."""
    max_norm: float | None = None
    """The norm to which larger gradients, of all weights together, are scaled down."""
    done: int = 0
    """Steps so far."""

    def __post_init__(self) -> None:
        device = self.processes.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp == "fp16")
        self.autocast = torch.autocast(device, AMP_TYPES.get(self.amp), self.amp is not None)
        if self.processes.world > 1:
            self.loss = DistributedDataParallel(self.loss)

    def __call__(
        self, batches: Iterator[tuple[Tensor, Tensor]], stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], bool]:
        """Take the next `parts` of the batches, visible and infrared, (N, 1, H, W) in [0, 1].

        Returns:
            Means of the terms over all parts and processes; whether `stop` said True in any.

        Raises:
            ValueError: the loss is no longer a finite number; the weights stay as they were.
        """
        device = self.processes.device
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for part in range(self.parts):
            visible, infrared = (images.to(device, non_blocking=True) for images in next(batches))
            # Processes average their gradients only when the last part's have been added.
            waits = self.processes.world > 1 and part < self.parts - 1
            with self.loss.no_sync() if waits else nullcontext():
                with self.autocast:
                    terms = self.loss(visible, infrared)
                self.scaler.scale(terms["total"] / self.parts).backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach() / self.parts

        # All in one transfer, for each would wait for the device on its own. Processes must agree
        # on when to stop, so the request travels along.
        request = torch.tensor(float(stop()), device=device)
        *values, stopping = self.processes.mean(torch.stack([*sums.values(), request])).tolist()
        means = dict(zip(sums, values, strict=True))
        if not math.isfinite(means["total"]):
            raise ValueError(
                f"the loss is {means['total']} in step {self.done + 1}; try a lower learning rate"
            )
        if self.max_norm is not None:
            self.scaler.unscale_(self.optimizer)
            weights = [w for group in self.optimizer.param_groups for w in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, self.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.done += 1
        return means, stopping > 0
