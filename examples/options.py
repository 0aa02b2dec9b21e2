"""What the command lines of the examples share: options, messages, files written whole."""

import argparse
import hashlib
import io
import math
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm


def whole_number(text: str, minimum: int = 1) -> int:
    if not text.isdecimal() or not minimum <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from {minimum}, got {text}")
    return int(text)


def number(text: str, *, positive: bool = False) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf and not (positive and value == 0):
            return value
    least = "above" if positive else "of at least"
    raise argparse.ArgumentTypeError(f"must be a number {least} 0, got {text}")


natural = partial(whole_number, minimum=0)
positive_number = partial(number, positive=True)

ENCODERS = (
    "the CLIP of the loss: tiny, the bundled one for demonstrations; MODEL/TAG of open_clip, such "
    "as ViT-B-32-quickgelu/openai, downloaded once; MODEL=FILE, such as RN50=RN50.pt, with weights "
    "of open_clip or OpenAI; FOLDER of open_clip or transformers; hf-hub:ORG/REPO"
)
FOLDER = {"type": Path, "metavar": "DIR"}
#: Options that several programs have.
SHARED: dict[str, dict[str, Any]] = {
    "--pairs": FOLDER | {"help": "folder with ir/ and vi/ in it, see below"},
    "--infrared": FOLDER | {"help": "infrared images, if not in --pairs"},
    "--visible": FOLDER | {"help": "visible images, if not in --pairs"},
    "--max-pairs": {"type": whole_number, "help": "use at most N pairs, spread over the folder"},
    "--out": FOLDER | {"help": "folder for the results"},
    "--prompt": {"action": "append", "metavar": "TEXT", "help": "the sentence for the fused image"},
    "--opposite": {"action": "append", "metavar": "TEXT", "help": "what it should not be"},
    "--encoder": {"metavar": "CLIP", "help": ENCODERS},
    "--steps": {"type": whole_number, "help": "training steps"},
    "--seed": {"type": natural, "help": "random seed"},
    "--device": {"help": "cpu, cuda, cuda:1, ... (default: a GPU if there is one)"},
}


def new_parser(overview: str, epilog: str) -> argparse.ArgumentParser:
    """A parser with --pairs, --infrared and --visible that prints both texts as they are."""
    as_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=overview, epilog=epilog, formatter_class=as_is)
    for name in ("--pairs", "--infrared", "--visible"):
        add(parser, name)
    return parser


def add(parser: Any, name: str, text: str = "", default: Any = None, **settings: Any) -> None:
    """Add an option; `text` is added to the help in `SHARED`, and so is the default."""
    settings = SHARED.get(name, {}) | settings
    text = settings.pop("help", "") + text
    if default not in (None, []) and "(default: " not in text:
        text += " (default: %(default)s)"
    if "type" in settings:
        settings = {"metavar": "FILE" if settings["type"] is Path else "N"} | settings
    parser.add_argument(name, help=text, default=default, **settings)


def remedy_for(error: Exception) -> str | None:
    """What to do about a full disk or memory, which libraries tell in many ways; or None."""
    if re.search("DataLoader worker .*(killed|exited)", str(error)):
        return "a loading process ended, often for lack of memory; use --workers 0"
    no_memory = "out of memory|not enough memory|[Cc]an('t|not) allocate memory"
    if isinstance(error, MemoryError) or re.search(no_memory, str(error)):
        return "there is not enough memory; use a smaller --batch, --crop or --patches"
    if re.search("No space left on device|PytorchStreamWriter", str(error)):
        return "the disk is full; free some space and run it again"
    return None


@contextmanager
def errors_as_messages(program: str) -> Iterator[None]:
    """Exit with one line instead of a traceback for errors that the user can mend."""
    # Names that are not Unicode are printed escaped, and nothing where a service has no streams.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as it was while PyTorch was loaded
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
        sys.stdout.flush()  # where it is a file, its disk may be full
    except KeyboardInterrupt:
        sys.exit(f"\n{program}: interrupted")
    except Exception as error:
        remedy = remedy_for(error)
        if remedy is None and not isinstance(error, (OSError, ValueError)):
            raise
        try:
            sys.stdout.flush()
        except OSError:  # it would fail again, with a traceback, at the exit
            sys.stdout = io.StringIO()
        sys.exit(f"{program}: error: {error}" + (f"\n{remedy}" if remedy else ""))


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


def progress(things: Iterable[Any] | None, title: str, unit: str, **options: Any) -> tqdm:
    """A progress bar around `things`; one line every five seconds if stderr is not a terminal."""
    seconds = 0.1 if sys.stderr.isatty() else 5
    return tqdm(things, desc=title, unit=unit, mininterval=seconds, dynamic_ncols=True, **options)


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or a ValueError; for None a GPU if there is one, else the CPU."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} does not work here ({reason}); try cpu") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it there if the block succeeds.

    Its name is like no other, so that writers in threads, processes and containers do not meet.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the suffix, by which image writers choose a format.
    temporary = path.with_name(f".unfinished-{secrets.token_hex(12)}{path.suffix}")
    try:
        open(temporary, "xb").close()  # not by tempfile, whose files only their owner may read
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


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Claim `out`, or raise; the claim ends with the process, however that ends."""
    if os.environ.get("RANK", "0") != "0":  # the first process of several claims it
        yield
        return
    owner = make_writable(out) / ".claimed-by"
    try:
        with FileLock(out / ".claim", timeout=0):
            me = f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}"
            owner.write_text(me, "utf-8")
            yield
    except Timeout as error:
        running = f"another run is writing to --out {out}: {owner.read_text('utf-8')}"
        raise ValueError(f"{running}; choose another folder") from error


def readable_name(text: str, length: int = 40) -> str:
    """A file name from `text`, safe on all systems: "a dark image" -> a-dark-image.

    Where more than spaces are lost, a hash follows, so that no two texts share a name.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower())[:length].strip("-")
    if name.replace("-", " ") == text:
        return name
    code = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{name}-{code}".strip("-")


def some(names: Sequence[str], limit: int = 10) -> str:
    """The names in one line, at most `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
