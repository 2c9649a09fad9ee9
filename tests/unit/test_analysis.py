"""What is said of a grid, against values counted by hand and slow loops, and on maps with a planted cell or none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from tests.unit.grids import BEST, all_cells, as_errors, choice_grid, counts_of, hand_grid, text_grid
from xtransplant.analysis import (
    analyze,
    best_rows,
    bound_rows,
    components,
    effect,
    layer_curves,
    trust_rows,
)
from xtransplant.grid import Grid, pool, union
from xtransplant.stats import false_discovery, mcnemar, sign_flip_max_t
from xtransplant.types import Cell, Component, XTransplantError

FFN = Component.ffn
FOUR = all_cells(2, [FFN])  # 0>0, 0>1, 1>0, 1>1


def by_hand(**changes: Any) -> Grid:
    scores = [[1, 0, 1, 1], [1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 0]]
    return hand_grid(scores, [1, 0, 0, 0], FOUR, 2, **changes)


# --- each cell


def test_scores_are_compared_with_vanilla_on_the_same_documents() -> None:
    found = effect(by_hand(), FFN)
    assert found is not None
    assert found.mean.tolist() == [0.5, 0.0, 0.75, 0.75]
    assert found.gain.tolist() == [0.25, -0.25, 0.5, 0.5]
    # Documents that changed: 1 up; 1 down; 2 up; 2 up.
    assert found.p.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert found.q.tolist() == false_discovery(found.p).tolist()
    # Equal gains: the smallest target layer first.
    assert [found.cells[n][1:] for n in found.ranked()] == [(1, 0), (1, 1), (0, 0), (0, 1)]
    assert [found.cells[n][1:] for n in found.ranked(best=False)] == [(0, 1), (0, 0), (1, 0), (1, 1)]


def test_of_equal_cells_in_a_target_layer_the_largest_source_comes_first() -> None:
    found = effect(hand_grid([[1, 1, 1, 1]] * 3, [0, 0, 0], FOUR, 2), FFN)
    assert found is not None
    assert [found.cells[n][1:] for n in found.ranked()] == [(1, 0), (0, 0), (1, 1), (0, 1)]


def test_tests_are_those_of_stats() -> None:
    grid = choice_grid(seed=3)
    found = effect(grid, Component.attn, permutations=300, seed=5)
    assert found is not None
    attn = [n for n, cell in enumerate(grid.cells) if cell.component is Component.attn]
    assert found.p.tolist() == pytest.approx([mcnemar(grid.scores[0][:, n], grid.vanilla[0]) for n in attn])
    # The family is the whole grid, the other component's cells too.
    flips = sign_flip_max_t(grid.scores[0] - grid.vanilla[0][:, None], permutations=300, seed=5)
    assert found.adjusted.tolist() == flips.adjusted[attn].tolist()


def test_a_metric_that_is_better_when_lower_is_turned() -> None:
    scores = [[3.0, 1.0, 2.0, 2.0], [3.0, 2.0, 2.0, 2.0], [3.5, 1.0, 2.0, 2.0]]
    grid = hand_grid(scores, [2, 2, 2], FOUR, 2, metrics=["loss"], higher_is_better={"loss": False})
    found = effect(grid, FFN)
    assert found is not None
    assert found.mean.tolist() == pytest.approx([9.5 / 3, 4 / 3, 2, 2])
    assert found.gain.tolist() == pytest.approx([-3.5 / 3, 2 / 3, 0, 0])
    assert found.cells[found.ranked()[0]] == Cell(FFN, 0, 1)
    assert found.p[2] == found.adjusted[3] == 1.0
    curve = layer_curves(grid, FFN)["source"]
    assert curve["best"] == pytest.approx([4 / 3, 2])
    assert curve["union"] == pytest.approx([4 / 3, 2])
    assert all(
        low <= mean <= high
        for low, mean, high in zip(curve["mean_low"], curve["mean"], curve["mean_high"], strict=True)
    )
    analysis = analyze(grid)
    assert analysis["components"]["ffn"]["winner"]["in_sample"] == pytest.approx(2 / 3)


def test_errors_give_what_scores_give() -> None:
    grid, control = choice_grid(num_choices=(2, 4, 3)), choice_grid(num_choices=(2, 4, 3), best=None, control="noise")
    one, other = analyze(grid, [control]), analyze(as_errors(grid), [as_errors(control)])
    for name, found in one["components"].items():
        turned = other["components"][name]
        for key in ("cells", "summary", "reliability", "winner", "best", "worst"):
            for a, b in zip(numbers(found[key]), numbers(turned[key]), strict=True):
                assert b == pytest.approx(a, abs=1e-5) or b == pytest.approx(1 - a, abs=1e-5)
    for row, turned in zip(one["controls"], other["controls"], strict=True):
        for key in ("above", "above_low", "above_high", "best_gain", "mean_gain", "reference_best_gain"):
            assert turned[key] == pytest.approx(row[key], abs=1e-6)


def numbers(value: Any) -> list[float]:
    """All numbers in JSON values, in order; None as 0."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [0.0 if value is None else float(value)]


def test_log_probabilities_are_of_the_right_choice_normalised_and_raw() -> None:
    grid = choice_grid(num_choices=(2, 4, 3), seed=1)
    assert grid.logprob is not None and grid.vanilla_logprob is not None
    raw, normalised = np.zeros((2, len(grid.documents), 32))
    for document, gold in enumerate(grid.gold):
        assert gold is not None
        count = counts_of(grid)[document]
        before = grid.vanilla_logprob[document, :count]
        for n in range(32):
            after = grid.logprob[document, n, :count]
            raw[document, n] = after[gold] - before[gold]
            normalised[document, n] = log_softmax(after)[gold] - log_softmax(before)[gold]
    for quantity, expected in (("logprob_raw", raw), ("logprob", normalised)):
        found = effect(grid, FFN, quantity, permutations=200)  # type: ignore[arg-type]
        assert found is not None
        ffn = [n for n, cell in enumerate(grid.cells) if cell.component is FFN]
        assert np.allclose(found.gain, expected.mean(axis=0)[ffn], atol=1e-5)
        assert np.allclose(found.adjusted, sign_flip_max_t(expected, permutations=200).adjusted[ffn], atol=0.006)


def test_documents_without_a_single_right_choice_have_no_log_probability() -> None:
    grid = choice_grid(documents=6)
    assert grid.choice_scores is not None
    grid.choice_scores[0, :2] = 1
    grid.choice_scores[0, 2:] = 0
    found = effect(grid, FFN, "logprob")
    assert found is not None and found.seen.tolist() == [5] * 16
    assert effect(text_grid(), FFN, "logprob") is None


def test_a_choice_of_probability_zero_has_no_gain_to_average() -> None:
    grid = choice_grid(documents=8)
    assert grid.logprob is not None
    gold = grid.gold[3]
    grid.logprob[3, 2, gold] = -np.inf
    found = effect(grid, FFN, "logprob")
    assert found is not None
    assert (found.seen[2], found.complete[2], found.complete[3]) == (7, False, True)
    json.dumps(analyze(grid), allow_nan=False)


def test_rounding_is_no_change() -> None:
    grid = choice_grid(documents=12)
    assert grid.logprob is not None and grid.vanilla_logprob is not None
    grid.logprob[:, 0] = grid.vanilla_logprob + np.float32(2e-5)
    found = effect(grid, FFN, "logprob_raw")
    assert found is not None
    assert (found.gain[0], found.p[0], found.adjusted[0]) == (0.0, 1.0, 1.0)


def test_cells_not_seen_on_all_documents_take_no_part() -> None:
    grid = by_hand()
    # A round on one document, then the cells that are left on three.
    grid.scores[0][1:, 2] = np.nan
    grid.scores[0][:, 1] = np.nan
    found = effect(grid, FFN)
    assert found is not None
    assert found.seen.tolist() == [4, 0, 1, 4]
    # Vanilla has the first document too.
    assert found.gain.tolist() == pytest.approx([0.25, np.nan, 0.0, 0.5], nan_ok=True)
    assert np.isnan(found.adjusted).tolist() == [False, True, True, False]
    # The document that helped to choose the cells tests nothing.
    alone = effect(hand_grid(grid.scores[0][1:, [0, 3]].tolist(), [0, 0, 0], [FOUR[0], FOUR[3]], 2), FFN)
    assert alone is not None and found.adjusted[[0, 3]].tolist() == alone.adjusted.tolist()
    assert [found.cells[n] for n in found.ranked()] == [FOUR[3], FOUR[0]]
    analysis = analyze(grid)
    assert (analysis["documents"], analysis["fresh"]) == (4, 3)
    assert analysis["components"]["ffn"]["summary"]["score"]["complete"] == 2
    assert analysis["components"]["ffn"]["curves"]["source"]["cells"] == [1, 1]


def test_nothing_seen_is_no_error() -> None:
    grid = by_hand()
    grid.scores[:] = np.nan
    grid.scores[0][:, 0] = 1
    other = hand_grid(np.full((4, 4), np.nan).tolist(), [1, 0, 0, 0], [Cell(Component.attn, *c[1:]) for c in FOUR], 2)
    both = Grid(
        grid.meta,
        grid.cells + other.cells,
        grid.documents,
        np.concatenate([grid.scores, other.scores], axis=2),
        grid.vanilla,
    )
    analysis = analyze(both)
    nothing = analysis["components"]["attn"]
    assert (nothing["best"], nothing["winner"], nothing["reliability"]) == ([], None, {"score": None})
    assert nothing["curves"]["source"]["mean"] == [None, None]
    assert nothing["summary"]["score"]["mean"] is None
    json.dumps(analysis, allow_nan=False)


def test_one_document_is_no_error() -> None:
    analysis = analyze(hand_grid([[1, 0, 1, 1]], [0], FOUR, 2))
    assert analysis["components"]["ffn"]["winner"] is None
    assert analysis["components"]["ffn"]["reliability"]["score"] is None


# --- curves


def test_curves_by_hand() -> None:
    grid = by_hand()
    grid.choice_scores = np.array([[1, 0]] * 4, dtype=np.float32)
    curves = layer_curves(grid, FFN)
    source, target = curves["source"], curves["target"]
    assert (source["layer"], source["depth"], source["cells"]) == ([0, 1], [0.0, 1.0], [2, 2])
    assert source["mean"] == [0.25, 0.75]
    assert source["best"] == [0.5, 0.75]
    assert source["union"] == [0.5, 1.0]
    assert target["mean"] == [0.625, 0.375]
    assert target["union"] == [1.0, 0.75]
    assert source["chance"] == [0.75, 0.75]
    assert source["logprob"] == [None, None]


def test_curves_are_the_loop_with_intervals_around() -> None:
    grid = choice_grid(num_layers=3, components=[FFN], best=Cell(FFN, 2, 1))
    nats = effect(grid, FFN, "logprob")
    assert nats is not None
    curves = layer_curves(grid, FFN)
    for side in ("source", "target"):
        for layer in range(3):
            columns = [n for n, cell in enumerate(grid.cells) if getattr(cell, side) == layer]
            found = {name: values[layer] for name, values in curves[side].items()}
            assert found["mean"] == pytest.approx(grid.scores[0][:, columns].mean(), abs=1e-6)
            assert found["union"] == pytest.approx(np.mean([max(row[columns]) for row in grid.scores[0]]))
            assert found["logprob"] == pytest.approx(nats.gain[columns].mean())
            assert found["mean_low"] < found["mean"] < found["mean_high"]
            assert found["union_low"] <= found["union"] <= found["union_high"]


def test_layers_without_cells_are_gaps() -> None:
    cells = [Cell(FFN, 3, target) for target in range(4)]
    curves = layer_curves(hand_grid([[1, 0, 1, 0], [0, 0, 1, 1]], [0, 0], cells, 4, pairs="source_last"), FFN)
    assert curves["source"]["mean"] == [None, None, None, 0.5]
    assert curves["target"]["mean"] == [0.5, 0.0, 1.0, 0.5]


# --- all of it


def test_a_planted_cell_is_found_and_trusted() -> None:
    analysis = analyze(choice_grid(documents=60, seed=2))
    ffn, attn = analysis["components"]["ffn"], analysis["components"]["attn"]
    best = ffn["best"][0]
    assert (best["source"], best["target"]) == (BEST.source, BEST.target)
    assert best["adjusted"] < 0.01 and best["q"] < 0.01 and best["logprob_adjusted"] < 0.01
    assert (ffn["summary"]["score"]["better_adjusted"], attn["summary"]["score"]["better_adjusted"]) == (1, 0)
    assert ffn["winner"]["held_out"] > 0.3 and ffn["winner"]["agreement"] == 1.0
    assert attn["winner"]["held_out"] < attn["winner"]["in_sample"]
    assert ffn["reliability"]["score"]["pearson"]["corrected"] > 0.8
    assert len(ffn["best"]) == len(ffn["worst"]) == 10
    assert ffn["worst"][0]["gain"] <= ffn["worst"][1]["gain"]
    assert analysis["upper_bounds"]["components"]["ffn"]["union"]["cells"] == 16


@pytest.mark.parametrize("quantity", ["score", "logprob"])
def test_maps_without_effect_are_rarely_called_otherwise(quantity: Any) -> None:
    """Vanilla is as the cells are: the family-wise error is about 5 %."""
    rejected = 0
    for seed in range(100):
        grid = choice_grid(num_layers=3, components=[FFN], best=None, skill=1.0, seed=seed)
        # The maker of grids gives vanilla the same skill as the cells.
        found = effect(grid, FFN, quantity, permutations=199, seed=seed)
        assert found is not None
        rejected += bool((found.adjusted <= 0.05).any())
    assert rejected <= 14  # Binomial(100, 0.05) exceeds it once in 10,000


def test_it_is_json_and_deterministic() -> None:
    grid = choice_grid(unseen_cells=0.01)
    first = json.dumps(analyze(grid), allow_nan=False)
    assert first == json.dumps(analyze(grid), allow_nan=False)
    assert first != json.dumps(analyze(grid, seed=1), allow_nan=False)
    assert components(grid) == [Component.ffn, Component.attn]


def test_text_grids_are_analyzed_without_log_probabilities() -> None:
    analysis = analyze(text_grid())
    ffn = analysis["components"]["ffn"]
    assert set(ffn["summary"]) == {"score"}
    assert "logprob_gain" not in ffn["cells"]
    assert best_rows(analysis)[1][0][-2:] == ["-", "-"]


def test_pooled_languages_of_one_question_count_once() -> None:
    """Three copies of a language pair are no more evidence than one."""
    one = choice_grid(seed=4, documents=20)
    copies = pool([choice_grid(seed=4, documents=20, language_pair=["en", code]) for code in ("de", "sw", "tr")])
    alone, together = effect(one, FFN, "logprob"), effect(copies, FFN, "logprob")
    assert alone is not None and together is not None
    assert together.gain.tolist() == pytest.approx(alone.gain.tolist())
    # Keys are sorted as text, so the flips fall on other documents: the same up to the flips drawn.
    assert np.allclose(together.p, alone.p, atol=0.05)
    intervals = [analyze(grid)["vanilla"] for grid in (one, copies)]
    assert intervals[1]["score"] == pytest.approx(intervals[0]["score"])
    assert intervals[1]["high"] - intervals[1]["low"] == pytest.approx(
        intervals[0]["high"] - intervals[0]["low"], abs=0.06
    )
    assert (analyze(copies)["documents"], analyze(copies)["units"]) == (60, 20)


# --- controls


def test_a_control_is_compared_on_the_same_cells_and_documents() -> None:
    grid = choice_grid(seed=5)
    control = choice_grid(seed=5, best=None, control="random_document")
    few = [cell for cell in control.cells if cell.source < 2]
    columns = control.columns(few)
    assert control.logprob is not None
    smaller = Grid(
        control.meta,
        few,
        control.documents,
        control.scores[:, :, columns],
        control.vanilla,
        choice_scores=control.choice_scores,
    ).take(control.documents[:25])
    ffn, attn = analyze(grid, [smaller])["controls"]
    cells = [cell for cell in few if cell.component is FFN]
    real = grid.take(grid.documents[:25])
    assert (ffn["cells"], ffn["documents"], attn["component"]) == (8, 25, "attn")
    assert ffn["score"] == pytest.approx(union(smaller, smaller.columns(cells)).mean())
    assert ffn["reference"] == pytest.approx(union(real, real.columns(cells)).mean())
    assert ffn["above"] == pytest.approx(ffn["reference"] - ffn["score"])
    assert ffn["above_low"] <= ffn["above"] <= ffn["above_high"]
    assert ffn["chance"] == pytest.approx(1 - 0.75**8)
    assert ffn["best_gain"] == pytest.approx(
        max(smaller.scores[0][:, n].mean() for n in smaller.columns(cells)) - smaller.vanilla[0].mean()
    )


def test_what_is_no_control_is_refused() -> None:
    grid = by_hand()
    with pytest.raises(XTransplantError, match="not a control"):
        analyze(grid, [by_hand()])
    with pytest.raises(XTransplantError, match="model_name"):
        analyze(grid, [by_hand(control="noise", model_name="other")])
    with pytest.raises(XTransplantError, match="1 of its 5 documents are not there"):
        analyze(grid, [hand_grid([[1, 1, 1, 1]] * 5, [0] * 5, FOUR, 2, control="noise")])
    unseen = by_hand(control="noise")
    unseen.scores[0][0] = np.nan
    with pytest.raises(XTransplantError, match="made with a budget"):
        analyze(grid, [unseen])


# --- as text


def test_rows_are_as_long_as_their_headers_and_hold_the_values() -> None:
    grid = choice_grid()
    analysis = analyze(grid, [choice_grid(best=None, control="noise")])
    for header, rows in (
        best_rows(analysis, 3),
        trust_rows(analysis),
        bound_rows(analysis),
    ):
        assert rows and {len(row) for row in rows} == {len(header)}
        assert all(isinstance(cell, str) for row in rows for cell in row)
    _, best = best_rows(analysis, 3)
    assert len(best) == 6
    first = analysis["components"]["ffn"]["best"][0]
    assert best[0][:3] == ["ffn 3>1", f"{first['score']:.3f}", f"{first['gain']:+.3f}"]
    assert [row[0] for row in bound_rows(analysis)[1]][-2:] == ["ffn", "attn"]
