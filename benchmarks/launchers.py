"""A sweep through launchers against the same runs one by one, each a process of its own, as a shell loop has them.

    python benchmarks/launchers.py outputs=<new folder> [launchers=joblib,ray] [every=1] \\
        experiment=embedded/scale limit=10

`every=4` times every fourth run alone only, and says what all would take at that rate. Prints JSON: seconds of the
clock, and whether all ways gave the same results, byte for byte.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from xtransplant import compose, record

XTRANSPLANT = [sys.executable, "-c", "import sys; from xtransplant.cli import entry; sys.exit(entry())", "evaluate"]


def timed(arguments: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run([*XTRANSPLANT, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-2000:]}")
    return time.perf_counter() - started


def results(outputs: Path) -> dict[str, dict[str, bytes]]:
    """What was computed, by the run's name; without what says when, and where."""
    return {
        run.folder.name: {
            path.name: path.read_bytes()
            for path in run.folder.iterdir()
            if path.name == "results.json" or path.name.startswith("samples_")
        }
        for run in record.find_runs([str(outputs)])
    }


def main(arguments: list[str]) -> None:
    own = {"outputs": "", "launchers": "joblib,ray", "every": "1"}
    rest = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        else:
            rest.append(argument)
    outputs = Path(own["outputs"])
    if not own["outputs"] or outputs.exists():
        raise SystemExit("Give outputs=<a new folder>: what is there already would not be computed.")
    with compose.open_hydra() as hydra:
        request = compose.read(hydra, "evaluate", rest, multirun=True)
    lines = [[line for line in each if not line.startswith("hydra.sweeper")] for each in request.lines]
    few = lines[:: int(own["every"])]
    seconds = [timed([*line, f"output_dir={outputs / 'alone'}"]) for line in few]
    alone = results(outputs / "alone")
    found: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "runs": len(lines),
        "one by one": {
            "runs": len(few),
            "seconds": sum(seconds),
            "seconds of all, at this rate": sum(seconds) / len(few) * len(lines),
            "seconds a run": {"least": min(seconds), "mean": sum(seconds) / len(few), "most": max(seconds)},
        },
    }
    for launcher in own["launchers"].split(","):
        place = outputs / launcher
        took = timed(["-m", *rest, f"hydra/launcher={launcher}", f"output_dir={place}"])
        swept = results(place)
        found[launcher] = {
            "seconds": took,
            "one by one / this": found["one by one"]["seconds of all, at this rate"] / took,
            "runs": len(swept),
            "equal to those alone": sum(swept[name] == files for name, files in alone.items()),
            "again, all finished, seconds": timed(["-m", *rest, f"hydra/launcher={launcher}", f"output_dir={place}"]),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
