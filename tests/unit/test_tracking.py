"""What is logged of a run, read back with W&B's own reader; and that W&B can do no harm to it."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.integration.wandb_server import serving
from tests.unit.grids import BEST, choice_grid, text_grid
from xtransplant import cli, record, stats, tracking, tracking_worker
from xtransplant.answer_language import CONSISTENCY, JUDGED
from xtransplant.compose import compose
from xtransplant.config import EvaluateConfig, GridConfig, TaskJob, config_hash, identity, to_dict
from xtransplant.grid import Grid

KEY = "0123456789abcdef0123456789abcdef01234567"
# What a user's environment may hold and nobody else may see.
PLANTED = {
    "WANDB_API_KEY": KEY,
    "HF_TOKEN": "hf_PlantedTokenOfTheHub",
    "MY_SECRET": "PlantedAndUnknown",
    "HTTPS_PROXY": "http://someone:PlantedProxyWord@127.0.0.1:9",
}
WORDS = [KEY, "PlantedTokenOfTheHub", "PlantedAndUnknown", "PlantedProxyWord", "PlantedRemoteWord"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A current and a home folder of their own; no process and no failure left over."""
    tracking.stop()
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tracking, "_upload_failed", None)
    for name in [each for each in os.environ if each.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    yield
    tracking.stop()


def config(*overrides: str, job: str = "evaluate") -> Any:
    return compose(job, ["tracking=wandb_offline", "task=cldr_language", "language_pair=en-sw", *overrides])


def facts(given: TaskJob, **changes: Any) -> dict[str, Any]:
    return {
        "job": "evaluate", "config_hash": config_hash(given), "condition": "vanilla", "control": None,
        "model_name": "tiny", "task_name": "colour", "language_pair": "en-sw", "split": "all", "seed": 1234,
        "environment": record.environment(),
    } | changes  # fmt: skip


def sample(task: str, number: int, **scores: Any) -> dict[str, Any]:
    text = f"{task} {number}"
    return {
        "doc_id": number, "key": f"doc-{number}", "filter": "none", "target": "1", "source_prompts": [f"en {text}"],
        "arguments": [[f"sw {text}", " a"], [f"sw {text}", " b"]], "filtered_resps": [[-1.5, False], [-0.5, True]],
        "metrics": list(scores),
    } | scores  # fmt: skip


def evaluated(name: str, given: EvaluateConfig, scores: dict[str, list[float]], **changes: Any) -> Path:
    """A finished run's folder: task -> scores of its documents."""
    folder = Path(given.output_dir, "evaluate", name)
    record.open_run(folder, json.dumps(to_dict(given)))
    results = {
        task: {
            "alias": task,
            "acc,none": float(np.mean(values)),
            "acc_stderr,none": float(np.std(values, ddof=1) / len(values) ** 0.5),
            "f1,strict": 0.5,
            "f1_stderr,strict": 0.1,
            "bits,none": 0.25,
            "bits_stderr,none": "N/A",
        }
        for task, values in scores.items()
    }
    content = {"results": results, "config": {"model_args": identity(given)}}
    record.write(folder / "results.json", record.as_json(content))
    for task, values in scores.items():
        rows = [sample(task, number, acc=value) for number, value in enumerate(values)]
        text = "".join(record.as_json(row, indent=None) for row in rows)
        record.write(folder / f"samples_{task}.jsonl", text)
    tasks = {
        task: {"documents": len(values), "trivial_baseline": 0.25, "keys_sha256": task}
        for task, values in scores.items()
    }
    record.close_run(folder, facts(given, tasks=tasks, **changes))
    return folder


def swept(name: str, given: GridConfig, grid: Grid) -> Path:
    folder = Path(given.output_dir, "grid", name)
    record.open_run(folder, json.dumps(to_dict(given)))
    metric = grid.metric
    values = grid.vanilla[0].astype(float).tolist()
    result = {"alias": "x", f"{metric},none": float(np.mean(values)), f"{metric}_stderr,none": 0.1}
    content = {"results": {"colour_sw": result}, "config": {"model_args": identity(given)}}
    record.write(folder / "results.json", record.as_json(content))
    rows = [sample("colour_sw", number, **{metric: value}) for number, value in enumerate(values)]
    record.write(folder / "samples_colour_sw.jsonl", "".join(record.as_json(row, indent=None) for row in rows))
    grid.save(folder / "grid.npz")
    tasks = {"colour_sw": {"documents": len(values), "trivial_baseline": None}}
    record.close_run(folder, facts(given, job="grid", split="sample", tasks=tasks))
    return folder


class Logged:
    """The files of one W&B run, read by W&B."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        read = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
        records = subprocess.run([*read, str(folder)], capture_output=True, text=True, check=True).stdout
        self.records = [json.loads(line) for line in records.splitlines()]
        self.run: dict[str, Any] = next(each["run"] for each in self.records if each["type"] == "run")

    @cached_property
    def summary(self) -> dict[str, Any]:
        read = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(self.folder)]
        found: dict[str, Any] = json.loads(subprocess.run(read, capture_output=True, text=True, check=True).stdout)
        return found

    def table(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "files" / self.summary["summary"][name]["path"]
        content = json.loads(path.read_text(encoding="utf-8"))
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    def artifact(self, kind: str) -> dict[str, Any]:
        [found] = [each["artifact"] for each in self.records if each.get("artifact", {}).get("type") == kind]
        return dict(found)


def logged(place: str = "outputs") -> list[Logged]:
    return [Logged(folder) for folder in sorted(Path(place, "wandb").glob("offline-run-*"))]


def kept(config: dict[str, Any]) -> dict[str, Any]:
    """What W&B keeps of a config: an empty mapping has no place in it."""
    return {name: kept(value) if isinstance(value, dict) else value for name, value in config.items() if value != {}}


# --- What there is to say --------------------------------------------------------------------------------------------


def test_metrics_have_intervals_over_their_documents() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    folder = evaluated("r", config(), {"red": values})
    acc, bits, f1 = tracking_worker.of_run(folder).tables["tasks"][1]
    low, high = stats.bootstrap_interval(np.array(values), resamples=2_000, seed=1234)
    assert 0 < low < 5 / 7 < high <= 1
    assert acc == ["en-sw", "red", "acc", "none", 5 / 7, pytest.approx(0.184, abs=1e-3), low, high, 7, 0.25]
    # Without a score of each document: by the standard error, where there is one.
    assert f1 == ["en-sw", "red", "f1", "strict", 0.5, 0.1, 0.304, 0.696, 7, None]
    assert bits == ["en-sw", "red", "bits", "none", 0.25, None, None, None, 7, None]


def test_metrics_of_several_tasks_are_pooled_by_documents() -> None:
    values = tracking_worker.of_run(evaluated("r", config(), {"red": [1.0, 0.0], "blue": [1.0] * 6})).values
    assert values["acc"] == pytest.approx(7 / 8)
    assert (values["red/acc"], values["blue/acc"], values["f1_strict"]) == (0.5, 1.0, 0.5)
    assert {"red/acc/low", "red/acc/high", "red/acc/stderr", "red/f1_strict/low"} <= set(values)
    assert not {"acc/low", "red/bits/low"} & set(values)
    assert (values["samples/shown"], values["samples/all"]) == (8, 8)


def test_a_metric_that_no_document_has_is_left_out() -> None:
    folder = evaluated("r", config(), {"red": [1.0, 0.0], "blue": [1.0, 1.0]})
    path = folder / "results.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for told in content["results"].values():
        told |= {f"{CONSISTENCY},none": math.nan, f"{JUDGED},none": 0.0}
    path.write_text(json.dumps(content), encoding="utf-8")
    manifest = json.loads((folder / record.MANIFEST).read_text(encoding="utf-8"))
    (folder / record.MANIFEST).unlink()
    record.close_run(folder, {key: value for key, value in manifest.items() if key != "files"})
    values = tracking_worker.of_run(folder).values
    assert (values["acc"], values[JUDGED]) == (0.75, 0.0)
    assert CONSISTENCY not in values


def test_samples_are_bounded() -> None:
    folder = evaluated("r", config(), {"red": [1.0, 0.0] * 150, "blue": [1.0] * 30})
    run = record.load_run(folder)
    assert run is not None
    long = sample("red", 0, acc=1.0) | {"source_prompts": ["x" * 5_000 + "end"]}
    rest = (folder / "samples_red.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    (folder / "samples_red.jsonl").write_text("\n".join([json.dumps(long), *rest]), encoding="utf-8")
    (header, rows), total = tracking_worker.sample_rows(run)
    assert (len(rows), total) == (100 + 30, 330)
    first, second = (dict(zip(header, row, strict=True)) for row in rows[30:32])
    assert len(first["source_prompts"]) < 4_100
    assert first["source_prompts"].endswith("xend")
    assert second == {
        "task": "red", "key": "doc-1", "filter": "none", "source_prompts": "en red 1", "prompt": "sw red 1",
        "choices": '[" a", " b"]', "responses": "[[-1.5, false], [-0.5, true]]", "answer": "1",
        "acc": 0.0, "bits": None, "f1": None,
    }  # fmt: skip


def test_a_grids_cells() -> None:
    grid = choice_grid(num_layers=3, best=None, unseen_cells=0.2)
    (header, rows), best = tracking_worker.cells(grid)
    assert len(rows) == len(grid.cells) == 18
    for number, row in enumerate(rows):
        seen = ~np.isnan(grid.scores[0, :, number])
        one = dict(zip(header, row, strict=True))
        cell = grid.cells[number]
        assert (one["component"], one["source"], one["target"]) == (cell.component.value, cell.source, cell.target)
        assert one["documents"] == seen.sum()
        assert one["score"] == pytest.approx(grid.scores[0, seen, number].mean())
        assert one["gain"] == pytest.approx((grid.scores[0, seen, number] - grid.vanilla[0, seen]).mean())
        assert (one["p_max_t"] is None) == (not seen.all())
        assert one["logprob_change"] is not None
    whole = [row for row in rows if row[0] == "ffn" and row[6] is not None]
    assert best["best/ffn/gain"] == max(row[5] for row in whole)
    assert tracking_worker.cells(text_grid())[0][1][0][-1] is None  # a text has no log-probability


def test_a_sweep_compares_with_the_vanilla_run_that_is_else_the_same() -> None:
    given, moved, other = config(), config("transplant=ffn"), config("transplant=ffn", "seed=5")
    before, after = [0.0, 0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0, 0.0]
    folders = [
        evaluated("moved", moved, {"red": after}, condition="ffn 0>0"),
        evaluated("vanilla", given, {"red": before}),
        evaluated("other", other, {"red": after}, condition="ffn 0>0"),
    ]
    content = tracking_worker.of_sweep(Path("outputs/sweeps/s"), folders, to_dict(given)["tracking"])
    header, rows = content.tables["comparison"]
    found = {row[header.index("folder")]: dict(zip(header, row, strict=True)) for row in rows}
    one = found["moved"]
    assert (one["condition"], one["metric"], one["score"], one["documents"]) == ("ffn 0>0", "acc", 0.8, 5)
    assert one["difference"] == pytest.approx(0.4)
    assert (one["difference_low"], one["difference_high"]) == stats.paired_interval(np.array(after), np.array(before))
    assert found["vanilla"]["difference"] is None
    assert found["other"]["difference"] is None
    assert (content.name, content.group, content.job_type) == ("s", "s", "sweep")
    # The same results have the same id; another place of logging, or other results, another.
    again = tracking_worker.of_sweep(Path("outputs/sweeps/s"), folders[::-1], to_dict(given)["tracking"])
    fewer = tracking_worker.of_sweep(Path("outputs/sweeps/s"), folders[1:], to_dict(given)["tracking"])
    assert content.id == again.id != fewer.id


# --- What W&B reads back ---------------------------------------------------------------------------------------------


def test_runs_are_complete_one_after_another(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Two of `evaluate` and a grid, all by one process, then the sweep's own."""
    caplog.set_level(logging.INFO)
    given = config(
        "tracking.group=my sweep", "tracking.tags=[mine,tiny]", "tracking.project=study", "tracking.entity=me"
    )
    moved = config("tracking.group=my sweep", "tracking.project=study", "transplant=ffn")
    values = [1.0, 0.0, 1.0, 1.0]
    folders = [
        evaluated("vanilla", given, {"red": values}),
        evaluated("moved", moved, {"red": values[::-1]}, condition=f"ffn {'0>0, ' * 30}"),
    ]
    folders[0].joinpath("log.txt").write_text("what happened", encoding="utf-8")
    grid = choice_grid(num_layers=3, best=BEST._replace(source=2))
    grids = config("tracking.group=my sweep", job="grid")
    folders.append(swept("grid", grids, grid))
    tracking.start(given)
    process = tracking._current
    for each, folder in zip((given, moved, grids), folders, strict=True):
        tracking.log_run(each, folder)
    assert tracking._current is process
    sweep = Path("outputs/sweeps/s")
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text("{}", encoding="utf-8")
    tracking.log_sweep(given, sweep, folders[:2])
    tracking.log_sweep(given, sweep, folders[:2])  # once only
    # Nothing lies elsewhere, and nothing is left running.
    assert list((tmp_path / "home").rglob("*wandb*")) == []
    assert [path.name for path in Path().iterdir()] == ["outputs"]
    tracking.stop()
    assert process is not None and process.process.returncode == 0

    assert [each.levelname for each in caplog.records] == ["INFO"] * 5
    assert [each.message for each in caplog.records][3] == [each.message for each in caplog.records][4]
    one, two, three, four = sorted(
        logged(), key=lambda each: ["vanilla", "moved", "grid", "s"].index(each.run["display_name"])
    )
    assert f"W&B, offline: {one.folder}" in caplog.text

    assert (one.run["run_group"], one.run["job_type"]) == ("my sweep", "evaluate")
    assert (one.summary["project"], one.summary["entity"], one.summary["state"]) == ("study", "me", "finished")
    assert one.summary["tags"] == ["tiny", "colour", "en-sw", "vanilla", "mine"]
    assert all(len(tag) <= 64 for tag in two.summary["tags"])
    about = one.summary["config"].pop("run")
    assert one.summary["config"] == kept(to_dict(given))
    assert about["config_hash"] == config_hash(given)
    assert about["environment"]["versions"]["torch"]
    assert one.summary["summary"]["acc"] == 0.75
    assert one.summary["summary"]["acc/low"] < 0.75 < one.summary["summary"]["acc/high"]
    assert [row["metric"] for row in one.table("tasks")] == ["acc", "bits", "f1"]
    assert [row["acc"] for row in one.table("samples")] == values
    # Every file of the folder, byte by byte, and its hashes.
    artifact = one.artifact("run-evaluate")
    held = {each["path"]: Path(each["local_path"]).read_bytes() for each in artifact["manifest"]["contents"]}
    assert held == {path.name: path.read_bytes() for path in folders[0].iterdir()}
    manifest = (folders[0] / record.MANIFEST).read_bytes()
    metadata = json.loads(artifact["metadata"])
    assert metadata["files"] == json.loads(manifest)["files"]
    assert metadata["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()

    assert three.run["job_type"] == "grid"
    assert {row["component"] for row in three.table("grid")} == {"ffn", "attn"}
    assert three.summary["summary"]["best/ffn/source"] == 2
    assert three.summary["summary"]["vanilla/acc"] == pytest.approx(grid.vanilla.mean())
    picture = three.folder / "files" / three.summary["summary"]["heatmap"]["path"]
    with Image.open(io.BytesIO(picture.read_bytes())) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
    assert three.artifact("run-grid")["name"] == "grid"

    assert (four.run["run_group"], four.run["job_type"], four.run["display_name"]) == ("my sweep", "sweep", "s")
    assert {row["folder"] for row in four.table("comparison")} == {"vanilla", "moved"}
    assert [each["path"] for each in four.artifact("sweep")["manifest"]["contents"]] == ["sweep.json"]


def test_nothing_is_started_where_nothing_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    given = config()
    folder = evaluated("r", given, {"red": [1.0, 0.0]})
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    for override in ("tracking=none", "tracking.mode=disabled"):
        tracking.start(config(override))
        tracking.log_run(config(override), folder)
        tracking.log_sweep(config(override), Path("outputs/sweeps/s"), [folder])
    tracking.log_sweep(given, Path("outputs/sweeps/s"), [])
    assert not Path("outputs/wandb").exists()


def test_wandb_is_never_loaded_in_the_jobs_process() -> None:
    folder = evaluated("r", config(), {"red": [1.0, 0.0]})
    program = (
        "import sys; from pathlib import Path\n"
        "from xtransplant import tracking; from xtransplant.compose import compose\n"
        f"tracking.log_run(compose('evaluate', ['tracking=wandb_offline']), Path({str(folder)!r}))\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'wandb'])"
    )
    before = dict(os.environ)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert len(list(Path("outputs/wandb").glob("offline-run-*"))) == 1
    assert dict(os.environ) == before


# --- Uploads, and what may go wrong ----------------------------------------------------------------------------------


def test_online_uploads_everything(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    given = config("tracking.mode=online", "tracking.group=g")
    folder = evaluated("r", given, {"red": [1.0, 0.0, 1.0]})
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        tracking.log_run(given, folder)
    [line] = caplog.messages
    assert line.startswith(f"W&B: {server.url}/someone/xtransplant/runs/")
    bucket = server.of("UpsertBucket")[0]
    assert (bucket["displayName"], bucket["groupName"], bucket["jobType"]) == ("r", "g", "evaluate")
    assert bucket["tags"] == ["tiny", "colour", "en-sw", "vanilla"]
    assert json.loads(bucket["config"])["task"]["value"] == kept(to_dict(given)["task"])
    for path in folder.iterdir():
        assert server.files[f"/artifacts/r/{path.name}"] == path.read_bytes()
    [summary] = [content for path, content in server.files.items() if path.endswith("wandb-summary.json")]
    assert json.loads(summary)["acc"] == pytest.approx(2 / 3)
    assert len(server.of("CommitArtifact")) == 3  # the folder, and a copy of each table


def test_runs_of_an_agent_are_its_sweeps(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    given = config("tracking.mode=online")
    folder = evaluated("r", given, {"red": [1.0, 0.0, 1.0]})
    # As `wandb agent` leaves it for the command.
    parameters = Path("wandb/sweep-s1/config-a1.yaml")
    parameters.parent.mkdir(parents=True)
    parameters.write_text("wandb_version: 1\n\ntask:\n  value: cldr_language\n", encoding="utf-8")
    asked = {
        "PROJECT": "theirs",
        "ENTITY": "team",
        "SWEEP_ID": "s1",
        "RUN_ID": "a1",
        "SWEEP_PARAM_PATH": str(parameters),
    }
    for name, value in {**asked, "API_KEY": KEY}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        tracking.log_run(given, folder)
        tracking.log_run(given, folder)  # a second one is none of the agent's
    first, *_, second = (each for each in server.of("UpsertBucket") if each["displayName"])
    assert [first[key] for key in ("name", "project", "entity", "sweep")] == ["a1", "theirs", "team", "s1"]
    content = json.loads(first["config"])
    assert content["task"]["value"] == "cldr_language"
    assert content["resolved"]["value"]["task"] == kept(to_dict(given)["task"])
    assert (second["name"] != "a1", second["project"], second["sweep"]) == (True, "xtransplant", None)


@pytest.mark.parametrize("behaviour", ["refused", "silent", "dies", "no key"])
def test_a_failed_upload_costs_little_and_is_said(
    behaviour: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limit of 16 s made 6. The bounds leave room for a busy machine: W&B itself would hang for minutes."""
    assert tracking._PATIENCE <= 16
    monkeypatch.setattr(tracking, "_PATIENCE", 6.0)
    caplog.set_level(logging.INFO)
    given = config("tracking.mode=online")
    folder = evaluated("r", given, {"red": [1.0, 0.0, 1.0]})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    tracking.start(given)
    if behaviour != "no key":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serving(behaviour) as server:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if behaviour == "refused" else server.url)
        tracking.stop()
        started = time.monotonic()
        tracking.log_run(given, folder)
        first = time.monotonic() - started
        before_second = len(server.raw)
        tracking.log_run(given, folder)
        second = time.monotonic() - started - first
        asked = len(server.raw)
    assert first < 30
    assert second < 20
    assert behaviour != "silent" or asked == before_second
    lines = [each.message for each in caplog.records if each.levelname == "WARNING"]
    why = "No API key configured" if behaviour == "no key" else "answer in time"
    assert len(caplog.records) == 2
    assert lines[0].startswith("W&B: not uploaded (") and why in lines[0]
    assert "the last upload failed" in lines[1]
    # What it names is complete, and can be uploaded later.
    found = [Logged(Path(line.rpartition("wandb sync ")[2])) for line in lines]
    assert {each.folder for each in found} == set(Path("outputs/wandb").glob("offline-run-*"))
    for each in found:
        assert each.artifact("run-evaluate")
        assert each.records[-1]["exit"]["exit_code"] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    if behaviour != "dies":
        return
    with serving() as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        command = [sys.executable, "-m", "wandb", "sync", str(found[0].folder)]
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert server.files["/artifacts/r/manifest.json"] == before["manifest.json"]


def test_a_process_that_hangs_or_dies_is_replaced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_OWN_WORK", 1.0)
    given = config()
    folder = evaluated("r", given, {"red": [1.0, 0.0]})
    tracking.start(given)
    first = tracking._current
    assert first is not None
    os.kill(first.process.pid, signal.SIGSTOP)
    started = time.monotonic()
    tracking.log_run(given, folder)
    assert time.monotonic() - started < 3
    assert first.process.returncode == -signal.SIGKILL
    assert "r was not logged there (no answer in time). The run itself is complete." in caplog.text
    caplog.clear()
    monkeypatch.setattr(tracking, "_OWN_WORK", 60.0)
    tracking.start(given)
    second = tracking._current
    assert second is not None and second is not first
    ask = second.ask

    def killed(request: dict[str, Any]) -> dict[str, Any]:
        os.kill(second.process.pid, signal.SIGKILL)
        return ask(request)

    monkeypatch.setattr(second, "ask", killed)
    tracking.log_run(given, folder)
    assert "its process ended" in caplog.text
    tracking.log_run(given, folder)
    assert len(logged()) == 1


def test_what_cannot_be_logged_fails_no_run(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    given = config()
    folder = evaluated("r", given, {"red": [1.0, 0.0]})
    (folder / "results.json").write_text("{}", encoding="utf-8")
    tracking.log_run(given, folder)
    assert "r was not logged there" in caplog.text and "was changed after its run" in caplog.text
    caplog.clear()

    def none(*_: Any, **__: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", none)
    tracking.start(given)
    tracking.log_run(given, folder)
    assert "r was not logged there (OSError: [Errno 12] Cannot allocate memory)" in caplog.text


# --- Secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_stay_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the environment, and of the address of a git repository: in no file, log line, or request."""
    caplog.set_level(logging.DEBUG)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q", "."], check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://x:PlantedRemoteWord@example.org/x.git"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    given = config("tracking.mode=online")
    folder = evaluated("r", given, {"red": [1.0, 0.0, 1.0]})
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        tracking.log_run(given, folder)
        tracking.log_sweep(given, Path("outputs/sweeps/s"), [folder])
    tracking.stop()
    assert len(server.of("UpsertBucket")) >= 2
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert len(written) > 15
    places = {**{str(path): content for path, content in written.items()}, "log": caplog.text.encode()}
    assert [(place, word) for place, content in places.items() for word in WORDS if word.encode() in content] == []
    # The server is sent the key to it, and nothing else.
    sent = b"".join(server.raw)
    assert [word for word in WORDS if word.encode() in sent] == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.system_instruction=say PlantedAndUnknown", "the environment variable MY_SECRET"),
        ("model.path=org/hf_PlantedTokenOfTheHub", "the environment variable HF_TOKEN"),
        ("tracking.tags=[PlantedAndUnknown]", "the environment variable MY_SECRET"),
        ("task.data_files={test: 'https://someone:PlantedAndSo@example.org/x.jsonl'}", "an address with a password"),
    ],
)
def test_a_secret_in_the_config_is_refused_and_not_repeated(
    override: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Exception, match=message) as refused:
        config(override, "limit=0")
    assert "Planted" not in str(refused.value)
    assert override.split("=")[0] in str(refused.value)


def test_a_secret_for_hydra_alone_is_refused_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep's record holds its command."""
    monkeypatch.setenv("HF_TOKEN", PLANTED["HF_TOKEN"])
    given = f"+hydra.job.env_set.HF_TOKEN={PLANTED['HF_TOKEN']}"
    assert cli.main(["evaluate", "-m", "tracking=none", "limit=1,2", given]) == 2
    said = capsys.readouterr().err
    assert "Give 'hydra.job.env_copy=[HF_TOKEN]' instead." in said and "Planted" not in said
    assert not Path("outputs").exists()
