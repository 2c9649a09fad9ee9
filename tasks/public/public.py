"""Documents of public benchmarks that lm-eval lacks, cannot load, or asks without a prompt to transplant into.

The `load_*` functions are lm-eval `custom_dataset` functions: they get the task's `dataset_kwargs` and the harness's
metadata, and give one split, `test`, whose documents hold their whole `prompt`, filled in from the tables beside this
file. The rows come from

1. `<data folder>/<data set>/…`, JSON lines; README.md in the folder above lists names and fields;
2. else, where there is no such folder, the Hugging Face hub, if it has the language.

The data folder is a metadata key (`--metadata data_dir=...`), else the environment variable XTRANSPLANT_DATA. lm-eval
loads this file by its path, so it imports no neighbour.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

try:
    from xtransplant.types import XTransplantError
except ImportError:  # plain lm-eval with this folder as its --include_path: xtransplant need not be installed

    class XTransplantError(Exception):  # type: ignore[no-redef]
        """A fault the user can act on."""


Doc = dict[str, Any]

# The hub's numbers for MKQA's kinds of answers. A question that has one of the second set, in any language, is left
# out in all of them: there is nothing short to look for.
MKQA_KINDS = ("entity", "long_answer", "unanswerable", "date", "number", "number_with_unit", "short_phrase", "binary")
MKQA_LEFT_OUT = {"long_answer", "unanswerable"}

# BLEnD's own scoring leaves out what this many of a country's five annotators could not answer.
BLEND_INAPPLICABLE = 3
BLEND_UNKNOWN = 5


# --- answers in words -----------------------------------------------------------------------------------------------


def load_mkqa(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """MKQA: `answers`, any of which counts; `words`, the answers that are yes or no, also in the prompt's language.

    Args:
        language: as MKQA names it, so zh_cn.
    """
    rows = _local("mkqa", f"{language}.test.jsonl", ("example_id", "question", "answer"), data_dir)
    if rows is None:
        rows = [_mkqa_row(row, language) for row in _hub_mkqa() if _has_short_answer(row)]
    template = _table("mkqa")[language]
    docs = []
    for row in rows:
        words = [word for word in ("yes", "no") if word in row["answer"]]
        docs.append(
            {
                "example_id": str(row["example_id"]),
                "language": language,
                "prompt": template["prompt"].format(question=row["question"]),
                "answers": [answer for answer in row["answer"] if answer not in words],
                "words": list(dict.fromkeys(form for word in words for form in (word, *template[word]))),
            }
        )
    return _as_test_split(docs)


def _hub_mkqa() -> list[Doc]:
    # The repository's main branch is a loading script, which `datasets` no longer runs; this one is the hub's own copy.
    files = {"test": "mkqa/train/*.parquet"}
    return _hub("apple/mkqa", None, "test", data_files=files, revision="refs/convert/parquet")


def _has_short_answer(row: Doc) -> bool:
    found = [answer for answers in row["answers"].values() for answer in answers]
    return all(answer["text"] and MKQA_KINDS[answer["type"]] not in MKQA_LEFT_OUT for answer in found)


def _mkqa_row(row: Doc, language: str) -> Doc:
    answers = [text for answer in row["answers"][language] for text in (answer["text"], *(answer["aliases"] or ()))]
    return {**row, "question": row["queries"][language], "answer": list(dict.fromkeys(answers))}


def load_xquad(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """XQuAD: `answers` are spans of the context, in the prompt's language."""
    rows = _local("xquad", f"{language}.jsonl", ("id", "context", "question", "answers"), data_dir)
    if rows is None:
        rows = _hub("google/xquad", f"xquad.{language}", "validation")
    template = _table("xquad")[language]
    return _as_test_split(
        [
            {
                "id": row["id"],
                "prompt": template["prompt"].format(context=row["context"], question=row["question"]),
                "answers": row["answers"]["text"],
            }
            for row in rows
        ]
    )


def load_blend(
    language: str, country: str, english: bool = False, data_dir: str | None = None, **_: Any
) -> datasets.DatasetDict:
    """BLEnD's short questions on a country, in its language or, `english`, in their English version.

    `answers` are the annotators', any of which counts; beside those in the country's language also the English ones,
    as in BLEnD's own scoring.
    """
    fields = ("id", "question", "question_en", "answers", "answers_en")
    rows = _local("blend", f"{language}-{country}.jsonl", fields, data_dir)
    if rows is None:
        rows = _hub_blend(country)
    template = _table("blend")["en" if english else language]
    docs = []
    for row in rows:
        in_english = [answer for answer in row["answers_en"] if answer.strip()]
        if in_english:  # else there would be nothing to find on the English side
            answers = in_english if english else [*row["answers"], *in_english]
            docs.append(
                {
                    "id": row["id"],
                    "country": country,
                    "prompt": template["prompt"].format(question=row["question_en" if english else "question"]),
                    "answers": list(dict.fromkeys(answer for answer in answers if answer.strip())),
                }
            )
    return _as_test_split(docs)


def _hub_blend(country: str) -> list[Doc]:
    """The annotation file itself: the reasons in `idks` differ from country to country, so its config does not load."""
    rows = []
    for row in _hub("uilab/BLEnD", None, "test", data_files={"test": f"data/annotations_hf/{country}_data.json"}):
        unsure = {reason: row["idks"].get(reason) or 0 for reason in ("no-answer", "not-applicable", "idk")}
        inapplicable = unsure["no-answer"] + unsure["not-applicable"]
        groups = row["annotations"]
        if inapplicable < BLEND_INAPPLICABLE and unsure["idk"] < BLEND_UNKNOWN and groups:
            rows.append(
                {
                    "id": row["ID"],
                    "question": row["question"],
                    "question_en": row["en_question"],
                    "answers": [answer for group in groups for answer in group["answers"]],
                    "answers_en": [answer for group in groups for answer in group["en_answers"]],
                }
            )
    return rows


# --- a choice of answers --------------------------------------------------------------------------------------------


def load_culturalbench(
    language: str, easy: bool = False, data_dir: str | None = None, **_: Any
) -> datasets.DatasetDict:
    """CulturalBench-Hard, one document a statement, or, `easy`, CulturalBench-Easy, one document a question.

    `label` 1 is a true statement, or the number of the right option. `statements` is how many statements the question
    has; `split` puts all of them into one half.
    """
    dataset = "culturalbench_easy" if easy else "culturalbench"
    options = [f"prompt_option_{letter}" for letter in "abcd"] if easy else ["data_idx", "prompt_option"]
    fields = ("question_idx", "prompt_question", "answer", *options)
    rows = _local(dataset, f"{language}.jsonl", fields, data_dir, needed=language != "en")
    if rows is None and language != "en":
        raise XTransplantError(
            f"CulturalBench in {language!r}: it was published in English only, and with {_where(data_dir)} there is no "
            f"{dataset}/{language}.jsonl. Put your translation there, JSON lines with {', '.join(fields)} as in the "
            "English rows of the hub, and name the folder above it by task.data_dir=... or XTRANSPLANT_DATA."
        )
    if rows is None:
        # "None" and "N/A" are options, not gaps.
        config = "CulturalBench-Easy" if easy else "CulturalBench-Hard"
        rows = _hub("kellycyy/CulturalBench", config, "test", keep_default_na=False)
    template = _table("culturalbench")[language]
    statements = Counter(row["question_idx"] for row in rows)
    docs = []
    for row in rows:
        half = hashlib.sha256(str(row["question_idx"]).encode()).digest()[0] % 2
        doc = {
            "question_idx": row["question_idx"],
            "split": ("sample", "unseen")[half],
            "prompt": template["easy" if easy else "hard"].format(**row),
        }
        if easy:
            docs.append({**doc, "label": "ABCD".index(row["answer"])})
        else:
            true = str(row["answer"]).lower() == "true"
            words = [template["false"], template["true"]]
            more = {"data_idx": row["data_idx"], "statements": statements[row["question_idx"]]}
            docs.append({**doc, **more, "label": int(true), "choices": words})
    return _as_test_split(docs)


def load_bmlama53(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """BMLAMA-53: `prompt` is what stands before the blank, `choices` what goes on: a candidate and the rest.

    The blank is not at the end in every language, so a choice is scored together with what follows it.

    Raises:
        XTransplantError: there is no such file. BMLAMA has no hub repository that gives these fields.
    """
    fields = ("id", "prefix", "suffix", "choices", "label")
    rows = _local("bmlama53", f"{language}.jsonl", fields, data_dir)
    if rows is None:
        raise XTransplantError(
            f"BMLAMA-53 in {language!r} comes from local files only, and with {_where(data_dir)} there is no "
            f"bmlama53/{language}.jsonl. Put JSON lines with {', '.join(fields)} there (the facts: "
            "https://github.com/Betswish/Cross-Lingual-Consistency), and name the folder above bmlama53 by "
            "task.data_dir=... or XTRANSPLANT_DATA."
        )
    docs = []
    for row in rows:
        prompt = row["prefix"].rstrip()
        space = row["prefix"][len(prompt) :]
        continuations = [f"{space}{choice}{row['suffix']}" for choice in row["choices"]]
        docs.append({"id": row["id"], "prompt": prompt, "choices": continuations, "label": row["label"]})
    return _as_test_split(docs)


def load_pawsx(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """PAWS-X, validation split: `label` 1 if the sentences mean the same; `choices` are the words for no and yes."""
    fields = ("id", "sentence1", "sentence2", "label")
    rows = _local("pawsx", f"{language}.validation.jsonl", fields, data_dir)
    if rows is None:
        rows = _hub("google-research-datasets/paws-x", language, "validation")
    template = _table("pawsx")[language]
    return _as_test_split(
        [
            {
                "id": row["id"],
                "prompt": template["prompt"].format(sentence1=row["sentence1"], sentence2=row["sentence2"]),
                "choices": [template["no"], template["yes"]],
                "label": row["label"],
            }
            for row in rows
            # The hub has rows without a translation, and labels of -1.
            if row["sentence1"] and row["sentence2"] and row["label"] in (0, 1)
        ]
    )


def load_xnli(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """XNLI, validation split, in the prompts of tasks/paper: `label` 0 entailment, 1 neutral, 2 contradiction."""
    rows = _local("xnli", f"{language}.validation.jsonl", ("idx", "premise", "hypothesis", "label"), data_dir)
    if rows is None:
        hub = _hub("facebook/xnli", language, "validation")
        rows = [{**row, "idx": number} for number, row in enumerate(hub)]
    template = _table("../paper/xnli")[language]
    return _as_test_split(
        [
            {
                "idx": row["idx"],
                "prompt": template["prompt"].format(
                    **{**template, "premise": row["premise"], "hypothesis": row["hypothesis"]}
                ),
                "label": row["label"],
            }
            for row in rows
        ]
    )


# --- where rows come from -------------------------------------------------------------------------------------------


def _local(
    dataset: str, file: str, fields: Sequence[str], data_dir: str | None, needed: bool = True
) -> list[Doc] | None:
    """The rows of `<data folder>/<dataset>/<file>`; None where there is no folder of the data set.

    Args:
        needed: refuse a folder of the data set without this file, since the other side would come from the folder and
            this one from the hub, which are not the same rows.

    Raises:
        XTransplantError: a data folder was named and is not there; the file is not there, or lacks a field.
    """
    named = data_dir if data_dir is not None else os.environ.get("XTRANSPLANT_DATA")
    if not named:
        return None
    if not Path(named).is_dir():
        raise XTransplantError(
            f"{_where(data_dir)}: there is no such folder. Name an existing one, or none to load from the hub."
        )
    folder = Path(named) / dataset
    path = folder / file
    if not path.is_file():
        if not folder.is_dir() or not needed:
            return None
        like_it = folder.glob(f"*{file[file.index('.') :]}")
        present = ", ".join(sorted(each.name for each in like_it)) or "nothing"
        raise XTransplantError(
            f"{folder} has no {file}; it has: {present}. Add the file, or name a data folder without {dataset}: "
            "then both sides come from the hub, if it has them."
        )
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    for number, row in enumerate(rows, start=1):
        missing = [field for field in fields if field not in row]
        if missing:
            raise XTransplantError(
                f"{path}, row {number}: no {', '.join(missing)}. Each row needs {', '.join(fields)}."
            )
    return rows


def _where(data_dir: str | None) -> str:
    if data_dir is not None:
        return f"the data folder {data_dir}"
    return f"XTRANSPLANT_DATA={os.environ.get('XTRANSPLANT_DATA') or '(unset)'}"


def _hub(path: str, name: str | None, split: str, **options: Any) -> list[Doc]:
    try:
        return list(datasets.load_dataset(path, name, split=split, **options))
    except (OSError, ValueError) as error:  # not reached, not there, no such language
        raise XTransplantError(
            f"Data set {path!r}{f', {name!r}' if name else ''} could not be loaded from the Hugging Face hub: {error}. "
            "Check the connection, or name a folder that holds the data set's files (tasks/README.md lists them) by "
            "task.data_dir=... or XTRANSPLANT_DATA."
        ) from error


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))


def _as_test_split(docs: list[Doc]) -> datasets.DatasetDict:
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(docs)})
