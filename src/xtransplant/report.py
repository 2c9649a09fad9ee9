"""Finished runs as one page of HTML that needs nothing else: `gather` collects what it shows, `page` writes it.

The page holds its data as JSON and draws from it in the browser (`report_page/`). It loads nothing, and no text of the
data becomes markup: see `page`. It is bounded, so that it opens anywhere: the texts of documents, and what each cell of
a map did to each document, are kept up to a size (`_TEXTS`, `_CELLS`), shared among what is shown; scores are of all
documents.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from xtransplant import __version__, analysis, catalogue, command, compare, disk, languages, models, overview
from xtransplant.config import ModelConfig
from xtransplant.grid import Grid
from xtransplant.measures import samples
from xtransplant.record import CONFIG, Run
from xtransplant.selection import Selection
from xtransplant.types import XTransplantError

# Bytes of all documents' texts together, and of what all cells did to documents; and the longest text, in characters.
_TEXTS = 2_500_000
_CELLS = 3_000_000
_LONGEST = 2_000
# Flips for the family-wise tests of a map.
_PERMUTATIONS = 1_000
# Prompts of a language that are cut into tokens.
_PROMPTS = 200
# Digits that a document's score, or the choice that was answered, is written with: one for each document.
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_UNKNOWN = "."


@dataclass
class Found:
    """What a report is made of.

    Attributes:
        evaluated, trained: runs of `evaluate` and `sft`.
        grids: runs of `grid`, with their grids.
        selections: each selection.json, by its path.
        strategies: each strategies.json, by its path.
        records, notes: `compare`'s lines, and what it says of a table.
        refused: why some runs could not be compared.
    """

    evaluated: list[Run] = field(default_factory=list)
    grids: list[tuple[Run, Grid]] = field(default_factory=list)
    trained: list[Run] = field(default_factory=list)
    selections: dict[str, list[Selection]] = field(default_factory=dict)
    strategies: dict[str, list[Any]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        return [*self.evaluated, *(run for run, _ in self.grids), *self.trained]

    def add(self, run: Run, grid: Grid | None = None) -> None:
        """A finished run, once; with its grid, if it is one of `grid`."""
        if any(each.folder.resolve() == run.folder.resolve() for each in self.runs):
            return
        if grid is not None:
            self.grids.append((run, grid))
        else:
            (self.trained if run.manifest["job"] == "sft" else self.evaluated).append(run)

    def counted(self) -> str:
        """How much of what, in words."""
        numbers: dict[str, Sequence[Any] | Mapping[str, Any]] = {
            "evaluate": self.evaluated,
            "grid": self.grids,
            "sft": self.trained,
            "select": self.selections,
            "strategies": self.strategies,
        }
        return ", ".join(f"{len(each)} of {name}" for name, each in numbers.items() if each)

    def compare(self) -> None:
        """Fill `records` and `notes`, a task family at a time; where one is refused, those of its language pairs that
        are not; and `refused`."""
        grids = [run for run, _ in self.grids]

        def of(*names: str) -> dict[tuple[Any, ...], tuple[list[Run], list[Run]]]:
            groups: dict[tuple[Any, ...], tuple[list[Run], list[Run]]] = {}
            for place, runs in enumerate((self.evaluated, grids)):
                for run in runs:
                    key = tuple(run.manifest[name] for name in names)
                    groups.setdefault(key, ([], []))[place].append(run)
            return groups

        def compared(members: tuple[list[Run], list[Run]]) -> list[compare.Group]:
            return compare.compare(*members, self.trained).groups

        alone = of("task_name", "model_name", "language_pair", "split")
        groups: list[compare.Group] = []
        for (task,), several in of("task_name").items():
            try:
                groups += compared(several)
                continue
            except XTransplantError:
                pass
            single: list[compare.Group] = []
            left: tuple[list[Run], list[Run]] = ([], [])
            for key, members in alone.items():
                if key[0] != task:
                    continue
                try:
                    single += compared(members)
                except XTransplantError as error:
                    self.refused.append(f"{', '.join(key)}: {error}")
                    continue
                for some, more in zip(left, members, strict=True):
                    some.extend(more)
            try:
                # Together again: p is corrected for all of these language pairs, and they have an average.
                groups += compared(left) if single else []
            except XTransplantError:
                groups += single
        self.records = compare.Comparison(groups).records()
        self.refused += dict.fromkeys(note for group in groups for note in group.left_out)
        self.notes = [
            {**{name: getattr(group, name) for name in ("model", "task", "split", "metric")}, "text": note}
            for group in groups
            for note in group.notes
            if note not in group.left_out
        ]


def gather(found: Found, title: str | None = None, seed: int = 0) -> dict[str, Any]:
    """All that the page shows, as JSON values: equal input gives equal output.

    Raises:
        XTransplantError: a run's samples or config cannot be read.
    """
    order = {str(run.folder): number for number, run in enumerate(found.runs)}
    pool = _Pool()
    # As the comparison calls them, which knows a model with an adapter for a fine-tuned one.
    names = {line["folder"]: line["condition"] for line in found.records if line["folder"] and line["pair"]}
    sets = _sets(found.evaluated, order, names)
    shares = len(sets) + len(found.grids)
    for each in sets:
        pool.share(shares)
        shares -= 1
        each["documents"] = _flip_documents(each, pool)
    maps = []
    for run, grid in found.grids:
        pool.share(shares)
        shares -= 1
        maps.append(_map(run, grid, order[str(run.folder)], pool, _CELLS // len(found.grids), seed))
    environments: list[dict[str, Any]] = []
    runs = [_run(run, environments) for run in found.runs]
    pairs = [str(run.manifest["language_pair"]) for run in found.runs if run.manifest.get("language_pair")]
    codes = sorted({code for pair in pairs for code in _codes(pair)})
    return {
        "title": title or _title(runs),
        "version": __version__,
        "runs": runs,
        "environments": environments,
        "records": [_rounded(each) for each in found.records],
        "notes": found.notes,
        "refused": found.refused,
        "sets": [{key: value for key, value in each.items() if not key.startswith("_")} for each in sets],
        "maps": maps,
        "strategies": [_rounded(_table(each)) for several in found.strategies.values() for each in several],
        "selections": [_selection(path, each) for path, several in found.selections.items() for each in several],
        "training": [_training(run, order[str(run.folder)]) for run in found.trained],
        "languages": {code: asdict(languages.language(code)) for code in codes},
        "tokens": _tokens(found.evaluated, found.grids),
        "tasks": _tasks(found.runs),
        "pool": pool.documents,
        "texts": pool.texts,
        "longest": _LONGEST,
    }


def _title(runs: Sequence[Mapping[str, Any]]) -> str:
    """Models and task families, named if they are few."""

    def few(name: str, what: str) -> str:
        values = list(dict.fromkeys(str(run[name]) for run in runs if run[name]))
        return ", ".join(values) if len(values) <= 3 else f"{len(values)} {what}"

    return " on ".join(filter(None, (few("model", "models"), few("task", "task families")))) or "A report"


# --- Documents -----------------------------------------------------------------------------------------------------


class _Pool:
    """Documents and texts, each kept once, as long as the share of those that are shown together lasts."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.documents: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}
        self._places: dict[_Asked, int] = {}
        self._used = 0
        self._allowed = 0

    def share(self, parts: int) -> None:
        """Allow the next of so many parts its share of what is left."""
        self._allowed = self._used + (_TEXTS - self._used) // max(1, parts)

    @property
    def full(self) -> bool:
        return self._used >= self._allowed

    def text(self, text: str) -> int:
        """The number of a text, cut to the longest allowed; kept even if the share is used up."""
        text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
            self._used += len(text.encode())
        return self._numbers[text]

    def document(self, asked: _Asked) -> int:
        """The number of a document; -1 if there is no room for it."""
        if asked not in self._places:
            if self.full:
                return -1
            self._places[asked] = len(self.documents)
            self.documents.append(
                {
                    "key": asked.key,
                    "source": self.text(asked.source),
                    "target": self.text(asked.target),
                    "choices": [self.text(each) for each in asked.choices],
                    "gold": self.text(asked.choices[asked.gold] if isinstance(asked.gold, int) else asked.gold),
                }
            )
        return self._places[asked]


@dataclass(frozen=True)
class _Asked:
    """A document as it was asked: both prompts; choices, if there are any; the right choice's number, or answer."""

    key: str
    source: str
    target: str
    choices: tuple[str, ...]
    gold: int | str


@dataclass(frozen=True)
class _Sample:
    """A document and what was answered: the number of a choice, or a text."""

    asked: _Asked
    answer: int | str


def _samples(run: Run, metric: str | None = None) -> dict[tuple[str, str], _Sample]:
    """(Task as in every language, key) -> the document, of one filter."""
    templates = overview.templates(run.results["config"]["model_args"])
    filtered = re.search(r"\((.+)\)$", metric or "")
    found: dict[tuple[str, str], _Sample] = {}
    for task in run.manifest["tasks"]:
        for row in samples(run, task):
            if filtered is None or row.get("filter") == filtered[1]:
                found.setdefault((templates.get(task, task), str(row["key"])), _sample(row))
    return found


def _sample(row: Mapping[str, Any]) -> _Sample:
    arguments = row["arguments"] if isinstance(row["arguments"], list) else []
    contexts = list(dict.fromkeys(str(each[0]) for each in arguments))
    responses = row.get("filtered_resps") or []
    choices: tuple[str, ...] = ()
    answer: int | str
    if responses and all(_is_likelihood(each) for each in responses):
        choices = tuple(str(each[1]) for each in arguments[: len(responses)])
        likelihoods = [float(each[0]) for each in responses]
        answer = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    else:
        answer = _text_of(responses[0]) if responses else ""
    target = row.get("target")
    gold = target if isinstance(target, int) and choices and 0 <= target < len(choices) else _text_of(target)
    source = "\n\n".join(map(str, row.get("source_prompts") or []))
    return _Sample(_Asked(str(row["key"]), source, "\n\n".join(contexts), choices, gold), answer)


def _is_likelihood(response: Any) -> bool:
    return isinstance(response, list) and len(response) == 2 and isinstance(response[0], int | float)


def _text_of(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(_text_of, value))
    return "" if value is None else str(value)


def _levels(values: Iterable[float]) -> list[float]:
    """Every score that occurs; where these are more than there are digits, as many steps between the least and most."""
    known = sorted({round(float(each), 6) for each in values if math.isfinite(each)})
    if len(known) <= len(_DIGITS):
        return known
    return [round(float(each), 6) for each in np.linspace(known[0], known[-1], len(_DIGITS))]


def _digits(values: Iterable[float], levels: Sequence[float]) -> str:
    """One digit a score: the place of the nearest level."""
    places = np.array(levels)
    return "".join(_DIGITS[int(np.abs(places - each).argmin())] if math.isfinite(each) else _UNKNOWN for each in values)


# --- Conditions beside each other ------------------------------------------------------------------------------------


def _sets(runs: Sequence[Run], order: Mapping[str, int], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Documents that several conditions, and models, answered: the scores of each. Texts come later.

    Args:
        names: of conditions, by folder.
    """
    by_folder = {str(run.folder): run for run in runs}
    groups: dict[tuple[Any, ...], list[tuple[overview.Block, overview.Row]]] = {}
    for block in overview.overview(runs).blocks if runs else []:
        for row in block.rows:
            if row.documents:
                place = (block.task, block.split, row.pair, block.metric, row.documents)
                groups.setdefault(place, []).append((block, row))
    found = []
    for (task, split, pair, metric, documents), members in groups.items():
        columns = [
            (block, name, cell, cell.values)
            for block, row in members
            for name in block.conditions
            if (cell := row.cells.get(name)) is not None and cell.values is not None and cell.folder is not None
        ]
        if not columns:
            continue
        several = len({block.model for block, *_ in columns}) > 1
        labels = [
            ", ".join([*([block.model] if several else []), names.get(str(cell.folder), name)])
            for block, name, cell, _ in columns
        ]
        if len(set(labels)) < len(labels):
            labels = [", ".join(filter(None, [block.model, name, block.settings])) for block, name, *_ in columns]
        # The untouched model first: the page opens with it and the next.
        first = sorted(range(len(columns)), key=lambda n: labels[n] != overview.VANILLA)
        labels, columns = [labels[n] for n in first], [columns[n] for n in first]
        levels = _levels(np.concatenate([values for *_, values in columns]).tolist())
        found.append(
            {
                **{"task": task, "split": split, "pair": pair, "metric": metric, "languages": _codes(pair)},
                **{"higher": members[0][0].higher_is_better, "levels": levels, "count": len(documents)},
                "columns": [
                    {
                        "label": label,
                        "run": order[str(cell.folder)],
                        "score": _short(cell.score),
                        "scores": _digits(values, levels),
                    }
                    for label, (_, _, cell, values) in zip(labels, columns, strict=True)
                ],
                "_documents": documents,
                "_runs": [by_folder[str(cell.folder)] for _, _, cell, _ in columns],
            }
        )
    return found


def _flip_documents(found: dict[str, Any], pool: _Pool) -> list[int]:
    """The pool's number of each document, those first that conditions differ on; adds to the columns their answers."""
    columns = found["columns"]
    asked = [_samples(run, found["metric"]) for run in found["_runs"]]
    rows = range(found["count"])
    # A condition that asks both prompts in one has a prompt of its own: the document is that of the plainest one.
    plain = min(range(len(columns)), key=lambda n: ("both" in columns[n]["label"], n))
    differs = [len({column["scores"][row] for column in columns}) > 1 for row in rows]
    numbers = [-1] * len(rows)
    answers: list[list[int]] = [[-1] * len(rows) for _ in columns]
    for row in sorted(rows, key=lambda each: not differs[each]):
        name = found["_documents"][row]
        base = asked[plain].get(name)
        if base is None or (number := pool.document(base.asked)) < 0:
            continue
        numbers[row] = number
        for column, several in zip(answers, asked, strict=True):
            own = several.get(name)
            if own is not None:
                column[row] = own.answer if isinstance(own.answer, int) else pool.text(own.answer)
    for column, given, run in zip(columns, answers, found["_runs"], strict=True):
        column["answers"] = given
        column["both"] = run.results["config"]["model_args"].get("prompt") == "both"
    return numbers


# --- Maps ------------------------------------------------------------------------------------------------------------


def _map(run: Run, grid: Grid, number: int, pool: _Pool, allowed: int, seed: int) -> dict[str, Any]:
    """A grid: per component the cells' numbers, curves over layers, and what each cell did to each document."""
    facts, asked = grid.meta, _samples(run)
    names = [(task, key) for task, _, key in (name.partition("/") for name in grid.documents)]
    levels = _levels(np.unique(np.concatenate([grid.scores[0].ravel(), grid.vanilla[0]])))
    # Two digits for each document and cell.
    kept = min(len(names), allowed // (2 * len(grid.cells)))
    documents = [-1] * len(names)
    for row, name in enumerate(names[:kept]):
        if name in asked:
            documents[row] = pool.document(asked[name].asked)
    shown = [row for row in range(kept) if documents[row] >= 0]
    choices = None
    if grid.logprob is not None and grid.vanilla_logprob is not None and grid.logprob.shape[2] <= len(_DIGITS):
        choices = _most_likely(grid.logprob), _most_likely(grid.vanilla_logprob)
    found = {}
    for component in analysis.components(grid):
        columns = [column for column, cell in enumerate(grid.cells) if cell.component is component]
        found[component.value] = {
            **_numbers(grid, component, seed),
            "curves": _rounded(analysis.layer_curves(grid, component, seed)),
            "scores": [_digits(grid.scores[0][:kept, column], levels) for column in columns],
            "answers": None
            if choices is None
            else ["".join(_digit(each) for each in choices[0][:kept, column]) for column in columns],
            "texts": None if grid.text is None else [_changed(grid, column, shown, pool) for column in columns],
        }
    vanilla = None
    if choices is not None:
        vanilla = [int(each) for each in choices[1][:kept]]
    elif grid.vanilla_text is not None and grid.texts is not None:
        vanilla = [-1] * kept
        for row in shown:
            vanilla[row] = pool.text(grid.texts[grid.vanilla_text[row]])
    return {
        "run": number,
        **{"model": facts["model_name"], "task": facts["task_name"], "split": facts["split"]},
        **{"pair": "-".join(facts["language_pair"]), "languages": facts["language_pair"], "control": facts["control"]},
        **{"layers": int(facts["num_layers"]), "metric": grid.metric, "higher": grid.sign == 1},
        **{"count": len(names), "kept": kept, "levels": levels, "documents": documents},
        "vanilla": {
            "score": _short(grid.vanilla[0].mean(dtype=np.float64)),
            "scores": _digits(grid.vanilla[0], levels),
            "answers": vanilla,
        },
        "components": found,
    }


def _numbers(grid: Grid, component: Any, seed: int) -> dict[str, Any]:
    """Per cell: layers, documents looked at, score, gain, tests; and the right choice's log-probability."""
    score = analysis.effect(grid, component, "score", _PERMUTATIONS, seed)
    assert score is not None
    numbers: dict[str, Any] = {
        "source": [cell.source for cell in score.cells],
        "target": [cell.target for cell in score.cells],
        "seen": score.seen.tolist(),
        **{name: _rounded(getattr(score, name).tolist()) for name in ("mean", "gain", "p", "adjusted", "q")},
        "logprob": None,
    }
    nats = analysis.effect(grid, component, "logprob", _PERMUTATIONS, seed)
    if nats is not None:
        numbers["logprob"] = {
            name: _rounded(getattr(nats, name).tolist()) for name in ("mean", "gain", "p", "adjusted", "q")
        }
    return numbers


def _most_likely(logprob: np.ndarray) -> np.ndarray:
    """The choice answered [D, …]; -1: not looked at."""
    best = np.where(np.isnan(logprob), -np.inf, logprob).argmax(axis=-1)
    return np.where(np.isnan(logprob).all(axis=-1), -1, best)


def _digit(place: int) -> str:
    return _UNKNOWN if place < 0 else _DIGITS[place]


def _changed(grid: Grid, column: int, rows: Sequence[int], pool: _Pool) -> dict[str, int]:
    """The texts of a cell that are scored other than vanilla's, as long as there is room."""
    assert grid.text is not None and grid.texts is not None
    found = {}
    for row in rows:
        if grid.scores[0][row, column] != grid.vanilla[0][row] and grid.text[row, column] >= 0 and not pool.full:
            found[str(row)] = pool.text(grid.texts[grid.text[row, column]])
    return found


# --- The rest --------------------------------------------------------------------------------------------------------


def _run(run: Run, environments: list[dict[str, Any]]) -> dict[str, Any]:
    """What was asked of a run, and what it took."""
    facts, (text, config) = run.manifest, _config(run)
    environment = facts.get("environment") or {}
    if environment not in environments:
        environments.append(environment)
    model = facts.get("model") or {}
    tasks = facts.get("tasks") or {}
    return {
        **{"job": facts["job"], "folder": str(run.folder), "hash": facts.get("config_hash"), "seed": facts.get("seed")},
        **{"model": facts.get("model_name"), "task": facts.get("task_name"), "pair": facts.get("language_pair")},
        **{"split": facts.get("split"), "condition": facts.get("condition"), "control": facts.get("control")},
        "documents": sum(each["documents"] for each in tasks.values()) or None,
        "trained": facts.get("languages"),
        "command": command.command(facts["job"], config),
        "config": text,
        "environment": environments.index(environment),
        "checks": facts.get("checks"),
        "weights": {
            **{key: model.get(key) for key in ("path", "revision", "dtype", "device", "parameters", "licence")},
            "files": model.get("files"),
            "adapter": (model.get("adapter") or {}).get("files"),
        },
        "tasks": {
            name: {key: each.get(key) for key in ("version", "documents", "prompts_sha256", "keys_sha256")}
            for name, each in tasks.items()
        },
        # Of an earlier version not known: its timings are with loading and checks, which no cost is.
        "cost": facts.get("cost") or dict.fromkeys(("seconds", "tokens", "flops")),
    }


def _config(run: Run) -> tuple[str, dict[str, Any]]:
    """The resolved config, as it is written and read."""
    path = run.folder / CONFIG
    try:
        return disk.bytes_of(path).decode(), dict(disk.yaml_of(path))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise XTransplantError(f"{path} cannot be read: {error}.") from error


def _table(found: Mapping[str, Any]) -> dict[str, Any]:
    """One grid of a strategies.json."""
    facts = found["grid"]
    return {
        **{"model": facts["model_name"], "task": facts["task_name"], "split": facts["split"]},
        **{"pair": "-".join(facts["language_pair"]), "metric": facts["metrics"][0], "rows": found["rows"]},
    }


def _selection(path: str, chosen: Selection) -> dict[str, Any]:
    grids = [grid for grid in chosen.grids if grid.get("language_pair")]
    folders = [str(grid["folder"]) for grid in chosen.grids if grid.get("folder")]
    parts = ["xtransplant", "select", shlex.quote(f"grid=[{','.join(folders)}]"), f"strategy={chosen.strategy}"]
    return {
        **{"path": path, "strategy": chosen.strategy, "pooled": chosen.pooled, "documents": len(chosen.documents)},
        **{"score": chosen.score, "vanilla": chosen.vanilla, "candidates": list(chosen.candidates)},
        "model": chosen.grids[0]["model_name"],
        "task": chosen.grids[0]["task_name"],
        "pairs": ["-".join(grid["language_pair"]) for grid in grids],
        "cells": [[cell.component.value, cell.source, cell.target] for cell in chosen.cells],
        "command": " ".join([*parts, *(["pooled=true"] if chosen.pooled else [])]),
    }


def _training(run: Run, number: int) -> dict[str, Any]:
    """The curve of a training: steps with their losses."""
    path = run.folder / Path(str(run.manifest.get("training", "training.jsonl"))).name
    try:
        with path.open(encoding="utf-8") as stream:
            lines = [disk.json_in(line) for line in stream if line.strip()]
    except (OSError, ValueError) as error:
        raise XTransplantError(f"{path} cannot be read: {error}. Train again with overwrite=true.") from error
    # A loss that diverged is no number of JSON.
    curve = _rounded(
        [[line["step"], line.get("loss"), line.get("eval_loss"), line.get("learning_rate")] for line in lines]
    )
    facts = run.manifest
    return {
        **{"run": number, "curve": curve, "name": run.folder.name, "method": facts.get("method")},
        **{"data": facts.get("data"), "steps": facts.get("steps"), "trained": facts.get("languages")},
    }


def _tasks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The families, what they are, and who translated them."""
    choices = catalogue.choices_of("task")
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        name = run.manifest.get("task_name")
        if name is None or name in found:
            continue
        config = _config(run)[1].get("task") or {}
        preset = catalogue.choice_content(name, choices)
        own = name in choices and preset.get("tasks") == config.get("tasks")
        found[name] = {
            "name": name,
            "about": catalogue.description(choices[name]) if own else "",
            "translated": config.get("translated") or (preset.get("translated") if own else None),
            "documents": config.get("documents"),
        }
    return list(found.values())


def _tokens(evaluated: Sequence[Run], grids: Sequence[tuple[Run, Grid]]) -> list[dict[str, Any]]:
    """For each model, task family and language pair: how its tokenizer cuts the prompts, if it is on this machine."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for run in [*evaluated, *(run for run, _ in grids)]:
        facts = run.manifest
        place = (facts["model_name"], facts["task_name"], facts["language_pair"])
        args = run.results["config"]["model_args"]
        if place in found or args.get("prompt") == "both":
            continue
        config = _config(run)[1]["model"]
        tokenizer = models.tokenizer_file(ModelConfig(path=config["path"], revision=facts["model"].get("revision")))
        if tokenizer is None:
            continue
        prompts = [(each.asked.source, each.asked.target) for each in list(_samples(run).values())[:_PROMPTS]]
        counted = languages.count_tokens(tokenizer, prompts)
        if counted is not None and counted.words and counted.source:
            model, task, pair = place
            found[place] = {"model": model, "task": task, "pair": pair, **asdict(counted)}
    return list(found.values())


def _codes(pair: str) -> list[str]:
    """The two languages of a pair: after a hyphen, a code's own subtags begin with a capital or a digit."""
    return [part for part in re.split(r"-(?=[a-z])", pair) if part]


def _short(value: float) -> float | None:
    """To five digits: what is read on a page."""
    return None if not math.isfinite(value) else float(f"{value:.5g}")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return _short(value) if isinstance(value, float) else value


# --- The page --------------------------------------------------------------------------------------------------------


def page(data: Mapping[str, Any]) -> str:
    """One HTML document. Nothing is fetched: the style, the script and the data are in it.

    What the data says cannot become markup or run. It is JSON in which no character is left that could end its element
    or a line of a script, and the script puts it into the page as text only. A policy in the page forbids every script
    and style but the two of ours, which it names by their hashes, and every request.
    """
    text, style, script = (
        files("xtransplant").joinpath("report_page", name).read_text(encoding="utf-8")
        for name in ("page.html", "style.css", "script.js")
    )
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    filled = {
        "policy": policy,
        "title": html.escape(str(data["title"])),
        "style": style,
        "script": script,
        "data": _harmless(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)),
    }
    # In one go: what is put in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda name: filled[name[1]], text)


def _hash(text: str) -> str:
    """As a content security policy names a script or a style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _harmless(text: str) -> str:
    """JSON that says the same without the characters that HTML, or a line of JavaScript, gives a meaning to."""
    return re.sub("[<>&\u2028\u2029]", lambda each: f"\\u{ord(each[0]):04x}", text)
