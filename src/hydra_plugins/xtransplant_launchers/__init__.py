"""Where the runs of a sweep are computed: Hydra launchers over joblib, submitit and Ray, one behaviour for all of them.

Each run comes back as Hydra's `JobReturn`, in the order that was asked for, and is begun in another: by model, so that
a process which does several runs loads few. A run whose process is killed comes back as failed, with a `Lost` for its
exception; submitit and Ray go on with the others. docs/launchers.md says why Hydra's own plugins are not used.

Hydra takes launchers from packages below `hydra_plugins` only, and imports them to see what there is: nothing that
takes long may be imported here.
"""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from xtransplant.types import XTransplantError

log = logging.getLogger("xtransplant.launchers")

# Read when numpy and torch are first imported.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_ends_with_parent = False  # whether a worker of joblib's looks for its parent
_prepared = False  # whether this process has Hydra's state from the one that launched it


class Lost(Exception):
    """A run whose process ended before it: killed, out of memory or time, or its machine went away."""


class Job:
    """What any process needs to do a run of the sweep, but the run's config.

    Made where the command was given: relative paths of a config begin there. No dataclass, for Hydra runs this file
    before it is a module.
    """

    def __init__(self, context: HydraContext, task: TaskFunction) -> None:
        self.context, self.task = context, task
        self.state, self.folder = Singleton.get_state(), Path.cwd()

    def __call__(self, config: DictConfig) -> JobReturn:
        """Do a run in a process of a launcher's, where it may be the first."""
        global _prepared
        if not _prepared:
            Singleton.set_state(self.state)
            _prepared = True
            if os.environ.get("SUBMITIT_EXECUTOR") == "local":
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which submitit would have it ignore
        os.chdir(self.folder)
        return self.here(config)

    def here(self, config: DictConfig) -> JobReturn:
        setup_globals()
        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def checkpoint(self, config: DictConfig) -> Any:
        """What submitit puts back into the queue when SLURM takes the machine away: the run finds what it kept."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, config)


class _Launcher(Launcher):
    """What all launchers have in common.

    Args:
        workers: runs at a time; None: as many as this process may use cores.
        threads: of each run; None: the cores, shared out.
    """

    package: str | None = None  # to be installed, which is an extra of the same name

    def __init__(self, workers: int | None = None, threads: int | None = None) -> None:
        self.workers, self.threads = workers, threads

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        self.folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        configs = {
            number: self._config(overrides, number) for number, overrides in enumerate(job_overrides, initial_job_idx)
        }
        job = Job(self.context, self.task)
        workers = min(self.workers or cores(), len(configs))
        threads = self.threads or max(1, cores() // workers)
        alone = self.threads is None and workers == 1  # as without a launcher
        with nullcontext() if alone else _threads_of_children(threads, firmly=self.threads is not None):
            ended = self._compute(job, {number: configs[number] for number in _by_model(configs)}, workers, threads)
        returned = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            result = ended.get(number, "not begun")
            if isinstance(result, str):
                log.error("%d of %d: %s", number + 1, initial_job_idx + len(configs), result)
                result = JobReturn(filter_overrides(overrides), status=JobStatus.FAILED, _return_value=Lost(result))
            returned.append(result)
        return returned

    def _config(self, overrides: Sequence[str], number: int) -> DictConfig:
        config: DictConfig = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return config

    @abstractmethod
    def _compute(
        self, job: Job, configs: Mapping[int, DictConfig], workers: int, threads: int
    ) -> dict[int, JobReturn | str]:
        """Do the runs, in this order where they are done one after the other.

        Returns:
            of each number what came back; or why nothing did.
        """


class OneByOne(_Launcher):
    """In this process, which keeps its model from run to run."""

    def __init__(self) -> None:
        super().__init__(workers=1)

    def _compute(
        self, job: Job, configs: Mapping[int, DictConfig], workers: int, threads: int
    ) -> dict[int, JobReturn | str]:
        return {number: job.here(config) for number, config in configs.items()}


class Joblib(_Launcher):
    """In processes of this machine that stay, each with a model of its own."""

    package = "joblib"

    def _compute(
        self, job: Job, configs: Mapping[int, DictConfig], workers: int, threads: int
    ) -> dict[int, JobReturn | str]:
        from concurrent.futures import as_completed
        from concurrent.futures.process import BrokenProcessPool

        # What joblib.Parallel is made of, which would do a single worker's runs in this process.
        from joblib.externals.loky import get_reusable_executor

        log.info("%d runs, %d at a time, %d threads each (joblib)", len(configs), workers, threads)
        ended: dict[int, JobReturn | str] = {}
        pool = get_reusable_executor(max_workers=workers, timeout=None, reuse=False)
        kill = True
        try:
            with _deaf_children():
                begun = {pool.submit(_in_joblib, job, config): number for number, config in configs.items()}
            for done in as_completed(begun):
                try:
                    ended[begun[done]] = done.result()
                except BrokenProcessPool:
                    ended[begun[done]] = "killed, or not begun because another was: joblib cannot go on"
            kill = False
        finally:
            pool.shutdown(wait=True, kill_workers=kill)
        return ended


def _in_joblib(job: Job, config: DictConfig) -> JobReturn:
    from joblib.externals.loky import process_executor

    global _ends_with_parent
    if not _ends_with_parent:
        # A command that is killed with SIGKILL cannot end its workers, and each holds a model.
        _ends_with_parent = True
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    # A process that has grown by 300 MB since its first run would be replaced, and with it the model that it holds.
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    return job(config)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Submitit(_Launcher):
    """A process for each run, and its log in a folder of the sweep's; a run that is killed harms no other."""

    package = "submitit"

    def _compute(
        self, job: Job, configs: Mapping[int, DictConfig], workers: int, threads: int
    ) -> dict[int, JobReturn | str]:
        logs = self.folder / ".submitit"
        log.info("%d runs, %d at a time; their logs: %s", len(configs), workers, logs)
        ended: dict[int, JobReturn | str] = {}
        waiting: Mapping[int, DictConfig] = configs
        running: dict[int, Any] = {}
        try:
            while waiting or running:
                begun = self._begin(logs, job, waiting, workers - len(running))
                waiting = {number: config for number, config in waiting.items() if number not in begun}
                running |= begun
                time.sleep(0.5)
                over = {number: _outcome(running.pop(number)) for number in self._over(running)}
                ended |= over
                if over:
                    log.info("%d of %d runs are over", len(ended), len(configs))
        finally:
            for each in running.values():
                self._stop(each)
        return ended

    @abstractmethod
    def _begin(self, logs: Path, job: Job, waiting: Mapping[int, DictConfig], free: int) -> dict[int, Any]:
        """Submit some of the runs that wait; number -> submitit's job."""

    @abstractmethod
    def _over(self, running: Mapping[int, Any]) -> list[int]:
        """Which of them have ended, one way or another."""

    def _stop(self, submitted: Any) -> None:
        submitted.cancel(check=False)


class SubmititLocal(_Submitit):
    """On this machine.

    Args:
        gpus: of each run. Runs that are done at the same time have different ones.
        timeout_min: after which a run is stopped.
    """

    def __init__(
        self, workers: int | None = None, threads: int | None = None, gpus: int = 0, timeout_min: int = 10080
    ) -> None:
        super().__init__(workers, threads)
        self.gpus, self.timeout_min = gpus, timeout_min
        self._places: dict[int, int] = {}  # number of a run -> which of those at a time it is

    def _begin(self, logs: Path, job: Job, waiting: Mapping[int, DictConfig], free: int) -> dict[int, Any]:
        import submitit

        begun = {}
        for number, config in list(waiting.items())[:free]:
            place = next(each for each in range(len(self._places) + 1) if each not in self._places.values())
            self._places[number] = place
            executor = submitit.LocalExecutor(folder=logs)
            executor.update_parameters(
                timeout_min=self.timeout_min,
                stderr_to_stdout=True,
                gpus_per_node=self.gpus,
                visible_gpus=_visible_gpus()[place * self.gpus :][: self.gpus] if self.gpus else (),
            )
            with _deaf_children():
                begun[number] = executor.submit(job, config)
        return begun

    def _over(self, running: Mapping[int, Any]) -> list[int]:
        over = [number for number, submitted in running.items() if submitted.done()]
        for number in over:
            del self._places[number]
        return over

    def _stop(self, submitted: Any) -> None:
        os.kill(int(submitted.job_id), signal.SIGTERM)


class SubmititSlurm(_Submitit):
    """In SLURM's queue, as one array of jobs.

    Args:
        workers: jobs of the array at a time.
        threads: cores of a job.
        gpus: of a job.
        mem_gb: memory of a job.
        timeout_min: time of a job; when it is over, a grid goes on where it stopped, `requeues` times.
        additional: any other option of sbatch, e.g. {gres: "gpu:a100:1"}.
        setup: lines of shell before the job, e.g. [module load cuda].
        queue_every: seconds between two looks into the queue.
    """

    def __init__(
        self,
        workers: int = 32,
        threads: int = 4,
        gpus: int = 0,
        mem_gb: float = 16,
        timeout_min: int = 240,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        additional: Mapping[str, Any] | None = None,
        setup: Sequence[str] = (),
        requeues: int = 3,
        queue_every: float = 15,
    ) -> None:
        super().__init__(workers, threads)
        self.requeues, self.queue_every, self._looked = requeues, queue_every, time.monotonic()
        self._gone: dict[int, float] = {}  # number of a run -> since when it has not been in the queue
        chosen = {"partition": partition, "account": account, "qos": qos, "constraint": constraint}
        self.parameters = {
            **{key: value for key, value in chosen.items() if value is not None},
            **({"gpus_per_node": gpus} if gpus else {}),
            "job_name": "xtransplant",
            "time": timeout_min,
            "mem": f"{round(mem_gb * 1024)}MB",
            "cpus_per_task": threads,
            "array_parallelism": workers,
            "stderr_to_stdout": True,
            "additional_parameters": dict(additional or {}),
            # Since SLURM 22.05 srun does not take this from sbatch.
            "setup": [f"export SRUN_CPUS_PER_TASK={threads}", *setup],
        }

    def _begin(self, logs: Path, job: Job, waiting: Mapping[int, DictConfig], free: int) -> dict[int, Any]:
        import submitit

        if not waiting:
            return {}
        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=self.requeues)
        executor.update_parameters(**self.parameters)
        try:
            with _outside_of_an_allocation():
                submitted = executor.map_array(job, list(waiting.values()))
        except submitit.core.utils.FailedJobError as error:
            said = " ".join(line for line in str(error).splitlines() if "error" in line) or str(error)
            raise XTransplantError(
                f"hydra/launcher=submitit_slurm: sbatch refuses the jobs: {said.strip()} Change "
                "hydra.launcher.partition, account, qos, mem_gb, timeout_min, …: docs/launchers.md."
            ) from error
        return dict(zip(waiting, submitted, strict=True))

    def _over(self, running: Mapping[int, Any]) -> list[int]:
        """By their results; and those that have left the queue without one.

        The queue, and not SLURM's accounting: many a small cluster has none, and submitit would wait for ever.
        """
        over = [number for number, submitted in running.items() if submitted.paths.result_pickle.exists()]
        now = time.monotonic()
        if now - self._looked > self.queue_every:
            self._looked = now
            queue = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
            asked = subprocess.run(queue, capture_output=True, text=True, check=False)
            if asked.returncode == 0:  # else the controller is busy: ask again later
                there = set(asked.stdout.split())
                self._gone = {
                    number: self._gone.get(number, now)
                    for number, submitted in running.items()
                    if submitted.job_id not in there
                }
        # A result may take a while to be seen from another machine.
        late = [number for number, since in self._gone.items() if now - since > self.queue_every]
        return list(dict.fromkeys([*over, *(number for number in late if number in running)]))


@contextmanager
def _outside_of_an_allocation() -> Iterator[None]:
    """Where the command is itself a job of SLURM's: the variables of that job are not those of its runs."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(where)
        yield


def _outcome(submitted: Any) -> JobReturn | str:
    """What a job of submitit's that is over has left."""
    said = submitted.paths.stdout
    if not submitted.paths.result_pickle.exists():
        return f"killed, or out of memory or time; its log: {said}"
    error = submitted.exception()
    if error is None:
        result: JobReturn = submitted.result()
        return result
    last = [line for line in str(error).splitlines() if line.strip() and not line.startswith(("-", "You can"))][-1]
    return f"{last.strip()}; its log: {said}"


class Ray(_Launcher):
    """On a cluster of Ray's: one of this machine that lasts for the sweep, or one that is there.

    Args:
        workers: of one of this machine; one that is there has its own size.
        address: of one that is there; auto: the one that this machine belongs to.
        gpus: of each run, also a part of one.
        mem_gb: of each run; None: not looked at.
        init: further arguments of `ray.init`.
    """

    package = "ray"

    def __init__(
        self,
        workers: int | None = None,
        threads: int | None = None,
        address: str | None = None,
        gpus: float = 0,
        mem_gb: float | None = None,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(workers, threads)
        self.address, self.gpus, self.mem_gb = address, gpus, mem_gb
        self.init = dict(init or {})

    def _compute(
        self, job: Job, configs: Mapping[int, DictConfig], workers: int, threads: int
    ) -> dict[int, JobReturn | str]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        with self._cluster(workers * threads) as ray:
            self._refuse_what_no_machine_has(ray, threads)
            options = {"num_cpus": threads, "num_gpus": self.gpus}
            if self.mem_gb is not None:
                options["memory"] = self.mem_gb * 2**30
            # A process stays for the next run; but on a GPU, where the next may be given another one. A run that was
            # killed for its memory is not done again: it would be killed again.
            remote = ray.remote(**options, name="run", max_calls=1 if self.gpus else 0, max_retries=0)(_in_ray)
            kept = ray.put(job)
            running = {remote.remote(kept, config): number for number, config in configs.items()}
            ended: dict[int, JobReturn | str] = {}
            while running:
                (done, *_), _ = ray.wait(list(running))
                number = running.pop(done)
                try:
                    ended[number] = ray.get(done)
                except ray.exceptions.WorkerCrashedError:
                    ended[number] = "killed, or out of memory"
                except ray.exceptions.RayError as error:
                    ended[number] = str(error).strip().split("\n")[0]
            return ended

    def _refuse_what_no_machine_has(self, ray: Any, threads: int) -> None:
        """Ray would wait for it for ever; as it may where a cluster grows when it is asked."""
        wanted = {"CPU": threads, "GPU": self.gpus, "memory": (self.mem_gb or 0) * 2**30}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = {name: max((each.get(name, 0) for each in machines), default=0) for name in wanted}
        if any(all(each.get(name, 0) >= least for name, least in wanted.items()) for each in machines):
            return
        said = (
            f"no machine of Ray's has room for a run: threads={threads} gpus={self.gpus:g} mem_gb={self.mem_gb or 0:g} "
            f"are asked for; the most of each is {most['CPU']:g}, {most['GPU']:g}, {most['memory'] / 2**30:.1f}."
        )
        if self.address is None:
            raise XTransplantError(f"hydra/launcher=ray: {said} Ask for less: hydra.launcher.gpus, mem_gb, threads.")
        log.warning("%s It is waited for.", said[0].upper() + said[1:])

    @contextmanager
    def _cluster(self, cpus: int) -> Iterator[Any]:
        # Ray's files, of which it leaves all. The name is short: sockets below it may have 107 letters.
        folder = None
        if self.address is None:
            folder = tempfile.mkdtemp(prefix="ray-")
            # Nobody else on this machine, or in its network, may send it work; nothing of this is left in ~/.ray.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        import ray

        own = {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "logging_level": "WARNING",
            "object_store_memory": 2**27,
            "_temp_dir": folder,
        }
        main = threading.current_thread() is threading.main_thread()
        end = signal.getsignal(signal.SIGTERM)
        try:
            try:
                ray.init(**{**({"address": self.address} if folder is None else own), **self.init})
            except (OSError, RuntimeError, ValueError) as error:
                raise XTransplantError(
                    f"hydra/launcher: Ray cannot be reached or started: {str(error).strip()} Begin a cluster with `ray "
                    "start --head`, give its address as hydra.launcher.address, or take hydra/launcher=ray."
                ) from error
            if main:
                signal.signal(signal.SIGTERM, end)  # Ray has put its own there
            yield ray
        finally:
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _in_ray(job: Job, config: DictConfig) -> JobReturn:
    return job(config)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def faults(name: str, settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with a launcher before it is made.

    Args:
        name: of the preset.
        settings: the section hydra.launcher.
    """
    kind = next((each for each in LAUNCHERS if str(settings.get("_target_")).endswith(f".{each.__name__}")), None)
    if kind is None or not str(settings["_target_"]).startswith(__name__):
        return []  # another's: Hydra says what is wrong
    found = []
    if kind.package is not None and find_spec(kind.package) is None:
        found.append(
            f"hydra/launcher={name}: {kind.package} is not installed. Install it: "
            f"pip install 'xtransplant[{kind.package}]'. Or take hydra/launcher=basic."
        )
    if kind is SubmititSlurm and (shutil.which("sbatch") is None or shutil.which("squeue") is None):
        found.append(
            f"hydra/launcher={name}: there is no SLURM on this machine: no sbatch, no squeue. Give the command where "
            "they are, on a login node, or take hydra/launcher=submitit_local."
        )
    if kind is SubmititLocal and settings.get("gpus") and settings.get("workers") is None:
        found.append(
            f"hydra/launcher={name}: hydra.launcher.gpus={settings['gpus']}, and nothing says how many runs have one "
            "at a time. Give hydra.launcher.workers=<GPUs of this machine / gpus>."
        )
    known = inspect.signature(kind).parameters
    for key, value in settings.items():
        if key.startswith("_"):
            continue  # Hydra's
        shown = f"hydra.launcher.{key}={'null' if value is None else value}"
        if not all(each.isprintable() for each in _texts(value)):
            # A line end would begin a command in the script for sbatch.
            found.append(f"{shown!r}: holds a line end, or another control character. Give plain text.")
            continue
        if key not in known:
            keys = f"Keys: {', '.join(known)}" if known else "It has none; others are in docs/launchers.md"
            found.append(f"{shown}: {name} has no such key. {keys}.")
        elif key in _NUMBERS and not (value is None and known[key].default is None):
            least, kinds = _NUMBERS[key]
            if kind is Ray and key == "gpus":
                kinds = int | float
            if not isinstance(value, kinds) or isinstance(value, bool) or value < least:
                optional = ", or null" if known[key].default is None else ""
                what = "whole number" if kinds is int else "number"
                found.append(f"{shown}: wrong value. Allowed: a {what}, {least:g} or more{optional}.")
    return found


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, names in it too."""
    if isinstance(value, Mapping):
        for pair in value.items():
            yield from _texts(list(pair))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


# key -> the least value, and what it is
_NUMBERS: dict[str, tuple[float, Any]] = {
    **dict.fromkeys(("workers", "threads", "timeout_min"), (1, int)),
    **dict.fromkeys(("gpus", "requeues"), (0, int)),
    **dict.fromkeys(("mem_gb", "queue_every"), (0.1, int | float)),
}
LAUNCHERS = (OneByOne, Joblib, SubmititLocal, SubmititSlurm, Ray)


def _by_model(configs: Mapping[int, DictConfig]) -> list[int]:
    """The numbers, those of a model beside each other; else as they were."""
    models: dict[int, str] = {
        number: OmegaConf.to_yaml(config.model) if "model" in config else "" for number, config in configs.items()
    }
    first = {model: position for position, model in reversed(list(enumerate(models.values())))}
    return sorted(configs, key=lambda number: first[models[number]])


def _visible_gpus() -> list[int]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [int(each) for each in named.split(",")] if named.replace(",", "").isdigit() else list(range(64))


@contextmanager
def _deaf_children() -> Iterator[None]:
    """A terminal sends Ctrl-C to all; processes that are started meanwhile leave it to this one, which ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets signals in the main thread only
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _threads_of_children(threads: int, firmly: bool) -> Iterator[None]:
    """Processes that are started meanwhile compute in so many threads.

    Args:
        firmly: whether the user's own variables do not count.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    for name, own in before.items():
        if firmly or own is None:
            os.environ[name] = str(threads)
    try:
        yield
    finally:
        for name, own in before.items():
            if own is None:
                del os.environ[name]
            else:
                os.environ[name] = own
