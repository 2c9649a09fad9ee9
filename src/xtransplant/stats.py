"""Paired statistics on scores per document: intervals, tests, corrections for many cells, reliability of a map.

Legend: D documents, C cells (or any other columns), P sign flips, S splits. Documents are the units that are drawn:
every resample, flip or split takes a document with all its cells, so the cells' correlation is kept. Higher scores are
better; values must be finite (cells that were not seen on all documents are left out by the caller). All functions
are deterministic for a seed, and raise ValueError on empty input, NaN or shapes that do not fit.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

# Sums of the same numbers in another order differ by rounding: what is closer than this, relatively, is a tie.
_TIE = 1e-9
# Rows that are made at once: bounds the memory at this many times C (or D) floats.
_CHUNK = 500


class FlipTest(NamedTuple):
    """Two-sided p-values [C] of a sign-flip test: each cell alone, and adjusted for having looked at all of them."""

    p: np.ndarray
    adjusted: np.ndarray


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean of `values` [D] over documents drawn with replacement."""
    values = _checked(values, 1)
    low, high = bootstrap_intervals(values[:, None], level, resamples, seed)[0]
    return float(low), float(high)


def bootstrap_intervals(values: np.ndarray, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """`bootstrap_interval` of every column of `values` [D, C], all with the same resamples: [C, 2] (low, high)."""
    values = _checked(values, 2)
    if not 0 < level < 1:
        raise ValueError(f"level={level} is not between 0 and 1")
    tail = (1 - level) / 2
    return np.quantile(resampled_means([values], [range(len(values))], resamples, seed)[0], [tail, 1 - tail], axis=0).T


def resampled_means(
    groups: Sequence[np.ndarray], units: Sequence[Sequence[Hashable]], resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Means of the columns of several groups, e.g. languages, over resamples of their documents: [G, resamples, C].

    Every group keeps its number of documents. Those that are one unit, such as a question and its translations, are
    drawn together: units are drawn with replacement among the units that are in the same groups.

    Args:
        groups: [D, C] each, D may differ.
        units: of each group the unit of each document, every one of them once.
    """
    groups = [_checked(group, 2) for group in groups]
    places: dict[Hashable, dict[int, int]] = {}  # unit -> group -> its row there
    for number, (group, names) in enumerate(zip(groups, units, strict=True)):
        if len(set(names)) != len(group) or len(names) != len(group):
            raise ValueError(f"{len(group)} documents need as many units, each once")
        for row, unit in enumerate(names):
            places.setdefault(unit, {})[number] = row
    strata: dict[tuple[int, ...], list[dict[int, int]]] = {}
    for where in places.values():
        strata.setdefault(tuple(where), []).append(where)
    parts = [
        (len(members), [(number, groups[number][[where[number] for where in members]]) for number in numbers])
        for numbers, members in strata.items()
    ]
    generator = np.random.default_rng(seed)
    means = np.zeros((len(groups), resamples, groups[0].shape[1]))
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        for size, members_of in parts:
            drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            # How often each unit was drawn [rows, size]: a resample's sum is a product with it.
            counts = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
            for number, values in members_of:
                means[number, start : start + rows] += counts @ values / len(groups[number])
    return means


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided McNemar test of two conditions' scores [D], each 0 or 1, on the same documents: p.

    Raises:
        ValueError: a score is neither 0 nor 1.
    """
    a, b = _checked(a, 1), _checked(b, 1)
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("McNemar's test needs scores of 0 or 1")
    return float(sign_test((a - b)[:, None])[0])


def paired_interval(a: np.ndarray, b: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of the mean difference of two conditions' scores [D], each 0 or 1, on the same documents.

    Tango's score interval (1998): the differences that his test, McNemar's at 0, does not reject. It agrees with that
    test, and says how much could be there where no document differs; a bootstrap does neither.

    Raises:
        ValueError: a score is neither 0 nor 1.
    """
    a, b = _checked(a, 1), _checked(b, 1)
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("the interval needs scores of 0 or 1")
    n, up, down = len(a), int((a > b).sum()), int((a < b).sum())
    z = float(stats.norm.ppf(0.5 + level / 2))

    def excess(delta: float) -> float:
        """Above 0 where a true difference `delta` is rejected."""
        linear = -up - down + (2 * n - up + down) * delta
        # The share of documents with only b right, most likely if delta is true.
        share = (np.sqrt(max(0.0, linear**2 + 8 * n * down * delta * (1 - delta))) - linear) / (4 * n)
        return float((up - down - n * delta) ** 2 - z**2 * n * (2 * share + delta * (1 - delta)))

    seen, near = (up - down) / n, 1e-9
    low = -1.0 if seen - near <= -1 else optimize.brentq(excess, -1.0, seen - near)
    high = 1.0 if seen + near >= 1 else optimize.brentq(excess, seen + near, 1.0)
    return float(low), float(high)


def difference_interval(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval (low, high) of the mean difference of scores [D] on the same documents: `paired_interval` for 0 and
    1, else a bootstrap."""
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        return paired_interval(a, b)
    return bootstrap_interval(a - b, seed=seed)


def sign_test(differences: np.ndarray) -> np.ndarray:
    """Exact two-sided sign test of each column of `differences` [D, C], zeros left out: p [C].

    On differences of 0/1 scores it is McNemar's exact test, and also the limit of the sign-flip test with all 2^D
    flips; unlike the flips its p-values have no floor, which `false_discovery` over many cells needs.
    """
    differences = _checked(differences, 2)
    up, down = (differences > 0).sum(axis=0), (differences < 0).sum(axis=0)
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(up, down), up + down, 0.5))


def sign_flip_max_t(differences: np.ndarray, permutations: int = 2_000, seed: int = 0) -> FlipTest:
    """Is the mean difference of a cell zero? For all cells at once, with the family-wise error held at the level.

    Single-step max-T of Westfall and Young (1993). If the transplant changed nothing, a document's differences in all
    cells could as well have the other sign: signs are flipped per document, for all cells together, and each cell's
    `|t|` is compared with the largest `|t|` over all cells of each flip. p = (1 + flips as extreme) / (1 + P).

    Args:
        differences: [D, C] score minus vanilla. A cell in which all are zero has t = 0 and p = 1.
        permutations: P. The smallest p-value that can come out is 1 / (1 + P).
    """
    differences = _checked(differences, 2)
    # |sum| / root of the sum of squares grows with |t|, the same way for all cells (t² = (D-1) z² / (D - z²)), and
    # flips do not change the squares: the order of all |t| is had without a variance per flip.
    norm = np.sqrt((differences**2).sum(axis=0))
    scaled = np.divide(differences, norm, out=np.zeros_like(differences), where=norm > 0)
    observed = np.abs(scaled.sum(axis=0)) * (1 - _TIE)
    alone = np.zeros(differences.shape[1], dtype=np.int64)
    largest = np.empty(permutations)
    generator = np.random.default_rng(seed)
    for start in range(0, permutations, _CHUNK):
        rows = min(_CHUNK, permutations - start)
        signs = generator.integers(0, 2, size=(rows, len(differences))) * 2.0 - 1.0
        flipped = np.abs(signs @ scaled)
        alone += (flipped >= observed).sum(axis=0)
        largest[start : start + rows] = flipped.max(axis=1)
    extreme = permutations - np.searchsorted(np.sort(largest), observed, side="left")
    return FlipTest((1 + alone) / (1 + permutations), (1 + extreme) / (1 + permutations))


def false_discovery(p: np.ndarray) -> np.ndarray:
    """q-values [C] of p-values [C] (Benjamini and Hochberg 1995): of those up to x, a share of at most x is
    expected to be false."""
    p = _checked(p, 1)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return q


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [C] corrected for all of them by Holm (1979): the chance of any false one below x is at most x."""
    p = _checked(p, 1)
    order = np.argsort(p)
    scaled = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return corrected


def cohens_h(a: float, b: float) -> float:
    """Effect size of a share `a` against `b` (Cohen 1988, chapter 6): 0.2 is small, 0.5 medium, 0.8 large."""
    return float(2 * np.arcsin(np.sqrt(a)) - 2 * np.arcsin(np.sqrt(b)))


def mcnemar_power(documents: int, difference: float, discordance: float, level: float = 0.05) -> float:
    """Chance that McNemar's exact two-sided test finds a true gain at this level, in the right direction.

    Exact (Duffy 1984): the number of documents that differ is binomial, and of these so are the wins.

    Args:
        difference: true gain in the share of right answers, above 0.
        discordance: share of documents on which the conditions differ, `difference` at least.
    """
    if not 0 < difference <= discordance <= 1:
        raise ValueError(f"difference {difference}, discordance {discordance}: 0 < difference <= discordance <= 1")
    # What is left out is less likely than 1e-12.
    low, high = stats.binom.ppf([5e-13, 1 - 5e-13], documents, discordance)
    differing = np.arange(low, high + 1)
    most = stats.binom.ppf(level / 2, differing, 0.5)  # losses with which the test still finds it
    most = np.where(2 * stats.binom.cdf(most, differing, 0.5) <= level, most, most - 1)
    found = stats.binom.cdf(most, differing, 0.5 * (1 - difference / discordance))
    return float(stats.binom.pmf(differing, documents, discordance) @ found)


@lru_cache(maxsize=4096)
def detectable(documents: int, discordance: float, power: float = 0.8, level: float = 0.05) -> float | None:
    """The least gain that McNemar's exact test finds with this power; None if so few documents show none.

    Args:
        discordance: share of documents on which the conditions differ; where the gain has to be more, all of them are
            wins.
    """

    def missing(gain: float) -> float:
        return power - mcnemar_power(documents, gain, max(gain, discordance), level)

    if missing(1.0) > 0:
        return None
    return float(optimize.brentq(missing, 1e-9, 1.0, xtol=1e-5))


def detectable_mean(error: float, power: float = 0.8, level: float = 0.05) -> float:
    """The least true mean that a two-sided test finds with this power, of a mean that is normal with a standard error
    of `error`: (z of 1 - level / 2 + z of power) standard errors (Cohen 1988, chapter 2)."""
    return float((stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)) * error)


def split_half(scores: np.ndarray, splits: int = 200, seed: int = 0) -> dict[str, Any]:
    """How much of a map is signal: the correlation, over cells, of the maps of two random halves of the documents.

    Args:
        scores: [D, C], D >= 2; a map is the mean over documents per cell [C]. With odd D the second half is larger.

    Returns:
        `pearson` and `spearman`, each with `mean` over splits, `low` and `high` (95 % of the splits lie between: the
        spread over splits, not a confidence interval), `corrected` (Spearman-Brown: what `mean` predicts for maps of
        all D documents; a `mean` that is not positive stays as it is) and `splits` (in how many it was defined). All
        None where no half map varies.
    """
    scores = _checked(scores, 2)
    documents = len(scores)
    if documents < 2:
        raise ValueError("one document has no halves")
    half = documents // 2
    generator = np.random.default_rng(seed)
    inside = generator.permuted(np.tile(np.arange(documents) < half, (splits, 1)), axis=1).astype(float)
    first = inside @ scores / half
    second = (1 - inside) @ scores / (documents - half)
    ranks = [stats.rankdata(np.round(each, 12), axis=1) for each in (first, second)]
    return {"pearson": _summary(_correlation(first, second)), "spearman": _summary(_correlation(*ranks))}


def winner_curse(
    scores: np.ndarray,
    vanilla: np.ndarray,
    folds: int = 5,
    repeats: int = 20,
    seed: int = 0,
    order: np.ndarray | None = None,
) -> dict[str, Any]:
    """The best cell's gain over vanilla on the documents it was chosen on, against its gain on others.

    Repeated cross-validation: the cell with the best mean on the other folds is scored on the fold left out.

    Args:
        scores, vanilla: [D, C] and [D], D >= 2.
        folds: at most D.
        order: [C] of equally good cells the one with the smallest value is chosen; by default the first.

    Returns:
        `in_sample`: gain of the cell that is best on all documents, on the same documents. `training`: the mean gain
        on the documents a cell was chosen on. `held_out`: the mean gain on those left out; `low`, `high`: about its 95
        % interval, with the variance of Nadeau and Bengio (2003), as the folds' choices share documents (a bootstrap
        of the held-out gains is half as wide as it should be). `curse`: `training` less `held_out`. `chosen`: how many
        different cells were chosen; `agreement`: the share of the most frequent.
    """
    scores, vanilla = _checked(scores, 2), _checked(vanilla, 1)
    documents, cells = scores.shape
    order = np.arange(cells) if order is None else np.asarray(order)
    if documents < 2 or vanilla.shape != (documents,) or order.shape != (cells,):
        raise ValueError(f"scores {scores.shape}, vanilla {vanilla.shape}, order {order.shape}: shapes do not fit")
    if folds < 2 or repeats < 1:
        raise ValueError(f"folds={folds}, repeats={repeats}: at least 2 and 1")
    folds = min(folds, documents)
    gains = scores - vanilla[:, None]
    generator = np.random.default_rng(seed)
    training, held_out, sizes, chosen = [], [], [], []
    for _ in range(repeats):
        fold = generator.permutation(documents) % folds
        for left_out in range(folds):
            inside = gains[fold != left_out]
            best = _best(inside.sum(axis=0), order)
            chosen.append(best)
            training.append(inside[:, best].mean())
            held_out.append(gains[fold == left_out, best].mean())
            sizes.append(documents - len(inside))
    _, counts = np.unique(chosen, return_counts=True)
    mean = float(np.average(held_out, weights=sizes))
    # Independent folds would have variance / number; what they share adds documents tested / documents trained on.
    factor = 1 / len(held_out) + 1 / (folds - 1)
    width = float(stats.t.ppf(0.975, len(held_out) - 1) * np.sqrt(factor * np.var(held_out, ddof=1)))
    return {
        "in_sample": float(gains[:, _best(gains.sum(axis=0), order)].mean()),
        "training": float(np.mean(training)),
        "held_out": mean,
        "low": mean - width,
        "high": mean + width,
        "curse": float(np.mean(training)) - mean,
        "chosen": len(counts),
        "agreement": float(counts.max() / counts.sum()),
        "folds": folds,
        "repeats": repeats,
    }


def chosen_gain(
    gains: np.ndarray, fold: np.ndarray, order: np.ndarray, permutations: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """The mean gain, on each fold, of the cell that is best on the others; and its p, one-sided.

    The folds' gains depend on each other, as their choices share documents, so the whole procedure is done again for
    each flip of signs, choices included: p = (1 + flips with as much) / (1 + P).

    Args:
        gains: [D, C] over vanilla. A unit may be the sum over several documents; the mean is then over units.
        fold: [D] integers from 0.
        order: [C] of equally good cells the one with the smallest value is chosen.
    """
    gains = _checked(gains, 2)[:, np.argsort(order)]
    generator = np.random.default_rng(seed)
    signs = np.concatenate([np.ones((1, len(gains))), generator.integers(0, 2, (permutations, len(gains))) * 2.0 - 1.0])
    found = np.zeros(len(signs))
    for start in range(0, len(signs), _CHUNK):
        rows = slice(start, start + _CHUNK)
        for left_out in range(int(fold.max()) + 1):
            inside = fold != left_out
            best = np.round(signs[rows, inside] @ gains[inside], 9).argmax(axis=1)
            on_others = signs[rows, ~inside] @ gains[~inside]
            found[rows] += on_others[np.arange(len(best)), best]
    extreme = (found[1:] >= found[0] - _TIE * max(1.0, float(np.abs(gains).sum()))).sum()
    return float(found[0] / len(gains)), float((1 + extreme) / (1 + permutations))


def _best(sums: np.ndarray, order: np.ndarray) -> int:
    tied = np.flatnonzero(sums >= sums.max() - _TIE * max(1.0, float(np.abs(sums).max())))
    return int(tied[np.argmin(order[tied])])


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of two arrays [S, C]: [S], NaN where a row is constant."""
    first, second = (each - each.mean(axis=1, keepdims=True) for each in (first, second))
    # Rounding leaves something of a constant row: it counts as constant.
    norms = [np.sqrt((each**2).sum(axis=1)) for each in (first, second)]
    defined = (norms[0] > _TIE) & (norms[1] > _TIE)
    product = np.where(defined, norms[0] * norms[1], 1.0)
    return np.where(defined, (first * second).sum(axis=1) / product, np.nan)


def _summary(correlations: np.ndarray) -> dict[str, Any]:
    found = correlations[~np.isnan(correlations)]
    if not len(found):
        return {"mean": None, "low": None, "high": None, "corrected": None, "splits": 0}
    mean = float(found.mean())
    low, high = (float(edge) for edge in np.quantile(found, [0.025, 0.975]))
    corrected = 2 * mean / (1 + mean) if mean > 0 else mean
    return {"mean": mean, "low": low, "high": high, "corrected": corrected, "splits": len(found)}


def _checked(values: np.ndarray, dimensions: int) -> np.ndarray:
    """As float64, with the expected number of dimensions, not empty and finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != dimensions or not values.size:
        raise ValueError(f"an array with {dimensions} dimensions that is not empty is needed, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("all values must be finite: leave out cells that were not seen on all documents")
    return values
