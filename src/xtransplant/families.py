"""The lm-eval tasks that a family names: whether they are there, which are refused and why, and loading them."""

from __future__ import annotations

import itertools
import logging
import os
import re
import selectors
import socket
import time
import tomllib
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xtransplant import disk
from xtransplant.catalogue import languages_meant
from xtransplant.checks import did_you_mean
from xtransplant.config import EmptyPrompt, LanguagePairConfig, TaskConfig
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

# A task's name in a YAML file, at the top: the file that defines it; or indented: a group, or a list of tasks.
_TASK_NAME = re.compile(
    rb"""^([ -]*)["']?task["']?:[ \t]*["']?([^"'\s#\[{][^"'\n#]*?)["']?[ \t]*(?:#.*)?$""", re.MULTILINE
)

# Of `datasets`: a dataset_path that names the format of local files.
_FILE_FORMATS = ("json", "csv", "parquet", "arrow", "text", "xml")


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
    """Every task's name and its YAML file: the user's, ours, then the harness's.

    Reads names only: the harness's own index, which parses 13,000 files, takes half a minute.
    """
    defined: dict[str, Path] = {}
    mentioned: dict[str, Path] = {}
    for root in (*include_path, str(files("xtransplant.tasks")), str(_harness_tasks())):
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                # A pipe, or a link to a device, has no end.
                if name.endswith(".yaml") and path.is_file():
                    for indent, task in _TASK_NAME.findall(disk.bytes_of(path)):
                        (mentioned if indent else defined).setdefault(task.decode(errors="replace"), path)
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
    try:
        known = find_tasks(tuple(task.include_path))
    except (OSError, ValueError) as error:
        return [f"task.include_path: {', '.join(task.include_path)}: a file cannot be read: {error}."]
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
                f"{key}: lm-eval has no task {name!r}. {did_you_mean(name, known)}Allowed: the harness's "
                "tasks (xtransplant lm-eval ls tasks), ours (tasks/), and those below task.include_path=[folder]."
            )
    own = dict.fromkeys(known[name] for name in asked if name in known and not _is_trusted(known[name]))
    faults += [fault for path in own for fault in code_faults(task, path)]
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
        self._file_of = find_tasks(tuple(task.include_path))
        sandbox_templates()
        self._managers: dict[Path, TaskManager] = {}

    def load(self, name: str, language: str) -> ConfigurableTask:
        """The task of that name, on the side of a language.

        Raises:
            XTransplantError: its data cannot be had, or its YAML or its data has a fault.
        """
        manager = self._manager(name)
        entry = manager.task_index.get(name)
        if entry is None:
            raise XTransplantError(_unreadable(self._file_of[name].parent, name))
        if not _is_trusted(self._file_of[name]):
            # Once more, of what is loaded now: the folder may have changed, or have a second task of the name.
            faults = code_faults(self.task, entry.yaml_path or self._file_of[name].parent / name)
            if faults:
                raise XTransplantError("\n".join(faults))
        settings = entry.cfg or {}
        spec: Any = name
        files = self._own_files(language)
        if files:
            local = {
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {part: str(path) for part, path in files.items()}},
            }
            spec = {"group": "local", "task": [{"task": name, **local}]}
        elif settings.get("dataset_path") in _FILE_FORMATS and not settings.get("dataset_kwargs"):
            # Without files, `datasets` takes what lies in the current folder, this YAML for one.
            folder = data_dir(self.task)
            lacking = "no folder is given" if folder is None else f"{folder} does not have them"
            why = f"{lacking} (task.data_files: {', '.join(self.task.data_files.values())})"
            raise XTransplantError(
                f"Task {name} reads local files (dataset_path: {settings['dataset_path']}), and "
                f"{why if self.task.data_files else 'task.data_files names none'}. Give task.data_files={{test: …}}, "
                "and the folder that they are in as task.data_dir or XTRANSPLANT_DATA."
            )
        else:
            named = (settings.get("dataset_kwargs") or {}).get("data_files")
            named = named if isinstance(named, dict) else {}
            files = {part: Path(path) for part, path in named.items() if isinstance(path, str) and Path(path).is_file()}
        try:
            loaded: ConfigurableTask = self._load(manager, name, spec, settings)
        except XTransplantError as error:
            raise XTransplantError(f"Task {name} ({entry.yaml_path}) could not be loaded: {error}") from error
        except Exception as error:
            fault = _fault_in_yaml(entry, files, error) or _fault_in_files(settings, files, error)
            said = f"{type(error).__name__}: {str(error).strip()[:500]}"
            if fault is None and files:
                fault = f"Mend its YAML, {entry.yaml_path}, or its data, {', '.join(map(str, files.values()))}."
            elif fault is None:
                fault = (
                    f"Its data comes from {_origin(settings)}: check the network (or HF_HUB_OFFLINE), or give a folder "
                    "that has it as task.data_dir or XTRANSPLANT_DATA."
                )
            else:
                raise XTransplantError(f"Task {name} could not be loaded: {fault}") from error
            raise XTransplantError(f"Task {name} could not be loaded: {said}. {fault}") from error
        return loaded

    def _own_files(self, language: str) -> dict[str, Path]:
        """Split -> local file, where there is a folder with all of them."""
        folder, code = data_dir(self.task), language_code(self.task, language)
        if folder is None:
            return {}
        paths = {part: Path(folder, pattern.format(lang=code)) for part, pattern in self.task.data_files.items()}
        return paths if all(path.is_file() for path in paths.values()) else {}

    def _load(self, manager: TaskManager, name: str, spec: Any, settings: dict[str, Any]) -> ConfigurableTask:
        from huggingface_hub.errors import HfHubHTTPError

        # `datasets` looks into the current folder first.
        asked = str(settings.get("dataset_path", name)), data_dir(self.task), str(Path.cwd())
        if asked in _not_had and spec is name:
            raise _not_had[asked]
        try:
            with _unreachable_at_once():
                loaded: ConfigurableTask = manager.load([spec])["tasks"][name]
        except Exception as error:
            if isinstance(error, ConnectionError | HfHubHTTPError) or isinstance(
                error.__cause__, ConnectionError | HfHubHTTPError
            ):
                _not_had[asked] = error
            raise
        return loaded

    def _manager(self, name: str) -> TaskManager:
        from lm_eval.tasks import TaskManager

        folder, data = self._file_of[name].parent, data_dir(self.task)
        if folder not in self._managers:
            metadata = {"data_dir": data} if data is not None else None
            self._managers[folder] = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
        return self._managers[folder]


def _origin(settings: dict[str, Any]) -> str:
    return f"the hub's dataset {settings['dataset_path']}" if "dataset_path" in settings else "the task's own loader"


# --- What is wrong with a task of one's own -------------------------------------------------------------------------


def _unreadable(folder: Path, name: str) -> str:
    """Why the harness does not have a task that a file in the folder names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(folder.glob("*.yaml")):
        if not path.is_file() or name.encode() not in (task for _, task in _TASK_NAME.findall(disk.bytes_of(path))):
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


def _fault_in_yaml(entry: Any, files: dict[str, Path], error: Exception) -> str | None:
    """What to mend in a task's YAML, for some errors of the harness's that do not say it."""
    from lm_eval.config.task import TaskConfig as HarnessConfig

    settings, path = entry.cfg or {}, entry.yaml_path
    if isinstance(error, TypeError):
        known = [each.name for each in fields(HarnessConfig)]
        for key in settings:
            if key not in known and f"'{key}'" in str(error):
                return (
                    f"{path}, or what it includes: {key}: lm-eval has no such key. {did_you_mean(key, known)}".rstrip()
                )
    if isinstance(error, KeyError) and files:
        for key in ("test_split", "validation_split", "training_split", "fewshot_split"):
            if settings.get(key) is not None and error.args == (settings[key],):
                return (
                    f"the data has the split {', '.join(files)}, the task's {key} is {settings[key]}. Give both the "
                    f"same name, in {path} or in task.data_files."
                )
    undefined = re.match(r"'(\w+)' is undefined", str(error))  # jinja2's UndefinedError
    if undefined is not None:
        using = [key for key, value in settings.items() if isinstance(value, str) and undefined[1] in value]
        said = f"{path}: {', '.join(using) or 'a template'}: the documents have no field {undefined[1]}"
        there = list(dict.fromkeys(field for each in files.values() for field in _first_document(each)))
        they_have = f"They have: {', '.join(there)}." if there else ""
        return f"{said}. {did_you_mean(undefined[1], there)}{they_have}".rstrip()
    return None


def _fault_in_files(settings: dict[str, Any], files: dict[str, Path], error: Exception) -> str | None:
    """What to mend in local data: the file, the line and what is wrong with it."""
    for path in files.values():
        fault = broken_line(path, '{"id": "1", "question": "…"}')
        if fault is not None:
            return fault
    split = settings.get("test_split") or settings.get("validation_split")
    if isinstance(error, IndexError) and split in files:
        document = _first_document(files[split])
        answer = document.get(str(settings.get("doc_to_target")))
        if isinstance(answer, int):
            return (
                f"{files[split]}, line 1: {settings['doc_to_target']}: {answer} is not the number of a choice. The "
                "first one has the number 0."
            )
    return None


def broken_line(path: Path, example: str) -> str | None:
    """What to mend in JSON lines; None where nothing is wrong with them, or the file is of another format.

    Args:
        example: a line as it should be.
    """
    if path.suffix not in (".json", ".jsonl") or _is_one_value(path):
        return None
    count = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            count += bool(line.strip())
            try:
                document = disk.json_in(line) if line.strip() else {}
            except ValueError as fault:
                return f"{path}, line {number}: not JSON: {fault}. Write one document a line, as {example}."
            if not isinstance(document, dict):
                return f"{path}, line {number}: not a document. Write one a line, as {example}."
    return None if count else f"{path}: no documents in it. Write one a line, as {example}."


def _is_one_value(path: Path) -> bool:
    """Whether a file is one list in JSON, over several lines, which `datasets` reads too."""
    try:
        return isinstance(disk.json_of(path), list)
    except ValueError:
        return False


def _first_document(path: Path) -> dict[str, Any]:
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"{}")
    try:
        document = disk.json_in(first)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


# --- Tasks from strangers ---------------------------------------------------------------------------------------------


class _Function(str):
    """What a YAML file asks to import, by its name; nothing is imported."""


def _own_yaml(path: Path) -> tuple[Any, list[_Function]]:
    """A task's YAML as the harness reads it, but for the functions; and all of these, wherever they stand: the harness
    imports also what is a key, a member of a set, or given twice, so that it is in no value in the end.

    Raises:
        As `disk.yaml_of`.
    """
    functions: list[_Function] = []

    def noted(loader: Any, node: yaml.Node) -> _Function:
        functions.append(_Function(node.value))
        return functions[-1]

    class Loader(disk.YamlLoader):
        pass

    yaml.add_constructor("!function", noted, Loader=Loader)
    return disk.yaml_of(path, Loader), functions


def _is_trusted(path: Path) -> bool:
    """Whether a file is part of this program or of the harness."""
    return any(path.resolve().is_relative_to(root.resolve()) for root in _roots_of_trust())


def _roots_of_trust() -> tuple[Path, Path]:
    return Path(str(files("xtransplant.tasks"))), _harness_tasks()


def code_faults(task: TaskConfig, path: Path) -> list[str]:
    """What a task's YAML of the user's asks for that nobody has allowed: to run code, or to read other folders.

    Nothing of it is run to find that out. It and what it includes are read; what is part of this program or of the
    harness is trusted.

    Args:
        path: the file that defines the task.
    """
    if task.allow_code:
        return []
    faults: list[str] = []
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        place = waiting.pop(0)
        if place.resolve() in seen or _is_trusted(place):
            continue
        seen.add(place.resolve())
        if not any(place.resolve().is_relative_to(Path(root).resolve()) for root in task.include_path):
            faults.append(f"{place}: lies outside of task.include_path, and a task file includes it")
            continue
        try:
            content, functions = _own_yaml(place)
        except yaml.constructor.ConstructorError as error:
            faults.append(f"{place}: {error.problem}")
            continue
        except yaml.YAMLError:
            continue  # said where it is loaded: with the line
        except (OSError, ValueError) as error:
            faults.append(f"{place}: cannot be read: {error}")
            continue
        keys = content.items() if isinstance(content, dict) else ()
        where = {id(each): f"{key}: " for key, value in keys for each in _texts(value)}
        faults += [f"{place}: {where.get(id(each), '')}!function {each} is Python code" for each in functions]
        if isinstance(content, dict):
            faults += [f"{place}: {asked}" for asked in _asks_for(content, task)]
            included = content.get("include", [])
            waiting += [place.parent / str(each) for each in (included if isinstance(included, list) else [included])]
    allow = "Nothing of a task file is run, and no other folder read, unless asked for. Read it; if you trust it:"
    return [f"{fault}. {allow} task.allow_code=true" for fault in faults]


def _asks_for(content: dict[str, Any], task: TaskConfig) -> Iterator[str]:
    """What in a task's YAML runs code, or leads out of its folder."""
    # A group builds all its tasks, and a class is built as it is.
    for key in ("class", "group", "unsafe_code", "custom_dataset"):
        if content.get(key) and not isinstance(content[key], _Function):
            yield f"{key}: {content[key]} makes of the file more than a task"
    if isinstance(content.get("task"), str) and ("/" in content["task"] or not disk.is_below(content["task"])):
        yield f"task: {content['task']!r} cannot be part of a file's name"
    metrics = content.get("metric_list") or []
    for each in metrics if isinstance(metrics, list) else [metrics]:
        name = each.get("metric") if isinstance(each, dict) else each
        if isinstance(name, _Function):
            continue
        if str(name) not in _metrics() or (isinstance(each, dict) and each.get("hf_evaluate")):
            yield f"metric_list: {name} is no metric of the harness's own: it would be looked for as a script"
    where = content.get("dataset_path")
    if isinstance(where, str) and where not in _FILE_FORMATS and "/" not in where and not Path(where).is_dir():
        formats = ", ".join(_FILE_FORMATS)
        yield f"dataset_path: {where} is no folder, no <owner>/<name> of the hub, and none of {formats}"
    prompt = content.get("use_prompt")
    places = [where, content.get("dataset_kwargs"), prompt.partition(":")[0] if isinstance(prompt, str) else None]
    for place in _texts(places):
        if _leads_out(place, [*task.include_path, data_dir(task)]):
            yield (
                f"{place} is read, and lies in no folder of task.include_path or task.data_dir "
                "(task.data_dir=<its folder> allows that)"
            )
    if isinstance(content.get("dataset_kwargs"), dict) and "cache_dir" in content["dataset_kwargs"]:
        yield "dataset_kwargs: cache_dir says where to write"


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, its keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple | set):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _leads_out(place: str, folders: Iterable[str | None]) -> bool:
    """Whether a path, or an address, that a task names is neither on the hub nor below the folders."""
    if place.startswith("hf://"):
        return ".." in place
    path = Path(place).expanduser()
    if "://" in place or "::" in place:
        return True
    if not path.is_absolute() and ".." not in path.parts:
        return False
    return not any(folder and path.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


@lru_cache(maxsize=1)
def _metrics() -> Collection[str]:
    from lm_eval.api import metrics, registry

    assert metrics  # it fills the registry

    return {*registry.metric_registry}


def sandbox_templates() -> None:
    """Let the harness fill in templates in Jinja's sandbox: one may come from a stranger's YAML, and could else run
    anything. What an ordinary template gives stays the same.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if isinstance(utils.env, SandboxedEnvironment):
        return

    class Sandbox(SandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise XTransplantError(f"a template asks for {attribute} of {type(obj).__name__}, which is not data.")

        def is_safe_callable(self, obj: Any) -> bool:
            if not super().is_safe_callable(obj):
                raise XTransplantError(f"a template calls {obj!r}, which is not allowed.")
            return True

    before = utils.env
    utils.env = Sandbox(
        loader=before.loader, undefined=before.undefined, keep_trailing_newline=before.keep_trailing_newline
    )
    utils.env.filters.update(before.filters)


# --- A hub that cannot be reached -----------------------------------------------------------------------------------

# What was asked for (data set, data folder, current folder) and not had, since the hub did not answer -> what it said.
_not_had: dict[tuple[str, str | None, str], Exception] = {}
_CONNECT_SECONDS = 4.0


@contextmanager
def _unreachable_at_once() -> Iterator[None]:
    """Let requests to a host that takes no connection fail at once, as if offline; else nothing changes.

    The hub's own client tries six times in 24 s, and says so each time twice. What is in its cache is used, as offline.
    """
    from huggingface_hub import get_session

    client, hub_log = get_session(), logging.getLogger("huggingface_hub")
    hooks, level = client.event_hooks, hub_log.level
    client.event_hooks = {**hooks, "request": [*hooks["request"], _refuse_unreachable]}
    hub_log.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        client.event_hooks = hooks
        hub_log.setLevel(level)


def _refuse_unreachable(request: Any) -> None:
    """A request hook of the hub's client, behind its own, which knows HF_HUB_OFFLINE."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    url = request.url
    proxies = urllib.request.getproxies()
    if url.scheme in proxies or "all" in proxies:  # who reaches what is the proxy's to say
        return
    if not _takes_connections(url.host, url.port or {"http": 80}.get(url.scheme, 443)):
        raise OfflineModeIsEnabled(f"{url.host} takes no connection")


@lru_cache
def _takes_connections(host: str, port: int) -> bool:
    """Whether any of a host's addresses takes a connection in `_CONNECT_SECONDS`; all are tried at the same time."""
    end = time.monotonic() + _CONNECT_SECONDS
    with selectors.DefaultSelector() as waiting, ExitStack() as opened:
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            return False
        for family, kind, protocol, _, address in addresses:
            try:
                each = opened.enter_context(socket.socket(family, kind, protocol))
                each.setblocking(False)
                each.connect_ex(address)
            except OSError:  # a family that this machine does not have
                continue
            waiting.register(each, selectors.EVENT_WRITE)
        while waiting.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                tried: Any = key.fileobj
                if tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    return True
                waiting.unregister(tried)
    return False
