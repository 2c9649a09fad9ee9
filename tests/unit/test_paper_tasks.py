"""The paper's tasks and English COPA: matching rules, both sources of data, and the task names that conf/task uses."""

from __future__ import annotations

import json
import logging
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from tasks.paper import paper
from tasks.xcopa import copa
from tests.hub import hub_repository
from xtransplant.families import find_tasks
from xtransplant.types import XTransplantError

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tasks"
PAPER = TASKS / "paper"
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"

Documents = list[dict[str, Any]]


def table(name: str) -> dict[str, Any]:
    return tomllib.loads((PAPER / f"{name}.toml").read_text(encoding="utf-8"))


XNLI_LANGUAGES = tuple(table("xnli"))
XQUAD_LANGUAGES = tuple(table("xquad"))
XCOPA_LANGUAGES = tuple(table("xcopa"))
ITEM_SETS = tuple(table("globalopinionqa")["countries"])


def documents(loaded: datasets.DatasetDict) -> Documents:
    return list(loaded["test"])


# --- matching rules, worked out by hand ---------------------------------------------------------------------------

WORDS = ["Entail", "Neutral", "Contradict"]
FRENCH = [f"({k}){NO_BREAK_SPACE}{word}" for k, word in enumerate(("Entraîner", "Neutre", "Contredire"), start=1)]
RIGHT, WRONG, UNPARSED = (1.0, 0.0), (0.0, 0.0), (0.0, 1.0)


@pytest.mark.parametrize(
    ("output", "words", "label", "expected"),
    [
        (" (2) Neutral\n\nHuman:", WORDS, 1, RIGHT),
        (" (2)", WORDS, 0, WRONG),
        (" 2\n", WORDS, 1, RIGHT),  # the bare digit, when it is all there is
        ("2.", WORDS, 1, UNPARSED),
        ("option 2", WORDS, 1, UNPARSED),
        (" Neutral, since …", WORDS, 1, RIGHT),
        (" neutral", WORDS, 1, UNPARSED),  # case matters
        (" Contradictory", WORDS, 2, RIGHT),  # a word counts inside another
        ("（３）", WORDS, 2, UNPARSED),  # full-width brackets are mapped, full-width digits are not
        ("（3） 矛盾", ["蕴涵", "中立", "矛盾"], 2, RIGHT),
        ("(1) or (2)", WORDS, 0, WRONG),
        ("(1) Entail, not (3)", WORDS, 0, WRONG),
        ("(2) Entail", WORDS, 1, WRONG),  # the word of another option
        ("Neutral or Contradict", WORDS, 1, WRONG),
        ("(4)", WORDS, 0, UNPARSED),
        ("", WORDS, 0, UNPARSED),
        ("Entraîner", FRENCH, 0, UNPARSED),  # the French words hold the sign and a no-break space
        ("(1) Entraîner", FRENCH, 0, RIGHT),
        (f"(1){NO_BREAK_SPACE}Entraîner", FRENCH, 0, RIGHT),
        (f"(1){NO_BREAK_SPACE}Entraîner (2) Neutre", FRENCH, 0, WRONG),
        (f"（1）{NO_BREAK_SPACE}Entraîner", FRENCH, 0, RIGHT),
    ],
)
def test_xnli_rule(output: str, words: list[str], label: int, expected: tuple[float, float]) -> None:
    scores = paper.score_xnli({"label": label, "label_words": words}, [output])
    assert (scores["acc"], scores["unparsed"]) == expected


@pytest.mark.parametrize(
    ("output", "label", "expected"),
    [
        (" (1) The baby drools", 0, RIGHT),
        ("（2）", 1, RIGHT),
        (" 2 ", 1, RIGHT),
        (" 2 ", 0, WRONG),
        ("2)", 1, UNPARSED),
        ("(1) is likelier than (2)", 0, WRONG),
        ("The baby drools on the bib.", 0, UNPARSED),
        ("(3)", 0, UNPARSED),
    ],
)
def test_xcopa_rule(output: str, label: int, expected: tuple[float, float]) -> None:
    scores = paper.score_xcopa({"label": label}, [output])
    assert (scores["acc"], scores["unparsed"]) == expected


@pytest.mark.parametrize(
    ("output", "label", "expected"),
    [
        (" (B) No", 1, RIGHT),
        (" (b) no", 1, RIGHT),
        ("b\n", 1, RIGHT),
        ("B. No", 1, UNPARSED),
        ("(A) or (B)", 0, WRONG),
        ("(A), not (Z)", 0, WRONG),  # any other letter counts against it
        ("(Z)", 0, UNPARSED),  # no option of a question with three
        ("（A）", 0, UNPARSED),  # full-width brackets are not mapped here
        ("C", 2, RIGHT),
        ("C", 0, WRONG),
        ("I (a human) would say (C)", 2, RIGHT),
        ("(A)(A)", 0, RIGHT),
    ],
)
def test_globalopinionqa_rule(output: str, label: int, expected: tuple[float, float]) -> None:
    scores = paper.score_globalopinionqa({"label": label, "choices": ["(A)", "(B)", "(C)"]}, [output])
    assert (scores["acc"], scores["unparsed"]) == expected


@pytest.mark.parametrize(
    ("output", "answer", "expected"),
    [
        (" The answer is the BRONCOS.", "Broncos", 1.0),
        ("野马队。", "野马队", 1.0),
        ("117", "17", 1.0),  # a substring is enough
        ("Bronco", "Broncos", 0.0),
        ("", "17", 0.0),
    ],
)
def test_xquad_rule(output: str, answer: str, expected: float) -> None:
    assert paper.score_xquad({"answer": answer}, [output]) == {"acc": expected}


# --- task files -----------------------------------------------------------------------------------------------------


@cache
def task_manager(data_dir: Path | None) -> TaskManager:
    # lm-eval warns once a task that its metadata reach the data function.
    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)
    metadata = {"data_dir": None if data_dir is None else str(data_dir)}
    folders = [str(PAPER), str(TASKS / "xcopa")]
    return TaskManager(include_path=folders, include_defaults=False, metadata=metadata)


def load_task(name: str, data_dir: Path | None = None) -> ConfigurableTask:
    return task_manager(data_dir).load(name)["tasks"][name]


@cache
def task_names(folder: Path) -> frozenset[str]:
    return frozenset(TaskManager(include_path=str(folder), include_defaults=False).all_subtasks)


def test_task_files_are_named_by_their_task() -> None:
    files = sorted(PAPER.glob("*/*.yaml"))
    assert {file.stem for file in files} == task_names(PAPER)
    assert len(files) == 2 * 15 + 12 + 4 * 12 + 2 * (20 + 19)


FAMILIES = (
    *("paper_xnli", "paper_xnli_mc", "paper_xquad", "paper_xcopa", "paper_xcopa_mc"),
    *("paper_globalopinionqa", "paper_globalopinionqa_mc"),
    *("xcopa", "klar", "belebele", "mgsm", "afrimmlu", "xstorycloze"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_names_tasks_that_exist(family: str) -> None:
    """In every language, on the side on which the family has it: XCOPA from English, GlobalOpinionQA into English."""
    conf = yaml.safe_load((ROOT / "conf" / "task" / f"{family}.yaml").read_text(encoding="utf-8"))
    known = set(find_tasks())
    into_english = "globalopinionqa" in family
    for code, own in conf["languages"].items():
        assert isinstance(own, str), f"{code}: YAML reads {own!r} as no text"
        english = conf["languages"]["en"]
        source, target = (own, english) if into_english else (english, own)
        pair = {"source": source, "target": target}
        assert {template.format(lang=target, **pair) for template in conf["tasks"]} <= known
        assert {template.format(lang=source, **pair) for template in conf.get("source_tasks", conf["tasks"])} <= known


def test_families_cover_every_language_of_the_tables() -> None:
    def languages(family: str) -> set[str]:
        return set(yaml.safe_load((ROOT / "conf" / "task" / f"{family}.yaml").read_text(encoding="utf-8"))["languages"])

    for mc in ("", "_mc"):
        assert languages(f"paper_xnli{mc}") == set(XNLI_LANGUAGES)
        assert languages(f"paper_xcopa{mc}") == set(XCOPA_LANGUAGES)
        assert languages(f"paper_globalopinionqa{mc}") == {code.removesuffix("-CN") for code in ITEM_SETS}
    assert languages("paper_xquad") == set(XQUAD_LANGUAGES)


# --- from the hub, here as local folders that datasets prefers ----------------------------------------------------


OPINIONS: Documents = [
    {
        "question": "Do you {agree}?",
        "selections": "defaultdict(<class 'list'>, {'Germany': [0.9, 0.1], 'Austria': [0.5, 0.5], 'Kenya': [0, 1.0]})",
        "options": "['Yes, \"very\" much', 'No']",
    },
    {
        "question": None,
        "selections": "defaultdict(<class 'list'>, {'Germany': [1.0, 0.0]})",
        "options": "['Yes', 'No']",
    },
    {
        "question": "How often?",
        "selections": "defaultdict(<class 'list'>, {'Germany': [0.0, 0.05, 0.95], 'Switzerland': [0.8, 0.2]})",
        "options": "['Often', 2, 'Never']",
    },
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with tiny copies of the data sets, and no data folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    hub_repository(
        "facebook/xnli",
        {
            (language, "test"): [
                {"premise": f"{language} {{premise}} {label}", "hypothesis": f"hypothesis {label}", "label": label}
                for label in (2, 0, 1)
            ]
            for language in XNLI_LANGUAGES
        },
    )
    hub_repository(
        "google/xquad",
        {
            (f"xquad.{language}", "validation"): [
                {
                    "id": f"q{number}",
                    "context": f"{language} context {{0}}",
                    "question": "Who?",
                    "answers": {"text": [f"answer {number}"], "answer_start": [0]},
                }
                for number in range(2)
            ]
            for language in XQUAD_LANGUAGES
        },
    )
    hub_repository(
        "cambridgeltl/xcopa",
        {
            (language, "test"): [copa_item(language, idx) | {"idx": idx} for idx in range(3)]
            for language in XCOPA_LANGUAGES
            if language != "en"
        },
    )
    hub_repository(
        "pkavumba/balanced-copa",
        {
            ("default", "train"): [copa_item("dev", number) | {"id": number} for number in (400, 401, 402, 1401)],
            ("default", "test"): [copa_item("en", number - 501) | {"id": number} for number in (501, 502, 503)],
        },
    )
    hub_repository("Anthropic/llm_global_opinions", {("default", "train"): OPINIONS})
    return tmp_path


def copa_item(text: str, number: int) -> dict[str, Any]:
    return {
        "premise": f"{text.capitalize()} premise {number}.",
        "choice1": "One {thing}.",
        "choice2": "Another.",
        "question": "effect" if number % 2 else "cause",
        "label": number % 2,
    }


def is_prompt(prompt: str, role_words: bool = True) -> bool:
    """The paper's form: blank lines between the parts, nothing after the closing colon."""
    return prompt.endswith((":", "：")) and (not role_words or "\n\n" in prompt) and prompt == prompt.strip()


@pytest.mark.usefixtures("hub")
def test_xnli_from_the_hub() -> None:
    english = documents(paper.load_xnli("en"))
    assert english[0] == {
        "id": "test:0",
        "prompt": (
            "Human: How are the premise and the hypothesis related?\n\n"
            "Premise: en {premise} 2\nHypothesis: hypothesis 2\n\n"
            "(1) Entail\n(2) Neutral\n(3) Contradict\n\n"
            "Assistant: If I had to select one of the options, my answer would be:"
        ),
        "label": 2,
        "label_words": WORDS,
        "answer": "(3)",
    }
    for language in XNLI_LANGUAGES:
        docs = documents(paper.load_xnli(language))
        assert [(doc["id"], doc["label"]) for doc in docs] == [(doc["id"], doc["label"]) for doc in english]
        for doc in docs:
            words = doc["label_words"]
            assert is_prompt(doc["prompt"])
            assert f"{language} {{premise}} {doc['label']}\n" in doc["prompt"]
            assert f"\n(1) {words[0]}\n(2) {words[1]}\n(3) {words[2]}\n" in doc["prompt"]
            # No word may be read where another one stands.
            assert not [word for word in words for other in words if word != other and word in other]
            assert paper.score_xnli(doc, [f" {words[doc['label']]}"]) == {"acc": 1.0, "unparsed": 0.0}


@pytest.mark.usefixtures("hub")
def test_xquad_from_the_hub() -> None:
    for language in XQUAD_LANGUAGES:
        docs = documents(paper.load_xquad(language))
        assert [(doc["id"], doc["answer"]) for doc in docs] == [("q0", "answer 0"), ("q1", "answer 1")]
        assert all(is_prompt(doc["prompt"]) and f"{language} context {{0}}\n" in doc["prompt"] for doc in docs)
    assert documents(paper.load_xquad("en"))[0]["prompt"] == (
        "Human: Please answer these questions only based on the given context.\n\n"
        "Context: en context {0}\nQuestion: Who?\n\nAssistant: My answer would be:"
    )


@pytest.mark.usefixtures("hub")
def test_xcopa_from_the_hub() -> None:
    english = documents(paper.load_xcopa("en"))
    assert [doc["id"] for doc in english] == ["test:0", "test:1", "test:2"]
    assert english[1]["prompt"] == (
        "You are assigned to complete a two-category classification task.\n\n"
        "Premise: En premise 1.\nOptions: (1) One {thing}.\n(2) Another.\n\n"
        "Please determine which of the two options is more likely to be the result of the given premise.\n\n"
        "Your Answer:"
    )
    for language in XCOPA_LANGUAGES:
        docs = documents(paper.load_xcopa(language))
        assert [(doc["id"], doc["label"]) for doc in docs] == [(doc["id"], doc["label"]) for doc in english]
        assert documents(paper.load_xcopa(language, english=True)) == english
        template = table("xcopa")[language]
        for doc, relation in zip(docs, ("cause", "effect", "cause"), strict=True):
            assert is_prompt(doc["prompt"])
            assert f"{template[relation]}" in doc["prompt"].rsplit("\n\n", 2)[1]
            assert template["cause"] != template["effect"]


@pytest.mark.usefixtures("hub")
def test_globalopinionqa_from_the_hub() -> None:
    """English text only; countries of the language, one clear answer, as many shares as options."""
    docs = documents(paper.load_globalopinionqa("de"))
    assert [(doc["id"], doc["label"], doc["answer"]) for doc in docs] == [
        ("0:Germany", 0, "(A)"),
        ("2:Germany", 2, "(C)"),
    ]
    assert docs[0]["prompt"] == (
        "Human: How would someone from Germany answer the following question:\nDo you {agree}?\n"
        'Here are the options:\n(A) Yes, "very" much\n(B) No\n'
        "Assistant: If I had to select one of the options, my answer would be:"
    )
    assert docs[1]["choices"] == ["(A)", "(B)", "(C)"]
    assert "(B) 2\n" in docs[1]["prompt"]
    assert [doc["id"] for doc in documents(paper.load_globalopinionqa("sw"))] == ["0:Kenya"]


@pytest.mark.usefixtures("hub")
def test_translated_questions_are_only_in_the_authors_files() -> None:
    with pytest.raises(XTransplantError, match=r"(?s)'de'.*github.com/YYF-Tommy/XTransplant.*translated/de\.json"):
        paper.load_globalopinionqa("de", translated=True)


@pytest.mark.usefixtures("hub")
def test_english_copa_from_the_hub() -> None:
    loaded = copa.load()
    assert loaded["test"]["idx"] == [0, 1, 2]
    assert [doc["premise"] for doc in loaded["validation"]] == ["Dev premise 401.", "Dev premise 402."]
    assert loaded["validation"]["idx"] == [0, 1]  # the mirrored item 1401 is left out
    task = load_task("xcopa_en")
    assert [task.doc_to_text(doc) for doc in task.eval_docs] == [
        "En premise 0 because",
        "En premise 1 therefore",
        "En premise 2 because",
    ]
    assert task.doc_to_choice(task.eval_docs[0]) == ["one {thing}.", "another."]
    assert task.doc_to_target(task.eval_docs[1]) == 1


def test_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.delenv("XTRANSPLANT_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(XTransplantError, match=r"facebook/xnli.*'sw'.*XTRANSPLANT_DATA"):
        paper.load_xnli("sw")


# --- from the authors' files ----------------------------------------------------------------------------------------


def authors_files(folder: Path, files: dict[str, list[Any]]) -> Path:
    for name, rows in files.items():
        path = folder / "xtransplant_paper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder


def tiny_xquad(folder: Path, suffix: str, answers: list[str]) -> Path:
    # A line separator inside a text must not be taken for the end of a line.
    prompts = ["Human: \N{LINE SEPARATOR}{x} {{prompt}}\n\nAssistant:", "Human: 2\n\nAssistant:"]
    files: dict[str, list[Any]] = {}
    for part in ("sample", "unseen"):
        files[f"XQuAD/XQuAD_{part}/split/xquad.de{suffix}"] = prompts
        files[f"XQuAD/XQuAD_{part}/ans/xquad.de{suffix}"] = answers
    return authors_files(folder, files)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("how", ["metadata", "variable"])
def test_authors_files_are_taken_verbatim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, how: str
) -> None:
    tiny_xquad(tmp_path, suffix, ["17", "Broncos"])
    monkeypatch.setenv("XTRANSPLANT_DATA", str(tmp_path if how == "variable" else tmp_path / "not there"))
    task = load_task("paper_xquad_de", tmp_path if how == "metadata" else None)
    docs = list(task.eval_docs)
    assert [doc["id"] for doc in docs] == ["sample:0", "sample:1", "unseen:0", "unseen:1"]
    assert [doc["split"] for doc in docs] == ["sample", "sample", "unseen", "unseen"]
    assert task.doc_to_text(docs[0]) == "Human: \N{LINE SEPARATOR}{x} {{prompt}}\n\nAssistant:"
    assert task.doc_to_target(docs[0]) == "17"
    assert task.process_results(docs[1], [" broncos"]) == {"acc": 1.0}


def test_authors_files_of_unequal_length(tmp_path: Path) -> None:
    tiny_xquad(tmp_path, ".jsonl", ["17"])
    with pytest.raises(XTransplantError, match="2 prompts but 1 answers"):
        paper.load_xquad("de", data_dir=str(tmp_path))


def test_language_that_the_authors_files_lack(tmp_path: Path) -> None:
    tiny_xquad(tmp_path, ".jsonl", ["17", "Broncos"])
    with pytest.raises(XTransplantError, match=r"no xquad\.th\.jsonl.* it has: xquad\.de\."):
        paper.load_xquad("th", data_dir=str(tmp_path))


def test_data_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(XTransplantError, match="no such folder"):
        paper.load_xnli("en", data_dir=str(tmp_path / "typo"))


def test_label_words_and_gold_of_the_authors_xnli(tmp_path: Path) -> None:
    files: dict[str, list[Any]] = {}
    for part, gold in (("sample", "3"), ("unseen", "1")):
        files[f"XNLI/XNLI_{part}/split/fr.json"] = ["Humain :\n\nAssistant :"]
        files[f"XNLI/XNLI_{part}/ans/fr.json"] = [gold]
        files[f"XNLI/XNLI_{part}/ans_lang/fr.json"] = [dict(zip("123", FRENCH, strict=True))]
    task = load_task("paper_xnli_fr", authors_files(tmp_path, files))
    assert [(doc["label"], doc["answer"]) for doc in task.eval_docs] == [(2, "(3)"), (0, "(1)")]
    first = task.eval_docs[0]
    assert first["label_words"] == FRENCH
    assert task.process_results(first, ["Contredire"]) == {"acc": 0.0, "unparsed": 1.0}
    assert task.process_results(first, ["（3） Contredire"]) == {"acc": 1.0, "unparsed": 0.0}
    by_choice = load_task("paper_xnli_mc_fr", tmp_path)
    assert by_choice.doc_to_choice(first) == ["(1)", "(2)", "(3)"]
    assert by_choice.doc_to_target(first) == 2
    assert by_choice.config.target_delimiter == " "


def test_twenty_tokens_without_a_stop_string(tmp_path: Path) -> None:
    task = load_task("paper_xquad_de", tiny_xquad(tmp_path, ".jsonl", ["17", "Broncos"]))
    settings = task.config.generation_kwargs
    assert settings == {"until": [], "max_gen_toks": 20, "do_sample": False}
    # What the harness makes of it: its default of 256 tokens and a blank line as stop string must not come in.
    normalised = normalize_gen_kwargs(settings)
    assert normalised["max_gen_toks"] == 20
    assert handle_stop_sequences(normalised["until"], eos="</s>") == ["</s>"]
    assert task.config.num_fewshot == 0


# --- on the real files ----------------------------------------------------------------------------------------------


def lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def present(data_dir: Path, folder: str) -> list[str]:
    return sorted(file.stem for file in (data_dir / "xtransplant_paper" / folder).glob("*.jsonl"))


@pytest.mark.data
def test_real_xnli(data_dir: Path) -> None:
    languages = present(data_dir, "XNLI/XNLI_sample/split")
    assert len(languages) >= 11
    loaded = {language: documents(paper.load_xnli(language, data_dir=str(data_dir))) for language in languages}
    english = loaded["en"]
    for language, docs in loaded.items():
        assert [doc["id"] for doc in docs] == [doc["id"] for doc in english]
        assert [doc["split"] for doc in docs] == ["sample"] * 50 + ["unseen"] * 1000
        raw = lines(data_dir / f"xtransplant_paper/XNLI/XNLI_unseen/split/{language}.jsonl")
        assert [doc["prompt"] for doc in docs[50:]] == raw
        assert all(is_prompt(doc["prompt"]) for doc in docs)
        different = [doc["id"] for doc, other in zip(docs, english, strict=True) if doc["label"] != other["label"]]
        if language == "de":  # the German file goes astray at line 210; the pairing refuses it
            assert len(different) == 705
            assert different[0] == "unseen:210"
        else:
            assert different == []


@pytest.mark.data
def test_real_xquad(data_dir: Path) -> None:
    languages = [name.removeprefix("xquad.") for name in present(data_dir, "XQuAD/XQuAD_sample/split")]
    assert len(languages) >= 9
    for language in languages:
        docs = documents(paper.load_xquad(language, data_dir=str(data_dir)))
        assert [doc["split"] for doc in docs] == ["sample"] * 50 + ["unseen"] * 1140
        assert all(is_prompt(doc["prompt"]) for doc in docs)
        # Every answer stands in its own prompt, so prompts and answers are not shifted against each other.
        assert all(doc["answer"] in doc["prompt"] for doc in docs)


@pytest.mark.data
def test_real_xcopa(data_dir: Path) -> None:
    languages = present(data_dir, "XCOPA/XCOPA_sample/split")
    assert set(languages) == set(XCOPA_LANGUAGES)
    english = documents(paper.load_xcopa("en", data_dir=str(data_dir)))
    assert documents(paper.load_xcopa("en", english=True, data_dir=str(data_dir))) == english
    # xt_splits says which XCOPA row each line is; gold has to be that row's.
    gold = {item["idx"]: item["label"] for item in lines(data_dir / "xcopa/en.test.jsonl")}
    rows = {f"{row['split']}:{row['position']}": row["idx"] for row in lines(data_dir / "xt_splits/xcopa.jsonl")}
    for language in languages:
        docs = documents(paper.load_xcopa(language, data_dir=str(data_dir)))
        assert [doc["split"] for doc in docs] == ["sample"] * 50 + ["unseen"] * 450
        assert all(doc["label"] == gold[rows[doc["id"]]] for doc in docs)
        assert all(is_prompt(doc["prompt"]) for doc in docs)
        if language != "qu":
            side = documents(paper.load_xcopa(language, english=True, data_dir=str(data_dir)))
            assert [(doc["id"], doc["label"]) for doc in side] == [(doc["id"], doc["label"]) for doc in docs]
            assert all(doc["prompt"].startswith("You are assigned") for doc in side)
    with pytest.raises(XTransplantError, match=r"no qu\.jsonl"):
        paper.load_xcopa("qu", english=True, data_dir=str(data_dir))


UNSEEN_OPINIONS = (
    "am 19 ar 591 de 122 el 60 en 615 es 679 fr 216 hi 12 id 66 ja 41 pt 89 ru 38 sv 26 sw 70 tl 9 tr 67 uk 3 ur 118 "
    "vi 21 zh-CN 66"
).split()


@pytest.mark.data
def test_real_globalopinionqa(data_dir: Path) -> None:
    expected = dict(zip(UNSEEN_OPINIONS[::2], map(int, UNSEEN_OPINIONS[1::2]), strict=True))
    assert sum(expected.values()) == 2928
    assert set(expected) == set(ITEM_SETS)
    languages = present(data_dir, "GlobalOpinionQA/GlobalOpinionQA_sample/split")
    assert len(languages) >= 16
    for language in languages:
        docs = documents(paper.load_globalopinionqa(language, data_dir=str(data_dir)))
        translated = documents(paper.load_globalopinionqa(language, translated=True, data_dir=str(data_dir)))
        assert [doc["split"] for doc in docs] == ["sample"] * 50 + ["unseen"] * expected[language]
        assert {doc["country"] for doc in docs} == set(table("globalopinionqa")["countries"][language])
        for doc, other in zip(docs, translated, strict=True):
            assert doc | {"prompt": ""} == other | {"prompt": ""}
            assert (doc["prompt"] == other["prompt"]) == (language == "en")
            assert doc["prompt"].startswith(f"Human: How would someone from {doc['country']} answer")
            assert all(f"\n{choice} " in doc["prompt"] for choice in doc["choices"])
            assert doc["shares"][doc["label"]] == max(doc["shares"]) >= paper.CLEAR_MAJORITY


@pytest.mark.data
def test_english_copa_has_the_form_of_the_stock_tasks(data_dir: Path) -> None:
    """As lm-eval's own xcopa functions would render it, and its items are XCOPA's."""
    from lm_eval.tasks.xcopa import utils as stock

    task = load_task("xcopa_en", data_dir)
    docs = list(task.eval_docs)
    connectors = {"cause": "because", "effect": "therefore"}
    assert len(docs) == 500
    assert len(list(task.validation_docs())) == 100
    assert [task.doc_to_text(doc) for doc in docs] == [stock.doc_to_text(doc, connectors) for doc in docs]
    assert [task.doc_to_choice(doc) for doc in docs] == [stock.doc_to_choice(doc) for doc in docs]
    for language in ("sw", "th", "zh"):
        others = lines(data_dir / f"xcopa/{language}.test.jsonl")
        assert [(doc["idx"], doc["label"]) for doc in docs] == [(doc["idx"], doc["label"]) for doc in others]


@pytest.mark.data
@pytest.mark.parametrize("folder", ["xnli", "xquad", "xcopa", "globalopinionqa"])
def test_every_task_loads_on_the_real_files(folder: str, data_dir: Path) -> None:
    absent = []
    for name in sorted(task_names(PAPER / folder)):
        try:
            task = load_task(name, data_dir)
        except XTransplantError as error:  # a language that this copy of the authors' files does not have
            assert "; it has: " in str(error)
            absent.append(name)
            continue
        first = task.eval_docs[0]
        assert task.doc_to_text(first) == first["prompt"]
        if task.OUTPUT_TYPE == "generate_until":
            assert set(task.process_results(first, [""])) == set(task.aggregation())
        else:
            assert task.doc_to_choice(first)[task.doc_to_target(first)] == first["answer"]
    assert len(absent) <= 16
