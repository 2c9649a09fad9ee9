"""What is said while a job works: a line an event on standard error, and all of it in a run's folder.

There for people (`log.txt`) and for programs (`events.jsonl`, a JSON object a line).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOG, EVENTS = "log.txt", "events.jsonl"
FILES = (LOG, EVENTS)
_LINE = "%(asctime)s %(levelname)s %(message)s"
# Libraries with handlers of their own, by which a warning is said twice, or where nobody asked.
_LIBRARIES = ("transformers", "datasets", "huggingface_hub", "lm_eval")

# What a terminal takes for a command: names and texts of others may hold it. Line ends and tabs stay.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """The text with control characters as a person reads them, e.g. \\x1b."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Plain:
    """A stream on which all that is written is `plain`."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(plain(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Plainly(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def start(verbose: bool | Sequence[str] = False) -> None:
    """Begin to say on standard error what happens; where logging is set up already, that stays as it is.

    Args:
        verbose: `hydra.verbose`: everything in detail, or the named loggers. Otherwise what libraries warn of is left
            to the log file: users of a run cannot act on it.
    """
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Plainly(_LINE, "%H:%M:%S"))
        if verbose is not True:
            named = ("xtransplant", *(verbose or ()))
            handler.addFilter(lambda entry: entry.levelno >= logging.ERROR or entry.name.startswith(named))
        root.addHandler(handler)
        logging.captureWarnings(True)
    if verbose is True:
        root.setLevel(logging.DEBUG)
    for name in verbose or () if verbose is not True else ():
        logging.getLogger(name).setLevel(logging.DEBUG)
    ours = logging.getLogger("xtransplant")
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.NOTSET if verbose is True else logging.INFO)
    if not sys.stderr.isatty():
        # Libraries' progress bars, read when tqdm is imported; ours look for themselves whether somebody watches.
        os.environ.setdefault("TQDM_DISABLE", "1")
    adopt()


def adopt() -> None:
    """Libraries speak through our handlers only; they make their own when they are imported, so this is said again."""
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """While open, all that is said is kept in the folder too, behind what an interrupted attempt left there."""
    adopt()
    text = logging.FileHandler(folder / LOG, encoding="utf-8")
    text.setFormatter(_Plainly("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    events = logging.FileHandler(folder / EVENTS, encoding="utf-8")
    events.setFormatter(_AsJson())
    root = logging.getLogger()
    for handler in (text, events):
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in (text, events):
            root.removeHandler(handler)
            handler.close()


class _AsJson(logging.Formatter):
    """time (UTC), level, logger, message, and what the event's `extra={"event": {…}}` says in numbers."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry | getattr(record, "event", {}), ensure_ascii=False, default=str)
