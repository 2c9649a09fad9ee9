"""What is said where: standard error, and a run's folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, sys, warnings
from pathlib import Path
from xtransplant import logs
logs.start({verbose})
import datasets, transformers
logging.getLogger("xtransplant.jobs").info("ours", extra={{"event": {{"event": "x", "count": 3}}}})
with logs.kept(Path(sys.argv[1])):
    logging.getLogger("xtransplant.jobs").info("both %d", 1, extra={{"event": {{"event": "x", "count": 3}}}})
    logging.getLogger("xtransplant.jobs").debug("detail")
    logging.getLogger("datasets.load").warning("of a library")
    logging.getLogger("transformers.loading").warning("of another")
    logging.getLogger("transformers.loading").error("an error of it")
    warnings.warn("of Python")
"""


def said(verbose: str, folder: Path) -> list[str]:
    program = PROGRAM.format(verbose=verbose)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    return [line.partition(" ")[2] for line in done.stderr.splitlines()]


@pytest.mark.parametrize(
    ("verbose", "shown"),
    [
        ("False", []),
        ("['datasets']", ["WARNING of a library"]),
        ("['xtransplant']", ["DEBUG detail"]),
        ("True", ["DEBUG detail", "WARNING of a library", "WARNING of another"]),
    ],
)
def test_a_line_an_event(verbose: str, shown: list[str], tmp_path: Path) -> None:
    found = said(verbose, tmp_path)
    lines = [line for line in found if not line.startswith("DEBUG PyTorch")]
    expected = ["INFO ours", "INFO both 1", *shown, "ERROR an error of it"]
    assert [line for line in lines if line in expected] == expected
    if verbose != "True":
        assert lines == expected
    # In the folder all of it, once.
    text = (tmp_path / "log.txt").read_text()
    for message in ("both 1", "of a library", "of another", "an error of it", "UserWarning: of Python"):
        assert text.count(message) == 1
    assert "ours" not in text
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[0]["message"] == "both 1" and (events[0]["event"], events[0]["count"]) == ("x", 3)
    assert events[0]["time"].endswith("+00:00") and events[0]["level"] == "INFO"


def test_an_interrupted_runs_log_goes_on(tmp_path: Path) -> None:
    said("False", tmp_path)
    said("False", tmp_path)
    assert (tmp_path / "log.txt").read_text().count("both 1") == 2
