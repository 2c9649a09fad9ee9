"""Sweeps through every launcher that this machine can have: the same runs, whatever happens to one of them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus

import hydra_plugins.xtransplant_launchers as launchers
from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import write_tasks
from tests.integration.test_pages import commands
from xtransplant import cli, compose

GOOD = ("choice", "word", "contexts", "generate")

# What tasks do when their prompts are made: fail, be killed, take long, be put back into a queue at first.
_PROMPTS = """import os, pathlib, signal, time

def broken(doc):
    raise RuntimeError("broken on purpose")

def killed(doc):
    os.kill(os.getpid(), signal.SIGKILL)

def slow(doc):
    pathlib.Path(f"slow-{os.getpid()}").touch()
    time.sleep(100)

def requeued(doc):
    if not pathlib.Path("requeued").exists():
        pathlib.Path("requeued").touch()
        os.kill(os.getpid(), signal.SIGUSR2)
    return doc["question"]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and tasks."""
    here = tmp_path_factory.mktemp("launchers")
    save_checkpoint("llama", here / "checkpoint")
    tasks = write_tasks(here / "tasks")
    (tasks / "prompts.py").write_text(_PROMPTS, encoding="utf-8")
    for language in ("en", "sw"):
        choice = (tasks / f"choice_{language}.yaml").read_text(encoding="utf-8")
        for name in ("broken", "killed", "slow", "requeued"):
            lines = choice.replace("colour_choice", f"colour_{name}").splitlines()
            lines = [f"doc_to_text: !function prompts.{name}" if "doc_to_text" in each else each for each in lines]
            (tasks / f"{name}_{language}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return here


def words_of(place: Path, kinds: tuple[str, ...], *launcher: str) -> list[str]:
    """A sweep over tasks."""
    tasks = ",".join(f'["colour_{kind}_{{lang}}"]' for kind in kinds)
    words = [sys.executable, "-m", "xtransplant.cli", "evaluate", "-m", f"model.path={place / 'checkpoint'}"]
    words += [
        "model=hf",
        "task=custom",
        "task.key=id",
        f"task.include_path=[{place / 'tasks'}]",
        "task.allow_code=true",
    ]
    return [
        *words,
        "tracking=none",
        "language_pair=en-sw",
        "transplant.layers=[2,1]",
        "limit=4",
        f"task.tasks={tasks}",
        *launcher,
    ]


def sweep(place: Path, folder: Path, kinds: tuple[str, ...], *launcher: str) -> tuple[int, str]:
    """Do it in a folder: the exit code, and what was said."""
    folder.mkdir(exist_ok=True)
    words = words_of(place, kinds, *launcher)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def results(folder: Path) -> dict[str, bytes]:
    """Every finished run's results and samples."""
    runs = sorted(path.parent for path in folder.glob("outputs/evaluate/*/manifest.json"))
    files = [path for run in runs for path in [run / "results.json", *run.glob("samples_*.jsonl")]]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, bytes]:
    """What one process makes of them; a run that fails harms no other."""
    code, said = sweep(place, place / "basic", ("broken", *GOOD), "hydra/launcher=basic")
    assert code == 1, said
    assert "broken on purpose" in said
    found = results(place / "basic")
    assert len(found) == 2 * len(GOOD)
    return found


def test_joblib(place: Path, expected: dict[str, bytes]) -> None:
    """The processes stay: no more models are loaded than there are processes."""
    folder = place / "joblib"
    code, said = sweep(place, folder, ("broken", *GOOD), "hydra/launcher=joblib", "hydra.launcher.workers=2")
    assert code == 1, said
    assert results(folder) == expected
    assert 1 <= said.count("Loading ") <= 2
    # One that is killed ends the sweep, and that is said; what was finished is kept.
    code, said = sweep(place, folder, ("killed", *GOOD), "hydra/launcher=joblib", "hydra.launcher.workers=2")
    assert code == 1, said
    assert "killed" in said
    assert results(folder) == expected


@pytest.mark.slow
def test_submitit_on_this_machine(place: Path, expected: dict[str, bytes]) -> None:
    """One process is killed, one run fails; the others are done, and no more at a time than was said."""
    folder = place / "submitit"
    kinds = ("killed", "broken", *GOOD)
    code, said = sweep(place, folder, kinds, "hydra/launcher=submitit_local", "hydra.launcher.workers=2",
                          f"hydra.sweep.dir={folder / 'sweep'}")  # fmt: skip
    assert code == 1, said
    assert results(folder) == expected
    logs = list((folder / "sweep" / ".submitit").glob("*_log.out"))
    assert len(logs) == len(kinds)
    assert "its log: " in said
    assert any("broken on purpose" in path.read_text(encoding="utf-8") for path in logs)


def test_ray_on_this_machine(place: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """As submitit; and nothing is left of the cluster."""
    folder, home = place / "ray", place / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", "/tmp")
    before = set(Path("/tmp").glob("ray*"))
    code, said = sweep(place, folder, ("killed", "broken", *GOOD), "hydra/launcher=ray", "hydra.launcher.workers=2")
    assert code == 1, said
    assert results(folder) == expected
    # The process that is killed has loaded none yet; another takes its place.
    assert 1 <= said.count("Loading ") <= 3
    assert set(Path("/tmp").glob("ray*")) <= before
    assert not (home / ".ray").exists()


def test_ray_does_not_wait_for_what_is_not_there(place: Path, tmp_path: Path) -> None:
    code, said = sweep(place, tmp_path, GOOD, "hydra/launcher=ray", "hydra.launcher.gpus=99",
                       "hydra.launcher.init={object_store_memory: 100000000}")  # fmt: skip
    assert code == 2, said
    assert "no machine of Ray's has room for a run: threads=" in said and "gpus=99" in said


# tests/cluster/slurm.sh makes a cluster of this machine and runs these.
on_slurm = pytest.mark.skipif("XTRANSPLANT_TEST_SLURM" not in os.environ, reason="needs tests/cluster/slurm.sh")
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.threads=1", "hydra.launcher.mem_gb=1",
         "hydra.launcher.timeout_min=10", "hydra.launcher.queue_every=1")  # fmt: skip


def heeds_ctrl_c() -> None:
    """What a shell starts in the background, these tests for one, does not, nor do the processes that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("joblib", signal.SIGINT),
        ("submitit_local", signal.SIGINT),
        ("submitit_local", signal.SIGTERM),
        pytest.param("joblib", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("submitit_slurm", signal.SIGINT, marks=on_slurm),
        pytest.param("submitit_slurm", signal.SIGTERM, marks=on_slurm),
    ],
)
def test_what_ends_the_command_ends_all_processes(
    launcher: str, number: signal.Signals, place: Path, tmp_path: Path
) -> None:
    """Ctrl-C as a terminal sends it: to the command and to all that it has started. `kill`: to the command alone."""
    given = SLURM if launcher == "submitit_slurm" else (f"hydra/launcher={launcher}",)
    words = words_of(place, ("slow", "choice"), *given, "hydra.launcher.workers=2")
    with subprocess.Popen(
        words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heeds_ctrl_c
    ) as process:
        until = time.monotonic() + 60
        while not (found := list(tmp_path.glob("slow-*"))) and time.monotonic() < until:
            time.sleep(0.1)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        try:
            _, said = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 128 + number, said
    assert "The same command goes on" in said or "Go on with" in said
    assert "Traceback" not in said
    (slow,) = (Path("/proc", path.name.removeprefix("slow-"), "cmdline") for path in found)
    until = time.monotonic() + (45 if launcher == "submitit_slurm" else 5)  # SLURM gives a job 30 s to end
    while (running := slow.exists() and slow.read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    assert not running


@on_slurm
def test_slurm(place: Path, expected: dict[str, bytes]) -> None:
    """One job is killed, one run fails; the others are done. There is no accounting, which submitit would wait for."""
    folder = place / "slurm"
    code, said = sweep(place, folder, ("killed", "broken", *GOOD), *SLURM, "hydra.launcher.workers=2",
                       f"hydra.sweep.dir={folder / 'sweep'}")  # fmt: skip
    assert code == 1, said
    assert results(folder) == expected
    assert "1 of 6: killed, or out of memory or time; its log: " in said
    (script,) = (folder / "sweep" / ".submitit").glob("*_submission.sh")
    asked = script.read_text(encoding="utf-8")
    assert "--array=0-5%2" in asked and "--mem=1024MB" in asked and "--cpus-per-task=1" in asked


@on_slurm
def test_a_job_whose_machine_slurm_takes_is_done_again(place: Path) -> None:
    code, said = sweep(place, place / "requeue", ("requeued",), *SLURM)
    assert code == 0, said
    assert len(results(place / "requeue")) == 2


@on_slurm
def test_what_slurm_refuses_is_said(place: Path) -> None:
    code, said = sweep(place, place / "refused", GOOD, *SLURM, "hydra.launcher.partition=nowhere")
    assert code != 0, said
    assert "sbatch refuses the jobs: " in said and "invalid partition" in said.lower()


@pytest.mark.slow
def test_ray_on_a_cluster_that_is_there(
    place: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=6391", "--num-cpus=2"]
    ray += ["--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    with tempfile.TemporaryDirectory(prefix="ray-") as short:
        cluster = subprocess.Popen([*ray, f"--temp-dir={short}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 60
            while not (there := _port_answers(6391)) and time.monotonic() < until:
                time.sleep(0.2)
            assert there
            code, said = sweep(place, place / "cluster", ("killed", *GOOD), "hydra/launcher=ray_cluster",
                               "hydra.launcher.address=127.0.0.1:6391", "hydra.launcher.threads=1")  # fmt: skip
        finally:
            cluster.terminate()
            cluster.wait(60)
    assert code == 1, said
    assert "1 of 5: killed, or out of memory" in said
    assert results(place / "cluster") == expected


def _port_answers(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


# --- Without a model -------------------------------------------------------------------------------------------------


def launched(launcher: str, *overrides: str) -> list[Any]:
    """What comes back of a sweep whose runs only say where they were done."""

    def task(config: Any) -> tuple[int, str, int, str | None]:
        # Hydra's own state must be there in any process.
        number = HydraConfig.get().job.num
        if config.seed == 13:
            raise ValueError("thirteen")
        time.sleep(0.1)
        return number, config.model.name, os.getpid(), os.environ.get("OMP_NUM_THREADS")

    given = [f"hydra/launcher={launcher}", "hydra.mode=MULTIRUN", *overrides]
    with compose.open_hydra() as hydra:
        (returned,) = hydra.multirun("evaluate", task, given)
    assert all(each.status is JobStatus.COMPLETED for each in returned)
    return [each.return_value for each in returned]


def test_runs_come_back_in_their_order_and_are_done_by_model(tmp_path: Path) -> None:
    begun: list[str] = []

    def task(config: Any) -> str:
        begun.append(config.model.name)
        return str(config.model.name)

    with compose.open_hydra() as hydra:
        given = ["limit=1,2", "model=smollm2_135m,gemma3_270m", f"hydra.sweep.dir={tmp_path}", "hydra.mode=MULTIRUN"]
        (returned,) = hydra.multirun("evaluate", task, given)
    assert begun == ["smollm2_135m"] * 2 + ["gemma3_270m"] * 2
    assert [each.return_value for each in returned] == ["smollm2_135m", "gemma3_270m"] * 2
    assert [each.hydra_cfg.hydra.job.num for each in returned] == [0, 1, 2, 3]


def test_processes_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launchers, "cores", lambda: 8)
    where = f"hydra.sweep.dir={tmp_path}"
    done = launched("joblib", "limit=1,2,3,4", "hydra.launcher.workers=2", where)
    assert [number for number, *_ in done] == [0, 1, 2, 3]
    assert {threads for *_, threads in done} == {"4"}
    processes = {process for _, _, process, _ in done}
    assert len(processes) <= 2 and os.getpid() not in processes
    done = launched("joblib", "limit=1,2", "hydra.launcher.workers=2", "hydra.launcher.threads=3", where)
    assert {threads for *_, threads in done} == {"3"}
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_process_that_has_grown_stays(tmp_path: Path) -> None:
    """joblib would take it for a leak: it has another model, or more vectors, than after its first run."""

    def task(config: Any) -> int:
        if config.limit == 2:
            sys.held = b"x" * (400 * 2**20)  # type: ignore[attr-defined]
        time.sleep(1.2)  # it looks once a second
        return os.getpid()

    with compose.open_hydra() as hydra:
        given = ["limit=1,2,3", "hydra/launcher=joblib", "hydra.launcher.workers=1", f"hydra.sweep.dir={tmp_path}"]
        (returned,) = hydra.multirun("evaluate", task, [*given, "hydra.mode=MULTIRUN"])
    assert len({each.return_value for each in returned}) == 1


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_an_exception_comes_back_as_a_failed_run(launcher: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="thirteen"):
        launched(launcher, "seed=13,14", f"hydra.sweep.dir={tmp_path}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["-m", "hydra/launcher=joblab"], "there is no such launcher. Did you mean joblib?"),
        (["hydra/launcher=joblib"], "a single run has no launcher. Add -m"),
        (["hydra.launcher.workers=2"], "a single run has no launcher. Add -m"),
        (["-m", "hydra/launcher=joblib,basic"], "one launcher for all runs"),
        (["-m", "hydra/launcher=joblib", "hydra.launcher.workers=1,2"], "one launcher for all runs"),
        (["-m", "hydra/launcher=joblib", "hydra.launcher.wrkers=2"], "joblib has no such key. Keys: workers, threads."),
        (["-m", "hydra.launcher.workers=2"], "basic has no such key."),
        (["-m", "hydra/launcher=joblib", "hydra.launcher.workers=0"], "Allowed: a whole number, 1 or more, or null."),
        (["-m", "hydra/launcher=submitit_local", "hydra.launcher.gpus=1"], "Give hydra.launcher.workers="),
        (["-m", "hydra/launcher=ray", "hydra.launcher.mem_gb=much"], "Allowed: a number, 0.1 or more, or null."),
    ],
)
def test_what_is_wrong_with_a_launcher_is_said_before_anything_runs(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *given, "limit=1,2" if "-m" in given else "limit=1"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("error:") == 1 and "faults" not in told


@pytest.mark.parametrize(
    ("launcher", "package"), [("joblib", "joblib"), ("submitit_local", "submitit"), ("ray_cluster", "ray")]
)
def test_a_package_that_is_missing_is_said(
    launcher: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    assert cli.main(["evaluate", "-m", f"hydra/launcher={launcher}", "limit=1,2"]) == 2
    assert f"pip install 'xtransplant[{package}]'" in capsys.readouterr().err


def test_slurm_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["evaluate", "-m", "hydra/launcher=submitit_slurm", "limit=1,2"]) == 2
    assert "there is no SLURM on this machine" in capsys.readouterr().err


@pytest.mark.parametrize("line", commands("docs/launchers.md"))
def test_the_commands_of_the_page_are_right(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)  # as if SLURM were here
    assert cli.main([*shlex.split(line)[1:], "--cfg", "hydra"]) == 0


@pytest.mark.parametrize(
    ("launcher", "key"), [("submitit_slurm", 'additional={gres: "gpu:a100:1"}'), ("ray", "init={log_to_driver: false}")]
)
def test_options_of_others_are_passed_on(
    launcher: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    given = ["-m", f"hydra/launcher={launcher}", f"hydra.launcher.{key}", "limit=1,2"]
    assert cli.main(["evaluate", *given, "--cfg", "hydra", "--package", "hydra.launcher"]) == 0
    assert key.partition("{")[2].partition(":")[0] in capsys.readouterr().out


def test_ours_stand_beside_hydras_own_plugins(tmp_path: Path) -> None:
    """Another's launcher of the same name, as a plugin keeps it, is not mixed with ours, and is there afterwards."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="joblib", node={"_target_": "theirs", "n_jobs": -1}, provider="theirs")
    try:
        assert len(launched("joblib", "limit=1,2", f"hydra.sweep.dir={tmp_path}")) == 2
        assert "joblib.yaml" in store.repo["hydra"]["launcher"]
    finally:
        del store.repo["hydra"]["launcher"]["joblib.yaml"]


def test_slurm_jobs_that_leave_the_queue_without_a_result_are_lost(tmp_path: Path) -> None:
    """Without SLURM's accounting: what squeue and the results say."""
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 7_1\n", encoding="utf-8")
    squeue.chmod(0o755)
    launcher = launchers.SubmititSlurm(queue_every=0.05)
    results = [tmp_path / f"7_{number}_result.pkl" for number in range(3)]
    running = {
        number: SimpleNamespace(job_id=f"7_{number}", paths=SimpleNamespace(result_pickle=path))
        for number, path in enumerate(results)
    }
    results[2].touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=":")
        seen: list[list[int]] = []
        for _ in range(5):
            seen.append(launcher._over(running))
            time.sleep(0.06)
    # The one with a result at once, the one that is neither there nor has one later; the one in the queue not.
    assert seen[0] == [2] and sorted(seen[-1]) == [0, 2]


def test_the_launchers_are_light() -> None:
    """Hydra imports them wherever they are installed, for any program."""
    program = "import hydra_plugins.xtransplant_launchers, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "joblib", "submitit", "ray", "numpy"} & set(done.stdout.split())
