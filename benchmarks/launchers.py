"""A sweep through launchers against the same runs one by one, each a process of its own, as a shell loop has them.

    python benchmarks/launchers.py outputs=<new folder> [launchers=joblib,ray] [every=1] \\
        experiment=embedded/scale limit=10

`every=4` times every fourth run alone only, and says what all would take at that rate. Prints JSON: seconds of the
clock, and whether all ways gave the same results: byte for byte where a process has as many threads (`threads=1` for
those alone; without, all cores, which moves the last digits), else by how much log-probabilities differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtransplant import compose, record

XTRANSPLANT = [sys.executable, "-c", "import sys; from xtransplant.cli import entry; sys.exit(entry())", "evaluate"]


def timed(arguments: list[str], environment: Mapping[str, str] = {}) -> float:
    started = time.perf_counter()
    done = subprocess.run([*XTRANSPLANT, *arguments], capture_output=True, text=True, env={**os.environ, **environment})
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


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> float:
    """The largest of a score or log-probability of any document."""
    found = 0.0
    for name in (name for name in one if name.startswith("samples_")):
        for a, b in zip(one[name].splitlines(), other[name].splitlines(), strict=True):
            x, y = json.loads(a), json.loads(b)
            pairs = [(x[metric], y[metric]) for metric in x["metrics"]]
            pairs += [(float(p[0][0]), float(q[0][0])) for p, q in zip(x["resps"], y["resps"], strict=True)]
            found = max(found, *(abs(p - q) for p, q in pairs))
    return found


def main(arguments: list[str]) -> None:
    own = {"outputs": "", "launchers": "joblib,ray", "every": "1", "threads": ""}
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
    threads = {"OMP_NUM_THREADS": own["threads"]} if own["threads"] else {}
    seconds = [timed([*line, f"output_dir={outputs / 'alone'}"], threads) for line in few]
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
            "largest difference to those alone": max(differences(swept[name], files) for name, files in alone.items()),
            "again, all finished, seconds": timed(["-m", *rest, f"hydra/launcher={launcher}", f"output_dir={place}"]),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
