"""Shared parts of the example programs' command lines."""

import argparse
import math
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from parts.losses.language import ENCODERS


def whole_number(text: str, minimum: int = 1) -> int:
    """A whole number of at least `minimum`; raises an error that argparse prints."""
    if not text.isdecimal() or not minimum <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from {minimum}, got {text}")
    return int(text)


def number(text: str) -> float:
    """A finite number of at least 0; raises an error that argparse prints."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0, got {text}")
    return value


natural = partial(whole_number, minimum=0)

#: The choices of --amp.
AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: Placeholders in the help for option values of these types.
METAVARS = {Path: "FILE", whole_number: "N", natural: "N", number: "X"}

#: Options that several programs share.
SHARED_OPTIONS: dict[str, dict[str, Any]] = {
    "--pairs": {"type": Path, "metavar": "DIR", "help": "images, laid out as shown below"},
    "--max-pairs": {"type": whole_number, "help": "use at most N pairs, spread over the folder"},
    "--out": {"type": Path, "metavar": "DIR", "help": "folder for the results"},
    "--prompt": {
        "action": "append",
        "metavar": "TEXT",
        "help": "description of the fused image; repeat it",
    },
    "--encoder": {"default": "tiny", "help": f"the CLIP of the loss: {ENCODERS}"},
    "--steps": {"type": whole_number, "help": "training steps"},
    "--seed": {"type": natural, "default": 0, "help": "random seed"},
    "--device": {"help": "cpu, cuda, cuda:1, ... (default: a GPU if there is one)"},
    "--amp": {"choices": AMP_TYPES, "help": "mixed precision (default: float32)"},
}


class Parser(argparse.ArgumentParser):
    """Shows `description` and `epilog` without wrapping their lines."""

    def __init__(self, description: str, epilog: str, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=epilog, formatter_class=layout, **options)


def add_option(parser: Any, name: str, text: str = "", **settings: Any) -> None:
    """Add an option to a parser or a group; its help ends with the default, if there is one.

    `settings` override those in `SHARED_OPTIONS`, and `text` is appended to the help there.
    """
    settings = SHARED_OPTIONS.get(name, {}) | settings
    text = settings.pop("help", "") + text
    if settings.get("default") is not None and "(default: " not in text:
        text += " (default: %(default)s)"
    if settings.get("type") in METAVARS:
        settings = {"metavar": METAVARS[settings["type"]]} | settings
    parser.add_argument(name, help=text.lstrip(), **settings)


def progress(
    things: Iterable[Any], title: str, unit: str, *, keep: bool = False, **options: Any
) -> tqdm:
    """A progress bar around `things`; one line every five seconds if stderr is not a terminal.

    With `keep` the finished bar stays on the terminal. `options` are passed to tqdm.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        things,
        desc=title,
        unit=unit,
        leave=keep or not on_terminal,
        mininterval=0.1 if on_terminal else 5,
        dynamic_ncols=True,
        **options,
    )


@contextmanager
def errors_as_messages(program: str) -> Iterator[None]:
    """Exit with one line instead of a traceback for errors that the user can fix."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"\n{program}: interrupted")
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: error: {error}")


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each UserWarning once, as a plain line without its source code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"note: {message}", file=sys.stderr)


def choose_device(name: str | None) -> torch.device:
    """The device of that name; for None a GPU if there is one, else the CPU.

    Raises:
        ValueError: the device does not work here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} does not work here ({reason}); try cpu") from error
    return device


def make_writable(folder: Path) -> Path:
    """Make the folder if it does not exist; raises an OSError if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"cannot write to --out {folder}: {error.strerror}") from error
