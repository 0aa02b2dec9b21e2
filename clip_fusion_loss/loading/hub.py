"""Fetch files of the Hugging Face hub, with short timeouts and the cache as a fallback."""

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

ANSWER_LIMIT = 5.0  # seconds to wait for the hub's first answer
STALL_LIMIT = 20.0  # seconds to wait for further data


def fetch(download: Callable[[], T], folder: Path) -> T:
    """Call `download`, which uses the hub's client and writes to `folder`; returns its result.

    If the hub does not answer, the client alone would retry for minutes, even for files in its
    cache. Here it is stopped after `ANSWER_LIMIT` or `STALL_LIMIT` and then reads the cache only.

    Raises:
        Exception: the client's error, or a TimeoutError.
    """
    from huggingface_hub import constants

    failure = None
    if not constants.HF_HUB_OFFLINE and _hub_answers():
        try:
            return _watched(download, folder)
        except Exception as error:  # the cache may still have the files
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
        wanted: lists of names; the first existing file of each list is fetched, and if that is an
            index, all the parts that it lists.
        optional: further files to fetch if they exist.
        cache_dir: None uses the hub's default.

    Raises:
        Exception: as `fetch`; also if the repository has no file of a list.
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
    """The cache folder of a repository."""
    from huggingface_hub import constants

    return Path(cache_dir or constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")


def _hub_answers() -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_LIMIT)
    except Exception:  # any error of the client means that the hub cannot be reached
        return False
    return True


def _watched(download: Callable[[], T], folder: Path) -> T:
    """Run `download` in a thread and stop waiting when no data arrives.

    The thread itself goes on, as the client cannot be interrupted.
    """
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
        raise TimeoutError(f"the hub answers, but no data has come for {STALL_LIMIT:g} seconds")
    return outcome.result()


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # the client may have renamed it
            total += path.stat().st_size
    return total
