"""The harness grades every cell: a task's own filters and `process_results` on what the cells answered.

Shapes: D documents, C cells, M choices; row 0 of a request's responses is the untouched prompt, then the cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xtransplant.answer_language import own_metrics
from xtransplant.grid import Grid
from xtransplant.types import Cell, XTransplantError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    from xtransplant.pairing import Pairing

# Log-probability of the choices that were not taken, when one is graded as the answer.
_NEVER = -1e4


def main_metric(names: Sequence[str]) -> str:
    """Accuracy; else the first one that is the task's own."""
    return "acc" if "acc" in names else own_metrics(names)[0]


def check(tasks: Sequence[ConfigurableTask]) -> None:
    """Raise XTransplantError for a task whose requests are not its choices."""
    for task in tasks:
        if "acc_mutual_info" in task._metric_fn_list:
            raise XTransplantError(
                f"{task.config.task}: its metric acc_mutual_info asks for every choice a second time, without the "
                "prompt, where nothing can be transplanted. Use the task without this metric."
            )


def document_scores(task: ConfigurableTask, requests: Sequence[Instance], rows: int) -> dict[str, np.ndarray]:
    """The metrics of one document in every row [rows]; NaN where a row has no response. As evaluator.py of the harness.

    Args:
        requests: of the document, in the order of its choices, with `cells` as `SweepLM` leaves them.
    """
    found: dict[str, np.ndarray] = {}
    kept = [(request.resps, request.filtered_resps) for request in requests]
    for row in range(rows):
        responses = [_response(request, row) for request in requests]
        if any(response is None for response in responses):
            continue
        for name, value in _grade(task, requests, responses).items():
            found.setdefault(name, np.full(rows, np.nan, np.float32))[row] = value
    for request, (resps, filtered) in zip(requests, kept, strict=True):
        request.resps, request.filtered_resps = resps, filtered
    return found


def choice_scores(task: ConfigurableTask, requests: Sequence[Instance], metric: str) -> np.ndarray:
    """The metric [M] if that choice were the answer."""
    kept = [(request.resps, request.filtered_resps) for request in requests]
    scores = [
        _grade(task, requests, [(0.0 if n == chosen else _NEVER, False) for n in range(len(requests))])[metric]
        for chosen in range(len(requests))
    ]
    for request, (resps, filtered) in zip(requests, kept, strict=True):
        request.resps, request.filtered_resps = resps, filtered
    return np.array(scores, np.float32)


def _response(request: Instance, row: int) -> Any:
    if request.request_type == "generate_until":
        return request.cells[row]
    logprob, greedy = request.cells[0][row], request.cells[1][row]
    return None if np.isnan(logprob) else (float(logprob), bool(greedy))


def _grade(task: ConfigurableTask, requests: Sequence[Instance], responses: Sequence[Any]) -> dict[str, float]:
    for request, response in zip(requests, responses, strict=True):
        request.resps, request.filtered_resps = [response], {}
    graded: dict[str, float] = {}
    for ensemble in task._filters:
        ensemble.apply(list(requests))
        results = task.process_results(requests[0].doc, [request.filtered_resps[ensemble.name] for request in requests])
        for metric, value in results.items():
            if isinstance(value, bool | int | float | np.number):
                graded[metric if ensemble.name == "none" else f"{metric},{ensemble.name}"] = float(value)
    return graded


def make_grid(pairs: Sequence[Pairing], templates: Sequence[str], cells: Sequence[Cell], meta: dict[str, Any]) -> Grid:
    """Grade all that `SweepLM` left on the requests.

    Args:
        templates: of the tasks' names, the same in every language: parallel documents have one name.
        meta: of the grid; what follows from the documents is added.

    Raises:
        XTransplantError: a task gives no number as a metric, or the tasks have none in common.
    """
    rows = 1 + len(cells)
    documents: list[str] = []
    questions: list[list[str]] = []
    scores: list[dict[str, np.ndarray]] = []
    requests_of: list[list[Instance]] = []
    tasks: list[ConfigurableTask] = []
    for found, template in zip(pairs, templates, strict=True):
        asked = dict(zip((found.keys[row] for row in found.rows), found.questions(), strict=True))
        grouped: dict[int, list[Instance]] = {}
        for request in found.target.instances:
            grouped.setdefault(request.doc_id, []).append(request)
        for group in grouped.values():
            group.sort(key=lambda request: int(request.idx))
            key = found.key_of(group[0].doc)
            documents.append(f"{template}/{key}")
            questions.append(asked[key])
            scores.append(document_scores(found.target, group, rows))
            requests_of.append(group)
            tasks.append(found.target)
    names = [name for name in scores[0] if all(name in each for each in scores)] if scores else []
    names = own_metrics(names)
    if not names:
        raise XTransplantError(
            f"{', '.join(found.name for found in pairs)}: no metric that is a number for each document, in all tasks."
        )
    main = main_metric(names)
    every = dict.fromkeys(name for each in scores for name in each)
    # The language of some answers cannot be told, perhaps in no cell of a document: NaN there.
    beside = [name for name in every if not own_metrics([name])]
    names = [main, *(name for name in names if name != main), *beside]
    missing = np.full(rows, np.nan, np.float32)
    table = np.stack([np.stack([each.get(name, missing) for each in scores]) for name in names])  # [K, D, 1 + C]
    better = pairs[0].target.higher_is_better()
    higher = {name: bool(better.get(name.partition(",")[0], True)) for name in own_metrics(names)}
    arrays: dict[str, Any] = {}
    if requests_of[0][0].request_type == "generate_until":
        texts = [group[0].cells for group in requests_of]
        distinct = list(dict.fromkeys(text for row in texts for text in row if text is not None))
        place = {text: n for n, text in enumerate(distinct)}
        index = np.array([[-1 if text is None else place[text] for text in row] for row in texts], np.int32)
        arrays = {"texts": distinct, "text": index[:, 1:], "vanilla_text": index[:, 0]}
    else:
        widest = max(map(len, requests_of))
        logprob = np.full((len(documents), rows, widest), np.nan, np.float32)
        for d, group in enumerate(requests_of):
            for choice, request in enumerate(group):
                logprob[d, :, choice] = request.cells[0]
        arrays = {"logprob": logprob[:, 1:], "vanilla_logprob": logprob[:, 0]}
        if all(task.OUTPUT_TYPE == "multiple_choice" for task in tasks):
            graded = np.full((len(documents), widest), np.nan, np.float32)
            for d, (task, group) in enumerate(zip(tasks, requests_of, strict=True)):
                graded[d, : len(group)] = choice_scores(task, group, main)
            arrays["choice_scores"] = graded
    return Grid(
        {**meta, "metrics": names, "higher_is_better": higher},
        list(cells),
        documents,
        table[:, :, 1:],
        table[:, :, 0],
        questions=questions,
        **arrays,
    )
