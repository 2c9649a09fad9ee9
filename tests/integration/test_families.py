"""Every family of conf/task: its tasks exist, both sides load and align, and docs/tasks.md says so; what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import selectors
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import yaml
from lm_eval.tasks import TaskManager

from tests.hub import hub_repository
from xtransplant import cli, families, pairing
from xtransplant.compose import compose
from xtransplant.config import EmptyPrompt, LanguagePairConfig, Split, TaskConfig, Unmatched, config_hash
from xtransplant.types import XTransplantError

CONF = Path(str(files("xtransplant.conf"))) / "task"
FAMILIES = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(CONF.glob("*.yaml"))
    if path.stem != "custom"
}
# With these nothing is fetched: their data is part of the project.
EMBEDDED = [family for family in FAMILIES if family.startswith("cldr")]
# Loaded where XTRANSPLANT_DATA names a folder with the real data.
REAL = {
    "mkqa": "ja", "xquad": "zh", "blend": "ko", "bmlama53": "tr", "pawsx": "ja", "xnli_prompted": "sw",
    "mgsm": "sw", "xcopa": "sw", "klar": "tr", "paper_xnli": "sw", "paper_xnli_mc": "sw", "paper_xquad": "ar",
    "paper_xcopa": "sw", "paper_xcopa_mc": "sw", "paper_globalopinionqa": "de", "paper_globalopinionqa_mc": "de",
}  # fmt: skip


@cache
def known() -> dict[str, Path]:
    return families.find_tasks()


@cache
def harness(folder: Path) -> TaskManager:
    return TaskManager(include_path=str(folder), include_defaults=False)


def settings(name: str) -> dict[str, Any]:
    """A task's YAML with all that it includes; nothing is loaded."""
    found: dict[str, Any] = harness(known()[name].parent).task_index[name].cfg or {}
    return found


def names(family: str, source: str, target: str) -> list[str]:
    given = {key: value for key, value in FAMILIES[family].items() if key in ("tasks", "source_tasks", "languages")}
    task = TaskConfig(name=family, key="row", **given)
    return [name for both in families.task_names(task, LanguagePairConfig(source, target)) for name in both]


@cache
def pairs(family: str) -> list[tuple[str, str]]:
    """The language pairs, out of all, for which both sides exist."""
    languages = FAMILIES[family]["languages"]
    every = [(source, target) for source in languages for target in languages if source != target]
    return [pair for pair in every if set(names(family, *pair)) <= known().keys()]


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_tasks_in_every_language(family: str) -> None:
    languages = FAMILIES[family]["languages"]
    assert all(isinstance(text, str) for code in languages.items() for text in code), "YAML reads no, on, yes otherwise"
    assert {language for pair in pairs(family) for language in pair} == set(languages)
    assert "en" in languages
    assert FAMILIES[family]["name"] == family


# --- Both sides, on rows made by hand in the form of the hub's --------------------------------------------------------

Rows = list[dict[str, Any]]
Repositories = dict[str, dict[tuple[str, str], Rows]]
Row = Callable[[str], dict[str, Any]]  # what makes a document's row out of its text, e.g. "sw item 2"

LETTERS = "ABCD"


def number(text: str) -> int:
    return int(text.split()[-1])


def two_sides(
    repository: str, splits: str, english: str, other: str, row: Row, parallel_rows: bool = False
) -> Repositories:
    """Four documents in English and in the other language, which has three of them and one more.

    Args:
        splits: all of them have these documents.
        parallel_rows: the same four on both sides, in one order. Otherwise they are in another one.
    """
    texts = [f"{english} item {n}" for n in range(4)], [f"{other} item {n}" for n in (4, 3, 2, 1)]
    if parallel_rows:
        texts = texts[0], [text.replace(english, other, 1) for text in texts[0]]
    sides = {english: [row(text) for text in texts[0]], other: [row(text) for text in texts[1]]}
    return {repository: {(code, split): rows for code, rows in sides.items() for split in splits.split()}}


def lettered(text: str, *fields: str) -> dict[str, str]:
    return {field: f"{letter.lower()} of {text}" for field, letter in zip(fields, LETTERS, strict=False)}


OPTIONS = [f"option_{letter.lower()}" for letter in LETTERS]


def afrixnli() -> Repositories:
    return two_sides(
        "masakhane/afrixnli", "test validation", "eng", "swa",
        lambda text: {"premise": text, "hypothesis": "so", "label": number(text) % 3}, parallel_rows=True,
    )  # fmt: skip


def afrimgsm() -> Repositories:
    return two_sides(
        "masakhane/afrimgsm", "test", "eng", "swa",
        lambda text: {"question": text, "answer": None, "answer_number": 7 * number(text)}, parallel_rows=True,
    )  # fmt: skip


def afrimmlu() -> Repositories:
    return two_sides(
        "masakhane/afrimmlu", "test validation", "eng", "swa",
        lambda text: {"subject": "physics", "question": text, "choices": "['a', 'b', 'c', 'd']",
                      "answer": LETTERS[number(text) % 4]}, parallel_rows=True,
    )  # fmt: skip


def belebele() -> Repositories:
    return two_sides(
        "facebook/belebele", "test", "eng_Latn", "swh_Latn",
        lambda text: {"link": "https://example.org", "question_number": number(text), "flores_passage": "Once.",
                      "question": text, "correct_answer_num": str(number(text) % 4 + 1)}
        | {f"mc_answer{n}": f"{n}" for n in range(1, 5)},
    )  # fmt: skip


def mgsm() -> Repositories:
    return two_sides(
        "juletxara/mgsm", "test train", "en", "sw",
        lambda text: {"question": text, "answer": None, "answer_number": 7 * number(text)}, parallel_rows=True,
    )  # fmt: skip


def xstorycloze() -> Repositories:
    return two_sides(
        "juletxara/xstory_cloze", "eval train", "en", "sw",
        lambda text: {"story_id": f"story-{number(text)}", "sentence_quiz1": "a", "sentence_quiz2": "b",
                      "answer_right_ending": number(text) % 2 + 1} | {f"input_sentence_{n}": text for n in range(1, 5)},
    )  # fmt: skip


def mlqa() -> Repositories:
    return two_sides(
        "facebook/mlqa", "test validation", "mlqa.en.en", "mlqa.de.de",
        lambda text: {"id": f"q{number(text)}", "context": text, "question": "Who?",
                      "answers": {"text": ["she"], "answer_start": [0]}},
    )  # fmt: skip


def subject(text: str) -> dict[str, Any]:
    """As a row of Global-MMLU."""
    return {
        "sample_id": f"abstract_algebra/test/{number(text)}", "subject": "abstract_algebra",
        "subject_category": "Business", "question": text, **lettered(text, *OPTIONS),
        "answer": LETTERS[number(text) % 4],
    }  # fmt: skip


def global_mmlu() -> Repositories:
    english = two_sides("CohereLabs/Global-MMLU-Lite", "test dev", "en", "sw", subject)
    return english | two_sides("CohereForAI/Global-MMLU-Lite", "test dev", "en", "sw", subject)


def global_mmlu_full() -> Repositories:
    return two_sides("CohereForAI/Global-MMLU", "test dev", "en", "sw", subject)


def mmmlu() -> Repositories:
    """Subject names as they are in some of its files; the English examples are another split."""
    texts = [f"sw item {n}" for n in range(4)]
    swahili = [
        {"Unnamed: 0": n, "Question": text, **lettered(text, *LETTERS), "Answer": LETTERS[n],
         "Subject": "abstract_algebra_test.csv_sw-KE.csv"}
        for n, text in enumerate(texts)
    ]  # fmt: skip
    english = [
        {"question": text, "subject": "abstract_algebra", "choices": [*lettered(text, *LETTERS).values()], "answer": n}
        for n, text in enumerate(each.replace("sw", "en") for each in texts)
    ]
    return {
        "openai/MMMLU": {("SW_KE", "test"): swahili},
        "cais/mmlu": {("abstract_algebra", "test"): english, ("abstract_algebra", "dev"): english[:2]},
    }


def m_mmlu() -> Repositories:
    return two_sides(
        "alexandrainst/m_mmlu", "test train", "en", "de",
        lambda text: {"id": f"virology/test/{number(text)}", "instruction": text, **lettered(text, *OPTIONS),
                      "answer": LETTERS[number(text) % 4]},
    )  # fmt: skip


def m_arc() -> Repositories:
    return two_sides(
        "alexandrainst/m_arc", "test train", "en", "de",
        lambda text: {"id": f"ARC-Challenge/test/Mercury_{number(text)}", "instruction": text,
                      **lettered(text, *OPTIONS), "option_e": None, "answer": LETTERS[number(text) % 4]},
    )  # fmt: skip


def m_hellaswag() -> Repositories:
    return two_sides(
        "alexandrainst/m_hellaswag", "val", "en", "de",
        lambda text: {"id": f"hellaswag/validation/{number(text)}", "activity_label": "Cooking", "ctx_a": text,
                      "ctx_b": "then", "endings": [*"abcd"], "label": str(number(text) % 4)},
    )  # fmt: skip


def truthfulqa_multi() -> Repositories:
    return two_sides(
        "HiTZ/truthfulqa-multi", "validation train", "en", "es",
        lambda text: {"id": number(text), "question": text, "best_answer": "a",
                      "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}},
    )  # fmt: skip


def arc_challenge_mt() -> Repositories:
    made = two_sides(
        "LumiOpen/arc_challenge_mt", "test train", "ARC-Challenge", "de",
        lambda text: {"id": f"Mercury_{number(text)}", "question": text, "answerKey": LETTERS[number(text) % 4],
                      "choices": {"text": [*"abcd"], "label": [*LETTERS]}},
    )["LumiOpen/arc_challenge_mt"]  # fmt: skip
    sides = [{key: rows for key, rows in made.items() if key[0] == code} for code in ("ARC-Challenge", "de")]
    return dict(zip(("allenai/ai2_arc", "LumiOpen/arc_challenge_mt"), sides, strict=True))


def lambada(repository: str) -> Repositories:
    return two_sides(repository, "test", "en", "de", lambda text: {"text": f"{text} end"}, parallel_rows=True)


def global_piqa_parallel() -> Repositories:
    return two_sides(
        "mrlbenchmarks/global-piqa-parallel", "test", "eng_latn", "swh_latn",
        lambda text: {"example_id": f"p{number(text)}", "prompt": text, "label": number(text) % 4}
        | {f"solution{n}": f"{n}" for n in range(4)},
    )  # fmt: skip


def mmlu_prox(repository: str) -> Repositories:
    def row(text: str) -> dict[str, Any]:
        options = {f"option_{n}": f"{n}" if n < 4 else None for n in range(10)}
        return {"question_id": number(text), "question": text, **options, "answer": LETTERS[number(text) % 4],
                "category": "biology", "cot_content": "A: Let's think step by step."}  # fmt: skip

    made = two_sides(repository, "test", "en", "sw", row)
    for language in ("en", "sw"):
        made[repository][language, "validation"] = [row(f"{language} item {n}") for n in range(10, 15)]
    return made


def paper_xnli() -> Repositories:
    return two_sides(
        "facebook/xnli", "test", "en", "sw",
        lambda text: {"premise": text, "hypothesis": "so", "label": number(text) % 3}, parallel_rows=True,
    )  # fmt: skip


def paper_xquad() -> Repositories:
    return two_sides(
        "google/xquad", "validation", "xquad.en", "xquad.ar",
        lambda text: {"id": f"q{number(text)}", "context": text, "question": "Who?",
                      "answers": {"text": ["she"], "answer_start": [0]}}, parallel_rows=True,
    )  # fmt: skip


def xcopa() -> Repositories:
    made = two_sides(
        "cambridgeltl/xcopa", "test", "en", "sw",
        lambda text: {"premise": f"{text}.", "choice1": "One.", "choice2": "Another.", "question": "cause",
                      "label": number(text) % 2, "idx": number(text), "id": 501 + number(text)}, parallel_rows=True,
    )["cambridgeltl/xcopa"]  # fmt: skip
    english = made["en", "test"]
    development = [row | {"id": 401 + n} for n, row in enumerate(english)]
    return {
        "cambridgeltl/xcopa": {("sw", "test"): made["sw", "test"], ("sw", "validation"): made["sw", "test"]},
        "pkavumba/balanced-copa": {
            ("default", "test"): [{key: row[key] for key in row if key != "idx"} for row in english],
            ("default", "train"): [{key: row[key] for key in row if key != "idx"} for row in development],
        },
    }


# Family -> the language beside English, and its rows on the hub.
MADE: dict[str, tuple[str, Callable[[], Repositories]]] = {
    "afrimgsm": ("sw", afrimgsm),
    "afrimmlu": ("sw", afrimmlu),
    "afrixnli": ("sw", afrixnli),
    "arc_challenge_mt": ("de", arc_challenge_mt),
    "belebele": ("sw", belebele),
    "global_mmlu": ("sw", global_mmlu),
    "global_mmlu_full": ("sw", global_mmlu_full),
    "global_piqa_parallel": ("sw", global_piqa_parallel),
    "lambada_mt": ("de", lambda: lambada("EleutherAI/lambada_openai")),
    "lambada_mt_stablelm": ("de", lambda: lambada("EleutherAI/lambada_multilingual_stablelm")),
    "m_arc": ("de", m_arc),
    "m_hellaswag": ("de", m_hellaswag),
    "m_mmlu": ("de", m_mmlu),
    "mgsm": ("sw", mgsm),
    "mlqa": ("de", mlqa),
    "mmlu_prox": ("sw", lambda: mmlu_prox("li-lab/MMLU-ProX")),
    "mmlu_prox_lite": ("sw", lambda: mmlu_prox("li-lab/MMLU-ProX-Lite")),
    "mmmlu": ("sw", mmmlu),
    "paper_xcopa": ("sw", xcopa),
    "paper_xcopa_mc": ("sw", xcopa),
    "paper_xnli": ("sw", paper_xnli),
    "paper_xnli_mc": ("sw", paper_xnli),
    "paper_xquad": ("ar", paper_xquad),
    "truthfulqa_multi": ("es", truthfulqa_multi),
    "xcopa": ("sw", xcopa),
    "xstorycloze": ("sw", xstorycloze),
}
# They have all documents in each language, so that one without a counterpart is an error; above are four and three.
COMPLETE = {family for family, conf in FAMILIES.items() if conf.get("unmatched") != "drop"}


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder and cache, and no data folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("evaluate.load", _not_there)  # AfriMMLU's F1, for which it waits half a minute


def _not_there(*_: Any, **__: Any) -> None:
    raise FileNotFoundError("no hub")


def lay_out(repositories: Mapping[str, Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]]) -> None:
    shutil.rmtree("cache", ignore_errors=True)  # there, local files are told apart by their names only
    for name, splits in repositories.items():
        hub_repository(name, splits)


@cache
def first_task(family: str) -> TaskConfig:
    """The family cut to its first task: the others have the same data."""
    composed: Any = compose("evaluate", [f"task={family}", f"language_pair={'-'.join(pairs(family)[0])}"])
    task: TaskConfig = composed.task
    cut = None if task.source_tasks is None else task.source_tasks[:1]
    return dataclasses.replace(task, tasks=task.tasks[:1], source_tasks=cut)


def load(family: str, source: str, target: str, **values: Any) -> pairing.Pairing:
    task = dataclasses.replace(first_task(family), **values)
    return pairing.load(task, LanguagePairConfig(source, target), Split.all, None)[0]


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize("family", MADE)
def test_both_sides_load_and_align(family: str) -> None:
    other, rows = MADE[family]
    lay_out(rows())
    for source, target in [pair for pair in (("en", other), (other, "en")) if pair in pairs(family)]:
        found = load(family, source, target, unmatched=Unmatched.drop)
        assert len(found.rows) >= 3
        found.target.build_all_requests(samples=found.rows)
        for request in found.target.instances:
            # The examples, where the task has some, then the document.
            asked = [re.findall(r"item (\d+)", prompt) for prompt in (request.source_prompts[0], request.args[0])]
            assert asked[0] == asked[1] != []
            assert request.source_prompts[0] != request.args[0]
        if FAMILIES[family].get("gold") is not None:
            assert found.gold_compared == found.gold_equal == len(found.rows)
        if None in found.source_rows and family in COMPLETE:
            with pytest.raises(pairing.AlignmentError, match="1 of 4 documents have no counterpart"):
                load(family, source, target)


@pytest.mark.usefixtures("somewhere")
def test_mmmlu_is_compared_with_mmlu_by_the_tasks_own_answers() -> None:
    """A letter there, a number here. And the examples are from splits that are not parallel."""
    repositories = mmmlu()
    lay_out(repositories)
    shown = load("mmmlu", "en", "sw", num_fewshot=1)
    with pytest.raises(pairing.AlignmentError, match=r"from 2 documents, mmmlu_sw_ke_abstract_algebra from 4: not par"):
        shown.target.build_all_requests(samples=shown.rows)
    assert pairing.trivial_baseline(shown, first_task("mmmlu")) == 0.25
    english = repositories["cais/mmlu"]["abstract_algebra", "test"]
    shifted = [row | {"answer": (row["answer"] + 1) % 4} for row in english]
    lay_out({"cais/mmlu": {("abstract_algebra", "test"): shifted, ("abstract_algebra", "dev"): english[:2]}})
    with pytest.raises(pairing.AlignmentError, match="agrees in 0 of 4 documents") as fault:
        load("mmmlu", "en", "sw")
    assert "row:0: doc_to_target 0 against 1" in str(fault.value)
    lay_out({"cais/mmlu": {("abstract_algebra", "test"): english[:3], ("abstract_algebra", "dev"): english[:2]}})
    with pytest.raises(pairing.AlignmentError, match="not parallel by row"):
        load("mmmlu", "en", "sw")


def test_english_of_okapi_has_the_prompt_of_the_other_languages() -> None:
    """Apart from where its data is: what tasks/okapi adds differs from lm-eval's tasks in nothing."""
    for name in ("arc", "hellaswag"):
        ours, theirs = settings(f"{name}_en"), settings(f"{name}_de")
        for key in ("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "metric_list", "dataset_path"):
            assert ours[key] == theirs[key], (name, key)


@pytest.mark.data
@pytest.mark.parametrize("family", REAL)
def test_both_sides_of_the_real_data_align(family: str, data_dir: Path) -> None:
    pair = ("de", "en") if "globalopinionqa" in family else ("en", REAL[family])
    found = load(family, *pair, data_dir=str(data_dir))
    assert len(found.rows) == len(found.docs) == len(found.source_docs)


# --- No hub -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize(("name", "family"), [("xcopa_sw", "xcopa"), ("culturalbench_en", "culturalbench")])
def test_a_hub_that_takes_no_connection_is_asked_once(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    asked: list[tuple[str, int]] = []

    def takes_none(host: str, port: int) -> bool:
        asked.append((host, port))
        return False

    monkeypatch.setattr(families, "_takes_connections", takes_none)
    loader, said, first = families.Loader(first_task(family)), [], 0
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(XTransplantError, match=r"Couldn't reach '.*' on the Hub") as fault:
            loader.load(name, name[-2:])
        said.append(str(fault.value))
        first = first or len(asked)
    assert said[0] == said[1] == said[2]
    assert set(asked) == {("huggingface.co", 443)} and len(asked) == first
    assert time.monotonic() - started < 5
    assert "Retrying" not in capfd.readouterr().err
    # The client of the hub is as it was.
    assert families._refuse_unreachable not in huggingface_hub.get_session().event_hooks["request"]


def test_who_takes_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        families._takes_connections.cache_clear()
        assert families._takes_connections("127.0.0.1", port)
    families._takes_connections.cache_clear()
    assert not families._takes_connections("127.0.0.1", port)
    # An address that does not, beside one that does; and none that answers at all, as behind some firewalls.
    with socket.socket() as other, socket.create_server(("127.0.0.1", 0)) as server:
        other.bind(("127.0.0.1", 0))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", each.getsockname()) for each in (other, server)]
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
        assert families._takes_connections("two.example", 443)
        waited: list[float] = []

        def silence(_: selectors.DefaultSelector, seconds: float) -> list[None]:
            time.sleep(0.01)
            waited.append(seconds)
            return []

        monkeypatch.setattr(selectors.DefaultSelector, "select", silence)
        monkeypatch.setattr(families, "_CONNECT_SECONDS", 0.1)
        assert not families._takes_connections("none.example", 443)
        assert 1 < len(waited) <= 10
    families._takes_connections.cache_clear()


# --- Refused ---------------------------------------------------------------------------------------------------------

CUSTOM = ["task=custom", "task.key=row", "language_pair=en-fr"]


def refusal(*overrides: str) -> str:
    with pytest.raises(XTransplantError) as fault:
        compose("evaluate", overrides)
    return str(fault.value)


@pytest.mark.parametrize("entry", families.refused(), ids=lambda entry: entry.name)
def test_refused_by_name_and_through_its_tasks(entry: families.Refused) -> None:
    matched = sorted(name for name in known() if re.fullmatch(entry.tasks, name))
    assert matched, "no task of the harness has such a name"
    for name in (entry.name, matched[0]):
        assert refusal(f"task={name}") == f"task={name}: {entry.why} {entry.instead}"
    given = json.dumps([matched[0]])
    said = refusal(*CUSTOM, f"task.tasks={given}", f"task.source_tasks={given}")
    assert said == f"task.tasks: {matched[0]}: {entry.why} {entry.instead}"
    # What is named instead is there, and no family here uses what is refused.
    for family in re.findall(r"task=(\w+)", entry.instead):
        assert family in FAMILIES
    for family in FAMILIES:
        used = {name for pair in pairs(family)[:50] for name in names(family, *pair)}
        assert not used & set(matched)


def test_what_has_no_prompt_is_let_through_to_be_scored_without_a_transplant() -> None:
    for entry in families.refused():
        if entry.no_prompt:
            matched = [name for name in known() if re.fullmatch(entry.tasks, name)]
            assert {settings(name).get("doc_to_text") or "" for name in matched} == {""}, entry.name
    named = ["task.tasks=[xnli_fr]", "task.source_tasks=[xnli_en]"]
    said = refusal(*CUSTOM, *named)
    assert said.startswith("task.tasks: xnli_fr, xnli_en: ") and "task=paper_xnli_mc" in said
    passed: Any = compose("evaluate", [*CUSTOM, *named, "task.empty_prompt=vanilla"])
    assert passed.task.empty_prompt is EmptyPrompt.vanilla
    assert "XWinograd" in refusal(*CUSTOM, "task.tasks=[xwinograd_fr]", "task.source_tasks=[xwinograd_en]",
                                  "task.empty_prompt=vanilla")  # fmt: skip


def test_many_refused_tasks_are_one_fault() -> None:
    several = json.dumps([name for name in known() if name.startswith("include_base_44_german")])
    said = refusal(*CUSTOM, f"task.tasks={several}", f"task.source_tasks={several}")
    assert said.count("INCLUDE is not parallel") == 1 and ", …: " in said


def test_a_task_of_ones_own_may_have_a_refused_name(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: xwinograd_fr\ndataset_path: json\n", encoding="utf-8")
    own = ["task.tasks=[xwinograd_fr]", "task.source_tasks=[xwinograd_fr]", f"task.include_path=[{tmp_path}]"]
    assert compose("evaluate", [*CUSTOM, *own])


def test_a_sweep_names_the_refused_family_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "-m", "task=cldr,xwinograd"]) == 2
    assert capsys.readouterr().err.startswith("error: task=xwinograd: XWinograd is not parallel")


def test_how_many_documents_there_are_is_shown_only() -> None:
    one: Any = compose("evaluate", ["task=xcopa", "language_pair=en-sw"])
    other: Any = compose("evaluate", ["task=xcopa", "language_pair=en-sw", "task.documents=many"])
    assert config_hash(one) == config_hash(other)


# --- The page --------------------------------------------------------------------------------------------------------


def direction(family: str) -> str:
    possible = pairs(family)
    sources, targets = ({pair[side] for pair in possible} for side in (0, 1))
    if len(sources) == len(targets) == len(FAMILIES[family]["languages"]):
        return "any" if any("en" not in pair for pair in possible) else "from and into en"
    return f"from {', '.join(sorted(sources))}" if len(sources) < len(targets) else f"into {', '.join(sorted(targets))}"


def verified(family: str) -> str:
    if family in EMBEDDED or family in REAL:
        return "real data"
    return "rows made by hand" if family in MADE else "names"


def line_of(family: str) -> str:
    conf = FAMILIES[family]
    codes = list(conf["languages"])
    languages = f"{len(codes)}: {' '.join(codes)}" if len(codes) <= 20 else f"{len(codes)}, with en"
    shown = [settings(name) for name in names(family, *pairs(family)[0])[::2]]
    requests = sorted({str(each["output_type"]) for each in shown})
    shots = sorted({int(each.get("num_fewshot") or 0) for each in shown})
    assert requests == [conf["requests"]], "what `xtransplant list tasks` says"
    gold = conf.get("gold")
    cells = [
        f"[{family}](../conf/task/{family}.yaml)", languages, direction(family), f"`{conf['key']}`",
        "none" if gold is None else f"`{gold}`", ", ".join(requests), ", ".join(map(str, shots)),
        str(len(conf["tasks"])), conf.get("documents") or "unknown", verified(family),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def test_table_in_the_docs(project_root: Path) -> None:
    lines = [
        "# Families of parallel tasks",
        "",
        "Written by `tests/integration/test_families.py` from `conf/task/` and `tasks/refused.toml`",
        "(XTRANSPLANT_UPDATE_DOCS=1 writes it anew).",
        "",
        "`direction` says which language pairs there are: any two of the languages, or only from or into some. `key`",
        "is what aligns the documents of the two sides, `label` what has to agree between them in 99 of 100; where",
        "there is none, only the key speaks for the alignment. `doc_to_target` is the task's own answer. `tasks` is",
        "how many tasks of lm-eval a run has, `documents` how many there are in each language, as far as it is known:",
        "counted in the data, or said by its authors. `shots` are the task's own; `task.num_fewshot` changes them.",
        "",
        "`verified`: that both sides load and align was seen on real data, on a few rows made by hand in the form of",
        "the hub's, or only the names of the tasks were looked up. Keys and labels are compared again on every run.",
        "",
        "| family | languages | direction | key | label | requests | shots | tasks | documents | verified |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(line_of, FAMILIES),
        "",
        "Any other two parallel tasks: `task=custom`, or [a file of your own](own-benchmark.md).",
        "",
        "## What is refused",
        "",
        "By name or through one of their tasks, before anything is loaded. Those marked * have no prompt but are",
        "parallel: with `task.empty_prompt=vanilla` they are scored without a transplant.",
        "",
        "| family | why | instead |",
        "| --- | --- | --- |",
        *(f"| {each.name}{' *' * each.no_prompt} | {each.why} | {each.instead} |" for each in families.refused()),
    ]
    text = "\n".join(lines) + "\n"
    page = project_root / "docs" / "tasks.md"
    if os.environ.get("XTRANSPLANT_UPDATE_DOCS"):
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text
    assert len(FAMILIES) >= 20
