"""Results as tables that a person reads in a terminal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from xtransplant.answer_language import CONSISTENCY, JUDGED, METRICS
from xtransplant.record import Run

_LEGEND = """\
Accuracy (acc) on the pair's target language, the second; in brackets, the difference to the vanilla model.
ffn I>J (attn I>J): the feed-forward (attention) output of layer I, read at the last token of the prompt in the source
language, put in place of layer J's at the last token of the same prompt in the target language. A strategy's name
(overall, vote, …): what its selection says, see `xtransplant select`.
trivial: a guess that does not read the question. With 50 documents, differences below about 0.1 can be chance."""
_UNPARSED = "unparsed"  # as tasks call the share of answers that their rule cannot read
# Columns beside the accuracy, where a run has them, and what they say.
_BESIDE = {
    _UNPARSED: "share of answers in which the task's rule finds no option; they count as wrong.",
    CONSISTENCY: "0.75 of 40%: of 40% of the answers the language can be told, 0.75 of them are in the target's.",
}


def run_table(run: Run) -> str:
    """One run: a row per task and metric, with the trivial baseline and the number of documents that it speaks of."""
    rows = []
    for name, facts in run.manifest["tasks"].items():
        metrics = _metrics(run.results["results"][name])
        shares = {metric: value for metric, value, _ in metrics}
        for metric, value, error in metrics:
            baseline = facts["trivial_baseline"] if metric in ("acc", "exact_match") else None
            # The only metric that some documents do not have.
            share = shares.get(metric.replace(CONSISTENCY, JUDGED), 1.0) if metric.startswith(CONSISTENCY) else 1.0
            documents = round(share * facts["documents"])
            rows.append([name, metric, _number(value, error), _number(baseline), str(documents)])
    return table(["task", "metric", "value ± stderr", "trivial", "documents"], rows)


def summary_table(runs: Sequence[Run]) -> str:
    """Many runs: a row per model, task family, language pair and settings, a column per condition.

    Accuracy (the first metric where there is none), averaged over the documents of the family's tasks. Only runs that
    differ in nothing but the transplant share a row; a column `settings` tells rows apart that look alike. A column
    `unparsed` and one `language_consistency`, where a run has such a metric, hold a value for each condition.
    """
    cells: dict[tuple[str, ...], dict[str, tuple[float, float | None, int]]] = {}
    beside: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    named = [((*_label(run), _settings(run)), str(run.manifest["condition"])) for run in runs]
    for run, (row, condition) in zip(runs, named, strict=True):
        if named.count((row, condition)) > 1:  # e.g. two selections by one strategy
            condition += f" #{run.manifest['config_hash'][:4]}"
        cells.setdefault(row, {})[condition] = _pooled(run)
        beside.setdefault(row, {})[condition] = _beside(run)
    conditions = sorted({each for found in cells.values() for each in found}, key=lambda c: (c != "vanilla", c))
    shown = [name for name in _BESIDE if any(name in each for found in beside.values() for each in found.values())]
    alike = len({row[:-1] for row in cells}) < len(cells)
    rows = []
    for row, found in sorted(cells.items()):
        vanilla = found.get("vanilla")
        line = list(row if alike else row[:-1])
        for condition in conditions:
            cell = found.get(condition)
            text = "-" if cell is None else f"{cell[0]:.3f}"
            if cell is not None and vanilla is not None and condition != "vanilla":
                text += f" ({cell[0] - vanilla[0]:+.3f})"
            line.append(text)
        some = next(iter(found.values()))
        more = [" / ".join(beside[row].get(each, {}).get(name, "-") for each in conditions) for name in shown]
        rows.append([*line, _number(some[1]), *more, str(some[2])])
    header = ["model", "task", "pair", "split", *(["settings"] if alike else []), *conditions, "trivial", *shown]
    legend = ["Beside it, a value for each condition:"] * bool(shown) + [f"{name}: {_BESIDE[name]}" for name in shown]
    return "\n".join([table([*header, "documents"], rows), "", _LEGEND, *legend])


def _label(run: Run) -> tuple[str, ...]:
    return tuple(str(run.manifest[key]) for key in ("model_name", "task_name", "language_pair", "split"))


def _settings(run: Run) -> str:
    """Six hex digits of all that was configured, the condition apart, and of the documents that were evaluated."""
    configured = {**run.results["config"]["model_args"], "transplant": None, "selection": None, "prompt": None}
    documents = [facts["keys_sha256"] for _, facts in sorted(run.manifest["tasks"].items())]
    text = json.dumps([configured, documents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _pooled(run: Run) -> tuple[float, float | None, int]:
    tasks = run.manifest["tasks"]
    documents = sum(facts["documents"] for facts in tasks.values())
    total, trivial = 0.0, 0.0
    for name, facts in tasks.items():
        metrics = {metric: value for metric, value, _ in _metrics(run.results["results"][name])}
        first = next(value for metric, value in metrics.items() if metric.partition(" ")[0] not in METRICS)
        total += metrics.get("acc", first) * facts["documents"]
        trivial += (facts["trivial_baseline"] or 0.0) * facts["documents"]
    known = all(facts["trivial_baseline"] is not None for facts in tasks.values())
    return total / documents, trivial / documents if known else None, documents


def _beside(run: Run) -> dict[str, str]:
    """The columns `_BESIDE` that a run has, over all documents of its tasks."""
    rates: list[tuple[int, dict[str, float]]] = []
    for name, facts in run.manifest["tasks"].items():
        values: dict[str, float] = {}
        for metric, value, _ in _metrics(run.results["results"][name]):
            values.setdefault(metric.partition(" ")[0], value)  # of several filters the first
        rates.append((facts["documents"], values))
    found = {}
    read = [(count, values[_UNPARSED]) for count, values in rates if _UNPARSED in values]
    if read:
        found[_UNPARSED] = _number(sum(count * value for count, value in read) / sum(count for count, _ in read))
    told = [(count, values) for count, values in rates if JUDGED in values]
    if told:
        judged = sum(count * values[JUDGED] for count, values in told)
        right = sum(count * values[JUDGED] * values.get(CONSISTENCY, 0.0) for count, values in told)
        share = judged / sum(count for count, _ in told)
        found[CONSISTENCY] = f"{_number(right / judged if judged else None)} of {share:.0%}"
    return found


def _metrics(result: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """(metric, value, standard error) of a task, as the harness names them: ``metric,filter``."""
    found = []
    for key, value in result.items():
        metric, _, name = key.partition(",")
        if name and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = result.get(f"{metric}_stderr,{name}")
            label = metric if name == "none" else f"{metric} ({name})"
            found.append((label, float(value), error if isinstance(error, int | float) else None))
    return found


def _number(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
