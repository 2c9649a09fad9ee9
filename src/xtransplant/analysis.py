"""What a grid says: each cell against vanilla, how far the map is to be trusted, curves over layers, upper bounds.

Legend: D documents, U units (`Grid.units`: what is resampled and flipped), C cells of one component, N layers. A cell
is complete if it was looked at on all documents; means of other cells are over what was seen, and they take no part in
tests, curves or choices. A gain is a difference to vanilla on the same documents, turned so that positive is better;
scores are in the metric's own units. Tests, reliability and what is cross-validated are of fresh documents only
(`Grid.fresh`): with a budget, of the last round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from xtransplant import stats
from xtransplant.grid import Grid, chance, same_cells, union, upper_bounds
from xtransplant.types import Cell, Component

# score: the main metric. logprob: of the right choice, normalised over the choices (nats). logprob_raw: as it is.
Quantity = Literal["score", "logprob", "logprob_raw"]
QUANTITIES: tuple[Quantity, ...] = ("score", "logprob", "logprob_raw")
LEVEL = 0.05
# What is printed: a header and rows, for `xtransplant.tables`.
Rows = tuple[list[str], list[list[str]]]
# Nats. Smaller changes of a log-probability are rounding: a transplant of a vector onto itself must count as no change.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Effect:
    """One quantity in each cell of one component, against vanilla. Arrays are [C]; NaN: not known.

    Attributes:
        cells: C, in the grid's order.
        seen: documents each cell was looked at on (of those that have the quantity).
        complete: seen on all of them.
        mean, gain: mean over documents, and mean gain over vanilla.
        p: each cell alone. The exact sign test (McNemar's) for scores of 0 and 1, else sign flips.
        adjusted: p with the family-wise error held over all cells of the grid, of all components (max-T over sign
            flips).
        q: false discovery rate of p over all cells of the grid (Benjamini-Hochberg); too large where p comes from
            flips and only few cells differ, for such p are never below 1 / (1 + flips).
    """

    cells: list[Cell]
    seen: np.ndarray
    complete: np.ndarray
    mean: np.ndarray
    gain: np.ndarray
    p: np.ndarray
    adjusted: np.ndarray
    q: np.ndarray

    def ranked(self, best: bool = True) -> list[int]:
        """Indices of the complete cells, the largest gains first (or the smallest); ties by `Cell.order`."""
        complete = np.flatnonzero(self.complete)
        # Means of the same scores in another order differ by rounding.
        gain = self.gain[complete].round(9) * (-1 if best else 1)
        return complete[np.lexsort((_order(self.cells)[complete], gain))].tolist()


def components(grid: Grid) -> list[Component]:
    """The components that the grid has cells of, in its order."""
    return list(dict.fromkeys(cell.component for cell in grid.cells))


def effect(
    grid: Grid, component: Component, quantity: Quantity = "score", permutations: int = 2_000, seed: int = 0
) -> Effect | None:
    """Each cell of a component against vanilla; None where the grid has no such quantity (log-probabilities)."""
    found = _gains(grid, quantity)
    if found is None:
        return None
    values, gains, rows = found
    known = ~np.isnan(gains)
    complete = known.all(axis=0)
    p, adjusted, q = np.full((3, gains.shape[1]), np.nan)
    fresh = grid.fresh[rows]
    if complete.any() and fresh.any():
        tested = _by_unit(grid, gains[fresh][:, complete], rows[fresh])
        flips = stats.sign_flip_max_t(tested, permutations, seed)
        adjusted[complete] = flips.adjusted
        p[complete] = stats.sign_test(tested) if np.isin(tested, (-1, 0, 1)).all() else flips.p
        q[complete] = stats.false_discovery(p[complete])
    own = [column for column, cell in enumerate(grid.cells) if cell.component is component]
    cells = [grid.cells[column] for column in own]
    sign = grid.sign if quantity == "score" else 1
    mean, gain = sign * _mean_seen(values[:, own]), _mean_seen(gains[:, own])
    return Effect(cells, known[:, own].sum(axis=0), complete[own], mean, gain, p[own], adjusted[own], q[own])


def layer_curves(grid: Grid, component: Component, seed: int = 0) -> dict[str, dict[str, list[Any]]]:
    """Scores by layer: for `source` and for `target`, over that side's layers, the other side's being summed up.

    Each side holds lists over its layers 0 to N-1 (None where no cell is complete): `layer`; `depth`, the layer over
    N-1, by which models of unlike size compare; `cells`, how many; `mean`, over the other side's layers; `best`, the
    best cell's, which gains by being chosen; `union`, each document's best over them (an oracle, it grows
    with the number of cells by chance alone; `chance` is what as many guesses would reach). `mean` and `union` have
    95 % bootstrap intervals (`mean_low`, …); `logprob` is the mean change of the right choice's normalised
    log-probability (nats), or None.
    """
    keep = [int(index) for index in np.flatnonzero(grid.seen) if grid.cells[index].component is component]
    quality = grid.quality
    cells = [grid.cells[index] for index in keep]
    gold = _gains(grid, "logprob")
    nats = {} if gold is None else dict(zip(grid.cells, _mean_seen(gold[1]), strict=True))
    layers = int(grid.meta["num_layers"])
    curves = {}
    for side in ("source", "target"):
        members = [[n for n, cell in enumerate(cells) if getattr(cell, side) == layer] for layer in range(layers)]
        filled = [layer for layer in range(layers) if members[layer]]
        curve: dict[str, list[Any]] = {
            "layer": list(range(layers)),
            "depth": [layer / max(1, layers - 1) for layer in range(layers)],
            "cells": [len(each) for each in members],
        }
        names = ("mean", "mean_low", "mean_high", "best", "union", "union_low", "union_high", "chance", "logprob")
        curve |= {name: [None] * layers for name in names}
        if filled:
            columns = [[keep[n] for n in members[layer]] for layer in filled]
            average = grid.sign * np.stack([quality[:, each].mean(axis=1) for each in columns], axis=1)
            oracle = np.stack([union(grid, each) for each in columns], axis=1)
            means = [quality[:, each].mean(axis=0).max() for each in columns]
            _fill(curve, filled, "best", grid.sign * np.array(means))
            if (guessed := [chance(grid, len(each)) for each in columns])[0] is not None:
                _fill(curve, filled, "chance", guessed)
            for name, values in (("mean", average), ("union", oracle)):
                _fill(curve, filled, name, values.mean(axis=0))
                edges = stats.bootstrap_intervals(_by_unit(grid, values), seed=seed)
                _fill(curve, filled, f"{name}_low", edges[:, 0])
                _fill(curve, filled, f"{name}_high", edges[:, 1])
            if nats:
                _fill(curve, filled, "logprob", [np.mean([nats[cells[n]] for n in members[layer]]) for layer in filled])
        curves[side] = curve
    return curves


def _fill(curve: dict[str, list[Any]], layers: Sequence[int], name: str, values: Sequence[Any] | np.ndarray) -> None:
    for layer, value in zip(layers, values, strict=True):
        curve[name][layer] = float(value)


def analyze(
    grid: Grid, controls: Sequence[Grid] = (), permutations: int = 2_000, seed: int = 0, top: int = 10
) -> dict[str, Any]:
    """All of it, as JSON values; None where something is not known. Deterministic for a seed.

    Per component (key `components`): `cells`, a table by columns; `summary` of its gains; `best` and `worst` cells
    (`top` of each, ties by `Cell.order`); `reliability`, the map's split-half correlations; `winner`, what the best
    cell keeps on documents it was not chosen on; `curves`. `documents`, `fresh` of them and `units` are counts.
    `upper_bounds` is what `grid.upper_bounds` gives; `controls` has a row per control and component: the union of the
    control and of this grid (`reference`) on the cells and documents of both, and the best and mean gain of each.

    Args:
        controls: grids of the same model and task whose transplant carries nothing about the document.

    Raises:
        XTransplantError: a control that is none, of another model, or of other documents or cells.
    """
    vanilla = grid.vanilla[0].astype(float)
    low, high = stats.bootstrap_interval(_by_unit(grid, vanilla), seed=seed)
    keys = (
        "model_name",
        "task_name",
        "language_pair",
        "split",
        "num_layers",
        "intervention",
        "control",
        "trivial_baseline",
    )
    return {
        **{key: grid.meta.get(key) for key in keys},
        "grid_sha256": grid.sha256,
        "metric": grid.metric,
        "higher_is_better": grid.sign == 1,
        "documents": len(grid.documents),
        "fresh": int(grid.fresh.sum()),
        "units": len(_by_unit(grid, vanilla)),
        "vanilla": {"score": float(vanilla.mean()), "low": low, "high": high},
        "permutations": permutations,
        "seed": seed,
        "components": {
            component.value: _component(grid, component, permutations, seed, top) for component in components(grid)
        },
        "upper_bounds": upper_bounds(grid, seed=seed),
        "controls": [row for control in controls for row in _control(grid, control, seed)],
    }


def _control(grid: Grid, control: Grid, seed: int) -> list[dict[str, Any]]:
    kind = control.meta["control"]
    real, both = same_cells(control, grid)
    rows = []
    for component in dict.fromkeys(cell.component for cell in both):
        cells = [cell for cell in both if cell.component is component]
        of_control, of_real = control.columns(cells), real.columns(cells)
        score, reference = union(control, of_control), union(real, of_real)
        difference = grid.sign * (reference - score)
        if "pooled" in real.meta:
            low, high = stats.bootstrap_interval(_by_unit(real, difference), seed=seed)
        else:
            low, high = stats.difference_interval(*((reference, score) if grid.sign > 0 else (score, reference)), seed)
        gains = [
            (each.quality[:, columns] - each.vanilla_quality[:, None]).mean(axis=0)
            for each, columns in ((control, of_control), (real, of_real))
        ]
        rows.append(
            {
                **{"control": kind, "component": component.value, "cells": len(cells), "documents": len(score)},
                **{"score": float(score.mean()), "reference": float(reference.mean())},
                **{"above": float(difference.mean()), "above_low": low, "above_high": high},
                "chance": chance(control, len(cells)),
                **{"best_gain": float(gains[0].max()), "reference_best_gain": float(gains[1].max())},
                **{"mean_gain": float(gains[0].mean()), "reference_mean_gain": float(gains[1].mean())},
            }
        )
    return rows


def _component(grid: Grid, component: Component, permutations: int, seed: int, top: int) -> dict[str, Any]:
    effects: dict[Quantity, Effect] = {}
    for quantity in QUANTITIES:
        if (found := effect(grid, component, quantity, permutations, seed)) is not None:
            effects[quantity] = found
    score = effects["score"]
    columns: dict[str, list[Any]] = {
        "source": [cell.source for cell in score.cells],
        "target": [cell.target for cell in score.cells],
        "documents": score.seen.tolist(),
        "score": _plain(score.mean),
    }
    for quantity, each in effects.items():
        prefix = "" if quantity == "score" else f"{quantity}_"
        for name in ("gain", "p", "adjusted", "q"):
            columns[prefix + name] = _plain(getattr(each, name))
    winner = None
    if (tested := _tested(grid, component, "score")) is not None:
        gains, cells = tested
        winner = stats.winner_curse(gains, np.zeros(len(gains)), seed=seed, order=_order(cells))
    return {
        "cells": columns,
        "summary": {quantity: _summary(each) for quantity, each in effects.items()},
        "best": [_row(columns, index) for index in score.ranked()[:top]],
        "worst": [_row(columns, index) for index in score.ranked(best=False)[:top]],
        "reliability": {quantity: _reliability(grid, component, quantity, seed) for quantity in effects},
        "winner": winner,
        "curves": layer_curves(grid, component, seed),
    }


def _gains(grid: Grid, quantity: Quantity) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """A quantity in all cells [R, C], its gain over vanilla [R, C], both higher is better, and which R documents have
    it; None if the grid lacks it. NaN: not looked at, or not finite.

    Log-probabilities are of the documents that have a single right choice.
    """
    if quantity == "score":
        values, vanilla, rows = grid.quality, grid.vanilla_quality, np.arange(len(grid.documents))
    else:
        gold = grid.gold
        rows = np.array([row for row, choice in enumerate(gold) if choice is not None], dtype=np.int64)
        if grid.logprob is None or grid.vanilla_logprob is None or not len(rows):
            return None
        every = np.concatenate([grid.vanilla_logprob[rows][:, None], grid.logprob[rows]], axis=1).astype(float)
        right = every[np.arange(len(rows)), :, np.array([gold[row] for row in rows], dtype=np.int64)]
        if quantity == "logprob":
            right = right - np.logaddexp.reduce(np.where(np.isnan(every), -np.inf, every), axis=2)
        # A choice of probability 0 has no gain that could be averaged.
        right = np.where(np.isfinite(right), right, np.nan)
        rows, right = rows[~np.isnan(right[:, 0])], right[~np.isnan(right[:, 0])]
        values, vanilla = right[:, 1:], right[:, 0]
        if not len(rows):
            return None
    gains = values - vanilla[:, None]
    if quantity != "score":
        gains[np.abs(gains) < _ROUNDING] = 0
    return values, gains, rows


def _tested(grid: Grid, component: Component, quantity: Quantity) -> tuple[np.ndarray, list[Cell]] | None:
    """Gains [U, C] of the complete cells of a component on fresh documents, and the cells; None where nothing can be
    cross-validated: fewer than two units, or no cell."""
    found = _gains(grid, quantity)
    if found is None:
        return None
    _, gains, rows = found
    complete = ~np.isnan(gains).any(axis=0)
    own = [n for n, cell in enumerate(grid.cells) if complete[n] and cell.component is component]
    fresh = grid.fresh[rows]
    by_unit = _by_unit(grid, gains[fresh][:, own], rows[fresh])
    return (by_unit, [grid.cells[n] for n in own]) if own and len(by_unit) > 1 else None


def _by_unit(grid: Grid, values: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Values of documents [D, …] (or of `rows` of them) to units [U, …], whose mean is the documents' mean."""
    if "pooled" not in grid.meta:
        return values
    units, unit = np.unique(grid.units if rows is None else grid.units[rows], return_inverse=True)
    sums = np.zeros((len(units), *values.shape[1:]))
    np.add.at(sums, unit, values)
    return sums * (len(units) / len(unit))


def _reliability(grid: Grid, component: Component, quantity: Quantity, seed: int) -> dict[str, Any] | None:
    found = _tested(grid, component, quantity)
    # A correlation over cells needs at least two of them.
    return None if found is None or len(found[1]) < 2 else stats.split_half(found[0], seed=seed)


def _summary(found: Effect) -> dict[str, Any]:
    """How the gains of the complete cells are spread, and how many are more than chance at 5 %."""
    gain = found.gain[found.complete]
    counts = {
        f"{side}_{name}": int((found.complete & (sign * found.gain > 0) & (getattr(found, name) <= LEVEL)).sum())
        for side, sign in (("better", 1), ("worse", -1))
        for name in ("p", "adjusted", "q")
    }
    return {
        "cells": len(found.cells),
        "complete": len(gain),
        "mean": float(gain.mean()) if len(gain) else None,
        "median": float(np.median(gain)) if len(gain) else None,
        "share_better": float((gain > 0).mean()) if len(gain) else None,
        "share_worse": float((gain < 0).mean()) if len(gain) else None,
        **counts,
    }


def _mean_seen(values: np.ndarray) -> np.ndarray:
    """Mean of each column [D, C] over what is not NaN: [C], NaN where nothing is known."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    return np.divide(np.where(known, values, 0).sum(axis=0), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _order(cells: Sequence[Cell]) -> np.ndarray:
    """Rank of each cell [C] among equals."""
    ranked = sorted(range(len(cells)), key=lambda n: cells[n].order)
    order = np.empty(len(cells), dtype=np.int64)
    order[ranked] = np.arange(len(cells))
    return order


def _row(columns: dict[str, list[Any]], index: int) -> dict[str, Any]:
    return {name: column[index] for name, column in columns.items()}


def _plain(values: np.ndarray) -> list[float | None]:
    """For JSON, to seven digits: a map of a large model has thousands of cells."""
    return [None if np.isnan(value) else float(f"{value:.7g}") for value in values]


# --- As text ---------------------------------------------------------------------------------------------------------


def best_rows(analysis: dict[str, Any], number: int = 5) -> Rows:
    """The best cells of each component: gain over vanilla, its p-values, and the right choice's log-probability."""
    header = ["cell", analysis["metric"], "gain", "p", "max-T p", "FDR q", "nats", "nats' max-T p"]
    rows = []
    for name, found in analysis["components"].items():
        for row in found["best"][:number]:
            nats = [_signed(row.get("logprob_gain")), _p(row.get("logprob_adjusted"))]
            tests = [_p(row["p"]), _p(row["adjusted"]), _p(row["q"])]
            rows.append(
                [f"{name} {row['source']}>{row['target']}", _number(row["score"]), _signed(row["gain"]), *tests, *nats]
            )
    return header, rows


def trust_rows(analysis: dict[str, Any]) -> Rows:
    """Per component: how many cells differ from vanilla after max-T, the maps' reliability (split halves, corrected to
    their full length), the best cell's gain, and what it is on documents that it was not chosen on, with 95 %."""
    header = [
        *("", "cells", "mean gain", "better (max-T)", "worse", "split-half r", "nats' r"),
        *("best gain", "held out", "95 %"),
    ]
    rows = []
    for name, found in analysis["components"].items():
        summary, winner = found["summary"]["score"], found["winner"] or {}
        reliability = [
            _number(((found["reliability"].get(quantity) or {}).get("pearson") or {}).get("corrected"))
            for quantity in ("score", "logprob")
        ]
        counts = [str(summary["better_adjusted"]), str(summary["worse_adjusted"])]
        gains = [_signed(winner.get(key)) for key in ("in_sample", "held_out")]
        gains.append(_interval(winner.get("low"), winner.get("high")))
        rows.append([name, str(summary["complete"]), _signed(summary["mean"]), *counts, *reliability, *gains])
    return header, rows


def bound_rows(analysis: dict[str, Any]) -> Rows:
    """Upper bounds (a cell chosen per document by its score), with what as many guesses, and the controls, reach."""
    header = [
        *("upper bound", "cells", "documents", analysis["metric"], "as many guesses"),
        *("control", "control's", "real vectors", "real better by", "95 %"),
    ]
    rows = []
    bounds = analysis["upper_bounds"]["components"]
    for name, found in bounds.items():
        if name == "all" and len(bounds) == 2:
            continue  # of one component it is the same
        for kind in ("union", "source_last", "target_first"):
            bound = found[kind]
            if bound["cells"]:
                label = name if kind == "union" else f"{name} {kind}"
                numbers = [str(bound["cells"]), str(analysis["documents"])]
                rows.append([label, *numbers, _number(bound["score"]), _number(bound["chance"]), *["-"] * 5])
    for row in analysis["controls"]:
        shown = [row["control"], _number(row["score"]), _number(row["reference"]), _signed(row["above"])]
        interval = _interval(row["above_low"], row["above_high"])
        numbers = [str(row["cells"]), str(row["documents"])]
        rows.append([row["component"], *numbers, "-", _number(row["chance"]), *shown, interval])
    return header, rows


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"
