"""What a grid says: each cell against vanilla, how far the map is to be trusted, curves over layers, upper bounds.

Legend: D documents, U units, C cells of one component, N layers. Units are what is resampled and flipped: documents; of
a pooled grid the keys, as the same question in several languages is not several independent ones. A cell is complete
if it was looked at on all documents; means of other cells are over what was seen, and they take no part in tests,
curves or choices. A gain is a difference to vanilla on the same documents, turned so that positive is better; scores
are in the metric's own units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from xtransplant import stats
from xtransplant.grid import Grid, chance, name_of, union, unlike, upper_bounds
from xtransplant.types import Cell, Component, XTransplantError

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
        seen: units each cell was looked at on (of those that have the quantity).
        complete: seen on all of them.
        mean, gain: mean over documents, and mean gain over vanilla.
        p: each cell alone. The exact sign test (McNemar's) for scores of 0 and 1, else sign flips.
        adjusted: p with the family-wise error over the component's cells held (max-T over sign flips).
        q: false discovery rate of p (Benjamini-Hochberg); too large where p comes from flips and only few cells
            differ, for such p are never below 1 / (1 + flips).
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
        """Indices of the complete cells, the largest gains first (or the smallest); ties as METHOD 3 breaks them."""
        complete = np.flatnonzero(self.complete)
        # Means of the same scores in another order differ by rounding.
        gain = self.gain[complete].round(9) * (-1 if best else 1)
        return complete[np.lexsort((_tie_order(self.cells)[complete], gain))].tolist()


def components(grid: Grid) -> list[Component]:
    """The components that the grid has cells of, in its order."""
    return list(dict.fromkeys(cell.component for cell in grid.cells))


def effect(
    grid: Grid, component: Component, quantity: Quantity = "score", permutations: int = 2_000, seed: int = 0
) -> Effect | None:
    """Each cell of a component against vanilla; None where the grid has no such quantity (log-probabilities)."""
    found = _values(grid, component, quantity)
    if found is None:
        return None
    values, vanilla = found
    sign = grid.sign if quantity == "score" else 1
    differences = values - vanilla[:, None]
    if quantity != "score":
        differences[np.abs(differences) < _ROUNDING] = 0
    known = ~np.isnan(values)
    complete = known.all(axis=0)
    p, adjusted, q = np.full((3, values.shape[1]), np.nan)
    if complete.any():
        tested = differences[:, complete]
        flips = stats.sign_flip_max_t(tested, permutations, seed)
        adjusted[complete] = flips.adjusted
        p[complete] = stats.sign_test(tested) if np.isin(tested, (-1, 0, 1)).all() else flips.p
        q[complete] = stats.false_discovery(p[complete])
    cells = [cell for cell in grid.cells if cell.component is component]
    mean, gain = sign * _mean_seen(values), _mean_seen(differences)
    return Effect(cells, known.sum(axis=0), complete, mean, gain, p, adjusted, q)


def layer_curves(grid: Grid, component: Component, seed: int = 0) -> dict[str, dict[str, list[Any]]]:
    """Scores by layer: for `source` and for `target`, over that side's layers, the other side's being summed up.

    Each side holds lists over its layers 0 to N-1 (None where no cell is complete): `layer`; `depth`, the layer over
    N-1, by which models of unlike size compare; `cells`, how many; `mean`, over the other side's layers; `best`, the
    best cell's, which gains by being chosen; `union`, each document's best over them (METHOD 4: an oracle, it grows
    with the number of cells by chance alone; `chance` is what as many guesses would reach). `mean` and `union` have
    95 % bootstrap intervals (`mean_low`, …); `logprob` is the mean change of the right choice's normalised
    log-probability (nats), or None.
    """
    keep = [int(index) for index in np.flatnonzero(grid.seen) if grid.cells[index].component is component]
    quality = grid.quality
    cells = [grid.cells[index] for index in keep]
    gold = _values(grid, component, "logprob")
    nats = {}
    if gold is not None:
        named = [cell for cell in grid.cells if cell.component is component]
        nats = dict(zip(named, _mean_seen(gold[0] - gold[1][:, None]), strict=True))
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
    (`top` of each; of equal ones the smallest target layer, then the largest source layer, METHOD 3); `reliability`,
    the map's split-half correlations; `winner`, what the best cell keeps on documents it was not chosen on; `curves`.
    `upper_bounds` is what `grid.upper_bounds` gives; `controls` has a row per control and component: the union of the
    control and of this grid (`reference`) on the cells and documents of both, and the best and mean gain of each.

    Args:
        controls: grids of the same model and task whose transplant carries nothing about the document.

    Raises:
        XTransplantError: a control that is none, of another model, or of other documents or cells.
    """
    vanilla = grid.vanilla[0].astype(float)
    low, high = stats.bootstrap_interval(_by_unit(grid, vanilla), seed=seed)
    keys = ("model_name", "task_name", "language_pair", "split", "num_layers", "site", "control", "trivial_baseline")
    return {
        **{key: grid.meta.get(key) for key in keys},
        "grid_sha256": grid.sha256,
        "metric": grid.metric,
        "higher_is_better": grid.sign == 1,
        "documents": len(grid.documents),
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
    if kind is None:
        raise XTransplantError(f"{name_of(control)}: not a control (its `control` is null).")
    why = unlike(grid, control, ("model_name", "task_name", "language_pair", "num_layers", "site", "metrics"))
    if why is not None:
        raise XTransplantError(f"{name_of(control)}, control {kind}: not a control of {name_of(grid)}: {why}.")
    real = grid.take(control.documents)
    seen = [{cell for cell, yes in zip(each.cells, each.seen, strict=True) if yes} for each in (real, control)]
    both = [cell for cell in control.cells if cell in seen[0] & seen[1]]
    if not both:
        raise XTransplantError(f"{name_of(control)}, control {kind}: no cell was seen in it and in the grid.")
    rows = []
    for component in dict.fromkeys(cell.component for cell in both):
        cells = [cell for cell in both if cell.component is component]
        of_control, of_real = control.columns(cells), real.columns(cells)
        score, reference = union(control, of_control), union(real, of_real)
        difference = grid.sign * (reference - score)
        low, high = stats.bootstrap_interval(_by_unit(real, difference), seed=seed)
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
    complete = np.flatnonzero(score.complete)
    quality, vanilla = _values(grid, component, "score") or (np.empty((0, 0)), np.empty(0))
    testable = len(vanilla) > 1 and len(complete) > 0
    return {
        "cells": columns,
        "summary": {quantity: _summary(each) for quantity, each in effects.items()},
        "best": [_row(columns, index) for index in score.ranked()[:top]],
        "worst": [_row(columns, index) for index in score.ranked(best=False)[:top]],
        "reliability": {quantity: _reliability(grid, component, quantity, seed) for quantity in effects},
        "winner": stats.winner_curse(quality[:, complete], vanilla, seed=seed, order=_tie_order(score.cells)[complete])
        if testable
        else None,
        "curves": layer_curves(grid, component, seed),
    }


def _values(grid: Grid, component: Component, quantity: Quantity) -> tuple[np.ndarray, np.ndarray] | None:
    """A quantity of a component's cells [U, C] and of vanilla [U], higher being better; None if the grid lacks it.

    Log-probabilities are of the documents that have a single right choice.
    """
    columns = [index for index, cell in enumerate(grid.cells) if cell.component is component]
    if quantity == "score":
        return _by_unit(grid, grid.quality[:, columns]), _by_unit(grid, grid.vanilla_quality)
    gold = grid.gold
    rows = [row for row, choice in enumerate(gold) if choice is not None]
    if grid.logprob is None or grid.vanilla_logprob is None or not rows:
        return None
    choices = np.array([gold[row] for row in rows])
    every = np.concatenate([grid.vanilla_logprob[rows][:, None], grid.logprob[rows][:, columns]], axis=1).astype(float)
    values = every[np.arange(len(rows)), :, choices]
    if quantity == "logprob":
        values = values - np.logaddexp.reduce(np.where(np.isnan(every), -np.inf, every), axis=2)
    values = _by_unit(grid, values, rows)
    return values[:, 1:], values[:, 0]


def _by_unit(grid: Grid, values: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
    """Values of documents [D, …] (or of `rows` of them) to units [U, …], whose mean is the documents' mean.

    A pooled grid's documents of the same key become one; a unit is NaN where one of its documents is.
    """
    if "pooled" not in grid.meta:
        return values
    names = [name.split("/", 2)[2] for name in (grid.documents if rows is None else [grid.documents[r] for r in rows])]
    keys, unit = np.unique(names, return_inverse=True)
    sums = np.zeros((len(keys), *values.shape[1:]))
    np.add.at(sums, unit, values)
    return sums * (len(keys) / len(names))


def _reliability(grid: Grid, component: Component, quantity: Quantity, seed: int) -> dict[str, Any] | None:
    found = _values(grid, component, quantity)
    if found is None:
        return None
    complete = ~np.isnan(found[0]).any(axis=0)
    # A correlation over cells needs at least two of them, and halves two documents.
    if len(found[0]) < 2 or complete.sum() < 2:
        return None
    return stats.split_half(found[0][:, complete], seed=seed)


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


def _tie_order(cells: Sequence[Cell]) -> np.ndarray:
    """Rank of each cell [C] among equals: the smallest target layer first, then the largest source layer (METHOD 3)."""
    ranked = sorted(range(len(cells)), key=lambda n: (cells[n].target, -cells[n].source))
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
    header = ["cell", analysis["metric"], "gain", "p", "max-T p", "FDR q", "nats", "max-T p"]
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
    """Per component: how many cells differ from vanilla, the maps' reliability, what the best cell's gain is worth."""
    header = ["", "cells", "mean gain", "better", "worse", "r score", "r nats", "best gain", "held out", "low", "high"]
    rows = []
    for name, found in analysis["components"].items():
        summary, winner = found["summary"]["score"], found["winner"] or {}
        reliability = [
            _number(((found["reliability"].get(quantity) or {}).get("pearson") or {}).get("corrected"))
            for quantity in ("score", "logprob")
        ]
        counts = [str(summary["better_adjusted"]), str(summary["worse_adjusted"])]
        gains = [_signed(winner.get(key)) for key in ("in_sample", "held_out", "low", "high")]
        rows.append([name, str(summary["complete"]), _signed(summary["mean"]), *counts, *reliability, *gains])
    return header, rows


def curve_rows(analysis: dict[str, Any], component: str) -> Rows:
    """A row per layer: as source layer (over all target layers), then as target layer."""
    found = analysis["components"][component]["curves"]
    names = ("mean", "best", "union")
    header = ["layer", "depth", *(f"{side} {name}" for side in found for name in names)]
    rows = []
    for layer, depth in zip(found["source"]["layer"], found["source"]["depth"], strict=True):
        values = [_number(found[side][name][layer]) for side in found for name in names]
        rows.append([str(layer), f"{depth:.2f}", *values])
    return header, rows


def bound_rows(analysis: dict[str, Any]) -> Rows:
    """Upper bounds (a cell chosen per document by its score), with what as many guesses, and the controls, reach."""
    header = [
        "upper bound",
        "cells",
        analysis["metric"],
        "guesses",
        "control",
        "control's",
        "same cells",
        "above",
        "low",
        "high",
    ]
    rows = []
    for name, found in analysis["upper_bounds"]["components"].items():
        for kind in ("union", "source_last", "target_first"):
            bound = found[kind]
            if bound["cells"]:
                label = name if kind == "union" else f"{name} {kind}"
                rows.append([label, str(bound["cells"]), _number(bound["score"]), _number(bound["chance"]), *["-"] * 6])
    for row in analysis["controls"]:
        compared = [_signed(row[key]) for key in ("above", "above_low", "above_high")]
        shown = [row["control"], _number(row["score"]), _number(row["reference"]), *compared]
        rows.append([row["component"], str(row["cells"]), "-", _number(row["chance"]), *shown])
    return header, rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"
