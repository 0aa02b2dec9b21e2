"""What the example programs' command lines have in common."""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

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
