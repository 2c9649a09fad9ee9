"""Data and scoring of the XTransplant paper's four prompt tasks: XNLI, XQuAD, XCOPA and GlobalOpinionQA.

The `load_*` functions are lm-eval `custom_dataset` functions: they get the task's `dataset_kwargs` and the harness's
metadata, and give one split, `test`. Each has two sources of documents:

1. `<data_dir>/xtransplant_paper/<data set>`, the authors' own prompts and answers, taken verbatim by line, with `id`
   "sample:12" or "unseen:7" (0-based line) and `split` "sample" or "unseen";
2. else the Hugging Face hub, rendered by the template tables beside this file, without a `split`.

`data_dir` is a metadata key (`--metadata data_dir=...`), else the environment variable XTRANSPLANT_DATA. Both sides of
a language pair have to come from one source: ids differ between the two, so a mixed pair does not align.

The `score_*` functions are the matching rules of the authors' evaluation scripts, as `process_results`. lm-eval loads
this file by its path, so it imports no neighbour.
"""

from __future__ import annotations

import ast
import json
import os
import string
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

try:
    from xtransplant.types import XTransplantError
except ImportError:  # plain lm-eval with this folder as its --include_path: xtransplant need not be installed

    class XTransplantError(Exception):  # type: ignore[no-redef]
        """A fault the user can act on."""


AUTHORS = "https://github.com/YYF-Tommy/XTransplant"

# The authors kept the questions on which a country has one clear answer: 0.8 is the smallest top share in all of
# their 3,928 items, while the hub's distributions go down to ties.
CLEAR_MAJORITY = 0.8

Doc = dict[str, Any]


# --- documents --------------------------------------------------------------------------------------------------


def load_xnli(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """XNLI: `label` 0 entailment, 1 neutral, 2 contradiction; `label_words` are the options' words in that order."""
    folder = _authors_folder("XNLI", data_dir)
    docs: list[Doc] = []
    if folder is not None:
        for part in ("sample", "unseen"):
            (words,) = _read_lines(folder, part, "ans_lang", language)
            for doc, gold in _authors_docs(folder, part, "split", language):
                docs.append({**doc, "label": int(gold) - 1, "label_words": [words["1"], words["2"], words["3"]]})
    else:
        template = _template("xnli", language)
        words = [template["entail"], template["neutral"], template["contradict"]]
        for row_number, row in enumerate(_hub("facebook/xnli", language, "test")):
            prompt = template["prompt"].format(**{**template, **row})
            docs.append({"id": f"test:{row_number}", "prompt": prompt, "label": row["label"], "label_words": words})
    return _as_test_split([{**doc, "answer": f"({doc['label'] + 1})"} for doc in docs])


def load_xquad(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """XQuAD: `answer` is the one gold span, in the prompt's language."""
    folder = _authors_folder("XQuAD", data_dir)
    docs: list[Doc] = []
    if folder is not None:
        for part in ("sample", "unseen"):
            for doc, gold in _authors_docs(folder, part, "split", f"xquad.{language}"):
                docs.append({**doc, "answer": gold})
    else:
        template = _template("xquad", language)
        for row in _hub("google/xquad", f"xquad.{language}", "validation"):
            prompt = template["prompt"].format(context=row["context"], question=row["question"])
            docs.append({"id": row["id"], "prompt": prompt, "answer": row["answers"]["text"][0]})
    return _as_test_split(docs)


def load_xcopa(language: str, english: bool = False, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """XCOPA: `label` 0 or 1.

    Args:
        english: the English side of the same items. The authors' is a translation of that language's items into
            English (their folder `en`); from the hub it is COPA itself.
    """
    folder = _authors_folder("XCOPA", data_dir)
    docs: list[Doc] = []
    if folder is not None:
        for part in ("sample", "unseen"):
            for doc, gold in _authors_docs(folder, part, "en" if english else "split", language):
                docs.append({**doc, "label": int(gold) - 1})
    else:
        prompt_language = "en" if english else language
        template = _template("xcopa", prompt_language)
        rows = _english_copa() if prompt_language == "en" else _hub("cambridgeltl/xcopa", language, "test")
        for row in rows:
            prompt = template["prompt"].format(relation=template[row["question"]], **row)
            docs.append({"id": f"test:{row['idx']}", "prompt": prompt, "label": row["label"]})
    return _as_test_split([{**doc, "answer": f"({doc['label'] + 1})"} for doc in docs])


def load_globalopinionqa(
    language: str, translated: bool = False, data_dir: str | None = None, **_: Any
) -> datasets.DatasetDict:
    """GlobalOpinionQA on the countries of one language, asked in English or, `translated`, in that language.

    `shares` is the distribution of the country's answers, `label` its most frequent option, `choices` "(A)", "(B)", …
    """
    folder = _authors_folder("GlobalOpinionQA", data_dir)
    docs: list[Doc] = []
    if folder is not None:
        for part in ("sample", "unseen"):
            items = _read_lines(folder, part, "split", language)
            prompts = [item["input_text"] for item in items]
            if translated:
                prompts = _read_lines(folder, part, "translated", language)
                _same_length(folder, part, language, prompts, items)
            for line, (prompt, item) in enumerate(zip(prompts, items, strict=True)):
                doc = {"id": f"{part}:{line}", "split": part, "prompt": prompt}
                docs.append({**doc, **_opinion(item["country"], item["label"])})
    elif translated:
        raise XTransplantError(
            f"GlobalOpinionQA in {language!r}: its translated questions exist only in the authors' files, and with "
            f"{_where(data_dir)} there is no folder xtransplant_paper/GlobalOpinionQA. Copy data/GlobalOpinionQA of "
            f"{AUTHORS} to it, so that xtransplant_paper/GlobalOpinionQA/GlobalOpinionQA_sample/translated/"
            f"{language}.json exists, and name the folder above xtransplant_paper by task.data_dir=... or "
            "XTRANSPLANT_DATA. Without it only the English prompts can be had, from the hub."
        )
    else:
        docs = _hub_opinions(language)
    return _as_test_split(docs)


def _hub_opinions(language: str) -> list[Doc]:
    table = _table("globalopinionqa")
    countries = table["countries"][language]
    docs = []
    for row_number, row in enumerate(_hub("Anthropic/llm_global_opinions", None, "train")):
        if not row["question"]:  # one row of the hub has none
            continue
        options = [str(option) for option in ast.literal_eval(row["options"])]
        # A printed defaultdict: "defaultdict(<class 'list'>, {'France': [0.2, 0.8], …})".
        printed = row["selections"]
        selections = ast.literal_eval(printed[printed.index("{") : printed.rindex("}") + 1])
        lettered = "\n".join(f"({string.ascii_uppercase[number]}) {option}" for number, option in enumerate(options))
        for country in countries:
            shares = selections.get(country)
            if shares is None or len(shares) != len(options) or max(shares) < CLEAR_MAJORITY:
                continue
            prompt = table["en"]["prompt"].format(country=country, question=row["question"], options=lettered)
            docs.append({"id": f"{row_number}:{country}", "prompt": prompt, **_opinion(country, shares)})
    return docs


def _opinion(country: str, shares: list[float]) -> Doc:
    choices = [f"({letter})" for letter in string.ascii_uppercase[: len(shares)]]
    label = max(range(len(shares)), key=shares.__getitem__)
    return {"country": country, "shares": shares, "label": label, "choices": choices, "answer": choices[label]}


def _english_copa() -> list[Doc]:
    """COPA's test items, the ones that XCOPA translates, with XCOPA's `idx`: COPA's number, counted from 0.

    The hub's XCOPA has no English. Why this copy of COPA: see ../xcopa/xcopa_en.yaml.
    """
    rows = _hub("pkavumba/balanced-copa", None, "test")
    first = min(row["id"] for row in rows)
    return [{**row, "idx": row["id"] - first} for row in rows]


# --- where documents come from ----------------------------------------------------------------------------------


def _authors_folder(dataset: str, data_dir: str | None) -> Path | None:
    """`<data folder>/xtransplant_paper/<dataset>`, or None where there is no such folder.

    Raises:
        XTransplantError: a data folder was named, and it is not there.
    """
    named = data_dir if data_dir is not None else os.environ.get("XTRANSPLANT_DATA")
    if not named:
        return None
    if not Path(named).is_dir():
        raise XTransplantError(
            f"{_where(data_dir)}: there is no such folder. Name an existing one, or none to load from the hub."
        )
    folder = Path(named) / "xtransplant_paper" / dataset
    return folder if folder.is_dir() else None


def _where(data_dir: str | None) -> str:
    if data_dir is not None:
        return f"the data folder {data_dir}"
    return f"XTRANSPLANT_DATA={os.environ.get('XTRANSPLANT_DATA') or '(unset)'}"


def _authors_docs(folder: Path, part: str, kind: str, name: str) -> list[tuple[Doc, str]]:
    """Prompts of `kind` as `id`, `split`, `prompt`, each with the answer of the same line."""
    prompts = _read_lines(folder, part, kind, name)
    answers = _read_lines(folder, part, "ans", name)
    _same_length(folder, part, name, prompts, answers)
    return [
        ({"id": f"{part}:{line}", "split": part, "prompt": prompt}, gold)
        for line, (prompt, gold) in enumerate(zip(prompts, answers, strict=True))
    ]


def _read_lines(folder: Path, part: str, kind: str, name: str) -> list[Any]:
    """The JSON values, one a line, of `<part>/<kind>/<name>`, called .json by the authors, .jsonl where renamed."""
    files = folder / f"{folder.name}_{part}" / kind
    for suffix in (".jsonl", ".json"):
        path = files / f"{name}{suffix}"
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                return [json.loads(line) for line in lines if line.strip()]
    present = sorted({file.stem for file in files.glob("*.json*")})
    raise XTransplantError(
        f"{files} has no {name}.jsonl and no {name}.json; it has: {', '.join(present) or 'nothing'}. "
        f"Add the file (data/{folder.name} of {AUTHORS}), or name a data folder without xtransplant_paper/{folder.name}"
        " on both sides of the pair: then the prompts come from the hub."
    )


def _same_length(folder: Path, part: str, name: str, left: Sequence[Any], right: Sequence[Any]) -> None:
    if len(left) != len(right):
        raise XTransplantError(
            f"{folder}, {part}, {name}: {len(left)} prompts but {len(right)} answers. They go together by line; "
            f"fetch both files again from {AUTHORS}."
        )


def _hub(path: str, name: str | None, split: str) -> list[Doc]:
    try:
        return list(datasets.load_dataset(path, name, split=split))
    except (OSError, ValueError) as error:  # not reached, not there, no such language
        raise XTransplantError(
            f"Data set {path!r}{f', {name!r}' if name else ''} could not be loaded from the Hugging Face hub: {error}. "
            "Check the connection, or name a folder that holds the authors' files (xtransplant_paper/...) by "
            "task.data_dir=... or XTRANSPLANT_DATA."
        ) from error


def _table(dataset: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(f"{dataset}.toml").read_text(encoding="utf-8"))


def _template(dataset: str, language: str) -> dict[str, str]:
    template: dict[str, str] = _table(dataset)[language]
    return template


def _as_test_split(docs: list[Doc]) -> datasets.DatasetDict:
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(docs)})


# --- scoring ----------------------------------------------------------------------------------------------------


def score_xnli(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Right when the output names the gold option, by "(1)", by the bare digit or by its word, and no other one."""
    named = _named_options(_ascii_brackets(results[0]), "123", doc["label_words"])
    return {"acc": float(named == {doc["label"]}), "unparsed": float(not named)}


def score_xcopa(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Right when the output names the gold option, by "(1)" or by the bare digit, and not the other one."""
    named = _named_options(_ascii_brackets(results[0]), "12")
    return {"acc": float(named == {doc["label"]}), "unparsed": float(not named)}


def score_globalopinionqa(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Right when the upper-cased output names the gold option, by "(A)" or by the bare letter, and no other letter.

    Any other letter counts against it, an option of this question or not; `unparsed` asks for one of this question.
    """
    named = _named_options(results[0].upper(), string.ascii_uppercase)
    readable = named & set(range(len(doc["choices"])))
    return {"acc": float(named == {doc["label"]}), "unparsed": float(not readable)}


def score_xquad(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Right when the gold span occurs in the output, whatever the case and whatever else is there."""
    return {"acc": float(doc["answer"].lower() in results[0].lower())}


def _ascii_brackets(output: str) -> str:
    return output.replace("\N{FULLWIDTH LEFT PARENTHESIS}", "(").replace("\N{FULLWIDTH RIGHT PARENTHESIS}", ")")


def _named_options(output: str, signs: Sequence[str], words: Sequence[str] = ()) -> set[int]:
    """Which options `output` names: as "(sign)" anywhere, as a sign that is all there is, or by the option's word."""
    bare = output.strip()
    named = {number for number, sign in enumerate(signs) if f"({sign})" in output or bare == sign}
    return named | {number for number, word in enumerate(words) if word in output}
