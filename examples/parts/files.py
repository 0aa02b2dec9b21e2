"""Write files atomically, so that an interrupted run leaves no partial files."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """The content of the JSON file; if there is none, what `make` returns is written first."""
    if not path.is_file():
        content = make()
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def readable_name(text: str, length: int = 40) -> str:
    """A file name from `text`, safe on all systems: "A dark image." -> a-dark-image."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:length].strip("-")
