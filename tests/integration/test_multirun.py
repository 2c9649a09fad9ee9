"""Sweeps: what happens to one run harms no other, nothing that is finished is lost, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import write_tasks
from xtransplant import cli, jobs, loading, logs, multirun, record, tracking
from xtransplant.lm import TransplantLM

# Results and what is said of them, times and the way there apart.
_TIMES = ("timings", "prompts_answered_before", "sources_computed")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints and the tasks of this file."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoint("llama", folder / "llama")
    save_checkpoint("gpt2", folder / "gpt2")
    write_tasks(folder / "tasks")
    return folder


def command(place: Path, outputs: Path, *more: str, job: str = "evaluate", kind: str = "choice") -> list[str]:
    models = f"model.path={place / 'llama'},{place / 'gpt2'}" if "-m" in more else f"model.path={place / 'llama'}"
    return [
        job, "model=hf", "model.name=tiny", models, "task=custom", "task.name=colour",
        f'task.tasks=["colour_{kind}_{{lang}}"]', f"task.include_path=[{place / 'tasks'}]", "task.key=id",
        "language_pair=en-sw", "tracking=none", f"output_dir={outputs}", *more,
    ]  # fmt: skip


def started(program: str, arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, as installed, after `program` has changed what it likes."""
    code = f"import sys\n{program}\nfrom xtransplant.cli import entry\nsys.exit(entry())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def results(outputs: Path) -> dict[str, Any]:
    """Every file of every finished run, by its name; of manifests all but the times."""
    found: dict[str, Any] = {}
    for path in sorted(outputs.glob("*/*/*")):
        run = path.parent
        if run.parent.name not in ("evaluate", "grid") or path.is_dir() or run.name.startswith("."):
            continue
        name = f"{run.parent.name}/{run.name}/{path.name}"
        if path.name == record.MANIFEST:
            manifest = json.loads(path.read_text())
            manifest["cost"].pop("seconds")
            found[name] = {key: value for key, value in manifest.items() if key not in (*_TIMES, "files", "sha256")}
        elif path.name not in ("config.yaml", *logs.FILES):  # it says output_dir, they have times
            found[name] = path.read_bytes()
    assert found
    return found


def statuses(outputs: Path) -> list[str]:
    [swept] = outputs.glob("sweeps/*/sweep.json")
    return [run["status"] for run in json.loads(swept.read_text())["runs"]]


LAYERS = "transplant.layers=null,[2,0],[last,first]"


def test_a_failed_run_is_recorded_and_harms_no_other(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(place, tmp_path, "-m", LAYERS)
    evaluate = jobs._evaluate

    def fails(config: Any, folder: Path) -> None:
        if config.transplant.layers == [2, 0]:
            raise RuntimeError("a bug")
        evaluate(config, folder)

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "_evaluate", fails)
        assert cli.main(arguments) == 1
    assert statuses(tmp_path) == ["done", "failed", "done"] * 2
    said = capsys.readouterr().err
    assert "error: 2 of 6 runs are not finished:" in said
    assert f"model.path={place / 'gpt2'} transplant.layers=[2,0]: RuntimeError: a bug" in said
    failed = [path.parent for path in tmp_path.glob(f"evaluate/*/{record.FAILED}")]
    assert len(failed) == 2 and all("-2-0-" in folder.name for folder in failed)
    facts = json.loads((failed[0] / record.FAILED).read_text())
    assert facts["error"] == "RuntimeError: a bug" and "Traceback" in facts["traceback"]
    before = {
        run.folder: (run.folder / record.MANIFEST).stat().st_mtime_ns for run in record.find_runs([str(tmp_path)])
    }
    assert len(before) == 4

    assert cli.main(arguments) == 0
    assert statuses(tmp_path) == ["done"] * 6
    assert not list(tmp_path.glob(f"evaluate/*/{record.FAILED}"))
    assert all((folder / record.MANIFEST).stat().st_mtime_ns == time for folder, time in before.items())
    # A finished sweep loads nothing, and shows its table again.
    monkeypatch.setattr(loading, "load", lambda config: pytest.fail("computed anew"))
    capsys.readouterr()
    assert cli.main(arguments) == 0
    assert "ffn 2>0" in capsys.readouterr().out


@pytest.mark.slow
def test_what_computes_a_finished_sweep_anew_is_its_launcher(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its folder is where it is said to be, by any name."""
    outputs = tmp_path / "für Ergebnisse"
    arguments = command(place, outputs, "-m", "limit=2", "hydra/launcher=joblib", "hydra.launcher.workers=2")
    arguments = [f'output_dir="{outputs}"' if each.startswith("output_dir=") else each for each in arguments]
    processes = []
    for more in ([], [], ["overwrite=true"]):
        assert cli.main([*arguments, *more]) == 0
        [*_, attempt] = sorted(outputs.glob("sweeps/*/*/"), key=lambda path: path.stat().st_mtime_ns)
        processes.append({json.loads(path.read_text())["process"] for path in attempt.glob("*.json")})
    assert [os.getpid() in each for each in processes] == [False, True, False]
    assert [path.name for path in tmp_path.iterdir()] == [outputs.name]


def test_a_run_that_is_asked_for_twice_is_one(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[list[Path]] = []
    monkeypatch.setattr(tracking, "log_sweep", lambda config, folder, runs: logged.append(list(runs)))
    assert cli.main(command(place, tmp_path, "-m", "limit=2", "batch_size=1,2")) == 0
    assert statuses(tmp_path) == ["done"] * 4
    assert len(logged[0]) == 2


@pytest.mark.parametrize("left_out", ["overwrite=true", "overwrite=True", "++overwrite=true", "resume=false"])
def test_how_to_go_on_keeps_what_is_finished(left_out: str) -> None:
    said = multirun.goes_on(["evaluate", left_out, "limit=2"])
    assert said.endswith("Go on with: xtransplant evaluate limit=2")


@pytest.mark.parametrize("job", ["evaluate", "grid"])
def test_no_run_leaks_into_the_next(job: str, place: Path, tmp_path: Path) -> None:
    """First and last, in either order, equal the runs that are alone in their process."""
    axis = "transplant.layers" if job == "evaluate" else "transplant.component"
    values = ["null", "[2,0]"] if job == "evaluate" else ["ffn", "attn"]
    for kind in ("choice", "generate"):
        for model in ("llama", "gpt2"):
            for value in values:
                loading._last = None
                alone = command(place, tmp_path / "alone", f"{axis}={value}", job=job, kind=kind)
                alone[3] = f"model.path={place / model}"
                assert cli.main(alone) == 0
        for order in (1, -1):
            swept = command(
                place, tmp_path / str(order), "-m", f"{axis}={','.join(values[::order])}", job=job, kind=kind
            )
            swept[3] = "model.path=" + ",".join(str(place / model) for model in ("llama", "gpt2")[::order])
            assert cli.main(swept) == 0
    expected = results(tmp_path / "alone")
    assert len({key.split("/")[1] for key in expected}) == 8
    assert results(tmp_path / "1") == expected
    assert results(tmp_path / "-1") == expected


def test_a_killed_command_says_how_to_go_on(place: Path, tmp_path: Path) -> None:
    arguments = command(place, tmp_path, "-m", LAYERS, "overwrite=true")
    program = (
        "import os, signal\nfrom xtransplant import jobs\nonce = jobs._evaluate\n"
        "def killed(config, folder):\n"
        "    if config.transplant.layers == [2, 0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    once(config, folder)\n"
        "jobs._evaluate = killed"
    )
    process = started(program, arguments)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGKILL
    last = said.splitlines()[-1]
    assert last.startswith("error: killed (SIGKILL): too little memory is the usual reason.")
    assert "Go on with: xtransplant evaluate" in last and "overwrite" not in last
    assert len(record.find_runs([str(tmp_path)])) == 1


@pytest.mark.parametrize("kind", ["terminal", "one process"])
def test_ctrl_c(kind: str, place: Path, tmp_path: Path) -> None:
    program = (
        "import os, signal, time\nfrom xtransplant import jobs\n"
        "def waits(config, folder):\n    print('here', flush=True)\n    time.sleep(60)\n"
        "jobs._evaluate = waits"
    )
    process = started(program, command(place, tmp_path, "-m", LAYERS), start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    if kind == "terminal":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(
        "interrupted. What is finished, and parts of grids and trainings, are kept. Go on with: "
    )


def test_nothing_goes_on_when_the_command_itself_is_killed(place: Path, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent has died")
    program = (
        "import os, time\nfrom xtransplant import jobs\n"
        "def waits(config, folder):\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
        "jobs._evaluate = waits"
    )
    process = started(program, command(place, tmp_path))
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.communicate()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child goes on")


def test_two_sweeps_in_one_folder(place: Path, tmp_path: Path) -> None:
    """Each run is computed once; both sweeps end with all of them."""
    arguments = command(place, tmp_path / "both", "-m", LAYERS)
    slow = (
        "import time\nfrom xtransplant import jobs\nonce = jobs._evaluate\n"
        "def slow(config, folder):\n    print('computed', folder.name, flush=True)\n    time.sleep(0.5)\n"
        "    once(config, folder)\n"
        "jobs._evaluate = slow"
    )
    processes = [started(slow, arguments) for _ in range(2)]
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    computed = [line for out, _ in said for line in out.splitlines() if line.startswith("computed")]
    assert len(computed) == len(set(computed)) == 6
    assert "Another process is computing" in said[0][1] + said[1][1]
    assert cli.main(command(place, tmp_path / "one", "-m", LAYERS)) == 0
    assert results(tmp_path / "both") == results(tmp_path / "one")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("job", ["evaluate", "grid"])
def test_a_full_disk_is_said_and_survived(
    job: str, small_disk: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    arguments = command(place, small_disk, job=job)
    ballast = small_disk / "ballast"
    answer = TransplantLM.loglikelihood

    def fills(lm: TransplantLM, *given: Any, **more: Any) -> Any:
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(b"0" * 4096)
                    file.flush()
            except OSError:
                pass
        return answer(lm, *given, **more)

    where = "xtransplant.lm.TransplantLM" if job == "evaluate" else "xtransplant.sweep_lm.SweepLM"
    if job == "grid":
        from xtransplant.sweep_lm import SweepLM

        answer = SweepLM.loglikelihood
    with monkeypatch.context() as patched:
        patched.setattr(f"{where}.loglikelihood", fills)
        assert cli.main(arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: The disk is full") and said.endswith("the same command goes on.")
    assert not list(small_disk.glob(f"{job}/*/.*.[0-9]*"))  # no half of a file is left
    ballast.unlink()
    assert cli.main(arguments) == 0
    assert cli.main(command(place, tmp_path / "plenty", job=job)) == 0
    assert results(small_disk) == results(tmp_path / "plenty")


def test_a_read_only_folder(small_disk: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(place, small_disk, "limit=3")) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for more in ([], ["-m", "seed=1,2"]):
        assert cli.main(command(place, small_disk, *more)) in (1, 2)
        assert "Read-only file system). Give a folder" in capsys.readouterr().err
    # What is finished there may be read.
    assert cli.main(["summarize", f"runs={small_disk}"]) == 0
    assert "vanilla" in capsys.readouterr().out


def test_too_little_memory_is_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def much(*given: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has …")

    monkeypatch.setattr(TransplantLM, "loglikelihood", much)
    assert cli.main(command(place, tmp_path)) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(
            "error: Too little memory: CUDA out of memory. Lower batch_size (evaluate, sft) or grid.memory (grid)"
        )
    )


@pytest.mark.slow
def test_a_sweep_killed_at_twenty_moments_ends_as_an_undisturbed_one(place: Path, tmp_path: Path) -> None:
    def arguments(outputs: Path, job: str) -> list[str]:
        axis = LAYERS if job == "evaluate" else "transplant.component=ffn,attn"
        return command(place, outputs, "-m", axis, "limit=10,7" if job == "evaluate" else "limit=10,8,7", job=job)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for job in ("evaluate", "grid"):  # 12 runs each
        assert cli.main(arguments(whole, job)) == 0
    draw = random.Random(7)
    slow = (
        "import time\nfrom xtransplant import record\nonce = record.write\n"
        "def slow(path, text):\n    time.sleep(0.6)\n    once(path, text)\n"
        "record.write = slow"
    )
    moments = 0
    for job in ("evaluate", "grid"):
        for _ in range(10):
            process = started(slow, arguments(killed, job), start_new_session=True)
            time.sleep(draw.uniform(3, 7))
            if process.poll() is None:
                moments += 1
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    for job in ("evaluate", "grid"):
        assert cli.main(arguments(killed, job)) == 0
    assert moments == 20
    assert results(killed) == results(whole)
    assert not list(killed.glob("grid/*/responses"))
