"""What the example programs' command lines have in common."""

import argparse
import math
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


def whole_number(text: str, minimum: int = 1) -> int:
    """A whole number from `minimum`, or an error that argparse shows."""
    if not text.isdecimal() or not minimum <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from {minimum}, got {text}")
    return int(text)


def number(text: str) -> float:
    """A finite number from 0, or an error that argparse shows."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0, got {text}")
    return value


def progress(things: Iterable[Any], title: str, unit: str, *, keep: bool = False) -> tqdm:
    """A progress bar around `things`; in a log that is no terminal a line every five seconds.

    With `keep` the finished bar stays on the terminal.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        things,
        desc=title,
        unit=unit,
        leave=keep or not on_terminal,
        mininterval=0.1 if on_terminal else 5,
        dynamic_ncols=True,
    )


@contextmanager
def errors_as_messages(program: str) -> Iterator[None]:
    """End the program with a line instead of a traceback where the user can mend what is wrong."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"\n{program}: interrupted")
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: error: {error}")


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print warnings meant for the user as plain lines, without the code that raised them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"note: {message}", file=sys.stderr)


def choose_device(name: str | None) -> torch.device:
    """The device of that name; for None a GPU if there is one.

    Raises:
        ValueError: if nothing can be computed there.
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
    """Make the folder if need be; raises an OSError now rather than after the training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"cannot write to --out {folder}: {error.strerror}") from error
