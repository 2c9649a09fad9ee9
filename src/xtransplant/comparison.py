"""Every strategy, chosen on one half of the documents and scored on the other, beside what could be reached at most.

Legend: D documents, C cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xtransplant import stats
from xtransplant.grid import SAME_CELLS, Grid, as_list, chance, name_of, ranked, union, unlike
from xtransplant.strategies import evaluate_selection, select
from xtransplant.types import FIXED, STRATEGIES, XTransplantError


def strategy_table(
    sample: Grid, unseen: Grid, controls: Sequence[Grid] = (), seed: int = 0, resamples: int = 10_000
) -> list[dict[str, Any]]:
    """Every strategy, selected on `sample`, on the documents of `unseen`; what is the most that any could reach; and
    how much of that is chance.

    Each row has all of these keys, null where one does not apply. `name`; `kind`: baseline, strategy, oracle (reads the
    scores of the very documents it is scored on: no strategy) or control; `score` (mean main metric) of `documents`;
    `difference` to vanilla with `low` and `high` (95 % bootstrap over documents) and `p` (exact McNemar, two-sided,
    0/1 scores only, not corrected for the number of rows); `gap_closed`: the share of the way from vanilla to the
    upper bound, with `gap_low` and `gap_high` (documents resampled, numerator and denominator together; null where
    there is no gap, the interval also where more than 5 % of the resamples have none); `cells` used and their
    `number`; `sample_score`, of vanilla and of a strategy, on the documents it was selected on; `chance`: what as many
    guesses as cells would reach; `reason` where a strategy could not be used.

    A control's row has its own upper bound as `score`, and as `reference` that of the unseen grid (or the sample grid,
    whichever has its documents) on the same documents and cells, with `above`, the reference less the control, its
    interval `above_low`, `above_high`, and `above_p`.

    Raises:
        XTransplantError: the grids share a document or are of unlike models or settings; a control that is none, or
            that has documents of neither grid, or no cell in common.
    """
    why = unlike(sample, unseen, (*SAME_CELLS, "metrics"))
    if why is not None:
        raise XTransplantError(f"{name_of(sample)} and {name_of(unseen)} cannot be compared: {why}.")
    shared = set(sample.own_names) & set(unseen.own_names)
    if shared:
        raise XTransplantError(
            f"{name_of(sample)} and {name_of(unseen)} share {len(shared)} documents: {min(shared)}, …"
        )
    control_rows = [_control_row(control, sample, unseen, seed) for control in controls]
    vanilla = unseen.vanilla[0].astype(np.float64)
    on_sample = float(sample.vanilla[0].mean(dtype=np.float64))
    rows = [_row("vanilla", "baseline", vanilla, None, seed) | {"sample_score": on_sample}]
    scores: list[np.ndarray | None] = [None]

    def add(name: str, kind: str, reached: np.ndarray, **more: Any) -> None:
        rows.append(_row(name, kind, reached, vanilla, seed) | more)
        scores.append(reached)

    asked: list[tuple[str, str, dict[str, Any]]] = [(name, name, {}) for name in STRATEGIES if name != "fixed"]
    asked[3:3] = [(f"fixed {name}", "fixed", {"fixed": name}) for name in FIXED]
    for name, strategy, options in asked:
        try:
            (selection,) = select([sample], strategy, seed=seed, **options)
            reached = evaluate_selection(selection, unseen)
        except XTransplantError as error:
            rows.append(_EMPTY_ROW | {"name": name, "kind": "strategy", "reason": str(error)})
            scores.append(None)
            continue
        cells = [as_list(cell) for cell in selection.cells]
        add(name, "strategy", reached, cells=cells, number=len(cells), sample_score=selection.score)

    order = ranked(unseen)
    if not len(order):
        raise XTransplantError(f"{name_of(unseen)}: no cell was seen on all documents.")
    for name, column in (("best single pair", order[0]), ("median pair", order[len(order) // 2])):
        reached = unseen.scores[0][:, column].astype(np.float64)
        add(name, "oracle", reached, cells=[as_list(unseen.cells[column])], number=1)
    last = unseen.meta["num_layers"] - 1
    sets: dict[str, Any] = {
        "upper bound": order,
        "source_last upper bound": [column for column in order if unseen.cells[column].source == last],
        "target_first upper bound": [column for column in order if unseen.cells[column].target == 0],
    }
    for name, columns in sets.items():
        if len(columns):
            reached = union(unseen, columns)
            add(name, "oracle", reached, number=len(columns), chance=chance(unseen, len(columns)))
    gaps = _gaps(scores, vanilla, union(unseen, order), unseen.sign, resamples, seed)
    return [row | gap for row, gap in zip(rows, gaps, strict=True)] + control_rows


_EMPTY_ROW: dict[str, Any] = dict.fromkeys(
    (
        *("name", "kind", "score", "documents", "difference", "low", "high", "p", "gap_closed", "gap_low", "gap_high"),
        *("cells", "number", "sample_score", "chance", "reference", "above", "above_low", "above_high", "above_p"),
        "reason",
    )
)


def _row(name: str, kind: str, scores: np.ndarray, vanilla: np.ndarray | None, seed: int) -> dict[str, Any]:
    row = _EMPTY_ROW | {"name": name, "kind": kind, "score": float(scores.mean()), "documents": len(scores)}
    return row if vanilla is None else row | _compared(scores, vanilla, seed, ("difference", "low", "high", "p"))


def _compared(a: np.ndarray, b: np.ndarray, seed: int, names: tuple[str, str, str, str]) -> dict[str, Any]:
    low, high = stats.bootstrap_interval(a - b, seed=seed)
    binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    found = (float((a - b).mean()), float(low), float(high), float(stats.mcnemar(a, b)) if binary else None)
    return dict(zip(names, found, strict=True))


def _gaps(
    scores: Sequence[np.ndarray | None], vanilla: np.ndarray, bound: np.ndarray, sign: int, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Per row the share of the gap that it closes, and its interval; nothing for rows without scores."""
    gains = sign * np.column_stack([bound - vanilla, *(row - vanilla for row in scores if row is not None)])
    # Rounding is not a gap.
    if gains[:, 0].sum() <= 1e-9:
        return [{} for _ in scores]
    generator = np.random.default_rng(seed)
    documents = len(vanilla)
    # How often each document is drawn; a few resamples at a time, to bound the memory.
    parts = np.array_split(np.arange(resamples), -(-resamples // 500))
    drawn = np.concatenate(
        [generator.multinomial(documents, np.full(documents, 1 / documents), len(part)) @ gains for part in parts]
    )
    there = drawn[:, 0] > 1e-9
    shares = gains[:, 1:].sum(axis=0) / gains[:, 0].sum()
    found: list[dict[str, Any]] = [{"gap_closed": float(share)} for share in shares]
    if there.mean() >= 0.95:
        edges = np.quantile(drawn[there, 1:] / drawn[there, :1], [0.025, 0.975], axis=0)
        for gap, (low, high) in zip(found, edges.T.tolist(), strict=True):
            gap |= {"gap_low": low, "gap_high": high}
    remaining = iter(found)
    return [{} if row is None else next(remaining) for row in scores]


def _control_row(control: Grid, sample: Grid, unseen: Grid, seed: int) -> dict[str, Any]:
    kind = control.meta["control"]
    if kind is None:
        raise XTransplantError(f"{name_of(control)}: not a control (its `control` is null).")
    found = [grid for grid in (unseen, sample) if set(control.documents) <= set(grid.documents)]
    if not found:
        raise XTransplantError(
            f"{name_of(control)}, control {kind}: its documents are neither all unseen nor all sample."
        )
    why = unlike(control, found[0], ("model_name", "num_layers", "site", "metrics"))
    if why is not None:
        raise XTransplantError(f"{name_of(control)}, control {kind}, and {name_of(found[0])}: {why}.")
    real = found[0].take(control.documents)
    seen = {cell for cell, yes in zip(real.cells, real.seen, strict=True) if yes}
    columns = [number for number in ranked(control) if control.cells[number] in seen]
    if not columns:
        raise XTransplantError(f"{name_of(control)}, control {kind}: no cell was seen in it and in {name_of(real)}.")
    reached = union(control, columns)
    reference = union(real, real.columns([control.cells[number] for number in columns]))
    return (
        _row(f"upper bound, control {kind}", "control", reached, control.vanilla[0].astype(np.float64), seed)
        | {"number": len(columns), "chance": chance(control, len(columns)), "reference": float(reference.mean())}
        | _compared(reference, reached, seed, ("above", "above_low", "above_high", "above_p"))
    )
