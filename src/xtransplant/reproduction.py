"""A run computed again, beside what it recorded: on which level do they differ first, and by how much.

The levels rest on each other: another environment or model may give other responses, other data give other prompts. So
all are compared, and the first that differs is named.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xtransplant import bundle, command, compose, record, tables
from xtransplant.checks import refusal, shown
from xtransplant.config import EvaluateConfig, GridConfig, ReproduceConfig, TaskJob, TrackingConfig
from xtransplant.grid import Grid, as_list
from xtransplant.grid import show as show_cell
from xtransplant.types import Cell, XTransplantError

FOLDER = "reproduce"  # below output_dir
GRID = "grid.npz"
# Level -> the exit code if it is the first that differs.
CODES = {"environment": 11, "model": 12, "data": 13, "prompts": 14, "responses": 15, "metrics": 16}
# What lets code run, or bytes that may be code: never taken over from a record, which may be a stranger's.
_TRUSTED = ("model.trust_remote_code", "model.allow_pickle", "task.allow_code")
# Facts of a model that its files do not say alone.
_LOADED = ("class", "num_layers", "parameters", "dtype", "attn_implementation")
_PLACED = ("device", "device_map")
_NAMED = 3  # examples in a line


@dataclass(frozen=True)
class Level:
    """One level compared.

    Attributes:
        agrees: None where there is nothing to compare, or not yet.
        said: what was compared; where it differs, by how much.
        amounts: the same as JSON values; of two, the recorded one comes first.
        also: what is worth knowing and counts for nothing.
    """

    name: str
    agrees: bool | None
    said: str
    amounts: dict[str, Any] = field(default_factory=dict)
    also: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        return {True: "agrees", False: "differs", None: "-"}[self.agrees]


# --- What is there to be compared ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a run left, as far as it is compared. Of a stranger's run, too: its form is checked when it is read.

    Attributes:
        tasks: name -> the manifest's facts of it.
        rows: name -> (key, filter) -> the document's row in its file of samples; None where that was not passed on.
        samples: name -> sha256 of the file of samples, as the run wrote it.
        redacted: names of those whose rows have hashes in place of the data's texts.
    """

    place: str
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    tasks: dict[str, dict[str, Any]]
    rows: dict[str, dict[tuple[str, str], dict[str, Any]] | None]
    samples: dict[str, str]
    redacted: frozenset[str]
    grid: Grid | None

    @classmethod
    def of(cls, run: bundle.Opened | record.Run) -> Ran:
        """Read a run's files.

        Raises:
            XTransplantError: one does not hold what such a run writes; or a grid without its arrays.
        """
        withheld = run.withheld if isinstance(run, bundle.Opened) else {}
        place = run.place if isinstance(run, bundle.Opened) else str(run.folder)
        manifest, results = run.manifest, run.results
        try:
            environment, model = manifest["environment"], manifest["model"]
            tasks = {str(name): dict(facts) for name, facts in manifest["tasks"].items()}
            of_texts = [environment["versions"], model["files"], (model.get("adapter") or {}).get("files") or {}]
            if not all(isinstance(each, str) for some in of_texts for each in some.values()):
                raise TypeError("versions and hashes are texts")
            git, transplant = environment.get("git") or {}, manifest.get("transplant") or {}
            if not isinstance(git.get("commit", ""), str) or not isinstance(transplant, dict):
                raise TypeError("a commit is a text, a transplant an object")
            if not all(isinstance(each.get("documents", 0), int) for each in tasks.values()):
                raise TypeError("documents are a number")
            if not isinstance(environment["python"], str) or not isinstance(manifest["files"], dict):
                raise TypeError("python is a text, files an object")
            found = [isinstance(each, dict) for each in (results["results"], *results["results"].values())]
            if not all(found):
                raise TypeError("results are an object for each task")
            files = {name: f"samples_{name}.jsonl" for name in tasks}
            samples = {name: str(manifest["files"][file]) for name, file in files.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise XTransplantError(f"{place}: no records of a run of evaluate or grid ({error!r}).") from error
        rows = {name: _read_rows(run.folder / file, place) for name, file in files.items()}
        redacted = frozenset(name for name, file in files.items() if f"{bundle.RUN}/{file}" in withheld)
        grid = None
        if manifest["job"] == "grid":
            grid = Grid.load(run.folder / GRID)
        return cls(place, manifest, results, tasks, rows, samples, redacted, grid)


def _read_rows(path: Path, place: str) -> dict[tuple[str, str], dict[str, Any]] | None:
    if not path.is_file():
        return None
    rows = {}
    for where, row in bundle.rows_of(path, f"{place}: {path.name}"):
        if not isinstance(row, dict) or not isinstance(row.get("key"), str) or not isinstance(row.get("resps"), list):
            raise XTransplantError(f"{where}: no document of a file of samples.")
        name = row["key"], str(row.get("filter"))
        if name in rows:
            raise XTransplantError(f"{where}: {name[0]} is there twice.")
        rows[name] = row
    return rows


# --- What to compute -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is to be computed again.

    Attributes:
        runs: one; or of drawn cells one for each component.
        put_in: what is not as it was recorded, and why, a line each.
        cells: those that were drawn; None: all.
    """

    runs: list[TaskJob]
    put_in: list[str]
    cells: list[Cell] | None


def plan(opened: bundle.Opened, ran: Ran, asked: ReproduceConfig, folder: Path) -> Plan:
    """The recorded config, with what is here in place of what was there.

    What a bundle brought is copied into the folder, where it is found when a reproduction is gone on with.

    Raises:
        XTransplantError: with every fault of the config as it would be here; it lets code run, and nobody asked for
            that here; cells or a batch size where there are none; more cells than there are.
    """
    job = str(ran.manifest["job"])
    faults = []
    if asked.batch_size is not None and job != "evaluate":
        faults.append("batch_size: a grid has none; what a batch may take is its grid.memory: set=[grid.memory=1]")
    if asked.cells is not None and job != "grid":
        faults.append(f"cells={asked.cells}: {opened.place} is a run of {job}. Only a grid has cells.")
    given = [line.partition("=")[0] for line in asked.set]
    settings = list(asked.set)
    put_in = [f"{line} (set)" for line in asked.set]
    if asked.batch_size is not None:
        settings.append(f"batch_size={asked.batch_size}")
        put_in.append(f"batch_size={asked.batch_size}")
    where = f"{opened.place}: {record.CONFIG}"
    config, more = compose.recorded(job, opened.config, settings, where)
    faults += more
    for name in _TRUSTED:
        section, _, key = name.partition(".")
        recorded = opened.config.get(section)
        if isinstance(recorded, dict) and recorded.get(key) not in (None, False) and name not in given:
            faults.append(
                f"{where}: {name} is {shown(recorded[key])}, which may run code that came with the model, the task or "
                f"the data. It is not taken over: look at that code; if you trust it, add set=[{name}=true]."
            )
    if faults or not isinstance(config, TaskJob):
        raise refusal(faults)
    config, moved = _moved(config, opened, ran, given, folder)
    config = replace(config, output_dir=str(folder), resume=True, overwrite=asked.overwrite, tracking=TrackingConfig())
    faults = compose.check(config)
    if faults:
        hint = "What lies elsewhere on this machine is said by set=, e.g. set=[model.path=/models/mine]."
        raise refusal([*faults, f"Keys and values are those that {where} has recorded. {hint}"])
    put_in += moved
    if not isinstance(config, GridConfig) or asked.cells is None:
        return Plan([config], put_in, None)
    assert ran.grid is not None
    cells = drawn(ran.grid, asked.cells, asked.seed)
    return Plan(_grids_of(config, cells), put_in, cells)


def _moved(
    config: TaskJob, opened: bundle.Opened, ran: Ran, given: Collection[str], folder: Path
) -> tuple[TaskJob, list[str]]:
    """What the run had lies in the folder, came in the bundle, or is asked for by its hash; nothing that was given."""
    moved = []
    provenance = ran.manifest["model"]
    revision = provenance.get("revision")
    named = {"model.path", "model.revision"} & set(given)
    if isinstance(revision, str) and not named and config.model.revision != revision:
        config = replace(config, model=replace(config.model, revision=revision))
        moved.append(f"model.revision={revision} (the commit that was loaded)")
    if opened.adapter is not None and "model.adapter" not in given:
        config = replace(config, model=replace(config.model, adapter=_copied(opened.adapter, folder / "adapter")))
        moved.append("model.adapter (the bundle's)")
    if opened.include_path and "task.include_path" not in given:
        own = [_copied(each, folder / "tasks" / each.name) for each in opened.include_path]
        config = replace(config, task=replace(config.task, include_path=own))
        moved.append("task.include_path (the bundle's)")
    data_dir = config.task.data_dir
    if data_dir is not None and "task.data_dir" not in given and not Path(data_dir).expanduser().is_dir():
        config = replace(config, task=replace(config.task, data_dir=None))
        moved.append(f"task.data_dir=null ({data_dir} is not here: XTRANSPLANT_DATA, or the data's origin)")
    chosen = (ran.manifest.get("transplant") or {}).get("selection")
    if isinstance(config, EvaluateConfig) and config.selection is not None and "selection" not in given and chosen:
        # Its content is in the manifest; the file may be gone by now, or hold another choice.
        path = folder / "selection.json"
        folder.mkdir(parents=True, exist_ok=True)
        record.write(path, record.as_json({"format": 1, "selections": [chosen]}))
        config = replace(config, selection=str(path))
        moved.append("selection (as the run has recorded it)")
    return config, moved


def _copied(source: Path, target: Path) -> str:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return str(target)


def drawn(grid: Grid, count: int, seed: int) -> list[Cell]:
    """So many cells of those that any document was looked at in, by chance.

    Raises:
        XTransplantError: there are fewer.
    """
    there = np.flatnonzero(~np.isnan(grid.scores[0]).all(axis=0))
    if count > len(there):
        raise XTransplantError(f"cells={count}: the grid has {len(there)}. Give fewer, or null for all of it.")
    return [grid.cells[n] for n in sorted(np.random.default_rng(seed).choice(there, count, replace=False))]


def _grids_of(config: GridConfig, cells: Sequence[Cell]) -> list[TaskJob]:
    """A grid of each component's cells. Without a budget: what that left out was not drawn."""
    runs: list[TaskJob] = []
    for component in dict.fromkeys(cell.component for cell in cells):
        pairs = [[cell.source, cell.target] for cell in cells if cell.component is component]
        swept = replace(config.grid, pairs=pairs, budget=None)
        runs.append(replace(config, grid=swept, transplant=replace(config.transplant, component=component.value)))
    return runs


def training_refused(opened: bundle.Opened) -> XTransplantError:
    """A training takes long, and its curve says at once whether it is the same one: it is left to its own command."""
    said = command.command("sft", {**opened.config, "output_dir": f"outputs/{FOLDER}"})
    return XTransplantError(
        f"run={opened.place}: a run of sft. reproduce computes runs of evaluate and grid. To train again: {said}; then "
        "compare training.jsonl and results.json of the two folders."
    )


# --- Levels ----------------------------------------------------------------------------------------------------------


def environment(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> Level:
    """Python and the versions of what computes; the machine and the commit are said, not counted."""
    versions = {"Python": (recorded["python"], here["python"])}
    versions |= {name: (each, here["versions"].get(name)) for name, each in sorted(recorded["versions"].items())}
    other = {name: list(pair) for name, pair in versions.items() if pair[0] != pair[1]}
    also = []
    if recorded.get("platform") != here["platform"]:
        also.append(f"the machine: {recorded.get('platform')}, here {here['platform']}")
    threads = recorded.get("threads"), here.get("threads")
    if None not in threads and threads[0] != threads[1]:
        also.append(f"threads: {threads[0]}, here {threads[1]}; the last bits of numbers depend on them")
    commits = [_commit(each.get("git") or {}) for each in (recorded, here)]
    if commits[0] != commits[1] or "changes" in commits[0]:
        also.append(f"xtransplant's commit: {commits[0]}, here {commits[1]}")
    if not other:
        return Level("environment", True, f"Python {here['python']}, {len(versions) - 1} packages", also=also)
    words = [f"{name} {was}, here {now or 'not installed'}" for name, (was, now) in other.items()]
    return Level("environment", False, f"{len(other)} of {len(versions)}: {_some(words)}", {"versions": other}, also)


def _commit(git: Mapping[str, Any]) -> str:
    return f"{git['commit'][:12]}{' with changes' if git.get('changed') else ''}" if git.get("commit") else "not known"


def model(recorded: Mapping[str, Any], here: Mapping[str, Any] | None) -> Level:
    """Hashes of the files of the model and its adapter.

    Args:
        here: provenance, or as much of it as `loading.files_here` has before the model is loaded; None: nothing yet.
    """
    if here is None:
        return Level("model", None, "not on this machine yet: compared when it is loaded")
    files, other = 0, {}
    for part, (was, now) in {"": (recorded, here), "adapter ": (recorded.get("adapter"), here.get("adapter"))}.items():
        pair = [dict((each or {}).get("files") or {}) for each in (was, now)]
        files += len(pair[0])
        for name in sorted(pair[0] | pair[1]):
            if pair[0].get(name) != pair[1].get(name):
                other[f"{part}{name}"] = [each.get(name) for each in pair]
    facts = {
        name: [recorded[name], here[name]]
        for name in _LOADED
        if name in recorded and name in here and recorded[name] != here[name]
    }
    also = [
        f"{name}: {recorded[name]}, here {here[name]}"
        for name in (*_PLACED, "path", "revision")
        if name in recorded and name in here and recorded[name] != here[name]
    ]
    if not other and not facts and not files:
        return Level("model", None, "the run has recorded no hashes of the model's files", also=also)
    if not other and not facts:
        return Level("model", True, f"{files} files, byte for byte", also=also)
    words = [f"{name} {_state(*pair)}" for name, pair in other.items()]
    words += [f"{name} {was}, here {now}" for name, (was, now) in facts.items()]
    return Level("model", False, _some(words), {"files": other, "facts": facts}, also)


def _state(was: str | None, now: str | None) -> str:
    if was is None or now is None:
        return "is not here" if now is None else "was not there"
    return f"has sha256 {now[:12]}…, had {was[:12]}…"


def data(ran: Ran, here: Mapping[str, Mapping[str, Any]], documents: Mapping[str, Mapping[str, Any]]) -> Level:
    """Documents of both sides, by their hashes and numbers.

    Args:
        here: task -> `documents` (how many), `keys_sha256`, `docs_sha256`.
        documents: task -> key -> the target document.
    """
    other: dict[str, Any] = {}
    words = []
    unknown = [name for name, facts in ran.tasks.items() if "docs_sha256" not in facts]
    for name, was, now in _tasks(ran, here):
        unlike = _unlike(was, now, ("documents", "keys_sha256", "docs_sha256"))
        if not unlike:
            continue
        amounts: dict[str, Any] = {"unlike": unlike, "documents": [was.get("documents"), now.get("documents")]}
        said = f"{now.get('documents', 0)} documents, were {was.get('documents', 0)}"
        rows = ran.rows.get(name)
        if rows is not None and now and all("doc" in row for row in rows.values()):
            before = {key: row["doc"] for (key, _), row in rows.items()}
            after = {key: _as_json(doc) for key, doc in documents[name].items()}
            if name in ran.redacted:
                after = {key: bundle.redacted({"doc": doc})["doc"] for key, doc in after.items()}
            changed = [key for key, doc in before.items() if key in after and after[key] != doc]
            amounts |= {"changed": changed, "missing": [k for k in before if k not in after]}
            amounts["new"] = [key for key in after if key not in before]
            if any(amounts[each] for each in ("changed", "missing", "new")):
                parts = [f"{len(amounts[each])} {each}" for each in ("changed", "missing", "new") if amounts[each]]
                said = f"of {len(before)} target documents {', '.join(parts)}"
                said += f", e.g. {[*changed, *amounts['missing'], *amounts['new']][0]}"
            else:
                said = f"{len(before)} target documents agree, those of the source side do not"
        other[name] = amounts
        words.append(f"{name}: {said}")
    count = sum(int(facts.get("documents", 0)) for facts in ran.tasks.values())
    if not other and unknown:
        return Level("data", None, f"of {_some(unknown)} the run has recorded no hashes of its documents")
    if not other:
        return Level("data", True, f"{count} documents, both sides")
    return Level("data", False, _some(words, "; "), {"tasks": other})


def prompts(ran: Ran, here: Mapping[str, Mapping[str, Any]], again: Ran | None = None) -> Level:
    """What is asked. Before the run the question of each document; afterwards every prompt, choice and setting.

    Args:
        here: task -> `questions_sha256`, and after the run `prompts_sha256`.
        again: after the run.
    """
    other: dict[str, Any] = {}
    words = []
    for name, was, now in _tasks(ran, here):
        unlike = _unlike(was, now, ("questions_sha256", *(("prompts_sha256",) if again is not None else ())))
        rows, anew = ran.rows.get(name), None if again is None else _rows_like(ran, again, name)
        changed = []
        if rows is not None and anew is not None:
            changed = [
                key
                for key, row in rows.items()
                if key in anew
                and any(row.get(part) != anew[key].get(part) for part in ("arguments", "source_prompts") if part in row)
            ]
        if unlike or changed:
            other[name] = {"unlike": unlike, "changed": [key for key, _ in changed]}
            many = f"{len(changed)} of {len(rows)} documents, e.g. {changed[0][0]}" if changed and rows else "differ"
            words.append(f"{name}: {many}")
    if other:
        return Level("prompts", False, _some(words, "; "), {"tasks": other})
    known = "questions_sha256" if again is None else "prompts_sha256"
    unknown = [name for name, facts in ran.tasks.items() if known not in facts]
    if unknown:
        what = "questions" if again is None else "prompts"
        return Level("prompts", None, f"of {_some(unknown)} the run has recorded no hashes of its {what}")
    if again is None:
        return Level("prompts", True, "the questions; few-shot examples, chats and choices are compared after the run")
    count = sum(int(facts.get("counts", {}).get("prompts", 0)) for facts in (again.manifest,))
    return Level("prompts", True, f"{count} prompts, both sides")


def _tasks(
    ran: Ran, here: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Each task with its facts as recorded and here; none where it is not there."""
    for name in dict.fromkeys([*ran.tasks, *here]):
        yield name, ran.tasks.get(name, {}), here.get(name, {})


def _unlike(was: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Facts that differ; what an older version did not record is none."""
    if not was or not now:
        return ["the task"]
    return [name for name in names if name in was and was[name] != now.get(name)]


def _rows_like(ran: Ran, again: Ran, name: str) -> dict[tuple[str, str], dict[str, Any]] | None:
    """The rows of a run computed again, with hashes for texts where the recorded ones have them."""
    rows = again.rows.get(name)
    if rows is None or name not in ran.redacted:
        return rows
    return {key: bundle.redacted(row) for key, row in rows.items()}


@dataclass
class _Difference:
    """Of numbers and texts, one pair after the other."""

    largest: float = 0.0
    values: int = 0  # numbers compared
    texts: int = 0  # texts compared
    other_texts: int = 0
    documents: dict[str, float] = field(default_factory=dict)  # that differ by more than is allowed -> by how much
    compared: int = 0  # documents
    missing: int = 0  # documents that one side has not

    def add(self, name: str, was: Sequence[Any], now: Sequence[Any], tolerance: float) -> None:
        """The responses of one document."""
        self.compared += 1
        if len(was) != len(now):
            self.missing += 1
            return
        worst = 0.0
        for one, other in zip(was, now, strict=True):
            if isinstance(one, float) and isinstance(other, float):
                self.values += 1
                worst = max(worst, _apart(one, other))
            else:
                self.texts += 1
                if one != other:
                    self.other_texts += 1
                    self.documents[name] = math.inf
        self.largest = max(self.largest, worst)
        if worst > tolerance:
            self.documents[name] = max(worst, self.documents.get(name, 0.0))

    def level(self, what: str, tolerance: float) -> Level:
        agrees = not self.documents and not self.missing
        if not self.compared and agrees:
            return Level("responses", None, f"no {what} to compare")
        parts = []
        if self.values:
            exact = "the same to the last bit" if self.largest == 0 else f"largest difference {self.largest:.3g}"
            parts.append(f"log-probabilities {exact}" + ("" if agrees else f" (allowed {tolerance:g})"))
        if self.texts:
            parts.append(
                f"{self.other_texts} of {self.texts} texts differ" if self.other_texts else "all texts the same"
            )
        if self.missing:
            parts.append(f"{self.missing} documents without a counterpart")
        said = f"{self.compared} {what}: {', '.join(parts)}"
        if self.documents:
            said = f"{len(self.documents)} of {said}, first in {next(iter(self.documents))}"
        amounts = {
            "largest": self.largest,
            "values": self.values,
            "texts": self.texts,
            "other_texts": self.other_texts,
            "documents": list(self.documents),
            "compared": self.compared,
            "missing": self.missing,
        }
        return Level("responses", agrees, said, amounts)


def _apart(one: float, other: float) -> float:
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    apart = abs(one - other)
    return apart if math.isfinite(apart) else math.inf


def responses(ran: Ran, again: Ran, tolerance: float) -> Level:
    """What the model answered, document by document: log-probabilities of choices, and texts."""
    found = _Difference()
    unread = {}
    for name in ran.tasks:
        rows, anew = ran.rows.get(name), again.rows.get(name) or {}
        if rows is None:
            unread[name] = [ran.samples[name], again.samples.get(name)]
            continue
        for key, row in rows.items():
            now = _answers(anew[key]) if key in anew else []
            found.add(f"{name}/{key[0]}", _answers(row), now, tolerance)
        found.missing += len(anew.keys() - rows.keys())
    if ran.grid is not None and again.grid is not None:
        _in_cells(found, ran.grid, [again.grid], None, tolerance)
    level = found.level("documents" if ran.grid is None else "answers, of each document and cell", tolerance)
    if not unread:
        return level
    # Only their hashes were passed on.
    other = {name: pair for name, pair in unread.items() if pair[0] != pair[1]}
    said = f"{len(unread) - len(other)} of {len(unread)} files of samples the same, by their hashes"
    said += "; how far the others are apart no hash says" if other else ""
    agrees = not other and (level.agrees or not found.compared)
    return Level(
        "responses", agrees, f"{level.said}; {said}" if found.compared else said, {**level.amounts, "hashes": other}
    )


def _answers(row: Mapping[str, Any]) -> list[Any]:
    """A document's responses, each a log-probability or a text."""
    found: list[Any] = []
    for repeats in row["resps"]:
        for each in repeats if isinstance(repeats, list) else [repeats]:
            value = each[0] if isinstance(each, list) and each else each
            number = isinstance(value, int | float) and not isinstance(value, bool)
            found.append(float(value) if number else json.dumps(value, ensure_ascii=False))
    return found


def in_cells(recorded: Grid, computed: Sequence[Grid], cells: Sequence[Cell], tolerance: float) -> list[Level]:
    """Responses and scores of some cells, for each document."""
    found = _Difference()
    scores = _in_cells(found, recorded, computed, cells, tolerance)
    named = ", ".join(show_cell(cell) for cell in cells[:_NAMED]) + (", …" if len(cells) > _NAMED else "")
    answers = found.level("documents in cells", tolerance)
    answers.amounts["cells"] = [as_list(cell) for cell in cells]
    answers = replace(answers, said=f"{answers.said} ({named})")
    other = {name: facts for name, facts in scores.items() if facts["differ"]}
    count = sum(facts["values"] for facts in scores.values())
    if not other:
        return [answers, Level("metrics", True, f"{count} scores, of {', '.join(scores)}", {"scores": scores})]
    words = [
        f"{name}: {facts['differ']} of {facts['values']} scores differ, at most by {facts['largest']:.3g}"
        for name, facts in other.items()
    ]
    return [answers, Level("metrics", False, _some(words, "; "), {"scores": scores})]


def _in_cells(
    found: _Difference | None, recorded: Grid, computed: Sequence[Grid], cells: Sequence[Cell] | None, tolerance: float
) -> dict[str, dict[str, Any]]:
    """Add the responses of cells, a document at a time; how the scores differ, by metric.

    Args:
        found: where responses are added, which takes long; None: scores only.
        cells: those that were drawn, where only what was looked at counts; None: all.
    """
    scores: dict[str, dict[str, Any]] = {}
    wanted = recorded.cells if cells is None else cells
    anywhere = {cell for again in computed for cell in again.cells}
    missing = sum(cell not in anywhere for cell in wanted) * len(recorded.documents)
    for again in computed:
        documents, there = set(again.documents), set(again.cells)
        common = [name for name in recorded.documents if name in documents]
        missing += len(set(recorded.documents) ^ documents)
        mine = [cell for cell in wanted if cell in there]
        if not common or not mine:
            continue
        was, now = recorded.take(common), again.take(common)
        ours, theirs = was.columns(mine), now.columns(mine)
        looked_at = ~np.isnan(was.scores[0][:, ours])
        if found is not None:
            for d, name in enumerate(common):
                for c, cell in enumerate(mine):
                    if looked_at[d, c] or cells is None:
                        where = f"{name} ({show_cell(cell)})"
                        found.add(where, _of_cell(was, d, ours[c]), _of_cell(now, d, theirs[c]), tolerance)
        for k, metric in enumerate(was.meta["metrics"]):
            before = was.scores[k][:, ours].astype(float)
            after = np.full_like(before, np.nan)  # of a metric that is not there any more
            if metric in now.meta["metrics"]:
                after = now.scores[now.meta["metrics"].index(metric)][:, theirs].astype(float)
            one_nan = np.isnan(before) != np.isnan(after)
            apart = np.where(one_nan, np.inf, np.nan_to_num(np.abs(before - after)))
            apart = apart if cells is None else apart[looked_at]
            facts = scores.setdefault(metric, {"values": 0, "differ": 0, "largest": 0.0})
            facts["values"] += int(apart.size)
            facts["differ"] += int((apart > tolerance).sum())
            facts["largest"] = max(facts["largest"], float(apart.max(initial=0.0)))
    if found is not None:
        found.missing += missing
    return scores


def _of_cell(grid: Grid, document: int, column: int) -> list[Any]:
    if grid.text is not None and grid.texts is not None:
        index = int(grid.text[document, column])
        return [None if index < 0 else grid.texts[index]]
    if grid.logprob is None:
        return []
    return [float(each) for each in grid.logprob[document, column]]


def metrics(ran: Ran, again: Ran, tolerance: float) -> Level:
    """Each metric of each task, and where samples are there each document's own score; of a grid those of its cells."""
    other: dict[str, Any] = {}
    words, count = [], 0
    was_all, now_all = ran.results["results"], again.results["results"]
    for task in dict.fromkeys([*was_all, *now_all]):
        was, now = was_all.get(task, {}), now_all.get(task, {})
        for name in dict.fromkeys([*was, *now]):
            pair = [was.get(name), now.get(name)]
            if not any(isinstance(each, int | float) for each in pair):
                continue
            count += 1
            documents = _scores_that_differ(ran, again, task, name, tolerance)
            # A document's score that is another one shows, however many there are; where none can be looked at, the
            # mean must be the same.
            allowed = 1e-9 if documents is None else tolerance
            apart = math.inf
            if all(isinstance(each, int | float) for each in pair):
                apart = _apart(float(pair[0]), float(pair[1]))
            if apart > allowed or documents:
                other[f"{task}: {name}"] = {"values": pair, "documents": documents}
                change = f" ({pair[1] - pair[0]:+.3g})" if math.isfinite(apart) else ""
                of = f", {len(documents)} documents" if documents else ""
                words.append(f"{task} {name} {_number(pair[0])}, here {_number(pair[1])}{change}{of}")
    amounts: dict[str, Any] = {"metrics": other}
    if ran.grid is not None and again.grid is not None:
        cells = _in_cells(None, ran.grid, [again.grid], None, tolerance)
        amounts["cells"] = cells
        count += sum(facts["values"] for facts in cells.values())
        words += [
            f"{name}: {facts['differ']} of {facts['values']} scores in cells differ, at most by {facts['largest']:.3g}"
            for name, facts in cells.items()
            if facts["differ"]
        ]
    if words:
        return Level("metrics", False, _some(words, "; "), amounts)
    return Level("metrics", True, f"{count} values", amounts)


def _scores_that_differ(ran: Ran, again: Ran, task: str, name: str, tolerance: float) -> list[str] | None:
    """Documents whose own score differs; None where that cannot be seen."""
    metric, _, chosen = name.partition(",")
    rows, anew = ran.rows.get(task), again.rows.get(task)
    if rows is None or anew is None or not chosen:
        return None
    scored = [key for key, row in rows.items() if key[1] == chosen and isinstance(row.get(metric), int | float)]
    if not scored:
        return None
    pairs = {key: (rows[key][metric], anew[key].get(metric)) for key in scored if key in anew}
    return [
        key
        for (key, _), (was, now) in pairs.items()
        if not isinstance(now, int | float) or _apart(was, now) > tolerance
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "missing" if value is None else str(value)


def _some(texts: Sequence[str], between: str = ", ") -> str:
    more = f"{between}… ({len(texts)} in all)" if len(texts) > _NAMED else ""
    return between.join(texts[:_NAMED]) + more


def _as_json(value: Any) -> Any:
    """As the harness writes it."""
    from lm_eval.utils import handle_non_serializable

    return json.loads(json.dumps(value, default=handle_non_serializable, ensure_ascii=False))


# --- The result ------------------------------------------------------------------------------------------------------


def identical(ran: Ran, again: Ran) -> dict[str, Any]:
    """Whether results.json and the files of samples have the same bytes; `places`: but for where files lie."""
    texts = [record.as_json(each.results) for each in (ran, again)]
    plain = [record.as_json(record.without_places(each.results)) for each in (ran, again)]
    results = "yes" if texts[0] == texts[1] else "but for places" if plain[0] == plain[1] else "no"
    samples = {name: again.samples.get(name) == each for name, each in ran.samples.items()}
    found: dict[str, Any] = {"results": results, "samples": samples}
    if ran.grid is not None and again.grid is not None:
        found["grid"] = bool(_same_arrays(ran.grid, again.grid))
    return found


def _same_arrays(one: Grid, other: Grid) -> bool:
    """Documents, cells, texts and every bit of the arrays; what is said of the grid may differ in a place."""
    names = ("scores", "vanilla", "logprob", "vanilla_logprob", "choice_scores", "text", "vanilla_text")
    if (one.documents, one.cells, one.texts) != (other.documents, other.cells, other.texts):
        return False
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b, equal_nan=True))
        for a, b in pairs
    )


def first_that_differs(levels: Sequence[Level]) -> Level | None:
    return next((each for name in CODES for each in levels if each.name == name and each.agrees is False), None)


def table(levels: Sequence[Level]) -> str:
    rows = [[each.name, each.status, each.said] for each in levels]
    also = [f"{each.name}: {line} (does not count)" for each in levels for line in each.also]
    return printable("\n".join([tables.table(["level", "", "how much"], rows), *also]))


def printable(text: str) -> str:
    """What a stranger's record holds cannot steer a terminal."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def as_record(
    ran: Ran, asked: ReproduceConfig, planned: Plan, levels: Sequence[Level], folders: Sequence[Path], same: Any
) -> dict[str, Any]:
    """The content of reproduction.json.

    Args:
        folders: what was computed; none so far.
        same: of `identical`; None where nothing can be.
    """
    first = first_that_differs(levels)
    return {
        "format": 1,
        "run": asked.run,
        "job": ran.manifest["job"],
        "config_hash": ran.manifest.get("config_hash"),
        "put_in": planned.put_in,
        "cells": None if planned.cells is None else [as_list(cell) for cell in planned.cells],
        "tolerance": asked.tolerance,
        "finished": bool(folders),
        "recomputed": [str(each) for each in folders],
        "levels": {
            each.name: {"agrees": each.agrees, "said": each.said, "also": each.also, **each.amounts} for each in levels
        },
        "first": None if first is None else first.name,
        "exit_code": 0 if first is None else CODES[first.name],
        "identical": same,
    }
