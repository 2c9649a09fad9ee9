"""`xtransplant summarize` on real runs of a tiny model: two languages, conditions, one run that failed."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import write_tasks
from xtransplant import cli, jobs, record, stats

PAIRS = ("en-sw", "sw-en")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("model and tasks")
    checkpoint, tasks = save_checkpoint("llama", place / "llama"), write_tasks(place / "tasks")
    return [
        "model=hf", f"model.path={checkpoint}", "model.name=tiny", "task=custom", "task.name=colour",
        'task.tasks=["colour_choice_{lang}"]', f"task.include_path=[{tasks}]", "task.key=id", "task.gold=label",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("outputs")
    swept = ["language_pair=en-sw,sw-en", "transplant.layers=null,[3,1]", f"output_dir={place}"]
    assert cli.main(["evaluate", "-m", *arguments, *swept]) == 0
    return place


def scores(folder: Path) -> dict[str, float]:
    [path] = folder.glob("samples_*.jsonl")
    return {row["key"]: row["acc"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def test_the_numbers_are_those_of_the_samples(finished: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert cli.main(["summarize", f"runs={finished}", "format=csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    differences = {}
    for pair in PAIRS:
        vanilla, moved = (
            next(line for line in lines if (line["pair"], line["condition"]) == (pair, condition))
            for condition in ("vanilla", "ffn 3>1")
        )
        before, after = (scores(Path(line["folder"])) for line in (vanilla, moved))
        keys = sorted(before)
        assert len(keys) == 10 and before.keys() == after.keys()
        one, two = (np.array([each[key] for key in keys]) for each in (before, after))
        differences[pair] = two - one
        assert (float(vanilla["score"]), float(moved["score"])) == (one.mean(), two.mean())
        assert float(moved["difference"]) == pytest.approx((two - one).mean())
        assert float(moved["p"]) == stats.mcnemar(two, one)
        low, high = stats.paired_interval(two, one)
        assert (float(moved["difference_low"]), float(moved["difference_high"])) == (low, high)
    averages = {line["kind"]: line for line in lines if not line["pair"] and line["condition"] == "ffn 3>1"}
    mean = np.concatenate(list(differences.values())).mean()
    assert {kind: float(line["difference"]) for kind, line in averages.items()} == {
        "micro": pytest.approx(mean),
        "macro": pytest.approx(mean),
    }
    assert averages["micro"]["documents"] == "20" and averages["micro"]["pairs"] == "2"


def test_a_run_that_failed_is_in_its_cell(finished: Path, arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    for folder in (finished / "evaluate").iterdir():
        shutil.copytree(folder, tmp_path / "evaluate" / folder.name)
    # One that was begun with its layers by name, as a sweep leaves it when it fails; one that was killed.
    given = [*arguments, "language_pair=en-sw", f"output_dir={tmp_path}", "transplant.component=attn"]
    for layers in ("[last,first]", "[-3,2]"):
        assert cli.main(["evaluate", *given, f"transplant.layers={layers}"]) == 0
    for folder in (tmp_path / "evaluate").glob("*-attn-*"):
        (folder / "manifest.json").unlink()
    [failed] = (tmp_path / "evaluate").glob("*-attn-3-0-*")
    (failed / "failed.json").write_text(json.dumps({"error": "The disk is full (/data)."}), encoding="utf-8")
    # Refused before its config was written.
    (tmp_path / "evaluate" / "tiny-other").mkdir()
    (tmp_path / "evaluate" / "tiny-other" / "failed.json").write_text('{"error": "no such file"}', encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["summarize", f"runs={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny, colour, all: acc"
    header, swahili = lines[2], lines[4]
    assert swahili.startswith("en-sw")
    for condition, shown in (("attn 3>0", "failed"), ("attn 1>2", "not finished")):
        assert swahili[header.index(condition) :].startswith(shown)
    assert "en-sw, attn 3>0: failed: The disk is full (/data)." in lines
    assert "tiny-other: failed: no such file" in lines
    assert "over the" not in "\n".join(lines)  # both pairs have all that was finished


def test_only_failed_runs_are_said_to_be_so(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "evaluate" / "tiny-colour"
    folder.mkdir(parents=True)
    (folder / "failed.json").write_text('{"error": "Too little memory."}', encoding="utf-8")
    assert cli.main(["summarize", f"runs={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "holds no finished run of evaluate, 1 begun" in said and "Too little memory." in said


def test_a_file_is_written_whole_and_replaced_on_request_only(finished: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "new" / "summary.md"
    given = ["summarize", f"runs={finished}", "format=markdown", f"output={path}"]
    capsys.readouterr()
    assert cli.main(given) == 0
    assert capsys.readouterr().out == f"{path}\n"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("### tiny, colour, all: acc\n") and text.endswith("\n")
    assert [each.name for each in path.parent.iterdir()] == ["summary.md"]
    assert cli.main(given) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert cli.main([*given, "overwrite=true", "format=latex"]) == 0
    assert r"\toprule" in path.read_text(encoding="utf-8")
    assert cli.main([*given[:-1], f"output={path / 'below'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_run_that_was_changed_has_a_place_but_no_score(finished: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(finished / "evaluate", tmp_path / "evaluate")
    path = sorted(tmp_path.rglob("samples_*.jsonl"))[0]
    path.write_text(path.read_text(encoding="utf-8").replace('"acc": 0.0', '"acc": 1.0'), encoding="utf-8")
    assert cli.main(["summarize", f"runs={tmp_path}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"en-sw 10 0\.600 0\.000 ±\.000 damaged", said)
    assert "was changed after its run" in said
    path.unlink()
    assert cli.main(["summarize", f"runs={path.parent}"]) == 2
    assert f"{path} is missing. The run's command computes it anew." in capsys.readouterr().err


def test_what_is_finished_is_not_unfinished(finished: Path) -> None:
    assert jobs.unfinished([str(finished)]) == []
    assert len(record.find_runs([str(finished)])) == 4
