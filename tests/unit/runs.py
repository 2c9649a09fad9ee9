"""Finished runs of `evaluate` with made-up scores, in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xtransplant.record import Run

Scores = Sequence[float]


def a_sample(row: int, metric: str, value: float) -> dict[str, Any]:
    """A document as the harness writes it, of the key k<row>."""
    return {
        "key": f"k{row}", "filter": "none", "metrics": [metric], metric: value, "arguments": [[f"{row}?", " yes"]],
        "source_prompts": [f"source {row}?"], "doc_hash": f"{row:064x}", "prompt_hash": f"{row:064x}",
    }  # fmt: skip


def made_run(
    place: Path,
    condition: str = "vanilla",
    pair: str = "en-sw",
    metric: str = "acc",
    result: float | None = None,
    higher_is_better: bool = True,
    name: str = "",
    given: dict[str, Any] | None = None,
    **scores: Scores,
) -> Run:
    """A run of the tasks `scores`, named without the language; each a score per document, whose keys are their rows.

    Args:
        result: the task's score, if it is not the mean.
        name: of the folder, where the same is run twice.
        given: what differs in the run's config.
    """
    source, target = pair.split("-")
    folder = place / f"{condition}-{pair}{name}"
    folder.mkdir(parents=True)
    results, tasks = {}, {}
    for task, values in scores.items():
        task = f"{task}_{target}"
        results[task] = {"alias": task, f"{metric},none": sum(values) / len(values) if result is None else result}
        tasks[task] = {
            "documents": len(values), "trivial_baseline": 0.25, "keys_sha256": f"{len(values)}{target}",
        }  # fmt: skip
        rows = [a_sample(row, metric, value) for row, value in enumerate(values)]
        # The order of the rows does not matter.
        lines = "".join(json.dumps(row) + "\n" for row in (rows if condition == "vanilla" else rows[::-1]))
        (folder / f"samples_{task}.jsonl").write_text(lines, encoding="utf-8")
    args = {
        "task": {"tasks": [f"{task}_{{lang}}" for task in scores], "languages": {}},
        "language_pair": {"source": source, "target": target},
        "transplant": None if condition == "vanilla" else {"layers": condition},
        "seed": 1,
    }
    return Run(
        folder,
        {
            "model_name": "tiny", "task_name": "colour", "language_pair": pair, "split": "unseen",
            "condition": condition, "tasks": tasks, "files": {"samples_task.jsonl": f"{condition}{scores}"},
        },
        {
            "results": results,
            "config": {"model_args": args | (given or {})},
            "higher_is_better": {task: {metric: higher_is_better} for task in tasks},
        },
    )  # fmt: skip
