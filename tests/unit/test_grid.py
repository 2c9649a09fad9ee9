"""Grids: what is kept, saved and pooled; the best cell and the upper bounds, against loops that are easy to read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.grids import BEST, all_cells, choice_grid, counts_of, hand_grid, text_grid
from xtransplant.grid import Grid, chance, pool, ranked, union, upper_bounds
from xtransplant.types import Cell, Component, XTransplantError

ARRAYS = ("scores", "vanilla", "logprob", "vanilla_logprob", "choice_scores", "text", "vanilla_text")
FFN, ATTN = Component.ffn, Component.attn


def same(a: Grid, b: Grid) -> bool:
    """Everything, bit for bit, up to the payload of NaN."""
    arrays = [(getattr(a, name), getattr(b, name)) for name in ARRAYS]
    return (a.meta, a.cells, a.documents, a.texts) == (b.meta, b.cells, b.documents, b.texts) and all(
        (x is None and y is None) or (x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)) for x, y in arrays
    )


# --- Content ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [choice_grid, text_grid])
def test_what_is_saved_is_loaded(make: Any, tmp_path: Path) -> None:
    grid = make()
    grid.save(tmp_path / "new" / "grid.npz")
    loaded = Grid.load(tmp_path / "new" / "grid.npz")
    assert same(grid, loaded)
    assert grid.sha256 == loaded.sha256
    assert loaded.cells[0].component is FFN
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.npz"]


def test_every_text_and_name_survives(tmp_path: Path) -> None:
    grid = text_grid(documents=2)
    grid.texts = ["", "nul\0", "日本 \ud800", "x\n", "é", "é"]
    grid.documents = ["colour_sw/a/b", "colour_sw/ß\0"]
    grid.save(tmp_path / "grid.npz")
    loaded = Grid.load(tmp_path / "grid.npz")
    assert (loaded.texts, loaded.documents) == (grid.texts, grid.documents)


def test_equal_content_gives_equal_bytes_and_any_change_another_hash(tmp_path: Path) -> None:
    one, two = choice_grid(unseen_cells=0.2), choice_grid(unseen_cells=0.2)
    two.meta = dict(reversed(two.meta.items()))
    one.save(tmp_path / "one")
    two.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    hashes = {one.sha256}
    for change in ("scores", "vanilla_logprob", "documents", "meta"):
        other = choice_grid(unseen_cells=0.2)
        if change == "documents":
            other.documents[0] = "colour_sw/new"
        elif change == "meta":
            other.meta["seed"] = 1
        else:
            getattr(other, change)[0, 0] += 1
        hashes.add(other.sha256)
    assert len(hashes) == 5


def test_a_file_that_is_not_a_whole_grid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.npz"
    with pytest.raises(XTransplantError, match="no such grid"):
        Grid.load(path)
    choice_grid(documents=5).save(path)
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    for content in (b"", b"PK", b"[1, 2]", whole[:-50], whole[: len(whole) // 2], bytes(middle)):
        path.write_bytes(content)
        with pytest.raises(XTransplantError, match=r"grid\.npz: .*Compute it anew"):
            Grid.load(path)
    for arrays in ({"x": np.ones(2)}, {"names": np.frombuffer(b'{"format": 1}', np.uint8)}):
        np.savez(path, allow_pickle=False, **arrays)
        with pytest.raises(XTransplantError, match="not a grid"):
            Grid.load(path)
    np.savez(path, allow_pickle=False, names=np.frombuffer(b'{"format": 99}', np.uint8))
    with pytest.raises(XTransplantError, match="format 99; this version reads 1"):
        Grid.load(path)


def test_a_file_with_arrays_that_do_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.npz"
    choice_grid(documents=5).save(path)
    with np.load(path) as file:
        stored = dict(file)
    stored["vanilla"] = stored["vanilla"][:, :3]
    np.savez(path, allow_pickle=False, **stored)
    with pytest.raises(XTransplantError, match=r"vanilla has shape \(1, 3\)"):
        Grid.load(path)


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(XTransplantError, match="cannot be written"):
        choice_grid(documents=2).save(tmp_path / "file" / "grid.npz")


def test_shapes_and_names_must_fit() -> None:
    cells = all_cells(2, [FFN])
    with pytest.raises(ValueError, match="scores has shape"):
        hand_grid([[1.0, 0.0]], [1.0], cells, 2)
    with pytest.raises(ValueError, match="same name"):
        hand_grid([[1.0, 0.0]], [1.0], [cells[0], cells[0]], 2)
    with pytest.raises(ValueError, match="all or none of logprob"):
        Grid(hand_grid([[1.0]], [1.0], cells[:1], 2).meta, cells[:1], ["t/0"], [[[1.0]]], [[1.0]], np.ones((1, 1, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        hand_grid([], [], cells, 2)


def test_gold_is_the_only_best_choice() -> None:
    grid = choice_grid(documents=3)
    assert grid.choice_scores is not None
    grid.choice_scores = np.array([[0, 1, 0], [1, 1, 0], [np.nan, np.nan, 1]], dtype=np.float32)
    assert grid.gold == [1, None, 2]
    assert text_grid(documents=2).gold == [None, None]


def test_documents_are_taken_with_all_that_is_theirs() -> None:
    grid = choice_grid(num_choices=(2, 3, 4))
    names = [grid.documents[7], grid.documents[0], grid.documents[2]]
    part = grid.take(names)
    assert part.documents == names
    assert counts_of(part) == [3, 2, 4]
    assert part.logprob is not None and grid.logprob is not None
    for row, name in enumerate(names):
        was = grid.documents.index(name)
        assert np.array_equal(part.scores[:, row], grid.scores[:, was])
        assert np.array_equal(part.logprob[row], grid.logprob[was], equal_nan=True)
    assert same(grid.take(grid.documents), grid)
    with pytest.raises(XTransplantError, match=r"1 of 2 documents are not in the grid, e\.g\. colour_sw/999"):
        grid.take([names[0], "colour_sw/999"])


def test_a_cell_counts_as_seen_only_on_all_documents() -> None:
    nan = float("nan")
    grid = hand_grid([[1, nan, 0, nan], [0, 1, 1, nan]], [0, 0], all_cells(2, [FFN]), 2)
    assert grid.seen.tolist() == [True, False, True, False]


# --- Pooling ---------------------------------------------------------------------------------------------------------


def test_language_pairs_are_pooled_document_by_document() -> None:
    sw = choice_grid(documents=6, num_choices=(2,), trivial_baseline=0.5)
    de = choice_grid(documents=3, num_choices=(4,), seed=1, language_pair=["en", "de"], tasks=["colour_de"])
    both = pool([sw, de])
    assert both.documents[0] == "en-sw/colour_sw/0"
    assert both.documents[-1] == "en-de/colour_de/2"
    assert both.own_names == sw.documents + de.documents
    assert counts_of(both) == [2] * 6 + [4] * 3
    assert both.meta["trivial_baseline"] == pytest.approx((6 * 0.5 + 3 * 0.25) / 9)
    assert both.meta["language_pair"] is None
    assert [part["grid_sha256"] for part in both.meta["pooled"]] == [sw.sha256, de.sha256]
    assert both.logprob is not None and sw.logprob is not None and de.logprob is not None
    assert np.array_equal(both.logprob[:6, :, :2], sw.logprob) and np.isnan(both.logprob[:6, :, 2:]).all()
    assert np.array_equal(both.logprob[6:], de.logprob)
    assert both.quality.sum() == sw.quality.sum() + de.quality.sum()
    assert both.gold == sw.gold + de.gold


def test_pooled_texts_stay_what_they_were() -> None:
    grids = [text_grid(documents=4), text_grid(documents=5, seed=1, language_pair=["en", "de"])]
    assert grids[1].texts is not None and grids[0].text is not None
    grids[1].texts = [f"other {number}" for number in range(14)] + ["text 0"]
    grids[0].text[0, 0] = -1
    both = pool(grids)

    def texts(grid: Grid) -> list[list[str | None]]:
        assert grid.texts is not None and grid.text is not None and grid.vanilla_text is not None
        rows = np.column_stack([grid.vanilla_text, grid.text])
        return [[None if number < 0 else grid.texts[number] for number in row] for row in rows]

    assert texts(both) == texts(grids[0]) + texts(grids[1])


def test_one_grid_is_its_own_pool() -> None:
    grid = choice_grid()
    assert pool([grid]) is grid


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: choice_grid(num_layers=5, language_pair=["en", "de"]), "num_layers is 4 in one and 5"),
        (lambda: choice_grid(components=[FFN], language_pair=["en", "de"]), "32 cells in one and 16"),
        (
            lambda: choice_grid(metrics=["acc", "acc_norm"], language_pair=["en", "de"]),
            r"metrics is \['acc'\] in one",
        ),
        (lambda: choice_grid(intervention={"site": "branch"}, language_pair=["en", "de"]), "site is 'module'"),
        (lambda: choice_grid(control="noise", language_pair=["en", "de"]), "control is None"),
        (lambda: choice_grid(model={"files": {}}, language_pair=["en", "de"]), "the model's files differ"),
        (lambda: choice_grid(seed=1), "the same language pair is given twice"),
    ],
)
def test_unlike_grids_are_not_pooled(other: Any, message: str) -> None:
    with pytest.raises(XTransplantError, match=message):
        pool([choice_grid(), other()])


def test_where_the_language_of_answers_cannot_be_told_all_else_is_pooled() -> None:
    names = ["acc", "language_judged", "language_consistency"]
    told, other = choice_grid(metrics=names), choice_grid(language_pair=["en", "su"], seed=1)
    both = pool([told, other])
    assert both.meta["metrics"] == ["acc"]
    np.testing.assert_array_equal(both.scores, np.concatenate([told.scores[:1], other.scores], axis=1))
    # Where no answer of one grid was judged, the others keep what they have in common, in any order.
    some = choice_grid(language_pair=["en", "su"], metrics=[names[0], names[2], names[1]], seed=1)
    both = pool([told, some])
    assert both.meta["metrics"] == names
    np.testing.assert_array_equal(both.scores[1], np.concatenate([told.scores[1], some.scores[2]], axis=0))


def test_choices_and_texts_are_not_pooled() -> None:
    like: dict[str, Any] = {"language_pair": ["en", "de"], "metrics": ["acc"], "higher_is_better": {"acc": True}}
    with pytest.raises(XTransplantError, match="only one of them has logprob"):
        pool([choice_grid(components=[FFN]), text_grid(**like)])


# --- Ranking and upper bounds ----------------------------------------------------------------------------------------


def test_ties_go_to_the_smallest_target_then_the_largest_source_then_ffn() -> None:
    cells = [Cell(ATTN, 2, 0), Cell(FFN, 2, 0), Cell(FFN, 1, 0), Cell(FFN, 2, 1), Cell(FFN, 0, 2)]
    grid = hand_grid([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], [0, 0], cells, 3)
    assert [grid.cells[column] for column in ranked(grid)] == [cells[4], cells[1], cells[0], cells[2], cells[3]]


@pytest.mark.parametrize("seed", range(5))
def test_ranking_is_the_obvious_one(seed: int) -> None:
    grid = choice_grid(documents=12, seed=seed, unseen_cells=0.3)
    remaining = [cell for cell, seen in zip(grid.cells, grid.seen, strict=True) if seen]
    expected = []
    while remaining:
        best = None
        for cell in remaining:
            right = sum(int(score) for score in grid.scores[0][:, grid.cells.index(cell)])
            key = (right, -cell.target, cell.source, cell.component is FFN)
            if best is None or key > best[0]:
                best = (key, cell)
        assert best is not None
        expected.append(best[1])
        remaining.remove(best[1])
    assert [grid.cells[column] for column in ranked(grid)] == expected
    assert len(expected) == round(32 * 0.7)


def test_a_metric_of_which_less_is_better_is_turned_round() -> None:
    cells = all_cells(2, [FFN])
    less = {"metrics": ["bits"], "higher_is_better": {"bits": False}}
    grid = hand_grid([[1.5, 0.5, 2.0, 2.0], [1.0, 3.0, 0.25, 2.0]], [1, 1], cells, 2, **less)
    assert grid.cells[ranked(grid)[0]] == cells[2]
    assert union(grid, [0, 1, 2, 3]).tolist() == [0.5, 0.25]
    bounds = upper_bounds(grid)["components"]["all"]
    assert bounds["best"] == {"cell": ["ffn", 1, 0], "score": 1.125}
    assert bounds["curve"]["score"][-1] == 0.375


def test_planted_cell_is_first() -> None:
    for grid in (choice_grid(), text_grid()):
        assert grid.cells[ranked(grid)[0]] == BEST


def test_upper_bounds_by_hand() -> None:
    # Documents in rows; cells 0>0, 0>1, 1>0, 1>1.
    grid = hand_grid([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], [1, 1, 1, 1], all_cells(2, [FFN]), 2)
    found = upper_bounds(grid)
    assert found["vanilla"] == 1.0  # which is not in the union
    bounds = found["components"]["ffn"]
    assert bounds == found["components"]["all"]
    assert bounds["union"] == {"cells": 4, "score": 0.75, "chance": None}
    assert bounds["source_last"] == {"cells": 2, "score": 0.25, "chance": None}
    assert bounds["target_first"] == {"cells": 2, "score": 0.5, "chance": None}
    assert [point["score"] for point in bounds["per_source"]] == [0.75, 0.25]
    assert [point["score"] for point in bounds["per_target"]] == [0.5, 0.5]
    assert bounds["best"] == {"cell": ["ffn", 0, 1], "score": 0.5}
    assert bounds["median"] == {"cell": ["ffn", 0, 0], "score": 0.25}


@pytest.mark.parametrize("name", ["ffn", "attn", "all"])
def test_upper_bounds_are_unions_counted_one_by_one(name: str) -> None:
    grid = choice_grid(documents=15, num_layers=3, best=None, unseen_cells=0.2, num_choices=(2, 3, 5))
    bounds = upper_bounds(grid)["components"][name]

    def reached(wanted: Any) -> Any:
        right, chances = 0, 0.0
        cells = [
            column
            for column, cell in enumerate(grid.cells)
            if name in (cell.component.value, "all") and grid.seen[column] and wanted(cell)
        ]
        for row in range(15):
            right += any(grid.scores[0][row, column] == 1 for column in cells)
            wrong = 1.0
            for _ in cells:
                wrong *= 1 - 1 / counts_of(grid)[row]
            chances += 1 - wrong
        assert cells
        return len(cells), pytest.approx([right / 15, chances / 15])

    def point(found: dict[str, Any]) -> tuple[int, list[float]]:
        return found["cells"], [found["score"], found["chance"]]

    assert point(bounds["union"]) == reached(lambda cell: True)
    assert point(bounds["source_last"]) == reached(lambda cell: cell.source == 2)
    assert point(bounds["target_first"]) == reached(lambda cell: cell.target == 0)
    for layer in range(3):
        assert point(bounds["per_source"][layer]) == reached(lambda cell, layer=layer: cell.source == layer)
        assert point(bounds["per_target"][layer]) == reached(lambda cell, layer=layer: cell.target == layer)


def test_the_curve_rises_from_a_typical_cell_to_the_union() -> None:
    grid = choice_grid(documents=20, num_layers=3, best=None)
    bounds = upper_bounds(grid, orders=400)["components"]["all"]
    curve = bounds["curve"]
    assert curve["cells"] == list(range(1, 19))
    assert curve["score"][0] == pytest.approx(float(grid.scores[0].mean()), abs=0.03)
    assert curve["score"][-1] == bounds["union"]["score"]
    assert curve["chance"] == [chance(grid, number) for number in range(1, 19)]
    assert (np.diff(curve["score"]) >= 0).all()
    # In expectation over orders: 1 less the chance that k cells drawn without replacement all are wrong.
    for k in (2, 5, 9):
        expected = 0.0
        for row in grid.scores[0]:
            wrong = int((row == 0).sum())
            none = 1.0
            for drawn in range(k):
                none *= max(0, wrong - drawn) / (18 - drawn)
            expected += (1 - none) / 20
        assert curve["score"][k - 1] == pytest.approx(expected, abs=0.02)


def test_chance_is_what_guesses_reach() -> None:
    grid = choice_grid(documents=6, num_choices=(2, 4))
    assert chance(grid, 1) == pytest.approx(0.5 * (1 / 2 + 1 / 4))
    assert chance(grid, 3) == pytest.approx(0.5 * (7 / 8 + 37 / 64))
    assert chance(grid, 0) == 0.0
    assert chance(text_grid(), 3) is None


def test_chance_is_the_best_of_so_many_draws() -> None:
    """Several right choices, partial scores, and a metric that is better when lower, against all draws counted."""
    scores: list[list[float]] = [[1, 1, 0, 0], [0.5, 0, 1, np.nan]]
    for sign, metric in ((1, "acc"), (-1, "loss")):
        grid = hand_grid([[1]] * 2, [0, 0], [Cell(Component.ffn, 0, 0)], 2, metrics=[metric])
        grid.meta["higher_is_better"] = {metric: sign > 0}
        grid.choice_scores = np.array(scores, dtype=np.float32)
        for number in (1, 2, 3):
            counted = []
            for row in scores:
                values = [sign * value for value in row if not np.isnan(value)]
                counted.append(np.mean([max(drawn) for drawn in itertools.product(values, repeat=number)]))
            assert chance(grid, number) == pytest.approx(sign * np.mean(counted))
