"""What the command lines of the examples share: options, messages, files written whole."""

import argparse
import os
import re
import secrets
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

#: Parts of the messages of errors that are no OSError, and what the user can do.
REMEDIES = (
    ("out of memory", "there is not enough memory; use a smaller --batch, --crop or --patches"),
    ("not enough memory", "there is not enough memory; use a smaller --batch, --crop or --patches"),
    ("PytorchStreamWriter", "a file could not be written; is the disk full?"),
    ("No space left on device", "the disk is full; free some space and use the same command again"),
)


def whole_number(text: str, minimum: int = 1) -> int:
    """A whole number of at least `minimum`; raises an error that argparse prints."""
    if not text.isdecimal() or not minimum <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from {minimum}, got {text}")
    return int(text)


def number(text: str, *, positive: bool = False) -> float:
    """A finite number of at least 0, or above 0; raises an error that argparse prints."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf") or (positive and value == 0):
        least = "above" if positive else "of at least"
        raise argparse.ArgumentTypeError(f"must be a number {least} 0, got {text}")
    return value


natural = partial(whole_number, minimum=0)
positive_number = partial(number, positive=True)


def new_parser(overview: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser that prints both texts without wrapping their lines."""
    return argparse.ArgumentParser(
        description=overview,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_pairs(parser: argparse.ArgumentParser, default: str = "") -> None:
    """--pairs, or --infrared with --visible; see `pairs.folders_of`."""
    parser.add_argument(
        "--pairs", type=Path, metavar="DIR", help=f"folder with ir/ and vi/ in it{default}"
    )
    for kind in ("infrared", "visible"):
        text = f"the {kind} images, if they are elsewhere"
        parser.add_argument(f"--{kind}", type=Path, metavar="DIR", help=text)


@contextmanager
def errors_as_messages(program: str) -> Iterator[None]:
    """Exit with one line instead of a traceback for errors that the user can mend.

    Inside, the standard streams exist even where a service or pythonw has none, and print names
    that are not Unicode escaped.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see `quiet_interrupts`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"\n{program}: interrupted")
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: error: {error}")
    except Exception as error:
        remedy = remedy_for(error)
        if remedy is None:
            raise
        sys.exit(f"{program}: error: {remedy} ({str(error).strip().splitlines()[0]})")


def remedy_for(error: Exception) -> str | None:
    """What to do about a full disk or memory, which libraries tell in many ways; or None."""
    text = f"{error or 'out of memory'}" if isinstance(error, MemoryError) else str(error)
    return next((remedy for part, remedy in REMEDIES if part in text), None)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each UserWarning once, as a plain line without its source code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        note(str(warning.message))


@cache
def note(text: str) -> None:
    """Print a line to stderr, each text once."""
    tqdm.write(f"note: {text}", file=sys.stderr)


def progress(things: Iterable[Any], title: str, unit: str, **options: Any) -> tqdm:
    """A progress bar around `things`; one line every five seconds if stderr is not a terminal."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        things,
        desc=title,
        unit=unit,
        mininterval=0.1 if on_terminal else 5,
        dynamic_ncols=True,
        **{"disable": sys.stderr is None} | options,
    )


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


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it there if the block succeeds.

    Its name is like no other, so that writers in other threads, processes and containers do not
    meet; its suffix, by which image writers choose their format, is that of `path`. A link is
    followed.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".unfinished-{secrets.token_hex(12)}{path.suffix}")
    try:
        # "x": exclusive. Not by tempfile, whose files only their owner may read.
        open(temporary, "xb").close()
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_writable(folder: Path, option: str = "--out") -> Path:
    """Make the folder if it does not exist; raises an OSError if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"cannot write to {option} {folder}: {error.strerror}") from error


def readable_name(text: str, length: int = 40) -> str:
    """A file name from `text`, safe on all systems: "A dark image." -> a-dark-image."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:length].strip("-")


def text_table(rows: dict[str, dict[str, float]]) -> str:
    """Rows of figures, one column a measure, as text."""
    names = list(next(iter(rows.values())))
    labels = [label if len(label) <= 40 else f"{label[:36]} ..." for label in rows]
    width = max(map(len, labels))
    lines = [" " * width + "".join(f"{name:>9}" for name in names)]
    for label, row in zip(labels, rows.values(), strict=True):
        lines.append(f"{label:<{width}}" + "".join(f"{row[name]:9.3f}" for name in names))
    return "\n".join(lines)


def some(names: Sequence[str], limit: int = 10) -> str:
    """The names in one line, at most `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
