"""A sweep: a run for each combination of values, through Hydra's launcher; what happens to one run harms no other.

What was asked and how each run ended lies in `<output_dir>/sweeps/<job>-<hash>/sweep.json`. The hash is that of all its
runs: the same sweep has the same folder, and goes on there.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import re
import shlex
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtransplant import logs
from xtransplant.config import JOBS, EvaluateConfig, JobConfig, RunJob, SftConfig
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

    from xtransplant.compose import Request

log = logging.getLogger(__name__)

Run = Callable[..., Path | int | None]

_DONE = ("done", "was done")
_ANEW = re.compile(r"\+{0,2}(overwrite=true|resume=false)", re.IGNORECASE)
_LOST = "killed, or not begun because another was; too little memory is the usual reason"


def sweep(arguments: Sequence[str], job: str, hydra: Hydra, config_name: str, request: Request, run: Run) -> int:
    """Every run of a request, those after a failed one too. Returns the exit code: 1 if any is not finished.

    Args:
        arguments: the command line, for the record and for how to go on.
        run: does what a config says, and prints nothing of the result where `shown=False`.
    """
    from hydra_plugins.xtransplant_launchers import Lost
    from xtransplant import jobs, record, tracking

    verbose = verbosity(request.overrides)
    logs.start(verbose)
    given = [" ".join(_differing(lines, request.common)) for lines in request.lines]
    folders = [jobs.run_folder(config) if isinstance(config, RunJob) else None for config in request.runs]
    named = sorted(map(str, (folder.name if folder else line for folder, line in zip(folders, given, strict=True))))
    name = f"{job}-{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:12]}"
    overrides = list(request.swept)
    finished = [
        folder is not None and not getattr(config, "overwrite", False) and record.whole_run(folder) is not None
        for folder, config in zip(folders, request.runs, strict=True)
    ]
    if all(finished):
        # No worker need be started to find that out.
        overrides = [line for line in overrides if not re.match(r"[+~]*hydra[/.]launcher[=.]", line)]
        overrides.append("hydra/launcher=basic")
    place = Path(getattr(request.runs[0], "output_dir", "outputs"), "sweeps", name)
    started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    attempt = place / f"{started}-{os.getpid()}"
    try:
        attempt.mkdir(parents=True)
    except OSError as error:
        raise record.unwritable(place, error) from error
    log.info("Sweep of %d runs, %d of them done: %s", len(folders), sum(finished), place)
    # Hydra's own files; a launcher's logs of its workers too.
    if not any(each.startswith("hydra.sweep.dir=") for each in overrides):
        overrides.append(f"hydra.sweep.dir={json.dumps(str(attempt), ensure_ascii=False)}")
    task = partial(_one, job=job, attempt=str(attempt), count=len(folders), run=run, verbose=verbose)
    broken = None
    try:
        hydra.multirun(config_name, task, [*overrides, "hydra.mode=MULTIRUN"])
    except XTransplantError:
        raise  # the launcher could not begin
    except Lost:
        pass  # of a run whose process was killed; the launcher went on
    except Exception as error:
        if isinstance(error.__cause__, _Ended | KeyboardInterrupt):
            raise error.__cause__ from None  # compiled code makes a SystemError of it: Ray's
        # Of a launcher of somebody else's. The runs say for themselves how they ended.
        broken = error
    outcomes = [
        _outcome(attempt / f"{number}.json", folder) | {"overrides": line, "folder": folder and str(folder)}
        for number, (line, folder) in enumerate(zip(given, folders, strict=True))
    ]
    content = {"job": job, "command": _command(arguments), "started": started, "runs": outcomes}
    record.write(place / record.SWEEP, record.as_json(content))
    # Two runs may be one, e.g. with another batch_size.
    done = list(dict.fromkeys(Path(each["folder"]) for each in outcomes if each["folder"] and each["status"] in _DONE))
    done = [folder for folder in done if (folder / record.MANIFEST).is_file()]
    _show(request.runs, done, [folder for folder in folders if folder is not None])
    first = request.runs[0]
    if isinstance(first, RunJob):
        tracking.log_sweep(first, place, done)
    missing = [each for each in outcomes if each["status"] not in _DONE]
    if broken is not None and not missing:
        raise broken
    if not missing:
        return 0
    if broken is not None:
        log.warning("The launcher ended early: %s: %s", type(broken).__name__, str(broken).strip().split("\n")[0])
    print(f"\nerror: {len(missing)} of {len(outcomes)} runs are not finished:", file=sys.stderr)
    for each in missing:
        print(logs.plain(f"  {each['overrides'] or 'the run'}: {each['error']}"), file=sys.stderr)
    print(f"The others are kept. {goes_on(arguments)}", file=sys.stderr)
    return 1


def _differing(lines: Sequence[str], common: Sequence[str]) -> list[str]:
    """The overrides that tell a run from the others."""
    return [line for line in lines if line not in common and not line.startswith("hydra.")]


def _one(composed: Any, *, job: str, attempt: str, count: int, run: Run, verbose: Any) -> None:
    """One run, wherever a launcher has it run. Never raises: a launcher would end the sweep, or leave runs out."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from xtransplant import compose, record

    logs.start(verbose)
    number = int(HydraConfig.get().job.num)
    started = time.perf_counter()
    name = ""
    outcome: dict[str, Any] = {"status": "failed", "error": None, "host": socket.gethostname(), "process": os.getpid()}
    try:
        config = compose.as_config(OmegaConf.merge(OmegaConf.structured(JOBS[job]), composed))
        if isinstance(config, RunJob):
            config.tracking.group = config.tracking.group or Path(attempt).parent.name
        folder = run(config, shown=False)
        outcome["status"] = "done"
        name = f" {folder.name}" if isinstance(folder, Path) else ""
        if isinstance(folder, int) and folder:  # what was compared differs
            outcome |= {"status": "failed", "error": f"exit code {folder}; what it printed says why"}
    except Exception as error:
        if record.explained(error) is None:
            traceback.print_exc()
        outcome["error"] = record.in_words(error)
    outcome["seconds"] = round(time.perf_counter() - started, 2)
    if outcome["error"] is None:
        log.info("%d of %d:%s in %.1f s", number + 1, count, name, outcome["seconds"])
    else:
        log.error("%d of %d failed after %.1f s: %s", number + 1, count, outcome["seconds"], outcome["error"])
    try:
        record.write(Path(attempt, f"{number}.json"), record.as_json(outcome))
    except OSError as error:
        log.warning("%s cannot be written: %s.", attempt, error.strerror)


def _outcome(path: Path, folder: Path | None) -> dict[str, Any]:
    """How a run ended, as it said itself; if it could not, as its folder says."""
    from xtransplant import record

    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        done = folder is not None and (folder / record.MANIFEST).is_file()
        found = {"status": "was done" if done else "lost", "error": None if done else _LOST}
    return found


def _show(runs: Sequence[JobConfig], folders: Sequence[Path], begun: Sequence[Path]) -> None:
    """One table over what is finished; what is not has a place in it.

    Args:
        begun: all folders of the sweep.
    """
    from xtransplant import grid_jobs, jobs, record, tables

    if not folders:
        return
    if isinstance(runs[0], EvaluateConfig):
        finished = [run for run in map(record.load_run, folders) if run is not None]
        unfinished = jobs.unfinished([str(folder) for folder in dict.fromkeys(begun) if folder.is_dir()])
        print(f"\n{tables.summary(finished, unfinished=unfinished)}")
    elif isinstance(runs[0], SftConfig):
        print(f"\n{jobs.show_trainings(folders)}")
    else:
        print(f"\n{grid_jobs.show_all(folders)}")


# --- What went wrong -------------------------------------------------------------------------------------------------


def goes_on(arguments: Sequence[str]) -> str:
    """How to go on after an interruption, in one line."""
    anew = any(_ANEW.fullmatch(each) for each in arguments if "overwrite" in each)
    old = " (also that from before which was not reached)" if anew else ""
    return f"What is finished{old}, and parts of grids and trainings, are kept. Go on with: {_command(arguments)}"


def verbosity(overrides: Sequence[str]) -> Any:
    """What the overrides say of `hydra.verbose`: false, true, or names of loggers."""
    import yaml

    given = [line.partition("=")[2] for line in overrides if line.startswith("hydra.verbose=")]
    found = yaml.safe_load(given[-1]) if given else False
    return [found] if isinstance(found, str) else found


def _command(arguments: Sequence[str]) -> str:
    """Without what would compute the finished ones again, or refuse them."""
    return shlex.join(["xtransplant", *(each for each in arguments if not _ANEW.fullmatch(each))])


def supervised(work: Callable[[], int], arguments: Sequence[str]) -> int:
    """Do the work in a child, and say so if it is killed. Where there is no fork, do it here."""
    if not hasattr(os, "fork"):
        return work()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _die_with_the_parent()
        signal.signal(signal.SIGINT, _interrupt_once)
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, _end)
        try:
            return work()
        except _Ended as ended:
            signal.signal(ended.number, signal.SIG_DFL)
            os.kill(os.getpid(), ended.number)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, frame: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    why = ": too little memory is the usual reason" if -code == signal.SIGKILL else ""
    print(f"error: killed ({name}){why}. {goes_on(arguments)}", file=sys.stderr)
    return 128 - code


class _Ended(BaseException):
    """The signal that ends this process, once the launchers have ended theirs."""

    def __init__(self, number: int) -> None:
        self.number = number


def _end(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise _Ended(number)


def _interrupt_once(number: int, frame: Any) -> None:
    """A terminal's Ctrl-C comes twice: to every process of the command, and through the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _die_with_the_parent() -> None:
    """On Linux: a killed parent does not leave the work going on unseen."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (AttributeError, OSError, TypeError):
        return
