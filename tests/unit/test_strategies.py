"""Strategies: what they choose and answer, against loops that are easy to read; no look at gold; the comparison."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.grids import BEST, all_cells, as_errors, choice_grid, counts_of, hand_grid, text_grid
from xtransplant import stats
from xtransplant.comparison import strategy_table
from xtransplant.grid import Grid, chance, ranked, union
from xtransplant.selection import Selection
from xtransplant.strategies import (
    FOR_GENERATION,
    answer,
    answer_text,
    evaluate_selection,
    respond,
    select,
)
from xtransplant.types import ONE_CELL, STRATEGIES, Cell, Component, XTransplantError

FFN, ATTN = Component.ffn, Component.attn
FIXED_CELL = {"fixed": ["ffn", 3, 1]}


def chosen(grid: Grid, strategy: str, **options: Any) -> Selection:
    if strategy == "fixed":
        options = {**FIXED_CELL, **options}
    (selection,) = select([grid], strategy, **options)
    return selection


def made(strategy: str, cells: Sequence[Cell], rule: dict[str, Any] | None = None) -> Selection:
    return Selection(strategy, list(cells), rule, False, (len(cells), len(cells)), [], [], [], None, 0.0)


@pytest.fixture(scope="module")
def sample() -> Grid:
    return choice_grid(documents=50, num_choices=(2, 3, 4), unseen_cells=0.1)


@pytest.fixture(scope="module")
def unseen() -> Grid:
    return choice_grid(documents=120, num_choices=(2, 3, 4), seed=1, first=1000, split="unseen")


# --- The paper's strategies ---------------------------------------------------------------------------------------


def test_overall_finds_the_planted_cell(sample: Grid) -> None:
    selection = chosen(sample, "overall")
    assert selection.cells == [BEST]
    assert selection.rule is None
    column = sample.cells.index(BEST)
    assert selection.score == pytest.approx(float(sample.scores[0][:, column].mean()))
    assert selection.vanilla == pytest.approx(float(sample.vanilla[0].mean()))
    assert selection.candidates == (29, 32)
    assert selection.documents == sample.documents
    assert selection.grids == [
        {
            "folder": None, "config_hash": "c0ffee", "grid_sha256": sample.sha256, "model_name": "tiny",
            "weights": {"files": {"model.safetensors": "ab12"}, "adapter": None}, "task_name": "colour",
            "language_pair": ["en", "sw"], "num_layers": 4, "intervention": {"site": "module"}, "control": None,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("strategy", "allowed"),
    [
        ("overall", lambda cell: True),
        ("source_last", lambda cell: cell.source == 3),
        ("target_first", lambda cell: cell.target == 0),
    ],
)
def test_the_best_cell_of_a_set_is_chosen(strategy: str, allowed: Any, seed: int) -> None:
    # Few documents, so that there are ties.
    grid = choice_grid(documents=8, best=None, seed=seed, unseen_cells=0.2)
    best: tuple[Any, Cell] | None = None
    for column, cell in enumerate(grid.cells):
        if allowed(cell) and not np.isnan(grid.scores[0][:, column]).any():
            key = (int(grid.scores[0][:, column].sum()), -cell.target, cell.source, cell.component is FFN)
            if best is None or key > best[0]:
                best = (key, cell)
    assert best is not None
    assert chosen(grid, strategy).cells == [best[1]]


def test_a_component_may_be_named(sample: Grid) -> None:
    for component in (ATTN, "attn"):
        selection = chosen(sample, "overall", component=component)
        assert selection.cells[0].component is ATTN
        assert selection.candidates[0] < 29


def test_a_cell_that_was_not_looked_at_on_all_documents_is_no_candidate() -> None:
    nan = float("nan")
    grid = hand_grid([[1, 0, 0, 0], [nan, 1, 0, 0]], [0, 0], all_cells(2, [FFN]), 2)
    selection = chosen(grid, "overall")
    assert selection.cells == [grid.cells[1]]
    assert selection.candidates == (3, 4)
    nothing = hand_grid([[1, 0], [nan, nan]], [0, 0], all_cells(2, [FFN])[:2], 2)
    with pytest.raises(XTransplantError, match="overall has no cell that was seen on all documents"):
        chosen(nothing, "overall")


@pytest.mark.parametrize(
    ("fixed", "cell"),
    [
        ("understanding", Cell(ATTN, 3, 0)),
        ("generation", Cell(FFN, 0, 0)),
        ("culture", Cell(FFN, 0, 0)),
        (["ffn", -1, "first"], Cell(FFN, 3, 0)),
        ([ATTN, 2, 1], Cell(ATTN, 2, 1)),
    ],
)
def test_fixed_cells(fixed: Any, cell: Cell) -> None:
    grid = choice_grid(documents=10)
    selection = chosen(grid, "fixed", fixed=fixed)
    assert selection.cells == [cell]
    assert selection.score == pytest.approx(float(grid.scores[0][:, grid.cells.index(cell)].mean()))
    json.dumps(selection.as_dict())


def test_a_fixed_cell_needs_no_sample() -> None:
    selection = chosen(choice_grid(documents=10, components=[FFN]), "fixed", fixed="understanding")
    assert selection.cells == [Cell(ATTN, 3, 0)]
    assert selection.score is None


@pytest.mark.parametrize("fixed", [None, "reading", ["ffn", 1], ["mlp", 0, 0], ["ffn", 0, 4]])
def test_a_fixed_cell_that_is_none_is_refused(fixed: Any) -> None:
    with pytest.raises(XTransplantError, match=r"fixed=|out of range"):
        chosen(choice_grid(documents=4), "fixed", fixed=fixed)


def test_pooled_languages_choose_one_cell_and_others_one_each() -> None:
    # The two languages disagree; together the middle cell is best.
    cells = all_cells(2, [FFN])[:3]
    sw = hand_grid([[1, 1, 0]] * 2 + [[1, 0, 0]], [0, 0, 0], cells, 2)
    de = hand_grid([[0, 1, 1]] * 2 + [[0, 0, 1]], [0, 0, 0], cells, 2, language_pair=["en", "de"], tasks=["colour_de"])
    assert [selection.cells for selection in select([sw, de], "overall")] == [[cells[0]], [cells[2]]]
    (together,) = select([sw, de], "overall", pooled=True, folders=["a", "b"])
    assert together.cells == [cells[1]]
    assert together.pooled
    assert together.documents == sw.documents + de.documents
    assert [facts["folder"] for facts in together.grids] == ["a", "b"]


# --- Cross-validation ---------------------------------------------------------------------------------------------


def test_a_true_gain_passes_and_noise_does_not(sample: Grid) -> None:
    passed = chosen(sample, "cross_validated")
    assert passed.cells == [BEST]
    assert passed.rule is not None and passed.rule["p"] < 0.01
    noise = [chosen(choice_grid(documents=30, best=None, seed=seed), "cross_validated") for seed in range(40)]
    # The overall cell looks better than vanilla on its own sample nearly always; held out, rarely.
    assert sum(bool(selection.cells) for selection in noise) <= 8
    refused = next(selection for selection in noise if not selection.cells)
    assert refused.score == refused.vanilla
    assert refused.rule is not None and refused.rule["p"] > 0.05


def test_held_out_gain_is_that_of_cells_chosen_on_the_other_folds() -> None:
    grid = choice_grid(documents=6, num_layers=3, best=None, seed=3)
    selection = chosen(grid, "cross_validated", folds=6)
    gains = []
    for left_out in range(6):
        others = [row for row in range(6) if row != left_out]
        best = max(
            range(len(grid.cells)),
            key=lambda c: (
                sum(grid.scores[0][row, c] for row in others),
                -grid.cells[c].target,
                grid.cells[c].source,
                grid.cells[c].component is FFN,
            ),
        )
        gains.append(int(grid.scores[0][left_out, best] - grid.vanilla[0][left_out]))
    up, down = gains.count(1), gains.count(-1)
    p = sum(math.comb(up + down, k) for k in range(up, up + down + 1)) / 2 ** (up + down)
    assert selection.rule is not None
    assert selection.rule["held_out_gain"] == pytest.approx(sum(gains) / 6)
    assert selection.rule["p"] == pytest.approx(p)


def test_one_question_in_several_languages_counts_once() -> None:
    """Copies of a document in other languages add nothing to the evidence."""
    cells = all_cells(2, [FFN])[:1]
    once = hand_grid([[1]] * 4, [0] * 4, cells, 2)
    copies = [hand_grid([[1]] * 4, [0] * 4, cells, 2, language_pair=["en", str(number)]) for number in range(5)]
    (pooled,) = select(copies, "cross_validated", pooled=True)
    assert pooled.rule is not None
    alone = chosen(once, "cross_validated").rule
    assert alone is not None
    # One of the 16 ways to give four documents signs; 2,000 were drawn.
    assert pooled.rule["p"] == alone["p"] == pytest.approx(1 / 16, abs=0.02)
    assert chosen(once, "cross_validated", alpha=0.1).cells == cells
    with pytest.raises(XTransplantError, match="needs two documents"):
        chosen(hand_grid([[1]], [0], cells, 2), "cross_validated")


def test_what_a_budget_chose_is_tested_on_the_documents_that_had_no_say() -> None:
    """On maps without any effect, whose cells the first half of the documents chose."""
    held_out, taken = [], 0
    for seed in range(60):
        grid = choice_grid(documents=60, num_layers=4, best=None, skill=1.0, seed=seed)
        first = grid.quality[:30].mean(axis=0)
        grid.scores[:, 30:, first < np.quantile(first, 0.8)] = np.nan
        assert grid.fresh.tolist() == [False] * 30 + [True] * 30
        selection = chosen(grid, "cross_validated", alpha=0.1)
        assert selection.rule is not None and selection.rule["tested_on"] == 30
        held_out.append(selection.rule["held_out_gain"])
        taken += bool(selection.cells)
    assert abs(np.mean(held_out)) < 3 * np.std(held_out) / 60**0.5
    assert taken <= 13  # Binomial(60, 0.1) exceeds it once in 500


def test_the_router_learns_how_far_a_gain_is_to_be_trusted() -> None:
    """Without any effect the best cells' gains on their own documents say nothing: nothing is lost on others."""
    lost = []
    for seed in range(12):
        sample = choice_grid(documents=40, best=None, skill=1.0, seed=seed)
        unseen = choice_grid(documents=200, best=None, skill=1.0, seed=100 + seed, first=1000)
        selection = chosen(sample, "router", candidates="all")
        assert selection.score is not None
        lost.append(evaluate_selection(selection, unseen).mean() - unseen.vanilla[0].mean())
    assert np.mean(lost) > -0.03


# --- Answers ------------------------------------------------------------------------------------------------------

ROWS = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25], [0.05, 0.9, 0.05]])
THREE = [Cell(FFN, 0, 0), Cell(FFN, 0, 1), Cell(FFN, 1, 0)]


def test_one_cell_answers_with_its_row() -> None:
    for strategy in ONE_CELL:
        assert np.array_equal(answer(made(strategy, THREE[:1]), ROWS[:2]), ROWS[1])
        assert np.array_equal(answer(made(strategy, []), ROWS[:1]), ROWS[0])


def test_answers_of_several_rows_by_hand() -> None:
    # Margins, nats: log of 5/3, 7/2, 8/7, 18.
    assert np.array_equal(answer(made("margin", THREE), ROWS), ROWS[3])
    assert np.array_equal(answer(made("margin", THREE[:2]), ROWS[:3]), ROWS[1])
    assert np.array_equal(answer(made("entropy", THREE), ROWS), ROWS[3])
    # Rows 0 and 2 vote for choice 0.
    assert answer(made("vote", THREE), ROWS) == pytest.approx((ROWS[0] + ROWS[2]) / 2)
    assert answer(made("mean_logprob", THREE), ROWS) == pytest.approx(ROWS.mean(axis=0))
    # The probabilities of the choices are a small part of all: what counts is their share.
    shifted = ROWS + np.array([[0.0], [-9.0], [-1.0], [-4.0]])
    for strategy in ("entropy", "mean_logprob", "band"):
        assert answer(made(strategy, THREE), shifted).argmax() == answer(made(strategy, THREE), ROWS).argmax()


def test_ties_go_to_the_earliest_row() -> None:
    tied = np.log([[0.6, 0.4], [0.4, 0.6], [0.6, 0.4]])
    for strategy in ("margin", "entropy"):
        assert np.array_equal(answer(made(strategy, THREE[:2]), tied), tied[0])
    # One vote each: vanilla's.
    assert np.array_equal(answer(made("vote", THREE[:1]), tied[:2]), tied[0])
    # Two votes each: that of the row which is first.
    assert answer(made("vote", THREE), np.log([[0.4, 0.6], [0.7, 0.3], [0.8, 0.2], [0.1, 0.9]])).argmax() == 1


def test_a_single_choice_and_one_of_no_probability_are_answered() -> None:
    with np.errstate(divide="ignore"):
        none = np.log([[0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    for strategy in ("margin", "entropy", "vote", "mean_logprob"):
        assert answer(made(strategy, THREE[:1]), np.array([[-3.0], [-2.0]])).shape == (1,)
        assert not np.isnan(answer(made(strategy, THREE[:1]), none)).any()


def test_choices_that_a_document_lacks_do_not_matter(sample: Grid) -> None:
    for strategy in ("margin", "entropy", "vote", "mean_logprob", "band", "router"):
        selection = chosen(sample, strategy)
        cells = len(selection.cells)
        rows = np.log(np.random.default_rng(0).dirichlet([1, 1], size=1 + cells))
        padded = np.column_stack([rows, np.full((1 + cells, 2), np.nan)])
        assert np.array_equal(answer(selection, padded), [*answer(selection, rows), np.nan, np.nan], equal_nan=True)


def test_texts_are_voted_on() -> None:
    vote = made("vote", THREE)
    assert answer_text(vote, ["a", "b", "c", "b"]) == 1
    assert answer_text(vote, ["a", "b", "b", "a"]) == 0
    assert answer_text(vote, ["a", "c", "b", "d"]) == 0
    assert answer_text(made("overall", THREE[:1]), ["a", "b"]) == 1
    assert answer_text(made("cross_validated", []), ["a"]) == 0


def test_wrong_numbers_of_responses_are_refused() -> None:
    with pytest.raises(XTransplantError, match=r"shape \(4, 3\) for vanilla and 2 cells"):
        answer(made("margin", THREE[:2]), ROWS)
    with pytest.raises(XTransplantError, match="3 texts for vanilla and 3 cells"):
        answer_text(made("vote", THREE), ["a"] * 3)


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - set(FOR_GENERATION)))
def test_strategies_that_need_choices_say_which_do_not(strategy: str) -> None:
    for act in (
        lambda: chosen(text_grid(), strategy),
        lambda: answer_text(made(strategy, THREE), ["a"] * 4),
        lambda: respond(made(strategy, [BEST]), text_grid()),
    ):
        with pytest.raises(
            XTransplantError,
            match=r"Without choices: overall, source_last, .*cross_validated; for generation also vote",
        ):
            act()


# --- The same answers on a grid, one document at a time -----------------------------------------------------------


@pytest.mark.parametrize("candidates", [3, 16, "all"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_grid_is_answered_as_live_responses_are(
    sample: Grid, unseen: Grid, strategy: str, candidates: int | str
) -> None:
    selection = chosen(sample, strategy, candidates=candidates)
    scores = evaluate_selection(selection, unseen)
    rows, choices = respond(selection, unseen)
    assert unseen.logprob is not None and unseen.vanilla_logprob is not None and unseen.choice_scores is not None
    columns = [unseen.cells.index(cell) for cell in selection.cells]
    for document in range(len(unseen.documents)):
        m = counts_of(unseen)[document]
        live = np.array([unseen.vanilla_logprob[document], *unseen.logprob[document, columns]])[:, :m]
        answered = answer(selection, live)
        assert int(answered.argmax()) == choices[document]
        # As the harness grades the log-probabilities it is handed.
        assert unseen.choice_scores[document, choices[document]] == scores[document]
        if rows[document] >= 0:
            assert np.array_equal(answered, live[rows[document]])


def test_generated_texts_are_answered_as_live_ones_are() -> None:
    grid, other = text_grid(), text_grid(seed=1, first=100)
    assert other.texts is not None and other.text is not None and other.vanilla_text is not None
    for strategy in FOR_GENERATION:
        selection = chosen(grid, strategy, candidates=5)
        scores = evaluate_selection(selection, other)
        _, texts = respond(selection, other)
        columns = [other.cells.index(cell) for cell in selection.cells]
        for document in range(len(other.documents)):
            live = [other.texts[number] for number in (other.vanilla_text[document], *other.text[document, columns])]
            row = answer_text(selection, live)
            assert live[row] == other.texts[texts[document]]
            # The first of the document's three texts is the right one.
            assert scores[document] == (live[row] == f"text {3 * document}")
            if strategy == "vote":
                assert Counter(live)[live[row]] == max(Counter(live).values())


@pytest.mark.parametrize("strategy", ["margin", "entropy", "vote", "mean_logprob", "router"])
def test_candidates_are_the_best_on_the_sample(sample: Grid, strategy: str) -> None:
    expected = [sample.cells[column] for column in ranked(sample)]
    for candidates, number in ((4, 4), (16, 16), (1000, 29), ("all", 29)):
        selection = chosen(sample, strategy, candidates=candidates)
        assert selection.cells == expected[:number]
        assert selection.rule is not None and selection.rule["candidates"] == candidates


def test_the_margin_and_the_lowest_entropy_are_what_they_say(sample: Grid, unseen: Grid) -> None:
    assert unseen.logprob is not None and unseen.vanilla_logprob is not None
    for strategy in ("margin", "entropy"):
        selection = chosen(sample, strategy, candidates=6)
        rows, _ = respond(selection, unseen)
        columns = [unseen.cells.index(cell) for cell in selection.cells]
        for document in range(len(unseen.documents)):
            values = []
            for logprobs in [unseen.vanilla_logprob[document], *unseen.logprob[document, columns]]:
                known = sorted((float(value) for value in logprobs if not math.isnan(value)), reverse=True)
                total = sum(math.exp(value) for value in known)
                entropy = -sum(math.exp(value) / total * math.log(math.exp(value) / total) for value in known)
                values.append(known[0] - known[1] if strategy == "margin" else -entropy)
            assert values[rows[document]] == pytest.approx(max(values))


# --- Bands and the router -----------------------------------------------------------------------------------------


def test_the_band_holds_its_region_and_no_other_band_is_better(sample: Grid) -> None:
    selection = chosen(sample, "band")
    assert selection.rule is not None
    inside = [
        cell
        for cell, seen in zip(sample.cells, sample.seen, strict=True)
        if seen
        and selection.rule["component"] in (None, cell.component.value)
        and selection.rule["source"][0] <= cell.source / 4 < selection.rule["source"][1]
        and selection.rule["target"][0] <= cell.target / 4 < selection.rule["target"][1]
    ]
    assert selection.cells == inside and BEST in inside
    thirds = [range(0, 2), range(2, 3), range(3, 4), range(0, 4)]
    scores = []
    for components in ([FFN], [ATTN], [FFN, ATTN]):
        for sources in thirds:
            for targets in thirds:
                cells = [
                    cell
                    for cell, seen in zip(sample.cells, sample.seen, strict=True)
                    if seen and cell.component in components and cell.source in sources and cell.target in targets
                ]
                if cells and not (len(sources) == len(targets) == 4):
                    _, choices = respond(made("band", cells), sample)
                    assert sample.choice_scores is not None
                    scores.append(float(sample.choice_scores[np.arange(50), choices].mean()))
    assert len(scores) > 30
    assert selection.score == pytest.approx(max(scores))


def test_the_router_beats_vanilla_by_taking_the_planted_cell(sample: Grid, unseen: Grid) -> None:
    selection = chosen(sample, "router")
    rows, _ = respond(selection, unseen)
    assert selection.cells[0] == BEST
    assert Counter(rows.tolist()).most_common(1)[0][0] == 1
    gain = evaluate_selection(selection, unseen).mean() - unseen.vanilla[0].mean()
    best = unseen.scores[0][:, unseen.cells.index(BEST)].mean() - unseen.vanilla[0].mean()
    assert gain > 0.6 * best


def test_the_router_is_a_rule_in_plain_numbers(sample: Grid, unseen: Grid) -> None:
    """Its probability, by hand from the record, is highest in the row that it takes."""
    selection = chosen(sample, "router", candidates=4)
    rule = json.loads(json.dumps(selection.as_dict()))["rule"]
    assert unseen.logprob is not None and unseen.vanilla_logprob is not None
    columns = [unseen.cells.index(cell) for cell in selection.cells]
    rows, _ = respond(selection, unseen)
    for document in range(20):
        m = counts_of(unseen)[document]
        live = np.array([unseen.vanilla_logprob[document], *unseen.logprob[document, columns]], dtype=float)[:, :m]
        shares = np.exp(live) / np.exp(live).sum(axis=1, keepdims=True)
        ordered = np.sort(live, axis=1)
        margin, entropy = ordered[:, -1] - ordered[:, -2], -(shares * np.log(shares)).sum(axis=1)
        answers = live.argmax(axis=1).tolist()
        counts = Counter(answers)
        winner = next(each for each in answers if counts[each] == max(counts.values()))
        logits = []
        for row, given in enumerate(answers):
            source, target = (0, 0) if row == 0 else selection.cells[row - 1][1:]
            features = {
                "margin": margin[row], "entropy": entropy[row], "vanilla_margin": margin[0],
                "vanilla_entropy": entropy[0], "share_agreeing": counts[given] / 5, "agrees_with_vote": given == winner,
                "agrees_with_vanilla": given == answers[0],
                "agrees_with_sure_vanilla": margin[0] * (given == answers[0]), "source_depth": source / 4,
                "target_depth": target / 4, "is_vanilla": row == 0, "sample_gain": rule["sample_gain"][row],
            }  # fmt: skip
            assert list(features) == rule["features"]
            scaled = zip(features.values(), rule["mean"], rule["scale"], rule["coefficients"], strict=True)
            logits.append(rule["intercept"] + sum((value - mean) / s * c for value, mean, s, c in scaled))
        assert logits[rows[document]] == pytest.approx(max(logits))


def test_a_router_with_nothing_to_learn_stays_with_vanilla() -> None:
    grid = choice_grid(documents=10)
    grid = replace(grid, scores=np.ones_like(grid.scores), vanilla=np.ones_like(grid.vanilla))
    selection = chosen(grid, "router")
    assert respond(selection, grid)[0].tolist() == [0] * 10


# --- No look at gold ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_do_not_depend_on_gold(sample: Grid, unseen: Grid, strategy: str) -> None:
    selection = chosen(sample, strategy)
    generator = np.random.default_rng(0)
    assert unseen.choice_scores is not None
    blind = replace(
        unseen,
        scores=generator.permuted(unseen.scores, axis=1),
        vanilla=generator.permuted(unseen.vanilla, axis=1),
        choice_scores=generator.permuted(unseen.choice_scores, axis=0),
    )
    for seen, other in zip(respond(selection, unseen), respond(selection, blind), strict=True):
        assert np.array_equal(seen, other)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_choice_depends_on_its_sample_alone_and_is_repeatable(sample: Grid, strategy: str) -> None:
    again = choice_grid(documents=50, num_choices=(2, 3, 4), unseen_cells=0.1)
    assert chosen(sample, strategy).as_dict() == chosen(again, strategy).as_dict()


# --- Records and refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_selection_survives_its_file(sample: Grid, unseen: Grid, strategy: str) -> None:
    selection = chosen(sample, strategy)
    record = json.loads(json.dumps(selection.as_dict()))
    assert record["format"] == 1
    again = Selection.from_dict(record)
    assert again.as_dict() == selection.as_dict()
    assert again.cells == selection.cells
    assert np.array_equal(evaluate_selection(again, unseen), evaluate_selection(selection, unseen))


def test_a_record_that_is_no_selection_is_refused(sample: Grid) -> None:
    record = chosen(sample, "overall").as_dict()
    for change in ({"format": 2}, {"strategy": "luck"}, {"cells": [["mlp", 0, 0]]}, {"cells": 3}, {"candidates": None}):
        with pytest.raises(XTransplantError, match="Not a selection"):
            Selection.from_dict(record | change)
    others: list[Any] = [[], None, {}, {"format": 1}]
    for other in others:
        with pytest.raises(XTransplantError, match="Not a selection"):
            Selection.from_dict(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 3}, "top: there is no such option"),
        ({"candidates": 0}, "candidates=0"),
        ({"candidates": "some"}, "candidates='some'"),
        ({"candidates": True}, "candidates=True"),
        ({"alpha": 1.0}, r"alpha=1\.0"),
        ({"folds": 1}, "folds=1"),
        ({"component": "mlp"}, "component='mlp'"),
        ({"component": Component.attn_as_released}, "it has cells of ffn, attn only"),
    ],
)
def test_options_that_make_no_sense_are_refused(sample: Grid, options: dict[str, Any], message: str) -> None:
    with pytest.raises(XTransplantError, match=message):
        chosen(sample, "vote", **options)


def test_an_unknown_strategy_is_refused(sample: Grid) -> None:
    with pytest.raises(XTransplantError, match=r"strategy=luck: .*overall, source_last"):
        chosen(sample, "luck")


def test_documents_selected_on_are_not_evaluated(sample: Grid) -> None:
    selection = chosen(sample, "overall")
    overlapping = choice_grid(documents=5, first=49, seed=2)
    with pytest.raises(XTransplantError, match=r"1 of 5 documents are among .*colour_sw/49.*split=unseen"):
        evaluate_selection(selection, overlapping)
    # Nor by another name, when languages are pooled.
    german: dict[str, Any] = {"language_pair": ["en", "de"], "tasks": ["colour_de"]}
    (pooled,) = select([sample, choice_grid(documents=5, num_choices=(4,), unseen_cells=0, **german)], "overall", True)
    with pytest.raises(XTransplantError, match="5 of 5 documents"):
        evaluate_selection(pooled, choice_grid(documents=5, first=45))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": "other"}, "model_name is 'other', not 'tiny'"),
        ({"model": {"files": {"model.safetensors": "cd34"}}}, "weights differs"),
        ({"intervention": {"site": "branch"}}, "site is 'branch'"),
        ({"control": "noise"}, "control is 'noise'"),
        ({"num_layers": 5}, "num_layers is 5"),
        ({"components": [ATTN], "best": None}, r"1 of 1 cells are not in the grid, e\.g\. ffn 3>1"),
    ],
)
def test_unlike_grids_are_refused(sample: Grid, change: dict[str, Any], message: str) -> None:
    with pytest.raises(XTransplantError, match=message):
        evaluate_selection(chosen(sample, "overall"), choice_grid(documents=5, first=900, **change))


def test_a_cell_that_was_not_looked_at_cannot_be_evaluated(sample: Grid) -> None:
    other = choice_grid(documents=6, first=900)
    other.scores[0, 3, other.cells.index(BEST)] = np.nan
    with pytest.raises(XTransplantError, match="ffn 3>1 was not looked at on all documents"):
        evaluate_selection(chosen(sample, "overall"), other)


# --- The comparison -----------------------------------------------------------------------------------------------


def test_the_table_has_every_strategy_with_its_numbers(sample: Grid, unseen: Grid) -> None:
    rows = strategy_table(sample, unseen)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert len({tuple(row) for row in rows}) == 1
    named = {row["name"]: row for row in rows}
    assert list(named) == [
        *("vanilla", "overall", "source_last", "target_first"),
        *("fixed understanding", "fixed generation, culture"),
        *("cross_validated", "margin", "entropy", "vote", "mean_logprob", "band", "router"),
        *("best single pair", "median pair", "upper bound", "source_last upper bound", "target_first upper bound"),
    ]
    vanilla, bound = unseen.vanilla[0].mean(), union(unseen, range(32)).mean()
    assert named["vanilla"]["score"] == pytest.approx(float(vanilla))
    assert named["upper bound"]["score"] == pytest.approx(float(bound))
    assert named["upper bound"]["chance"] == chance(unseen, 32)
    assert named["upper bound"]["gap_closed"] == named["upper bound"]["gap_low"] == 1.0
    assert [row["kind"] for row in rows] == ["baseline"] + ["strategy"] * 12 + ["oracle"] * 5
    for name, row in named.items():
        if row["kind"] == "strategy":
            strategy, _, fixed = name.partition(" ")
            [*same, selection] = [
                chosen(sample, strategy, **({"fixed": each} if each else {})) for each in fixed.split(", ")
            ]
            assert all(other.cells == selection.cells for other in same)
            scores = evaluate_selection(selection, unseen)
            assert row["score"] == pytest.approx(float(scores.mean()))
            assert row["sample_score"] == selection.score
            assert row["cells"] == selection.as_dict()["cells"]
            gain = scores - unseen.vanilla[0]
            assert row["difference"] == pytest.approx(float(gain.mean()))
            assert row["gap_closed"] == pytest.approx(float(gain.mean() / (bound - vanilla)))
            up, down = int((gain > 0).sum()), int((gain < 0).sum())
            p = 2 * sum(math.comb(up + down, k) for k in range(min(up, down) + 1)) / 2 ** (up + down)
            assert row["p"] == pytest.approx(min(1.0, p))
            assert row["low"] <= row["difference"] <= row["high"]
            assert row["gap_low"] <= row["gap_closed"] <= row["gap_high"]
    assert named["best single pair"]["cells"] == [["ffn", 3, 1]]
    means = sorted(unseen.scores[0].mean(axis=0).tolist(), reverse=True)
    assert named["median pair"]["score"] == pytest.approx(means[16])
    assert named["source_last upper bound"]["number"] == named["target_first upper bound"]["number"] == 8


def test_the_gap_is_resampled_numerator_and_denominator_together(sample: Grid, unseen: Grid) -> None:
    named = {row["name"]: row for row in strategy_table(sample, unseen)}
    column = unseen.cells.index(BEST)
    bound = union(unseen, range(32))
    generator = np.random.default_rng(5)
    shares = []
    for _ in range(4000):
        drawn = generator.integers(120, size=120)
        vanilla = unseen.vanilla[0][drawn].sum()
        shares.append((unseen.scores[0][drawn, column].sum() - vanilla) / (bound[drawn].sum() - vanilla))
    low, high = np.quantile(shares, [0.025, 0.975])
    assert (named["overall"]["gap_low"], named["overall"]["gap_high"]) == pytest.approx((low, high), abs=0.01)


def test_no_gap_no_share_of_it() -> None:
    cells = all_cells(2, [FFN])
    sample = hand_grid([[1, 0, 0, 0]] * 4, [1] * 4, cells, 2)
    unseen = replace(sample, documents=[f"colour_sw/{number}" for number in range(10, 14)])
    rows = strategy_table(sample, unseen)
    assert all(row["gap_closed"] is None and row["gap_low"] is None for row in rows)
    # Only one document has a gap: many resamples have none, so the share has no interval.
    rare = replace(unseen, vanilla=np.array([[1, 1, 1, 0]]))
    overall = next(row for row in strategy_table(sample, rare) if row["name"] == "overall")
    assert overall["gap_closed"] == 1.0 and overall["gap_low"] is None


def test_generation_has_rows_without_choices_and_reasons_for_the_rest() -> None:
    named = {row["name"]: row for row in strategy_table(text_grid(), text_grid(seed=1, first=100))}
    for name in ("margin", "entropy", "mean_logprob", "band", "router"):
        assert named[name]["score"] is None and "Without choices" in named[name]["reason"]
    assert "attn 3>0" in named["fixed understanding"]["reason"]
    for name in ("overall", "vote", "cross_validated", "fixed generation, culture", "upper bound"):
        assert named[name]["score"] is not None and named[name]["reason"] is None
    assert named["upper bound"]["chance"] is None


def test_scores_that_are_not_0_or_1_have_no_mcnemar_and_fewer_bits_close_the_gap() -> None:
    cells = all_cells(2, [FFN])
    less: dict[str, Any] = {"metrics": ["bits"], "higher_is_better": {"bits": False}}
    sample = hand_grid([[2, 3, 4, 1.5]] * 4, [2.5] * 4, cells, 2, **less)
    unseen = hand_grid([[2, 1, 4, 1.5], [2, 3, 1, 1.5]], [2.5, 2.0], cells, 2, **less, tasks=["other"])
    named = {row["name"]: row for row in strategy_table(sample, unseen)}
    assert named["overall"]["cells"] == [["ffn", 1, 1]]
    assert named["overall"]["p"] is None
    # A gain, though the bits are fewer.
    assert named["overall"]["difference"] == pytest.approx(2.25 - 1.5)
    assert named["overall"]["low"] <= named["overall"]["difference"] <= named["overall"]["high"]
    assert named["upper bound"]["score"] == 1.0
    assert named["overall"]["gap_closed"] == pytest.approx(0.75 / 1.25)


def test_a_control_stands_beside_the_upper_bound_on_the_same_documents_and_cells(sample: Grid, unseen: Grid) -> None:
    noise = choice_grid(30, num_choices=(4,), components=[FFN], best=None, skill=0, seed=7, first=1000, control="noise")
    other = choice_grid(documents=50, num_choices=(2, 3, 4), best=None, skill=0, seed=8, control="random_document")
    rows = strategy_table(sample, unseen, [noise, other])
    first, second = rows[-2:]
    assert (first["name"], first["kind"]) == ("upper bound, control noise", "control")
    assert first["number"] == 16 and first["documents"] == 30
    assert first["score"] == pytest.approx(float(union(noise, range(16)).mean()))
    part = unseen.take(noise.documents)
    reference = union(part, [c for c, cell in enumerate(part.cells) if cell.component is FFN])
    assert first["reference"] == pytest.approx(float(reference.mean()))
    assert first["above"] == pytest.approx(float((reference - union(noise, range(16))).mean()))
    assert first["above_low"] <= first["above"] <= first["above_high"]
    assert first["chance"] == pytest.approx(1 - 0.75**16)
    # Its documents are the sample's; cells that were not seen on all of them are left out.
    assert second["number"] == sample.seen.sum() < len(other.cells)
    assert second["reference"] == pytest.approx(float(union(sample, np.flatnonzero(sample.seen)).mean()))


def test_a_control_is_paired_with_the_real_grid_document_by_document(sample: Grid, unseen: Grid) -> None:
    """Whatever the order of its documents; two of one kind have names of their own."""
    noise = choice_grid(30, num_choices=(4,), components=[FFN], best=None, skill=0, seed=7, first=1000, control="noise")
    back = noise.take(noise.documents[::-1])
    other = choice_grid(
        20, num_choices=(4,), components=[ATTN], best=None, skill=0, seed=9, first=1000, control="noise"
    )
    first, second, third = strategy_table(sample, unseen, [noise, back, other])[-3:]
    reached = union(noise, range(16))
    part = unseen.take(noise.documents)
    ffn = [c for c, cell in enumerate(part.cells) if cell.component is FFN]
    reference = union(part, ffn)
    assert first["cell_mean"] == pytest.approx(float(noise.scores[0].mean()))
    assert first["reference_cell_mean"] == pytest.approx(float(part.scores[0][:, ffn].mean()))
    assert (first["above_low"], first["above_high"]) == pytest.approx(stats.paired_interval(reference, reached))
    assert first["above_p"] == pytest.approx(stats.mcnemar(reference, reached))
    for name in ("above", "above_low", "above_high", "above_p", "score", "reference"):
        assert first[name] == pytest.approx(second[name])
    assert first["name"] == "upper bound, control noise (ffn, sample)"
    assert third["name"] == "upper bound, control noise (attn, sample)"


def test_errors_give_what_scores_give(sample: Grid, unseen: Grid) -> None:
    """Every strategy chooses and answers the same, and every gain is one, where lower is better."""
    noise = choice_grid(30, num_choices=(4,), best=None, skill=0, seed=7, first=1000, control="noise")
    rows = strategy_table(sample, unseen, [noise])
    turned = strategy_table(as_errors(sample), as_errors(unseen), [as_errors(noise)])
    opposite = {"score", "sample_score", "chance", "reference", "cell_mean", "reference_cell_mean"}
    for one, other in zip(rows, turned, strict=True):
        for name, value in one.items():
            if isinstance(value, float):
                assert other[name] == pytest.approx(1 - value if name in opposite else value, abs=1e-6), name
            else:
                assert other[name] == value, name


def test_oracles_have_no_p_and_equal_rows_an_interval_of_their_own(sample: Grid, unseen: Grid) -> None:
    named = {row["name"]: row for row in strategy_table(sample, unseen)}
    assert all(row["p"] is None for row in named.values() if row["kind"] == "oracle")
    cells = all_cells(2, [FFN])
    same = [hand_grid([[1, 1, 1, 1], [0, 0, 0, 1]], [1, 0], cells, 2, tasks=[name]) for name in ("a", "b")]
    row = next(row for row in strategy_table(same[0], same[1]) if row["name"] == "target_first")
    # No document differs: that is no certainty that none would.
    assert row["difference"] == 0 and row["low"] < -0.5 and row["high"] > 0.5
    assert row["gap_closed"] == 0 and row["gap_low"] is None


def asking(grid: Grid, what: str) -> Grid:
    """Its documents ask this, and their number."""
    return replace(grid, questions=[[f"{what} {name.rpartition('/')[2]}"] for name in grid.documents])


def test_a_document_is_known_by_what_it_asks_too(sample: Grid, unseen: Grid) -> None:
    """Under another task's name it is the same; selected on, it tests nothing."""
    known = asking(sample, "en")
    renamed = choice_grid(50, num_choices=(2, 3, 4), first=3000)
    again = replace(renamed, questions=[["sw"], *(known.questions or [])[1:]])
    for grid, selected in ((known, chosen(known, "overall")), (again, chosen(again, "overall"))):
        assert selected.questions == sorted(question for [question] in grid.questions or [])
        assert Selection.from_dict(selected.as_dict()) == selected
    with pytest.raises(XTransplantError, match="share 49 documents"):
        strategy_table(known, again)
    with pytest.raises(XTransplantError, match="49 of 50 documents are among those"):
        evaluate_selection(chosen(known, "overall"), again)
    assert evaluate_selection(chosen(known, "overall"), asking(unseen, "en")).shape == (120,)


def test_grids_that_cannot_be_compared_are_refused(sample: Grid, unseen: Grid) -> None:
    with pytest.raises(XTransplantError, match="share 120 documents"):
        strategy_table(unseen, unseen)
    with pytest.raises(XTransplantError, match="made with a budget"):
        strategy_table(unseen, sample)
    with pytest.raises(XTransplantError, match="language_pair is"):
        strategy_table(sample, choice_grid(first=900, language_pair=["en", "de"]))
    with pytest.raises(XTransplantError, match="site is"):
        strategy_table(sample, choice_grid(first=900, intervention={"site": "branch"}))
    unseen = asking(unseen, "en")
    for control, message in (
        (choice_grid(first=1000), "not a control"),
        (
            choice_grid(first=5000, control="noise"),
            "unseen: 40 of its 40 documents are not there; sample: 40 of its 40",
        ),
        (choice_grid(first=1000, control="noise", model_name="other"), "model_name is 'other'"),
        (choice_grid(first=1000, control="noise", settings={"task.num_fewshot": 2}), "task.num_fewshot is 2 in one"),
        (choice_grid(first=1000, control="noise", unseen_cells=0.2), "made with a budget"),
        (asking(choice_grid(first=1000, control="noise"), "else"), "ask something else"),
        (choice_grid(first=1000, control="noise", components=[Component.attn_as_released], best=None), "no cell"),
    ):
        with pytest.raises(XTransplantError, match=message):
            strategy_table(sample, unseen, [control])
