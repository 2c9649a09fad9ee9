"""Files that several processes use: complete or not there, and one writer at a time."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the path's place once it is complete; nothing is left of one that is not."""
    # Processes of two machines, or containers, may have the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def alone(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock, which a process that is killed gives back; waits for one that has it.

    Args:
        what: is being done by the other process, for the message.

    Raises:
        OSError: the lock cannot be made.
    """
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("Another process is %s: waiting for it.", what)
        lock.acquire()
    except NotImplementedError:
        log.warning("%s: this file system has no locks. Start nothing twice at once.", lock_file.parent)
    try:
        yield
    finally:
        lock.release()
