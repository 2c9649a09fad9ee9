"""What was chosen, how and on what: the record `selection.json`, and finding in it what fits a run. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from xtransplant import disk, models
from xtransplant.config import EvaluateConfig, InterventionConfig
from xtransplant.grid import as_list
from xtransplant.types import STRATEGIES, Cell, Component, XTransplantError

FORMAT = 1


@dataclass(frozen=True)
class Selection:
    """What was chosen, how and on what: the content of selection.json.

    Attributes:
        cells: to run beside vanilla; none: vanilla alone is used. In the order of the rows of `answer`.
        rule: how their responses give the answer, and how it was found; plain JSON values. None: the only cell.
        candidates: how many cells were seen on all documents, and how many there are.
        documents: "<task>/<key>" of those selected on.
        questions: digests of what they ask (`Grid.questions`), the same under any task's name.
        grids: what was selected on: folder, hashes, model, task family, language pair, intervention, control.
        score, vanilla: mean main metric on the documents selected on (a choice's own score is optimistic); None where
            a fixed cell was not among those seen, or others chose.
    """

    strategy: str
    cells: list[Cell]
    rule: dict[str, Any] | None
    pooled: bool
    candidates: tuple[int, int]
    documents: list[str]
    questions: list[str]
    grids: list[dict[str, Any]]
    score: float | None
    vanilla: float | None

    @property
    def marks(self) -> set[str]:
        """What the documents that it was made on are known by."""
        return {*self.documents, *self.questions}

    def as_dict(self) -> dict[str, Any]:
        """The content of selection.json."""
        cells = [as_list(cell) for cell in self.cells]
        return {"format": FORMAT, **vars(self), "cells": cells, "candidates": list(self.candidates)}

    @classmethod
    def from_dict(cls, record: Any) -> Selection:
        """Read what `as_dict` gave.

        Raises:
            XTransplantError: not a selection, of another format, or of a strategy unknown here.
        """
        try:
            known = {field.name: record[field.name] for field in fields(cls)}
            cells = [_cell(*each) for each in known["cells"]]
            seen, total = known["candidates"]
            if record["format"] != FORMAT or known["strategy"] not in STRATEGIES:
                raise ValueError(f"format {record['format']}, strategy {known['strategy']!r}")
            if any("intervention" not in grid for grid in known["grids"]):
                raise ValueError("it does not say how vectors are written")
            for grid in known["grids"]:
                InterventionConfig().with_recorded(grid["intervention"])
                if not {"model_name", "task_name", "language_pair", "weights"} <= grid.keys():
                    raise ValueError("it does not say what it was made on")
            if not known["grids"] or not isinstance(known["rule"], dict | None) or known["pooled"] not in (True, False):
                raise ValueError("its parts do not fit together")
            for name in ("documents", "questions"):
                if not all(isinstance(each, str) for each in known[name]):
                    raise ValueError(f"its {name} are no names")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise XTransplantError(f"Not a selection of format {FORMAT} ({error}). Select anew.") from error
        return cls(**known | {"cells": cells, "candidates": (seen, total)})


def _cell(component: str, source: int, target: int) -> Cell:
    for layer in (source, target):
        # From the end, and true for 1, are for people.
        if type(layer) is not int or layer < 0:
            raise ValueError(f"layer {layer!r}")
    return Cell(Component(component), source, target)


def read(path: str) -> list[Selection]:
    """The selections of a selection.json, which may be given as a pattern that one file matches.

    What is not there is looked for among the published ones of `conf/experiment/`.

    Raises:
        XTransplantError: no such file, several, not one of ours, or of another format.
    """
    given = Path(path).expanduser()
    ours = Path(str(files("xtransplant.conf")), "experiment", given)
    if given.exists() or ours.is_file():
        found = [given if given.exists() else ours]
    else:
        found = sorted(Path(given.anchor).glob(str(given.relative_to(given.anchor))))
    if len(found) > 1:
        raise XTransplantError(
            f"selection={path}: {len(found)} files match, e.g. {found[0]} and {found[1]}. Give one of them."
        )
    try:
        content = disk.json_of(found[0] if found else given)
        if "published" in content:
            return _published(content["published"])
        return [Selection.from_dict(record) for record in disk.unsealed(content)["selections"]]
    except XTransplantError as error:
        raise XTransplantError(f"selection={path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = getattr(error, "strerror", None) or (str(error) if type(error) is ValueError else type(error).__name__)
        raise XTransplantError(
            f"selection={path}: cannot be read ({why}). Give the selection.json that `xtransplant select` wrote."
        ) from error


def _published(content: dict[str, Any]) -> list[Selection]:
    """Layer pairs that others chose, by model and language pair; of their grids nothing else is known.

    Their documents are named as ours: "<task>/<half>:<number>".
    """
    documents = [
        f"{task}/{content['keys']}:{number}" for task in content["tasks"] for number in range(content["documents"])
    ]
    component = Component(content["component"])
    grid = {
        **{"folder": None, "grid_sha256": None, "weights": None, "config_hash": None, "source": content["source"]},
        **{"task_name": content["task"], "control": None, "num_layers": None},
        "intervention": InterventionConfig().recorded(),
    }
    return [
        Selection(
            strategy=content["strategy"],
            cells=[Cell(component, source, target)],
            rule=None,
            pooled=False,
            candidates=(0, 0),
            documents=documents,
            questions=[],
            grids=[grid | {"model_name": model, "language_pair": pair.split("-", 1)}],
            score=None,
            vanilla=None,
        )
        for model, pairs in content["pairs"].items()
        for pair, (source, target) in pairs.items()
    ]


def as_record(selections: Sequence[Selection]) -> dict[str, Any]:
    """The content of selection.json."""
    # 2: the file has the hash of itself; a selection in it is of format 1.
    return disk.sealed({"format": 2, "selections": [selection.as_dict() for selection in selections]})


def of_run(config: EvaluateConfig) -> Selection | None:
    """The selection that a run's config names, if it does; see `fitting` for what is raised."""
    if not config.selection:
        return None
    pair = config.language_pair
    names = models.names_of(config.model, with_base=config.selection_of_base)
    try:
        return fitting(config.selection, names, config.task.name, pair.source, pair.target)
    except XTransplantError as error:
        if config.selection_of_base or not models.is_fine_tuned(config.model):
            raise
        raise XTransplantError(
            f"{error} Of the model that this one was fine-tuned from, one may be taken: selection_of_base=true."
        ) from error


def takes_of_base(config: EvaluateConfig) -> bool:
    """Whether a fine-tuned model is to take the selection of the untouched one below it."""
    return config.selection is not None and config.selection_of_base and models.is_fine_tuned(config.model)


def effective(config: EvaluateConfig, chosen: Selection | None) -> EvaluateConfig:
    """A run's config where its selection (`of_run`), if there is one, says how vectors are written."""
    if chosen is None:
        return config
    return replace(config, transplant=config.transplant.with_recorded(chosen.grids[0]["intervention"]))


def fitting(path: str, names: Sequence[str], task: str, source: str, target: str) -> Selection:
    """The selection of a file that is meant for a model, by one of its names, and a language pair.

    One made on a single language pair is for that pair; a pooled one is for any. Made on several tasks, that of the
    same task is taken.

    Raises:
        XTransplantError: none fits, or several do.
    """
    pair = f"{source}-{target}"
    fits = []
    for selection in read(path):
        grids = selection.grids
        if any(grid.get("control") is not None for grid in grids):
            continue
        pairs = [_pair_of(grid) for grid in grids]
        if {grid["model_name"] for grid in grids} in [{name} for name in names] and (selection.pooled or pair in pairs):
            fits.append(selection)
    same_task = [each for each in fits if task in {grid["task_name"] for grid in each.grids}]
    fits = same_task or fits
    if len(fits) == 1:
        return fits[0]
    there = sorted(
        {
            f"{grid['model_name']} {grid['task_name']} {'any' if each.pooled else _pair_of(grid)}"
            + (f" control {grid['control']}" if grid.get("control") else "")
            for each in read(path)
            for grid in each.grids
        }
    )
    if len(there) > 6:
        there = [*there[:6], f"… ({len(there)} in all)"]
    what = "no selection" if not fits else f"{len(fits)} selections"
    raise XTransplantError(
        f"selection={path}: it holds {what} for {' or '.join(names)} and {pair}. It holds: {'; '.join(there)}. Select "
        "on a grid of this model and language pair, or with pooled=true for any pair."
    )


def _pair_of(grid: dict[str, Any]) -> str:
    """The language pair of a grid that was selected on; of grids pooled before, several."""
    return "-".join(grid["language_pair"] or ["several"])
