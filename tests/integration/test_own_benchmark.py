"""The worked example of docs/own-benchmark.md: its files are written as they stand there, its commands run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.equivalence.tiny import save_checkpoint
from tests.integration.test_pages import commands
from xtransplant import cli, jobs, pairing, record
from xtransplant.compose import compose
from xtransplant.config import Split
from xtransplant.grid import Grid
from xtransplant.types import XTransplantError

PAGE = "docs/own-benchmark.md"
TEXT = (Path(__file__).resolve().parents[2] / PAGE).read_text(encoding="utf-8")
# A file's name, then what it holds.
FILES = {
    name: content for name, content in re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```$", TEXT, re.MULTILINE | re.DOTALL)
}
YAML = {name: content for name, content in FILES.items() if name.endswith(".yaml")}
DOCUMENTS = {
    Path(name).stem: [json.loads(line) for line in content.splitlines()]
    for name, content in FILES.items()
    if name.endswith(".jsonl")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder, with every file of the page and a tiny model."""
    here = tmp_path_factory.mktemp("own")
    for name, content in FILES.items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    save_checkpoint("llama", here / "model")
    return here


def test_the_page_shows_all_of_it() -> None:
    assert len(re.findall("^```yaml", TEXT, re.MULTILINE)) == len(YAML) == 3
    assert sum(len(content.splitlines()) for content in YAML.values()) < 20
    assert all(isinstance(yaml.safe_load(content), dict) for content in YAML.values())
    assert {language: len(rows) for language, rows in DOCUMENTS.items()} == {"en": 6, "de": 6}
    # Both languages ask the same.
    of = {language: {row["id"]: row for row in rows} for language, rows in DOCUMENTS.items()}
    assert of["en"].keys() == of["de"].keys()
    assert all(of["de"][key]["label"] == row["label"] for key, row in of["en"].items())


def test_its_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    lines = [shlex.split(line)[1:] for line in commands(PAGE)]
    for arguments in lines:
        if arguments[0] not in ("list", "select"):
            arguments = [*arguments, "model=hf", "model.path=model", "model.name=tiny"]
        assert cli.main(arguments) == 0
        if arguments[0] == "list":
            assert capsys.readouterr().out == "riddles  Riddles with three answers (2 languages)\n"

    found = record.find_runs(["outputs/evaluate"])
    (chosen,) = [run for run in found if run.manifest["language_pair"] == "de-en"]
    assert chosen.manifest["condition"].startswith("overall") and chosen.manifest["tasks"]["riddles"]["documents"] == 2
    runs = {(run.manifest["condition"], *run.manifest["tasks"]): run for run in found if run is not chosen}
    prompts = {
        ("vanilla", "riddles"): "{}\n-",
        ("ffn 3>0", "riddles"): "{}\n-",
        ("vanilla", "riddles_de"): "Frage: {}\nAntwort:",
    }
    assert runs.keys() == prompts.keys()
    assert runs["ffn 3>0", "riddles"].manifest["counts"]["transplants"] == 6
    for (condition, task), prompt in prompts.items():
        run = runs[condition, task]
        facts = run.manifest["tasks"][task]
        assert (facts["aligned"], facts["documents"], facts["gold_equal"]) == (6, 6, 6)
        assert "acc,none" in run.results["results"][task]
        samples = (run.folder / f"samples_{task}.jsonl").read_text(encoding="utf-8").splitlines()
        for row, english, german in zip(map(json.loads, samples), DOCUMENTS["en"], DOCUMENTS["de"], strict=True):
            assert row["key"] == german["id"]
            assert row["arguments"][0][0] == prompt.format(german["question"])
            assert row["arguments"][0][1] == f" {german['choices'][0]}"
            assert row["source_prompts"] == [f"{english['question']}\n-"]

    (grid,) = Path("outputs/grid").glob("tiny-riddles-de-en-*/grid.npz")
    assert Grid.load(grid).scores[0].shape == (4, 4)


def test_a_language_without_data_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two languages of the same task are told apart by their files alone: a missing one must not go unnoticed."""
    monkeypatch.chdir(folder)
    line = ["evaluate", "--config-dir", "my-conf", "task=riddles", "model=hf", "model.path=model"]
    assert cli.main([*line, "language_pair=en-fr"]) == 2
    assert "task riddles has no such language" in capsys.readouterr().err
    assert cli.main([*line, "language_pair=en-fr", "task.languages.fr=fr"]) == 2
    assert "it has no file riddles/fr.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "riddles (de): 6 documents, sources from riddles (en)"),
        (["task.tasks=[riddles_de]", "task.source_tasks=[riddles]"], "riddles_de: 6 documents, sources from riddles"),
        (["language_pair=en-es"], "riddles (es): 5 documents, sources from riddles (en); 5 of the 6 documents of the "
                                  "source side have a counterpart"),
        (["language_pair=es-en", "task.unmatched=drop", "limit=2"], "riddles (en): 2 documents, sources from riddles "
                                  "(es); 5 of the 6 documents of the target side have a counterpart"),
    ],
)  # fmt: skip
def test_the_log_names_both_sides(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, overrides: list[str], said: str
) -> None:
    monkeypatch.chdir(folder)
    rows = [dict(row, question=f"¿{row['question']}") for row in DOCUMENTS["en"][1:]]
    Path("my-data/riddles/es.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    base = ["task=riddles", "language_pair=en-de", "task.languages.es=es"]
    given: Any = compose("evaluate", [*base, *overrides], "my-conf")
    caplog.set_level("INFO", "xtransplant")
    jobs.load_pairs(given)
    assert [each.message for each in caplog.records if each.name == "xtransplant.jobs"] == [said]


YAML_FILE, DATA_FILE = "my-tasks/riddles.yaml", "my-data/riddles/de.jsonl"


@pytest.mark.parametrize(
    ("file", "old", "new", "overrides", "said"),
    [
        (DATA_FILE, '{"id": "sea"', '{"id": "sea', [], f"{DATA_FILE}, line 3: not JSON: "),
        (DATA_FILE, '{"id": "red"', '[1]\n{"id": "red"', [], f"{DATA_FILE}, line 2: not a document. Write one a line"),
        (DATA_FILE, None, "\n", [], f"{DATA_FILE}: no documents in it."),
        (DATA_FILE, '"label": 0', '"label": 7', [], f"{DATA_FILE}, line 1: label: 7 is not the number of a choice."),
        (YAML_FILE, "{{question}}", "{{qestion}}", [],
         f"{YAML_FILE}: doc_to_text: the documents have no field qestion. Did you mean question? They have: id, q"),
        (YAML_FILE, "test_split: test", "test_split: tets", [],
         "the data has the split test, the task's test_split is tets. Give both the same name, in my-tasks/"),
        ("my-conf/task/riddles.yaml", "{test: ", "{train: ", [],
         "the data has the split train, the task's test_split is test."),
        (YAML_FILE, "doc_to_choice", "doc_to_choise", [],
         f"{YAML_FILE}, or what it includes: doc_to_choise: lm-eval has no such key. Did you mean doc_to_choice or "),
        (YAML_FILE, "output_type: m", "output_type m", [], f"{YAML_FILE} is not YAML, line 4: "),
        (YAML_FILE, "multiple_choice", "multiple_choise", [], "Mend its YAML, my-tasks/riddles.yaml, or its data, my"),
        (YAML_FILE, "target: label", "target: lable", [], "doc_to_target gives 'lable'"),
        (YAML_FILE, "", "", ["task.data_dir=null"],
         "Task riddles reads local files (dataset_path: json), and no folder is given (task.data_files: riddles/"),
        (YAML_FILE, "", "", ["task.data_files.test=riddles/en.jsonl"], "Is {lang} missing in task.data_files"),
    ],
)  # fmt: skip
def test_a_fault_is_shown_where_it_is(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    old: str | None,
    new: str,
    overrides: list[str],
    said: str,
) -> None:
    """And not looked for on the hub."""
    for name in ("my-conf", "my-data", "my-tasks"):
        shutil.copytree(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    path = tmp_path / file
    path.write_text(new if old is None else path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    given: Any = compose("evaluate", ["task=riddles", "language_pair=en-de", *overrides], "my-conf")
    with pytest.raises(XTransplantError) as fault:
        pairing.load(given.task, given.language_pair, Split.all, None)
    assert said in str(fault.value)
    assert "hub" not in str(fault.value)
