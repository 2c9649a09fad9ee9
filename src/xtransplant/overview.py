"""Many runs beside each other: conditions against vanilla on the same documents, averages, who got worse.

A block is what may be compared: one model, task family, half, metric and settings. Its rows are language pairs, its
columns conditions. A run whose documents or settings differ is in another row or block, never averaged with the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xtransplant import stats
from xtransplant.answer_language import CONSISTENCY, JUDGED
from xtransplant.config import LanguagePairConfig, TaskConfig
from xtransplant.families import task_names
from xtransplant.grading import main_metric
from xtransplant.measures import Measure, measures
from xtransplant.record import Run
from xtransplant.types import XTransplantError

VANILLA = "vanilla"
UNPARSED = "unparsed"  # as tasks call the share of answers that their rule cannot read
MICRO, MACRO = "micro", "macro"

Interval = tuple[float, float]
# A document: the task, named as in every language, and the key that its translations share.
Document = tuple[str, str]


@dataclass(frozen=True)
class Unfinished:
    """A run that has no result.

    Attributes:
        status: in a word or two, e.g. failed.
        why: what was said; may be empty.
        facts: of a manifest, those that say where it belongs (`model_name` and so on, `condition`), and `model_args`;
            None where that is not known.
    """

    folder: Path
    status: str
    why: str = ""
    facts: Mapping[str, Any] | None = None


@dataclass
class Cell:
    """One condition on one language pair, or an average of these.

    Attributes:
        stderr: of the score; None where the metric is no mean over documents, e.g. chrF.
        difference: score less vanilla's on the same documents; below 0 is better where the metric is one of errors.
        interval: 95 % of the difference: Tango's for scores of 0 and 1, else a bootstrap over documents.
        p, test: two-sided; McNemar's exact test for scores of 0 and 1, else sign flips.
        q: p adjusted (false discovery rate) for all comparisons of the overview by the same metric.
        beside: `unparsed`, `language_consistency` and `language_judged`, where the run has them.
        values: [D] score of each document, in the row's order.
    """

    score: float
    documents: int
    trivial: float | None = None
    stderr: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    p: float | None = None
    test: str | None = None
    q: float | None = None
    beside: dict[str, float] = field(default_factory=dict)
    folder: Path | None = None
    values: np.ndarray | None = None


@dataclass
class Row:
    """A language pair, on one set of documents; `label` is the pair, marked if there are several such sets."""

    pair: str
    label: str
    documents: tuple[Document, ...]
    cells: dict[str, Cell]
    missing: dict[str, Unfinished] = field(default_factory=dict)


@dataclass
class Block:
    """A table.

    Attributes:
        settings: what tells it from others with the same labels; empty if there are none.
        averages: MICRO (over documents) and MACRO (over language pairs), of `averaged` rows: those that have every
            condition that any row has. Empty with fewer than two rows, or none that is complete.
    """

    model: str
    task: str
    split: str
    metric: str
    higher_is_better: bool
    settings: str
    conditions: list[str]
    rows: list[Row]
    averaged: list[Row] = field(default_factory=list)
    averages: dict[str, dict[str, Cell]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A cell against vanilla; `loss` is above 0 where it is worse, whatever the metric's direction."""

    block: Block
    row: Row
    condition: str
    cell: Cell
    loss: float


@dataclass
class Overview:
    """All blocks, and the runs without a result that belong to none."""

    blocks: list[Block]
    unplaced: list[Unfinished]

    def comparisons(self) -> dict[str, list[Comparison]]:
        """Per metric every cell that has a difference to vanilla, worst first."""
        found: dict[str, list[Comparison]] = {}
        for block in self.blocks:
            sign = -1 if block.higher_is_better else 1
            for row in block.rows:
                for condition, cell in row.cells.items():
                    if cell.difference is not None:
                        each = Comparison(block, row, condition, cell, sign * cell.difference)
                        found.setdefault(block.metric, []).append(each)
        return {metric: sorted(each, key=lambda one: -one.loss) for metric, each in sorted(found.items())}

    def records(self) -> list[dict[str, Any]]:
        """Long form, a line per cell and average, missing ones too; all lines have the same keys, numbers unrounded."""
        lines = []
        for block in self.blocks:
            facts = {key: getattr(block, key) for key in ("model", "task", "split", "settings", "metric")}
            facts["higher_is_better"] = block.higher_is_better
            for row in block.rows:
                for condition in block.conditions:
                    cell, missing = row.cells.get(condition), row.missing.get(condition)
                    where = {"kind": "pair", "pair": row.label, "pairs": 1, "condition": condition}
                    lines.append(facts | where | _numbers(cell, row.cells.get(VANILLA), missing))
            for kind, average in block.averages.items():
                for condition, cell in average.items():
                    where = {"kind": kind, "pair": None, "pairs": len(block.averaged), "condition": condition}
                    lines.append(facts | where | _numbers(cell, average.get(VANILLA)))
        empty = dict.fromkeys(("model", "task", "split", "settings", "metric", "higher_is_better", "kind", "pair"))
        for missing in self.unplaced:
            lines.append({**empty, "pairs": None, "condition": None, **_numbers(None, None, missing)})
        return lines


def overview(runs: Iterable[Run], unfinished: Iterable[Unfinished] = ()) -> Overview:
    """Runs of `evaluate` beside each other. Their samples are read: the scores are paired by document.

    Raises:
        XTransplantError: a run's samples cannot be read, or a task has no metric that is a number.
    """
    groups: dict[tuple[str, ...], list[Part]] = {}
    for run in sorted(runs, key=lambda each: str(each.folder)):
        for part in parts(run):
            groups.setdefault(part.block, []).append(part)
    blocks = {key: _block(found) for key, found in sorted(groups.items())}
    unplaced = [each for each in unfinished if not _place(each, blocks)]
    for block in blocks.values():
        block.rows.sort(key=lambda row: natural(row.label))
        block.conditions.sort(key=lambda name: (not name.startswith(VANILLA), natural(name)))
        _average(block)
    for key, text in _settings_shown(list(blocks)).items():
        blocks[key].settings = text
    found = Overview(list(blocks.values()), unplaced)
    _compare(found)
    return found


# --- One run -------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """Of a run the tasks with the same main metric: mostly all. `cell` has their score, `scores` the documents'."""

    run: Run
    block: tuple[str, ...]  # model, task, split, metric, settings
    pair: str
    row: str  # digest of the documents, and of what they ask
    condition: str
    treatment: str  # digest of what was done to the model
    higher_is_better: bool
    cell: Cell
    scores: dict[Document, float] | None


def parts(run: Run) -> list[Part]:
    """A run of `evaluate` by its tasks' main metrics.

    Raises:
        XTransplantError: its samples cannot be read, or a task has no metric that is a number.
    """
    facts, args = run.manifest, run.results["config"]["model_args"]
    names = templates(args)
    found_of = measures(run)
    by_metric: dict[str, list[Measure]] = {}
    for task, several in found_of.items():
        main = _main(run, task, several)
        by_metric.setdefault(main.name, []).append(main)
    model = facts.get("model", {})
    settings = _canonical(
        {key: value for key, value in args.items() if key not in _NOT_SETTINGS}
        | {"weights": _digest([model.get("files"), model.get("adapter")])}
    )
    found = []
    for metric, mains in by_metric.items():
        tasks = {each.task: facts["tasks"][each.task] for each in mains}
        scores = {(names.get(each.task, each.task), key): x for each in mains for key, x in each.scores.items()}
        count = sum(each.documents for each in mains)
        guesses = [each.trivial * each.documents for each in mains if each.trivial is not None]
        cell = Cell(
            sum(each.value * each.documents for each in mains) / count,
            count,
            sum(guesses) / count if len(guesses) == len(mains) else None,
            folder=run.folder,
        )
        cell.beside = _beside([found_of[task] for task in tasks])
        higher = run.results.get("higher_is_better", {})
        better = [higher.get(each.task, {}).get(each.metric) for each in mains]
        found.append(
            Part(
                run=run,
                block=(facts["model_name"], facts["task_name"], facts["split"], metric, settings),
                pair=facts["language_pair"],
                row=_digest(sorted((name, *_asked(each)) for name, each in tasks.items())),
                condition=facts["condition"],
                treatment=_digest([args.get(key) for key in ("transplant", "selection", "prompt")]),
                higher_is_better=False not in better,
                cell=cell,
                scores=scores if len(scores) == count else None,
            )
        )
    return found


def _asked(facts: Mapping[str, Any]) -> list[Any]:
    """Digests of a task's documents, and of what both languages ask of each. Not of the documents that vectors come
    from: a control (`random_document`) takes others, and stands beside the rest all the same."""
    docs = facts.get("docs_sha256") or {}
    return [facts["keys_sha256"], docs.get("target"), facts.get("questions_sha256")]


# The language pair is the row, the rest the condition.
_NOT_SETTINGS = ("transplant", "selection", "prompt", "language_pair")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _main(run: Run, task: str, several: Sequence[Measure]) -> Measure:
    """The one that a grid of the task would be graded by."""
    named = {
        each.metric if each.filter == "none" else f"{each.metric},{each.filter}": each
        for each in several
        if each.metric != UNPARSED
    }
    try:
        return named[main_metric(list(named))]
    except IndexError:
        raise XTransplantError(f"{run.folder}: {task} has no metric that is a number.") from None


def templates(args: Mapping[str, Any]) -> dict[str, str]:
    """Task -> its name before the language was filled in: parallel documents have the same."""
    task, languages = args.get("task") or {}, args.get("language_pair")
    if not task.get("tasks") or not isinstance(languages, Mapping):
        return {}
    config = TaskConfig(tasks=task["tasks"], languages=task.get("languages") or {})
    named = task_names(config, LanguagePairConfig(languages["source"], languages["target"]))
    return {name: template for (name, _), template in zip(named, config.tasks, strict=True)}


def _beside(tasks: Sequence[Sequence[Measure]]) -> dict[str, float]:
    """The metrics beside the main one, over all documents of the tasks that have them."""
    found = {}
    for metric in (UNPARSED, CONSISTENCY, JUDGED):
        # Of several filters the first.
        having = [each[0] for several in tasks if (each := [one for one in several if one.metric == metric])]
        count = sum(each.documents for each in having)
        if count:
            found[metric] = sum(each.value * each.documents for each in having) / count
    return found


# --- Blocks --------------------------------------------------------------------------------------------------------


def _block(given: Sequence[Part]) -> Block:
    model, task, split, metric, _ = given[0].block
    places = [(part.pair, part.row, part.condition) for part in given]
    ambiguous = {
        condition
        for pair, row, condition in places
        if len({part.treatment for part in given if (part.pair, part.row, part.condition) == (pair, row, condition)})
        > 1
    }
    several = {pair for pair, _, _ in places if len({row for other, row, _ in places if other == pair}) > 1}
    rows: dict[tuple[str, str], Row] = {}
    placed: dict[tuple[str, str, str], Part] = {}
    for part in given:
        label = f"{part.pair} #{part.row[:4]}" if part.pair in several else part.pair
        row = rows.setdefault((part.pair, part.row), Row(part.pair, label, (), {}))
        # e.g. two selections by one strategy
        name = f"{part.condition} #{part.treatment[:4]}" if part.condition in ambiguous else part.condition
        twin = placed.setdefault((part.pair, part.row, name), part)
        if twin is not part:  # the same run in another folder; where it gave something else, on another device perhaps
            if written(twin.run) == written(part.run):
                continue
            name = next(new for new in (f"{name} ({n})" for n in range(2, len(given) + 1)) if new not in row.cells)
        if part.scores is not None:
            row.documents = row.documents or tuple(sorted(part.scores))
            if part.scores.keys() == set(row.documents):
                part.cell.values = np.array([part.scores[each] for each in row.documents])
                part.cell.stderr = _stderr(part.cell.values)
        row.cells[name] = part.cell
    conditions = list(dict.fromkeys(name for row in rows.values() for name in row.cells))
    return Block(
        *(model, task, split, metric),
        higher_is_better=all(part.higher_is_better for part in given),
        settings="",
        conditions=conditions,
        rows=list(rows.values()),
    )


def written(run: Run) -> dict[str, str]:
    """Hashes of what a run answered. Its results also say when and in which words it was asked for."""
    found = {name: each for name, each in run.manifest.get("files", {}).items() if name.endswith(".jsonl")}
    return found | {"grid": str(run.manifest.get("grid_sha256"))}


def _stderr(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def _place(missing: Unfinished, blocks: Mapping[tuple[str, ...], Block]) -> bool:
    """Note in the blocks that it belongs to that a cell has no result; False where there is no such block."""
    if missing.facts is None:
        return False
    facts = missing.facts
    args = {key: value for key, value in facts["model_args"].items() if key not in _NOT_SETTINGS}
    labels = tuple(facts[key] for key in ("model_name", "task_name", "split"))
    fits = [
        block
        for key, block in blocks.items()
        if key[:3] == labels
        and {**json.loads(key[4]), "weights": None} == json.loads(_canonical(args | {"weights": None}))
    ]
    for block in fits:
        rows = [row for row in block.rows if row.pair == facts["language_pair"]]
        if not rows:
            rows = [Row(facts["language_pair"], facts["language_pair"], (), {})]
            block.rows += rows
        condition = facts["condition"]
        for row in rows:
            if condition not in row.cells:
                row.missing[condition] = missing
        if condition not in block.conditions and any(condition in row.missing for row in rows):
            block.conditions.append(condition)
    return bool(fits)


def _average(block: Block) -> None:
    conditions = [name for name in block.conditions if any(name in row.cells for row in block.rows)]
    # A language pair with two sets of documents would count twice.
    rows = [row for row in block.rows if row.label == row.pair and all(name in row.cells for name in conditions)]
    if len(block.rows) < 2 or not rows:
        return
    block.averaged = rows
    counts = np.array([row.cells[conditions[0]].documents for row in rows], dtype=float)
    scores = np.array([[row.cells[name].score for name in conditions] for row in rows])
    trivial = [row.cells[conditions[0]].trivial for row in rows]
    values = [[row.cells[name].values for name in conditions] for row in rows]
    drawn, enlarged = None, 1.0
    units = len({unit for row in rows for unit in row.documents})
    if units > 1 and all(each is not None for row_values in values for each in row_values):
        tables = [np.column_stack([each for each in row_values if each is not None]) for row_values in values]
        drawn = stats.resampled_means(tables, [row.documents for row in rows])
        enlarged = (units / (units - 1)) ** 0.5  # resamples vary by n, a standard error counts n - 1
    kinds = {MICRO: counts / counts.sum(), MACRO: np.full(len(rows), 1 / len(rows))}
    for kind, weights in kinds.items():
        if drawn is None and kind == MICRO:
            continue  # what is no mean over documents has none over all of them either
        means = weights @ scores
        guess = None if None in trivial else float(weights @ np.array(trivial, dtype=float))
        resampled = None if drawn is None else np.tensordot(weights, drawn, axes=1)  # [resamples, conditions]
        cells = {}
        for column, name in enumerate(conditions):
            cell = Cell(float(means[column]), int(counts.sum()), guess)
            if resampled is not None:
                cell.stderr = float(resampled[:, column].std(ddof=1)) * enlarged
            if VANILLA in conditions and name != VANILLA:
                base = conditions.index(VANILLA)
                cell.difference = float(means[column] - means[base])
                if resampled is not None:
                    low, high = np.quantile(resampled[:, column] - resampled[:, base], [0.025, 0.975])
                    cell.interval = float(low), float(high)
            cells[name] = cell
        block.averages[kind] = cells


def _compare(found: Overview) -> None:
    """Differences to vanilla, with intervals and tests. Columns of as many documents are resampled together."""
    others: dict[int, list[tuple[Cell, np.ndarray]]] = {}
    for block in found.blocks:
        for row in block.rows:
            vanilla = row.cells.get(VANILLA)
            for name, cell in row.cells.items():
                if vanilla is None or name == VANILLA:
                    continue
                cell.difference = cell.score - vanilla.score
                if cell.values is None or vanilla.values is None:
                    continue
                if np.isin([cell.values, vanilla.values], (0, 1)).all():
                    cell.interval = stats.paired_interval(cell.values, vanilla.values)
                    cell.p, cell.test = stats.mcnemar(cell.values, vanilla.values), "McNemar's test"
                else:
                    others.setdefault(len(cell.values), []).append((cell, cell.values - vanilla.values))
    for each in others.values():
        differences = np.column_stack([columns for _, columns in each])
        intervals = stats.bootstrap_intervals(differences)
        p = stats.sign_flip_max_t(differences).p
        for (cell, _), (low, high), alone in zip(each, intervals.tolist(), p.tolist(), strict=True):
            cell.interval, cell.p, cell.test = (low, high), alone, "sign flips"
    for compared in found.comparisons().values():
        tested = [each.cell for each in compared if each.cell.p is not None]
        if tested:
            adjusted = stats.false_discovery(np.array([cell.p for cell in tested]))
            for cell, q in zip(tested, adjusted.tolist(), strict=True):
                cell.q = q


def _settings_shown(keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Of the blocks with the same labels: the settings in which they differ."""
    shown = {}
    for key in keys:
        values = {other: flat(json.loads(other[4])) for other in keys if other[:4] == key[:4]}
        names = sorted({name for each in values.values() for name in each})
        differing = [name for name in names if len({each.get(name) for each in values.values()}) > 1]
        told = [name for name in differing if name != "weights"]
        if len({tuple(each.get(name) for name in told) for each in values.values()}) == len(values):
            differing = told  # a hash says nothing to a reader
        shown[key] = ", ".join(f"{name}={values[key].get(name, '-')}" for name in differing)
    return shown


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Key -> value as one short text."""
    if isinstance(value, dict) and value:
        return {
            key: text for part in value for key, text in flat(value[part], f"{name}.{part}" if name else part).items()
        }
    text = value if isinstance(value, str) else _canonical(value)
    if name == "weights":
        return {name: text[:6]}
    if name == "model.adapter":
        return {name: Path(text).name}
    return {name: text if len(text) <= 40 else f"#{_digest(text)[:6]}"}


def natural(name: str) -> list[tuple[int, str]]:
    """To sort numbers in names by their size."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _numbers(cell: Cell | None, vanilla: Cell | None, missing: Unfinished | None = None) -> dict[str, Any]:
    low, high = (None, None) if cell is None or cell.interval is None else cell.interval
    numbers = {key: getattr(cell, key, None) for key in ("documents", "trivial", "score", "stderr")}
    return {
        "status": "finished" if cell is not None else "missing" if missing is None else missing.status,
        **numbers,
        "vanilla": None if vanilla is None else vanilla.score,
        "difference": None if cell is None else cell.difference,
        "difference_low": low,
        "difference_high": high,
        "p": None if cell is None else cell.p,
        "q": None if cell is None else cell.q,
        "test": None if cell is None else cell.test,
        **{name: None if cell is None else cell.beside.get(name) for name in (UNPARSED, CONSISTENCY, JUDGED)},
        "folder": None if (where := getattr(cell or missing, "folder", None)) is None else str(where),
        "why": None if missing is None else missing.why,
    }
