"""Which cell, or cells, to use: chosen on sample documents, applied to others; and what any choice could reach at most.

Legend: D documents, C cells of a selection, R = 1 + C rows of responses (row 0 is vanilla, then the cells in their
order), M largest number of choices, F features.

The paper's offline strategies choose one cell for all documents: `overall`, `source_last`,
`target_first`, `fixed`. The others are this project's. `cross_validated` uses the overall cell only where its gain on
documents left out of the choice is significant, which a best of hundreds of cells often is not. The rest decide per
document, without its gold label, from the responses of several cells and of vanilla, which is always among them:

- `margin`, `entropy`: the surest row. Sane as far as surer is more often right; log-probabilities are summed over a
  choice's tokens, so choices of unlike length bias them.
- `vote`, `mean_logprob`: an ensemble. Averaging removes noise that the cells do not share and keeps what they do.
- `band`: `mean_logprob` over a region of layers, one of a few fixed ones: few alternatives, so little winner's curse.
- `router`: the row most likely to be right by a logistic regression on features without labels, and on the cell's gain
  on the sample. A few coefficients are shared by all cells; every document weighs the same, as its rows are not
  independent; and the regression sees each document with cells and gains from the other folds only, so it learns how
  far a gain can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from scipy.special import entr

from xtransplant import stats
from xtransplant.grid import SAME_CELLS, Grid, as_list, name_of, narrowed, pool, ranked, show
from xtransplant.selection import Selection
from xtransplant.types import FIXED, ONE_CELL, STRATEGIES, Cell, Component, LayerPair, XTransplantError

FOR_GENERATION = (*ONE_CELL, "vote")
# Relative depth layer / N, from (inclusive) and to (exclusive): the regions of `band`, for source and target alike.
_DEPTHS = ((0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0), (0.0, 1.0))
_FEATURES = (
    *("margin", "entropy", "vanilla_margin", "vanilla_entropy", "share_agreeing", "agrees_with_vote"),
    *("agrees_with_vanilla", "agrees_with_sure_vanilla", "source_depth", "target_depth", "is_vanilla", "sample_gain"),
)


@dataclass(frozen=True)
class Options:
    """Options of `select`.

    Attributes:
        component: choose among its cells only; a name is taken as well.
        fixed: for `fixed`: a name of `types.FIXED`, or [component, source, target] with layers as in `LayerPair.parse`.
        candidates: for the strategies that decide per document: this many of the best cells on the sample, or "all".
        alpha: for `cross_validated`: one-sided level.
        folds: for `cross_validated` and `router`; at most the number of different questions.
        seed: of the folds.
    """

    component: Component | None = None
    fixed: str | Sequence[Any] | None = None
    candidates: int | str = 16
    alpha: float = 0.05
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "component", None if self.component is None else Component(self.component))
        except ValueError as error:
            raise XTransplantError(f"component={self.component!r}: give ffn or attn, or null for all.") from error
        number = isinstance(self.candidates, int) and not isinstance(self.candidates, bool)
        if not (self.candidates == "all" or (number and int(self.candidates) >= 1)):
            raise XTransplantError(f'candidates={self.candidates!r}: give a number from 1, or "all".')
        if not 0 < self.alpha < 1 or self.folds < 2:
            raise XTransplantError(f"alpha={self.alpha}, folds={self.folds}: alpha lies between 0 and 1, folds from 2.")


# --- Choosing ----------------------------------------------------------------------------------------------------


def select(
    grids: Sequence[Grid], strategy: str, pooled: bool = False, folders: Sequence[str] | None = None, **options: Any
) -> list[Selection]:
    """Choose on the documents of each grid, or once on all together (`pooled`).

    Only cells seen on all selected documents can be chosen; ties are broken by `Cell.order`. Where a budget chose which
    those are, what is cross-validated (`cross_validated`, `router`) is so on the documents of its last round.

    Args:
        folders: of the grids, for the record.
        options: fields of `Options`.

    Raises:
        XTransplantError: no such strategy or option; grids that cannot be pooled; no candidate; a strategy that needs
            choices on a grid of generated texts.
    """
    if strategy not in STRATEGIES:
        raise XTransplantError(f"strategy={strategy}: there is no such strategy. Give one of {', '.join(STRATEGIES)}.")
    unknown = sorted(set(options) - {field.name for field in fields(Options)})
    if unknown:
        known = ", ".join(field.name for field in fields(Options))
        raise XTransplantError(f"{unknown[0]}: there is no such option of a strategy. Options: {known}.")
    chosen = Options(**options)
    described = [
        {
            "folder": None if folders is None else folders[number],
            "grid_sha256": grid.sha256,
            "weights": grid.weights,
            **{key: grid.meta.get(key) for key in ("config_hash", "task_name", "language_pair", *SAME_CELLS)},
        }
        for number, grid in enumerate(grids)
    ]
    if pooled:
        return [_select(pool(grids), strategy, chosen, True, described)]
    return [_select(grid, strategy, chosen, False, [facts]) for grid, facts in zip(grids, described, strict=True)]


def _select(grid: Grid, strategy: str, options: Options, pooled: bool, described: list[dict[str, Any]]) -> Selection:
    def made(cells: Sequence[Cell], rule: dict[str, Any] | None = None) -> Selection:
        documents = list(dict.fromkeys(grid.own_names))
        questions = sorted(set().union(*(grid.questions or [])))
        counts = (int(among.sum()), len(grid.cells))
        vanilla = float(grid.vanilla[0].mean(dtype=np.float64))
        selection = Selection(
            strategy, list(cells), rule, pooled, counts, documents, questions, described, None, vanilla
        )
        if strategy == "fixed" and not set(cells) <= {grid.cells[column] for column in np.flatnonzero(grid.seen)}:
            return selection
        return replace(selection, score=float(_scores(selection, grid).mean()))

    among = grid.seen & np.array([options.component in (None, cell.component) for cell in grid.cells])
    if strategy == "fixed":
        return made([_fixed_cell(options.fixed, int(grid.meta["num_layers"]))], {"fixed": _listed(options.fixed)})
    _check_choices(strategy, grid)
    if strategy == "source_last":
        among &= np.array([cell.source == grid.meta["num_layers"] - 1 for cell in grid.cells])
    elif strategy == "target_first":
        among &= np.array([cell.target == 0 for cell in grid.cells])
    if not among.any():
        there = dict.fromkeys(cell.component for cell in grid.cells)
        if options.component is not None and options.component not in there:
            wanted, has = options.component.value, ", ".join(each.value for each in there)
            raise XTransplantError(
                f"{name_of(grid)}: component={wanted}: it has cells of {has} only. Compute a grid with "
                f"transplant.component={wanted}, or choose among {has}."
            )
        raise XTransplantError(f"{name_of(grid)}: {strategy} has no cell that was seen on all documents.")
    order = ranked(grid, among)
    best = grid.cells[order[0]]
    if strategy in ("overall", "source_last", "target_first"):
        return made([best])
    if strategy == "cross_validated":
        rule = _held_out(grid, among, options) | {"overall": as_list(best)}
        return made([best] if rule["p"] <= options.alpha else [], rule)
    if strategy == "band":
        bands = [made([grid.cells[column] for column in columns], rule) for columns, rule in _bands(grid, among)]
        # The first of the best; fewer cells first, as they cost less.
        bands.sort(key=lambda band: len(band.cells))
        return max(bands, key=lambda band: round(grid.sign * (band.score or 0.0), 9))
    number = len(order) if options.candidates == "all" else int(options.candidates)
    rule = {"candidates": options.candidates}
    if strategy == "router":
        rule |= _fit_router(grid, among, number, options)
    return made([grid.cells[column] for column in order[:number]], rule)


def _fixed_cell(given: Any, num_layers: int) -> Cell:
    example = f"Give {', '.join(FIXED)} or e.g. fixed=[ffn,13,2]."
    named = FIXED.get(given) if isinstance(given, str) else given
    if named is None or isinstance(named, str) or not hasattr(named, "__len__") or len(named) != 3:
        raise XTransplantError(f"fixed={given!r}: not a fixed setting. {example}")
    try:
        component = Component(getattr(named[0], "value", named[0]))
    except ValueError as error:
        raise XTransplantError(f"fixed={given!r}: {named[0]!r} is not a component. {example}") from error
    pair = LayerPair.parse([named[1], named[2]], num_layers)
    return Cell(component, pair.source, pair.target)


def _listed(given: Any) -> Any:
    return given if isinstance(given, str) else [getattr(part, "value", part) for part in given]


def _folds(grid: Grid, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Per document its unit [D] and its fold [D], -1 where it is not fresh: a question in several languages is in one
    fold, and documents that decided which cells are there test nothing."""
    units, unit = np.unique(grid.units[grid.fresh], return_inverse=True)
    if len(units) < 2:
        raise XTransplantError(f"{name_of(grid)}: cross-validation needs two documents or more.")
    fold = np.full(len(grid.documents), -1)
    drawn = np.random.default_rng(options.seed).permutation(len(units)) % min(options.folds, len(units))
    fold[grid.fresh] = drawn[unit]
    return grid.units, fold


def _held_out(grid: Grid, among: np.ndarray, options: Options) -> dict[str, Any]:
    """The gain over vanilla, on each fold, of the cell that is best on the others, and its p (`stats.chosen_gain`)."""
    unit, fold = _folds(grid, options)
    units, first, unit = np.unique(unit[grid.fresh], return_index=True, return_inverse=True)
    columns = sorted(np.flatnonzero(among), key=lambda column: grid.cells[column].order)
    gains = np.zeros((len(units), len(columns)))
    np.add.at(gains, unit, (grid.quality[:, columns] - grid.vanilla_quality[:, None])[grid.fresh])
    documents = int(grid.fresh.sum())
    # Means over documents: a unit may be several of them.
    gains *= len(units) / documents
    folds = fold[grid.fresh][first]
    gain, p = stats.chosen_gain(gains, folds, np.arange(len(columns)), seed=options.seed)
    settings = {"alpha": options.alpha, "folds": int(folds.max()) + 1, "seed": options.seed}
    return settings | {"tested_on": documents, "held_out_gain": gain, "p": p}


def _bands(grid: Grid, among: np.ndarray) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Regions of thirds of the depth, of each component and of all: (columns, rule), those with a cell."""
    depth = np.array([(cell.source, cell.target) for cell in grid.cells]) / grid.meta["num_layers"]
    of = np.array([cell.component.value for cell in grid.cells])
    components = sorted(set(of[among]))
    found = []
    for component in [*components, *([None] if len(components) > 1 else [])]:
        for source in _DEPTHS:
            for target in _DEPTHS:
                low, high = np.transpose([source, target])
                inside = among & ((depth >= low) & (depth < high)).all(axis=1)
                inside &= (of == component) | (component is None)
                # The whole map is no region: `mean_logprob` with all candidates is that.
                if inside.any() and (source, target) != (_DEPTHS[-1], _DEPTHS[-1]):
                    rule = {"component": component, "source": list(source), "target": list(target)}
                    found.append((np.flatnonzero(inside), rule))
    return found


def _fit_router(grid: Grid, among: np.ndarray, number: int, options: Options) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    assert grid.choice_scores is not None
    num_layers = int(grid.meta["num_layers"])
    best = np.nanmax(grid.sign * grid.choice_scores, axis=1)
    _, fold = _folds(grid, options)
    features, right, weights = [], [], []
    for left_out in range(fold.max() + 1):
        inside, outside = (fold >= 0) & (fold != left_out), fold == left_out
        columns = ranked(grid, among, inside)[:number]
        cells = [grid.cells[column] for column in columns]
        quality = np.column_stack([grid.vanilla_quality, grid.quality[:, columns]])
        gains = _gains(quality[inside])
        described = _features(cells, num_layers, gains, _logprob(grid, columns)[outside])
        features.append(described.reshape(-1, len(_FEATURES)))
        right.append((quality >= best[:, None] - 1e-6)[outside].ravel())
        weights.append(np.full(len(right[-1]), 1 / quality.shape[1]))
    inputs, labels, weight = np.concatenate(features), np.concatenate(right), np.concatenate(weights)
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    coefficients, intercept = np.zeros(len(_FEATURES)), 0.0
    # Where all rows are right, or all wrong, there is nothing to learn: every row is a tie, so vanilla is taken.
    if labels.any() and not labels.all():
        fitted = LogisticRegression(max_iter=2000, tol=1e-8).fit((inputs - mean) / scale, labels, weight)
        coefficients, intercept = fitted.coef_[0], float(fitted.intercept_[0])
    columns = ranked(grid, among)[:number]
    quality = np.column_stack([grid.vanilla_quality, grid.quality[:, columns]])
    return {
        "num_layers": num_layers,
        "sample_gain": _gains(quality[grid.fresh]).tolist(),
        "folds": int(fold.max()) + 1,
        "seed": options.seed,
        "features": list(_FEATURES),
        "mean": mean.tolist(),
        "scale": scale.tolist(),
        "coefficients": coefficients.tolist(),
        "intercept": intercept,
    }


def _gains(quality: np.ndarray) -> np.ndarray:
    """Mean of each row of responses less that of vanilla, the first: [D, R] -> [R]."""
    means: np.ndarray = quality.mean(axis=0)
    return means - means[0]


# --- Answering: the same code on a grid and on live responses --------------------------------------------------------


def answer(selection: Selection, logprob: np.ndarray) -> np.ndarray:
    """The log-probabilities [M] to answer one document with, from those of vanilla and the selection's cells [R, M].

    Raw log-probabilities of the row that is used; of `vote`, their mean over the rows that vote for the winner; of
    `mean_logprob` and `band`, the mean over rows of log-probabilities normalised over the choices. Ties go to the
    earliest row (vanilla, then the cells in the selection's order), and of choices to the first.

    Raises:
        XTransplantError: another number of rows than the selection has.
    """
    logprob = np.asarray(logprob)
    if logprob.ndim != 2 or len(logprob) != 1 + len(selection.cells):
        raise XTransplantError(
            f"{selection.strategy}: responses of shape {logprob.shape} for vanilla and {len(selection.cells)} cells."
        )
    return _combine(selection, logprob[None])[1][0]


def answer_text(selection: Selection, texts: Sequence[str]) -> int:
    """Which of the R generated texts to answer with: of `vote` the most frequent, ties to the earliest row.

    Raises:
        XTransplantError: another number of texts than the selection has rows; a strategy that needs choices.
    """
    if selection.strategy not in FOR_GENERATION:
        raise _needs_choices(selection.strategy)
    if len(texts) != 1 + len(selection.cells):
        raise XTransplantError(
            f"{selection.strategy}: {len(texts)} texts for vanilla and {len(selection.cells)} cells."
        )
    if selection.strategy == "vote":
        return _first_most_frequent(texts)
    return 1 if selection.cells else 0


def respond(selection: Selection, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """What a selection answers on a grid's documents, scores and gold not looked at.

    Returns:
        rows [D]: the row of responses used; -1: a new answer made of several. choices [D]: the choice answered; for
        generation, the index of the text.

    Raises:
        XTransplantError: a cell of the selection is not in the grid, or was not looked at on all documents; a strategy
            that needs choices on a grid of generated texts.
    """
    columns = grid.columns(selection.cells)
    unseen = [cell for cell, column in zip(selection.cells, columns, strict=True) if not grid.seen[column]]
    if unseen:
        raise XTransplantError(f"{name_of(grid)}: {show(unseen[0])} was not looked at on all documents.")
    documents = len(grid.documents)
    if selection.strategy in ONE_CELL:
        rows = np.full(documents, len(columns))
        if grid.logprob is not None:
            return rows, _choice(_logprob(grid, columns)[:, -1])
        text = grid.vanilla_text if not columns else None if grid.text is None else grid.text[:, columns[0]]
        return rows, np.full(documents, -1) if text is None else text
    _check_choices(selection.strategy, grid)
    if grid.text is not None and grid.vanilla_text is not None:
        texts = np.column_stack([grid.vanilla_text, grid.text[:, columns]])
        rows = np.array([_first_most_frequent(row.tolist()) for row in texts])
        return rows, texts[np.arange(documents), rows]
    rows, logprob = _combine(selection, _logprob(grid, columns))
    return rows, _choice(logprob)


def evaluate_selection(selection: Selection, grid: Grid) -> np.ndarray:
    """Scores [D] (main metric, the harness's own) of a selection on documents that it was not selected on.

    Raises:
        XTransplantError: a document was selected on; another model, site or control; a cell that the grid lacks.
    """
    used = grid.marked(selection.marks)
    if used:
        raise XTransplantError(
            f"{name_of(grid)}: {len(used)} of {len(grid.documents)} documents are among those that "
            f"{selection.strategy} was selected on, e.g. {min(used)}. Give a grid of other documents (split=unseen)."
        )
    own = {"weights": grid.weights, **{key: grid.meta.get(key) for key in SAME_CELLS}}
    for facts in selection.grids:
        for name, there in own.items():
            key, value, given = narrowed(name, there, facts.get(name))
            if given != value:
                how = "differs" if isinstance(value, dict) else f"is {value!r}, not {given!r}"
                raise XTransplantError(f"{name_of(grid)}: {key} {how} as where {selection.strategy} was selected.")
    return _scores(selection, grid)


def _scores(selection: Selection, grid: Grid) -> np.ndarray:
    rows, choices = respond(selection, grid)
    columns = grid.columns(selection.cells)
    documents = np.arange(len(rows))
    scores = np.column_stack([grid.vanilla[0], grid.scores[0][:, columns]])[documents, np.maximum(rows, 0)]
    if (rows < 0).any():
        assert grid.choice_scores is not None
        scores = np.where(rows < 0, grid.choice_scores[documents, choices], scores)
    return scores.astype(np.float64)


def _combine(selection: Selection, logprob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[D, R, M] (NaN: no such choice) -> rows [D], -1 where the answer is made of several; log-probabilities [D, M]."""
    logprob = logprob.astype(np.float64)
    documents = np.arange(len(logprob))
    if selection.strategy in ONE_CELL:
        rows = np.full(len(logprob), len(selection.cells))
    elif selection.strategy == "margin":
        rows = _margin(logprob).argmax(axis=1)
    elif selection.strategy == "entropy":
        rows = _entropy(logprob).argmin(axis=1)
    elif selection.strategy == "router":
        rule = selection.rule or {}
        features = _features(selection.cells, int(rule["num_layers"]), np.array(rule["sample_gain"]), logprob)
        # The logistic function keeps the order, so it need not be computed.
        rows = ((features - rule["mean"]) / rule["scale"] @ rule["coefficients"]).argmax(axis=1)
    else:
        weights = np.ones(logprob.shape[:2], dtype=bool)
        if selection.strategy == "vote":
            answers, votes = _votes(logprob)
            winner = np.take_along_axis(answers, votes.argmax(axis=1)[:, None], axis=1)
            weights = answers == winner
        else:
            logprob = _normalised(logprob)
        total = np.where(weights[:, :, None], logprob, 0.0).sum(axis=1)
        return np.full(len(logprob), -1), total / weights.sum(axis=1)[:, None]
    return rows, logprob[documents, rows]


def _features(cells: Sequence[Cell], num_layers: int, gains: np.ndarray, logprob: np.ndarray) -> np.ndarray:
    """[D, R, M] and sample gains [R] -> [D, R, F], as `_FEATURES` names them. Depths are layer / N, of vanilla 0."""
    margin, entropy = _margin(logprob), _entropy(logprob)
    answers, votes = _votes(logprob)
    winner = np.take_along_axis(answers, votes.argmax(axis=1)[:, None], axis=1)
    as_vanilla = (answers == answers[:, :1]).astype(float)
    depth = np.array([(0, 0), *((cell.source, cell.target) for cell in cells)]) / num_layers
    columns = [
        *(margin, entropy, margin[:, :1], entropy[:, :1], votes / votes.shape[1], answers == winner),
        *(as_vanilla, as_vanilla * margin[:, :1], depth[:, 0], depth[:, 1], np.arange(1 + len(cells)) == 0, gains),
    ]
    return np.stack([np.broadcast_to(column, margin.shape) for column in columns], axis=2).astype(np.float64)


def _votes(logprob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's answer [D, R], and how many rows give the same [D, R]."""
    answers = _choice(logprob)
    counts = (answers[:, :, None] == np.arange(logprob.shape[2])).sum(axis=1)
    return answers, np.take_along_axis(counts, answers, axis=1)


def _choice(logprob: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(logprob), -np.inf, logprob).argmax(axis=-1)


def _margin(logprob: np.ndarray) -> np.ndarray:
    """Best less second choice, nats; 0 where there is no second one of a probability above 0."""
    ordered = np.sort(np.where(np.isnan(logprob), -np.inf, logprob), axis=-1)
    if ordered.shape[-1] < 2:
        return np.zeros(ordered.shape[:-1])
    return np.where(np.isfinite(ordered[..., -2]), ordered[..., -1] - ordered[..., -2], 0.0)


def _normalised(logprob: np.ndarray) -> np.ndarray:
    """Log-softmax over the choices; NaN stays NaN."""
    peak = np.nanmax(logprob, axis=-1, keepdims=True)
    return logprob - peak - np.log(np.nansum(np.exp(logprob - peak), axis=-1, keepdims=True))


def _entropy(logprob: np.ndarray) -> np.ndarray:
    """Of the softmax over the choices, nats."""
    return np.nansum(entr(np.exp(_normalised(logprob))), axis=-1)


def _first_most_frequent(values: Sequence[Any]) -> int:
    counts: dict[Any, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return max(range(len(values)), key=lambda row: counts[values[row]])


def _logprob(grid: Grid, columns: Sequence[int] | np.ndarray) -> np.ndarray:
    """[D, R, M] of vanilla and some cells."""
    assert grid.logprob is not None and grid.vanilla_logprob is not None
    return np.concatenate([grid.vanilla_logprob[:, None], grid.logprob[:, columns]], axis=1)


def _check_choices(strategy: str, grid: Grid) -> None:
    has_choices = grid.logprob is not None and grid.choice_scores is not None
    if strategy not in ONE_CELL and not has_choices and not (strategy == "vote" and grid.text is not None):
        raise _needs_choices(strategy)


def _needs_choices(strategy: str) -> XTransplantError:
    return XTransplantError(
        f"{strategy} needs the log-probabilities of choices, and this task has none. "
        f"Without choices: {', '.join(ONE_CELL)}; for generation also vote."
    )
