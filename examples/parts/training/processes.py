"""One process or many: `torchrun` starts them, PyTorch's DistributedDataParallel joins them.

Why not Accelerate, which would save about thirty lines: with several processes it ignores --device,
it silently computes --amp fp16 on a CPU in float32, and its checkpoints are folders that are not
written atomically and that all machines must read. Why not Lightning Fabric: it rounds the images
for the loss to the dtype of --amp, and on a CPU it replaces fp16 by bf16.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from parts.command_line import choose_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `world` and computes on `device`."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The one that writes files and prints."""
        return self.rank == 0

    def share(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process; all processes return or raise what it does there.

        So only the first of several machines needs the files that `make` reads.
        """
        if self.world == 1:
            return make()
        outcome: list[Any] = [None]
        if self.is_first:
            try:
                outcome = [make()]
            except Exception as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, device=self.device)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all processes, the same in each."""
        if self.world > 1:
            dist.all_reduce(values)
        return values / self.world


@contextmanager
def joined_processes(device: str | None) -> Iterator[Processes]:
    """Join the processes that `torchrun` started; without it there is one process.

    Each process uses the GPU of its local rank, unless `device` is given.

    Raises:
        ValueError: `device` does not work here.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(0, 1, choose_device(device))
        return
    if device is None and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world, chosen)
    finally:
        dist.destroy_process_group()


@contextmanager
def stop_on_request() -> Iterator[Event]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the current step.

    A second one stops at once.
    """
    request = Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.set()
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
