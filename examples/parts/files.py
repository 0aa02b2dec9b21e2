"""Write files whole: nobody ever finds half a file, not even after an interrupted run."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it to `path` if the block succeeds.

    The temporary file lies in the same folder, because a move is atomic only within one file
    system, and keeps the suffix, because image writers choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".unfinished-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def readable_name(text: str, length: int = 40) -> str:
    """Of `text` what is safe in the name of any file: "A dark image." -> a-dark-image."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:length].strip("-")
