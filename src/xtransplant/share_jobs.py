"""The jobs that pass runs on: export one, compute one again, compare two. Wiring only."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xtransplant import bundle, difference, exchange, record
from xtransplant.config import DiffConfig, EvaluateConfig, ExportConfig, ReproduceConfig, TaskJob, to_dict
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from xtransplant.pairing import Pairing
    from xtransplant.reproduction import Level

log = logging.getLogger(__name__)


def export(config: ExportConfig) -> None:
    """Write a run's bundle, or send it; a bundle is sent on as it is. Prints where it is, and what is withheld."""
    with (
        bundle.opened(config.run, "run", config.output_dir) as run,
        tempfile.TemporaryDirectory(prefix="xtransplant-") as temporary,
    ):
        name = f"{run.folder.name}.zip"
        away = config.to is not None and exchange.is_address(config.to)
        path = Path(temporary, name) if away else _file(config, name)
        if run.file is None:
            content = bundle.write(run, path, config.samples, config.largest, config.overwrite)
        else:
            _refuse_other(config, run)
            content = run.content
            bundle.copy(run.file, path, config.overwrite)
        for entry, facts in sorted(content["withheld"].items()):
            print(f"withheld: {entry}: {facts['why']}")
        print(f"{run.manifest['job']} {run.short}, {path.stat().st_size / 2**20:.2f} MB")
        print(exchange.push(path, str(config.to)) if away else path)


def _refuse_other(config: ExportConfig, run: bundle.Opened) -> None:
    """Refuse to send a bundle on as it is, where it was asked for another one.

    Raises:
        XTransplantError: it has texts of documents that are to be withheld, or lacks some that are not.
    """
    has = (run.content.get("documents") or {}).get("passed_on")
    if config.samples is not None and config.samples is not has:
        raise XTransplantError(
            f"samples={str(config.samples).lower()}: {config.run} is a bundle, which is sent on as it is, and its "
            f"documents' texts are {'in it' if has else 'hashes'}. Leave samples out, or export the run's own folder."
        )


def _file(config: ExportConfig, name: str) -> Path:
    """Where the bundle is to be: a folder, which need not be there, has no .zip at its end."""
    if config.to is None:
        return Path(config.output_dir, "bundles", name)
    path = Path(config.to).expanduser()
    return path if path.suffix == ".zip" and not path.is_dir() else path / name


def diff(config: DiffConfig) -> int:
    """Print what differs between two runs. Returns the exit code: 0 if nothing that counts does, else 1."""
    with (
        bundle.opened(config.a, "a", config.output_dir) as one,
        bundle.opened(config.b, "b", config.output_dir) as two,
    ):
        levels = difference.differences(one, two, config.tolerance)
        print(difference.text(one, two, levels))
        return int(difference.differ(levels))


def reproduce(config: ReproduceConfig) -> int:
    """Compute a run again, in a folder of its own, and say level by level what agrees.

    Returns:
        The exit code: 0, or that of the first level that does not (`reproduction.CODES`).

    Raises:
        XTransplantError: there is no such run, or it cannot be computed here.
    """
    from xtransplant import reproduction

    with bundle.opened(config.run, "run", config.output_dir) as opened:
        if opened.manifest["job"] == "sft":
            raise reproduction.training_refused(opened)
        folder = Path(config.output_dir, reproduction.FOLDER, opened.folder.name)
        with record.alone(folder):
            return _reproduce(config, opened, folder)


def _reproduce(config: ReproduceConfig, opened: bundle.Opened, folder: Path) -> int:
    from xtransplant import jobs, loading, reproduction

    ran = reproduction.Ran.of(opened)
    planned = reproduction.plan(opened, ran, config, folder)
    if any(jobs.run_folder(each).resolve() == opened.folder.resolve() for each in planned.runs):
        raise XTransplantError(f"run={config.run}: is a run that was computed again. Give another output_dir.")
    first = planned.runs[0]
    print(f"{opened.folder.name}, from {opened.place}")
    for line in planned.put_in:
        print(reproduction.printable(f"put in: {line}"))
    pairs = _documents(first)
    here = {each.name: {"documents": len(each.rows), **jobs.digests(each)} for each in pairs}
    levels = [
        reproduction.environment(ran.manifest["environment"], record.environment()),
        reproduction.model(ran.manifest["model"], loading.files_here(first.model)),
        reproduction.data(ran, here, {e.name: {e.keys[row]: e.docs[row] for row in e.rows} for e in pairs}),
        reproduction.prompts(ran, here),
    ]
    print(f"\nBefore the run:\n{reproduction.table(levels)}\n", flush=True)
    _write(folder, reproduction.as_record(ran, config, planned, levels, [], None))
    if config.check_only:
        return _code(levels)
    folders = [_computed(each, here) for each in planned.runs]
    again = [reproduction.Ran.of(run) for run in map(record.load_run, folders) if run is not None]
    levels[0] = reproduction.environment(ran.manifest["environment"], again[0].manifest["environment"])
    levels[1] = reproduction.model(ran.manifest["model"], again[0].manifest["model"])
    levels[3] = reproduction.prompts(ran, again[0].tasks, again[0])
    same = None
    if planned.cells is None:
        same = reproduction.identical(ran, again[0])
        levels.append(reproduction.responses(ran, again[0], config.tolerance))
        levels.append(reproduction.metrics(ran, again[0], config.tolerance))
    else:
        assert ran.grid is not None
        grids = [each.grid for each in again if each.grid is not None]
        levels += reproduction.in_cells(ran.grid, grids, planned.cells, config.tolerance)
    _write(folder, reproduction.as_record(ran, config, planned, levels, folders, same))
    print(reproduction.table(levels))
    if same is not None:
        print(f"\nidentical results file: {same['results']}; samples: {_all(same['samples'])}", end="")
        print(f"; arrays of the grid: {'yes' if same['grid'] else 'no'}" if "grid" in same else "")
    print(f"\n{folder}")
    return _code(levels)


def _code(levels: Sequence[Level]) -> int:
    from xtransplant import reproduction

    first = reproduction.first_that_differs(levels)
    if first is None:
        left = ", ".join(each.name for each in levels if each.agrees is None)
        so_far = "" if len(levels) == len(reproduction.CODES) else " so far"
        print(f"No level{so_far} differs{f'; not compared: {left}' if left else ''}.")
        return 0
    print(reproduction.printable(f"Differs first in {first.name}: {first.said}"))
    return reproduction.CODES[first.name]


def _documents(config: TaskJob) -> list[Pairing]:
    from xtransplant import jobs

    try:
        return jobs.load_pairs(config)
    except XTransplantError as error:
        raise XTransplantError(
            f"{error} If data or tasks lie elsewhere here: set=[task.data_dir=<folder>], or "
            "set=[task.include_path=[<folder>]]."
        ) from error


def _computed(config: TaskJob, here: Mapping[str, Mapping[str, Any]]) -> Path:
    """The folder of a run: computed, or found there if nothing that it rests on is another by now."""
    from xtransplant import grid_jobs, jobs

    found = record.whole_run(jobs.run_folder(config))
    if found is not None and not _stands(found, config, here):
        log.info("%s was computed under other circumstances: computed anew.", found.folder)
        config = replace(config, overwrite=True)
    return jobs.evaluate(config) if isinstance(config, EvaluateConfig) else grid_jobs.grid(config)


def _stands(found: record.Run, config: TaskJob, here: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether what was computed before is what would be computed now: by the same code, with the same settings (the
    batch size too), model and documents."""
    import torch

    from xtransplant import loading

    environment = record.environment() | {"threads": torch.get_num_threads()}
    if found.manifest["environment"] != environment or (environment["git"] or {}).get("changed"):
        return False
    kept = yaml.safe_load((found.folder / record.CONFIG).read_text(encoding="utf-8"))
    of_both = [{**each, "overwrite": None, "selection_of_base": None} for each in (kept, to_dict(config))]
    if of_both[0] != of_both[1] or loading.changed_since(config.model, found.manifest["model"]):
        return False
    tasks = found.manifest["tasks"]
    return all(name in tasks and tasks[name] | facts == tasks[name] for name, facts in here.items())


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record.write(folder / record.REPRODUCTION, record.as_json(content))
    except OSError as error:
        raise record.unwritable(folder, error) from error


def _all(same: Mapping[str, bool]) -> str:
    return "yes" if all(same.values()) else "no" if len(same) == 1 else f"{sum(same.values())} of {len(same)}"
