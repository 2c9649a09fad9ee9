"""What a finished run measured: every metric of its tasks, and the documents' scores that it is the mean of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xtransplant import disk, stats
from xtransplant.answer_language import CONSISTENCY, JUDGED
from xtransplant.record import Run
from xtransplant.types import XTransplantError

# Metrics that a guess without reading the question has a share of.
GUESSED = ("acc", "exact_match")


@dataclass(frozen=True)
class Measure:
    """A metric of a task.

    Attributes:
        filter: the harness's name for how an answer is read; `none`, as a rule.
        documents: how many it speaks of.
        trivial: what guessing without the question gives.
        scores: of each document, by its key. Empty where the metric is no mean of such, e.g. chrF or perplexity.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    documents: int
    trivial: float | None
    scores: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """To be read."""
        return self.metric if self.filter == "none" else f"{self.metric} ({self.filter})"

    def interval(self, seed: int = 0) -> tuple[float, float] | None:
        """95 %: a bootstrap over documents where there are their scores, else 1.96 standard errors to either side."""
        if self.scores:
            return stats.bootstrap_interval(np.array(list(self.scores.values())), resamples=2_000, seed=seed)
        return None if self.stderr is None else (self.value - 1.96 * self.stderr, self.value + 1.96 * self.stderr)


def measures(run: Run, of_documents: bool = True) -> dict[str, list[Measure]]:
    """Task -> its metrics, in the task's own order.

    Args:
        of_documents: read the samples for the scores; without, the order is the alphabet's.

    Raises:
        XTransplantError: the samples cannot be read.
    """
    found = {}
    for task, facts in run.manifest["tasks"].items():
        result = run.results["results"][task]
        rows = samples(run, task) if of_documents else []
        # Results lie sorted in their file.
        own = dict.fromkeys(
            f"{metric},{row.get('filter', 'none')}" for row in rows for metric in row.get("metrics", ())
        )
        found[task] = [
            _measure(task, key, result, facts, rows)
            for key in dict.fromkeys([*(key for key in own if key in result), *result])
            if "," in key and not key.partition(",")[0].endswith("_stderr") and _is_number(result[key])
        ]
    return found


def samples(run: Run, task: str) -> list[dict[str, Any]]:
    """A task's documents as the harness writes them, with our `key` and `source_prompts`; one for each filter.

    Raises:
        XTransplantError: they cannot be read.
    """
    path = run.folder / f"samples_{task}.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:
            return list(map(disk.json_in, lines))
    except (OSError, ValueError) as error:
        raise XTransplantError(f"{path} cannot be read: {error}. Run again with overwrite=true.") from error


def _measure(
    task: str, key: str, result: Mapping[str, Any], facts: Mapping[str, Any], rows: list[dict[str, Any]]
) -> Measure:
    metric, _, filtered = key.partition(",")
    value, error = float(result[key]), result.get(f"{metric}_stderr,{filtered}")
    # The only metric that some documents do not have.
    judged = result.get(f"{JUDGED},{filtered}", 1.0) if metric == CONSISTENCY else 1.0
    documents = round(judged * facts["documents"])
    scores = {
        str(row["key"]): float(row[metric])
        for row in rows
        if row.get("filter", "none") == filtered and _is_number(row.get(metric)) and math.isfinite(row[metric])
    }
    mean = math.fsum(scores.values()) / len(scores) if scores else math.nan
    return Measure(
        *(task, metric, filtered, value),
        stderr=float(error) if isinstance(error, int | float) and math.isfinite(error) else None,
        documents=documents,
        trivial=facts["trivial_baseline"] if metric in GUESSED else None,
        scores=scores if len(scores) == documents and math.isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9) else {},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
