"""Is an answer in the language that it was asked in? Two further metrics of every task that generates text.

`language_consistency` of a document is 1 where its answer is in the target language, 0 where it is in the source
language or in English. Only the letters of an answer are looked at, as the model gave it, before the task's filters;
py3langid (naive Bayes over bytes) has the languages of the pair and English to choose from. Where it is not 95 % sure
that the answer is in the target language, or that it is not, the answer is not judged, and the document has no value:
no letters, too few of them, a name that is the same in both languages, option letters. `language_judged` is 1 or 0 for
each document: its mean is the share of the answers that the consistency speaks of.

Measured on sentences cut to between one word and 200 characters (NTREX, MKQA, XCOPA, XNLI, BLEnD; each of 35 languages
as the target, from Spanish): 88 % are judged, 98.4 % of these rightly; of bare names (KLAR, MKQA's answers) 44 % are
judged, 96.4 % rightly, since many are English ones.
"""

from __future__ import annotations

import copy
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from py3langid.langid import LanguageIdentifier

log = logging.getLogger(__name__)

CONSISTENCY = "language_consistency"
JUDGED = "language_judged"
METRICS = (CONSISTENCY, JUDGED)

# How sure the identifier has to be, as a probability among the candidates.
_SURE = 0.95
# Languages that it knows by another code.
_ALIASES = {"nb": "no", "fil": "tl"}


def own_metrics(names: Iterable[str]) -> list[str]:
    """Of metrics as grids name them, ``metric`` or ``metric,filter``, those that are the task's own."""
    return [name for name in names if name.partition(",")[0] not in METRICS]


def add_metrics(task: ConfigurableTask, source: str, target: str, answer: Callable[[dict[str, Any]], str]) -> None:
    """Give a built task both metrics, graded and averaged by the harness beside the task's own.

    Nothing is added where no text is generated, or where `judge_of` has nothing to tell apart.

    Args:
        source, target: the pair's language codes.
        answer: a document -> the text that was generated for it.
    """
    if task.OUTPUT_TYPE != "generate_until":
        return
    in_target = judge_of(source, target)
    if in_target is None:
        return
    from lm_eval.api.metrics import mean

    grade, aggregation, higher_is_better = task.process_results, task.aggregation, task.higher_is_better

    def process_results(doc: dict[str, Any], results: Any) -> dict[str, Any]:
        told = in_target(answer(doc))
        judged = {} if told is None else {CONSISTENCY: float(told)}
        return {**grade(doc, results), JUDGED: float(told is not None), **judged}

    # The harness calls all three as methods of the task. It averages a metric over the documents that have it.
    task.process_results = process_results
    task.aggregation = lambda: {**aggregation(), CONSISTENCY: mean, JUDGED: mean}
    task.higher_is_better = lambda: {**higher_is_better(), CONSISTENCY: True, JUDGED: None}


@cache
def judge_of(source: str, target: str) -> Callable[[str], bool | None] | None:
    """What tells of a text whether it is in the target language; its answer is None where that cannot be told.

    There is no judge, and the log says why, for a language or script that the identifier does not know, and for English
    beside itself.
    """
    whole = _identifier()
    labels = {code: _label(code) for code in (target, source, "en")}
    unknown = [code for code, label in labels.items() if label not in whole.labels]
    candidates = set(labels.values())
    if unknown or len(candidates) == 1:
        why = f"{' and '.join(unknown)} cannot be told" if unknown else f"{target} is the only language"
        log.info("%s-%s: no %s, for %s.", source, target, CONSISTENCY, why)
        return None
    identifier = copy.copy(whole)  # shares the tables
    identifier.set_languages(candidates)

    # The cells of a grid give the same text many times.
    @lru_cache(maxsize=2**17)
    def in_target(text: str) -> bool | None:
        letters = _letters(text)
        if not letters:
            return None
        # Which of the others it is does not matter.
        probability = dict(identifier.rank(letters))[labels[target]]
        return None if 1 - _SURE < probability < _SURE else bool(probability >= _SURE)

    return in_target


@cache
def _identifier() -> LanguageIdentifier:
    # Imported here: to read its tables takes a second and 120 MB, which only tasks that generate have to pay.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _label(code: str) -> str:
    """What the identifier calls a language; the code itself where it does not know the script, as in ar-Latn."""
    language, *subtags = re.split("[-_]", code)
    # Of Chinese it knows both scripts.
    if language != "zh" and any(len(subtag) == 4 for subtag in subtags):
        return code
    return _ALIASES.get(language, language)


def _letters(text: str) -> str:
    """Letters with their marks; all else is a space."""
    kept = (sign if unicodedata.category(sign)[0] in "LM" else " " for sign in text)
    return " ".join("".join(kept).split())
