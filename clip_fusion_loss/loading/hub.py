"""Files of the Hugging Face hub: within seconds, from the cache, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeVar

from .checkpoints import parts_of

__all__ = ["fetch", "fetch_files", "repository_folder"]

T = TypeVar("T")

ANSWER_LIMIT = 5.0  # seconds for the hub's first sign of life
STALL_LIMIT = 20.0  # seconds without another byte


def fetch(download: Callable[[], T], folder: Path) -> T:
    """What `download` returns, which uses the hub's client and writes to `folder`.

    The client retries for minutes when the hub is silent, even about files in its cache. Here
    it has `ANSWER_LIMIT` and `STALL_LIMIT`, and then is asked for what the cache has.

    Raises:
        Exception: whatever the client raises, or a TimeoutError.
    """
    from huggingface_hub import constants

    failure = None
    if not constants.HF_HUB_OFFLINE and _hub_answers():
        try:
            return _watched(download, folder)
        except Exception as error:  # whatever it is, the cache may do
            failure = error
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return download()
    except Exception as error:
        raise failure or error from None
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch_files(
    repository: str,
    wanted: Sequence[Sequence[str]],
    optional: Sequence[str],
    cache_dir: str | None,
) -> Path:
    """A local folder with files of a repository, from the hub or its cache.

    Args:
        repository: "ORG/NAME".
        wanted: of each list the first file that the repository has; with an index all parts.
        optional: files to take along if there are such.
        cache_dir: None is the hub's own.

    Raises:
        Exception: as `fetch`; also if it has no file of a list.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def get(name: str) -> Path:
        return Path(hf_hub_download(repository, name, cache_dir=cache_dir))

    def first(names: Sequence[str]) -> Path:
        for name in names[:-1]:
            with suppress(EntryNotFoundError):
                return get(name)
        return get(names[-1])

    def download() -> Path:
        paths = [first(names) for names in wanted]
        for path in paths:
            for part in parts_of(path) if path.name.endswith(".index.json") else ():
                get(part)
        for name in optional:
            with suppress(EntryNotFoundError):
                get(name)
        return paths[0].parent

    return fetch(download, repository_folder(repository, cache_dir))


def repository_folder(repository: str, cache_dir: str | None) -> Path:
    """Where the hub's client keeps a repository."""
    from huggingface_hub import constants

    return Path(cache_dir or constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")


def _hub_answers() -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_LIMIT)
    except Exception:  # whatever the client raises: it could not be reached
        return False
    return True


def _watched(download: Callable[[], T], folder: Path) -> T:
    """Run it in a thread, which is left alone when nothing arrives: no client can be stopped."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(download())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=work, daemon=True).start()
    before = -1
    while not outcome.done() and before != (size := _size(folder)):
        before = size
        wait([outcome], STALL_LIMIT)
    if not outcome.done():
        raise TimeoutError(f"the hub answers, but nothing has come for {STALL_LIMIT:g} seconds")
    return outcome.result()


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # renamed meanwhile
            total += path.stat().st_size
    return total
