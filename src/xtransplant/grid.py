"""One grid: what a model answers, and how the harness grades it, in every cell of the map over layer pairs. No torch.

Legend: D documents, C cells, M largest number of choices, K metrics. One grid is one model, task family, language pair
and split. Scores are the harness's own, as it gives them; `quality` turns them so that higher is better.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xtransplant import disk
from xtransplant.answer_language import own_metrics
from xtransplant.disk import replacing
from xtransplant.types import Cell, Component, XTransplantError

T = TypeVar("T")

FORMAT = 1
# Array -> its shape in terms of K, D, C, M, and its type. All but the first two may be None.
_ARRAYS = {
    "scores": ("KDC", np.float32),
    "vanilla": ("KD", np.float32),
    "logprob": ("DCM", np.float32),
    "vanilla_logprob": ("DM", np.float32),
    "choice_scores": ("DM", np.float32),
    "text": ("DC", np.int32),
    "vanilla_text": ("D", np.int32),
}
_SEAL = "sha256"  # of the content, in the file: by it damage is seen
# Meta data that two grids must have in common to speak of the same cells; for their scores to be comparable; and to be
# parts of one grid.
SAME_CELLS = ("model_name", "num_layers", "intervention", "control")
SAME_SCORES = (*SAME_CELLS, "task_name", "metrics", "settings")
_SAME_GRID = (*SAME_SCORES, "split", "higher_is_better")


@dataclass(eq=False)
class Grid:
    """The responses and scores of D documents in C cells, and without a transplant (vanilla).

    Attributes:
        meta: JSON values: model_name, model (provenance), num_layers, task_name, tasks, language_pair, split,
            intervention (how vectors were written: keys of `config.InterventionConfig`), control (null,
            random_document, noise, self, zero), metrics (the first is the main one), higher_is_better
            {metric: bool}, trivial_baseline, config_hash, settings (of the prompts and the model's dtype), …
        cells: C distinct cells.
        documents: D names, "<task>/<key>", distinct, in the order of evaluation.
        scores: [K, D, C] float32; NaN: not looked at (budget), or a text whose language cannot be told (see
            `answer_language`, whose metrics come last).
        vanilla: [K, D] float32.
        logprob: [D, C, M] float32, log-probability of each choice in nats, summed over its tokens; NaN: no such
            choice, or not looked at. None for generation.
        vanilla_logprob: [D, M] float32.
        choice_scores: [D, M] float32, the harness's main metric if that choice were the answer; NaN: no such choice.
            None where there are no choices.
        texts: for generation, the distinct texts.
        text: [D, C] int32, index into `texts`; -1: not looked at.
        vanilla_text: [D] int32.
        questions: for each document the digests of what it asks (`Pairing.questions`), the same under any task's name.

    Raises:
        ValueError: shapes or names that do not fit together.
    """

    meta: dict[str, Any]
    cells: list[Cell]
    documents: list[str]
    scores: np.ndarray
    vanilla: np.ndarray
    logprob: np.ndarray | None = None
    vanilla_logprob: np.ndarray | None = None
    choice_scores: np.ndarray | None = None
    texts: list[str] | None = None
    text: np.ndarray | None = None
    vanilla_text: np.ndarray | None = None
    questions: list[list[str]] | None = None

    def __post_init__(self) -> None:
        self.cells = [Cell(Component(component), source, target) for component, source, target in self.cells]
        sizes = {"K": len(self.meta["metrics"]), "D": len(self.documents), "C": len(self.cells)}
        if not all(sizes.values()):
            raise ValueError(f"a grid has at least one metric, document and cell, not {sizes}")
        for names in (self.documents, self.cells):
            if len(set(names)) < len(names):
                raise ValueError("documents, or cells, with the same name")
        for name, (axes, dtype) in _ARRAYS.items():
            array = getattr(self, name)
            if array is None:
                continue
            array = np.ascontiguousarray(array, dtype=dtype)
            setattr(self, name, array)
            if array.ndim == len(axes) and "M" in axes:
                sizes.setdefault("M", array.shape[axes.index("M")])
            if array.shape != tuple(sizes[axis] for axis in axes):
                raise ValueError(f"{name} has shape {array.shape}, not {axes} of {sizes}")
        together = [("logprob", "vanilla_logprob"), ("texts", "text", "vanilla_text")]
        for group in together:
            if len({getattr(self, name) is None for name in group}) > 1:
                raise ValueError(f"all or none of {', '.join(group)}")
        if self.texts is not None and self.text is not None and self.vanilla_text is not None:
            largest = max(self.text.max(), self.vanilla_text.max())
            if largest >= len(self.texts) or min(self.text.min(), self.vanilla_text.min()) < -1:
                raise ValueError(f"a text of index {largest} among {len(self.texts)}")
        if self.questions is not None and len(self.questions) != len(self.documents):
            raise ValueError(f"questions of {len(self.questions)} documents, not of {len(self.documents)}")

    @property
    def metric(self) -> str:
        """The main metric."""
        return str(self.meta["metrics"][0])

    @property
    def sign(self) -> int:
        """1 where a higher main metric is better, else -1."""
        return 1 if self.meta["higher_is_better"].get(self.metric, True) else -1

    @cached_property
    def quality(self) -> np.ndarray:
        """[D, C] float64, the main metric times `sign`: higher is better. NaN: not looked at."""
        return self.sign * self.scores[0].astype(np.float64)

    @cached_property
    def vanilla_quality(self) -> np.ndarray:
        """[D] float64, likewise without a transplant."""
        return self.sign * self.vanilla[0].astype(np.float64)

    @property
    def seen(self) -> np.ndarray:
        """[C] bool: cells looked at on all documents."""
        return ~np.isnan(self.scores[0]).any(axis=0)

    @cached_property
    def fresh(self) -> np.ndarray:
        """[D] bool: documents that had no say in which cells are seen: all of a whole grid; with a budget those of the
        last round, for the cells that it looks at were chosen on the others. Tests are valid on fresh ones only."""
        looked_at = ~np.isnan(self.scores[0])
        fresh = np.zeros(len(looked_at), dtype=bool)
        groups = [name.partition("/")[0] if "pooled" in self.meta else "" for name in self.documents]
        for group in dict.fromkeys(groups):
            rows = np.array([each == group for each in groups])
            fresh[rows] = (looked_at[rows] == looked_at[rows].all(axis=0)).all(axis=1)
        return fresh

    @cached_property
    def units(self) -> np.ndarray:
        """[D] the number of each document's unit, that is what is drawn in resamples and flips: the document; of a
        pooled grid the question, which in several languages is not several independent ones."""
        if "pooled" not in self.meta:
            return np.arange(len(self.documents))
        return np.unique(self.own_names, return_inverse=True)[1]

    @property
    def own_names(self) -> list[str]:
        """[D] "<task>/<key>", without the language pair that `pool` puts before it."""
        return [name.partition("/")[2] for name in self.documents] if "pooled" in self.meta else self.documents

    @property
    def marks(self) -> set[str]:
        """What its documents are known by: their names, and the digests of what they ask."""
        return set(self.own_names).union(*(self.questions or []))

    def marked(self, marks: Collection[str]) -> list[str]:
        """Own names of the documents that are known by one of `marks`."""
        questions = self.questions or [[]] * len(self.documents)
        return [
            name
            for name, own in zip(self.own_names, questions, strict=True)
            if any(mark in marks for mark in (name, *own))
        ]

    @property
    def gold(self) -> list[int | None]:
        """Per document the only choice with the best choice score; None where there is none, or more than one."""
        if self.choice_scores is None:
            return [None] * len(self.documents)
        found: list[int | None] = []
        for row in self.sign * self.choice_scores:
            best = np.flatnonzero(row == np.nanmax(row, initial=-np.inf))
            found.append(int(best[0]) if len(best) == 1 else None)
        return found

    @property
    def weights(self) -> dict[str, Any]:
        """Hashes of the model's files and of its adapter's: what makes two models of one name the same."""
        model = self.meta.get("model") or {}
        return {"files": model.get("files"), "adapter": (model.get("adapter") or {}).get("files")}

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the content. Computed once: a grid is not changed after it was made."""
        digest = hashlib.sha256()
        for name, array in self._stored().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            # One bit pattern for all NaN, so that equal content is equal.
            plain = np.where(np.isnan(array), np.float32("nan"), array) if array.dtype.kind == "f" else array
            digest.update(np.ascontiguousarray(plain).tobytes())
        return digest.hexdigest()

    def columns(self, cells: Sequence[Cell]) -> list[int]:
        """Where the given cells are among this grid's.

        Raises:
            XTransplantError: the grid lacks one of them.
        """
        return self._places(cells, self.cells, "cells", show)

    def take(self, documents: Sequence[str]) -> Grid:
        """The same grid of some of its documents, in the order given.

        Raises:
            XTransplantError: the grid lacks one of them.
        """
        rows = self._places(documents, self.documents, "documents", str)
        arrays: dict[str, Any] = {
            name: np.take(array, rows, axis=axes.index("D"))
            for name, (axes, _) in _ARRAYS.items()
            if (array := getattr(self, name)) is not None
        }
        questions = None if self.questions is None else [self.questions[row] for row in rows]
        return replace(self, documents=list(documents), questions=questions, **arrays)

    def _places(self, wanted: Sequence[T], there: Sequence[T], what: str, shown: Callable[[T], str]) -> list[int]:
        place = {each: index for index, each in enumerate(there)}
        missing = [each for each in wanted if each not in place]
        if missing:
            counts = f"{len(missing)} of {len(wanted)} {what}"
            raise XTransplantError(f"{name_of(self)}: {counts} are not in the grid, e.g. {shown(missing[0])}.")
        return [place[each] for each in wanted]

    def save(self, path: Path) -> None:
        """Write one compressed .npz, at once or not at all; equal content gives equal bytes.

        Raises:
            XTransplantError: the file cannot be written.
        """
        buffer = io.BytesIO()
        seal = np.frombuffer(bytes.fromhex(self.sha256), dtype=np.uint8)
        # The seal first: damage to a zip's list of entries hides those behind it.
        np.savez_compressed(buffer, **{_SEAL: seal}, **self._stored())  # type: ignore[arg-type]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(buffer.getvalue())
        except OSError as error:
            raise XTransplantError(f"{path} cannot be written: {error.strerror}.") from error

    @classmethod
    def load(cls, path: Path) -> Grid:
        """Read what `save` wrote.

        Raises:
            XTransplantError: no such file; not a grid; of another format; damaged.
        """
        try:
            stored = disk.arrays_of(path, {"names", _SEAL, *_ARRAYS})
            # Grids of before 2026-11-27 have none.
            seal = stored.pop(_SEAL, None)
            names = disk.json_in(stored.pop("names").tobytes())
            if names["format"] != FORMAT:
                raise XTransplantError(f"{path}: a grid of format {names['format']}; this version reads {FORMAT}.")
            lists: dict[str, Any] = {name: names.get(name) for name in ("texts", "questions")}
            arrays: dict[str, Any] = stored
            read = cls(names["meta"], names["cells"], names["documents"], **lists, **arrays)
            if seal is not None and seal.tobytes().hex() != read.sha256:
                raise ValueError("not what was written: its own hash differs")
            return read
        except (FileNotFoundError, IsADirectoryError) as error:
            raise XTransplantError(f"{path}: no such grid. Give the file grid.npz of a grid's folder.") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise XTransplantError(f"{path}: not a grid, or damaged ({error}). Compute it anew.") from error

    def _stored(self) -> dict[str, np.ndarray]:
        names = {
            "format": FORMAT,
            "meta": self.meta,
            "cells": [as_list(cell) for cell in self.cells],
            "documents": self.documents,
            "texts": self.texts,
            "questions": self.questions,
        }
        # As bytes: an array of characters loses NULs at its end and takes four times the memory.
        arrays = {"names": np.frombuffer(json.dumps(names, sort_keys=True).encode(), dtype=np.uint8)}
        return arrays | {name: array for name in _ARRAYS if (array := getattr(self, name)) is not None}


def as_list(cell: Cell) -> list[Any]:
    """A cell as a JSON value, e.g. ["ffn", 13, 2]."""
    return [cell.component.value, cell.source, cell.target]


def show(cell: Cell) -> str:
    """A cell as a person reads it, e.g. "ffn 13>2"."""
    return f"{cell.component.value} {cell.source}>{cell.target}"


def name_of(grid: Grid) -> str:
    """A grid as a person reads it: model, task family, language pair, split."""
    pair = "-".join(grid.meta["language_pair"] or ["pooled"])
    return " ".join(str(part) for part in (grid.meta["model_name"], grid.meta["task_name"], pair, grid.meta["split"]))


def unlike(first: Grid, second: Grid, keys: Sequence[str] = SAME_CELLS) -> str | None:
    """What two grids differ in, of their models' files and the given meta data: the first such thing; None if none.

    Of the metrics only the tasks' own count: whether the language of answers can be told depends on the language.
    """
    pairs = {key: (_compared(first, key), _compared(second, key)) for key in keys}
    pairs["the model's files"] = (first.weights, second.weights)
    for name, (one, other) in pairs.items():
        key, a, b = narrowed(name, one, other)
        if a != b:
            return f"{key} differ" if isinstance(a, dict) else f"{key} is {a!r} in one and {b!r} in the other"
    return None


def narrowed(key: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """The key and its two values; of settings, the first one that differs and its two values."""
    if key in ("settings", "intervention") and isinstance(one, dict) and isinstance(other, dict):
        for name, value in one.items():
            if value != other.get(name):
                return name, value, other.get(name)
    return key, one, other


def _compared(grid: Grid, key: str) -> Any:
    return own_metrics(grid.meta["metrics"]) if key == "metrics" else grid.meta.get(key)


def pool(grids: Sequence[Grid]) -> Grid:
    """Several language pairs of one model, task family and list of cells as one grid.

    Documents are named "<source>-<target>/<task>/<key>". `language_pair` is null where they differ, `pooled` lists the
    grids' pairs and hashes; the trivial baseline is the mean over documents. One grid alone is returned as it is.

    Raises:
        XTransplantError: the grids' cells, metrics, models or settings differ, or a language pair is there twice.
    """
    if not grids:
        raise XTransplantError("No grids to pool.")
    first = grids[0]
    if len(grids) == 1:
        return first
    for grid in grids[1:]:
        why = unlike(first, grid, _SAME_GRID)
        if why is None and grid.cells != first.cells:
            why = f"{len(first.cells)} cells in one and {len(grid.cells)}, or others, in the other"
        for name in (*_ARRAYS, "texts"):
            if why is None and (getattr(first, name) is None) != (getattr(grid, name) is None):
                why = f"only one of them has {name}"
        if why is not None:
            raise XTransplantError(f"{name_of(first)} and {name_of(grid)} cannot be pooled: {why}.")
    pairs = [grid.meta["language_pair"] for grid in grids]
    documents = [f"{'-'.join(grid.meta['language_pair'])}/{name}" for grid in grids for name in grid.documents]
    if len(set(documents)) < len(documents):
        raise XTransplantError(f"{name_of(first)}: the same language pair is given twice.")
    texts = None if first.texts is None else list(dict.fromkeys(text for grid in grids for text in grid.texts or []))
    index = {text: number for number, text in enumerate(texts or [])}
    metrics = [name for name in first.meta["metrics"] if all(name in grid.meta["metrics"] for grid in grids)]
    arrays = {}
    for name, (axes, _) in _ARRAYS.items():
        parts = [getattr(grid, name) for grid in grids]
        if parts[0] is None:
            continue
        if "K" in axes:
            rows = [[grid.meta["metrics"].index(name) for name in metrics] for grid in grids]
            parts = [part[row] for part, row in zip(parts, rows, strict=True)]
        if "M" in axes:
            width = max(part.shape[-1] for part in parts)
            edges = [(0, 0)] * (len(axes) - 1)
            parts = [np.pad(p, [*edges, (0, width - p.shape[-1])], constant_values=np.nan) for p in parts]
        if name in ("text", "vanilla_text"):
            # -1, not looked at, is the last of the numbers and stays -1.
            numbers = [np.array([*(index[text] for text in grid.texts or []), -1]) for grid in grids]
            parts = [number[part] for number, part in zip(numbers, parts, strict=True)]
        arrays[name] = np.concatenate(parts, axis=axes.index("D"))
    trivial = [grid.meta.get("trivial_baseline") for grid in grids]
    sizes = [len(grid.documents) for grid in grids]
    meta = first.meta | {
        "metrics": metrics,
        "language_pair": pairs[0] if all(pair == pairs[0] for pair in pairs) else None,
        "tasks": list(dict.fromkeys(task for grid in grids for task in grid.meta["tasks"])),
        "trivial_baseline": None
        if None in trivial
        else float(np.average(np.array(trivial, dtype=float), weights=sizes)),
        "config_hash": None,
        "pooled": [
            {
                "language_pair": grid.meta["language_pair"],
                "config_hash": grid.meta.get("config_hash"),
                "grid_sha256": grid.sha256,
            }
            for grid in grids
        ],
    }
    questions = None
    if all(grid.questions is not None for grid in grids):
        questions = [question for grid in grids for question in grid.questions or []]
    return Grid(meta, first.cells, documents, texts=texts, questions=questions, **arrays)


# --- The best cell, and what all cells together reach ----------------------------------------------------------------


def ranked(grid: Grid, among: np.ndarray | None = None, rows: np.ndarray | None = None) -> np.ndarray:
    """Columns of the cells seen on all documents (or of `among` [C] bool), the best mean of the main metric first.

    Ties are broken by `Cell.order`. With `rows` [D] bool, the mean is over those documents.
    """
    columns = np.flatnonzero(grid.seen if among is None else among)
    quality = grid.quality[:, columns] if rows is None else grid.quality[rows][:, columns]
    # Means of the same numbers in another order differ by rounding: equal to 9 digits is a tie.
    means = np.round(quality.mean(axis=0), 9)
    keys = [(-mean, *grid.cells[column].order) for mean, column in zip(means, columns, strict=True)]
    return columns[sorted(range(len(columns)), key=keys.__getitem__)]


def union(grid: Grid, columns: Sequence[int] | np.ndarray) -> np.ndarray:
    """[D] the best score of each document over the given cells, vanilla not among them."""
    best: np.ndarray = grid.sign * grid.quality[:, columns].max(axis=1)
    return best


def chance(grid: Grid, number: int) -> float | None:
    """What `union` over `number` cells would reach if each answered at random, with all choices alike; None where there
    are no choices.

    The expected best of k draws; with one right choice of m it is 1 - (1 - 1/m)^k, the mean over documents.
    """
    if grid.choice_scores is None:
        return None
    best = []
    for row in grid.sign * grid.choice_scores.astype(np.float64):
        values = np.sort(row[~np.isnan(row)])
        below = (np.arange(len(values) + 1) / len(values)) ** number  # the best of k is among the worst n of m
        best.append(float(values @ np.diff(below)))
    return grid.sign * float(np.mean(best))


def no_counterpart(control: Grid, grid: Grid) -> str | None:
    """Why a control cannot be compared with a grid; None if it can: the same setting, and all of its documents."""
    if control.meta["control"] is None:
        return "it is not a control (its `control` is null)"
    why = unlike(control, grid, (*(key for key in SAME_SCORES if key != "control"), "language_pair"))
    if why is not None:
        return why
    missing = set(control.documents) - set(grid.documents)
    if missing:
        return f"{len(missing)} of its {len(control.documents)} documents are not there"
    if control.questions is not None and control.questions != grid.take(control.documents).questions:
        return "documents of one name ask something else"
    if not control.fresh.all():
        return "it was made with a budget, which kept the cells that were best on its documents"
    return None


def same_cells(control: Grid, grid: Grid) -> tuple[Grid, list[Cell]]:
    """A grid cut to a control's documents, and the cells that were seen in both, in the control's order.

    Raises:
        XTransplantError: they cannot be compared, or have no such cell.
    """
    name = f"{name_of(control)}, control {control.meta['control']}"
    why = no_counterpart(control, grid)
    if why is not None:
        raise XTransplantError(f"{name}, beside {name_of(grid)}: {why}.")
    real = grid.take(control.documents)
    seen = [{cell for cell, yes in zip(each.cells, each.seen, strict=True) if yes} for each in (real, control)]
    both = [cell for cell in control.cells if cell in seen[0] & seen[1]]
    if not both:
        raise XTransplantError(f"{name}: no cell was seen in it and in {name_of(real)}.")
    return real, both


def upper_bounds(grid: Grid, orders: int = 20, seed: int = 0) -> dict[str, Any]:
    """What an oracle that picks a cell per document reaches, against chance and single cells.

    Over cells seen on all documents. All values are plain and in the main metric's own units.

    Args:
        orders: random orders that `curve` is averaged over.

    Returns:
        `metric`, `documents`, `vanilla`, `cells` [seen, all], and `components`: for each, and for "all" together,
        `union`, `source_last`, `target_first`: each `cells` (how many), `score` and `chance`; `per_source`,
        `per_target`: a list of such, one for each layer; `best` and `median` single cell: `cell` and `score`;
        `curve`: lists `cells` (1 to all), `score` of the union of that many in random order, `chance`. A score is None
        where there is no cell.
    """
    layers = range(int(grid.meta["num_layers"]))
    names = [component.value for component in Component if component in {cell.component for cell in grid.cells}]
    order = ranked(grid)

    def bound(columns: list[int]) -> dict[str, Any]:
        score = float(union(grid, columns).mean()) if columns else None
        return {"cells": len(columns), "score": score, "chance": chance(grid, len(columns))}

    def single(column: int) -> dict[str, Any]:
        return {"cell": as_list(grid.cells[column]), "score": float(grid.scores[0][:, column].mean(dtype=np.float64))}

    def bounds(columns: list[int]) -> dict[str, Any]:
        per_source = [bound([c for c in columns if grid.cells[c].source == layer]) for layer in layers]
        per_target = [bound([c for c in columns if grid.cells[c].target == layer]) for layer in layers]
        generator = np.random.default_rng(seed)
        unions = [
            np.maximum.accumulate(
                grid.quality[:, generator.permutation(np.array(columns, dtype=np.int64))], axis=1
            ).mean(axis=0)
            for _ in range(orders)
        ]
        numbers = range(1, len(columns) + 1)
        return {
            "union": bound(columns),
            "source_last": per_source[-1],
            "target_first": per_target[0],
            "per_source": per_source,
            "per_target": per_target,
            "best": single(columns[0]) if columns else None,
            # Of an even number the lower one.
            "median": single(columns[len(columns) // 2]) if columns else None,
            "curve": {
                "cells": list(numbers),
                "score": (grid.sign * np.mean(unions, axis=0)).tolist() if columns else [],
                "chance": [chance(grid, number) for number in numbers],
            },
        }

    of = {name: [int(c) for c in order if grid.cells[c].component.value == name] for name in names}
    return {
        "metric": grid.metric,
        "documents": len(grid.documents),
        "vanilla": float(grid.vanilla[0].mean(dtype=np.float64)),
        "cells": [len(order), len(grid.cells)],
        "components": {name: bounds(columns) for name, columns in {**of, "all": [int(c) for c in order]}.items()},
    }
