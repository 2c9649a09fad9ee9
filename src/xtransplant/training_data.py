"""What a model is trained on: documents of a task's sample half, or instructions, each a prompt and its answer.

A document belongs to training or is held out, in all its languages; which, and which are taken where not all are, is
drawn by a hash of its key. So more languages, or another limit of the same data, draw the same documents.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtransplant import disk, families, pairing
from xtransplant.catalogue import languages_meant
from xtransplant.checks import did_you_mean, shown
from xtransplant.config import DataConfig, LanguagePairConfig, Mixture, SftConfig, Split, TaskConfig
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

# What turns a chat's messages into text, as the harness calls it: chat(messages, add_generation_prompt), where True
# lets an answer follow and False leaves the last turn open; closed=True ends it.
Chat = Callable[..., str]

# What `datasets` calls the formats of local files.
_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Example:
    """A prompt, and the answer that is trained.

    Attributes:
        document: what it is known by: `<task>/<key>`, as selections name it, or `<data>/<key>`.
        ends: the answer is the whole of it, so the end-of-text token is trained too; a choice that is scored has none.
        questions: digests of what the document asks (`Pairing.questions`).
    """

    language: str
    document: str
    prompt: str
    answer: str
    ends: bool
    questions: tuple[str, ...]


@dataclass
class TrainingData:
    """What is trained on, and what is held out.

    Attributes:
        left_out: rows without a prompt or an answer.
    """

    training: list[Example]
    held_out: list[Example]
    left_out: int = 0

    @property
    def examples(self) -> list[Example]:
        """All that the training sees: what is held out says when it ends, and so counts as seen."""
        return [*self.training, *self.held_out]

    @property
    def marks(self) -> dict[str, list[str]]:
        """What the documents are known by, as a selection's `documents` and `questions`."""
        return {
            "documents": sorted({example.document for example in self.examples}),
            "questions": sorted({mark for example in self.examples for mark in example.questions}),
        }

    @property
    def sha256(self) -> str:
        """Of every example, in order."""
        parts = (
            (name, *(each.language, each.document, each.prompt, each.answer, str(each.ends)))
            for name, examples in (("training", self.training), ("held_out", self.held_out))
            for each in examples
        )
        return pairing.texts_digest(itertools.chain.from_iterable(parts))

    def counts(self) -> dict[str, dict[str, int]]:
        """Language -> how many examples are trained on and held out."""
        sides = {"training": self.training, "held_out": self.held_out}
        found = {side: Counter(each.language for each in examples) for side, examples in sides.items()}
        languages = dict.fromkeys(each.language for each in self.examples)
        return {language: {side: found[side][language] for side in sides} for language in languages}


@dataclass
class _Rows:
    """The examples of one language, in the data's order."""

    examples: list[Example] = field(default_factory=list)
    left_out: int = 0


def load(config: SftConfig, chat: Chat | None = None) -> TrainingData:
    """Load what a config names, draw what is held out, and mix the languages.

    Args:
        chat: makes prompts of messages; needed where the config asks for chats.

    Raises:
        XTransplantError: the data cannot be had, have no rows of a language or no such fields, or nothing is left.
    """
    data = config.data
    rows = _task_rows(config, chat) if config.trains_on_task else _instruction_rows(data, chat)
    taken = {
        language: sorted(found.examples, key=lambda each: _drawn(config.seed, each.document))
        for language, found in rows.items()
    }
    for language, examples in taken.items():
        if data.limit is not None:
            kept = set(list(dict.fromkeys(each.document for each in examples))[: data.limit])
            taken[language] = [each for each in examples if each.document in kept]
    documents = sorted(
        {each.document for examples in taken.values() for each in examples},
        key=lambda name: _drawn(config.seed, name),
    )
    held = set(documents[: math.ceil(data.held_out * len(documents))])
    training = {language: [each for each in found if each.document not in held] for language, found in taken.items()}
    empty = [language for language, examples in training.items() if not examples]
    if empty:
        raise XTransplantError(
            f"data.held_out={data.held_out:g}: of the {len(documents)} documents none is left to train on in "
            f"{', '.join(empty)}. Hold out less, or raise data.limit={data.limit}."
        )
    mixed = _mixed(training, data)
    return TrainingData(
        [each for language in training for each in training[language][: mixed[language]]],
        [each for found in taken.values() for each in found if each.document in held],
        sum(found.left_out for found in rows.values()),
    )


def _drawn(seed: int, document: str) -> str:
    return hashlib.sha256(f"{seed}:{document}".encode()).hexdigest()


def _mixed(training: dict[str, list[Example]], data: DataConfig) -> dict[str, int]:
    """How many examples of each language are taken."""
    counts = {language: len(examples) for language, examples in training.items()}
    if data.mixture is Mixture.proportional:
        return counts
    if data.mixture is Mixture.equal:
        return dict.fromkeys(counts, min(counts.values()))
    whole = min(counts[language] / share for language, share in data.weights.items() if share > 0)
    # Rounding may not ask for one more than there is.
    return {
        language: min(count, max(1, round(whole * data.weights[language]))) if data.weights[language] > 0 else 0
        for language, count in counts.items()
    }


# --- The task's own documents ----------------------------------------------------------------------------------------


def _task_rows(config: SftConfig, chat: Chat | None) -> dict[str, _Rows]:
    rows: dict[str, _Rows] = {}
    for language in config.data.languages:
        if language in rows:
            continue
        pair, side = direction(config.task, language, config.data.languages)
        rows[language] = _Rows()
        sources = pairing.Sources(seed=config.seed)
        pairs = pairing.load(config.task, pair, Split.sample, None, sources)
        for template, found in zip(config.task.tasks, pairs, strict=True):
            rows[language].examples += _of_task(found, side, template, language, config, chat)
    return rows


def direction(task: TaskConfig, language: str, languages: Sequence[str]) -> tuple[LanguagePairConfig, str]:
    """A language pair that has the language's documents, and on which side: the target's, if it can be one."""
    partners = dict.fromkeys([*languages, "en", *task.languages])
    others = [each for each in partners if each != language and each in (task.languages or partners)]
    for partner in [*others, language]:
        pair = LanguagePairConfig(partner, language)
        if not families.check(task, pair):
            return pair, "target"
    for partner in others:
        pair = LanguagePairConfig(language, partner)
        if not families.check(task, pair):
            return pair, "source"
    raise XTransplantError("\n".join(families.check(task, LanguagePairConfig(language, language))))


def _of_task(
    found: pairing.Pairing, side: str, template: str, language: str, config: SftConfig, chat: Chat | None
) -> list[Example]:
    """The examples of one task: its own requests, each with the answer that its scoring takes for right."""
    ours = side == "target"
    task, docs = (found.target, found.docs) if ours else (found.source, found.source_docs)
    if not ours and (task.config.num_fewshot or 0) > 0:
        raise XTransplantError(
            f"task.num_fewshot={task.config.num_fewshot}: {task.config.task} is a source side only, whose examples "
            f"are those of a target. Give task.num_fewshot=0, or leave {language} out of data.languages."
        )
    _refuse_shown(task, found)
    asked = dict(zip(found.rows, found.questions(), strict=True))
    # In the order of the harness, which is the documents' own.
    place = {row if ours else int(found.source_rows[row] or 0): row for row in found.rows}
    task.build_all_requests(
        samples=sorted(place),
        system_instruction=config.task.system_instruction,
        apply_chat_template=config.task.apply_chat_template,
        fewshot_as_multiturn=config.task.fewshot_as_multiturn,
        chat_template=chat,
    )
    grouped: dict[int, list[Instance]] = {}
    for request in task.instances:
        grouped.setdefault(request.doc_id, []).append(request)
    examples = []
    for row, requests in zip(sorted(place), grouped.values(), strict=True):
        prompt, answer = _answered(task, docs[row], sorted(requests, key=lambda each: int(each.idx)), config.task)
        examples.append(
            Example(
                language,
                f"{template}/{found.keys[place[row]]}",
                prompt,
                answer,
                task.OUTPUT_TYPE == "generate_until",
                tuple(asked[place[row]]),
            )
        )
    return examples


def _refuse_shown(task: ConfigurableTask, found: pairing.Pairing) -> None:
    """A document that is not trained on may not be an example in a prompt either, with its answer.

    Raises:
        XTransplantError: the task draws its few-shot examples from the documents that are evaluated.
    """
    shots = task.config.num_fewshot or 0
    if not shots:
        return
    others = {*range(len(found.docs))} - {*found.rows}
    unseen = {pairing.docs_digest([found.docs[row]]) for row in others}
    shown = sum(pairing.docs_digest([doc]) in unseen for doc in task.fewshot_docs() or [])
    if shown:
        raise XTransplantError(
            f"task.num_fewshot={shots}: {task.config.task} draws its examples from the documents that are evaluated; "
            f"{shown} of them are not of the sample half, and a model may not be trained on prompts that show them "
            "with their answers. Give task.num_fewshot=0."
        )


def _answered(
    task: ConfigurableTask, doc: dict[str, Any], requests: Sequence[Instance], settings: TaskConfig
) -> tuple[str, str]:
    """The prompt of a document and its right answer, as the harness divides them."""
    if task.OUTPUT_TYPE == "multiple_choice":
        # With a context for each choice, the text says which one is right.
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        choices = _choices(task, doc, gold)
        if isinstance(gold, list):
            gold = gold[0]  # any of them counts
        if not isinstance(gold, int):
            gold = choices.index(gold)
        prompt, answer = requests[gold].args[:2]
        return str(prompt), str(answer)
    if task.OUTPUT_TYPE == "loglikelihood":
        prompt, answer = requests[0].args[:2]
        return str(prompt), str(answer)
    if task.OUTPUT_TYPE == "generate_until":
        target = task.doc_to_target(doc)
        if isinstance(target, int) and task.config.doc_to_choice is not None:
            target = _choices(task, doc, target)[target]
        if isinstance(target, list):
            target = target[0]
        delimiter = "" if settings.apply_chat_template else task.config.target_delimiter
        return str(requests[0].args[0]), f"{delimiter}{target}"
    raise XTransplantError(
        f"{task.config.task} asks for {task.OUTPUT_TYPE}, which has no answer to train. Take a task of "
        "multiple_choice, loglikelihood or generate_until."
    )


def _choices(task: ConfigurableTask, doc: dict[str, Any], answer: Any) -> list[str]:
    """A document's choices.

    Raises:
        XTransplantError: the right answer is none of them, e.g. a label of -1, which is not public. Of the target
            side's documents `pairing` says so before.
    """
    choices: list[str] = task.doc_to_choice(doc)
    if not pairing.is_among(answer, choices):
        raise XTransplantError(
            f"{task.config.task}: the right answer of a document is none of its choices, so there is none to train: "
            f"{answer!r}, of {', '.join(map(repr, choices))}. Mend the data, or take a task whose labels are public."
        )
    return choices


# --- Instructions ----------------------------------------------------------------------------------------------------


def _instruction_rows(data: DataConfig, chat: Chat | None) -> dict[str, _Rows]:
    found = {}
    for language in dict.fromkeys(data.languages):
        rows = found[language] = _Rows()
        for row in _raw(data, language):
            prompt, answer = (_filled(data, name, row) for name in ("prompt", "answer"))
            key = _key_of(row, data, prompt)
            if not prompt or not answer:
                rows.left_out += 1
                continue
            marks = (pairing.texts_digest([prompt])[:16],)
            asked, told, ends = prompt, f"\n\n{answer}", True
            if data.apply_chat_template:
                asked, told, ends = _as_chat(prompt, answer, chat)
            rows.examples.append(Example(language, f"{data.name}/{key}", asked, told, ends, marks))
        if not rows.examples:
            raise XTransplantError(
                f"{data.path}: {rows.left_out} rows in {language}, and none has both a prompt and an answer by "
                f"data.prompt={data.prompt} and data.answer={data.answer}. Give templates of its own fields."
            )
    return found


def _filled(data: DataConfig, name: str, row: dict[str, Any]) -> str:
    """What the template of a key makes of a row."""
    from lm_eval.utils import apply_template

    template = getattr(data, name)
    families.sandbox_templates()
    try:
        return str(apply_template(template, row)).strip()
    except XTransplantError as error:
        raise XTransplantError(f"data.{name}={template}: {error}") from error
    except Exception as error:  # Jinja's, of a field that is not there, for one
        undefined = re.match(r"'(\w+)' is undefined", str(error))
        hint = "" if undefined is None else did_you_mean(undefined[1], row)
        raise XTransplantError(
            f"data.{name}={template}: does not fit the rows of {data.path}: {error}. {hint}Their fields: "
            f"{', '.join(row)}. Write a template of these, e.g. 'data.{name}=\"{{{{{next(iter(row))}}}}}\"'."
        ) from error


def _as_chat(prompt: str, answer: str, chat: Chat | None) -> tuple[str, str, bool]:
    """The prompt up to where the answer begins; the answer with the end of its turn; whether it lacks that."""
    assert chat is not None
    question = [{"role": "user", "content": prompt}]
    before = chat(question, True)
    whole = chat([*question, {"role": "assistant", "content": answer}], closed=True)
    # A template may begin an answer otherwise than it shows one.
    return (before, whole[len(before) :].rstrip(), False) if whole.startswith(before) else (before, answer, True)


def _key_of(row: dict[str, Any], data: DataConfig, prompt: str) -> str:
    if data.key is None:
        return pairing.texts_digest([prompt])[:16]
    names = [name.strip() for name in data.key.split(",")]
    for name in names:
        if name not in row:
            raise XTransplantError(
                f"data.key={data.key}: the rows of {data.path} have no field {name}. {did_you_mean(name, row)}Their "
                f"fields: {', '.join(row)}. Give what a row has in common with its translations; or data.key=null: "
                "each row is a document of its own."
            )
    return ":".join(str(row[name]) for name in names)


def _raw(data: DataConfig, language: str) -> Iterable[dict[str, Any]]:
    """The rows of a language as they are in the data."""
    code = data.codes.get(language, language)
    rows = _loaded(data, code)
    if data.language_field is None:
        return rows
    if data.language_field not in rows.column_names:
        raise XTransplantError(
            f"data.language_field={data.language_field}: {data.path} has no such field. It has: "
            f"{', '.join(rows.column_names)}."
        )
    of_rows = [str(each) for each in rows[data.language_field]]
    wanted = set(code.split("|"))
    chosen = [number for number, each in enumerate(of_rows) if each in wanted]
    if not chosen:
        there = sorted(set(of_rows))
        raise XTransplantError(
            f"data.languages: {data.path} has no rows of {language} ({data.language_field}: {code}). "
            f"It has: {', '.join(there[:40])}. If the language is there by another code: "
            f"data.codes={{{language}: {(languages_meant(language, there) or ['<code>'])[0]}}}."
        )
    return rows.select(chosen)


def _loaded(data: DataConfig, code: str) -> Any:
    import datasets

    path = Path(data.path).expanduser()
    files = file_of(data, code)
    try:
        if files is not None:
            return datasets.load_dataset(_FORMATS[_suffix(files)], data_files=files, split="train")
        where = str(path) if path.is_dir() else data.path
        name = None if data.config is None else data.config.format(lang=code)
        return datasets.load_dataset(where, name, split=data.split, revision=data.revision)
    except Exception as error:
        what = files or data.path
        fault = (
            families.broken_line(Path(what), '{"id": 1, "instruction": "…", "output": "…"}') if path.exists() else None
        )
        if fault is not None:
            raise XTransplantError(f"data.path={data.path}: {fault}") from error
        how = (
            "Mend the file"
            if path.exists()
            else "Check the network (or HF_HUB_OFFLINE), or give a folder that has it as data.path"
        )
        raise XTransplantError(
            f"data.path={data.path}: {what} could not be loaded: {type(error).__name__}: "
            f"{str(error).strip()[:300]}. {how}."
        ) from error


def file_of(data: DataConfig, code: str) -> str | None:
    """The file that holds a language's rows; None for what `datasets` finds by a data set's name.

    Args:
        code: the data's own of the language.
    """
    path = Path(data.path).expanduser()
    if path.is_file():
        return str(path)
    if data.files is not None:
        name = data.files.format(lang=code)
        revision = "" if data.revision is None else f"@{data.revision}"
        return str(path / name) if path.is_dir() else f"hf://datasets/{data.path}{revision}/{name}"
    if path.is_dir() and data.config is None:
        return next(
            (str(path / f"{code}{ending}") for ending in _FORMATS if (path / f"{code}{ending}").is_file()), None
        )
    return None


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix


def _meant(languages: Iterable[str], known: Collection[str]) -> str:
    """A question to put into a message, of languages that are not known; empty if nothing is close."""
    meant = [code for each in languages for code in languages_meant(each, known)]
    return f"Did you mean {' or '.join(meant)}? " if meant else ""


def check_task(task: TaskConfig, languages: Sequence[str]) -> list[str]:
    """Faults of a task's languages, names and folders that can be seen without loading it."""
    faults = []
    unknown = [each for each in languages if task.languages and each not in task.languages]
    if unknown:
        faults.append(
            f"data.languages={shown(languages)}: {task.name} has no {', '.join(unknown)}. "
            f"{_meant(unknown, task.languages)}It has: {', '.join(sorted(task.languages))}."
        )
    for language in dict.fromkeys(each for each in languages if each in (task.languages or [each])):
        try:
            direction(task, language, languages)
        except XTransplantError as error:
            faults += str(error).split("\n")
    return list(dict.fromkeys(faults))


def check(data: DataConfig) -> list[str]:
    """Faults of instruction data that can be seen without loading them."""
    path = Path(data.path).expanduser()
    faults = []
    unknown = [each for each in data.languages if data.codes and each not in data.codes]
    if unknown:
        known = ", ".join(sorted(data.codes))
        faults.append(
            f"data.languages={', '.join(unknown)}: {data.name} has no such language. "
            f"{_meant(unknown, data.codes)}It has: {known}. If it does, by another "
            f"code: data.codes={{{unknown[0]}: <code>}}."
        )
    if data.files is not None and not disk.is_below(data.files):
        faults.append(f"data.files={data.files}: leads out of data.path. Give a path below it, e.g. {{lang}}.jsonl.")
    for name in ("config", "files"):
        given = getattr(data, name)
        try:
            if given is not None:
                given.format(lang="en")
        except (KeyError, IndexError, ValueError):
            faults.append(f"data.{name}={given}: cannot be filled in. Allowed in braces: {{lang}}.")
    if faults:
        return faults
    if path.is_file():
        if _suffix(path.name) not in _FORMATS:
            faults.append(f"data.path={data.path}: not a file of rows. Allowed: {', '.join(_FORMATS)}.")
        elif data.language_field is None and len(set(data.languages)) > 1:
            faults.append(
                f"data.path={data.path}: one file for {len(set(data.languages))} languages. Name the field that tells "
                "them as data.language_field, or give a folder with a file of each language."
            )
        return faults
    if path.is_dir() and data.config is None and (data.files is not None or data.language_field is None):
        missing = {}
        for language in dict.fromkeys(data.languages):
            file = file_of(data, data.codes.get(language, language))
            if file is None or not Path(file).is_file():
                missing[language] = language if file is None else f"{language} ({Path(file).name})"
        if missing:
            endings = ", ".join(f"<language>{ending}" for ending in _FORMATS)
            there = [each.stem for each in path.iterdir() if each.suffix in _FORMATS]
            faults.append(
                f"data.path={data.path}: the folder has no file of {', '.join(missing.values())}. "
                f"{_meant(missing, there)}It needs {endings}; or give data.files, e.g. "
                "train.{lang}.jsonl, or data.config for a data set laid out as on the hub."
            )
        return faults
    if not path.is_dir() and (path.is_absolute() or data.path.startswith((".", "~")) or data.path.count("/") != 1):
        faults.append(
            f"data.path={data.path}: no such folder or file, and not a hub id, which reads org/name. Give one of these."
        )
    return faults
