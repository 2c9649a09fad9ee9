"""Tracking from the command line: what is tracked unless said, what it leaves as it is, and W&B's own sweeps."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import write_tasks
from tests.integration.test_pages import commands
from xtransplant import cli, compose, families, record, tracking

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((ROOT / "docs" / "wandb_sweeps").glob("*.yaml"))


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [
        "model=hf", f"model.path={save_checkpoint('llama', tmp_path / 'tiny')}", "model.name=tiny", "task=custom",
        'task.tasks=["colour_choice_{lang}"]', f"task.include_path=[{write_tasks(tmp_path / 'tasks')}]", "task.key=id",
        "task.name=colour", "language_pair=en-sw", "limit=4",
    ]  # fmt: skip


def described(folder: Path) -> dict[str, Any]:
    read = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    text = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    return next(each["run"] for each in map(json.loads, text.splitlines()) if each["type"] == "run")


def test_a_sweep_is_tracked_offline_and_a_run_is_the_same_without(arguments: list[str]) -> None:
    assert cli.main(["evaluate", *arguments, "output_dir=alone"]) == 0
    assert not Path("alone/wandb").exists()
    assert cli.main(["evaluate", "-m", *arguments, "transplant.layers=null,[2,1]"]) == 0
    assert cli.main(["grid", *arguments, "tracking=wandb_offline", "split=all"]) == 0
    found = [described(folder) for folder in Path("outputs/wandb").glob("offline-run-*")]
    folders = [path.parent for path in Path("outputs").glob("*/*/manifest.json")]
    [swept] = [path.name for path in Path("outputs/sweeps").iterdir()]
    assert sorted(each["display_name"] for each in found) == sorted([swept, *(folder.name for folder in folders)])
    assert sorted((each["job_type"], each.get("run_group")) for each in found) == [
        ("evaluate", swept), ("evaluate", swept), ("grid", None), ("sweep", swept)
    ]  # fmt: skip
    # Neither the folder's name nor what was computed depends on it.
    [alone] = record.find_runs(["alone"])
    same = record.load_run(Path("outputs/evaluate", alone.folder.name))
    assert same is not None and same.results["config"] == alone.results["config"]
    assert "tracking" not in alone.results["config"]["model_args"]
    # What is finished is not logged again.
    assert cli.main(["evaluate", "-m", *arguments, "transplant.layers=null,[2,1]"]) == 0
    assert len(list(Path("outputs/wandb").glob("offline-run-*"))) == 4


def test_the_commands_of_the_page_track_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for line in commands("docs/tracking.md"):
        assert cli.main([*shlex.split(line)[1:], "--cfg", "job", "--package", "tracking"]) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        found.append((shown["backend"], shown["mode"], shown["tags"]))
    assert found == [("wandb", "offline", []), ("wandb", "offline", ["first"]), ("none", "online", [])]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_what_an_agent_runs_is_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's parameters, filled in by W&B's own function as `wandb agent` does, for each of their values."""
    monkeypatch.setattr(families, "check", lambda *_: [])
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    parameters = content["parameters"]
    most = max(len(each.get("values", [])) for each in parameters.values())
    jobs = set()
    for number in range(max(1, most)):
        drawn = {
            name: {"value": each["value"] if "value" in each else pick(each, number)}
            for name, each in parameters.items()
        }
        filled = create_sweep_command_args({"args": drawn}) | {"env": ["/usr/bin/env"], "program": [content["program"]]}
        command: list[str] = []
        for word in create_sweep_command(list(content["command"])):
            command += filled[word[2:-1]] if word.startswith("${") else [word]
        assert command[:2] == ["/usr/bin/env", "xtransplant"]
        composed: Any = compose.compose(command[2], command[3:])
        assert composed.tracking.backend.value == "wandb"
        assert composed.tracking.mode.value == "online"
        jobs.add(command[2])
    assert len(jobs) == 1
    metric = content["metric"]["name"]
    assert metric == {"evaluate": "acc", "grid": "best/ffn/gain"}[jobs.pop()]


def pick(parameter: dict[str, Any], number: int) -> Any:
    if "values" in parameter:
        return parameter["values"][number % len(parameter["values"])]
    return parameter["min"] + (parameter["max"] - parameter["min"]) * (number % 3) / 2


def test_without_tracking_no_job_loads_wandb(arguments: list[str]) -> None:
    program = (
        "import sys; from xtransplant import cli; code = cli.main(sys.argv[1:]); print(code, 'wandb' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "evaluate", *arguments], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
    assert tracking._current is None or tracking._current.owner == os.getpid()
