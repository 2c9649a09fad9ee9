"""Which source-language document belongs to a harness request, and which documents are sample or unseen.

The harness builds both prompts: a target task is wrapped so that, whenever it builds the requests of a document, the
source task builds those of the parallel document with the same settings and the same few-shot examples, and each
request carries the other's prompt as `request.source_prompts`: one, or one for each of several source languages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xtransplant import answer_language
from xtransplant.config import (
    EvaluateConfig,
    LanguagePairConfig,
    PromptLanguages,
    Split,
    TaskConfig,
    TaskJob,
    Unmatched,
)
from xtransplant.families import Loader, task_names
from xtransplant.types import Control, XTransplantError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

log = logging.getLogger(__name__)

# In place of a field in task.gold: the answer that the task itself goes by.
_OWN_ANSWER = "doc_to_target"


class AlignmentError(XTransplantError):
    """The two sides are not parallel."""


@dataclass(frozen=True)
class Sources:
    """What the source prompts are, beside those of the pair's source language.

    Attributes:
        control: `random_document` and `self` put other prompts in their place.
        mean_over: further source languages.
        before: the source prompt is also put before the target prompt, in what the model is asked.
        seed: of the random documents, and of the few-shot draw.
    """

    control: Control = Control.none
    mean_over: tuple[str, ...] = ()
    before: bool = False
    seed: int = 0

    @classmethod
    def of(cls, config: TaskJob) -> Sources:
        """What a job's config asks for; the vanilla model reads none of them."""
        vanilla = isinstance(config, EvaluateConfig) and config.is_vanilla
        return cls(
            Control.none if vanilla else config.transplant.control,
            () if vanilla else tuple(config.transplant.mean_over),
            isinstance(config, EvaluateConfig) and config.prompt is PromptLanguages.both,
            config.seed,
        )


@dataclass
class Pairing:
    """A target task, its source task, and which source document belongs to each target document."""

    target: ConfigurableTask
    source: ConfigurableTask
    docs: list[dict[str, Any]]  # every target document; the task's own `eval_docs` is made anew at each access
    source_docs: list[dict[str, Any]]
    keys: list[str]  # of every target document
    source_rows: list[int | None]  # source row of every target document; None if it has none
    rows: list[int] = field(default_factory=list)  # target rows that are evaluated, ascending
    gold_compared: int = 0
    gold_equal: int = 0
    others: list[Pairing] = field(default_factory=list)  # the same target in further source languages
    # Found by content, since the harness renumbers documents: digest of a target document -> key, source document.
    _aligned: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    # For `answer`: requests by their document's key and by its place in memory, and the list that they are from.
    _asked: dict[str | int, Instance] = field(default_factory=dict)
    _asked_of: Any = None

    @property
    def name(self) -> str:
        return str(self.target.config.task)

    def key_of(self, doc: dict[str, Any]) -> str:
        return self._aligned[_digest(doc)][0]

    def source_doc(self, doc: dict[str, Any]) -> dict[str, Any]:
        return self._aligned[_digest(doc)][1]

    def answer(self, doc: dict[str, Any]) -> str:
        """The text that was generated for a document, before the task's filters; of repeats the first."""
        if self._asked_of is not self.target.instances:  # the harness has built its requests
            self._asked_of = self.target.instances
            self._asked = {request.source_key: request for request in self._asked_of}
            # A grid hands over a request's own document, which need not be looked at then, thousands of times.
            self._asked |= {id(request.doc): request for request in self._asked_of}
        request = self._asked.get(id(doc)) or self._asked[self.key_of(doc)]
        return str(request.resps[0])

    def questions(self) -> list[list[str]]:
        """What each evaluated document asks, whatever the task is called: digests of the source's and of its own text.

        Without few-shot examples. A text that several documents have, or none, is no question of any of them.
        """
        sources = [self.source_docs[found] for row in self.rows if (found := self.source_rows[row]) is not None]
        sides = [
            [str(self.source.doc_to_text(doc)).strip() for doc in sources],
            [str(self.target.doc_to_text(self.docs[row])).strip() for row in self.rows],
        ]
        counts = [Counter(side) for side in sides]
        return [
            [texts_digest([text])[:16] for text, count in zip(texts, counts, strict=True) if text and count[text] == 1]
            for texts in zip(*sides, strict=True)
        ]


def load(
    task: TaskConfig,
    pair: LanguagePairConfig,
    split: Split,
    limit: int | None,
    sources: Sources = Sources(),
) -> list[Pairing]:
    """Load both sides of every task of the family, align their documents, and choose those to evaluate.

    Raises:
        AlignmentError: the two sides are not parallel; the message shows the first mismatches.
        XTransplantError: a task or its data cannot be loaded, or no document is left.
    """
    loader = Loader(task)
    pairings = []
    for target_name, source_name in task_names(task, pair):
        target = loader.load(target_name, pair.target)
        _set_shots(target, task, sources.seed)
        _check_shots(target)
        read = _source_tasks(target_name, source_name, task, pair, sources, loader)
        for side in read:
            _set_shots(side, task, sources.seed)
        pairing = pair_tasks(target, read, task, pair, sources, split)
        pairing.rows = _chosen_rows(pairing, task, split)[:limit]
        pairings.append(pairing)
    return pairings


def _set_shots(side: ConfigurableTask, task: TaskConfig, seed: int) -> None:
    """What the harness's `simple_evaluate` does, and `evaluate` leaves undone."""
    if task.num_fewshot is not None or side.config.num_fewshot is None:
        side.set_config("num_fewshot", task.num_fewshot or 0)
    side.set_fewshot_seed(seed)


def _source_tasks(
    target_name: str,
    source_name: str,
    task: TaskConfig,
    pair: LanguagePairConfig,
    sources: Sources,
    loader: Loader,
) -> list[ConfigurableTask]:
    """The task of the pair's source language, then those of the further ones, which `families.check` has judged."""
    names, place = [source_name], task_names(task, pair).index((target_name, source_name))
    for language in sources.mean_over:
        names.append(task_names(task, dataclasses.replace(pair, source=language))[place][1])
    return [
        loader.load(name, language) for name, language in zip(names, (pair.source, *sources.mean_over), strict=True)
    ]


def pair_for(
    target: ConfigurableTask, task: TaskConfig, pair: LanguagePairConfig, sources: Sources = Sources()
) -> Pairing | None:
    """Pair a task that the harness has built itself; None if it is not one of the family's target tasks.

    Raises:
        As `load`.
    """
    for target_name, source_name in task_names(task, pair):
        if target_name == target.config.task:
            read = _source_tasks(target_name, source_name, task, pair, sources, Loader(task))
            return pair_tasks(target, read, task, pair, sources)
    return None


def pair_tasks(
    target: ConfigurableTask,
    read: Sequence[ConfigurableTask],
    task: TaskConfig,
    pair: LanguagePairConfig,
    sources: Sources = Sources(),
    split: Split = Split.all,
) -> Pairing:
    """Align the documents of built tasks, a target and its sources, and make the target build the source prompts too,
    and tell the language of what it generates.

    Args:
        split: the half whose labels have to agree: the other one is not evaluated.

    Raises:
        AlignmentError: as `load`.
    """
    first, *others = sides = [_align(target, source, task, split) for source in read]
    for side, language in zip(sides, (pair.source, *sources.mean_over), strict=True):
        _check_languages(side, language, pair.target)
    for row in range(len(first.docs)):
        # A document counts where every source language has it.
        if any(side.source_rows[row] is None for side in sides):
            for side in sides:
                side.source_rows[row] = None
    for side in sides if sources.control is Control.random_document else []:
        _misplace(side, task, sources.seed)
    first.others = others
    _attach(first, task, sources)
    answer_language.add_metrics(target, pair.source, pair.target, first.answer)
    return first


def _align(target: ConfigurableTask, source: ConfigurableTask, task: TaskConfig, split: Split) -> Pairing:
    target_docs, source_docs = list(target.eval_docs), list(source.eval_docs)
    keys = _keys(target_docs, task.key, target)
    source_rows: list[int | None]
    if task.key == "row":
        if len(target_docs) != len(source_docs):
            raise AlignmentError(
                f"{target.config.task} has {len(target_docs)} documents, {source.config.task} {len(source_docs)}: "
                "not parallel by row. Give the field that aligns them as task.key."
            )
        source_rows = list(range(len(target_docs)))
    else:
        row_of = {key: row for row, key in enumerate(_keys(source_docs, task.key, source))}
        source_rows = [row_of.get(key) for key in keys]
    pairing = Pairing(target, source, target_docs, source_docs, keys, source_rows)
    _check_alignment(pairing, target_docs, source_docs, task, split)
    for row, (doc, found) in enumerate(zip(target_docs, source_rows, strict=True)):
        if found is None:
            continue
        key, counterpart = pairing._aligned.setdefault(_digest(doc), (keys[row], source_docs[found]))
        if counterpart != source_docs[found]:
            raise AlignmentError(
                f"{target.config.task}: documents {key} and {keys[row]} are equal, but have different counterparts in "
                f"{source.config.task}. The harness hands over a document's content only: remove one of them."
            )
    return pairing


def _misplace(pairing: Pairing, task: TaskConfig, seed: int) -> None:
    """Give each document the source of another one of its half, drawn by its key: so a limit changes no draw."""
    halves: dict[Split, list[int]] = {}
    for row, (key, doc) in enumerate(zip(pairing.keys, pairing.docs, strict=True)):
        if pairing.source_rows[row] is not None:
            halves.setdefault(_split_of(key, doc, task), []).append(row)
    own = dict(pairing._aligned)

    def counterpart(row: int) -> dict[str, Any]:
        return own[_digest(pairing.docs[row])][1]

    def asks(row: int) -> str:
        return str(pairing.source.doc_to_text(counterpart(row)))

    for rows in halves.values():
        if len(rows) == 1:
            raise XTransplantError(
                f"transplant.control=random_document: {pairing.name} has one document in a half, so no other."
            )
        for place, row in enumerate(rows):
            digest = hashlib.sha256(f"{seed}:{pairing.keys[row]}".encode()).digest()
            step = 1 + int.from_bytes(digest[:8], "big") % (len(rows) - 1)
            others = (rows[(place + step + more) % len(rows)] for more in range(len(rows)))
            # One that asks the same would be no control.
            drawn, asked = rows[(place + step) % len(rows)], asks(row)
            other = next((each for each in others if asks(each) != asked), drawn)
            pairing._aligned[_digest(pairing.docs[row])] = pairing.keys[row], counterpart(other)


def _check_shots(task: ConfigurableTask) -> None:
    shots = task.config.num_fewshot or 0
    if shots == 0:
        return
    pool = list(task.fewshot_docs() or [])
    # A document is not its own example: where both come from one split, one more is drawn.
    spare = len(pool) - (task.fewshot_cfg.split in (None, task.config.test_split))
    if shots > spare:
        raise XTransplantError(
            f"task.num_fewshot={shots}: {task.config.task} has {len(pool)} documents to take examples from. "
            f"Allowed: 0 to {max(spare, 0)}."
        )


def _chosen_rows(pairing: Pairing, task: TaskConfig, split: Split) -> list[int]:
    chosen = [
        row
        for row, (key, doc) in enumerate(zip(pairing.keys, pairing.docs, strict=True))
        if pairing.source_rows[row] is not None and split in (Split.all, _split_of(key, doc, task))
    ]
    if not chosen:
        raise XTransplantError(
            f"{pairing.name}: split={split.value} has none of the {len(pairing.keys)} documents. "
            "Allowed: all, sample, unseen."
        )
    return chosen


def _keys(docs: Sequence[dict[str, Any]], key: str, task: ConfigurableTask) -> list[str]:
    if key == "row":
        return [f"row:{row}" for row in range(len(docs))]
    names = [name.strip() for name in key.split(",")]
    missing = [name for name in names if name not in docs[0]]
    if missing:
        raise AlignmentError(
            f"task.key={key}: the documents of {task.config.task} have no field {', '.join(missing)}. They have: "
            f"{', '.join(docs[0])}. Give one of these, several joined by commas, or `row`."
        )
    found = [":".join(str(doc[name]) for name in names) for doc in docs]
    repeated = [value for value, count in Counter(found).items() if count > 1]
    if repeated:
        raise AlignmentError(
            f"task.key={key}: {len(repeated)} keys of {task.config.task} occur more than once, e.g. "
            f"{', '.join(repeated[:3])}. Join several fields by commas so that a key names one document."
        )
    return found


def _check_alignment(
    pairing: Pairing,
    target_docs: list[dict[str, Any]],
    source_docs: list[dict[str, Any]],
    task: TaskConfig,
    split: Split,
) -> None:
    target, source, rows = pairing.target, pairing.source, pairing.source_rows
    names = f"{target.config.task} and {source.config.task} are not parallel"
    missing = [pairing.keys[row] for row, found in enumerate(rows) if found is None]
    if missing and (task.unmatched is Unmatched.error or len(missing) == len(rows)):
        raise AlignmentError(
            f"{names}: {len(missing)} of {len(rows)} documents have no counterpart with the same {task.key}, e.g. "
            f"{', '.join(missing[:5])}. Name the aligning field as task.key, or leave such documents out with "
            "task.unmatched=drop."
        )
    aligned = [(row, found) for row, found in enumerate(rows) if found is not None]
    if target.config.doc_to_choice is not None and source.config.doc_to_choice is not None:
        counts = [
            (row, len(target.doc_to_choice(target_docs[row])), len(source.doc_to_choice(source_docs[found])))
            for row, found in aligned
        ]
        unlike = [(row, ours, theirs) for row, ours, theirs in counts if ours != theirs]
        if unlike:
            row, ours, theirs = unlike[0]
            raise AlignmentError(
                f"{names}: {len(unlike)} of {len(aligned)} documents differ in the number of choices, first "
                f"{pairing.keys[row]}: {ours} against {theirs}."
            )
    _check_answers(pairing, task, split)
    if task.gold is None:
        return
    for side, docs in ((target, target_docs), (source, source_docs)):
        if task.gold != _OWN_ANSWER and task.gold not in docs[0]:
            raise AlignmentError(
                f"task.gold={task.gold}: the documents of {side.config.task} have no such field. They have: "
                f"{', '.join(docs[0])}. Give a label that no language changes, {_OWN_ANSWER} for the task's own "
                "answer, or null for no check."
            )
    golds = [
        (row, found, _label(target, target_docs[row], task.gold), _label(source, source_docs[found], task.gold))
        for row, found in aligned
        if split in (Split.all, _split_of(pairing.keys[row], target_docs[row], task))
    ]
    # A side whose labels are withheld (-1, empty) says nothing.
    known = [item for item in golds if not {item[2], item[3]} & {-1, None, ""}]
    unequal = [item for item in known if item[2] != item[3]]
    pairing.gold_compared, pairing.gold_equal = len(known), len(known) - len(unequal)
    if known and 1 - len(unequal) / len(known) < task.min_gold_agreement:
        shown = "\n".join(
            f"  {pairing.keys[row]}: {task.gold} {ours!r} against {theirs!r}\n"
            f"    {_brief(target.doc_to_text(target_docs[row]))}\n    {_brief(source.doc_to_text(source_docs[found]))}"
            for row, found, ours, theirs in unequal[:3]
        )
        raise AlignmentError(
            f"{names}: the gold label agrees in {len(known) - len(unequal)} of {len(known)} documents, "
            f"below task.min_gold_agreement={task.min_gold_agreement}. First mismatches:\n{shown}\n"
            "The source prompts would belong to other documents. Mend the data, or take another language pair."
        )


def _check_answers(pairing: Pairing, task: TaskConfig, split: Split) -> None:
    """The harness scores a right answer that is none of the choices as 0, whatever the model says.

    Raises:
        XTransplantError: a document of the target has such an answer.
    """
    target = pairing.target
    if target.OUTPUT_TYPE != "multiple_choice" or callable(target.config.process_results):
        return
    wrong, looked_at = [], 0
    for row, (key, doc) in enumerate(zip(pairing.keys, pairing.docs, strict=True)):
        if pairing.source_rows[row] is None or split not in (Split.all, _split_of(key, doc, task)):
            continue
        looked_at += 1
        choices = target.doc_to_choice(doc)
        # As the harness grades: with a context for each choice, the text says which one is right.
        answer = target.doc_to_text(doc) if target.multiple_input else target.doc_to_target(doc)
        if not is_among(answer, choices):
            wrong.append((key, answer, choices))
    if wrong:
        key, answer, choices = wrong[0]
        setting = "doc_to_text" if target.multiple_input else "doc_to_target"
        raise XTransplantError(
            f"{target.config.task}: in {len(wrong)} of {looked_at} documents the right answer is none of the choices, "
            f"first in {key}: {setting} gives {answer!r}, the choices are {', '.join(map(repr, choices))}. It has to "
            f"be the number of a choice, from 0, or its text. Mend {setting} in the task's YAML "
            f"({setting}: {getattr(target.config, setting)}), or the data. Fields of a document: "
            f"{', '.join(pairing.docs[0])}."
        )


def is_among(answer: Any, choices: Sequence[str]) -> bool:
    """Whether a right answer, as the harness has it, is one of the choices: a number from 0, a text, or several."""
    if isinstance(answer, list):  # any of them counts
        return bool(answer) and all(isinstance(each, int) and 0 <= each < len(choices) for each in answer)
    return 0 <= answer < len(choices) if isinstance(answer, int) else answer in choices


def _check_languages(pairing: Pairing, source_language: str, target_language: str) -> None:
    """Two languages that ask the same are, as a rule, one file read twice.

    Prompts that are all equal are only warned of where the documents differ: a task may ask in numbers, or have all its
    words in the choices.

    Raises:
        AlignmentError: all documents are equal, and ask the same.
    """
    if source_language.partition("-")[0] == target_language.partition("-")[0]:  # en and en-GB may well be equal
        return
    target, source = pairing.target, pairing.source
    both = [
        (doc, pairing.source_docs[n]) for doc, n in zip(pairing.docs, pairing.source_rows, strict=True) if n is not None
    ]
    asked = ((str(target.doc_to_text(doc)), str(source.doc_to_text(other))) for doc, other in both)
    empty = True
    for ours, theirs in asked:
        if ours != theirs:
            return
        empty = empty and not ours.strip()
    if empty or target.config.description != source.config.description:
        return
    names = (
        f"{target.config.task} ({target_language}) and {source.config.task} ({source_language}): all {len(both)} "
        "documents ask the same in both languages"
    )
    if all(doc == other for doc, other in both):
        raise AlignmentError(
            f"{names}, and are equal in every field. Is {{lang}} missing in task.data_files, or one file a copy of the "
            f"other? For one language with itself, give language_pair={target_language}-{target_language}."
        )
    log.warning("%s, although the documents differ: a transplant between them says nothing of languages.", names)


def _label(task: ConfigurableTask, doc: dict[str, Any], gold: str) -> Any:
    """The label in a field; or the task's own answer, as its place among the choices where it is one of them."""
    if gold != _OWN_ANSWER:
        return doc[gold]
    answer = task.doc_to_target(doc)
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else []
    return choices.index(answer) if answer in choices else answer


def _split_of(key: str, doc: dict[str, Any], task: TaskConfig) -> Split:
    given = doc.get(task.split_field) if task.split_field is not None else None
    if given is None:
        return Split.sample if hashlib.sha256(key.encode()).digest()[0] % 2 == 0 else Split.unseen
    if given not in ("sample", "unseen"):
        raise XTransplantError(
            f"task.split_field={task.split_field}: document {key} says {given!r} there; allowed are 'sample' and "
            "'unseen'. null draws halves by a hash of the key."
        )
    return Split(given)


def _attach(pairing: Pairing, task: TaskConfig, sources: Sources) -> None:
    """Make the target task build the source prompts beside each of its own."""
    target = pairing.target
    build_target, context_of_target = target.construct_requests, target.fewshot_context
    settings: dict[str, Any] = {}

    def fewshot_context(doc: dict[str, Any], **arguments: Any) -> Any:
        settings.clear()
        settings.update(arguments)
        return context_of_target(doc, **arguments)

    def prompts_of(side: Pairing, doc: dict[str, Any], count: int, arguments: dict[str, Any]) -> list[str]:
        source, source_doc = side.source, side.source_doc(doc)
        context = source.fewshot_context(source_doc, **(settings | {"gen_prefix": source.doc_to_prefix(source_doc)}))
        parallel = source.construct_requests(doc=source_doc, ctx=context, **arguments)
        prompts = [other.args[0] for other in _listed(parallel)]
        if sources.control is Control.random_document and len(prompts) != count:
            prompts = prompts[:1] * count  # another document may have more choices, or fewer
        return prompts

    def construct_requests(doc: dict[str, Any], ctx: Any, **arguments: Any) -> Any:
        requests = build_target(doc=doc, ctx=ctx, **arguments)
        listed = _listed(requests)
        sides = [prompts_of(side, doc, len(listed), arguments) for side in (pairing, *pairing.others)]
        for request, *prompts in zip(listed, *sides, strict=True):
            asked, *rest = request.arguments
            if sources.before:
                request.arguments = (f"{prompts[0]}\n\n{asked}", *rest)
            request.source_prompts = [request.args[0]] if sources.control is Control.self else prompts
            request.source_key = pairing.key_of(doc)
        return requests

    # The harness calls both as methods of the task, with these names.
    target.fewshot_context, target.construct_requests = fewshot_context, construct_requests
    for side in (pairing, *pairing.others):
        if hasattr(target, "sampler") and hasattr(side.source, "sampler"):
            _share_shots(side, task)


def _share_shots(pairing: Pairing, task: TaskConfig) -> None:
    """Give the source task the counterparts of the few-shot examples that the target task drew."""
    target, source = pairing.target.sampler, pairing.source.sampler
    draw = target.sample
    drawn: list[dict[str, Any]] = []
    target_pool, source_pool = list(target.fewshot_docs()), list(source.fewshot_docs())
    key = task.key if target_pool and all(name.strip() in target_pool[0] for name in task.key.split(",")) else "row"
    counterpart: dict[str, dict[str, Any] | None] = {}

    def sample(*args: Any, **kwargs: Any) -> Any:
        drawn[:] = draw(*args, **kwargs)
        return list(drawn)

    def counterparts(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        if drawn and key == "row" and len(target_pool) != len(source_pool):
            raise AlignmentError(
                f"{pairing.source.config.task} takes its few-shot examples from {len(source_pool)} documents, "
                f"{pairing.name} from {len(target_pool)}: not parallel by row. Use task.num_fewshot=0."
            )
        if not counterpart:
            by_key = dict(zip(_keys(source_pool, key, pairing.source), source_pool, strict=True))
            for doc, name in zip(target_pool, _keys(target_pool, key, pairing.target), strict=True):
                counterpart[_digest(doc)] = by_key.get(name)
        found = [counterpart.get(_digest(doc)) for doc in drawn]
        if None in found:
            raise AlignmentError(
                f"{pairing.source.config.task} has no counterpart of a few-shot example of {pairing.name}: the two "
                f"few-shot splits are not parallel by {key}. Use task.num_fewshot=0."
            )
        return [doc for doc in found if doc is not None]

    target.sample, source.sample = sample, counterparts


def trivial_baseline(pairing: Pairing, task: TaskConfig) -> float | None:
    """Accuracy of a guess that does not read the question; None where answers are free text.

    The better of two: always the position that is right most often, and always the choice whose text is right most
    often in the other documents (ties count in part).
    """
    target = pairing.target
    docs = [pairing.docs[row] for row in pairing.rows]
    golds = [_label(target, doc, task.gold) if task.gold is not None else target.doc_to_target(doc) for doc in docs]
    if not all(isinstance(gold, int | str) for gold in golds) or (task.gold is None and isinstance(golds[0], str)):
        return None
    same_position = Counter(golds).most_common(1)[0][1] / len(golds)
    if target.OUTPUT_TYPE != "multiple_choice" or target.multiple_input:
        return same_position
    answers = [(target.doc_to_choice(doc), target.doc_to_target(doc)) for doc in docs]
    right = Counter(choices[gold] for choices, gold in answers if isinstance(gold, int))
    same_text = 0.0
    for choices, gold in answers:
        if not isinstance(gold, int):
            return same_position
        others = [right[text] - (n == gold) for n, text in enumerate(choices)]
        same_text += (others[gold] == max(others)) / others.count(max(others))
    return max(same_position, same_text / len(answers))


def prompts_digest(requests: Sequence[Instance]) -> dict[str, str]:
    """sha256 over all prompts of each side, in the order of the requests."""
    return {
        "source": texts_digest(prompt for request in requests for prompt in request.source_prompts),
        "target": texts_digest(request.args[0] for request in requests),
    }


def docs_digest(docs: Iterable[dict[str, Any]]) -> str:
    """sha256 over documents, in order: the fingerprint of the data that was used."""
    return texts_digest(map(_digest, docs))


def texts_digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def _digest(doc: dict[str, Any]) -> str:
    text = json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _listed(requests: Any) -> list[Any]:
    return requests if isinstance(requests, list) else [requests]


def _brief(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 100 else f"{line[:99]}…"
