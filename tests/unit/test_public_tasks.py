"""The public benchmarks of tasks/public: scoring worked out by hand, both sources of rows, and the tasks' files."""

from __future__ import annotations

import csv
import json
import logging
import math
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from tasks.public import answers, public
from tests.hub import hub_repository
from xtransplant.config import LanguagePairConfig, TaskConfig
from xtransplant.families import find_tasks, task_names
from xtransplant.types import XTransplantError

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ROOT / "tasks" / "public"
FAMILIES = ("mkqa", "xquad", "blend", "culturalbench", "culturalbench_easy", "bmlama53", "pawsx", "xnli_prompted")

Documents = list[dict[str, Any]]


def conf(family: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "task" / f"{family}.yaml").read_text(encoding="utf-8"))
    return found


def table(name: str) -> dict[str, Any]:
    return tomllib.loads((PUBLIC / f"{name}.toml").read_text(encoding="utf-8"))


def documents(loaded: datasets.DatasetDict) -> Documents:
    return list(loaded["test"])


# --- scoring, worked out by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "output", "golds", "exact", "f1"),
    [
        ("en", "The Beatles", ["beatles"], 1.0, 1.0),
        ("en", "an answer ?? without stopwords", ["answer -- without, stopwords!!"], 1.0, 1.0),
        # Two of the three words, both of them right: precision 1, recall 2/3.
        ("en", "alternative answer", ["dummy answer one", "alternative answer two"], 0.0, 0.8),
        ("en", "a cat cat", ["cat dog"], 0.0, 0.5),  # a word counts as often as it stands in both
        ("en", "", ["anything"], 0.0, 0.0),
        ("es", "es manzana", ["es una manzana"], 1.0, 1.0),
        ("ar", "تفاحة", ["التفاحة"], 1.0, 1.0),
        ("hu", "ez egy alma", ["ez alma"], 1.0, 1.0),
        ("fr", "la pomme", ["pomme"], 1.0, 1.0),
        ("fr", "demain", ["main"], 1.0, 1.0),  # the script's French pattern takes beginnings of words
        ("de", "Der Hund", ["hund"], 1.0, 1.0),
        ("ko", "서울 시", ["서울시"], 0.0, 0.0),  # words, where a language has spaces
        ("ja", "東京 都", ["東京都"], 1.0, 1.0),  # characters, where it has none
        # Three of four characters given, three of five wanted.
        ("zh_cn", "苹果树上", ["苹果树下面"], 0.0, 2 * 3 / (4 + 5)),
        ("th", "1999", ["1998"], 0.0, 0.75),  # numbers are taken apart as well
    ],
)
def test_mkqa_overlap(language: str, output: str, golds: list[str], exact: float, f1: float) -> None:
    scores = answers.score_mkqa({"language": language, "answers": golds, "words": []}, [output])
    assert scores["exact_match"] == exact
    assert scores["f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("output", "golds", "words", "acc", "unparsed"),
    [
        (" It was Dave Edmunds.", ["Al", "dave edmunds"], [], 1.0, 0.0),
        ("\n\nDave\nEdmunds, or Dave Edmunds", ["Dave Edmunds"], [], 1.0, 0.0),  # the whole output, as in XQuAD
        ("1970s", ["1970"], [], 1.0, 0.0),
        ("Dave", ["Dave Edmunds"], [], 0.0, 0.0),
        ("No, he is not", [], ["no", "nein"], 1.0, 0.0),
        (" nein.", [], ["no", "nein"], 1.0, 0.0),
        ("I know nothing", [], ["no"], 0.0, 0.0),  # `no` stands in both words, and is said in neither
        ("Norway", [], ["no"], 0.0, 0.0),
        ("", ["x"], ["no"], 0.0, 1.0),
        (" \n ", ["x"], [], 0.0, 1.0),
    ],
)
def test_mkqa_containment(output: str, golds: list[str], words: list[str], acc: float, unparsed: float) -> None:
    scores = answers.score_mkqa({"language": "de", "answers": golds, "words": words}, [output])
    assert (scores["acc"], scores["unparsed"]) == (acc, unparsed)


def test_yes_and_no_are_read_where_no_space_follows() -> None:
    def acc(output: str, word: str) -> float:
        return answers.score_mkqa({"language": "zh_cn", "answers": [], "words": [word]}, [output])["acc"]

    assert (acc("是的，他是。", "是"), acc("不是", "是"), acc("不是", "不")) == (1.0, 0.0, 1.0)


def test_exact_match_and_f1_look_at_the_first_line() -> None:
    scores = answers.score_mkqa({"language": "en", "answers": ["Paris"], "words": []}, ["\n Paris.\nHuman: and"])
    assert scores == {"acc": 1.0, "exact_match": 1.0, "f1": 1.0, "unparsed": 0.0}


@pytest.mark.parametrize(
    ("output", "gold", "exact", "f1"),
    [
        (" The Broncos.", "Broncos", 1.0, 1.0),
        (" Denver Broncos", "the Broncos", 0.0, 2 / 3),
        ("野马队。", "野马队", 0.0, 0.0),  # a full-width stop is no ASCII punctuation
        ("die Broncos", "Broncos", 0.0, 2 / 3),  # English articles only, in every language
    ],
)
def test_xquad_overlap(output: str, gold: str, exact: float, f1: float) -> None:
    scores = answers.score_xquad({"answers": [gold]}, [output])
    assert scores["exact_match"] == exact
    assert scores["f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("output", "golds", "acc", "unparsed"),
    [
        (" They eat KIMCHI.", ["rice", "kimchi"], 1.0, 0.0),
        ("ＫＦＣ", ["kfc"], 1.0, 0.0),  # full width
        ("T-shirt", ["t shirt"], 1.0, 0.0),
        ("Straße", ["STRASSE"], 1.0, 0.0),
        ("soup\nQuestion: and kimchi?", ["kimchi"], 0.0, 0.0),  # the model's own next question
        ("strawberry", ["strawberries"], 0.0, 0.0),  # no lemmas
        ("anything", ["-"], 0.0, 0.0),
        ("\n", ["kimchi"], 0.0, 1.0),
    ],
)
def test_blend_containment(output: str, golds: list[str], acc: float, unparsed: float) -> None:
    assert answers.score_blend({"answers": golds}, [output]) == {"acc": acc, "unparsed": unparsed}


def test_a_question_is_right_when_all_of_its_statements_are() -> None:
    def judge(question: int, label: int, false: float, true: float) -> Any:
        doc = {"question_idx": question, "statements": 2, "label": label}
        scores = answers.score_culturalbench(doc, [(false, False), (true, True)])
        assert scores["acc"] == scores["question_acc"][2]
        return scores["question_acc"]

    right, wrong = judge(7, 1, -2.0, -1.0), judge(8, 1, -1.0, -2.0)
    assert (right[2], wrong[2], judge(8, 0, -1.0, -2.0)[2]) == (1.0, 0.0, 1.0)
    both_right, one_right = [right, judge(7, 0, -1.0, -2.0)], [wrong, judge(8, 0, -1.0, -2.0)]
    assert answers.question_accuracy([*both_right, *one_right]) == 0.5
    assert answers.question_accuracy([one_right[0], *both_right, one_right[1]]) == 0.5  # in any order
    assert answers.question_accuracy([*both_right, wrong]) == 1.0  # of the second, one is missing
    assert math.isnan(answers.question_accuracy([right]))


# --- from the hub, here as local folders that `datasets` prefers ------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where data sets of the hub are looked for first; no data folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def mkqa_row(number: int, **of: Sequence[tuple[str, str | None, list[str]]]) -> dict[str, Any]:
    """A row as the hub has it: kinds as numbers, and for each language a list of (kind, text, aliases)."""
    kinds = public.MKQA_KINDS
    return {
        "example_id": str(number),
        "queries": {code: f"{code} {{question}} {number}" for code in of},
        "answers": {
            code: [{"type": kinds.index(k), "entity": "Q1", "text": t, "aliases": a} for k, t, a in found]
            for code, found in of.items()
        },
    }


def test_mkqa_from_the_hub(hub: Path) -> None:
    rows = [
        mkqa_row(1, en=[("entity", "Beatles", ["Fab Four"])], zh_cn=[("entity", "披头士", [])]),
        mkqa_row(2, en=[("unanswerable", None, [])], zh_cn=[("unanswerable", None, [])]),
        mkqa_row(3, en=[("long_answer", None, [])], zh_cn=[("long_answer", None, [])]),
        mkqa_row(4, en=[("binary", "yes", [])], zh_cn=[("binary", "yes", [])]),
        mkqa_row(
            5,
            en=[("number", "3.0", ["three"]), ("date", "May 1", [])],
            zh_cn=[("number", "3", []), ("date", "五月", [])],
        ),
        mkqa_row(6, en=[("short_phrase", "red", [])], zh_cn=[("short_phrase", "", [])]),  # nothing in Chinese
    ]
    path = hub / "apple" / "mkqa" / "mkqa" / "train" / "0000.parquet"
    path.parent.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    english, chinese = documents(public.load_mkqa("en")), documents(public.load_mkqa("zh_cn"))
    assert [doc["example_id"] for doc in english] == [doc["example_id"] for doc in chinese] == ["1", "4", "5"]
    assert [doc["answers"] for doc in english] == [["Beatles", "Fab Four"], [], ["3.0", "three", "May 1"]]
    assert [doc["words"] for doc in english] == [[], ["yes"], []]
    assert chinese[1]["words"] == ["yes", "是"]
    assert english[0]["prompt"] == (
        "Human: Please answer this question as briefly as possible.\n\n"
        "Question: en {question} 1\n\nAssistant: My answer would be:"
    )


@pytest.mark.usefixtures("hub")
def test_xquad_from_the_hub() -> None:
    row = {"id": "q", "context": "Here {0}.", "question": "Who?", "answers": {"text": ["I"], "answer_start": [0]}}
    hub_repository("google/xquad", {("xquad.th", "validation"): [row]})
    assert documents(public.load_xquad("th")) == [
        {"id": "q", "prompt": "บริบท: Here {0}.\n\nคำถาม: Who?\n\nคำตอบ:", "answers": ["I"]}
    ]


def annotated(number: int, groups: Sequence[tuple[list[str], list[str]]], **unsure: int) -> dict[str, Any]:
    return {
        "ID": f"Al-en-{number:02}",
        "question": f"질문 {number}",
        "en_question": f"Question {number}",
        "annotations": [{"answers": own, "en_answers": english, "count": 2} for own, english in groups],
        "idks": {"idk": 0, "no-answer": 0, "not-applicable": 0} | unsure,
    }


def test_blend_from_the_hub(hub: Path) -> None:
    """The annotation files as they lie there, with a config over all countries and reasons that differ."""
    korea = [
        annotated(1, [(["밥", "쌀밥"], ["rice"]), (["김치"], ["kimchi", "rice"])]),
        annotated(2, [(["a"], ["a"])], **{"no-answer": 1, "not-applicable": 2}),
        annotated(3, [(["a"], ["a"])], idk=5),
        annotated(4, []),
        annotated(5, [(["비"], ["rain"])], idk=4, another=1),
        annotated(6, [(["비"], [" "])]),
    ]
    folder = hub / "uilab" / "BLEnD"
    (folder / "data" / "annotations_hf").mkdir(parents=True)
    configs = []
    for split, country, rows in (("KR", "South_Korea", korea), ("GB", "UK", [annotated(1, [(["tea"], ["tea"])])])):
        name = f"data/annotations_hf/{country}_data.json"
        (folder / name).write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
        configs.append({"split": split, "path": name})
    header = {"configs": [{"config_name": "annotations", "data_files": configs}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n", encoding="utf-8")
    own = documents(public.load_blend("ko", "South_Korea"))
    english = documents(public.load_blend("ko", "South_Korea", english=True))
    assert [doc["id"] for doc in own] == [doc["id"] for doc in english] == ["Al-en-01", "Al-en-05"]
    assert own[0] == {
        "id": "Al-en-01",
        "country": "South_Korea",
        "prompt": "질문: 질문 1\n답변:",
        "answers": ["밥", "쌀밥", "김치", "rice", "kimchi"],
    }
    assert (english[0]["prompt"], english[0]["answers"]) == ("Question: Question 1\nAnswer:", ["rice", "kimchi"])
    assert documents(public.load_blend("en", "UK"))[0]["answers"] == ["tea"]


def statement(number: int, question: int, option: str, answer: str) -> dict[str, Any]:
    return {
        "data_idx": number,
        "question_idx": question,
        "prompt_question": f"Q{question} {{x}}?",
        "prompt_option": option,
        "answer": answer,
        "country": "Peru",
    }


def culturalbench_repository(folder: Path, hard: Documents, easy: Documents) -> None:
    folder.mkdir(parents=True)
    configs = []
    for kind, rows in (("Hard", hard), ("Easy", easy)):
        with (folder / f"CulturalBench-{kind}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        files = [{"split": "test", "path": f"CulturalBench-{kind}.csv"}]
        configs.append({"config_name": f"CulturalBench-{kind}", "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")


def test_culturalbench_from_the_hub(hub: Path) -> None:
    options = (("None", "TRUE"), ("a", "FALSE"), ("b", "FALSE"), ("c", "FALSE"))
    hard = [statement(4 * q + n, q, *option) for q in (0, 1) for n, option in enumerate(options)]
    letters = {f"prompt_option_{letter}": f"option {letter}" for letter in "abcd"}
    easy = [{"data_idx": 0, "question_idx": q, "prompt_question": "Q?", **letters, "answer": "BD"[q]} for q in (0, 1)]
    culturalbench_repository(hub / "kellycyy" / "CulturalBench", hard, easy)
    docs = documents(public.load_culturalbench("en"))
    assert docs[0] == {
        "question_idx": 0,
        "data_idx": 0,
        "statements": 4,
        "split": "unseen",
        "prompt": "Question: Q0 {x}?\nProposed answer: None\nIs the proposed answer true or false? It is:",
        "label": 1,
        "choices": ["false", "true"],
    }
    assert [doc["label"] for doc in docs] == [1, 0, 0, 0] * 2
    assert all(len({doc["split"] for doc in docs[start : start + 4]}) == 1 for start in (0, 4))
    questions = documents(public.load_culturalbench("en", easy=True))
    assert [doc["label"] for doc in questions] == [1, 3]
    assert questions[0]["prompt"] == "Question: Q?\nA. option a\nB. option b\nC. option c\nD. option d\nAnswer:"
    assert [doc["split"] for doc in questions] == [docs[0]["split"], docs[4]["split"]]
    with pytest.raises(XTransplantError, match=r"'de'.* English only.* no culturalbench/de\.jsonl.*question_idx"):
        public.load_culturalbench("de")


def test_english_culturalbench_comes_from_the_hub_beside_a_translation(hub: Path) -> None:
    hard = [statement(n, 0, "abcd"[n], str(n == 2).upper()) for n in range(4)]
    culturalbench_repository(hub / "kellycyy" / "CulturalBench", hard, [{"question_idx": 0}])
    german = [row | {"prompt_question": "F?", "answer": n == 2} for n, row in enumerate(hard)]
    data_dir = local_files(hub / "mine", {"culturalbench/de.jsonl": german})
    sides = [documents(public.load_culturalbench(code, data_dir=str(data_dir))) for code in ("de", "en")]
    kept = [[{**doc, "prompt": "", "choices": []} for doc in side] for side in sides]
    assert kept[0] == kept[1]
    assert sides[0][2]["prompt"].startswith("Frage: F?\nVorgeschlagene Antwort: c\n")
    with pytest.raises(XTransplantError, match=r"no fr\.jsonl; it has: de\.jsonl"):
        public.load_culturalbench("fr", data_dir=str(data_dir))


@pytest.mark.usefixtures("hub")
def test_pawsx_from_the_hub() -> None:
    rows = [
        {"id": n, "sentence1": first, "sentence2": second, "label": label}
        for n, first, second, label in ((1, "a {0}", "b", 1), (2, "", "b", 0), (3, "a", "b", -1), (4, "a", "c", 0))
    ]
    hub_repository("google-research-datasets/paws-x", {("ja", "validation"): rows})
    docs = documents(public.load_pawsx("ja"))
    assert [(doc["id"], doc["label"], doc["choices"]) for doc in docs] == [
        (1, 1, ["いいえ", "はい"]),
        (4, 0, ["いいえ", "はい"]),
    ]
    assert docs[0]["prompt"].startswith("文1：a {0}\n文2：b\n質問：")


@pytest.mark.usefixtures("hub")
def test_xnli_from_the_hub() -> None:
    rows = [{"premise": "P {0}", "hypothesis": f"H{label}", "label": label} for label in (2, 0)]
    hub_repository("facebook/xnli", {("sw", "validation"): rows})
    docs = documents(public.load_xnli("sw"))
    assert [(doc["idx"], doc["label"]) for doc in docs] == [(0, 2), (1, 0)]
    assert "Kauli ya msingi: P {0}\nNadharia tete: H2\n\n(1) Inafuata\n" in docs[0]["prompt"]


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(XTransplantError, match=r"apple/mkqa.*Couldn't reach.*XTRANSPLANT_DATA"):
        public.load_mkqa("en")


# --- from local files -------------------------------------------------------------------------------------------------


def local_files(folder: Path, files: Mapping[str, Documents]) -> Path:
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_candidates_are_scored_with_what_follows_the_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"choices": ["A", "B"], "label": 1}
    files = {
        "bmlama53/en.jsonl": [{"id": 1, "prefix": "The capital is ", "suffix": ".", **more}],
        "bmlama53/ja.jsonl": [{"id": 1, "prefix": "首都は", "suffix": "です。", **more}],
        "bmlama53/ta.jsonl": [{"id": 1, "prefix": "", "suffix": " x", **more}],
    }
    monkeypatch.setenv("XTRANSPLANT_DATA", str(local_files(tmp_path, files)))
    found = {code: documents(public.load_bmlama53(code))[0] for code in ("en", "ja", "ta")}
    assert found["en"] == {"id": 1, "prompt": "The capital is", "choices": [" A.", " B."], "label": 1}
    assert (found["ja"]["prompt"], found["ja"]["choices"]) == ("首都は", ["Aです。", "Bです。"])
    # No prompt: task.empty_prompt says what becomes of it.
    assert (found["ta"]["prompt"], found["ta"]["choices"]) == ("", ["A x", "B x"])


@pytest.mark.parametrize("folder", [None, "here"])
def test_bmlama53_is_local_only(folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    with pytest.raises(XTransplantError, match=r"BMLAMA-53 in 'tr' .*no bmlama53/tr\.jsonl.*task\.data_dir=\.\.\."):
        public.load_bmlama53("tr", data_dir=folder and str(tmp_path))


def test_what_is_wrong_with_local_files(tmp_path: Path) -> None:
    rows: Documents = [{"example_id": 1, "question": "Q", "answer": ["a"]}, {"example_id": 2, "question": "Q"}]
    folder = local_files(
        tmp_path, {"mkqa/en.test.jsonl": rows, "mkqa/ja.test.jsonl": rows[:1], "mkqa/en.train.jsonl": []}
    )
    with pytest.raises(XTransplantError, match=r"en\.test\.jsonl, row 2: no answer\. Each row needs example_id, "):
        public.load_mkqa("en", data_dir=str(folder))
    with pytest.raises(XTransplantError, match=r"no de\.test\.jsonl; it has: en\.test\.jsonl, ja\.test\.jsonl\. Add"):
        public.load_mkqa("de", data_dir=str(folder))
    with pytest.raises(XTransplantError, match="there is no such folder"):
        public.load_mkqa("en", data_dir=str(tmp_path / "none"))
    assert documents(public.load_mkqa("ja", data_dir=str(folder)))[0]["example_id"] == "1"


# --- task files -------------------------------------------------------------------------------------------------------


@cache
def task_manager(data_dir: Path | None) -> TaskManager:
    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)  # that metadata reach the data function
    metadata = {"data_dir": None if data_dir is None else str(data_dir)}
    return TaskManager(include_path=str(PUBLIC), include_defaults=False, metadata=metadata)


def load_task(name: str, data_dir: Path) -> ConfigurableTask:
    return task_manager(data_dir).load(name)["tasks"][name]


def test_task_files_are_named_by_their_task() -> None:
    files = sorted(PUBLIC.glob("*/*.yaml"))
    assert {file.stem for file in files} == set(task_manager(None).all_subtasks)
    assert len(files) == 26 + 12 + 2 * 16 + 2 * 16 + 22 + 7 + 15


@pytest.mark.parametrize("family", FAMILIES)
def test_family_names_tasks_that_exist(family: str) -> None:
    config = conf(family)
    known = find_tasks()
    task = TaskConfig(**{key: config[key] for key in ("name", "tasks", "languages", "key")})
    task.source_tasks = config.get("source_tasks")
    assert config["name"] == family
    for code, own in config["languages"].items():
        assert isinstance(code, str) and isinstance(own, str), f"YAML reads {code!r}: {own!r} as no text"
        if family == "blend" and code == "en":
            continue  # one of the two sides is a country's
        for pair in (LanguagePairConfig("en", code), LanguagePairConfig(code, "en")):
            for name in task_names(task, pair)[0]:
                assert known[name].is_relative_to(PUBLIC), name


def test_families_cover_every_language_of_the_tables() -> None:
    def languages(family: str) -> set[str]:
        return set(conf(family)["languages"].values())

    assert languages("mkqa") == set(table("mkqa"))
    assert {"en", *"ar de en es fi fr he hu it ja ko nl no pt tr vi km ms ru sv".split()} <= set(table("mkqa"))
    assert languages("xquad") == set(table("xquad"))
    assert languages("culturalbench") == languages("culturalbench_easy") == set(table("culturalbench"))
    assert languages("pawsx") == set(table("pawsx"))
    assert languages("xnli_prompted") == set(table("../paper/xnli"))
    assert {code.partition("_")[0] for code in languages("blend")} == set(table("blend"))


def test_both_sides_of_a_blend_pair_are_of_one_country() -> None:
    for code in set(conf("blend")["languages"].values()) - {"en"}:
        own, english = (
            yaml.safe_load((PUBLIC / "blend" / f"blend_{name}.yaml").read_text(encoding="utf-8"))["dataset_kwargs"]
            for name in (f"en_{code}", f"{code}_en")
        )
        assert english == {**own, "english": True}
        assert own["language"] == code.partition("_")[0]


def test_prompts_end_where_the_answer_is_due() -> None:
    colons = (":", "：", "៖")
    for name in ("mkqa", "xquad", "blend", "pawsx"):
        for code, found in table(name).items():
            assert found["prompt"].endswith(colons), (name, code)
    for code, found in table("culturalbench").items():
        assert found["hard"].endswith(colons) and found["easy"].endswith(colons), code
        assert found["true"] != found["false"]


@pytest.mark.parametrize("family", ["culturalbench", "culturalbench_easy", "pawsx"])
def test_no_space_follows_a_full_width_colon(family: str) -> None:
    for code in conf(family)["languages"]:
        text = (PUBLIC / family / f"{family}_{code}.yaml").read_text(encoding="utf-8")
        assert (yaml.safe_load(text).get("target_delimiter") == "") == (code in ("zh", "ja"))


def test_xquad_has_the_frame_of_the_stock_task() -> None:
    stock = Path(lm_eval.__file__).parent / "tasks" / "xquad"
    for code, found in table("xquad").items():
        text = yaml.safe_load((stock / f"xquad_{code}.yaml").read_text(encoding="utf-8"))["doc_to_text"]
        assert found["prompt"] == text.replace("{{", "{").replace("}}", "}")


# --- on the real files ------------------------------------------------------------------------------------------------

KEYS = {"mkqa": "example_id", "bmlama53": "id", "pawsx": "id", "xnli_prompted": "idx", "xquad": "id"}


def real(family: str, data_dir: Path) -> dict[str, ConfigurableTask]:
    """The family's tasks in the languages that the folder has, by the task's own code."""
    template = conf(family)["tasks"][0]
    found = {}
    for code in conf(family)["languages"].values():
        try:
            found[code] = load_task(template.format(lang=code), data_dir)
        except XTransplantError as error:
            assert "; it has: " in str(error)
    return found


@pytest.mark.data
@pytest.mark.parametrize(
    ("family", "languages", "rows"),
    [("mkqa", 12, 1200), ("bmlama53", 22, 765), ("pawsx", 7, 1000), ("xnli_prompted", 15, 1200), ("xquad", 12, 593)],
)
def test_real_files_are_parallel(family: str, languages: int, rows: int, data_dir: Path) -> None:
    tasks = real(family, data_dir)
    assert len(tasks) == languages
    key = KEYS[family]
    english = list(tasks["en"].eval_docs)
    for task in tasks.values():
        docs = list(task.eval_docs)
        assert len(docs) == rows
        assert [(doc[key], doc.get("label")) for doc in docs] == [(doc[key], doc.get("label")) for doc in english]
        for doc in docs:
            assert task.doc_to_text(doc) == doc["prompt"] == doc["prompt"].strip() != ""
            if task.OUTPUT_TYPE == "multiple_choice":
                assert (
                    len(task.doc_to_choice(doc)) == len(tasks["en"].doc_to_choice(english[0])) or family == "bmlama53"
                )
            else:
                # What the task holds for right is right by all of its metrics.
                scores = task.process_results(doc, [f" {task.doc_to_target(doc)}\n"])
                assert set(scores) == set(task.aggregation())
                assert (scores["exact_match"], scores["f1"], scores["unparsed"]) == (1.0, 1.0, 0.0)
                assert scores.get("acc", 1.0) == 1.0


@pytest.mark.data
def test_yes_and_no_of_the_real_mkqa(data_dir: Path) -> None:
    docs = {code: documents(public.load_mkqa(code, data_dir=str(data_dir))) for code in ("en", "ja")}
    words = [doc["words"] for doc in docs["ja"] if doc["words"]]
    assert len(words) == sum(bool(doc["words"]) for doc in docs["en"]) > 30
    assert {tuple(each) for each in words} <= {("yes", "はい"), ("no", "いいえ"), ("yes", "はい", "no", "いいえ")}


@pytest.mark.data
def test_real_blend(data_dir: Path) -> None:
    files = sorted(path.stem for path in (data_dir / "blend").glob("*.jsonl"))
    assert len(files) == 16
    seen = set()
    for code in set(conf("blend")["languages"].values()) - {"en"}:
        own, english = (load_task(f"blend_{name}", data_dir) for name in (f"en_{code}", f"{code}_en"))
        docs, others = list(own.eval_docs), list(english.eval_docs)
        assert [doc["id"] for doc in docs] == [doc["id"] for doc in others]
        assert len(docs) == 383
        seen.add(f"{own.config.dataset_kwargs['language']}-{docs[0]['country']}")
        for task, side in ((own, docs), (english, others)):
            for doc in side:
                assert task.process_results(doc, [f" {task.doc_to_target(doc)}."]) == {"acc": 1.0, "unparsed": 0.0}
    assert seen == set(files)


@pytest.mark.data
def test_no_real_fact_begins_with_its_blank(data_dir: Path) -> None:
    for code in conf("bmlama53")["languages"]:
        text = (data_dir / f"bmlama53/{code}.jsonl").read_text(encoding="utf-8")
        raw = [json.loads(line) for line in text.splitlines()]
        for doc, row in zip(documents(public.load_bmlama53(code, data_dir=str(data_dir))), raw, strict=True):
            whole = row["prompt"].replace("<mask>", row["choices"][row["label"]])
            assert doc["prompt"] and doc["prompt"] + doc["choices"][doc["label"]] == whole
