"""The statistics, against slow versions that one can read, scipy's own, and cases with a known answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from xtransplant.stats import (
    bootstrap_interval,
    bootstrap_intervals,
    chosen_gain,
    cohens_h,
    detectable,
    detectable_mean,
    false_discovery,
    holm,
    mcnemar,
    mcnemar_power,
    paired_interval,
    resampled_means,
    sign_flip_max_t,
    sign_test,
    split_half,
    winner_curse,
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- intervals


def test_bootstrap_agrees_with_scipy_and_with_the_standard_error() -> None:
    values = generator().random(60)
    low, high = bootstrap_interval(values)
    expected = scipy_stats.bootstrap((values,), np.mean, method="percentile", rng=generator(1)).confidence_interval
    assert low == pytest.approx(expected.low, abs=0.005)
    assert high == pytest.approx(expected.high, abs=0.005)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 60**0.5, rel=0.05)


def test_bootstrap_resamples_documents_as_a_loop_does() -> None:
    values = generator().random((5, 2))
    draws = generator(7).integers(5, size=(30, 5))
    means = [values[row].mean(axis=0) for row in draws]
    expected = np.quantile(means, [0.05, 0.95], axis=0).T
    assert np.allclose(bootstrap_intervals(values, level=0.9, resamples=30, seed=7), expected)


def test_bootstrap_covers_the_true_mean() -> None:
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(generator(seed).random(50) < 0.3, resamples=400, seed=seed)
        covered += low <= 0.3 <= high
    assert 0.89 <= covered / 200 <= 0.99


def paired(up: int, down: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two conditions in which `up` documents are right in the first only, `down` in the second only."""
    return np.array([1] * up + [0] * down + [1] * same), np.array([0] * up + [1] * down + [1] * same)


def test_paired_interval_leaves_out_what_the_score_test_rejects() -> None:
    z = scipy_stats.norm.ppf(0.975)
    for up, down, same in itertools.product((0, 1, 4, 9), (0, 2, 7), (0, 5, 60)):
        if not up + down + same:
            continue
        a, b = paired(up, down, same)
        low, high = paired_interval(a, b)
        assert -1 <= low <= (up - down) / len(a) <= high <= 1
        # At 0 the test is McNemar's without correction.
        rejected = up + down > 0 and (up - down) ** 2 / (up + down) > z**2
        assert (low > 0 or high < 0) == rejected
        assert paired_interval(b, a) == pytest.approx((-high, -low), abs=1e-6)
    # Where no document differs there is a closed form.
    assert paired_interval(*paired(0, 0, 100)) == pytest.approx((-(z**2) / (100 + z**2), z**2 / (100 + z**2)), abs=1e-6)
    with pytest.raises(ValueError, match="0 or 1"):
        paired_interval(np.array([0.5]), np.array([1.0]))


@pytest.mark.parametrize(("up", "down"), [(0.1, 0.0), (0.05, 0.02), (0.2, 0.2)])
def test_paired_interval_covers_the_true_difference(up: float, down: float) -> None:
    covered = 0
    for seed in range(400):
        drawn = generator(seed).random(40)
        a, b = drawn < up, (drawn >= up) & (drawn < up + down)
        low, high = paired_interval(a, b)
        covered += low <= up - down <= high
    assert covered / 400 >= 0.92


def test_columns_share_the_resamples() -> None:
    values = generator().random(40)
    (low, high), (low_shifted, high_shifted) = bootstrap_intervals(np.stack([values, values + 1], axis=1))
    assert (low_shifted - low, high_shifted - high) == (pytest.approx(1), pytest.approx(1))
    # Not to the last bit: a product with one column may be summed in another order than one with two.
    assert bootstrap_interval(values) == pytest.approx((low, high), rel=1e-12)
    assert bootstrap_interval(values, seed=1) != pytest.approx((low, high), rel=1e-6)


def test_more_resamples_than_one_chunk_are_all_used() -> None:
    low, high = bootstrap_interval(np.full(4, 0.25), resamples=1_201)
    assert (low, high) == (0.25, 0.25)


# --- one cell


@pytest.mark.parametrize(("up", "down", "same"), [(0, 0, 5), (1, 0, 0), (9, 2, 10), (3, 3, 1), (2, 14, 40)])
def test_mcnemar_is_the_binomial_test_of_the_documents_that_changed(up: int, down: int, same: int) -> None:
    a = np.array([1] * up + [0] * down + [1] * same)
    b = np.array([0] * up + [1] * down + [1] * same)
    expected = scipy_stats.binomtest(up, up + down).pvalue if up + down else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)
    assert mcnemar(b, a) == pytest.approx(expected)


def test_mcnemar_refuses_scores_between() -> None:
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar(np.array([0.5, 1]), np.array([0, 1]))


def test_sign_test_is_mcnemar_of_each_cell() -> None:
    a, b = generator(1).integers(0, 2, (30, 4)), generator(2).integers(0, 2, 30)
    assert sign_test(a - b[:, None]).tolist() == [mcnemar(column, b) for column in a.T]


# --- many cells


def t_statistics(differences: np.ndarray) -> np.ndarray:
    """|t| [C], from the textbook."""
    found = []
    for column in differences.T:
        error = column.std(ddof=1) / len(column) ** 0.5
        found.append(0.0 if not column.any() else np.inf if error == 0 else abs(column.mean()) / error)
    return np.array(found)


def exact_max_t(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p-values over all 2^D sign flips, each cell alone and against the largest |t|."""
    documents, cells = differences.shape
    observed = t_statistics(differences)
    alone, adjusted = np.zeros(cells), np.zeros(cells)
    flips = list(itertools.product([-1, 1], repeat=documents))
    for signs in flips:
        flipped = t_statistics(differences * np.array(signs)[:, None])
        for cell in range(cells):
            alone[cell] += flipped[cell] >= observed[cell] * (1 - 1e-6)
            adjusted[cell] += flipped.max() >= observed[cell] * (1 - 1e-6)
    return alone / len(flips), adjusted / len(flips)


@pytest.mark.filterwarnings("ignore:Precision loss")
@pytest.mark.parametrize("kind", ["accuracy", "real"])
def test_max_t_against_all_flips(kind: str) -> None:
    differences = generator(3).normal([0, 0, 0.5, 2], size=(7, 4))
    if kind == "accuracy":
        differences = np.clip(np.round(differences), -1, 1)
    alone, adjusted = exact_max_t(differences)
    found = sign_flip_max_t(differences, permutations=40_000)
    assert np.allclose(found.p, alone, atol=0.012)
    assert np.allclose(found.adjusted, adjusted, atol=0.012)
    assert (found.adjusted >= found.p).all()


def test_max_t_for_given_flips_is_the_loop() -> None:
    differences = generator(4).integers(-1, 2, (12, 5)).astype(float)
    observed = t_statistics(differences)
    signs = generator(9).integers(0, 2, size=(50, 12)) * 2 - 1
    flipped = np.array([t_statistics(differences * row[:, None]) for row in signs])
    alone = [(1 + sum(flipped[:, cell] >= observed[cell] * (1 - 1e-6))) / 51 for cell in range(5)]
    adjusted = [(1 + sum(flipped.max(axis=1) >= observed[cell] * (1 - 1e-6))) / 51 for cell in range(5)]
    found = sign_flip_max_t(differences, permutations=50, seed=9)
    assert found.p.tolist() == pytest.approx(alone)
    assert found.adjusted.tolist() == pytest.approx(adjusted)


def test_no_difference_at_all_is_no_evidence() -> None:
    found = sign_flip_max_t(np.zeros((20, 6)), permutations=100)
    assert found.p.tolist() == found.adjusted.tolist() == [1.0] * 6


def test_cells_without_change_do_not_disturb_the_others() -> None:
    some = generator(5).integers(-1, 2, (25, 3)).astype(float)
    alone = sign_flip_max_t(some, permutations=300)
    beside = sign_flip_max_t(np.hstack([some, np.zeros((25, 4))]), permutations=300)
    assert beside.adjusted[:3].tolist() == alone.adjusted.tolist()
    assert beside.adjusted[3:].tolist() == [1.0] * 4


def test_a_planted_cell_is_found_and_no_other() -> None:
    differences = generator(6).choice([-1, 0, 1], size=(50, 200), p=[0.1, 0.8, 0.1]).astype(float)
    differences[:, 17] = generator(7).choice([0, 1], size=50, p=[0.5, 0.5])
    adjusted = sign_flip_max_t(differences, permutations=500).adjusted
    assert np.flatnonzero(adjusted <= 0.05).tolist() == [17]


def test_copies_of_a_cell_cost_nothing() -> None:
    """The cells' correlation is used: a correction that ignored it (Bonferroni) would multiply p by 50."""
    one = generator(8).normal(0.4, size=(30, 1))
    alone = sign_flip_max_t(one, permutations=1_000)
    copies = sign_flip_max_t(np.repeat(one, 50, axis=1), permutations=1_000)
    assert copies.adjusted.tolist() == pytest.approx([alone.p[0]] * 50)


def test_family_wise_error_is_at_the_level_under_null_maps() -> None:
    """Null maps as they are: cells resemble each other, and most documents do not change."""
    rejected = 0
    maps = 300
    for seed in range(maps):
        draw = generator(seed)
        common = draw.normal(size=(40, 1)) + draw.normal(size=(40, 60))
        differences = np.sign(common) * (np.abs(common) > 1.6)
        rejected += bool((sign_flip_max_t(differences, permutations=199, seed=seed).adjusted <= 0.05).any())
    # Binomial(300, 0.05): 3 to 27 with probability 0.998.
    assert 3 <= rejected <= 27


def test_false_discovery_is_the_definition() -> None:
    p = np.array([0.9, 0.001, 0.04, 0.04, 0.03, 0.2, 1.0])
    ranked = sorted(p)
    expected = [min(min(ranked[k] * len(p) / (k + 1), 1) for k in range(len(p)) if ranked[k] >= each) for each in p]
    assert false_discovery(p).tolist() == pytest.approx(expected)
    assert np.allclose(false_discovery(p), scipy_stats.false_discovery_control(p))


# --- the map as a whole


def test_split_half_is_the_loop() -> None:
    scores = generator(10).integers(0, 2, (11, 8)) + np.linspace(0, 1, 8)
    found = split_half(scores, splits=30, seed=3)
    halves = generator(3).permuted(np.tile(np.arange(11) < 5, (30, 1)), axis=1)
    pearson, spearman = [], []
    for half in halves:
        first, second = scores[half].mean(axis=0), scores[~half].mean(axis=0)
        pearson.append(scipy_stats.pearsonr(first, second).statistic)
        spearman.append(scipy_stats.spearmanr(first, second).statistic)
    for name, expected in (("pearson", pearson), ("spearman", spearman)):
        mean = np.mean(expected)
        assert found[name]["mean"] == pytest.approx(mean)
        assert found[name]["corrected"] == pytest.approx(2 * mean / (1 + mean))
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
        assert found[name]["splits"] == 30


def test_split_half_tells_signal_from_noise() -> None:
    draw = generator(11)
    noise = draw.random((100, 300)) < 0.5
    signal = draw.random((100, 300)) < np.linspace(0.2, 0.8, 300)
    assert abs(split_half(noise)["pearson"]["corrected"]) < 0.15
    assert split_half(signal)["pearson"]["corrected"] > 0.85


def test_spearman_brown_predicts_the_longer_map() -> None:
    """The correction of halves of 50 is the correlation of two independent maps of 100."""
    draw = generator(12)
    truth = draw.normal(0.5, 0.06, 400).clip(0, 1)
    first, second = (draw.random((100, 400)) < truth for _ in range(2))
    between = np.corrcoef(first.mean(axis=0), second.mean(axis=0))[0, 1]
    assert split_half(first)["pearson"]["corrected"] == pytest.approx(between, abs=0.1)


def test_split_half_of_a_flat_map_is_undefined() -> None:
    flat = np.repeat(generator(13).random((9, 1)), 5, axis=1)
    assert split_half(flat)["pearson"] == {"mean": None, "low": None, "high": None, "corrected": None, "splits": 0}
    assert split_half(flat)["spearman"]["mean"] is None


# --- the winner's curse


def slow_winner_curse(scores: np.ndarray, vanilla: np.ndarray, folds: int, repeats: int, seed: int) -> float:
    draw = generator(seed)
    gains = []
    for _ in range(repeats):
        fold = draw.permutation(len(vanilla)) % folds
        for left_out in range(folds):
            train = [document for document in range(len(vanilla)) if fold[document] != left_out]
            test = [document for document in range(len(vanilla)) if fold[document] == left_out]
            totals = [sum(scores[document, cell] for document in train) for cell in range(scores.shape[1])]
            best = totals.index(max(totals))
            gains += [scores[document, best] - vanilla[document] for document in test]
    return float(np.mean(gains))


def test_winner_curse_is_the_loop() -> None:
    scores = generator(14).integers(0, 2, (13, 9)).astype(float)
    vanilla = generator(15).integers(0, 2, 13).astype(float)
    found = winner_curse(scores, vanilla, folds=4, repeats=6, seed=2)
    assert found["held_out"] == pytest.approx(slow_winner_curse(scores, vanilla, 4, 6, 2))
    assert found["in_sample"] == pytest.approx((scores.mean(axis=0) - vanilla.mean()).max())
    assert found["curse"] == pytest.approx(found["training"] - found["held_out"])


def test_among_equal_cells_the_best_looks_good_and_is_not() -> None:
    found = [
        winner_curse((generator(seed).random((50, 100)) < 0.5).astype(float), np.full(50, 0.5), repeats=5, seed=seed)
        for seed in range(60)
    ]
    assert min(each["in_sample"] for each in found) > 0.1
    # The held-out gain is 0 on average, and its interval holds 0 as often as it says (Binomial(60, 0.95)).
    assert abs(np.mean([each["held_out"] for each in found])) < 0.04
    assert sum(each["low"] <= 0 <= each["high"] for each in found) >= 52


def test_a_cell_that_is_truly_best_is_chosen_always_and_keeps_its_gain() -> None:
    scores = np.zeros((20, 5))
    scores[:, 3] = 1
    found = winner_curse(scores, np.zeros(20))
    assert (found["in_sample"], found["held_out"], found["curse"]) == (1.0, pytest.approx(1.0), pytest.approx(0.0))
    assert (found["chosen"], found["agreement"]) == (1, 1.0)


def test_ties_are_broken_by_the_order_given() -> None:
    scores = np.ones((4, 3))
    scores[0] = [0, 0, 0]
    gains = [winner_curse(scores - [0, 0, 0.5], np.zeros(4), order=np.array(order)) for order in ([1, 0, 2], [0, 1, 2])]
    assert gains[0] == gains[1]
    distinct = np.array([[1.0, 0.0], [0.0, 1.0]])
    # With two documents each fold holds one: on the other, either cell may be best, by its score and not by the order.
    assert winner_curse(distinct, np.zeros(2))["held_out"] == 0.0
    assert winner_curse(np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]), np.zeros(3), order=[1, 0])["chosen"] == 1  # type: ignore[arg-type]


# --- all of them


def test_what_is_not_a_number_is_refused() -> None:
    holes = np.array([[0.0, np.nan], [1.0, 1.0]])
    for function in (bootstrap_intervals, sign_test, sign_flip_max_t, split_half):
        with pytest.raises(ValueError, match="finite"):
            function(holes)
        with pytest.raises(ValueError, match="not empty"):
            function(np.empty((0, 3)))
    with pytest.raises(ValueError, match="2 dimensions"):
        split_half(np.zeros(4))
    with pytest.raises(ValueError, match="shapes"):
        winner_curse(np.zeros((4, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="halves"):
        split_half(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(np.zeros(3), level=95)


def test_the_seed_decides() -> None:
    scores = generator(17).random((20, 6))
    vanilla = generator(18).random(20)
    for _ in range(2):
        assert sign_flip_max_t(scores - 0.4, seed=1).p.tolist() == sign_flip_max_t(scores - 0.4, seed=1).p.tolist()
        assert split_half(scores, seed=1) == split_half(scores, seed=1) != split_half(scores, seed=2)
        assert winner_curse(scores, vanilla, seed=1) == winner_curse(scores, vanilla, seed=1)


# --- the best cell on documents it was not chosen on


def test_chosen_gain_is_the_procedure_done_again_for_every_flip() -> None:
    gains = generator(3).integers(-1, 2, size=(9, 5)).astype(float)
    fold = np.array([0, 1, 2] * 3)
    order = np.array([3, 0, 4, 1, 2])

    def procedure(of: np.ndarray) -> float:
        total = 0.0
        for left_out in range(3):
            sums = of[fold != left_out].sum(axis=0)
            best = min(range(5), key=lambda cell: (-sums[cell], order[cell]))
            total += of[fold == left_out, best].sum()
        return total

    gain, p = chosen_gain(gains, fold, order, permutations=200, seed=4)
    flips = generator(4).integers(0, 2, (200, 9)) * 2.0 - 1.0
    as_much = sum(procedure(signs[:, None] * gains) >= procedure(gains) for signs in flips)
    assert gain == pytest.approx(procedure(gains) / 9)
    assert p == pytest.approx((1 + as_much) / 201)


def test_chosen_gain_holds_its_level_and_sees_an_effect() -> None:
    rejected = 0
    for seed in range(200):
        drawn = generator(seed)
        # A document's cells are alike, so that the folds' choices depend on each other.
        gains = drawn.normal(size=(40, 1)) + drawn.normal(size=(40, 30))
        rejected += chosen_gain(gains, np.arange(40) % 5, np.arange(30), 199, seed)[1] <= 0.05
    assert rejected <= 20  # Binomial(200, 0.05) exceeds it once in 1,000
    assert chosen_gain(gains + 0.8, np.arange(40) % 5, np.arange(30), 199)[1] < 0.02


# --- Groups of documents -------------------------------------------------------------------------------------------


def test_units_in_several_groups_are_drawn_together() -> None:
    values = np.arange(6.0)[:, None]
    first, second = resampled_means([values, values[::-1]], ["abcdef", "fedcba"], resamples=700)
    assert first.shape == (700, 1)
    np.testing.assert_allclose(first, second)
    first, second = resampled_means([values, values], ["abcdef", "uvwxyz"], resamples=700)
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.15


def test_every_group_keeps_its_number_of_documents() -> None:
    """Whatever the groups share: of ones the mean is one in every resample."""
    means = resampled_means([np.ones((4, 2)), np.ones((3, 2))], ["abcd", "cdx"], resamples=50)
    np.testing.assert_allclose(means, 1.0)
    # c and d are drawn from among themselves, in both groups alike.
    shared = np.array([[0.0], [1.0]])
    with_others = np.array([[5.0], [5.0], [0.0], [1.0]])
    first, second = resampled_means([with_others, shared], ["abcd", "cd"], resamples=50)
    np.testing.assert_allclose((10 + 2 * second) / 4, first)


def test_a_unit_is_in_a_group_once() -> None:
    with pytest.raises(ValueError, match="each once"):
        resampled_means([np.ones((2, 1))], ["aa"])


# --- Corrections, effect sizes, power --------------------------------------------------------------------------------


def test_holm_worked_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, and never less than the one before.
    found = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9, 0.5])), [1, 1, 1])
    np.testing.assert_allclose(holm(np.array([0.2])), [0.2])


def test_holm_rejects_what_stepping_down_rejects() -> None:
    """The procedure itself: the smallest against alpha / m, the next against alpha / (m - 1), until one fails."""
    generator = np.random.default_rng(3)
    for _ in range(200):
        p = generator.beta(0.5, 3, size=6)
        rejected = set()
        for step, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (6 - step):
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(holm(p) <= 0.05).tolist()) == rejected


def test_cohens_h_of_known_shares() -> None:
    # Cohen (1988), table 6.2.2: 2 arcsin of the root of 0.50 is 1.571, of 0.25 is 1.047.
    assert cohens_h(0.5, 0.25) == pytest.approx(1.571 - 1.047, abs=1e-3)
    assert cohens_h(0.25, 0.5) == -cohens_h(0.5, 0.25)
    assert cohens_h(1.0, 0.0) == pytest.approx(np.pi)


@pytest.mark.parametrize(("documents", "gain", "discordance"), [(50, 0.2, 0.3), (200, 0.08, 0.2), (40, 0.25, 0.25)])
def test_the_power_of_mcnemars_test_is_what_a_simulation_finds(documents: int, gain: float, discordance: float) -> None:
    generator = np.random.default_rng(0)
    wins, losses = (discordance + gain) / 2, (discordance - gain) / 2
    drawn = generator.multinomial(documents, [wins, losses, 1 - discordance], size=4000)
    found = [
        up > down and mcnemar(np.repeat([1, 0, 0], counts), np.repeat([0, 1, 0], counts)) <= 0.05
        for counts in drawn.tolist()
        for up, down, _ in [counts]
    ]
    expected = mcnemar_power(documents, gain, discordance)
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 4000))


def test_the_power_is_the_sum_over_all_that_can_happen() -> None:
    documents, gain, discordance = 9, 0.5, 0.7
    wins, losses = (discordance + gain) / 2, (discordance - gain) / 2
    total = 0.0
    for up, down in itertools.product(range(documents + 1), repeat=2):
        if up + down > documents or up <= down:
            continue
        p = sum(math.comb(up + down, n) for n in range(down + 1)) / 2 ** (up + down - 1)
        if p <= 0.05:
            ways = math.comb(documents, up) * math.comb(documents - up, down)
            total += ways * wins**up * losses**down * (1 - discordance) ** (documents - up - down)
    assert mcnemar_power(documents, gain, discordance) == pytest.approx(total)


def test_the_detectable_gain_has_the_power_that_is_asked_for() -> None:
    for documents, discordance in [(57, 0.1), (200, 0.2), (1000, 0.05), (10_000, 0.3)]:
        gain = detectable(documents, discordance)
        assert gain is not None
        assert mcnemar_power(documents, gain, max(gain, discordance)) == pytest.approx(0.8, abs=2e-3)
    # Connor's (1987) formula, which takes the number that differs for known and the test for normal, is near where
    # there are many.
    gain = detectable(10_000, 0.3)
    assert gain is not None
    needed = (1.95996 * 0.3**0.5 + 0.84162 * (0.3 - gain**2) ** 0.5) ** 2 / gain**2
    assert needed == pytest.approx(10_000, rel=0.03)
    # Five documents, all wins, have p = 2 / 2^5 > 0.05.
    assert detectable(5, 0.5) is None
    assert detectable(6, 0.0) is not None


def test_the_detectable_mean_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(1)
    documents, spread = 400, 0.7
    gain = detectable_mean(spread / documents**0.5)
    means = gain + generator.normal(size=20_000) * spread / documents**0.5
    assert np.mean(np.abs(means) > 1.95996 * spread / documents**0.5) == pytest.approx(0.8, abs=0.01)
