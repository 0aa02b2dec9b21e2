"""PatchHistory: detects recomputed steps with other patches, and too many steps without patches."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from . import checks

__all__ = ["PatchHistory"]

# Forward passes to remember until their recomputation: a few with gradient accumulation.
REMEMBERED_DRAWS = 4096

# In each window of 100 steps, warn after this many steps without a patch, if they are at least this
# fraction of the steps so far.
WINDOW = 100
EMPTY_STEPS = 10
EMPTY_PART = 0.25


class PatchHistory:
    """Remembers which patches were drawn in earlier steps, and how many steps kept none."""

    def __init__(self) -> None:
        self._draws: deque[int] = deque(maxlen=REMEMBERED_DRAWS)
        self._steps = self._empty = 0
        self._warned = False

    def check_draw(self, transforms: Tensor) -> None:
        """Record the patches drawn for a step.

        Raises:
            RuntimeError: the step is recomputed in a backward pass with patches that were not
                drawn before, so the gradient would not be that of the loss.
        """
        # Only read from the CPU, so as not to wait for a device.
        try:
            draw = hash(tuple(transforms[0, 0].flatten().tolist())) if transforms.is_cpu else None
        except RuntimeError:  # torch.func of PyTorch 2.4 cannot read the values
            draw = None
        if not _in_backward() and draw is not None:
            self._draws.append(draw)
        elif _in_backward() and draw not in self._draws:
            raise RuntimeError(
                "the backward pass called the loss again, as torch.utils.checkpoint does, and it "
                "drew other patches than the first time: the gradient would be wrong. Leave "
                "`generator` at None and preserve_rng_state at True, so that torch repeats its "
                "random numbers; or checkpoint the network alone"
            )

    def count(self, kept: int, min_entropy: float) -> None:
        """Record how many patches a step kept; warns once if too many steps kept none."""
        if self._warned or _in_backward():
            return
        if self._steps == WINDOW:
            self._steps = self._empty = 0
        self._steps += 1
        self._empty += kept == 0
        if kept == 0 and self._empty >= max(EMPTY_STEPS, EMPTY_PART * self._steps):
            self._warned = True
            checks.warn(
                f"no patch passed the filter in {self._empty} of the last {self._steps} steps "
                f"(`kept` is 0): none had more than {min_entropy:g} bits of grey-level entropy in "
                "both sources. In these steps the patch term is 0, and the loss jumps when a patch "
                "passes; train on larger crops, or lower `min_patch_entropy` (None keeps all)"
            )


def _in_backward() -> bool:
    """Whether this runs in a backward pass; `torch.utils.checkpoint` finds out the same way."""
    return torch._C._current_graph_task_id() != -1
