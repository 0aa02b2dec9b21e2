"""Build lasting state independently of the caller's global PyTorch and logging settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["building"]


@contextmanager
def building() -> Iterator[None]:
    """Context or decorator for code that creates modules, text embeddings and other lasting state.

    Inside, new tensors are float32 on the CPU by default and can be used in training later: the
    caller's `torch.set_default_dtype`, `torch.set_default_device` and `torch.inference_mode` have
    no effect. The logging configuration is the same afterwards as before.
    """
    dtype = torch.get_default_dtype()
    stand_in, root = _StandIn(), logging.getLogger()
    # open_clip calls functions like `logging.info`, which add a permanent handler to a root logger
    # that has none. A later `logging.basicConfig` of the caller would then do nothing.
    if all(isinstance(handler, _StandIn) for handler in root.handlers):
        root.addHandler(stand_in)
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
        root.removeHandler(stand_in)


class _StandIn(logging.Handler):
    """Handles a record as Python does when no handler is installed."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)
