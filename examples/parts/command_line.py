"""What the example programs' command lines have in common."""

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


natural = partial(whole_number, minimum=0)

#: What --amp names.
AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: How the help names the value of an option of this type.
METAVARS = {Path: "FILE", whole_number: "N", natural: "N", number: "X"}

#: What several programs ask for, in the same words.
SHARED_OPTIONS: dict[str, dict[str, Any]] = {
    "--pairs": {"type": Path, "metavar": "DIR", "help": "images, laid out as shown below"},
    "--max-pairs": {"type": whole_number, "help": "at most N, spread evenly over the folder"},
    "--out": {"type": Path, "metavar": "DIR", "help": "folder for the results"},
    "--prompt": {
        "action": "append",
        "metavar": "TEXT",
        "help": "what the fused image should be; repeat it",
    },
    "--encoder": {"default": "tiny", "help": f"the CLIP that judges: {ENCODERS}"},
    "--steps": {"type": whole_number, "help": "steps of a training"},
    "--seed": {"type": natural, "default": 0, "help": "random seed"},
    "--device": {"help": "cpu, cuda, cuda:1, ... (default: a GPU if there is one)"},
    "--amp": {"choices": AMP_TYPES, "help": "mixed precision (default: float32)"},
}


class Parser(argparse.ArgumentParser):
    """Shows `description` and `epilog` as they are written."""

    def __init__(self, description: str, epilog: str, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=epilog, formatter_class=layout, **options)


def add_option(parser: Any, name: str, text: str = "", **settings: Any) -> None:
    """Add an option to a parser or a group of one; its help ends with its default, if any.

    A name among `SHARED_OPTIONS` has what is said there, unless `settings` differ; `text` then
    follows the help, which it otherwise is.
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
    """A progress bar around `things`; in a log that is no terminal a line every five seconds.

    With `keep` the finished bar stays on the terminal. `options` are more of tqdm's.
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
