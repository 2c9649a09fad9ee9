"""Pictures: maps over layer pairs, curves over layers, bars of strategies, a training's loss. Each is one SVG, as text.

Equal input gives equal bytes: fixed ids, no date. Colours are told apart by colour-blind readers too (ColorBrewer's
RdBu; Okabe and Ito's palette). Letters stay text, in a family whose widths are alike on all systems.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from xtransplant.analysis import LEVEL, Effect, components, effect, layer_curves
from xtransplant.grid import Grid
from xtransplant.types import Component, XTransplantError

T = TypeVar("T")

# Inches at 72 points: the width of a README's column, in which 9 points stay readable.
_WIDTH = 9.0
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "xtransplant",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    # Verdana is where DejaVu Sans is not, and was its model: the same widths.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "figure.titlesize": 10.5,
    "hatch.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_UNSEEN: dict[str, Any] = {"facecolor": "#eeeeee", "edgecolor": "#aaaaaa", "hatch": "////", "linewidth": 0}
_TRIVIAL: dict[str, Any] = {"color": "#888888", "linestyle": ":", "linewidth": 1.4}
_WHISKER: dict[str, Any] = {"color": "black", "linewidth": 1.0}
_GUESSES: dict[str, Any] = {
    **{"color": "#cc79a7", "linestyle": "", "marker": "D", "markersize": 5, "markeredgecolor": "black", "zorder": 4}
}
_SAME: dict[str, Any] = {
    **{"color": "white", "linestyle": "", "marker": "o", "markersize": 5, "markeredgecolor": "black", "zorder": 4}
}
# Kinds of rows of a table of strategies.
_KINDS = {
    "strategy": ("#56a0d3", "strategy"),
    "oracle": ("#7fcdb0", "oracle, reads scores"),
    "control": ("#bbbbbb", "upper bound of a control"),
}
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_COLOURS = {
    "vanilla": "#444444",
    "trivial": "#888888",
    "mean": "#0072b2",
    "best": "#d55e00",
    "union": "#009e73",
    "chance": "#cc79a7",
}


def heatmap(grids: Sequence[Grid], metric: Literal["score", "logprob"] = "score", seed: int = 0) -> str:
    """A panel per grid and component: target layer to the right, source layer upwards, colour the gain over vanilla.

    Blue is better. White is no change; all panels share the scale, which holds the largest gain (stronger losses may
    lie beyond its end). A star marks the best cell, a frame the cells that differ from vanilla after max-T over all
    cells of the grid (5 %); hatched cells are not in the grid, or not seen on all documents.

    Args:
        metric: the main metric's score, or the change of the right choice's log-probability, normalised over choices.
        seed: of the flips.

    Raises:
        XTransplantError: no grid, or none that has log-probabilities.
    """
    return _heatmap(grids, metric, seed, _svg)


def heatmap_png(grids: Sequence[Grid], metric: Literal["score", "logprob"] = "score", seed: int = 0) -> bytes:
    """`heatmap` in pixels, for what cannot show an SVG."""
    return _heatmap(grids, metric, seed, _png)


def _heatmap(grids: Sequence[Grid], metric: Literal["score", "logprob"], seed: int, saved: Callable[[Figure], T]) -> T:
    panels = []
    for grid in grids:
        for component in components(grid):
            found = effect(grid, component, metric, seed=seed)
            if found is not None and found.complete.any():
                panels.append((grid, component, found))
    if not panels:
        raise XTransplantError(f"Nothing to draw: no grid has {metric}s of whole cells.")
    gains = np.concatenate([found.gain[found.complete] for _, _, found in panels])
    # Most transplants harm, some a lot: a scale up to the worst cell would leave the gains all but white.
    limit = max(gains.max(), float(np.quantile(np.abs(gains), 0.9))) or 1.0
    scale = Normalize(-limit, limit)
    common, titles = _titles([grid.meta for grid, _, _ in panels])
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = -(-len(panels) // across)
    width = 6.0 if len(panels) == 1 else _WIDTH
    with _figure(width, 0.9 + down * (0.6 + 0.9 * (width - 1) / across)) as figure:
        axes = figure.subplots(down, across, squeeze=False)
        for index, axis in enumerate(axes.flat):
            if index >= len(panels):
                axis.set_axis_off()
                continue
            grid, component, found = panels[index]
            _map(axis, found, int(grid.meta["num_layers"]), scale)
            axis.set_title(_title(titles[index], grid, component, "\n"))
            # Panels of one scale of layers say it once, at the edges.
            alike = len({other.meta["num_layers"] for other, _, _ in panels}) == 1
            axis.tick_params(
                labelleft=not alike or index % across == 0, labelbottom=not alike or index + across >= len(panels)
            )
            if index + across >= len(panels):
                axis.set_xlabel("target layer")
            if index % across == 0:
                axis.set_ylabel("source layer")
        label = f"{', '.join(dict.fromkeys(grid.metric for grid, _, _ in panels))}, gain over vanilla"
        if metric == "logprob":
            label = "log-probability of the right choice (nats), gain over vanilla"
        bar = figure.colorbar(
            ScalarMappable(scale, "RdBu"),
            ax=axes,
            label=label,
            extend="min" if gains.min() < -limit else "neither",
            aspect=30,
            pad=0.02,
        )
        bar.outline.set_visible(False)
        figure.suptitle(common)
        marks: list[Artist] = [
            Line2D([], [], color="white", marker="*", markersize=11, markeredgecolor="black", label="best cell"),
            Patch(
                facecolor="none", edgecolor="black", linewidth=1.4, label=f"differs from vanilla (max-T, {LEVEL:.0%})"
            ),
        ]
        if any(found.complete.sum() < int(grid.meta["num_layers"]) ** 2 for grid, _, found in panels):
            marks.append(Patch(label="not seen", **_UNSEEN))
        figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False)
        return saved(figure)


def _map(axis: Any, found: Effect, layers: int, scale: Normalize) -> None:
    gain = np.full((layers, layers), np.nan)
    strong = np.zeros((layers + 2, layers + 2), dtype=bool)
    for index in np.flatnonzero(found.complete):
        cell = found.cells[index]
        gain[cell.source, cell.target] = found.gain[index]
        strong[cell.source + 1, cell.target + 1] = found.adjusted[index] <= LEVEL
    axis.add_patch(Rectangle((-0.5, -0.5), layers, layers, zorder=0, **_UNSEEN))
    axis.imshow(
        np.ma.masked_invalid(gain), cmap="RdBu", norm=scale, origin="lower", interpolation="nearest", aspect="equal"
    )
    # The border of the framed cells: an edge wherever one of two neighbours is framed. One line, broken by NaN.
    border: list[tuple[float, float]] = []
    rows, columns = np.nonzero(strong[1:, 1:-1] != strong[:-1, 1:-1])
    for y, x in zip(rows, columns, strict=True):
        border += [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (np.nan, np.nan)]
    rows, columns = np.nonzero(strong[1:-1, 1:] != strong[1:-1, :-1])
    for y, x in zip(rows, columns, strict=True):
        border += [(x - 0.5, y - 0.5), (x - 0.5, y + 0.5), (np.nan, np.nan)]
    if border:
        axis.plot(*zip(*border, strict=True), color="black", linewidth=1.4, solid_capstyle="projecting", clip_on=False)
    best = found.cells[found.ranked()[0]]
    axis.plot(best.target, best.source, "*", color="white", markeredgecolor="black", markersize=11, clip_on=False)
    for side in (axis.xaxis, axis.yaxis):
        # At most eight.
        side.set_ticks(range(0, layers, -(-layers // 8)))
    axis.set_xlim(-0.5, layers - 0.5)
    axis.set_ylim(-0.5, layers - 0.5)


def curves(grids: Sequence[Grid], seed: int = 0) -> str:
    """A row per grid and component: scores over source layers (left) and target layers (right), by relative depth.

    Mean over the other side's layers, best cell and union (each document's best) of them, with 95 % bands for mean and
    union; thin lines for what as many guesses as cells would reach, vanilla and the trivial baseline.

    Raises:
        XTransplantError: no grid.
    """
    rows = [(grid, component) for grid in grids for component in components(grid)]
    if not rows:
        raise XTransplantError("Nothing to draw: no grid.")
    common, titles = _titles([grid.meta for grid, _ in rows])
    with _figure(_WIDTH, 0.9 + 2.5 * len(rows)) as figure:
        axes = figure.subplots(len(rows), 2, squeeze=False, sharey="row", sharex=True)
        for index, (grid, component) in enumerate(rows):
            found = layer_curves(grid, component, seed)
            for axis, side in zip(axes[index], ("source", "target"), strict=True):
                _curve(axis, found[side])
                axis.axhline(float(grid.vanilla[0].mean()), color=_COLOURS["vanilla"], linestyle="--", linewidth=1.2)
                if grid.meta["trivial_baseline"] is not None:
                    axis.axhline(grid.meta["trivial_baseline"], color=_COLOURS["trivial"], linestyle=":", linewidth=1.4)
                axis.grid(axis="y", color="#e5e5e5", linewidth=0.8)
                axis.set_axisbelow(True)
                axis.set_xlim(-0.03, 1.03)
                if index == len(rows) - 1:
                    axis.set_xlabel(f"{side} layer, from first (0) to last (1)")
            axes[index][0].set_ylabel(grid.metric)
            axes[index][0].set_title(_title(titles[index], grid, component, ", "), loc="left")
        figure.suptitle(common)
        line = [("union", "union (oracle)"), ("best", "best cell"), ("mean", "mean"), ("vanilla", "vanilla")]
        styles: dict[str, Any] = {"chance": "-.", "vanilla": "--", "trivial": ":"}
        if any(grid.choice_scores is not None for grid in grids):
            line.insert(1, ("chance", "as many guesses"))
        if any(grid.meta["trivial_baseline"] is not None for grid in grids):
            line.append(("trivial", "trivial baseline"))
        handles = [
            Line2D([], [], color=_COLOURS[name], linestyle=styles.get(name, "-"), label=label) for name, label in line
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        return _svg(figure)


def _curve(axis: Any, found: dict[str, list[Any]]) -> None:
    table = {name: np.array(values, dtype=float) for name, values in found.items()}
    known = ~np.isnan(table["mean"])
    depth = table["depth"][known]
    axis.plot(depth, table["chance"][known], color=_COLOURS["chance"], linestyle="-.", linewidth=1.2)
    for name in ("union", "best", "mean"):
        axis.plot(depth, table[name][known], color=_COLOURS[name], linewidth=1.6)
        if name != "best":
            low, high = table[f"{name}_low"][known], table[f"{name}_high"][known]
            axis.fill_between(depth, low, high, color=_COLOURS[name], alpha=0.15, linewidth=0)


def bars(tables: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]) -> str:
    """A panel per table of strategies: a bar per row, whiskers for the 95 % interval of its difference to vanilla.

    Lines for vanilla and the trivial baseline; on upper bounds a diamond where as many guesses as cells would be. A
    control's bar is its upper bound; what the grid reaches on the same cells is a circle.

    Args:
        tables: a grid's `meta` (of the documents that were scored) and the rows of `comparison.strategy_table`.

    Raises:
        XTransplantError: no table.
    """
    if not tables:
        raise XTransplantError("Nothing to draw: no table of strategies.")
    names = list(dict.fromkeys(row["name"] for _, rows in tables for row in rows if row["kind"] != "baseline"))
    # Controls, which not every pair may have, come last in all panels.
    names.sort(
        key=lambda name: any(row["name"] == name and row["kind"] == "control" for _, rows in tables for row in rows)
    )
    common, titles = _titles([meta for meta, _ in tables])
    across = 2 if len(tables) == 4 else min(3, len(tables))
    down = -(-len(tables) // across)
    with _figure(_WIDTH if across > 1 else 6.5, 1.0 + down * (0.7 + 0.2 * len(names))) as figure:
        axes = figure.subplots(down, across, squeeze=False, sharey=True, sharex=True)
        for index, axis in enumerate(axes.flat):
            if index >= len(tables):
                axis.set_visible(False)
                continue
            meta, rows = tables[index]
            _bars(axis, names, rows, meta.get("trivial_baseline"))
            (vanilla,) = (row for row in rows if row["kind"] == "baseline")
            own = f"{titles[index]}\n" if titles[index] else ""
            axis.set_title(f"{own}{vanilla['documents']} documents, vanilla {vanilla['score']:.3f}")
            axis.tick_params(axis="y", left=False, labelleft=index % across == 0)
            if index + across >= len(tables):
                axis.set_xlabel(meta["metrics"][0])
                axis.tick_params(labelbottom=True)
        axes[0][0].set_ylim(len(names) - 0.4, -0.6)
        figure.suptitle(common)
        kinds = {row["kind"] for _, rows in tables for row in rows}
        handles: list[Artist] = [
            Patch(color=_KINDS[kind][0], label=_KINDS[kind][1]) for kind in _KINDS if kind in kinds
        ]
        handles.append(Line2D([], [], color=_COLOURS["vanilla"], linestyle="--", label="vanilla"))
        marks = [
            (
                any(row["low"] is not None for _, rows in tables for row in rows),
                {"label": "95 % of the difference", **_WHISKER},
            ),
            (
                any(meta.get("trivial_baseline") is not None for meta, _ in tables),
                {"label": "trivial baseline", **_TRIVIAL},
            ),
            (
                any(row["chance"] is not None for _, rows in tables for row in rows),
                {"label": "as many guesses", **_GUESSES},
            ),
            ("control" in kinds, {"label": "real vectors, same cells", **_SAME}),
        ]
        handles += [Line2D([], [], **look) for shown, look in marks if shown]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        return _svg(figure)


def gains(tables: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]) -> str:
    """A line per strategy, on it a dot for each table: the gain over vanilla; a bar is their mean.

    Filled where the 95 % interval leaves out 0. One colour a task, one shape a model.

    Args:
        tables: as `bars` takes them.

    Raises:
        XTransplantError: no table.
    """
    if not tables:
        raise XTransplantError("Nothing to draw: no table of strategies.")
    names = list(dict.fromkeys(row["name"] for _, rows in tables for row in rows if row["kind"] == "strategy"))
    tasks = list(dict.fromkeys(meta["task_name"] for meta, _ in tables))
    models = list(dict.fromkeys(meta["model_name"] for meta, _ in tables))
    colour = {task: _PALETTE[number % len(_PALETTE)] for number, task in enumerate(tasks)}
    shape = {model: "osD^v"[number % 5] for number, model in enumerate(models)}
    with _figure(_WIDTH, 1.2 + 0.26 * len(names)) as figure:
        axis = figure.subplots()
        axis.set_yticks(range(len(names)), [_short(name) for name in names])
        axis.axvline(0, color=_COLOURS["vanilla"], linestyle="--", linewidth=1.2, zorder=1)
        for line, name in enumerate(names):
            found = [
                (meta, row) for meta, rows in tables for row in rows if row["name"] == name and row["score"] is not None
            ]
            for number, (meta, row) in enumerate(found):
                own = colour[meta["task_name"]]
                sure = row["low"] > 0 or row["high"] < 0
                # Side by side in the order of the tables: equal gains stay visible.
                place = line + 0.5 * ((number + 0.5) / len(found) - 0.5)
                axis.plot(
                    row["difference"], place, linestyle="", marker=shape[meta["model_name"]], markersize=4.5,
                    markeredgecolor=own, markerfacecolor=own if sure else "white", zorder=2,
                )  # fmt: skip
            if found:
                mean = float(np.mean([row["difference"] for _, row in found]))
                axis.plot([mean, mean], [line - 0.4, line + 0.4], color="black", linewidth=2.0, zorder=3)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.tick_params(axis="y", left=False)
        metrics = dict.fromkeys(meta["metrics"][0] for meta, _ in tables)
        axis.set_xlabel(f"{', '.join(metrics)}, gain over vanilla")
        handles: list[Artist] = [Patch(color=colour[task], label=task) for task in tasks]
        if len(models) > 1:
            handles += [
                Line2D([], [], color="#444444", linestyle="", marker=shape[each], label=each) for each in models
            ]
        looks: dict[str, Any] = {"color": "#444444", "linestyle": "", "marker": "o"}
        handles += [
            Line2D([], [], label="95 % interval without 0", **looks),
            Line2D([], [], markerfacecolor="white", label="with 0", **looks),
            Line2D([], [], color="black", linewidth=2.0, label="mean"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        return _svg(figure)


def differences(records: Sequence[Mapping[str, Any]]) -> str:
    """A panel for each task, a line for each condition: its difference to the untouched model, with its interval.

    Of conditions over several language pairs the mean over documents. Filled where more than chance; an oracle, which
    reads the labels, is a bar without an interval. One colour a model.

    Args:
        records: of `compare.Comparison.records`, or the lines of its CSV; of one metric and half.

    Raises:
        XTransplantError: nothing is compared with the untouched model.
    """
    found = [each for each in records if each["against"] == "vanilla" and each["pooled"] == "micro"]
    if not found:
        raise XTransplantError("Nothing to draw: no condition of several language pairs beside vanilla.")
    tasks, models = (list(dict.fromkeys(each[key] for each in found)) for key in ("task", "model"))
    names = list(dict.fromkeys(each["condition"] for each in found))
    colour = {model: _PALETTE[number % len(_PALETTE)] for number, model in enumerate(models)}
    with _figure(_WIDTH, 1.2 + 0.24 * len(names) * -(-len(tasks) // 2)) as figure:
        axes = figure.subplots(-(-len(tasks) // 2), min(2, len(tasks)), sharey=True, squeeze=False).flat
        for task, axis in zip(tasks, axes, strict=False):
            axis.set_title(task)
            axis.axvline(0, color=_COLOURS["vanilla"], linestyle="--", linewidth=1.2, zorder=1)
            for each in (each for each in found if each["task"] == task):
                place = names.index(each["condition"]) + 0.36 * (
                    (models.index(each["model"]) + 0.5) / len(models) - 0.5
                )
                own, gain = colour[each["model"]], float(each["difference"])
                if each["kind"] in ("upper_bound", "chance"):
                    axis.barh(place, gain, height=0.3 / len(models), color=own, alpha=0.35, zorder=1)
                    continue
                if each["low"] not in ("", None):
                    axis.plot([float(each["low"]), float(each["high"])], [place] * 2, color=own, linewidth=1.0)
                sure = str(each["could_be_chance"]).lower() == "false"
                axis.plot(
                    gain, place, marker="o", markersize=4.5, markeredgecolor=own,
                    markerfacecolor=own if sure else "white",
                )  # fmt: skip
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.tick_params(axis="y", left=False)
            axis.set_xlabel(f"{found[0]['metric']}, difference to vanilla")
        looks: dict[str, Any] = {"color": "#444444", "linestyle": "", "marker": "o"}
        handles: list[Artist] = [Patch(color=colour[model], label=model) for model in models]
        handles += [
            Line2D([], [], label="more than chance", **looks),
            Line2D([], [], markerfacecolor="white", label="could be chance", **looks),
            Patch(color="#444444", alpha=0.35, label="oracle, reads the labels"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
        return _svg(figure)


def loss_curve(history: Sequence[Mapping[str, float]], title: str) -> str:
    """A training's loss by step: of each step's examples, and a dot at each evaluation on the documents held out.

    Args:
        history: the lines of a run's training.jsonl.
    """
    return _loss_curve(history, title, _svg)


def loss_curve_png(history: Sequence[Mapping[str, float]], title: str) -> bytes:
    """`loss_curve` in pixels."""
    return _loss_curve(history, title, _png)


def _loss_curve(history: Sequence[Mapping[str, float]], title: str, saved: Callable[[Figure], T]) -> T:
    with _figure(6.0, 3.2) as figure:
        axis = figure.subplots()
        looks: dict[str, dict[str, Any]] = {
            "loss": {"label": "training", "color": _PALETTE[0], "linewidth": 1.2},
            "eval_loss": {"label": "held out", "color": _PALETTE[1], "linewidth": 1.2, "marker": "o", "markersize": 4},
        }
        for name, look in looks.items():
            rows = [row for row in history if name in row]
            if rows:
                axis.plot([row["step"] for row in rows], [row[name] for row in rows], **look)
        axis.set_xlabel("step")
        axis.set_ylabel("loss, nats a token of the answer")
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_title(title, loc="left")
        axis.legend(frameon=False)
        return saved(figure)


def _short(name: str) -> str:
    return name.replace("upper bound, control", "control,").replace("_", " ")


def _bars(axis: Any, names: Sequence[str], rows: Sequence[Mapping[str, Any]], trivial: float | None) -> None:
    vanilla = next(row["score"] for row in rows if row["kind"] == "baseline")
    axis.set_yticks(range(len(names)), [_short(name) for name in names])
    axis.axvline(vanilla, color=_COLOURS["vanilla"], linestyle="--", linewidth=1.2, zorder=3)
    if trivial is not None:
        axis.axvline(trivial, zorder=3, **_TRIVIAL)
    for row in rows:
        if row["kind"] == "baseline":
            continue
        place = names.index(row["name"])
        if row["score"] is None:
            axis.text(0.01, place, "not available", transform=axis.get_yaxis_transform(), va="center", color="#888888")
            continue
        axis.barh(place, row["score"], height=0.7, color=_KINDS[row["kind"]][0])
        if row["low"] is not None:
            # A control's vanilla may be of other documents than the line shows: from the row's own.
            own = row["score"] - row["difference"]
            axis.plot([own + row["low"], own + row["high"]], [place, place], **_WHISKER)
        if row["chance"] is not None:
            axis.plot(row["chance"], place, **_GUESSES)
        if row["reference"] is not None:
            axis.plot(row["reference"], place, **_SAME)
    axis.spines["left"].set_visible(False)


def _title(own: str, grid: Grid, component: Component, separator: str) -> str:
    """A panel's title: what it has of its own, the component, how many documents, how good vanilla is."""
    name = ", ".join(part for part in (own, component.value) if part)
    return f"{name}{separator}{len(grid.documents)} documents, vanilla {float(grid.vanilla[0].mean()):.3f}"


def _titles(metas: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """What all grids share, for the figure's title, and of each what the others have not: model, task, pair, split."""
    rows = []
    for meta in metas:
        pair = "-".join(meta["language_pair"]) if meta["language_pair"] else "several pairs"
        row = [meta["model_name"], meta["task_name"], pair, f"split {meta['split']}"]
        rows.append([*row, f"control {meta['control']}"] if meta["control"] else row)
    shared = [part for part in rows[0] if all(part in row for row in rows)]
    return ", ".join(shared), [", ".join(part for part in row if part not in shared) for row in rows]


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in this module's style, whatever the user's own settings are; inches."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        yield figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # The dots per inch are those of a map's pixels; all else is drawn as lines.
    figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
