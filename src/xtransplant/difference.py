"""What differs between two runs, level by level: config, model, data, prompts, environment, results. No torch.

What says only where or how a run was done (its folder, the device, the machine, how long it took) is shown where it
differs, and does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from xtransplant.bundle import RUN, Opened, redacted
from xtransplant.checks import shown
from xtransplant.config import is_computed
from xtransplant.grid import Grid, show
from xtransplant.tables import table
from xtransplant.types import XTransplantError

_HASH = 12  # of 64 digits
_WIDEST = 60  # characters of a value that are shown
_MOST = 40  # rows of a level that are shown


@dataclass
class Level:
    """One part of two runs.

    Attributes:
        name: to be read.
        rows: what differs: what it is, in `a`, in `b`, and the difference where these are numbers.
        notes: what differs and is no pair of values.
        counts: whether a difference here makes two runs different.
    """

    name: str
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: bool = True

    @property
    def differs(self) -> bool:
        return bool(self.rows or self.notes)


def differences(a: Opened, b: Opened, tolerance: float = 0.0) -> list[Level]:
    """Every level, those without a difference too.

    Args:
        tolerance: log-probabilities that differ by no more, in nats, are the same.

    Raises:
        XTransplantError: samples or a grid cannot be read; or a record, which may be a stranger's, has another form.
    """
    try:
        return _differences(a, b, tolerance)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise XTransplantError(
            f"a={a.place}, b={b.place}: cannot be compared, for one is not as a run writes it ({error!r})."
        ) from error


def _differences(a: Opened, b: Opened, tolerance: float) -> list[Level]:
    one, two = a.manifest, b.manifest
    job = str(one["job"])
    asked = _flat(a.config), _flat(b.config)
    chosen = [_flat({"selection": _selection(each)}) for each in (a, b)]

    def of_tasks(*names: str) -> list[dict[str, Any]]:
        return [
            _flat({task: {n: facts.get(n) for n in names} for task, facts in (each.get("tasks") or {}).items()})
            for each in (one, two)
        ]

    def of_model(each: Mapping[str, Any]) -> dict[str, Any]:
        model, adapter = each["model"], each["model"].get("adapter") or {}
        return _flat(
            {
                **{name: model.get(name) for name in ("files", "class", "dtype")},
                "adapter": adapter.get("files"),
                "examples_sha256": each.get("examples_sha256"),
            }
        )

    def of_environment(*names: str) -> list[dict[str, Any]]:
        return [_flat({name: each["environment"].get(name) for name in names}) for each in (one, two)]

    metrics = [_flat(each.results.get("results", each.results)) for each in (a, b)]
    levels = [
        _compared("job", [{"job": job}, {"job": two["job"]}]),
        _compared("config", _only(asked, lambda key: is_computed(job, key))),
        _compared("selection", chosen),
        _compared("where and how", _only(asked, lambda key: not is_computed(job, key)), counts=False),
        _compared("model", [of_model(each) for each in (one, two)]),
        _compared("data", of_tasks("documents", "keys_sha256", "docs_sha256", "questions_sha256")),
        _compared("prompts", of_tasks("prompts_sha256")),
        _compared("environment", of_environment("python", "versions")),
        _compared("machine", of_environment("platform", "git"), counts=False),
        _compared("metrics", metrics),
        _responses(a, b, tolerance),
    ]
    if {one["job"], two["job"]} == {"grid"}:
        levels.append(_cells(a, b, tolerance))
    return levels


def differ(levels: Iterable[Level]) -> bool:
    """Whether there is a difference that counts."""
    return any(level.differs and level.counts for level in levels)


def text(a: Opened, b: Opened, levels: Sequence[Level]) -> str:
    """To be read."""
    parts = [f"{name}: {each.place} ({each.manifest['job']} {each.short})" for name, each in (("a", a), ("b", b))]
    header = ["", "a", "b", "b - a"]
    for level in levels:
        if not level.differs:
            continue
        aside = "" if level.counts else " (does not count)"
        parts.append(f"\n{level.name}{aside}")
        if level.rows:
            numbers = any(row[3] for row in level.rows)
            rows = [row if numbers else row[:3] for row in level.rows[:_MOST]]
            parts.append(table(header if numbers else header[:3], rows))
            if len(level.rows) > _MOST:
                parts.append(f"… and {len(level.rows) - _MOST} more")
        parts += level.notes
    same = [level.name for level in levels if not level.differs]
    parts.append(f"\nThe same: {', '.join(same)}." if same else "\nNothing is the same.")
    return "\n".join(parts)


# --- Values --------------------------------------------------------------------------------------------------------


def _compared(name: str, both: Sequence[Mapping[str, Any]], counts: bool = True) -> Level:
    return Level(name, _pairs(both[0], both[1]), counts=counts)


def _pairs(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A key that only one of them has is as null there: older versions had not all of them."""
    rows = []
    for key in dict.fromkeys([*one, *two]):
        left, right = one.get(key), two.get(key)
        if not _same(left, right):
            delta = f"{right - left:+.6g}" if _is_number(left) and _is_number(right) else ""
            rows.append((key, _said(left), _said(right), delta))
    return rows


def _said(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:_HASH]
    if isinstance(value, float):
        return f"{value:.6g}"
    said = " ".join(shown(value).split())
    return said if len(said) <= _WIDEST else f"{said[: _WIDEST - 1]}…"


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, each in value.items():
        if isinstance(each, Mapping) and each:
            found |= _flat(each, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = each
    return found


def _only(both: Sequence[Mapping[str, Any]], wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if wanted(key)} for each in both]


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: Any, two: Any) -> bool:
    """Equal, NaN being equal to itself."""
    if isinstance(one, float) and isinstance(two, float) and math.isnan(one) and math.isnan(two):
        return True
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two) and isinstance(one, bool) is isinstance(two, bool)


def _selection(run: Opened) -> dict[str, Any] | None:
    """What the run took of a selection: cells and rule; on what they were chosen, by hash."""
    chosen = run.chosen
    if not isinstance(chosen, Mapping):
        return None
    names = ("strategy", "cells", "rule", "pooled", "documents")
    grids = [each.get("grid_sha256") for each in chosen.get("grids") or [] if isinstance(each, Mapping)]
    return {**{name: chosen.get(name) for name in names}, "grids": grids}


# --- Documents -----------------------------------------------------------------------------------------------------


def _responses(a: Opened, b: Opened, tolerance: float) -> Level:
    """Document by document what was asked, answered and scored."""
    level = Level("responses")
    tasks = [list(each.manifest.get("tasks") or {}) for each in (a, b)]
    for task in dict.fromkeys([*tasks[0], *tasks[1]]):
        if task not in tasks[0] or task not in tasks[1]:
            level.notes.append(f"{task}: only in {'a' if task in tasks[0] else 'b'}")
            continue
        # Where texts are withheld from one, hashes are compared.
        hashed = any(f"{RUN}/samples_{task}.jsonl" in each.withheld for each in (a, b))
        rows = [
            {
                (str(row.get("key")), str(row.get("filter"))): redacted(row)
                if hashed and f"{RUN}/samples_{task}.jsonl" not in each.withheld
                else row
                for row in each.samples(task)
            }
            for each in (a, b)
        ]
        level.notes += [f"{task}: {said}" for said in _documents(rows[0], rows[1], tolerance)]
    return level


def _documents(one: Mapping[Any, Any], two: Mapping[Any, Any], tolerance: float) -> list[str]:
    both = [key for key in one if key in two]
    said = []
    for name, alone in (("a", len(one) - len(both)), ("b", len(two) - len(both))):
        said += [f"{alone} documents only in {name}"] if alone else []
    asked, other, scored = [], [], []
    largest, where = 0.0, ""
    for key in both:
        left, right = one[key], two[key]
        if any(not _same(left.get(name), right.get(name)) for name in ("doc", "target", "arguments", "source_prompts")):
            asked.append(key[0])
        delta = _distance(left.get("filtered_resps"), right.get("filtered_resps"))
        if delta > tolerance:
            other.append(key[0])
        if largest < delta < math.inf:
            largest, where = delta, key[0]
        names = dict.fromkeys([*(left.get("metrics") or ()), *(right.get("metrics") or ())])
        if any(not _same(left.get(name), right.get(name)) for name in names):
            scored.append(key[0])
    for what, keys in (
        ("were asked otherwise", asked),
        ("have another response", other),
        ("have another score", scored),
    ):
        said += [f"{len(keys)} of {len(both)} documents {what}, e.g. {keys[0]}"] if keys else []
    if other and largest:
        said.append(f"log-probabilities differ by up to {largest:.3g}, in {where}")
    return said


def _distance(one: Any, two: Any) -> float:
    """Of two responses: how far log-probabilities are from each other; infinite where anything else differs."""
    if _is_number(one) and _is_number(two):
        return 0.0 if _same(float(one), float(two)) or one == two else _finite(abs(one - two))
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        # Whether it is the likeliest text follows from the logits; a list of numbers and of that is a likelihood.
        return max((_distance(left, right) for left, right in zip(one, two, strict=True)), default=0.0)
    return 0.0 if _same(one, two) else math.inf


def _finite(value: float) -> float:
    return math.inf if math.isnan(value) else float(value)


def _cells(a: Opened, b: Opened, tolerance: float) -> Level:
    """Two grids, in the cells and documents that both have."""
    level = Level("cells")
    one, two = (Grid.load(each.folder / "grid.npz") for each in (a, b))
    shared = set(two.cells), set(two.documents)
    cells = [cell for cell in one.cells if cell in shared[0]]
    documents = [name for name in one.documents if name in shared[1]]
    for name, grid in (("a", one), ("b", two)):
        alone = len(grid.cells) - len(cells), len(grid.documents) - len(documents)
        level.notes += [f"{alone[0]} cells only in {name}"] if alone[0] else []
        level.notes += [f"{alone[1]} documents only in {name}"] if alone[1] else []
    if not cells or not documents:
        return level
    one, two = one.take(documents), two.take(documents)
    columns = one.columns(cells), two.columns(cells)
    where = [f"{show(cell)}, {name}" for name in documents for cell in cells]
    if (one.logprob is None) is not (two.logprob is None):
        level.notes.append("only one of them has log-probabilities")
    elif one.logprob is not None and two.logprob is not None:
        left, right = one.logprob[:, columns[0]], two.logprob[:, columns[1]]
        if left.shape[2] != right.shape[2]:
            level.notes.append(f"{left.shape[2]} choices in a, {right.shape[2]} in b")
        else:
            level.notes += _far(_distances(left, right).max(axis=2).ravel(), tolerance, where, "log-probabilities")
    if one.texts is not None and two.texts is not None and one.text is not None and two.text is not None:
        texts = [*one.texts, ""], [*two.texts, ""]  # the last, of index -1: not looked at
        pairs = zip(one.text[:, columns[0]].ravel(), two.text[:, columns[1]].ravel(), strict=True)
        other = [place for place, (i, j) in enumerate(pairs) if texts[0][i] != texts[1][j]]
        level.notes += [f"{len(other)} of {len(where)} texts differ, e.g. {where[other[0]]}"] if other else []
    for metric in one.meta["metrics"]:
        if metric in two.meta["metrics"]:
            left, right = (
                grid.scores[grid.meta["metrics"].index(metric)][:, own]
                for grid, own in zip((one, two), columns, strict=True)
            )
            level.notes += _far(_distances(left, right).ravel(), 0.0, where, metric)
    return level


def _distances(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Absolute differences, of the shape of both; 0 where both are NaN, infinite where one is."""
    with np.errstate(invalid="ignore"):
        found = np.abs(one.astype(np.float64) - two.astype(np.float64))
    found[np.isnan(found)] = np.inf
    found[(one == two) | (np.isnan(one) & np.isnan(two))] = 0.0
    return found


def _far(distances: np.ndarray, tolerance: float, where: Sequence[str], what: str) -> list[str]:
    other = np.flatnonzero(distances > tolerance)
    if not len(other):
        return []
    place = int(other[distances[other].argmax()])
    return [f"{what}: {len(other)} of {len(where)} differ, by up to {distances[place]:.3g} ({where[place]})"]
