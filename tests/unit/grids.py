"""Small grids made up for tests: scores follow from log-probabilities or texts, as they would from the harness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xtransplant.grid import Grid
from xtransplant.types import Cell, Component

BEST = Cell(Component.ffn, 3, 1)


def all_cells(num_layers: int, components: Sequence[Component] = (Component.ffn, Component.attn)) -> list[Cell]:
    """Every layer pair of every component, by component, source, target."""
    layers = range(num_layers)
    return [Cell(component, source, target) for component in components for source in layers for target in layers]


def meta(num_layers: int, cells: Sequence[Cell], **changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "job": "grid", "config_hash": "c0ffee", "model_name": "tiny", "task_name": "colour", "tasks": ["colour_sw"],
        "model": {"files": {"model.safetensors": "ab12"}, "adapter": None}, "num_layers": num_layers,
        "hidden_size": 8, "language_pair": ["en", "sw"], "split": "sample", "seed": 1234,
        "intervention": {"site": "module"},
        "control": None, "components": list(dict.fromkeys(cell.component.value for cell in cells)), "pairs": "all",
        "metrics": ["acc"], "higher_is_better": {"acc": True}, "trivial_baseline": 0.25,
        "settings": {"task.num_fewshot": 0, "model.dtype": "float32"},
    }  # fmt: skip
    return facts | changes


def choice_grid(
    documents: int = 40,
    num_layers: int = 4,
    num_choices: Sequence[int] = (4,),
    components: Sequence[Component] = (Component.ffn, Component.attn),
    best: Cell | None = BEST,
    skill: float = 0.2,
    best_skill: float = 2.5,
    unseen_cells: float = 0.0,
    seed: int = 0,
    first: int = 0,
    **changes: Any,
) -> Grid:
    """Multiple choice: noise plus `skill` on the right choice in every cell (`best_skill` in the planted `best` cell).

    Args:
        num_choices: of the documents, in turn.
        unseen_cells: share of the cells that were looked at on the first half of the documents only.
        first: number of the first document; grids with other numbers share no document.
        changes: of the meta data; `metrics=["acc", "acc_norm"]` adds a second metric.
    """
    generator = np.random.default_rng(seed)
    cells = all_cells(num_layers, components)
    counts = np.array([num_choices[row % len(num_choices)] for row in range(documents)])
    exists = np.arange(max(num_choices)) < counts[:, None]
    gold = generator.integers(counts)
    # A document is as hard in all cells: what cells share of the noise.
    noise = generator.normal(size=(documents, 1, max(num_choices))) + 0.7 * generator.normal(
        size=(documents, 1 + len(cells), max(num_choices))
    )
    strength = np.full(1 + len(cells), skill)
    if best is not None:
        strength[1 + cells.index(best)] = best_skill
    right = np.arange(max(num_choices)) == gold[:, None]
    logits = np.where(exists[:, None, :], noise + strength[None, :, None] * right[:, None, :], -np.inf)
    # Below 1 in all: a choice is one of many continuations.
    logprob = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True)) - 1.5
    correct = (logprob.argmax(axis=2) == gold[:, None]).astype(np.float32)
    logprob = np.where(exists[:, None, :], logprob, np.nan).astype(np.float32)
    facts = meta(num_layers, cells, **changes)
    # Any other metric is 1 wherever the main one is, and sometimes where it is not.
    others = [np.maximum(correct, generator.random(correct.shape) < 0.1) for _ in facts["metrics"][1:]]
    scores = np.stack([correct, *others]).astype(np.float32)
    vanilla, scores, cell_logprob = scores[:, :, 0], scores[:, :, 1:].copy(), logprob[:, 1:].copy()
    partly = generator.permutation(len(cells)) < round(unseen_cells * len(cells))
    hidden = partly & (np.arange(documents) >= documents // 2)[:, None]
    scores[:, hidden] = np.nan
    cell_logprob[hidden] = np.nan
    return Grid(
        facts,
        cells,
        [f"{facts['tasks'][0]}/{first + row}" for row in range(documents)],
        scores,
        vanilla,
        logprob=cell_logprob,
        vanilla_logprob=logprob[:, 0],
        choice_scores=np.where(exists, right, np.nan).astype(np.float32),
    )


def text_grid(
    documents: int = 30,
    num_layers: int = 4,
    components: Sequence[Component] = (Component.ffn,),
    best: Cell | None = BEST,
    seed: int = 0,
    first: int = 0,
    **changes: Any,
) -> Grid:
    """Generation: each document has one right text and two wrong ones; the planted `best` cell is mostly right."""
    generator = np.random.default_rng(seed)
    cells = all_cells(num_layers, components)
    texts = [f"text {number}" for number in range(3 * documents)]
    chance = np.full(1 + len(cells), 0.35)
    if best is not None:
        chance[1 + cells.index(best)] = 0.9
    right = generator.random((documents, 1 + len(cells))) < chance
    wrong = generator.integers(1, 3, size=right.shape)
    text = (3 * np.arange(documents)[:, None] + np.where(right, 0, wrong)).astype(np.int32)
    scores = right.astype(np.float32)[None]
    facts = meta(
        num_layers, cells, **{"metrics": ["exact_match"], "higher_is_better": {"exact_match": True}, **changes}
    )
    return Grid(
        facts,
        cells,
        [f"{facts['tasks'][0]}/{first + row}" for row in range(documents)],
        scores[:, :, 1:],
        scores[:, :, 0],
        texts=texts,
        text=text[:, 1:],
        vanilla_text=text[:, 0],
    )


def hand_grid(
    scores: Sequence[Sequence[float]], vanilla: Sequence[float], cells: Sequence[Cell], num_layers: int, **changes: Any
) -> Grid:
    """Scores [D][C] written down by hand, and nothing else."""
    facts = meta(num_layers, cells, **changes)
    names = [f"{facts['tasks'][0]}/{row}" for row in range(len(scores))]
    return Grid(facts, list(cells), names, np.array([scores]), np.array([vanilla]))


def counts_of(grid: Grid) -> list[int]:
    """How many choices each document has."""
    assert grid.choice_scores is not None
    return (~np.isnan(grid.choice_scores)).sum(axis=1).tolist()


def as_errors(grid: Grid) -> Grid:
    """The same grid with a metric that is better when lower: 1 less the score."""
    facts = grid.meta | {"metrics": ["error"], "higher_is_better": {"error": False}}
    choices = None if grid.choice_scores is None else 1 - grid.choice_scores
    return replace(grid, meta=facts, scores=1 - grid.scores, vanilla=1 - grid.vanilla, choice_scores=choices)
