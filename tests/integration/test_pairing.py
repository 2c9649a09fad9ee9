"""Which documents are parallel, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.local_tasks import documents, write_tasks
from xtransplant import families, pairing
from xtransplant.config import LanguagePairConfig, Split, TaskConfig, Unmatched
from xtransplant.types import Control, XTransplantError

PAIR = LanguagePairConfig("en", "sw")


def config(folder: Path, **values: Any) -> TaskConfig:
    given = {"name": "colour", "tasks": ["colour_choice_{lang}"], "key": "id", "gold": "label"}
    return TaskConfig(**(given | {"include_path": [str(folder)]} | values))


def load(folder: Path, split: Split = Split.all, limit: int | None = None, **values: Any) -> pairing.Pairing:
    return pairing.load(config(folder, **values), PAIR, split, limit, pairing.Sources(seed=1))[0]


def test_documents_are_aligned_by_key_in_any_order(tmp_path: Path) -> None:
    found = load(write_tasks(tmp_path, en=documents("en")[::-1]))
    assert found.source_rows == list(range(9, -1, -1))
    for row, doc in enumerate(found.target.eval_docs):
        assert found.source_doc(doc)["id"] == doc["id"] == found.keys[row]
    assert (found.gold_compared, found.gold_equal) == (10, 10)


def test_a_key_may_be_several_fields_or_the_row(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    assert load(folder, key="id,label").keys[1] == "doc-1:1"
    assert load(folder, key="row").keys[1] == "row:1"


def test_misplaced_labels_are_refused_with_the_first_mismatches(tmp_path: Path) -> None:
    rows = documents("sw")[:4] + documents("sw", shift=1)[4:]
    with pytest.raises(pairing.AlignmentError) as fault:
        load(write_tasks(tmp_path, sw=rows))
    message = str(fault.value)
    assert "agrees in 4 of 10 documents" in message
    assert "doc-4: label 2 against 1" in message and "Rangi ya Egypt" in message and "The colour of Egypt" in message
    # The limit does not hide it: all documents are compared.
    with pytest.raises(pairing.AlignmentError):
        load(tmp_path, limit=2)
    assert load(tmp_path, min_gold_agreement=0.4).gold_equal == 4
    assert load(tmp_path, gold=None).gold_compared == 0


def test_withheld_labels_are_not_compared(tmp_path: Path) -> None:
    hidden = [row | {"label": -1} for row in documents("en")]
    found = load(write_tasks(tmp_path, en=hidden))
    assert found.gold_compared == 0


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        (
            {"choices": ["one", "two"]},
            {},
            "10 of 10 documents differ in the number of choices, first doc-0: 3 against 2",
        ),
        ({"id": "same"}, {}, "1 keys of colour_choice_en occur more than once, e.g. same"),
        ({}, {"key": "idx"}, "no field idx. They have: question"),
        ({}, {"gold": "answer"}, "no such field. They have: question"),
    ],
)
def test_what_is_not_parallel_is_refused(
    tmp_path: Path, change: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    folder = write_tasks(tmp_path, en=[row | change for row in documents("en")])
    with pytest.raises(pairing.AlignmentError) as fault:
        load(folder, **values)
    assert message.replace("question", "") in str(fault.value).replace("question", "")


@pytest.mark.parametrize(
    ("target", "labels", "said"),
    [
        ("lable", {}, "in 10 of 10 documents .* first in doc-0: doc_to_target gives 'lable', the choices are "
                      "'nyekundu', 'kijani kibichi', 'buluu'.*doc_to_target: lable.*Fields of a document: .*label"),
        ("label", {4: 3, 7: -1}, "in 2 of 10 documents .* first in doc-4: doc_to_target gives 3,"),
        ("{{choices[label] ~ '.'}}", {}, ".* doc_to_target gives 'nyekundu.'"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_of_the_choices_is_refused(
    tmp_path: Path, target: str, labels: dict[int, int], said: str
) -> None:
    rows = [row | {"label": labels.get(n, row["label"])} for n, row in enumerate(documents("sw"))]
    path = write_tasks(tmp_path, sw=rows) / "choice_sw.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("target: label", f'target: "{target}"'), encoding="utf-8")
    with pytest.raises(XTransplantError, match=f"colour_choice_sw: {said}"):
        load(tmp_path)


def test_an_answer_may_be_a_choice_or_several(tmp_path: Path) -> None:
    for target in ("{{choices[label]}}", "{{[label, 2]}}"):
        path = write_tasks(tmp_path) / "choice_sw.yaml"
        text = path.read_text(encoding="utf-8").replace("target: label", f'target: "{target}"')
        path.write_text(text, encoding="utf-8")
        assert len(load(tmp_path).rows) == 10
    # With a context for each choice, the text says which one is right.
    assert len(load(tmp_path, tasks=["colour_contexts_{lang}"]).rows) == 10


def test_one_file_for_two_languages_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tasks(tmp_path, sw=documents("en"))
    with pytest.raises(
        pairing.AlignmentError, match=r"colour_choice_sw \(sw\) and colour_choice_en \(en\): all 10 doc"
    ):
        load(tmp_path)
    pair = LanguagePairConfig("en-GB", "en")  # not two languages
    assert pairing.load(config(tmp_path, languages={"en-GB": "sw"}), pair, Split.all, None)[0].rows
    assert not caplog.records
    # Equal prompts alone may be meant, and so may some equal documents.
    write_tasks(tmp_path, sw=[ours | {"choices": theirs["choices"]}
                              for ours, theirs in zip(documents("en"), documents("sw"), strict=True)])  # fmt: skip
    assert load(tmp_path).rows
    assert "all 10 documents ask the same in both languages" in caplog.text
    caplog.clear()
    write_tasks(tmp_path, sw=[*documents("en")[:9], *documents("sw")[9:]])
    assert load(tmp_path).rows and not caplog.records


def test_documents_without_a_counterpart_are_refused_or_dropped(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, en=documents("en")[:7])
    with pytest.raises(pairing.AlignmentError, match=r"3 of 10 documents have no counterpart .* doc-7, doc-8, doc-9"):
        load(folder)
    found = load(folder, unmatched=Unmatched.drop)
    assert found.rows == list(range(7)) and found.source_rows.count(None) == 3
    with pytest.raises(pairing.AlignmentError, match="10 documents, colour_choice_en 7: not parallel by row"):
        load(folder, key="row")


def test_equal_documents_with_unlike_counterparts_are_refused(tmp_path: Path) -> None:
    # By row: the harness hands over content only, so that the second would get the first one's source.
    twice = [{**row, "id": "x"} for row in (documents("sw")[0], documents("sw")[0])]
    unlike = [row | {"id": "x"} for row in documents("en")[:2]]
    with pytest.raises(pairing.AlignmentError, match="row:0 and row:1 are equal, but have different counterparts"):
        load(write_tasks(tmp_path, sw=twice, en=unlike), key="row", gold=None)
    alike = [row | {"id": "x"} for row in (documents("en")[0], documents("en")[0])]
    assert load(write_tasks(tmp_path / "alike", sw=twice, en=alike), key="row").rows == [0, 1]


def test_the_trivial_guess_knows_positions_and_texts(tmp_path: Path) -> None:
    # Labels of the ten documents: 0 1 1 0 1 1 0 1 1 0, and the choices are the same texts everywhere.
    assert pairing.trivial_baseline(load(write_tasks(tmp_path)), config(tmp_path)) == 0.6
    # Turned choices: the text at position n is right where the position says nothing.
    turned = {}
    for language in ("en", "sw"):
        choices = documents(language)[0]["choices"]
        turned[language] = [
            row | {"choices": choices[n % 3 :] + choices[: n % 3], "label": -n % 3}
            for n, row in enumerate(documents(language))
        ]
    folder = write_tasks(tmp_path / "turned", **turned)
    assert pairing.trivial_baseline(load(folder), config(folder)) == 1.0
    # Texts of their own: seen nowhere else, they tell nothing.
    own = {
        language: [row | {"choices": [f"{n} {text}" for text in row["choices"]]} for n, row in enumerate(docs)]
        for language, docs in turned.items()
    }
    folder = write_tasks(tmp_path / "own", **own)
    assert pairing.trivial_baseline(load(folder), config(folder)) == 0.4


def test_a_question_is_the_same_under_any_name_and_no_question_where_several_ask_it(tmp_path: Path) -> None:
    rows = documents("en")
    rows[1] = rows[1] | {"question": rows[0]["question"]}
    folder = write_tasks(tmp_path, en=rows)
    found = load(folder).questions()
    assert found == load(folder, tasks=["colour_generate_{lang}"]).questions()
    # The first two ask the same in English, and something else in Swahili.
    assert [len(question) for question in found] == [1, 1, *[2] * 8]
    assert len({text for question in found for text in question}) == 18
    back = pairing.load(config(folder), LanguagePairConfig("sw", "en"), Split.all, None)[0].questions()
    assert [set(question) for question in back] == [set(question) for question in found]
    assert load(folder, limit=1, tasks=["colour_empty_{lang}"]).questions() == [[]]


def test_a_document_that_asks_the_same_is_no_random_one(tmp_path: Path) -> None:
    rows = documents("en")
    same = [row | {"question": rows[0]["question"]} if n < 8 else row for n, row in enumerate(rows)]
    found = pairing.load(
        config(write_tasks(tmp_path, en=same)), PAIR, Split.all, None, pairing.Sources(Control.random_document, seed=1)
    )[0]
    for row, doc in enumerate(found.docs):
        other = found.source_doc(doc)
        asks = {each["question"] for each in same if pairing._split_of(each["id"], each, config(tmp_path)) is
                pairing._split_of(found.keys[row], doc, config(tmp_path))}  # fmt: skip
        assert other["id"] != found.keys[row]
        assert len(asks) == 1 or other["question"] != same[row]["question"]


def test_halves_are_stable_disjoint_and_complete(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    sample, unseen = load(folder, Split.sample).rows, load(folder, Split.unseen).rows
    assert sorted(sample + unseen) == list(range(10)) and sample and unseen
    assert load(folder, Split.sample, limit=1).rows == sample[:1]
    given = [row | {"half": "sample" if n < 3 else "unseen"} for n, row in enumerate(documents("sw"))]
    folder = write_tasks(tmp_path / "given", sw=given)
    assert load(folder, Split.sample, split_field="half").rows == [0, 1, 2]
    folder = write_tasks(tmp_path / "wrong", sw=[row | {"half": "train"} for row in documents("sw")])
    with pytest.raises(XTransplantError, match="'train'"):
        load(folder, Split.sample, split_field="half")


def test_shots_without_a_counterpart_are_refused(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    shots = (folder / "en.shots.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "en.shots.jsonl").write_text("".join(shots[:2]), encoding="utf-8")
    found = load(folder, num_fewshot=3)
    with pytest.raises(pairing.AlignmentError, match="no counterpart of a few-shot example"):
        found.target.build_all_requests(samples=found.rows)


def test_a_language_with_itself(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    found = pairing.load(config(folder, num_fewshot=2), LanguagePairConfig("sw", "sw"), Split.all, None)[0]
    found.target.build_all_requests(samples=found.rows)
    for request in found.target.instances:
        assert request.source_prompts == [request.args[0]]


def test_names_and_languages_are_checked_before_anything_is_built(tmp_path: Path) -> None:
    task = config(write_tasks(tmp_path), languages={"en": "en", "sw": "sw"})
    assert families.check(task, PAIR) == []
    [fault] = families.check(task, LanguagePairConfig("en", "swa"))
    assert "no such language (did you mean sw?)" in fault and "It has: en, sw" in fault
    [one, two] = families.check(config(tmp_path, tasks=["colour_choise_{lang}"]), PAIR)
    assert "Did you mean colour_choice_sw" in one and "Did you mean colour_choice_en" in two
    [fault] = families.check(config(tmp_path, include_path=[str(tmp_path / "none")]), PAIR)
    assert "is not a folder" in fault


def test_names_of_both_languages_may_be_in_a_tasks_name() -> None:
    task = TaskConfig(
        name="x",
        tasks=["t_{source}_{target}"],
        source_tasks=["s_{lang}"],
        key="id",
        languages={"en": "eng", "sw": "swa"},
    )
    assert families.task_names(task, PAIR) == [("t_eng_swa", "s_eng")]


@pytest.mark.slow
def test_every_task_of_the_harness_is_found_by_name() -> None:
    from lm_eval.tasks import TaskManager

    found = families.find_tasks()
    manager = TaskManager()
    elsewhere = []
    for name in manager.all_subtasks:
        path = manager.task_index[name].yaml_path
        assert path is not None
        if found[name].parent != path.parent:
            elsewhere.append(name)
    # A few names stand in two files; either may be meant.
    assert len(elsewhere) < 0.002 * len(manager.all_subtasks), elsewhere


def test_tasks_are_found_in_every_spelling(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("task: one_en  # the first\ndataset_path: x\n", encoding="utf-8")
    (tmp_path / "quoted.yaml").write_text('"task": "two (en)"\n"tag": "two"\n', encoding="utf-8")
    (tmp_path / "group.yaml").write_text("group: g\ntask:\n  - task: three_en\n  - one_en\n", encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "three.yaml").write_text("task: three_en\n", encoding="utf-8")
    found = {
        name: path for name, path in families.find_tasks((str(tmp_path),)).items() if path.is_relative_to(tmp_path)
    }
    assert found == {
        "one_en": tmp_path / "plain.yaml", "two (en)": tmp_path / "quoted.yaml",
        "three_en": tmp_path / "deep" / "three.yaml",
    }  # fmt: skip


@pytest.mark.data
def test_german_of_the_papers_unseen_xnli_is_refused(data_dir: Path) -> None:
    from xtransplant.compose import compose

    task = compose("evaluate", ["task=paper_xnli", f"task.data_dir={data_dir}"]).task  # type: ignore[union-attr]
    with pytest.raises(pairing.AlignmentError, match="unseen:210"):
        pairing.load(task, LanguagePairConfig("en", "de"), Split.unseen, 50)
    assert pairing.load(task, LanguagePairConfig("en", "sw"), Split.unseen, 50)[0].rows


@pytest.mark.data
def test_stock_xnli_has_no_prompt_to_transplant_into(data_dir: Path) -> None:
    from xtransplant.lm import Transplant, TransplantLM
    from xtransplant.types import Component

    task = TaskConfig(
        name="xnli", tasks=["xnli_{lang}"], key="idx", gold="label", data_dir=str(data_dir),
        data_files={"validation": "xnli/{lang}.validation.jsonl", "train": "xnli/{lang}.train.jsonl"},
    )  # fmt: skip
    found = pairing.load(task, PAIR, Split.all, 5)[0]
    found.target.build_all_requests(samples=found.rows)

    def never() -> Any:
        raise AssertionError("the model was loaded")

    lm = TransplantLM(never, Transplant(Component.ffn, [0, 0]))
    with pytest.raises(XTransplantError, match=r"xnli_sw: 15 of 15 requests have an empty prompt"):
        lm.loglikelihood(found.target.instances)


def test_a_document_counts_where_every_source_language_has_it(tmp_path: Path) -> None:
    """The target's own language stands for a third one."""
    folder = write_tasks(tmp_path, en=documents("en")[1:])
    for control in (Control.none, Control.random_document):
        sources = pairing.Sources(control, mean_over=("sw",), seed=1)
        given = config(folder, unmatched=Unmatched.drop)
        found = pairing.load(given, PAIR, Split.all, None, sources)[0]
        assert [found.keys[row] for row in found.rows] == [f"doc-{n}" for n in range(1, 10)]
        found.target.build_all_requests(samples=found.rows)
        for request in found.target.instances:
            one, other = request.source_prompts
            # Of one document in both languages, whichever it is.
            assert one.split()[3] == other.split()[2]


def test_labels_have_to_agree_in_the_half_that_is_evaluated(tmp_path: Path) -> None:
    half = {"doc-0", "doc-1", "doc-2", "doc-3", "doc-4"}
    rows = [row | {"split": "sample" if row["id"] in half else "unseen"} for row in documents("sw")]
    wrong = [row if row["id"] in half else row | {"label": (row["label"] + 1) % 3} for row in rows]
    folder = write_tasks(tmp_path, sw=wrong, en=[row | {"split": "sample"} for row in documents("en")])
    given = config(folder, split_field="split")
    assert len(pairing.load(given, PAIR, Split.sample, None)[0].rows) == 5
    for split in (Split.unseen, Split.all):
        with pytest.raises(pairing.AlignmentError, match="the gold label agrees in"):
            pairing.load(given, PAIR, split, None)


def test_a_task_file_that_is_not_yaml(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    (folder / "antonyms.yaml").write_text("task: antonyms\ntest_split: [test\ndoc_to_text: x\n", encoding="utf-8")
    (folder / "synonyms.yaml").write_text("task: synonyms\ninclude: nowhere\n", encoding="utf-8")
    (folder / "riddles.yaml").write_text("task: riddles\ninclude: antonyms.yaml\n", encoding="utf-8")
    for name, said in (
        ("antonyms", r"tasks/antonyms\.yaml is not YAML, line \d: .*Mend the file\.$"),
        ("riddles", r"tasks/antonyms\.yaml is not YAML, line \d"),
        ("synonyms", r"tasks/synonyms\.yaml cannot be read: .*nowhere"),
    ):
        with pytest.raises(XTransplantError, match=said):
            load(folder, tasks=[name])
