"""Files that several processes use: complete or not there, and one writer at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the path's place once it is complete; nothing is left of one that is not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock of a file or folder, which a process that is killed gives back; waits for one that has it.

    Args:
        doing: what the other process does, for the message.

    Raises:
        OSError: the lock cannot be made.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("Another process is %s %s: waiting for it.", doing, path)
        lock.acquire()
    except NotImplementedError:
        log.warning("%s: this file system has no locks. Do not start the same thing twice at once.", path.parent)
    try:
        yield
    finally:
        lock.release()
