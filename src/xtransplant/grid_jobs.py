"""The jobs on grids: compute one, choose on some, compare strategies, look at the map. Wiring only."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from xtransplant import disk, logs, record, tables
from xtransplant.checks import folders
from xtransplant.config import (
    AnalyzeConfig,
    GridConfig,
    ReportConfig,
    SelectConfig,
    StrategiesConfig,
    config_hash,
    identity,
    listed,
    to_dict,
)
from xtransplant.grid import Grid, as_list, name_of, no_counterpart
from xtransplant.types import Component, Control, XTransplantError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from xtransplant.pairing import Pairing
    from xtransplant.sweep_lm import SweepLM

log = logging.getLogger(__name__)

GRID = "grid.npz"
_RESPONSES = "responses"
_STRATEGIES = "strategies.json"
_PROMPTING = (
    *("tasks", "source_tasks", "num_fewshot", "system_instruction", "apply_chat_template", "fewshot_as_multiturn"),
    "empty_prompt",
)


def grid(config: GridConfig) -> Path:
    """Every layer pair on the documents of a language pair: responses, and the harness's grades. Returns the folder."""
    from xtransplant import jobs

    return jobs.do(config, _grid, _RESPONSES)


def _grid(config: GridConfig, folder: Path) -> None:
    from xtransplant import grading, jobs, loading
    from xtransplant.lm import captures_of, load_decoder
    from xtransplant.sweep_lm import Shards, Sweep, SweepLM, rounds

    started = time.perf_counter()
    loading.check_here(config.model, config.task.apply_chat_template)
    pairs = jobs.load_pairs(config)
    jobs.refuse_trained(config, pairs)
    grading.check([found.target for found in pairs])
    # To overwrite is to drop a finished run; what is left of an interrupted one is of this very work.
    finished = (folder / record.MANIFEST).is_file()
    record.open_run(
        folder,
        yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True),
        keep=_RESPONSES if config.resume and not finished else None,
    )
    with logs.kept(folder):
        shards = Shards(folder / _RESPONSES)
        before = len(shards)
        if before:
            log.info("%d prompts were answered before the interruption.", before)
        lm = SweepLM(
            lambda: load_decoder(config.model),
            Sweep(
                tuple(Component(each) for each in listed(config.transplant.component)),
                config.transplant.intervention,
                config.grid.pairs,
                memory=None if config.grid.memory is None else int(config.grid.memory * 2**30),
            ),
            shards=shards,
            halving=None if config.grid.budget is None else rounds(config.grid.budget),
            quality=_quality(pairs),
            seed=config.seed,
            promptless=config.task.empty_prompt.value,
            captures=lambda: captures_of(config),
        )
        loaded = time.perf_counter()
        results = jobs.harness(lm, pairs, config)
        results["config"]["model_args"] = identity(config, lm.decoder.num_layers)
        swept = time.perf_counter()
        event = {"event": "swept", "seconds": swept - loaded, "cells": len(lm.cells)}
        documents = sum(len(found.rows) for found in pairs)
        said = "%d documents, each in %d cells, in %.1f s"
        log.info(said, documents, len(lm.cells), swept - loaded, extra={"event": event})
        facts = jobs.facts_of_run(config, lm, pairs) | {
            "job": "grid",
            "config_hash": config_hash(config, lm.decoder.num_layers),
            "control": None if config.transplant.control is Control.none else config.transplant.control.value,
            "intervention": config.transplant.recorded(),
            "components": listed(config.transplant.component),
            "pairs": config.grid.pairs,
            "left_out": lm.left_out,
            # What an interrupted run had done already is not in its counts.
            "prompts_answered_before": before,
            "sources_computed": lm.captures.computed,
        }
        made = grading.make_grid(pairs, config.task.tasks, lm.cells, _meta(config, lm, pairs, facts))
        made.save(folder / GRID)
        jobs.write_results(folder, results)
        record.close_run(
            folder,
            facts
            | {
                "grid_sha256": made.sha256,
                "timings": {
                    "tasks_seconds": loaded - started,
                    "sweep_seconds": swept - loaded,
                    "total_seconds": time.perf_counter() - started,
                },
            },
            without=_RESPONSES,
        )
        # Only now: until the manifest is written, they are all that is left of the work.
        shards.remove()


def _quality(pairs: list[Pairing]) -> Callable[[list[Instance]], np.ndarray]:
    """How good each row of a document is, for successive halving."""
    from xtransplant import grading

    tasks = {found.name: found.target for found in pairs}

    def quality(requests: list[Instance]) -> np.ndarray:
        task = tasks[str(requests[0].task_name)]
        first = requests[0].cells
        scores = grading.document_scores(task, requests, len(first[0] if isinstance(first, tuple) else first))
        name = grading.main_metric(list(scores))
        better = task.higher_is_better().get(name.partition(",")[0], True)
        return scores[name] if better else -scores[name]

    return quality


def _meta(config: GridConfig, lm: SweepLM, pairs: list[Pairing], facts: dict[str, Any]) -> dict[str, Any]:
    """What a grid says of itself."""
    trivial = [facts["tasks"][found.name]["trivial_baseline"] for found in pairs]
    counts = [len(found.rows) for found in pairs]
    baseline = None
    if all(value is not None for value in trivial):
        baseline = sum(value * count for value, count in zip(trivial, counts, strict=True)) / sum(counts)
    task = identity(config, lm.decoder.num_layers)["task"]
    kept = ("job", "config_hash", "model_name", "model", "task_name", "split", "seed", "intervention", "control")
    return {
        **{name: facts[name] for name in (*kept, "components", "pairs", "left_out")},
        "num_layers": lm.decoder.num_layers,
        "hidden_size": lm.decoder.hidden_size,
        "tasks": [found.name for found in pairs],
        "language_pair": [config.language_pair.source, config.language_pair.target],
        "trivial_baseline": baseline,
        # What the scores depend on beside the model's files and the documents.
        "settings": {f"task.{name}": task[name] for name in _PROMPTING} | {"model.dtype": config.model.dtype.value},
    }


_CELLS_LEGEND = (
    "p: this cell alone; max-T p: for having looked at all cells; FDR q: share of false ones among those up to it. "
    "nats: change of the right choice's log-probability."
)
_STRATEGIES_LEGEND = (
    "gain: over vanilla; on sample: score where it was chosen, optimistic; gap closed: share of the way from vanilla "
    "to the upper bound; p: McNemar's, each row alone. An oracle reads the labels: as many guesses as it has cells "
    "would reach what is said, so a bound below that is no fault."
)


def _budget_note(found: dict[str, Any]) -> list[str]:
    """Where a budget chose the cells: which documents test them."""
    if found["fresh"] == found["documents"]:
        return []
    return [f"Tests are on the {found['fresh']} documents of the budget's last round only."]


def show(folder: Path) -> str:
    """A finished grid, as text."""
    from xtransplant import analysis

    made = Grid.load(folder / GRID)
    found = analysis.analyze(made, permutations=200)
    header, rows = analysis.best_rows(found)
    facts = made.meta
    lines = [
        f"{facts['model_name']}, {facts['task_name']}, {'-'.join(facts['language_pair'])}, {facts['split']}: "
        f"{len(made.documents)} documents, {len(made.cells)} cells"
        + (f", control {facts['control']}" if facts["control"] else ""),
        *(f"budget: {line}" for line in facts["left_out"]),
        *_budget_note(found),
        tables.table(header, rows),
        _CELLS_LEGEND,
        f"\n{folder}",
    ]
    return "\n".join(lines)


def show_all(folders: Sequence[Path]) -> str:
    """Finished grids, a line each."""
    lines = []
    for folder in folders:
        made = Grid.load(folder / GRID)
        vanilla, scores = made.vanilla[0], made.scores[0]
        # Of a budget, cells that were seen on all documents.
        means = scores.mean(axis=0)
        best = int((made.sign * np.where(np.isnan(means), -np.inf * made.sign, means)).argmax())
        lines.append(
            [
                *_place(made),
                made.meta["control"] or "-",
                str(len(made.documents)),
                str(len(made.cells)),
                f"{vanilla.mean():.3f}",
                f"{means[best]:.3f}",
                _cells_shown([as_list(made.cells[best])]),
            ]
        )
    header = ["model", "task", "pair", "control", "documents", "cells", "vanilla", "best cell", "which"]
    note = "The best of so many cells is optimistic: choose with xtransplant select, test on other documents."
    return f"{tables.table(header, lines)}\n\n{note}"


def select(config: SelectConfig) -> None:
    """Choose on finished grids, and write selection.json."""
    from xtransplant import selection
    from xtransplant import strategies as choosing

    grids, folders = _load(listed(config.grid), "grid", controls=False)
    for place in dict.fromkeys(map(_place, grids)):
        several = [folder for folder, each in zip(folders, grids, strict=True) if _place(each) == place]
        if len(several) > 1:
            raise XTransplantError(
                f"grid: {len(several)} grids of {' '.join(place)}: {', '.join(several)}. One choice is made for each "
                "model, task and language pair: give one of them, by its folder."
            )
    for each in grids:
        if each.meta["split"] == "unseen":
            log.warning("%s: chosen on the unseen half, which is to test a choice on.", " ".join(_place(each)))
    options = {"component": config.component, "fixed": config.fixed, "candidates": config.candidates}
    chosen = choosing.select(
        grids, config.strategy, config.pooled, folders, alpha=config.alpha, seed=config.seed, **options
    )
    content = selection.as_record(chosen)
    text = record.as_json(content)
    parts = [config.strategy, *(["pooled"] if config.pooled else [])]
    name = f"{'-'.join(parts)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    path = Path(config.output_dir, "select", name, "selection.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    record.write(path, text)
    rows = [
        [
            each.grids[0]["model_name"],
            each.grids[0]["task_name"],
            ",".join("-".join(grid["language_pair"]) for grid in each.grids),
            grids[0].meta["split"] if each.pooled else grid.meta["split"],
            each.strategy,
            _cells_shown([as_list(cell) for cell in each.cells]),
            "-" if each.score is None else f"{each.score:.3f}",
            "-" if each.vanilla is None else f"{each.vanilla:.3f}",
            str(len(each.documents)),
        ]
        for each, grid in zip(chosen, grids, strict=False)
    ]
    print(tables.table(["model", "task", "pair", "split", "strategy", "cells", "score", "vanilla", "documents"], rows))
    if all(each.score is None for each in chosen):
        print("\nNo score: the cell is none of the grid's.")
    elif config.strategy != "fixed":
        print("\nThe score is optimistic: the choice was made on these documents.")
    print(path)


def strategies(config: StrategiesConfig) -> None:
    """Every strategy on unseen grids, for each model, task and language pair that has a sample grid too."""
    from xtransplant import charts, comparison

    samples, _ = _load(listed(config.grid), "grid", controls=False)
    unseen, _ = _load(listed(config.unseen), "unseen", controls=False)
    controls = _load(listed(config.controls), "controls")[0] if config.controls else []
    found = []
    beside_of = _beside(controls, [*unseen, *samples])
    for after in unseen:
        before = [each for each in samples if _place(each) == _place(after)]
        if len(before) != 1:
            raise XTransplantError(
                f"grid: {len(before)} sample grids for {' '.join(_place(after))}, which is among unseen=. Give one."
            )
        if (before[0].meta["split"], after.meta["split"]) == ("unseen", "sample"):
            log.warning("%s: chosen on the unseen half, scored on the sample: swapped?", " ".join(_place(after)))
        beside = [*beside_of[after.sha256], *beside_of[before[0].sha256]]
        beside = list({each.sha256: each for each in beside}.values())
        found.append((after.meta, comparison.strategy_table(before[0], after, beside, config.seed)))
    folder = _results_folder(config, "strategies", {"grid": samples, "unseen": unseen, "controls": controls})
    record.write(folder / _STRATEGIES, record.as_json([{"grid": meta, "rows": rows} for meta, rows in found]))
    record.write(folder / "strategies.svg", charts.bars(found))
    record.write(folder / "gains.svg", charts.gains(found))
    _miss_controls(controls)
    for meta, rows in found:
        print(f"\n{meta['model_name']}, {meta['task_name']}, {'-'.join(meta['language_pair'])}, {meta['split']}")
        print(_strategy_text(rows))
    print(f"\n{_STRATEGIES_LEGEND}\n\n{folder}")


def analyze(config: AnalyzeConfig) -> None:
    """Tables and pictures of grids."""
    from xtransplant import analysis, charts

    # Where controls are named, a pattern that takes them in too means the others.
    grids, _ = _load(listed(config.grid), "grid", controls=not config.controls)
    controls = _load(listed(config.controls), "controls")[0] if config.controls else []
    beside = _beside(controls, grids)
    if not controls and len({each.meta["control"] for each in grids}) > 1:
        log.info("Control grids among them are shown as grids; given as controls= they stand beside the others.")
    _miss_controls(controls)
    found = [analysis.analyze(each, beside[each.sha256], seed=config.seed) for each in grids]
    folder = _results_folder(config, "analyze", {"grid": grids, "controls": controls})
    record.write(folder / "analysis.json", record.as_json(found))
    record.write(folder / "heatmap.svg", charts.heatmap(grids, seed=config.seed))
    if any(each.choice_scores is not None for each in grids):
        choices = [each for each in grids if each.choice_scores is not None]
        record.write(folder / "heatmap_logprob.svg", charts.heatmap(choices, "logprob", config.seed))
    record.write(folder / "curves.svg", charts.curves(grids, config.seed))
    for each, facts in zip(grids, found, strict=True):
        control = f", control {each.meta['control']}" if each.meta["control"] else ""
        print(f"\n{' '.join(_place(each))}, {each.meta['split']}, {len(each.documents)} documents{control}")
        print(*_budget_note(facts), sep="\n", end="\n\n" if facts["fresh"] < facts["documents"] else "\n")
        for rows in (analysis.best_rows(facts), analysis.bound_rows(facts), analysis.trust_rows(facts)):
            print(tables.table(*rows), end="\n\n")
    print(f"{_CELLS_LEGEND}\n\n{folder}")


def report(config: ReportConfig) -> None:
    """Write one HTML file of everything that was finished in some folders, and print its path.

    Raises:
        XTransplantError: there is no finished run, files of one were changed since, or the file cannot be written.
    """
    from xtransplant import jobs, selection
    from xtransplant import report as html

    found = html.Found()
    for place in listed(config.runs):
        selections, tables_of = (
            sorted({path for folder in folders(place) for path in record.below(folder, name)})
            for name in ("selection.json", _STRATEGIES)
        )
        for path in selections:
            found.selections[str(path)] = selection.read(str(path))
        for path in tables_of:
            found.strategies[str(path)] = _read_strategies(path)
        try:
            for run in record.find_beside([place], ("evaluate", "grid", "sft")):
                found.add(run, Grid.load(run.folder / GRID) if run.manifest["job"] == "grid" else None)
        except XTransplantError as error:
            if isinstance(error, record.Damaged) or not (selections or tables_of):
                raise
    found.compare()
    text = html.page(html.gather(found, config.title, config.seed))
    log.info("%s; %.1f MB", found.counted(), len(text.encode()) / 1e6)
    path = Path(config.output).expanduser() if config.output is not None else Path(config.output_dir, "report.html")
    jobs.write_output(path, text)


def _read_strategies(path: Path) -> list[Any]:
    try:
        tables_read = disk.json_of(path)
        if not all({"grid", "rows"} <= each.keys() for each in tables_read):
            raise ValueError("no table of strategies")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise XTransplantError(f"{path} cannot be read: {error}. Write it anew with xtransplant strategies.") from error
    return list(tables_read)


def _load(places: Sequence[str], key: str, controls: bool = True) -> tuple[list[Grid], list[str]]:
    """Grids and their folders.

    Args:
        controls: False leaves out control grids, which a pattern easily takes in: nothing is chosen on them.

    Raises:
        XTransplantError: there are none.
    """
    runs = record.find_runs(places, "grid", key)
    if not controls:
        kept = [run for run in runs if run.manifest["control"] is None]
        if not kept:
            raise XTransplantError(f"{key}: only control grids there, e.g. {runs[0].folder}. Give grids without one.")
        if len(kept) < len(runs):
            log.info("%s: %d control grids among them are left out.", key, len(runs) - len(kept))
        runs = kept
    return [Grid.load(run.folder / GRID) for run in runs], [str(run.folder) for run in runs]


def _beside(controls: Sequence[Grid], grids: Sequence[Grid]) -> dict[str, list[Grid]]:
    """For each grid, by its hash, the controls that can be compared with it.

    Raises:
        XTransplantError: a control that fits none.
    """
    for control in controls:
        if control.meta["control"] is None:
            raise XTransplantError(
                f"controls: {name_of(control)} is no control. Give grids made with transplant.control=random_document "
                "or noise."
            )
    found = {grid.sha256: [each for each in controls if no_counterpart(each, grid) is None] for grid in grids}
    for control in controls:
        if not any(control is each for beside in found.values() for each in beside):
            reasons = "; ".join(dict.fromkeys(f"{name_of(grid)}: {no_counterpart(control, grid)}" for grid in grids))
            raise XTransplantError(f"controls: {name_of(control)}: no grid to compare it with. {reasons}.")
    return found


def _miss_controls(controls: Sequence[Grid]) -> None:
    if not controls:
        log.info(
            "No control grids: how much of an upper bound any vector would reach is not known. Make some with "
            "transplant.control=random_document and noise, and give them as controls=."
        )


def _place(made: Grid) -> tuple[str, ...]:
    return str(made.meta["model_name"]), str(made.meta["task_name"]), "-".join(made.meta["language_pair"])


def _results_folder(config: StrategiesConfig | AnalyzeConfig, job: str, grids: Mapping[str, Sequence[Grid]]) -> Path:
    """Named by what was read and as what, so that the same question has the same answer in the same place."""
    named = {role: [each.sha256 for each in some] for role, some in grids.items()}
    digest = hashlib.sha256(record.as_json([named, config.seed]).encode()).hexdigest()[:12]
    every = [each for some in grids.values() for each in some]
    models_named = "_".join(dict.fromkeys(str(each.meta["model_name"]) for each in every))
    tasks = "_".join(dict.fromkeys(str(each.meta["task_name"]) for each in every))
    folder = Path(config.output_dir, job, f"{models_named[:30]}-{tasks[:30]}-{digest}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cells_shown(cells: Sequence[Sequence[Any]]) -> str:
    if not cells:
        return "vanilla"
    shown = [f"{component} {source}>{target}" for component, source, target in cells[:3]]
    return ", ".join(shown) + (f", … ({len(cells)})" if len(cells) > 3 else "")


def _strategy_text(rows: Sequence[dict[str, Any]]) -> str:
    def number(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    def between(row: dict[str, Any], low: str, high: str) -> str:
        return "-" if row.get(low) is None else f"{row[low]:+.2f} to {row[high]:+.2f}"

    lines = []
    reasons = []
    for row in rows:
        if row.get("score") is None:
            lines.append([row["name"], *["-"] * 8])
            reasons.append(f"{row['name']}: {row['reason']}")
            continue
        cells = row.get("cells")
        lines.append(
            [
                row["name"],
                number(row["score"]),
                number(row.get("difference"), "+.3f"),
                between(row, "low", "high"),
                number(row.get("p"), ".3g"),
                number(row.get("sample_score")),
                number(row.get("gap_closed"), ".2f"),
                between(row, "gap_low", "gap_high"),
                _cells_shown(cells) if cells is not None and row["kind"] == "strategy" else _remark(row),
            ]
        )
    header = ["", "score", "gain", "gain's 95 %", "p", "on sample", "gap closed", "its 95 %", "cells"]
    return "\n".join([tables.table(header, lines), *reasons])


def _remark(row: dict[str, Any]) -> str:
    """What is to be known of an oracle or a control."""
    if row["kind"] == "baseline":
        return ""
    cells = f"{row['number']} cell{'s' if row['number'] > 1 else ''}"
    if row["kind"] == "control":
        p = "" if row["above_p"] is None else f", p {row['above_p']:.3g}"
        interval = f"{row['above_low']:+.2f} to {row['above_high']:+.2f}{p}"
        return (
            f"{cells}, {row['documents']} documents ({row['split']}); real vectors there: {row['reference']:.3f}, "
            f"better by {row['above']:+.3f} ({interval}); mean cell {row['cell_mean']:.3f}, "
            f"there {row['reference_cell_mean']:.3f}"
        )
    guesses = "" if row["chance"] is None else f", as many guesses: {row['chance']:.3f}"
    return f"oracle, {cells}{guesses}"
