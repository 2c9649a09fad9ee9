"""The language of answers, from a task's requests to the harness's results and the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.integration.local_tasks import write_tasks
from xtransplant import answer_language, cli, grading, pairing, record
from xtransplant.answer_language import CONSISTENCY, JUDGED
from xtransplant.config import LanguagePairConfig, Split, TaskConfig
from xtransplant.lm import TransplantLM

# What a model might say of the first four documents: in Swahili, in English, nothing to judge, in Swahili.
TEXTS = ["Rangi yake ni nyekundu", "The answer is dark green", "42.", "Ni kijani kibichi kabisa"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tasks(tmp_path_factory.mktemp("tasks"))
    for language in ("en", "sw"):
        # Two filters, as mgsm has: the last word of an answer, then its first letter.
        body = yaml.safe_load((folder / f"generate_{language}.yaml").read_text(encoding="utf-8"))
        filters = [
            {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
            for name, pattern in (("word", r"(\w+)\.?$"), ("letter", r"(\w)"))
        ]
        body |= {"task": f"colour_filtered_{language}", "filter_list": filters}
        (folder / f"filtered_{language}.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
    return folder


@pytest.fixture
def arguments(checkpoint: Path, tasks: Path, tmp_path: Path) -> list[str]:
    return [
        "model=hf", f"model.path={checkpoint}", "model.name=tiny", "task=custom", "task.name=colour",
        f"task.include_path=[{tasks}]", "task.key=id", "task.gold=label", "language_pair=en-sw", "limit=4",
        f"output_dir={tmp_path / 'outputs'}",
    ]  # fmt: skip


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts in the place of what a tiny model generates."""
    texts = list(TEXTS)
    monkeypatch.setattr(TransplantLM, "generate_until", lambda self, requests, **_: texts[: len(requests)])
    return texts


def evaluated(folder: Path, *given: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and samples of the only task of a run."""
    assert cli.main(["evaluate", *given]) == 0
    [run] = record.find_runs([str(folder / "outputs")])
    [result] = run.results["results"].values()
    [path] = run.folder.glob("samples_*.jsonl")
    return result, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_harness_averages_over_the_answers_that_were_judged(
    arguments: list[str], tmp_path: Path, said: list[str], capsys: Any
) -> None:
    result, rows = evaluated(tmp_path, *arguments, 'task.tasks=["colour_generate_{lang}"]')
    assert [row.get(CONSISTENCY) for row in rows] == [1.0, 0.0, None, 1.0]
    assert [row[JUDGED] for row in rows] == [1.0, 1.0, 0.0, 1.0]
    assert result[f"{CONSISTENCY},none"] == pytest.approx(2 / 3)
    assert result[f"{CONSISTENCY}_stderr,none"] == pytest.approx(np.std([1, 0, 1], ddof=1) / 3**0.5)
    assert result[f"{JUDGED},none"] == 0.75
    assert result[f"{JUDGED}_stderr,none"] == pytest.approx(np.std([1, 1, 0, 1], ddof=1) / 2)
    assert result["exact_match,none"] == 0.0
    capsys.readouterr()
    assert cli.main(["summarize", f"runs=[{tmp_path / 'outputs'}]"]) == 0
    table = capsys.readouterr().out
    assert CONSISTENCY in table and "0.667 of 75%" in table


def test_answers_without_letters_give_no_number_and_no_error(
    arguments: list[str], tmp_path: Path, said: list[str], capsys: Any
) -> None:
    said[:] = ["1", "(2)", "", "..."]
    result, rows = evaluated(tmp_path, *arguments, 'task.tasks=["colour_generate_{lang}"]')
    assert result[f"{JUDGED},none"] == 0.0
    assert not any(CONSISTENCY in key for key in [*result, *rows[0]])
    capsys.readouterr()
    assert cli.main(["summarize", f"runs=[{tmp_path / 'outputs'}]"]) == 0
    assert "- of 0%" in capsys.readouterr().out


def test_the_answer_is_judged_as_it_was_given_whatever_a_filter_leaves_of_it(
    arguments: list[str], tmp_path: Path, said: list[str]
) -> None:
    result, rows = evaluated(tmp_path, *arguments, 'task.tasks=["colour_filtered_{lang}"]')
    assert [row["filtered_resps"][0] for row in rows][:2] == ["nyekundu", "green"]
    for name in ("word", "letter"):
        assert result[f"{CONSISTENCY},{name}"] == pytest.approx(2 / 3)
        assert result[f"{JUDGED},{name}"] == 0.75


def test_a_language_that_cannot_be_told_leaves_the_task_as_it_was(
    arguments: list[str], tmp_path: Path, said: list[str], caplog: Any
) -> None:
    answer_language.judge_of.cache_clear()
    given = [each.replace("en-sw", "en-su") for each in arguments]
    names = ["task.tasks=[colour_generate_sw]", "task.source_tasks=[colour_generate_en]"]
    result, _ = evaluated(tmp_path, *given, *names)
    assert f"no {CONSISTENCY}, for su cannot be told" in caplog.text
    assert not any("language" in key for key in result)


def test_a_choice_is_not_judged(arguments: list[str], tmp_path: Path) -> None:
    result, _ = evaluated(tmp_path, *arguments, 'task.tasks=["colour_choice_{lang}"]')
    assert not any("language" in key for key in result)


def test_equal_documents_are_graded_by_their_own_texts_in_a_grid(tasks: Path) -> None:
    """The harness hands over content: of two equal documents each cell has to find its own request."""
    config = TaskConfig(name="colour", tasks=["colour_generate_{lang}"], key="id", include_path=[str(tasks)])
    [found] = pairing.load(config, LanguagePairConfig("en", "sw"), Split.all, None)
    found.target.build_all_requests(samples=[0, 1])
    first, second = found.target.instances
    second.doc, second.source_key = dict(first.doc), first.source_key
    first.cells, second.cells = TEXTS[:2], TEXTS[2:]
    first.resps, second.resps = [TEXTS[0]], [TEXTS[2]]
    graded = [grading.document_scores(found.target, [request], 2) for request in (first, second)]
    assert [scores[JUDGED].tolist() for scores in graded] == [[1.0, 1.0], [0.0, 1.0]]
    np.testing.assert_array_equal([scores[CONSISTENCY] for scores in graded], [[1.0, 0.0], [np.nan, 1.0]])
    # A copy of the content, as the harness's evaluator has it.
    assert found.answer(dict(found.docs[0])) in (TEXTS[0], TEXTS[2])


@pytest.mark.slow
def test_the_harness_command_line_has_both_metrics_too(arguments: list[str], tasks: Path, tmp_path: Path) -> None:
    ours, _ = evaluated(tmp_path, *arguments, 'task.tasks=["colour_sampled_{lang}"]')
    given: dict[str, Any] = dict(each.split("=", 1) for each in arguments)
    given |= {"task.tasks": ["colour_sampled_{lang}"], "task.include_path": [str(tasks)]}
    del given["limit"]
    done = subprocess.run(
        [sys.executable, "-m", "xtransplant.cli", "lm-eval", "run", "--model", "xtransplant",
         "--model_args", json.dumps(given), "--tasks", "colour_sampled_sw", "--include_path", str(tasks),
         "--limit", "4", "--output_path", str(tmp_path / "harness")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = (tmp_path / "harness").rglob("results_*.json")
    theirs = json.loads(results.read_text(encoding="utf-8"))["results"]["colour_sampled_sw"]
    assert f"{JUDGED},none" in theirs
    assert {key: value for key, value in theirs.items() if "language" in key} == {
        key: value for key, value in ours.items() if "language" in key
    }
