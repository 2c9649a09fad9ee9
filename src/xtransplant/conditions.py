"""What runs and grids are conditions of a comparison, what each is called, and which may stand beside each other.

A grid gives its upper bound, a control grid what chance reaches. A fine-tuned model is known by its files' hashes.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xtransplant import comparison, disk, grid, record
from xtransplant.grid import Grid
from xtransplant.measures import samples
from xtransplant.overview import VANILLA, Document, flat, parts
from xtransplant.record import Run
from xtransplant.types import Cell, XTransplantError

log = logging.getLogger(__name__)

# Kinds of conditions, in the order in which they are shown. An oracle reads the labels: it has no p.
KINDS = ("vanilla", "pim", "transplant", "strategy", "sft", "sft+transplant", "upper_bound", "chance")
ORACLES = ("upper_bound", "chance")


@dataclass(frozen=True)
class Cost:
    """What was computed. None: not known, e.g. not recorded by an earlier version."""

    seconds: float | None = None
    tokens: int | None = None
    flops: float | None = None

    def __add__(self, other: Cost) -> Cost:
        """What both take; not known where one is not."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("seconds", "tokens", "flops")]
        return Cost(*(None if None in pair else sum(pair) for pair in pairs))

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Cost:
        return cls(**(manifest.get("cost") or {}))


NOTHING = Cost(0.0, 0, 0.0)


def comparable(
    runs: Sequence[Run], grids: Sequence[Run], trainings: Sequence[Run]
) -> tuple[list[Entry], dict[tuple[str, ...], list[str]]]:
    """Conditions that may stand beside each other, and for each group why a grid was left out of it.

    Arguments and errors are those of `compare.compare`.
    """
    known = _Known(grids, trainings)
    entries = [entry for run in sorted(runs, key=lambda run: str(run.folder)) for entry in _evaluated(run, known)]
    faults = _unlike(entries)
    if faults:
        more = f" ({len(faults) - 5} more such differences.)" if len(faults) > 5 else ""
        raise XTransplantError(
            "\n".join(["runs: they cannot be compared.", *(f"  - {each}" for each in faults[:5])]) + more
        )
    fitting, left_out = _fitting(grids, entries, known)
    entries += _bounds(fitting, entries, known)
    return entries, left_out


def untouched(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a fine-tuned model's provenance that of the model below it which nobody trained here; else its own."""
    return _Known((), ()).lineage(model)[0]


# --- What a run says -------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A condition on one language pair."""

    run: Run
    group: tuple[str, ...]  # base model's files and dtype, task family, half, metric
    model: str
    pair: str
    kind: str
    name: str
    treatment: str  # what was done to the model: digest
    kin: str  # of that what is the same in every language pair of the condition
    higher_is_better: bool
    score: float
    documents: int
    scores: Mapping[Document, float] | None
    cost: Cost
    before: Mapping[str, Cost]  # what it took before: trainings and grids, each once
    chance: float | None = None
    beyond_chance: bool = False  # of an upper bound: its controls reach less
    note: str = ""
    plain_sources: bool = True  # source prompts are the pair's own
    trained: str = ""  # what fine-tuning made: the beginning of the name
    of_grid: bool = False

    @property
    def weights(self) -> str:
        return _canonical(_weights(self.run.manifest.get("model") or {}))

    @property
    def is_pim(self) -> bool:
        return bool(self.run.results["config"]["model_args"].get("prompt") == "both")


class _Known:
    """Trainings and grids, to be found by what they made."""

    def __init__(self, grids: Sequence[Run], trainings: Sequence[Run]) -> None:
        self._grids = {str(run.manifest.get("grid_sha256")): run.manifest for run in grids}
        self._trainings = list(trainings)
        self._read: dict[Path, Run | None] = {}

    def lineage(self, model: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[tuple[Mapping[str, Any], Run | None]]]:
        """Of a model's provenance: that of the untouched model below it, and what was made of it, the last first: an
        adapter or a whole model, and its training where that is known."""
        made: list[tuple[Mapping[str, Any], Run | None]] = []
        while True:
            adapter = model.get("adapter")
            training = self._training(adapter or model)
            if adapter is None and (training is None or any(run is training for _, run in made)):
                return model, made
            made.append((adapter or model, training))
            if adapter is not None or training is None:
                model = {**model, "adapter": None}
            else:
                model = training.manifest["model"]

    def _training(self, made: Mapping[str, Any]) -> Run | None:
        """The training whose weights, or adapter, these are."""
        weights = {name: each for name, each in (made.get("files") or {}).items() if name.endswith(".safetensors")}
        if not weights:
            return None
        folder = Path(str(made.get("path"))).expanduser()
        if folder not in self._read:
            self._read[folder] = self._at(folder)
        at_hand = [*self._trainings, *(run for run in [self._read[folder]] if run is not None)]
        return next((run for run in at_hand if weights.items() <= run.manifest["files"].items()), None)

    def _at(self, folder: Path) -> Run | None:
        try:
            manifest = disk.unsealed(disk.json_of(folder / record.MANIFEST))
            return Run(folder, manifest, {}) if manifest["job"] == "sft" and "files" in manifest else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def grid(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """The manifest of a grid that a selection names, where it is given or still lies where it was; else empty."""
        sha, folder = str(facts.get("grid_sha256")), facts.get("folder")
        if sha not in self._grids:
            found: dict[str, Any] = {}
            if folder is not None:
                with suppress(OSError, ValueError):
                    found = disk.unsealed(disk.json_of(Path(folder) / record.MANIFEST))
            self._grids[sha] = found if found.get("grid_sha256") == sha else {}
        return self._grids[sha]


def _evaluated(run: Run, known: _Known) -> Iterator[Entry]:
    facts, args = run.manifest, run.results["config"]["model_args"]
    model = facts.get("model") or {}
    base, tuned = known.lineage(model)
    selection = args.get("selection")
    transplant = args.get("transplant") or {}
    moved = selection is not None or bool(transplant)
    both = args.get("prompt") == "both"
    if tuned:
        kind = "sft+transplant" if moved else "sft"
    else:
        kind = ("strategy" if selection is not None else "transplant") if moved else "pim" if both else VANILLA
    name, trained = str(facts["condition"]), _trained_name(tuned)
    if tuned:
        name = trained if name == VANILLA else f"{trained} + {name}"
    before = _training_costs(tuned)
    # A fixed pair was chosen on no grid, though it is recorded with one.
    for each in selection["grids"] if selection is not None and selection["strategy"] != "fixed" else []:
        before[f"grid {each.get('grid_sha256') or each.get('source')}"] = Cost.of(known.grid(each))
    how = transplant if selection is None else {**selection["grids"][0].get("intervention", {}), **transplant}
    for part in parts(run):
        yield Entry(
            run=run,
            group=(
                _canonical([base.get("files"), model.get("dtype")]),
                facts["task_name"],
                facts["split"],
                part.block[3],
            ),
            model=_label(facts, tuned),
            pair=part.pair,
            kind=kind,
            name=name,
            treatment=_canonical([part.treatment, _weights(model)]),
            kin=_canonical([_weights(model), *([transplant, both, _alike(selection, known)] if moved or both else [])]),
            higher_is_better=part.higher_is_better,
            score=part.cell.score,
            documents=part.cell.documents,
            scores=part.scores,
            cost=Cost.of(facts),
            before=before,
            plain_sources=how.get("control", "none") in ("none", "zero") and not how.get("mean_over"),
            trained=trained,
        )


_Made = Sequence[tuple[Mapping[str, Any], Run | None]]


def _label(facts: Mapping[str, Any], tuned: _Made) -> str:
    """The name of the untouched model."""
    labels = [run.manifest.get("model_name") for _, run in tuned if run is not None]
    return str(labels[-1] if labels and labels[-1] is not None else facts["model_name"])


def _weights(model: Mapping[str, Any]) -> list[Any]:
    return [model.get("files"), (model.get("adapter") or {}).get("files")]


def _alike(selection: Mapping[str, Any] | None, known: _Known) -> Any:
    """How was chosen, and on what kind of grids: which these are, and what came of it, differs by language pair."""
    if selection is None:
        return None
    grids = {
        _canonical(
            [
                *(each.get(name) for name in ("task_name", "intervention", "control", "source")),
                *(known.grid(each).get(name) for name in ("components", "pairs", "left_out", "split")),
            ]
        )
        for each in selection["grids"]
    }
    return [selection["strategy"], selection.get("pooled"), sorted(grids)]


def _training_costs(tuned: _Made) -> dict[str, Cost]:
    return {
        f"training {_canonical(made['files'])}": Cost() if training is None else Cost.of(training.manifest)
        for made, training in tuned
    }


def _trained_name(tuned: _Made) -> str:
    return " after ".join(_trained_as(made, training) for made, training in tuned)


def _trained_as(made: Mapping[str, Any], training: Run | None) -> str:
    """What a training made, in a few words."""
    if training is None:
        return f"SFT ({Path(str(made['path'])).name})"
    facts = training.manifest
    languages = facts.get("languages") or []
    words = [facts.get("method"), facts.get("data"), languages if isinstance(languages, str) else "+".join(languages)]
    named = [re.sub(r"\s+", " ", str(word)) for word in words if isinstance(word, str | int) and str(word)]
    return f"SFT ({', '.join(named) or training.folder.name})"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


# --- What a grid says ------------------------------------------------------------------------------------------------


def _fitting(
    runs: Sequence[Run], evaluated: Sequence[Entry], known: _Known
) -> tuple[list[tuple[Run, Grid]], dict[tuple[str, ...], list[str]]]:
    """The grids that can stand beside the runs of their language pair; and for each group why others cannot."""
    loaded = [(run, Grid.load(run.folder / "grid.npz")) for run in runs]
    plain = [_plain(run, made, known) for run, made in loaded]
    first: dict[tuple[tuple[str, ...], str], Entry] = {}
    real = [entry for entry, (_, made) in zip(plain, loaded, strict=True) if made.meta["control"] is None]
    for entry in (
        *sorted(evaluated, key=_plainness),
        *sorted(real, key=lambda each: (-each.documents, str(each.run.folder))),
    ):
        first.setdefault((entry.group, entry.pair), entry)
    fitting: list[tuple[Run, Grid]] = []
    left_out: dict[tuple[str, ...], list[str]] = {}
    for entry, (run, made) in zip(plain, loaded, strict=True):
        beside = first.get((entry.group, entry.pair), entry)
        why = None if beside.run is run else next(_differences(entry, beside), None)
        if why is None:
            fitting.append((run, made))
            continue
        note = f"A {'grid' if made.meta['control'] is None else 'control grid'} is left out: {why}"
        log.warning("%s", note)
        left_out.setdefault(entry.group, []).append(note)
    return fitting, left_out


def _bounds(loaded: Sequence[tuple[Run, Grid]], evaluated: Sequence[Entry], known: _Known) -> Iterator[Entry]:
    """Of each grid its upper bound, of each control that of the control; and the model without a transplant, vanilla or
    fine-tuned, where no run of `evaluate` has it."""
    real = [(run, made) for run, made in loaded if made.meta["control"] is None]
    controls = [(run, made) for run, made in loaded if made.meta["control"] is not None]
    beside: dict[str, list[dict[str, Any]]] = {}
    control_entries: list[Entry] = []
    for run, made in controls:
        # By the cells in common: of these alone it says what chance does.
        found_of: dict[tuple[Cell, ...], Entry] = {}
        for real_one in {each.sha256: each for _, each in real}.values():
            try:
                _, cells = grid.same_cells(made, real_one)
            except XTransplantError:
                continue  # of another setting, or of other documents or cells
            row, reached = comparison.control_row(made, real_one)
            beside.setdefault(real_one.sha256, []).append(row)
            of = next((each for each in (made, real_one) if len(cells) == each.seen.sum()), None)
            scope = f"{'+'.join(row['components'])}, {len(cells)} cells" if of is None else _scope(of)
            name = f"control {made.meta['control']} ({scope})"
            entry = _of_grid(run, made, "chance", name, reached, known, cells)
            note = f"the real vectors reach {row['reference']:.3f} in the same {_cells(row['number'])}"
            found_of.setdefault(tuple(sorted(cells)), replace(entry, chance=row["chance"], note=note))
        control_entries += found_of.values()
        if not found_of:
            log.warning("%s: a control without its grid among the runs; it is left out.", run.folder)
    there = {_place(entry) for entry in evaluated}
    # Of several grids that with the most documents.
    for run, made in sorted(real, key=lambda each: -len(each[1].documents)):
        plain = _plain(run, made, known)
        if _place(plain) not in there:
            there.add(_place(plain))
            # What the model alone costs, a grid does not say.
            yield replace(plain, cost=Cost())
    for run, made in real:
        order = grid.ranked(made)
        if not len(order):
            log.warning("%s: no cell was seen on all documents; it has no upper bound.", run.folder)
            continue
        name = f"upper bound ({_scope(made)})"
        entry = _of_grid(run, made, "upper_bound", name, grid.union(made, order), known)
        rows = beside.get(made.sha256, [])
        found = [
            f"{row['name'].rpartition(' ')[2]} {row['score']:.3f}, less by {row['above']:.3f} "
            f"({row['above_low']:+.3f} to {row['above_high']:+.3f}) in {_cells(row['number'])}"
            + (f" and {row['documents']} documents" if row["documents"] < entry.documents else "")
            for row in rows
        ]
        note = f"controls reach: {'; '.join(found)}" if rows else "no control grid says how much of it is chance"
        yield replace(
            entry,
            chance=grid.chance(made, len(order)),
            beyond_chance=bool(rows) and all(row["above_low"] > 0 for row in rows),
            note=f"the best of {_cells(len(order))} for each document; {note}",
        )
    yield from control_entries


def _plain(run: Run, made: Grid, known: _Known) -> Entry:
    """Its model without a transplant."""
    return _of_grid(run, made, VANILLA, VANILLA, made.vanilla[0], known)


def _place(entry: Entry) -> tuple[Any, ...]:
    """What a model without a transplant is known by."""
    return entry.group, entry.pair, entry.kind, entry.weights, entry.is_pim


def _cells(number: int) -> str:
    return f"{number} cell{'' if number == 1 else 's'}"


def _scope(made: Grid) -> str:
    """Which cells a grid has."""
    components = "+".join(dict.fromkeys(cell.component.value for cell in made.cells))
    some = made.meta.get("pairs", "all")
    return f"{components}{'' if some == 'all' else f', {some}' if isinstance(some, str) else ', some pairs'}"


def _of_grid(
    run: Run, made: Grid, kind: str, name: str, values: np.ndarray, known: _Known, cells: Sequence[Cell] = ()
) -> Entry:
    facts = run.manifest
    model = facts.get("model") or {}
    base, tuned = known.lineage(model)
    trained = _trained_name(tuned)
    metric, _, filtered = made.metric.partition(",")
    documents = [(task, key) for task, _, key in (each.partition("/") for each in made.documents)]
    # As they were before they were kept in 32 bits: 0.1, not 0.10000000149.
    values = values.astype(np.float32).astype(str).astype(np.float64)
    if tuned:
        kind, name = ("sft", trained) if kind == VANILLA else (kind, f"{trained} + {name}")
    return Entry(
        run=run,
        group=(
            _canonical([base.get("files"), model.get("dtype")]),
            facts["task_name"],
            facts["split"],
            f"{metric} ({filtered})" if filtered else metric,
        ),
        model=_label(facts, tuned),
        pair=facts["language_pair"],
        kind=kind,
        name=name,
        treatment=_canonical([kind, made.sha256, [grid.as_list(cell) for cell in sorted(cells)]]),
        kin=_canonical(
            [_weights(model), *([facts.get("intervention"), bool(facts.get("left_out"))] if kind in ORACLES else [])]
        ),
        higher_is_better=made.sign > 0,
        score=float(values.mean()),
        documents=len(documents),
        scores=dict(zip(documents, values.tolist(), strict=True)),
        cost=Cost.of(facts),
        before=_training_costs(tuned),
        plain_sources=not facts.get("control") and not (facts.get("intervention") or {}).get("mean_over"),
        trained=trained,
        of_grid=True,
    )


# --- What may be compared --------------------------------------------------------------------------------------------


def _unlike(entries: Sequence[Entry]) -> list[str]:
    """What runs of one group and language pair differ in that must be the same, a sentence or two each."""
    faults: list[str] = []
    for place in dict.fromkeys((entry.group, entry.pair) for entry in entries):
        same = [entry for entry in entries if (entry.group, entry.pair) == place]
        first = min(same, key=_plainness)
        for entry in same:
            if entry.run is not first.run:
                faults += _differences(entry, first)
    return list(dict.fromkeys(faults))


def _plainness(entry: Entry) -> tuple[bool, bool, int]:
    """By which the one is chosen that others are held against: both prompts in one say little of each, and a control's
    source documents say nothing of the others'."""
    return entry.is_pim, not entry.plain_sources, KINDS.index(entry.kind)


def _differences(entry: Entry, first: Entry) -> Iterator[str]:
    here, there = entry.run.manifest["tasks"], first.run.manifest["tasks"]
    if here.keys() != there.keys():
        names = [", ".join(sorted(each)) for each in (here, there)]
        yield f"tasks: {names[0]} in {entry.run.folder}, {names[1]} in {first.run.folder}."
        return
    sides = [] if entry.is_pim or first.is_pim else ["target"]
    sides += ["source"] if sides and entry.plain_sources and first.plain_sources else []
    for task, mine in here.items():
        other = there[task]

        def said(what: str, one: Any, two: Any, do: str, task: str = task) -> str:
            return f"{what} of {task}: {one} in {entry.run.folder}, {two} in {first.run.folder}. {do}"

        def prompts(one: Any, two: Any, said: Callable[[str, Any, Any, str], str] = said) -> str:
            return said("prompts", *_settings(entry.run, first.run, (one, two)), "Compare runs with the same prompts.")

        if mine.get("version") != other.get("version"):
            yield said("version", mine.get("version"), other.get("version"), "Compute one of them anew.")
        one, two = (_documents(facts, entry.plain_sources and first.plain_sources) for facts in (mine, other))
        asked = (mine.get("prompts_sha256") or {}, other.get("prompts_sha256") or {})
        if one != two and entry.of_grid:
            found = _differences_of_part(entry.run, first.run, task, sides)
            if found is not None:
                yield prompts(*found[1:3]) if found[0] == "prompts" else said(*found)
                continue
        elif mine["documents"] != other["documents"]:
            do = "Compare runs of one limit and split."
            yield said("documents", mine["documents"], other["documents"], do)
            continue
        elif one != two:
            digests = (_short(one), _short(two))
            yield said("documents", f"{mine['documents']} ({digests[0]})", f"others ({digests[1]})", "Other data?")
            continue
        else:
            differing = [side for side in sides if asked[0].get(side) != asked[1].get(side)]
            if differing or mine.get("questions_sha256") != other.get("questions_sha256"):
                yield prompts(*asked)
                continue
        if entry.is_pim is not first.is_pim and _asked_how(entry.run) != _asked_how(first.run):
            yield prompts(*asked)


def _documents(facts: Mapping[str, Any], sources: bool) -> dict[str, Any]:
    """Digests of a task's documents: of both sides, or of the target side where the sources are others by nature."""
    docs = facts.get("docs_sha256") or {}
    return {
        "keys_sha256": facts.get("keys_sha256"),
        "docs_sha256": {side: digest for side, digest in docs.items() if sources or side != "source"},
    }


def _differences_of_part(run: Run, whole: Run, task: str, sides: Sequence[str]) -> tuple[str, str, str, str] | None:
    """Of a run on some of the documents of another, document by document: the first thing that differs, what it is in
    both, and what to do."""
    mine, others = ({str(row["key"]): row for row in samples(each, task)} for each in (run, whole))
    missing = [key for key in mine if key not in others]
    if missing:
        there = f"{len(mine)}, {len(missing)} of which the other lacks (e.g. {missing[0]}),"
        return "documents", there, str(len(others)), "Give a grid of the same documents, or of some of them."
    for key, row in mine.items():
        other = others[key]
        hashes = [[each.get(name) for name in ("doc_hash", "target_hash")] for each in (row, other)]
        if hashes[0] != hashes[1]:
            return "documents", f"{key} ({_short(hashes[0])})", f"another ({_short(hashes[1])})", "Other data?"
        # Beside both prompts in one a prompt differs by nature, the choices and how to generate do not.
        asked = [
            [
                [list(each)[0 if "target" in sides else 1 :] for each in one.get("arguments") or []],
                one.get("source_prompts") if "source" in sides else None,
            ]
            for one in (row, other)
        ]
        if asked[0] != asked[1]:
            return "prompts", str(row.get("prompt_hash")), str(other.get("prompt_hash")), ""
    return None


def _asked_how(run: Run) -> list[Any]:
    """The settings that shape a prompt: those of both prompts in one are the same as those of each."""
    args = run.results["config"]["model_args"]
    names = ("num_fewshot", "system_instruction", "apply_chat_template", "fewshot_as_multiturn")
    found = [(args.get("task") or {}).get(name) for name in names]
    return [*found, args.get("seed") if found[0] else None]


def _settings(run: Run, other: Run, asked: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """What makes two runs' prompts differ: the settings of their tasks, or their digests."""
    given = [
        {
            key: value
            for key, value in flat(each.results["config"]["model_args"]).items()
            if key.startswith(("task.", "seed"))
        }
        for each in (run, other)
    ]
    names = sorted(name for name in {*given[0], *given[1]} if given[0].get(name) != given[1].get(name))
    if not names:
        return _short(asked[0]), _short(asked[1])
    one, two = (", ".join(f"{name}={each.get(name, 'null')}" for name in names) for each in given)
    return one, two


def _short(value: Any) -> str:
    digests = re.findall(r"[0-9a-f]{16,}", _canonical(value))
    return " ".join(digest[:8] for digest in digests) or "no digest"
