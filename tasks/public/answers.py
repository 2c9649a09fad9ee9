"""How written answers and judgements of tasks/public are scored; `process_results` functions of lm-eval.

Every output is scored as far as its first line that is not blank, and `unparsed` says that there is none. lm-eval loads
this file by its path, so it imports no neighbour.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Doc = dict[str, Any]

# What MKQA's evaluation script takes out as articles, pattern for pattern: where no word boundary is asked for at the
# end, the beginnings of other words go too. Numbers compare with published ones only that way.
ARTICLES = {
    "ar": "ال",
    "da": r"\b(en|et)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "fi": r"\b(se|yks|yksi)\b",
    "fr": r"\b(le|la|l'|les|du|de|d'|des|un|une|des)",
    "hu": r"\b(a|az|egy)\b",
    "it": r"\b(il|lo|la|l'|i|gli|le|del|dello|della|dell'|dei|degli|degl'|delle|un'|uno|una|un)",
    "nl": r"\b(de|het|een|des|der|den)\b",
    "no": r"\b(en|et|ei)\b",
    "pt": r"\b(o|a|os|as|um|uma|uns|umas)\b",
    "sv": r"\b(en|ett)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
}
# Each character is a token there, of Latin words and of numbers too.
BY_CHARACTER = {"ja", "km", "th", "zh_cn", "zh_hk", "zh_tw"}
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_mkqa(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """`acc`: an answer stands anywhere in the whole output, as in the paper's XQuAD; `exact_match` and `f1`: MKQA's.

    Yes and no stand in many other words, so for `acc` they have to be how the output begins.
    """
    output, line, language = results[0], _first_line(results[0]), doc["language"]
    begins = tokens(line, language)
    found = any(answer.lower() in output.lower() for answer in doc["answers"])
    said = any(begins[: len(word)] == word for word in (tokens(word, language) for word in doc["words"]))
    return {"acc": float(found or said), **_overlap(line, [*doc["answers"], *doc["words"]], language)}


def score_xquad(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """`exact_match` and `f1` of SQuAD's script, which knows English articles and words between spaces only."""
    return _overlap(_first_line(results[0]), doc["answers"], "en")


def score_blend(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """`acc`: any annotator's answer stands in the output, whatever the case, the width or a hyphen.

    BLEnD's own scoring also takes an answer whose lemmas all occur, by a lemmatiser for each language; this one does
    not, so an inflected answer is missed and the score is at most theirs.
    """
    line = _first_line(results[0])
    answers = [_plain(answer) for answer in doc["answers"]]
    found = any(answer and answer in _plain(line) for answer in answers)
    return {"acc": float(found), "unparsed": float(not line)}


def score_culturalbench(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """`acc` of one statement; `question_acc` is for `question_accuracy`, which needs all of a question's statements."""
    logprobs = [logprob for logprob, _ in results]
    right = float(logprobs.index(max(logprobs)) == doc["label"])
    return {"acc": right, "question_acc": (doc["question_idx"], doc["statements"], right)}


def question_accuracy(judged: Iterable[tuple[Any, int, float]]) -> float:
    """CulturalBench's metric: the share of questions of which every statement is judged right.

    Args:
        judged: question, number of its statements, and whether one of them was judged right.

    Returns:
        NaN where the run has no question whole: its limit is too small.
    """
    questions: dict[tuple[Any, int], list[float]] = defaultdict(list)
    for question, statements, right in judged:
        questions[question, statements].append(right)
    whole = [all(rights) for (_, statements), rights in questions.items() if len(rights) == statements]
    return sum(whole) / len(whole) if whole else float("nan")


def tokens(text: str, language: str) -> list[str]:
    """Of MKQA's normal form: lower case, without ASCII punctuation and articles. SQuAD's is that of English."""
    plain = text.lower().translate(NO_PUNCTUATION)
    if language in ARTICLES:
        plain = re.sub(ARTICLES[language], " ", plain)
    return [character for character in plain if character.strip()] if language in BY_CHARACTER else plain.split()


def _overlap(line: str, answers: Sequence[str], language: str) -> dict[str, float]:
    given = tokens(line, language)
    golds = [tokens(answer, language) for answer in answers]
    return {
        "exact_match": max(float(given == gold) for gold in golds),
        "f1": max(_f1(given, gold) for gold in golds),
        "unparsed": float(not line),
    }


def _f1(given: Sequence[str], gold: Sequence[str]) -> float:
    if not given or not gold:
        return float(given == gold)
    common = (Counter(given) & Counter(gold)).total()
    return 2 * common / (len(given) + len(gold))


def _first_line(output: str) -> str:
    return output.strip().partition("\n")[0].strip()


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().replace("-", " ").strip()
