"""What a loss remembers of the patches of earlier steps, to tell what would go wrong unnoticed."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from . import checks

__all__ = ["PatchHistory"]

# Steps between a forward pass and its recomputation; gradient accumulation makes them a few.
REMEMBERED_DRAWS = 4096

# Of a hundred steps: so many, and so large a part of those so far, without any patch is a warning.
WINDOW = 100
EMPTY_STEPS = 10
EMPTY_PART = 0.25


class PatchHistory:
    """Notices patches that are drawn anew for a recomputation, and steps that keep none."""

    def __init__(self) -> None:
        self._draws: deque[int] = deque(maxlen=REMEMBERED_DRAWS)
        self._steps = self._empty = 0
        self._warned = False

    def check_draw(self, transforms: Tensor) -> None:
        """Note what was drawn for a step.

        Raises:
            RuntimeError: this is the recomputation of a step, in a backward pass, with patches
                that no step has had: the gradient would not be that of the loss.
        """
        # Another generator's device is not asked; None is no step's draw.
        try:
            draw = hash(tuple(transforms[0, 0].flatten().tolist())) if transforms.is_cpu else None
        except RuntimeError:  # torch.func of PyTorch 2.4 hides the numbers
            draw = None
        if not _in_backward() and draw is not None:
            self._draws.append(draw)
        elif _in_backward() and draw not in self._draws:
            raise RuntimeError(
                "the loss was called again by the backward pass, as torch.utils.checkpoint does, "
                "and drew other patches than at first: the gradient would be wrong. Leave "
                "`generator` at None and preserve_rng_state at True, so that torch repeats its own "
                "random numbers; or checkpoint the network alone"
            )

    def count(self, kept: int, min_entropy: float) -> None:
        """Note how many patches a step kept; warns, once, if too often none."""
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
                f"(`kept` is 0): none had more than {min_entropy:g} bits of grey levels in both "
                "sources. The patch term is 0 there, and the loss jumps whenever a patch passes; "
                "train on larger crops, or lower `min_patch_entropy` (None keeps every patch)"
            )


def _in_backward() -> bool:
    """Whether autograd's engine is calling, as its own `torch.utils.checkpoint` asks it."""
    return torch._C._current_graph_task_id() != -1
