"""What lasts is built as in a fresh process, whatever the caller has set."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["building"]


@contextmanager
def building() -> Iterator[None]:
    """Make modules, texts' vectors and other lasting state in here; also a decorator.

    Inside, tensors are float32 on the CPU where nothing else is said, and fit for training later:
    `torch.set_default_dtype`, `torch.set_default_device` and `torch.inference_mode` of the caller
    do not count. Logging is configured afterwards as it was before.
    """
    dtype = torch.get_default_dtype()
    stand_in, root = _StandIn(), logging.getLogger()
    # open_clip logs through functions like `logging.info`, which give a root logger without
    # handlers one for good; a later `logging.basicConfig` of the caller would do nothing.
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
    """Does with a record what Python does with one for which there is no handler."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)
