"""Write files atomically, so that an interrupted run leaves no partial files."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it to `path` if the block succeeds.

    The temporary file is in the same folder, as a move is atomic only within one file system. It
    keeps the suffix, by which image writers choose their format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".unfinished-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def readable_name(text: str, length: int = 40) -> str:
    """A file name from `text`, safe on all systems: "A dark image." -> a-dark-image."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:length].strip("-")
