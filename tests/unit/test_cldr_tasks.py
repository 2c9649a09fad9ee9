"""The embedded task family: every task loads, and its documents are parallel, balanced and well named."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from babel.core import get_global
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tasks" / "cldr"
RELATIONS = ("language", "currency", "continent", "calendar")
LANGUAGES = ("en", "de", "fr", "es", "pt", "it", "ru", "zh", "ja", "ar", "hi", "tr", "sw", "vi", "id", "el")
# In the documents, what does not depend on the language.
SHARED = ("key", "relation", "label", "split", "source")

Documents = list[dict[str, Any]]


@cache
def task_manager() -> TaskManager:
    return TaskManager(include_path=str(FOLDER), include_defaults=False)


@cache
def tasks() -> dict[str, ConfigurableTask]:
    # lm-eval warns once a task that its metadata reach the data function.
    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)
    loaded: dict[str, ConfigurableTask] = task_manager().load(list(task_manager().all_subtasks))["tasks"]
    return loaded


def documents(relation: str, language: str, split: str = "test") -> Documents:
    found: Documents = tasks()[f"cldr_{relation}_{language}"].dataset[split].to_list()
    return found


def test_every_task_is_found_and_loads() -> None:
    assert set(tasks()) == {f"cldr_{relation}_{language}" for relation in RELATIONS for language in LANGUAGES}


@pytest.mark.parametrize("relation", RELATIONS)
def test_tags(relation: str) -> None:
    index = task_manager().task_index
    assert index[f"cldr_{relation}"].tags == {f"cldr_{relation}_{language}" for language in LANGUAGES}
    assert index["cldr"].tags == set(task_manager().all_subtasks)


@pytest.mark.parametrize("split", ["test", "dev"])
@pytest.mark.parametrize("relation", RELATIONS)
def test_documents_are_parallel(relation: str, split: str) -> None:
    def shared(language: str) -> list[tuple[Any, ...]]:
        return [tuple(doc[name] for name in SHARED) for doc in documents(relation, language, split)]

    english = shared("en")
    for language in LANGUAGES:
        assert shared(language) == english


@pytest.mark.parametrize("relation", RELATIONS)
def test_keys_are_unique_and_ascii_and_dev_is_held_out(relation: str) -> None:
    test, dev = ([doc["key"] for doc in documents(relation, "en", split)] for split in ("test", "dev"))
    assert len(test) >= 100
    assert len(dev) >= 8
    assert len(set(test + dev)) == len(test) + len(dev)
    assert all(key.isascii() and key.startswith(f"{relation}:") for key in test + dev)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("relation", RELATIONS)
def test_choices_are_four_different_names(relation: str, language: str) -> None:
    for doc in documents(relation, language) + documents(relation, language, "dev"):
        assert len({choice.casefold() for choice in doc["choices"]}) == 4, doc["key"]
        for name in (doc["subject"], *doc["choices"]):
            assert name == name.strip() and name, doc["key"]
            assert name != name.upper() or not name.isascii(), f"{doc['key']}: {name} is a code"


@pytest.mark.parametrize("language", [code for code in LANGUAGES if code not in ("zh", "ja", "ar")])
@pytest.mark.parametrize("relation", RELATIONS)
def test_names_are_in_the_language(relation: str, language: str) -> None:
    """The script tells for ru, el and hi; for the others, that the names are not all English."""
    script = {"ru": "Ѐӿ", "el": "Ͱ῿", "hi": "ऀॿ"}.get(language)
    for doc in documents(relation, language):
        for name in (doc["subject"], *doc["choices"]):
            assert script is None or any(script[0] <= letter <= script[1] for letter in name), name
    if language != "en":
        choices = [doc["choices"] for doc in documents(relation, language)]
        assert choices != [doc["choices"] for doc in documents(relation, "en")]


@pytest.mark.parametrize("relation", RELATIONS)
def test_right_answers_are_spread_evenly(relation: str) -> None:
    docs = documents(relation, "en")
    cells = Counter((doc["label"], doc["split"]) for doc in docs)
    assert set(cells) == {(label, split) for label in range(4) for split in ("sample", "unseen")}
    assert max(cells.values()) - min(cells.values()) <= 1
    halves = Counter(doc["split"] for doc in docs)
    assert abs(halves["sample"] - halves["unseen"]) <= 1


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_most_common_answer_does_not_give_the_others_away(relation: str) -> None:
    """Someone who knows only which answers are common overall: far from all right, as the docstring says."""
    docs = documents(relation, "en")
    common = Counter(doc["choices"][doc["label"]] for doc in docs)
    by_frequency = [max(range(4), key=lambda i: common[doc["choices"][i]]) == doc["label"] for doc in docs]
    assert sum(by_frequency) / len(docs) < 0.6


def test_no_wrong_answer_is_true() -> None:
    """Against Babel's data, by the English names."""
    module = sys.modules[str(FOLDER / "cldr")]
    english = module.names("en")
    for relation, kind in (("language", "language"), ("currency", "currency")):
        codes = {text: name.code for name, text in english.items() if name.kind == kind}
        for doc in documents(relation, "en"):
            state = doc["key"].partition(":")[2]
            wrong = {codes[choice] for i, choice in enumerate(doc["choices"]) if i != doc["label"]}
            spoken = get_global("territory_languages")[state].items()
            official = {code.partition("_")[0] for code, about in spoken if about["official_status"]}
            used = {code for code, *_ in get_global("territory_currencies")[state]}
            assert not wrong & (official | used), doc["key"]


def test_some_known_facts() -> None:
    known = {
        "language:DE": ("Germany", "German", True),
        "language:AT": ("Austria", "German", False),
        "currency:JP": ("Japan", "Japanese Yen", True),
        "continent:KE": ("Kenya", "Africa", False),
        "continent:US": ("United States", "Americas", False),
        "calendar:day6+2": ("Saturday", "Monday", False),
        "calendar:month1-2": ("January", "November", False),
    }
    found = {
        doc["key"]: (doc["subject"], doc["choices"][doc["label"]], doc["overlap"])
        for relation in RELATIONS
        for split in ("test", "dev")
        for doc in documents(relation, "en", split)
    }
    assert {key: found[key] for key in known} == known


@pytest.mark.parametrize(
    ("relation", "language", "subject", "answer"),
    [("language", "sw", "Ujerumani", "Kijerumani"), ("language", "zh", "德国", "德语")],
)
def test_overlap_sees_through_prefixes_and_short_names(relation: str, language: str, subject: str, answer: str) -> None:
    docs = documents(relation, language) + documents(relation, language, "dev")
    (doc,) = (doc for doc in docs if doc["subject"] == subject)
    assert doc["choices"][doc["label"]] == answer
    assert doc["overlap"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_prompt_and_answer_meet_in_one_space_or_none(language: str) -> None:
    for relation in RELATIONS:
        task = tasks()[f"cldr_{relation}_{language}"]
        doc = task.eval_docs[0]
        prompt = task.doc_to_text(doc)
        assert prompt == doc["prompt"] == prompt.strip()
        assert prompt.count("\n") == 1
        full_width = language in ("zh", "ja")
        assert prompt.endswith("：" if full_width else ":")
        assert task.config.target_delimiter == ("" if full_width else " ")
        assert task.doc_to_choice(doc) == doc["choices"]
        assert task.doc_to_target(doc) == doc["label"]


def test_few_shot_prompts_are_parallel() -> None:
    """The same seed draws the same held-out facts in every language."""
    shots = {}
    for language in ("en", "sw", "zh"):
        task = tasks()[f"cldr_language_{language}"]
        assert task.config.num_fewshot is None  # the harness would ignore --num_fewshot where the task says 0
        task.set_fewshot_seed(1234)
        held_out = documents("language", language, "dev")
        prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=3)
        assert prompt.endswith("\n\n" + task.eval_docs[0]["prompt"])
        delimiter = task.config.target_delimiter
        written = {doc["prompt"] + delimiter + doc["choices"][doc["label"]]: doc["key"] for doc in held_out}
        shots[language] = [written[shot] for shot in prompt.split("\n\n")[:-1]]
    assert len(shots["en"]) == 3
    assert shots["en"] == shots["sw"] == shots["zh"]


def test_unknown_relation_or_language_is_refused() -> None:
    tasks()
    module = sys.modules[str(FOLDER / "cldr")]
    with pytest.raises(ValueError, match=r"language='xx'.*one of language, currency.*one of en, de"):
        module.load("language", "xx")


def test_names_do_not_depend_on_what_babel_was_asked_before() -> None:
    """Babel writes resolved aliases into data that its locales share; our names must not pass through them."""
    months = "[names('ja')[Name('month', '1')], names('ru')[Name('month', '1')], names('sw')[Name('day', '1')]]"
    command = (
        "from babel import Locale; [Locale(c).months['stand-alone']['wide'][1] for c in ('zh', 'ja', 'hi')]; "
        "Locale('vi').days['stand-alone']['wide'][0]; "
        f"from cldr import Name, names; print(ascii({months}))"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(["1月", "январь", "Jumatatu"])


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "task").glob("cldr*.yaml")), ids=lambda path: path.stem)
def test_task_configs_name_existing_tasks(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config["name"] == path.stem
    assert config["languages"] == {language: language for language in LANGUAGES}
    for pattern in config["tasks"]:
        assert {pattern.format(lang=language) for language in config["languages"].values()} <= set(tasks())
    assert {config[name] for name in ("key", "gold", "split_field")} <= set(documents("language", "en")[0])
