"""In which language an answer is, and which answers are not judged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.metrics import mean

from xtransplant.answer_language import CONSISTENCY, JUDGED, add_metrics, judge_of, own_metrics

# target, an answer in it, the same answer in English
ANSWERS = [
    ("am", "ዋና ከተማዋ አዲስ አበባ ነች", "The capital is Addis Ababa"),
    ("ar", "عاصمة مصر هي القاهرة", "The capital of Egypt is Cairo"),
    ("bn", "বাংলাদেশের রাজধানী ঢাকা", "Dhaka is the capital of Bangladesh"),
    ("de", "Das weiß ich nicht, vielleicht zwei", "I do not know, perhaps two"),
    ("el", "η πρωτεύουσα είναι η Αθήνα", "the capital is Athens"),
    ("es", "La respuesta correcta es la segunda", "The correct answer is the second one"),
    ("fr", "Je ne sais pas, peut-être deux", "I do not know, perhaps two"),
    ("he", "הבירה היא ירושלים", "The capital is Jerusalem"),
    ("hi", "भारत की राजधानी नई दिल्ली है", "The capital of India is New Delhi"),
    ("ja", "答えは東京です。", "The answer is Tokyo."),
    ("ko", "정답은 서울입니다", "The answer is Seoul"),
    ("ru", "Ответ: столица России - Москва", "Answer: the capital of Russia is Moscow"),
    ("sw", "Jibu sahihi ni namba mbili", "The right answer is number two"),
    ("ta", "சென்னை ஒரு பெரிய நகரம்", "Chennai is a big city"),
    ("th", "คำตอบคือกรุงเทพมหานคร", "The answer is Bangkok"),
    ("tr", "Türkiye'nin başkenti Ankara'dır", "It is the second of the two"),
    ("vi", "Thủ đô của Việt Nam là Hà Nội", "The capital of Vietnam is Hanoi"),
    ("zh", "北京是中国的首都", "Beijing is the capital of China"),
]


def judge(source: str, target: str) -> Any:
    found = judge_of(source, target)
    assert found is not None
    return found


@pytest.mark.parametrize(("target", "right", "english"), ANSWERS)
def test_an_answer_is_in_the_target_language_or_in_english(target: str, right: str, english: str) -> None:
    # From English; into English; and English is recognised where it is neither side.
    third = "it" if target != "it" else "es"
    assert [judge("en", target)(text) for text in (right, english)] == [True, False]
    assert [judge(target, "en")(text) for text in (right, english)] == [False, True]
    assert [judge(third, target)(text) for text in (right, english)] == [True, False]


def test_an_answer_in_the_source_language_is_not_consistent() -> None:
    from_german = judge("de", "fr")
    assert from_german("Das weiß ich leider nicht, vielleicht zwei") is False
    assert from_german("I do not know, perhaps two of them") is False
    assert from_german("Je ne sais pas, peut-être deux") is True


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        "42",
        "-3.5 %",
        "12 + 30 = 42",
        "(A)",
        "（B）",
        "C.",
        "(1)",
        "...",
        "。、！",
        "🙂",
        "$ 7",
        "12 km",
        "A, B",
    ],
)
@pytest.mark.parametrize("target", ["de", "sw", "zh", "ja", "ar", "th"])
def test_what_has_no_letters_or_too_few_is_not_judged(text: str, target: str) -> None:
    assert judge("en", target)(text) is None


def test_a_name_that_is_the_same_in_both_languages_is_not_judged() -> None:
    assert judge("en", "de")("Berlin") is None
    assert judge("en", "es")("Kenya") is None
    assert judge("zh", "ja")("東京") is None
    # Another script tells more.
    assert judge("en", "ja")("東京") is True
    assert judge("en", "ru")("Берлин") is True
    assert judge("en", "ko")("네") is True


def test_digits_and_punctuation_say_nothing_beside_letters() -> None:
    for text in ("Das ist richtig", "1. Das ist richtig!!! (100 %)", "**Das ist richtig**\n\n1 2 3 4 5 6 7 8 9"):
        assert judge("en", "de")(text) is True
    # Full-width brackets are Chinese typography, and no Chinese.
    assert judge("en", "zh")("（The answer is Beijing）。") is False


def test_the_greater_part_of_a_mixed_answer_decides() -> None:
    assert judge("en", "zh")("答案是 Paris，因为它是法国的首都") is True
    assert judge("en", "zh")("The answer is 巴黎, since it is the capital of France") is False
    assert judge("en", "ru")("Москва is the capital of Russia and its largest city") is False


def test_marks_belong_to_their_letters() -> None:
    # Without its vowel signs it would be "ह द".
    assert judge("en", "hi")("हिन्दी") is True


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("en", "su", "en-su: no language_consistency, for su cannot be told"),
        ("su", "en", "su-en: no language_consistency, for su cannot be told"),
        ("en", "ar-Latn", "ar-Latn cannot be told"),
        ("acm", "su", "su and acm cannot be told"),
        ("en", "en", "en is the only language"),
    ],
)
def test_where_nothing_can_be_told_apart_there_is_no_judge_and_one_line_says_why(
    source: str, target: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    judge_of.cache_clear()
    with caplog.at_level(logging.INFO):
        assert judge_of(source, target) is None
        assert judge_of(source, target) is None
    [record] = caplog.records
    assert said in record.getMessage()


def test_codes_with_subtags_and_codes_of_the_suite() -> None:
    assert judge("en", "zh-Hant")("北京是中國的首都") is True
    assert judge("en", "zh_CN")("北京是中国的首都") is True
    assert judge("en", "pt-BR")("A resposta certa é a segunda opção") is True
    assert judge("en", "nb")("Jeg vet ikke hva det betyr") is True
    assert judge("sw", "sw")("Jibu sahihi ni namba mbili") is True


class Task:
    """What `add_metrics` asks of a task of the harness."""

    OUTPUT_TYPE = "generate_until"

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        return {"exact_match": float(results[0] == doc["gold"])}

    def aggregation(self) -> dict[str, Any]:
        return {"exact_match": max}

    def higher_is_better(self) -> dict[str, Any]:
        return {"exact_match": True}


def test_both_metrics_stand_beside_the_tasks_own_and_read_the_answer_before_the_filters() -> None:
    answers = {"a": "Das Ergebnis ist 42", "b": "The result is 42", "c": "42"}
    task: Any = Task()
    add_metrics(task, "en", "de", lambda doc: answers[doc["id"]])
    graded = [task.process_results({"id": name, "gold": "42"}, ["42"]) for name in "abc"]
    assert graded == [
        {"exact_match": 1.0, JUDGED: 1.0, CONSISTENCY: 1.0},
        {"exact_match": 1.0, JUDGED: 1.0, CONSISTENCY: 0.0},
        {"exact_match": 1.0, JUDGED: 0.0},
    ]
    assert all(next(iter(each)) == "exact_match" for each in graded)
    # The harness knows the standard error of its own mean only.
    assert task.aggregation() == {"exact_match": max, CONSISTENCY: mean, JUDGED: mean}
    assert task.higher_is_better() == {"exact_match": True, CONSISTENCY: True, JUDGED: None}


@pytest.mark.parametrize(("kind", "target"), [("multiple_choice", "de"), ("generate_until", "su")])
def test_other_tasks_stay_as_they_are(kind: str, target: str) -> None:
    task: Any = Task()
    task.OUTPUT_TYPE = kind
    add_metrics(task, "en", target, lambda doc: "")
    assert task.process_results({"gold": "42"}, ["42"]) == {"exact_match": 1.0}
    assert task.aggregation() == {"exact_match": max}


def test_a_tasks_own_metrics_are_told_from_these() -> None:
    names = ["acc", "language_judged,strict", "f1,strict", "language_consistency"]
    assert own_metrics(names) == ["acc", "f1,strict"]


@pytest.mark.data
def test_half_sentences_of_25_languages_are_judged_and_rightly(data_dir: Path) -> None:
    """Forty characters of news: who is judged wrongly here would be so on answers."""
    few, wrong = {}, {}
    for path in sorted((data_dir / "ntrex").glob("*.jsonl")):
        language = path.name.partition(".")[0]
        lines = path.read_text(encoding="utf-8").splitlines()[:300]
        source = "en" if language != "en" else "de"
        told = [judge(source, language)(json.loads(line)["text"][:40]) for line in lines]
        judged = [each for each in told if each is not None]
        if len(judged) < 0.9 * len(told):
            few[language] = len(judged)
        if sum(judged) < 0.98 * len(judged):
            wrong[language] = len(judged) - sum(judged)
    assert (few, wrong) == ({}, {})
