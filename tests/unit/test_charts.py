"""The pictures: what they say, that equal input gives equal bytes, and that they stay small."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from tests.unit.grids import all_cells, choice_grid, hand_grid, text_grid
from xtransplant import charts
from xtransplant.charts import bars, curves, gains, heatmap
from xtransplant.comparison import strategy_table
from xtransplant.types import Cell, Component, XTransplantError

FFN = Component.ffn


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were made, to be asked what is on them."""
    figures: list[Any] = []
    write = charts._svg

    def keep(figure: Any) -> str:
        figures.append(figure)
        return write(figure)

    monkeypatch.setattr(charts, "_svg", keep)
    return figures


def texts(svg: str) -> list[str]:
    """All that is written in a picture."""
    root = ElementTree.fromstring(svg)
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def misplaced(figure: Any, svg: str) -> list[tuple[str, ...]]:
    """Pairs of texts of a figure that lie on each other, and texts that leave it."""
    renderer = figure._get_renderer()
    # Ticks beyond an axis exist but are not drawn.
    drawn = {"", *texts(svg)}
    shown = [each for each in figure.findobj(Text) if each.get_visible() and each.get_text().strip()]
    shown = [each for each in shown if set(each.get_text().split("\n")) <= drawn]
    assert len(shown) > 10
    boxes = [(each.get_text(), each.get_window_extent(renderer)) for each in shown]
    wrong: list[tuple[str, ...]] = [
        (a, b) for n, (a, first) in enumerate(boxes) for b, second in boxes[:n] if first.padded(-0.5).overlaps(second)
    ]
    width, height = figure.bbox.size
    return wrong + [(text,) for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]


def images(figure: Any) -> list[Any]:
    return [axis.images[0] for axis in figure.axes if axis.images]


# --- maps


def test_a_panel_per_grid_and_component_on_one_scale(drawn: list[Any]) -> None:
    svg = heatmap([choice_grid(), choice_grid(seed=1, language_pair=["en", "de"])])
    written = texts(svg)
    assert "tiny, colour, split sample" in written
    assert [each for each in written if each.startswith("en-")] == [
        "en-sw, ffn",
        "en-sw, attn",
        "en-de, ffn",
        "en-de, attn",
    ]
    assert sum("40 documents, vanilla 0." in each for each in written) == 4
    panels = images(drawn[0])
    assert len(panels) == 4
    limits = {panel.get_clim() for panel in panels}
    ((low, high),) = limits
    assert low == -high
    assert high >= max(panel.get_array().max() for panel in panels)


def test_the_map_has_each_gain_at_its_layers(drawn: list[Any]) -> None:
    cells = [Cell(FFN, 0, 1), Cell(FFN, 2, 0), Cell(FFN, 2, 2)]
    grid = hand_grid([[1, 0, 1], [1, 0, 1], [1, 1, np.nan], [1, 1, 1]], [0, 1, 0, 0], cells, 3)
    written = texts(heatmap([grid]))
    (panel,) = images(drawn[0])
    expected = np.full((3, 3), np.nan)
    expected[0, 1], expected[2, 0] = 0.75, 0.25
    assert np.array_equal(np.ma.filled(panel.get_array(), np.nan), expected, equal_nan=True)
    assert panel.origin == "lower"
    assert (panel.axes.get_xlabel(), panel.axes.get_ylabel()) == ("target layer", "source layer")
    assert "not seen" in written
    (star,) = (line for line in panel.axes.lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (1, 0)


def test_significant_cells_are_framed(drawn: list[Any]) -> None:
    heatmap([choice_grid(documents=60, components=[FFN])])
    (panel,) = images(drawn[0])
    (frame,) = (line for line in panel.axes.lines if line.get_marker() != "*")
    x, y = (np.array(values)[~np.isnan(values)] for values in (frame.get_xdata(), frame.get_ydata()))
    # The planted cell, source 3 and target 1: four edges of two points.
    assert (len(x), x.min(), x.max(), y.min(), y.max()) == (8, 0.5, 1.5, 2.5, 3.5)


def test_losses_do_not_set_the_scale(drawn: list[Any]) -> None:
    """One cell that breaks the model must not leave all gains white."""
    scores = np.tile(np.array([1, 1, 0, 0, 1, 1, 1, 1, 1, 0]), (16, 1)).T
    scores[:, 0] = 0
    scores[2, 1:4] = 1
    heatmap([hand_grid(scores.tolist(), [1, 1, 0, 0, 1, 1, 1, 1, 1, 0], all_cells(4, [FFN]), 4)])
    (panel,) = images(drawn[0])
    assert panel.get_array().min() == pytest.approx(-0.7)
    assert panel.get_clim()[1] == pytest.approx(0.1)


def test_a_map_without_any_change_is_white(drawn: list[Any]) -> None:
    heatmap([hand_grid([[1] * 16] * 3, [1] * 3, all_cells(4, [FFN]), 4)])
    assert images(drawn[0])[0].get_clim() == (-1.0, 1.0)


def test_log_probabilities_of_the_grids_that_have_them(drawn: list[Any]) -> None:
    written = texts(heatmap([choice_grid(components=[FFN]), text_grid()], "logprob"))
    assert any("nats" in each for each in written)
    assert len(images(drawn[0])) == 1
    with pytest.raises(XTransplantError, match="logprob"):
        heatmap([text_grid()], "logprob")


# --- curves


def test_curves_have_a_row_per_grid_and_component(drawn: list[Any]) -> None:
    svg = curves([choice_grid(), text_grid(model_name="other", num_layers=6, trivial_baseline=None)])
    written = texts(svg)
    assert sum("documents, vanilla" in each for each in written) == 3
    assert {"union (oracle)", "as many guesses", "best cell", "mean", "vanilla", "trivial baseline"} <= set(written)
    assert [len(axis.get_lines()[-1].get_xdata()) for axis in drawn[0].axes[4:]] == [2, 2]
    # Both models run from 0 to 1.
    mean = [axis.get_lines()[3].get_xdata() for axis in drawn[0].axes]
    assert {(depth[0], depth[-1]) for depth in mean} == {(0.0, 1.0)}
    assert {len(depth) for depth in mean} == {4, 6}


# --- bars


def table(pair: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    given: dict[str, Any] = {"language_pair": pair.split("-"), "num_layers": 4}
    sample = choice_grid(seed=seed, **given)
    unseen = choice_grid(seed=seed + 10, first=100, split="unseen", **given)
    control = choice_grid(seed=seed + 20, first=100, best=None, control="random_document", split="unseen", **given)
    return unseen.meta, strategy_table(sample, unseen, [control], resamples=100)


@pytest.fixture(scope="module")
def tables() -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    return [table("en-sw", 0), table("en-de", 1)]


def test_bars_show_every_row_of_the_tables(tables: list[Any], drawn: list[Any]) -> None:
    written = texts(bars(tables))
    for row in tables[0][1]:
        short = row["name"].replace("upper bound, control", "control,").replace("_", " ")
        assert row["kind"] == "baseline" or short in written
    assert "tiny, colour, split unseen" in written and "en-sw" in written
    assert sum("40 documents, vanilla 0." in each for each in written) == 2
    (axis, _) = drawn[0].axes
    scores = [row["score"] for row in tables[0][1] if row["kind"] != "baseline"]
    assert sorted(bar.get_width() for bar in axis.patches) == pytest.approx(sorted(scores))


def test_a_strategy_that_could_not_be_used_is_said_so(tables: list[Any]) -> None:
    meta, rows = tables[0]
    empty = dict.fromkeys(rows[0]) | {"name": "router", "kind": "strategy", "reason": "no choices"}
    written = texts(bars([(meta, [empty if row["name"] == "router" else row for row in rows])]))
    assert written.count("not available") == 1


# --- all of them


def every_picture(tables: list[Any]) -> dict[str, str]:
    grids = [choice_grid(unseen_cells=0.1), text_grid()]
    return {
        "heatmap": heatmap(grids),
        "logprob": heatmap(grids, "logprob"),
        "curves": curves(grids),
        "bars": bars(tables),
        "gains": gains(tables),
    }


def test_gains_have_a_dot_for_every_table(tables: list[Any], drawn: list[Any]) -> None:
    meta, rows = tables[0]
    written = texts(gains([(meta, rows), ({**meta, "model_name": "second"}, rows)]))
    assert {"second", meta["model_name"], "mean"} <= set(written)
    [axis] = drawn[0].axes
    row = next(row for row in rows if row["name"] == "overall")
    dots = [line for line in axis.lines if line.get_marker() in ("o", "s") and line.get_xdata()[0] == row["difference"]]
    assert len(dots) >= 2
    assert {dot.get_markerfacecolor() == "white" for dot in dots} == {row["low"] <= 0 <= row["high"]}


def test_equal_input_gives_equal_bytes_whatever_the_users_settings(tables: list[Any]) -> None:
    first = every_picture(tables)
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "mine", "axes.facecolor": "red"}):
        assert every_picture(tables) == first
    for svg in first.values():
        assert "dc:date" not in svg and not re.search(r"20\d\d-\d\d-\d\d", svg)
        assert "<script" not in svg and "http" not in re.sub(
            r'xmlns[^"]*"[^"]*"|rdf:resource="[^"]*"|<!DOCTYPE[^>]*>', "", svg
        )


def test_another_process_draws_the_same() -> None:
    program = (
        "from tests.unit.grids import choice_grid; from xtransplant.charts import heatmap; import hashlib;"
        "print(hashlib.sha256(heatmap([choice_grid()]).encode()).hexdigest())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_no_labels_lie_on_each_other_or_outside(tables: list[Any], drawn: list[Any]) -> None:
    many = [
        choice_grid(documents=8, num_layers=32, components=[FFN], seed=n, language_pair=["en", f"l{n}"])
        for n in range(6)
    ]
    two = [choice_grid(), choice_grid(seed=1, language_pair=["en", "de"])]
    pictures = [heatmap(many), heatmap(many[:1]), heatmap(two), curves(many[:2])]
    pictures += [bars(tables), bars(tables[:1]), bars(tables * 2), gains(tables)]
    for figure, svg in zip(drawn, pictures, strict=True):
        assert misplaced(figure, svg) == []
        assert figure.get_size_inches()[0] <= 9


def test_large_maps_stay_small() -> None:
    given: dict[str, Any] = {"documents": 20, "num_layers": 32, "components": [FFN]}
    grids = [choice_grid(seed=n, language_pair=["en", f"l{n}"], **given) for n in range(6)]
    assert max(len(heatmap(grids).encode()), len(curves(grids).encode())) < 200_000


def test_nothing_is_refused() -> None:
    for draw in (heatmap, curves, bars, gains):
        with pytest.raises(XTransplantError, match="Nothing to draw"):
            draw([])


def test_differences_of_conditions_are_drawn_from_records_as_from_their_csv() -> None:
    common = {"against": "vanilla", "pooled": "micro", "model": "m", "task": "t", "metric": "acc"}
    records: list[dict[str, Any]] = [
        common
        | {"condition": "overall", "kind": "strategy", "difference": 0.1, "low": 0.05, "high": 0.2}
        | {"could_be_chance": False},
        common
        | {"condition": "upper bound", "kind": "upper_bound", "difference": 0.5, "low": None, "high": None}
        | {"could_be_chance": True},
    ]
    drawn = charts.differences(records)
    assert "overall" in drawn and "upper bound" in drawn and "acc, difference to vanilla" in drawn
    written = [{key: _in_csv(value) for key, value in each.items()} for each in records]
    assert charts.differences(written) == drawn
    with pytest.raises(XTransplantError, match="no condition of several language pairs"):
        charts.differences([each | {"pooled": None} for each in records])


def _in_csv(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
