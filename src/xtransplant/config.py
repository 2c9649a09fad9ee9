"""What may be asked for: one dataclass per job; what is wrong with a value; the name and hash of a run."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
import string
import tempfile
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xtransplant.types import Component, LayerPair, Site, XTransplantError


class Dtype(Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Split(Enum):
    all = "all"
    sample = "sample"
    unseen = "unseen"


class Unmatched(Enum):
    error = "error"
    drop = "drop"


class EmptyPrompt(Enum):
    error = "error"
    vanilla = "vanilla"


class Control(Enum):
    """What stands in for the parallel prompt's vector, to see what a transplant of anything would do."""

    none = "none"
    random_document = "random_document"  # another document's source prompt
    noise = "noise"  # random vectors of the same length
    self = "self"  # the target prompt itself: equal layers change nothing


@dataclass
class ModelConfig:
    name: str = field(default=MISSING, metadata={"help": "short name, shown in run folders and tables"})
    path: str = field(default=MISSING, metadata={"help": "embedded:<name>, hub id, folder or GGUF file"})
    licence: str | None = field(default=None, metadata={"help": "shown only"})
    revision: str | None = field(
        default=None, metadata={"help": "hub branch, tag or commit; the resolved commit is recorded"}
    )
    adapter: str | None = field(default=None, metadata={"help": "folder or hub id of a PEFT adapter"})
    dtype: Dtype = field(default=Dtype.float32, metadata={"help": "of weights and activations"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1, mps"})
    device_map: str | None = field(default=None, metadata={"help": "accelerate's: auto, balanced, sequential"})
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager, flash_attention_2"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python code that comes with the checkpoint"})
    allow_pickle: bool = field(default=False, metadata={"help": "load weights that are not safetensors"})
    modules: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "module names of an architecture that the engine does not know: layers, attn, ffn, …"},
    )


@dataclass
class TaskConfig:
    name: str = field(default=MISSING, metadata={"help": "short name, shown in run folders and tables"})
    tasks: list[str] = field(
        default=MISSING, metadata={"help": "lm-eval tasks of the target side; {lang} is the language's own code"}
    )
    source_tasks: list[str] | None = field(
        default=None, metadata={"help": "those of the source side, where they are named differently"}
    )
    include_path: list[str] = field(
        default_factory=list, metadata={"help": "folders of your own lm-eval task YAML files"}
    )
    languages: dict[str, str] = field(
        default_factory=dict, metadata={"help": "language code -> the task's own; empty: any, as given"}
    )
    key: str = field(
        default=MISSING,
        metadata={"help": "document field(s) that align the two sides, joined by commas; row: the row number"},
    )
    unmatched: Unmatched = field(
        default=Unmatched.error, metadata={"help": "documents without a counterpart: refuse, or leave them out"}
    )
    gold: str | None = field(default=None, metadata={"help": "document field with a label that no language changes"})
    min_gold_agreement: float = field(
        default=0.99, metadata={"help": "share of documents whose gold label must agree between the sides"}
    )
    split_field: str | None = field(
        default=None, metadata={"help": "document field that says sample or unseen; null: by a hash of the key"}
    )
    data_files: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "local data instead of the hub's: split -> JSON-lines file below data_dir"},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder of local data; null: the environment variable XTRANSPLANT_DATA"}
    )
    num_fewshot: int | None = field(default=None, metadata={"help": "examples in the prompt; null: the task's own"})
    system_instruction: str | None = field(default=None, metadata={"help": "system message of the chat template"})
    apply_chat_template: bool = field(default=False, metadata={"help": "prompts as turns of a chat"})
    fewshot_as_multiturn: bool = field(default=False, metadata={"help": "each example as turns of its own"})
    empty_prompt: EmptyPrompt = field(
        default=EmptyPrompt.error,
        metadata={"help": "requests without a prompt: refuse, or score without a transplant and count them"},
    )


@dataclass
class LanguagePairConfig:
    source: str = field(default=MISSING, metadata={"help": "language of the prompt that is read"})
    target: str = field(default=MISSING, metadata={"help": "language of the prompt that is answered"})


@dataclass
class TransplantConfig:
    component: Component = field(default=Component.ffn, metadata={"help": "module whose output is transplanted"})
    site: Site = field(
        default=Site.module,
        metadata={"help": "the module's own output, or what a norm after it adds to the residual stream"},
    )
    layers: Any = field(
        default=None,
        metadata={
            "help": "layer read and layer written: an index, from the end if negative, first or last; null: vanilla",
            "type": "[source, target] or null",
        },
    )
    control: Control = field(
        default=Control.none, metadata={"help": "instead of the parallel prompt's vector: another document's, noise, …"}
    )


@dataclass
class GridTransplantConfig:
    component: Any = field(
        default=Component.ffn.value,
        metadata={"help": "module whose output is transplanted, or several", "type": "ffn, attn or [ffn,attn]"},
    )
    site: Site = field(
        default=Site.module,
        metadata={"help": "the module's own output, or what a norm after it adds to the residual stream"},
    )
    control: Control = field(
        default=Control.none, metadata={"help": "instead of the parallel prompt's vector: another document's, noise, …"}
    )


@dataclass
class SweepConfig:
    pairs: Any = field(
        default="all",
        metadata={
            "help": "layer pairs to look at",
            "type": "all, source_last, target_first, diagonal or [[source,target],…]",
        },
    )
    budget: float | None = field(
        default=None,
        metadata={"help": "share of the whole grid to compute, coarse to fine by successive halving; null: all of it"},
    )
    memory: float = field(default=2.0, metadata={"help": "gigabytes that a batch may take beside the model"})


@dataclass
class EvaluateConfig:
    """evaluate a model on parallel tasks of a language pair, with a transplant or without (vanilla)"""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    language_pair: LanguagePairConfig = field(default_factory=LanguagePairConfig)
    transplant: TransplantConfig = field(default_factory=TransplantConfig)
    selection: str | None = field(
        default=None,
        metadata={"help": "selection.json of `xtransplant select`, or a pattern for it: in place of transplant"},
    )
    split: Split = field(
        default=Split.all,
        metadata={"help": "half of the documents: sample to choose layers on, unseen to test the choice"},
    )
    limit: int | None = field(default=None, metadata={"help": "documents per task; null: all"})
    seed: int = field(default=1234, metadata={"help": "of the few-shot draw, sampling and bootstrap"})
    batch_size: int = field(default=8, metadata={"help": "prompts per forward pass; results do not depend on it"})
    output_dir: str = field(default="outputs", metadata={"help": "folder for runs"})
    overwrite: bool = field(default=False, metadata={"help": "compute a finished run anew"})


@dataclass
class GridConfig:
    """score every layer pair on the documents of a language pair, in one sweep a document"""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    language_pair: LanguagePairConfig = field(default_factory=LanguagePairConfig)
    transplant: GridTransplantConfig = field(default_factory=GridTransplantConfig)
    grid: SweepConfig = field(default_factory=SweepConfig)
    split: Split = field(
        default=Split.sample,
        metadata={"help": "half of the documents: sample to choose layers on, unseen to test the choice"},
    )
    limit: int | None = field(default=None, metadata={"help": "documents per task; null: all"})
    seed: int = field(default=1234, metadata={"help": "of the few-shot draw, controls and sampling"})
    output_dir: str = field(default="outputs", metadata={"help": "folder for runs"})
    overwrite: bool = field(default=False, metadata={"help": "compute a finished run anew"})


_GRIDS = {"help": "folders of grid runs; patterns with * are expanded", "type": "folder or [folder, …]"}


@dataclass
class SelectConfig:
    """choose a layer pair, or a rule that chooses one for each document, on grids; no model is loaded"""

    grid: Any = field(default=MISSING, metadata=_GRIDS)
    strategy: str = field(default="overall", metadata={"help": "how to choose; the names are in the README"})
    pooled: bool = field(default=False, metadata={"help": "one choice for all grids together, not one for each"})
    component: str | None = field(default=None, metadata={"help": "ffn or attn: choose among its cells only"})
    fixed: Any = field(
        default=None,
        metadata={
            "help": "for strategy=fixed: the paper's setting for a kind of task, or a cell of your own",
            "type": "understanding, generation, culture or [component, source, target]",
        },
    )
    candidates: Any = field(
        default=16,
        metadata={"help": "best cells on the sample that per-document rules look at", "type": "a whole number or all"},
    )
    alpha: float = field(default=0.05, metadata={"help": "level of strategy=cross_validated"})
    seed: int = field(default=1234, metadata={"help": "of the folds"})
    output_dir: str = field(default="outputs", metadata={"help": "folder for runs"})


@dataclass
class StrategiesConfig:
    """every strategy, chosen on sample grids and scored on unseen ones; no model is loaded"""

    grid: Any = field(default=MISSING, metadata=_GRIDS)
    unseen: Any = field(default=MISSING, metadata=_GRIDS)
    controls: Any = field(
        default_factory=list, metadata={"help": "grid runs with transplant.control", "type": "folder or [folder, …]"}
    )
    seed: int = field(default=1234, metadata={"help": "of folds and bootstrap"})
    output_dir: str = field(default="outputs", metadata={"help": "folder for tables and pictures"})


@dataclass
class AnalyzeConfig:
    """the map over layer pairs: tests over all cells, upper bounds, heatmaps and curves"""

    grid: Any = field(default=MISSING, metadata=_GRIDS)
    controls: Any = field(
        default_factory=list, metadata={"help": "grid runs with transplant.control", "type": "folder or [folder, …]"}
    )
    seed: int = field(default=1234, metadata={"help": "of permutations and splits"})
    output_dir: str = field(default="outputs", metadata={"help": "folder for tables and pictures"})


@dataclass
class DoctorConfig:
    """check a model: its modules, its transplants, and what is read and written for a pair of prompts"""

    model: ModelConfig = field(default_factory=ModelConfig)
    transplant: TransplantConfig = field(default_factory=TransplantConfig)
    source_prompt: str = field(default="The capital of France is the city of", metadata={"help": "prompt that is read"})
    target_prompt: str = field(
        default="Die Hauptstadt von Frankreich ist die Stadt", metadata={"help": "prompt that is answered"}
    )


@dataclass
class SummarizeConfig:
    """one table of finished runs"""

    runs: list[str] = field(
        default_factory=lambda: ["outputs/evaluate/*"], metadata={"help": "run folders; patterns with * are expanded"}
    )


TaskJob = EvaluateConfig | GridConfig
ModelJob = EvaluateConfig | GridConfig | DoctorConfig
GridReader = SelectConfig | StrategiesConfig | AnalyzeConfig
JobConfig = ModelJob | GridReader | SummarizeConfig
JOBS: dict[str, type[JobConfig]] = {
    "evaluate": EvaluateConfig,
    "grid": GridConfig,
    "select": SelectConfig,
    "strategies": StrategiesConfig,
    "analyze": AnalyzeConfig,
    "summarize": SummarizeConfig,
    "doctor": DoctorConfig,
}

# What `strategies.py`, which cannot be imported without scipy, knows; a test says that they agree.
STRATEGIES = (
    *("overall", "source_last", "target_first", "fixed", "cross_validated"),
    *("margin", "entropy", "vote", "mean_logprob", "band", "router"),
)
FIXED = ("understanding", "generation", "culture")

# The parts that model.modules may name: the fields of `engine.Modules`, which cannot be imported without torch.
MODULES = ("layers", "attn", "ffn", "attn_branch", "ffn_branch")


# --- Keys of a job: what they are, and what is wrong with a given value ------------------------------------------


@dataclass(frozen=True)
class Key:
    """One key of a job, e.g. model.dtype."""

    name: str
    annotation: Any
    default: Any
    help: str
    type: str  # in words


def keys(schema: type) -> list[Key]:
    """Every key of a job's dataclass, those of its sections too."""
    found = []
    hints = typing.get_type_hints(schema)
    for each in dataclasses.fields(schema):
        annotation = hints[each.name]
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            found += [dataclasses.replace(key, name=f"{each.name}.{key.name}") for key in keys(annotation)]
            continue
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        in_words = each.metadata.get("type") or _in_words(annotation)
        found.append(Key(each.name, annotation, default, each.metadata["help"], in_words))
    return found


def _in_words(annotation: Any) -> str:
    if isinstance(annotation, types.UnionType):
        return f"{_in_words(typing.get_args(annotation)[0])} or null"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        *others, last = [each.name for each in annotation]
        return f"{', '.join(others)} or {last}"
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list: "[text, …]",
        dict: "{name: text, …}",
    }
    return words[typing.get_origin(annotation) or annotation]


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list | tuple):
        return f"[{','.join(shown(each) for each in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{shown(each)}' for name, each in value.items())}}}"
    return str(value)


def did_you_mean(given: str, allowed: Collection[str]) -> str:
    """A question to put into a message; empty if nothing is close."""
    close = difflib.get_close_matches(given, list(allowed), n=2)
    return f"Did you mean {' or '.join(close)}? " if close else ""


def _which_key(name: str, known: Collection[str]) -> str:
    """As `did_you_mean`, by a key's last part: among its section's keys if there is one like it, else among all."""
    section, _, last = name.rpartition(".")
    places = [[key for key in known if key.startswith(f"{section}.")] if section else [], [*known, *_sections(known)]]
    for keys_there in places:
        lasts = [key.rpartition(".")[2] for key in keys_there]
        close = difflib.get_close_matches(last, dict.fromkeys(lasts), n=2)
        meant = [key for match in close for key in keys_there if key.rpartition(".")[2] == match]
        if meant:
            return f"Did you mean {' or '.join(meant[:3])}? "
    return ""


def _sections(known: Collection[str]) -> list[str]:
    return list(dict.fromkeys(key.partition(".")[0] for key in known if "." in key))


def faults_of(schema: type[JobConfig], name: str, value: Any, where: str = "") -> list[str]:
    """What is wrong with giving a key, or a section's mapping, this value; judged without the rest of the config.

    Args:
        where: put before each message, e.g. the name of a file.
    """
    known = {key.name: key for key in keys(schema)}
    given = f"{where}{name}={shown(value)}"
    is_section = any(key.startswith(f"{name}.") for key in known)
    if (is_section or not name) and isinstance(value, Mapping):
        names = {each: f"{name}.{each}" if name else str(each) for each in value}
        return [fault for each, full in names.items() for fault in faults_of(schema, full, value[each], where)]
    if is_section:
        return [f"{given}: {name} is a section. {_allowed_keys(name, known)}"]
    key = known.get(name)
    if key is None:
        parent = known.get(name.rpartition(".")[0])
        if parent is None or typing.get_origin(parent.annotation) is not dict:
            return [f"{given}: there is no key {name}. {_which_key(name, known)}{_allowed_keys(name, known)}"]
        if _is_text(value):
            return []
        return [f"{given}: wrong value. Allowed: text ({parent.name}: {parent.help})."]
    if isinstance(value, str) and ("${" in value or value == MISSING):
        return []  # judged when the whole config is there
    return [] if _fits(schema, key, value) else [f"{given}: wrong value. Allowed: {key.type} ({key.help})."]


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _allowed_keys(name: str, known: Collection[str]) -> str:
    section = name.partition(".")[0]
    near = [key.partition(".")[2] for key in known if key.startswith(f"{section}.")]
    if near:
        return f"Keys of {section}: {', '.join(near)}."
    sections = [f"{each}.…" for each in _sections(known)]
    return f"Keys: {', '.join([*(key for key in known if '.' not in key), *sections])}."


def _fits(schema: type, key: Key, value: Any) -> bool:
    if typing.get_origin(key.annotation) is dict:
        return isinstance(value, Mapping) and all(_is_text(each) for each in value.values())
    if key.annotation is bool and not isinstance(value, bool | str):
        return False  # OmegaConf takes 2 for true
    try:
        OmegaConf.update(OmegaConf.structured(schema), key.name, value, merge=True)
    except OmegaConfBaseException:
        return False
    return True


# --- Values --------------------------------------------------------------------------------------------------------


def validate(config: JobConfig, num_layers: int | None = None, unclear: Collection[str] = ()) -> list[str]:
    """Every fault of the values that can be seen without a model or the data.

    Args:
        num_layers: of the model; None where it is not known yet.
        unclear: sections and keys with a fault that is known already.
    """
    faults = []
    for key in keys(type(config)):
        value = functools.reduce(getattr, key.name.split("."), config)
        if isinstance(value, str) and not value.strip() and not _is_unclear(key.name, unclear):
            optional = ", or null" if key.default is None else ""
            faults.append(f"{key.name}={value}: empty. Give text{optional}: {key.help}.")
    if "model" in unclear:
        num_layers = None
    if isinstance(config, ModelJob):
        faults += [
            f"model.modules.{name}={module}: there is no such part. Parts: {', '.join(MODULES)}."
            for name, module in config.model.modules.items()
            if name not in MODULES
        ]
    if isinstance(config, EvaluateConfig | DoctorConfig) and not _is_unclear("transplant.layers", unclear):
        faults += _layer_faults(config.transplant.layers, num_layers)
    if isinstance(config, TaskJob):
        faults += _task_job_faults(config, unclear)
    if isinstance(config, EvaluateConfig) and config.selection is not None and config.transplant.layers is not None:
        faults.append(
            "selection and transplant.layers: both say what to transplant. Give transplant.layers=null with selection."
        )
    if isinstance(config, GridConfig):
        faults += _grid_faults(config, num_layers, unclear)
    if isinstance(config, GridReader):
        faults += _reader_faults(config, unclear)
    if isinstance(config, SummarizeConfig) and "runs" not in unclear:
        faults += [
            f"runs: {pattern} matches no folder. Give folders of runs, e.g. runs=[outputs/evaluate/*]."
            for pattern in config.runs
            if not folders(pattern)
        ]
    return faults


def _is_unclear(name: str, unclear: Collection[str]) -> bool:
    return name in unclear or name.partition(".")[0] in unclear


def refusal(faults: Sequence[str]) -> XTransplantError:
    """One error for all faults."""
    if len(faults) == 1:
        return XTransplantError(faults[0])
    return XTransplantError("\n".join([f"{len(faults)} faults:", *(f"  - {fault}" for fault in faults)]))


def folders(pattern: str) -> list[Path]:
    """The folders that a path with or without * and ? stands for, sorted."""
    path = Path(pattern).expanduser()
    found = [path] if path.exists() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    return sorted(each for each in found if each.is_dir())


def _task_job_faults(config: TaskJob, unclear: Collection[str]) -> list[str]:
    task = config.task
    checks = {
        "limit": (config.limit is None or config.limit >= 1, "1 or more, or null for all documents"),
        "seed": (config.seed >= 0, "0 or more"),
        "task.min_gold_agreement": (0 <= task.min_gold_agreement <= 1, "a share, from 0 to 1"),
        "task.num_fewshot": (task.num_fewshot is None or task.num_fewshot >= 0, "0 or more, or null"),
        "task.tasks": (bool(task.tasks), "at least one lm-eval task, e.g. 'task.tasks=[\"xcopa_{lang}\"]'"),
        "task.fewshot_as_multiturn": (
            task.apply_chat_template or not task.fewshot_as_multiturn,
            "true only with task.apply_chat_template=true",
        ),
    }
    if isinstance(config, EvaluateConfig):
        checks["batch_size"] = (config.batch_size >= 1, "1 or more")
    faults = _wrong_values(config, checks, unclear)
    folder = os.environ.get("XTRANSPLANT_DATA")
    if folder and task.data_dir is None and task.data_files and not Path(folder).is_dir():
        faults.append(
            f"XTRANSPLANT_DATA={folder}: no such folder. Set it to the folder of local data, give that as "
            "task.data_dir, or unset it to take the data from its origin."
        )
    if config.output_dir.strip():
        faults += _output_faults(config.output_dir)
    return faults


def _wrong_values(config: JobConfig, checks: Mapping[str, tuple[bool, str]], unclear: Collection[str]) -> list[str]:
    """A message for each key whose check (is it good, what is allowed) fails."""
    faults = []
    for name, (good, allowed) in checks.items():
        if not good and not _is_unclear(name, unclear):
            value = functools.reduce(getattr, name.split("."), config)
            faults.append(f"{name}={shown(value)}: wrong value. Allowed: {allowed}.")
    return faults


def _grid_faults(config: GridConfig, num_layers: int | None, unclear: Collection[str]) -> list[str]:
    given = listed(config.transplant.component)
    names = [each.name for each in Component]
    checks = {
        "transplant.component": (
            bool(given) and len(set(given)) == len(given) and all(each in names for each in given),
            f"one of {', '.join(names)}, or a list of different ones, e.g. [ffn,attn]",
        ),
        "grid.budget": (
            config.grid.budget is None or 0 < config.grid.budget <= 1,
            "a share above 0 and up to 1, or null for the whole grid",
        ),
        "grid.memory": (config.grid.memory > 0, "gigabytes, above 0"),
    }
    faults = _wrong_values(config, checks, unclear)
    if not _is_unclear("grid.pairs", unclear):
        try:
            LayerPair.parse_set(config.grid.pairs, num_layers or 10**9)
        except XTransplantError as error:
            faults.append(str(error))
    return faults


def _reader_faults(config: GridReader, unclear: Collection[str]) -> list[str]:
    faults = []
    for name in ("grid", "unseen", "controls"):
        for pattern in listed(getattr(config, name, [])):
            if _is_unclear(name, unclear):
                continue
            if not isinstance(pattern, str) or not folders(pattern):
                faults.append(
                    f"{name}: {shown(pattern)} matches no folder. Give folders of grid runs, e.g. outputs/grid/*."
                )
    if isinstance(config, SelectConfig):
        cell = isinstance(config.fixed, list) and len(config.fixed) == 3 and config.fixed[0] in ("ffn", "attn")
        number = isinstance(config.candidates, int) and not isinstance(config.candidates, bool)
        checks = {
            "strategy": (config.strategy in STRATEGIES, f"one of {', '.join(STRATEGIES)}"),
            "component": (
                config.component in (None, *(each.name for each in Component)),
                "ffn or attn, or null for all",
            ),
            "candidates": (
                config.candidates == "all" or (number and config.candidates >= 1),
                "1 or more, or all",
            ),
            "alpha": (0 < config.alpha < 1, "a level between 0 and 1"),
            "seed": (config.seed >= 0, "0 or more"),
            "fixed": (
                (config.fixed is None and config.strategy != "fixed") or shown(config.fixed) in FIXED or cell,
                f"{', '.join(FIXED)}, or a cell as [ffn,0,0]; null with another strategy",
            ),
        }
        faults += _wrong_values(config, checks, unclear)
    if config.output_dir.strip():
        faults += _output_faults(config.output_dir)
    return faults


def listed(value: Any) -> list[Any]:
    """What may be given alone or as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def template_faults(task: TaskConfig) -> list[str]:
    """What is wrong with the names that stand for one per language."""
    given = {
        "task.tasks": (task.tasks, ("lang", "source", "target")),
        "task.source_tasks": (task.source_tasks or [], ("lang", "source", "target")),
        "task.data_files": (task.data_files.values(), ("lang",)),
    }
    faults = []
    for name, (templates, allowed) in given.items():
        for template in templates:
            try:
                fields = {each for _, each, _, _ in string.Formatter().parse(template) if each is not None}
            except ValueError:
                fields = {"{"}  # a brace without its counterpart
            if fields - set(allowed):
                braces = ", ".join(f"{{{each}}}" for each in allowed)
                faults.append(f"{name}: {template} cannot be filled in. Allowed in braces: {braces}.")
    return faults


def _output_faults(given: str) -> list[str]:
    path = Path(given).absolute()
    existing = next(each for each in (path, *path.parents) if each.exists())
    if not existing.is_dir():
        why = f"{existing} is a file"
    else:
        try:
            with tempfile.TemporaryFile(dir=existing):  # permissions alone say nothing of a read-only disk
                return []
        except OSError as error:
            why = f"nothing can be written in {existing} ({error.strerror})"
    return [f"output_dir={given}: {why}. Give a folder that can be written, e.g. output_dir=outputs."]


def _layer_faults(layers: Any, num_layers: int | None) -> list[str]:
    if layers is None:
        return []
    pairs = [layers]
    if isinstance(layers, list) and len(layers) == 2:
        pairs = [[layer, layer] for layer in layers]  # one fault must not hide the other
    faults = []
    for pair in pairs:
        try:
            LayerPair.parse(pair, num_layers or 10**9)
        except XTransplantError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


# --- Identity of a run -----------------------------------------------------------------------------------------------

# Where and how a run is done, not what it computes.
_NOT_IN_HASH = (
    *("output_dir", "overwrite", "batch_size", "grid.memory", "selection"),
    *("task.data_dir", "model.device", "model.device_map"),
)


def to_dict(config: JobConfig, num_layers: int | None = None) -> dict[str, Any]:
    """Plain values, enums by their value. With the model's number of layers, layers are indices from 0."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=lambda value: value.value))
    if num_layers is None:
        return plain
    layers = plain.get("transplant", {}).get("layers")
    if layers is not None:
        pair = LayerPair.parse(layers, num_layers)
        plain["transplant"]["layers"] = [pair.source, pair.target]
    pairs = plain.get("grid", {}).get("pairs") if isinstance(config, GridConfig) else None
    if isinstance(pairs, list):
        plain["grid"]["pairs"] = [[pair.source, pair.target] for pair in LayerPair.parse_set(pairs, num_layers)]
    return plain


def short_name(model: ModelConfig) -> str:
    """The model's name in tables and run folders: the last part of it, where it is a path."""
    return re.split(r"[/\\]", model.name.rstrip("/\\"))[-1]


def run_name(config: TaskJob, num_layers: int | None = None, strategy: str | None = None) -> str:
    """Readable and safe as a folder's name, at most 80 characters; not unique, see `config_hash`.

    Args:
        strategy: of the selection, if there is one.
    """
    pair, transplant = config.language_pair, config.transplant
    parts = [short_name(config.model)[:24], config.task.name[:20], pair.source[:8], pair.target[:8]]
    if isinstance(config, GridConfig):
        parts += ["_".join(listed(config.transplant.component)), config.split.value]
        if isinstance(config.grid.pairs, str) and config.grid.pairs != "all":
            parts.append(config.grid.pairs)
    elif strategy is not None:
        parts.append(strategy)
    elif config.transplant.layers is None:
        parts.append("vanilla")
    else:
        branch = "_branch" if transplant.site is Site.branch else ""
        layers = to_dict(config, num_layers)["transplant"]["layers"]
        parts += [f"{config.transplant.component.value}{branch}", *map(str, layers)]
    if transplant.control is not Control.none and parts[-1] != "vanilla":
        parts.append(transplant.control.value)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part) for part in parts)[:80]


def identity(
    config: TaskJob, num_layers: int | None = None, selection: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What is computed, as plain values: the same for two ways to ask for it, and wherever it runs.

    Args:
        selection: its content, where the config names one.
    """
    plain = to_dict(config, num_layers)
    if isinstance(config, GridConfig):
        plain["transplant"]["component"] = sorted(listed(config.transplant.component))
    elif selection is not None:
        plain["transplant"] = {"control": config.transplant.control.value}
    elif config.transplant.layers is None:
        plain["transplant"] = None  # which component is not transplanted does not matter
    for name in _NOT_IN_HASH:
        section, _, key = name.rpartition(".")
        (plain.get(section, {}) if section else plain).pop(key, None)
    return plain if selection is None else {**plain, "selection": dict(selection)}


def config_hash(config: TaskJob, num_layers: int | None = None, selection: Mapping[str, Any] | None = None) -> str:
    """12 hex digits of `identity`."""
    plain = identity(config, num_layers, selection)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]
