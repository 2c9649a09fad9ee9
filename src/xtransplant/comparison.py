"""Every strategy, chosen on one half of the documents and scored on the other, beside what could be reached at most.

Legend: D documents, C cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xtransplant import stats
from xtransplant.grid import (
    SAME_SCORES,
    Grid,
    as_list,
    chance,
    name_of,
    no_counterpart,
    ranked,
    same_cells,
    union,
    unlike,
)
from xtransplant.strategies import evaluate_selection, select
from xtransplant.types import FIXED, STRATEGIES, XTransplantError


def strategy_table(
    sample: Grid, unseen: Grid, controls: Sequence[Grid] = (), seed: int = 0, resamples: int = 10_000
) -> list[dict[str, Any]]:
    """Every strategy, selected on `sample`, on the documents of `unseen`; what is the most that any could reach; and
    how much of that is chance.

    Each row has all of these keys, null where one does not apply. `name`; `kind`: baseline, strategy, oracle (reads the
    scores of the very documents it is scored on: no strategy) or control; `score` (mean main metric) of `documents`;
    `difference`, its gain over vanilla (positive is better, whatever the metric), with `low` and `high` (95 %: Tango's
    interval for scores of 0 and 1, else a bootstrap over documents) and `p` (exact McNemar, two-sided, scores of 0 and
    1 only, not corrected for the number of rows), all three null for oracles, which chose on these documents;
    `gap_closed`: the share of the way from vanilla to the upper bound, with `gap_low` and `gap_high` (documents
    resampled, numerator and denominator together; null where there is no gap, the interval also where more than 5 % of
    the resamples have none or no document differs from vanilla); `cells` used and their `number`; `sample_score`, of
    vanilla and of a strategy, on the documents it was selected on; `chance`: what as many guesses as cells would reach;
    `reason` where a strategy could not be used.

    A control's row has its own upper bound as `score`, and as `reference` that of the unseen grid (or the sample grid,
    whichever has its documents) on the same documents and cells, with `above`, how much better the reference is, its
    interval `above_low`, `above_high`, and `above_p`; its `difference` is to vanilla on these documents. A bound over
    many cells is often full, so there is also the mean of the single cells, `cell_mean` and `reference_cell_mean`.
    `split` is the half that its documents are of.

    Raises:
        XTransplantError: the grids share a document, are pooled ones, or of unlike models, tasks, language pairs or
            settings; the unseen one was made with a budget; a control that is none, or that has documents of neither
            grid, or no cell in common.
    """
    why = unlike(sample, unseen, (*SAME_SCORES, "language_pair"))
    if why is not None:
        raise XTransplantError(f"{name_of(sample)} and {name_of(unseen)} cannot be compared: {why}.")
    if "pooled" in sample.meta or "pooled" in unseen.meta:
        raise XTransplantError(
            f"{name_of(unseen)}: give one language pair at a time, for one question is one document."
        )
    if not unseen.fresh.all():
        raise XTransplantError(
            f"{name_of(unseen)}: made with a budget, which kept the cells that are best on these very documents. "
            "Compute the unseen grid without grid.budget; `evaluate selection=` tests a single choice."
        )
    shared = unseen.marked(sample.marks)
    if shared:
        raise XTransplantError(
            f"{name_of(sample)} and {name_of(unseen)} share {len(shared)} documents, e.g. {min(shared)}. "
            "Give a grid of other documents as unseen= (split=unseen)."
        )
    control_rows = _control_rows(controls, sample, unseen, seed)
    vanilla = unseen.vanilla[0].astype(np.float64)
    on_sample = float(sample.vanilla[0].mean(dtype=np.float64))
    rows = [_row("vanilla", "baseline", vanilla, None, 1, seed) | {"sample_score": on_sample}]
    scores: list[np.ndarray | None] = [None]

    def add(name: str, kind: str, reached: np.ndarray, **more: Any) -> None:
        row = _row(name, kind, reached, vanilla, unseen.sign, seed)
        rows.append(row | (dict.fromkeys(("low", "high", "p")) if kind == "oracle" else {}) | more)
        scores.append(reached)

    asked: list[tuple[str, str, dict[str, Any]]] = [(name, name, {}) for name in STRATEGIES if name != "fixed"]
    named = {cell: [name for name in FIXED if FIXED[name] == cell] for cell in FIXED.values()}
    asked[3:3] = [(f"fixed {', '.join(names)}", "fixed", {"fixed": names[0]}) for names in named.values()]
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
        *("cell_mean", "reference_cell_mean", "split", "reason"),
    )
)


def _row(name: str, kind: str, scores: np.ndarray, vanilla: np.ndarray | None, sign: int, seed: int) -> dict[str, Any]:
    row = _EMPTY_ROW | {"name": name, "kind": kind, "score": float(scores.mean()), "documents": len(scores)}
    return row if vanilla is None else row | _compared(scores, vanilla, sign, seed, ("difference", "low", "high", "p"))


def _compared(
    a: np.ndarray, b: np.ndarray, sign: int, seed: int, names: tuple[str, str, str, str]
) -> dict[str, float | None]:
    """How much better `a` is than `b`, the interval, and p."""
    better, worse = (a, b) if sign > 0 else (b, a)
    difference = better - worse
    low, high = stats.difference_interval(better, worse, seed)
    p = stats.mcnemar(a, b) if np.isin([a, b], (0, 1)).all() else None
    return dict(zip(names, (float(difference.mean()), low, high, p), strict=True))


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
        for gap, differs, (low, high) in zip(
            found, (gains[:, 1:] != 0).any(axis=0).tolist(), edges.T.tolist(), strict=True
        ):
            gap |= {"gap_low": low, "gap_high": high} if differs else {}
    remaining = iter(found)
    return [{} if row is None else next(remaining) for row in scores]


def _control_rows(controls: Sequence[Grid], sample: Grid, unseen: Grid, seed: int) -> list[dict[str, Any]]:
    kinds = [control.meta["control"] for control in controls]
    rows = []
    for control in controls:
        reasons = {name: no_counterpart(control, grid) for name, grid in (("unseen", unseen), ("sample", sample))}
        fits = [grid for name, grid in (("unseen", unseen), ("sample", sample)) if reasons[name] is None]
        kind = control.meta["control"]
        if not fits:
            why = "; ".join(dict.fromkeys(f"{name}: {reason}" for name, reason in reasons.items()))
            raise XTransplantError(f"{name_of(control)}, control {kind}: no grid to compare it with. {why}.")
        row, _ = control_row(control, fits[0], seed)
        if kinds.count(kind) > 1:
            row["name"] += f" ({', '.join([*row['components'], control.meta['split']])})"
        del row["components"]
        rows.append(row)
    return rows


def control_row(control: Grid, grid: Grid, seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    """A control's row of `strategy_table`, beside a grid of the same setting, with the `components` of their common
    cells; and [D] what its upper bound over these reaches, in the control's documents.

    Raises:
        XTransplantError: they cannot be compared, or have no cell in common.
    """
    real, cells = same_cells(control, grid)
    columns = {each.sha256: each.columns(cells) for each in (control, real)}
    reached, reference = (union(each, columns[each.sha256]) for each in (control, real))
    means = [float(each.scores[0][:, columns[each.sha256]].mean(dtype=np.float64)) for each in (control, real)]
    name = f"upper bound, control {control.meta['control']}"
    row = (
        _row(name, "control", reached, control.vanilla[0].astype(np.float64), control.sign, seed)
        | {"number": len(cells), "chance": chance(control, len(cells)), "reference": float(reference.mean())}
        | {"cell_mean": means[0], "reference_cell_mean": means[1], "split": control.meta["split"]}
        | _compared(reference, reached, control.sign, seed, ("above", "above_low", "above_high", "above_p"))
        | {"components": list(dict.fromkeys(cell.component.value for cell in cells))}
    )
    return row, reached
