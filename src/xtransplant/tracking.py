"""Weights & Biases: each finished run is logged beside its folder, by a process of its own.

W&B never runs in the process of the job: what it imports, starts, prints and registers for the exit stays out of it,
and what it hangs on is killed after some seconds. The process (`tracking_worker.py`) always writes the files of an
offline run below `<output_dir>/wandb`; with tracking.mode=online it then uploads these, as `wandb sync` does. So a
server that cannot be reached costs nothing but the time until that is known.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

from xtransplant.config import RunJob, TrackingBackend, TrackingMode, to_dict

log = logging.getLogger(__name__)

# Seconds that a run may wait for W&B, and how long before their end an upload is given up, so that what there is can
# be said. Together with the time that a kill takes, below 20. What is our own work does not count: intervals, pictures.
_PATIENCE = 16.0
_RESERVE = 2.0
_OWN_WORK = 600.0
# After an upload that failed, no other is tried for so long: runs of a sweep do not wait one after the other.
_PAUSE = 300.0

# What the process may know of the environment. Tokens of others are not among it.
_ENVIRONMENT = re.compile(
    "WANDB_(API_KEY|BASE_URL|APP_URL|CONFIG_DIR|IDENTITY_TOKEN_FILE|CREDENTIALS_FILE|INSECURE_DISABLE_SSL|X_.*)"
    "|WANDB_(ENTITY|PROJECT|NOTES|RUN_ID|SWEEP_ID|SWEEP_PARAM_PATH)"
    "|PATH|HOME|USER|USERNAME|LOGNAME|LANG|LC_.*|TZ|TMPDIR|TEMP|TMP|XDG_.*|PYTHON.*|VIRTUAL_ENV|LD_LIBRARY_PATH"
    "|SYSTEMROOT|APPDATA|LOCALAPPDATA|USERPROFILE|(HTTPS?|NO|ALL)_PROXY|SSL_CERT_.*|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    "|NETRC",
    re.IGNORECASE,
)


def start(config: RunJob) -> None:
    """Start the process, if the run is tracked: it loads what it needs while the run is computed."""
    if _is_on(config):
        try:
            _worker(_place(config))
        except OSError as error:
            log.debug("W&B: %s", error)  # said when there is something to log


def log_run(config: RunJob, folder: Path) -> None:
    """Log a finished run, by what its folder holds. Never raises; takes less than 20 s.

    Without `tracking.group` the run belongs to none: a sweep puts its name there.
    """
    _log(config, {"folder": str(folder.absolute())}, folder)


def log_sweep(config: RunJob, folder: Path, runs: Sequence[Path]) -> None:
    """Log the comparison of all runs of a sweep as a run of its own, once for the same results. Likewise.

    Args:
        config: of any of the runs.
        folder: the sweep's own, whose name is its name.
        runs: folders of its finished runs.
    """
    if runs:
        _log(config, {"folder": str(folder.absolute()), "runs": [str(each.absolute()) for each in runs]}, folder)


def stop() -> None:
    """End the process; the next run starts another."""
    global _current
    worker, _current = _current, None
    if worker is not None and worker.owner == os.getpid():
        worker.stop()


def _is_on(config: RunJob) -> bool:
    return config.tracking.backend is TrackingBackend.wandb and config.tracking.mode is not TrackingMode.disabled


def _place(config: RunJob) -> Path:
    return Path(config.output_dir).absolute()


def _log(config: RunJob, request: dict[str, Any], folder: Path) -> None:
    global _upload_failed
    if not _is_on(config):
        return
    wanted = config.tracking.mode is TrackingMode.online
    paused = wanted and _upload_failed is not None and time.monotonic() - _upload_failed < _PAUSE
    request |= {
        "config": to_dict(config),
        "place": str(_place(config)),
        "upload_within": _PATIENCE - _RESERVE if wanted and not paused else None,
    }
    try:
        answer = _worker(_place(config)).ask(request)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    files = _shown(answer["files"]) if "files" in answer else None
    if files is None:
        log.warning("W&B: %s was not logged there (%s). The run itself is complete.", folder.name, answer["error"])
        stop()
    elif not wanted:
        log.info("W&B, offline: %s", files)
    elif paused:
        log.warning("W&B: not uploaded either, the last upload failed. Later: wandb sync %s", files)
    elif answer["error"]:
        _upload_failed = time.monotonic()
        log.warning("W&B: not uploaded (%s). The run is complete. Later: wandb sync %s", answer["error"], files)
    else:
        _upload_failed = None
        log.info("W&B: %s", answer["url"] or files)


def _shown(path: str) -> str:
    """As it can be given to a command here."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


class _Worker:
    """The process, and requests to it, one at a time.

    Args:
        place: a folder; W&B's files are below it, in `wandb`.
    """

    def __init__(self, place: Path) -> None:
        self.owner = os.getpid()
        self.place = place
        # Copies of what artifacts hold wait for their upload: not in the home folder, where W&B would put them.
        staged = dict.fromkeys(("WANDB_DATA_DIR", "WANDB_CACHE_DIR"), str(place / "wandb" / "staged"))
        # -P: what lies in the current folder is no module of W&B's. A session of its own: Ctrl-C is for the job, and a
        # kill takes all of it.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "xtransplant.tracking_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)} | staged,
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """What it answers: `files` and `url` of what was logged, `error` if something failed or took too long."""
        answer: dict[str, Any] = {"error": "no answer in time"}
        own_work_done = Event()

        def exchange() -> None:
            assert self.process.stdin is not None and self.process.stdout is not None
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                while "end" not in answer:
                    answer.update(json.loads(self.process.stdout.readline()))
                    own_work_done.set()
            except (OSError, ValueError):
                answer["error"] = "its process ended"
            own_work_done.set()

        # Where pipes cannot be waited for with a limit, a thread can.
        thread = Thread(target=exchange, daemon=True)
        thread.start()
        if own_work_done.wait(_OWN_WORK):
            thread.join(_PATIENCE)
        found = dict(answer)
        if thread.is_alive():
            self.kill()
        return found

    def stop(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()  # it ends by itself
            self.process.wait(2)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()
        self.process.stdout.close()

    def kill(self) -> None:
        if hasattr(os, "killpg") and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


_current: _Worker | None = None
_upload_failed: float | None = None  # when


def _worker(place: Path) -> _Worker:
    global _current
    if _current is None or not _current.alive or _current.place != place:
        stop()
        _current = _Worker(place)
    return _current


atexit.register(stop)
