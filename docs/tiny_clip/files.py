"""Write files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import IO


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to; it becomes `path` if the block succeeds, else it vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a move is atomic only within one file system.
    handle, temporary = mkstemp(dir=path.parent, prefix=".unfinished-")
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # temporary files are private
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
