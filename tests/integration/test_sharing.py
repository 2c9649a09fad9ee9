"""Runs that were really made, exported and compared: an evaluation and a grid of a tiny model on a user's own tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.integration.wandb_server import serving
from xtransplant import bundle, cli, record
from xtransplant.grid import Grid


@pytest.fixture(scope="module")
def runs(checkpoint: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of an evaluation with a transplant, of vanilla, and of a grid."""
    place = tmp_path_factory.mktemp("runs")
    given = [
        "model=hf", f"model.path={checkpoint}", "model.name=tiny", "task=custom", "task.name=colour",
        'task.tasks=["colour_choice_{lang}"]', f"task.include_path=[{tasks}]", "task.key=id", "task.gold=label",
        "language_pair=en-sw", f"output_dir={place}", "limit=4",
    ]  # fmt: skip
    assert cli.main(["evaluate", *given, "transplant.layers=[last,1]"]) == 0
    assert cli.main(["evaluate", *given]) == 0
    assert cli.main(["grid", *given, "split=all", "grid.pairs=target_first"]) == 0
    named = {"transplant": "evaluate/*-ffn-*", "vanilla": "evaluate/*-vanilla-*", "grid": "grid/*-ffn-*"}
    return {name: next(place.glob(pattern)) for name, pattern in named.items()}


def test_an_evaluation_is_exported_and_read_again(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["transplant"]
    for name in ("a", "b"):
        assert cli.main(["export", f"run={run}", f"to={tmp_path / name}.zip", "samples=true"]) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        facts = json.loads(archive.read("bundle.json"))
        assert set(facts["files"]) | {"bundle.json"} == set(archive.namelist()) == {*archive.namelist()}
        # What lies in the folder of tasks beside them is data, of which nobody knows whose it is.
        yaml = {name for name in facts["files"] if name.startswith("tasks/0/")}
        assert "tasks/0/choice_sw.yaml" in yaml and {Path(name).suffix for name in yaml} == {".yaml"}
        assert {Path(name).suffix for name in facts["withheld"]} == {".jsonl"}
        rows = archive.read("run/samples_colour_choice_sw.jsonl").decode().splitlines()
        assert [json.loads(row)["key"] for row in rows] == [f"doc-{number}" for number in range(4)]
    with bundle.opened(tmp_path / "a.zip") as found:
        assert cli.main(["summarize", f"runs={found.folder}"]) == 0
        assert found.include_path and (found.include_path[0] / "choice_sw.yaml").is_file()
    assert cli.main(["diff", str(run), str(tmp_path / "a.zip")]) == 0
    assert cli.main(["diff", str(runs["vanilla"]), str(tmp_path / "a.zip")]) == 1


def test_what_is_withheld_leaves_a_run_that_jobs_read(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The licence of a user's own data is not known."""
    for name in ("transplant", "vanilla"):
        assert cli.main(["export", f"run={runs[name]}", f"to={tmp_path / name}.zip"]) == 0
    with (
        bundle.opened(tmp_path / "transplant.zip") as one,
        bundle.opened(tmp_path / "vanilla.zip") as two,
    ):
        text = (one.folder / "samples_colour_choice_sw.jsonl").read_text(encoding="utf-8")
        assert "Rangi" not in text and "nyekundu" not in text and "doc-3" in text
        asked = f"runs=[{one.folder},{two.folder}]"
        capsys.readouterr()
        assert cli.main(["compare", asked]) == 0
        of_bundles = capsys.readouterr().out
        assert cli.main(["report", asked, f"output={tmp_path / 'report.html'}"]) == 0
    assert cli.main(["compare", f"runs=[{runs['transplant']},{runs['vanilla']}]"]) == 0
    assert of_bundles in capsys.readouterr().out


def test_a_grid_is_exported_and_read_again(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["grid"]
    short = run.name[-12:]
    output_dir = f"output_dir={run.parents[1]}"
    assert cli.main(["export", f"run={short[:8]}", output_dir, f"to={tmp_path}"]) == 0
    path = tmp_path / f"{run.name}.zip"
    with zipfile.ZipFile(path) as archive, archive.open("run/grid.npz") as stream, np.load(stream) as arrays:
        names = json.loads(arrays["names"].tobytes())
        assert arrays["scores"].shape == (len(names["meta"]["metrics"]), len(names["documents"]), len(names["cells"]))
    with bundle.opened(path) as found:
        assert Grid.load(found.folder / "grid.npz").sha256 == found.manifest["grid_sha256"]
        assert record.load_run(found.folder) is not None
        assert cli.main(["select", f"grid={found.folder}", f"output_dir={tmp_path}"]) == 0
    assert cli.main(["diff", short, str(path), output_dir]) == 0
    assert cli.main(["diff", short, runs["vanilla"].name[-12:], output_dir]) == 1


def test_a_bundle_goes_to_wandb_and_comes_back(runs: dict[str, Path], tmp_path: Path) -> None:
    """By W&B's own client, in a process of its own, and a server of this machine."""
    address, run = "wandb://someone/shared/tiny", str(runs["vanilla"])
    program = f"""if True:
        from xtransplant import cli
        assert cli.main(["export", "run={run}", "to={address}"]) == 0
        assert cli.main(["diff", {run!r}, "{address}:v0"]) == 0
    """
    with serving() as server:
        ours = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40, "HOME": str(tmp_path)}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | ours
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"{server.url}/someone/shared/runs/" in done.stdout and f"b: {address}:v0" in done.stdout
        sent = server.files["/artifacts/tiny/bundle.zip"]
        # Nothing of this machine, and no code: only the artifact.
        [started, *_] = server.of("UpsertBucket")
        assert started["host"] in (None, "") and not any(b"test_sharing" in each for each in server.raw)
    assert cli.main(["export", f"run={run}", f"to={tmp_path / 'own.zip'}"]) == 0
    assert (tmp_path / "own.zip").read_bytes() == sent
