"""What the process has set is as before when something was built."""

import io
import logging
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from clip_fusion_loss import (
    FrozenCLIP,
    LanguageDrivenFusionLoss,
)
from clip_fusion_loss.building import building

NEW_PROCESS = """
import logging, random, signal, sys, warnings
import torch

def state():
    loggers = logging.root.manager.loggerDict.items()
    return {
        "root": (list(logging.root.handlers), logging.root.level, logging.root.filters[:]),
        "disabled": logging.root.manager.disable,
        "class": logging.getLoggerClass(),
        "loggers": {
            name: (logger.level, list(logger.handlers), logger.propagate, logger.disabled)
            for name, logger in loggers if isinstance(logger, logging.Logger)
        },
        "hooks": (sys.excepthook, warnings.showwarning, signal.getsignal(signal.SIGINT)),
        "random": (random.getstate(), torch.get_rng_state().tolist()),
        "torch": (
            torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        ),
    }

mine = logging.getLogger("mine")
mine.setLevel(logging.INFO)
before = state()
import clip_fusion_loss
from clip_fusion_loss import LanguageDrivenFusionLoss
filters = list(warnings.filters)
criterion = LanguageDrivenFusionLoss.tiny(num_patches=2, min_patch_entropy=None)
criterion.set_objective("a dark image")
after = state()
# Libraries that are imported on the way have loggers of their own.
after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}
assert after == before, [name for name in before if after[name] != before[name]]
criterion(*torch.rand(3, 1, 1, 40, 40))
logging.basicConfig(filename=sys.argv[1], level=logging.INFO)
assert len(logging.root.handlers) == 1
handler = logging.StreamHandler(sys.stdout)
mine.addHandler(handler)
mine.info("epoch 1")
"""


class TestLogging:
    @pytest.mark.slow
    def test_a_process_and_its_log_are_as_without_the_loss(self, tmp_path):
        log = tmp_path / "train.log"
        command = [sys.executable, "-c", NEW_PROCESS, str(log)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert log.read_text() == "INFO:mine:epoch 1\n"
        assert result.stdout == "epoch 1\n", "once, by the handler that the program gave it"
        assert result.stderr == ""

    def test_no_handler_is_left(self):
        with root_without_handlers() as root:
            LanguageDrivenFusionLoss.tiny()
            assert root.handlers == []

    def test_nor_by_what_fails(self, tmp_path):
        with root_without_handlers() as root:
            with pytest.raises(FileNotFoundError):
                FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")
            assert root.handlers == []
        assert torch.get_default_dtype() == torch.float32

    def test_warnings_in_there_are_still_seen(self, capsys):
        with root_without_handlers() as root:
            with building(), building():  # as in two threads
                logging.info("not worth a line")
                logging.warning("look here")
            assert root.handlers == []
        assert "look here" in capsys.readouterr().err

    def test_the_callers_own_handlers_get_what_is_logged(self):
        file = io.StringIO()
        with root_without_handlers() as root:
            root.addHandler(logging.StreamHandler(file))
            with building():
                logging.warning("look here")
            assert len(root.handlers) == 1
        assert file.getvalue() == "look here\n"


@contextmanager
def root_without_handlers():
    """The root logger as a program finds it; pytest has given it handlers."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield root
    finally:
        root.handlers = handlers
