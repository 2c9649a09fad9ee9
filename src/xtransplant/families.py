"""The lm-eval tasks that a family names: whether they are there, which are refused and why, and loading them."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xtransplant.catalogue import languages_meant
from xtransplant.config import EmptyPrompt, LanguagePairConfig, TaskConfig
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

# A task's name in a YAML file, at the top: the file that defines it; or indented: a group, or a list of tasks.
_TASK_NAME = re.compile(
    rb"""^([ -]*)["']?task["']?:[ \t]*["']?([^"'\s#\[{][^"'\n#]*?)["']?[ \t]*(?:#.*)?$""", re.MULTILINE
)


def language_code(task: TaskConfig, language: str) -> str:
    """A language as the task names it."""
    return task.languages.get(language, language)


def task_names(task: TaskConfig, pair: LanguagePairConfig) -> list[tuple[str, str]]:
    """(target task, source task) for each task of the family.

    In a name, {lang} stands for that side's language, {source} and {target} for the pair's, all as the task
    names them.
    """
    codes = {side: language_code(task, getattr(pair, side)) for side in ("source", "target")}
    targets = [name.format(lang=codes["target"], **codes) for name in task.tasks]
    sources = [name.format(lang=codes["source"], **codes) for name in task.source_tasks or task.tasks]
    return list(zip(targets, sources, strict=True))


@lru_cache(maxsize=4)
def find_tasks(include_path: tuple[str, ...] = ()) -> dict[str, Path]:
    """Every task's name and the folder of its YAML file: the user's, ours, then the harness's.

    Reads names only: the harness's own index, which parses 13,000 files, takes half a minute.
    """
    defined: dict[str, Path] = {}
    mentioned: dict[str, Path] = {}
    for root in (*include_path, str(files("xtransplant.tasks")), str(_harness_tasks())):
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith(".yaml"):
                    path = Path(folder, name)
                    for indent, task in _TASK_NAME.findall(path.read_bytes()):
                        (mentioned if indent else defined).setdefault(task.decode(), path.parent)
    return mentioned | defined


def _harness_tasks() -> Path:
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "tasks"


@dataclass(frozen=True)
class Refused:
    """Tasks of the harness that cannot be transplanted between languages: an entry of tasks/refused.toml."""

    name: str
    tasks: str  # a regular expression for their names
    why: str
    instead: str
    no_prompt: bool = False  # parallel, but all text is in the choices

    def __str__(self) -> str:
        return f"{self.why} {self.instead}"


@lru_cache(maxsize=1)
def refused() -> list[Refused]:
    """The families of the harness that are refused, by name."""
    table = tomllib.loads((files("xtransplant.tasks") / "refused.toml").read_text(encoding="utf-8"))
    return [Refused(name, **entry) for name, entry in table.items()]


def why_refused(name: str) -> Refused | None:
    """What speaks against a family of the harness, or one of its tasks; None if nothing is known."""
    return next((each for each in refused() if name == each.name or re.fullmatch(each.tasks, name)), None)


def _refusals(task: TaskConfig, names: Iterable[str], known: dict[str, Path]) -> list[str]:
    """A fault for each refused family that the names belong to, but not for a user's own task of the same name."""
    found: dict[Refused, list[str]] = {}
    for name in names:
        entry = why_refused(name) if known[name].is_relative_to(_harness_tasks()) else None
        if entry is not None and not (entry.no_prompt and task.empty_prompt is EmptyPrompt.vanilla):
            found.setdefault(entry, []).append(name)
    shown = {entry: ", ".join(given[:3]) + (", …" if len(given) > 3 else "") for entry, given in found.items()}
    return [f"task.tasks: {given}: {entry}" for entry, given in shown.items()]


def check(task: TaskConfig, pair: LanguagePairConfig, mean_over: Sequence[str] = ()) -> list[str]:
    """Faults that can be found without building the tasks: languages, names, folders, data files."""
    faults = []
    for side in ("source", "target"):
        language = getattr(pair, side)
        if task.languages and language not in task.languages:
            meant = languages_meant(language, task.languages)
            hint = f" (did you mean {' or '.join(meant)}?)" if meant else ""
            faults.append(
                f"language_pair.{side}={language}: task {task.name} has no such language{hint}. It has: "
                f"{', '.join(sorted(task.languages))}. Tasks of other languages: xtransplant list languages."
            )
    if task.source_tasks is not None and len(task.source_tasks) != len(task.tasks):
        faults.append(
            f"task.source_tasks has {len(task.source_tasks)} names, task.tasks {len(task.tasks)}. "
            "Give one source task for each target task."
        )
    for folder in task.include_path:
        if not Path(folder).is_dir():
            faults.append(f"task.include_path: {folder} is not a folder. Give folders of lm-eval task YAML files.")
    if task.data_dir is not None and not Path(task.data_dir).is_dir():
        faults.append(f"task.data_dir={task.data_dir}: no such folder. Give an existing one, or null to use the hub.")
    if faults or not task.tasks:  # none: `checks` says so
        return faults
    known = find_tasks(tuple(task.include_path))
    targets, sources = zip(*task_names(task, pair), strict=True)
    key_of_source = "task.tasks" if task.source_tasks is None else "task.source_tasks"
    asked = dict.fromkeys(targets, "task.tasks")
    asked |= {name: key_of_source for name in sources if name not in asked}
    missing = [name for name in asked if name not in known]
    directions = _directions(task, known) if missing else []
    if directions and (pair.source, pair.target) not in directions:
        return [_no_direction(task, pair, directions)]
    # Of these, too, `checks` says so.
    mean_over = [each for each in mean_over if each != pair.source and each in (task.languages or mean_over)]
    for language in mean_over:
        further = task_names(task, replace(pair, source=language))
        asked |= {source: "transplant.mean_over" for _, source in further if source not in asked}
        if [target for target, _ in further] != list(targets):
            faults.append(
                f"transplant.mean_over={language}: {task.name} asks other questions for each source language. Use []."
            )
        elif [source for _, source in further] == list(sources) and not any("{" in f for f in task.data_files.values()):
            faults.append(
                f"transplant.mean_over={language}: {task.name} has one source task for all languages, so its vectors "
                "would be averaged with themselves. Use {lang} in task.source_tasks."
            )
    faults += _refusals(task, [name for name in asked if name in known], known)
    for name, key in asked.items():
        if name not in known:
            faults.append(
                f"{key}: lm-eval has no task {name!r}{_did_you_mean(name, known)}. Allowed: the harness's "
                "tasks (xtransplant lm-eval ls tasks), ours (tasks/), and those below task.include_path=[folder]."
            )
    if task.data_dir is not None:
        for language in (pair.source, pair.target, *mean_over):
            for pattern in task.data_files.values():
                path = Path(task.data_dir, pattern.format(lang=language_code(task, language)))
                if not path.is_file():
                    faults.append(f"task.data_dir={task.data_dir}: it has no file {path.relative_to(task.data_dir)}.")
    return faults


def _directions(task: TaskConfig, known: Collection[str]) -> list[tuple[str, str]]:
    """The language pairs that have both sides of every task, of all pairs of different languages."""
    pairs = [LanguagePairConfig(*codes) for codes in itertools.permutations(task.languages, 2)]
    return [
        (pair.source, pair.target)
        for pair in pairs
        if all(name in known for names in task_names(task, pair) for name in names)
    ]


def _no_direction(task: TaskConfig, pair: LanguagePairConfig, directions: Sequence[tuple[str, str]]) -> str:
    sources, targets = ({codes[side] for codes in directions} for side in (0, 1))
    if len(sources) == 1:
        way = f" goes from {min(sources)} only"
    elif len(targets) == 1:
        way = f" goes into {min(targets)} only"
    else:
        way = " does not go that way"
    turned = (pair.target, pair.source)
    near = [codes for codes in directions if codes[0] == pair.source or codes[1] == pair.target]
    source, target = turned if turned in directions else (near or directions)[0]
    return f"language_pair={pair.source}-{pair.target}: {task.name}{way}: e.g. {source}-{target}."


def data_dir(task: TaskConfig) -> str | None:
    """The folder of local data, if there is one."""
    return task.data_dir if task.data_dir is not None else os.environ.get("XTRANSPLANT_DATA") or None


class Loader:
    """Loads a family's tasks through the harness, from the data's origin or from local files.

    One loader of the harness's for each folder of tasks: to read a folder of several hundred files takes a second.
    """

    def __init__(self, task: TaskConfig) -> None:
        self.task = task
        self._folder_of = find_tasks(tuple(task.include_path))
        self._managers: dict[Path, TaskManager] = {}

    def load(self, name: str, language: str) -> ConfigurableTask:
        """The task of that name, on the side of a language.

        Raises:
            XTransplantError: its data cannot be had.
        """
        folder, manager = data_dir(self.task), self._manager(name)
        spec: Any = name
        if folder is not None and self.task.data_files:
            code = language_code(self.task, language)
            paths = {part: Path(folder, pattern.format(lang=code)) for part, pattern in self.task.data_files.items()}
            if all(path.is_file() for path in paths.values()):
                local = {
                    "dataset_path": "json",
                    "dataset_name": None,
                    "dataset_kwargs": {"data_files": {part: str(path) for part, path in paths.items()}},
                }
                spec = {"group": "local", "task": [{"task": name, **local}]}
        try:
            loaded: ConfigurableTask = manager.load([spec])["tasks"][name]
        except XTransplantError:
            raise
        except Exception as error:
            if name not in manager.task_index:  # the harness passes over a file that it cannot read
                raise XTransplantError(_unreadable(self._folder_of[name], name)) from error
            raise XTransplantError(
                f"Task {name} could not be loaded: {type(error).__name__}: {str(error).strip()[:500]}. Its data comes "
                f"from {_origin(manager, name)}: check the network (or HF_HUB_OFFLINE), or give a folder that has it "
                "as task.data_dir or XTRANSPLANT_DATA."
            ) from error
        return loaded

    def _manager(self, name: str) -> TaskManager:
        from lm_eval.tasks import TaskManager

        folder, data = self._folder_of[name], data_dir(self.task)
        if folder not in self._managers:
            metadata = {"data_dir": data} if data is not None else None
            self._managers[folder] = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
        return self._managers[folder]


def _unreadable(folder: Path, name: str) -> str:
    """Why the harness does not have a task that a file in the folder names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(folder.glob("*.yaml")):
        if name not in (task.decode() for _, task in _TASK_NAME.findall(path.read_bytes())):
            continue
        try:
            load_yaml(path, resolve_func=False)
        except yaml.MarkedYAMLError as error:
            # The mark's file may be one that this one includes.
            mark = error.problem_mark
            place = f"{path} is not YAML" if mark is None else f"{mark.name} is not YAML, line {mark.line + 1}"
            return f"{place}: {error.problem}. Mend the file."
        except Exception as error:
            return f"{path} cannot be read: {error}. Mend the file."
    return f"Task {name} is no task of its own in {folder}. Give it a file of its own, with `task: {name}` at the top."


def _origin(manager: Any, name: str) -> str:
    config = manager.task_index[name].cfg or {}
    return f"the hub's dataset {config['dataset_path']}" if "dataset_path" in config else "the task's own loader"


def _did_you_mean(given: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(allowed), n=3, cutoff=0.7)
    return f" (did you mean {', '.join(close)}?)" if close else ""
