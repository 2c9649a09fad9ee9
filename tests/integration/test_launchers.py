"""Sweeps through every launcher that this machine can have: the same runs, whatever happens to one of them."""

from __future__ import annotations

import os
import subprocess
import sys
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
from xtransplant import cli, compose

GOOD = ("choice", "word", "contexts", "generate")

# A task that fails when its prompts are made, and one whose process is killed then.
_PROMPTS = """import os, signal

def broken(doc):
    raise RuntimeError("broken on purpose")

def killed(doc):
    os.kill(os.getpid(), signal.SIGKILL)
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
        for name in ("broken", "killed"):
            lines = choice.replace("colour_choice", f"colour_{name}").splitlines()
            lines = [f"doc_to_text: !function prompts.{name}" if "doc_to_text" in each else each for each in lines]
            (tasks / f"{name}_{language}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return here


def sweep(place: Path, folder: Path, kinds: tuple[str, ...], *launcher: str) -> tuple[int, str, float]:
    """A sweep over tasks in a folder: the exit code, what was said, how many seconds it took."""
    folder.mkdir(exist_ok=True)
    tasks = ",".join(f'["colour_{kind}_{{lang}}"]' for kind in kinds)
    command = [sys.executable, "-m", "xtransplant.cli", "evaluate", "-m", f"model.path={place / 'checkpoint'}"]
    command += ["model=hf", "task=custom", "task.key=id", f"task.include_path=[{place / 'tasks'}]"]
    command += ["language_pair=en-sw", "transplant.layers=[2,1]", "limit=4", f"task.tasks={tasks}", *launcher]
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


def results(folder: Path) -> dict[str, bytes]:
    """Every finished run's results and samples."""
    runs = sorted(path.parent for path in folder.glob("outputs/evaluate/*/manifest.json"))
    files = [path for run in runs for path in [run / "results.json", *run.glob("samples_*.jsonl")]]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, bytes]:
    """What one process makes of them; a run that fails harms no other."""
    code, said, _ = sweep(place, place / "basic", ("broken", *GOOD), "hydra/launcher=basic")
    assert code == 1, said
    assert "broken on purpose" in said
    found = results(place / "basic")
    assert len(found) == 2 * len(GOOD)
    return found


def test_joblib(place: Path, expected: dict[str, bytes]) -> None:
    """The processes stay: no more models are loaded than there are processes."""
    folder = place / "joblib"
    code, said, _ = sweep(place, folder, ("broken", *GOOD), "hydra/launcher=joblib", "hydra.launcher.workers=2")
    assert code == 1, said
    assert results(folder) == expected
    assert 1 <= said.count("Loading ") <= 2
    # One that is killed ends the sweep, and that is said; what was finished is kept.
    code, said, _ = sweep(place, folder, ("killed", *GOOD), "hydra/launcher=joblib", "hydra.launcher.workers=2")
    assert code == 1, said
    assert "killed" in said
    assert results(folder) == expected


def test_submitit_on_this_machine(place: Path, expected: dict[str, bytes]) -> None:
    """One process is killed, one run fails; the others are done, and no more at a time than was said."""
    folder = place / "submitit"
    kinds = ("killed", "broken", *GOOD)
    code, said, _ = sweep(place, folder, kinds, "hydra/launcher=submitit_local", "hydra.launcher.workers=2",
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
    code, said, _ = sweep(place, folder, ("killed", "broken", *GOOD), "hydra/launcher=ray", "hydra.launcher.workers=2")
    assert code == 1, said
    assert results(folder) == expected
    # The process that is killed has loaded none yet; another takes its place.
    assert 1 <= said.count("Loading ") <= 3
    assert set(Path("/tmp").glob("ray*")) <= before
    assert not (home / ".ray").exists()


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
    monkeypatch.setattr(launchers.importlib, "util", SimpleNamespace(find_spec=lambda name: None))
    assert cli.main(["evaluate", "-m", f"hydra/launcher={launcher}", "limit=1,2"]) == 2
    assert f"pip install 'xtransplant[{package}]'" in capsys.readouterr().err


def test_slurm_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["evaluate", "-m", "hydra/launcher=submitit_slurm", "limit=1,2"]) == 2
    assert "there is no SLURM on this machine" in capsys.readouterr().err


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
