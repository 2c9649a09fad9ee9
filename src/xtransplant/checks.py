"""What is wrong with a config: unknown keys, wrong values, folders that are not there; seen before a model is loaded.

Every fault is a message with what was given, what is allowed and what to do; `refusal` makes one error of them all.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import math
import os
import re
import string
import tempfile
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xtransplant import disk
from xtransplant.config import (
    DiffConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    GridConfig,
    GridReader,
    JobConfig,
    LoraConfig,
    Method,
    Mixture,
    ModelJob,
    PromptLanguages,
    ReportConfig,
    ReproduceConfig,
    RunJob,
    RunReader,
    SelectConfig,
    SftConfig,
    TaskConfig,
    TaskJob,
    TrackingBackend,
    TrackingConfig,
    TrackingMode,
    TransplantConfig,
    listed,
)
from xtransplant.types import FIXED, PAPER, STRATEGIES, Component, Control, LayerPair, Mode, XTransplantError

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
    close = near(given, allowed)
    return f"Did you mean {' or '.join(close)}? " if close else ""


def near(given: str, allowed: Collection[str]) -> list[str]:
    """At most two names like the given one, the likest first: by their letters, or because it is a part of them.

    Case and what stands between words do not matter: Qwen3-8B is near to qwen3_8b.
    """
    plain = {name: "_".join(re.findall("[a-z0-9]+", name.casefold())) for name in (given, *allowed)}
    wanted = plain[given]
    alike = difflib.get_close_matches(wanted, dict.fromkeys(plain[name] for name in allowed), n=2)
    parts = [plain[name] for name in allowed if len(wanted) > 2 and f"_{wanted}" in f"_{plain[name]}"]
    return [name for each in dict.fromkeys([*alike, *parts]) for name in allowed if plain[name] == each][:2]


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


# Keys that are looked for in the wrong job, with what to do.
_ELSEWHERE: dict[tuple[type[JobConfig], str], str] = {
    (GridConfig, "transplant.layers"): "A grid's layer pairs are grid.pairs, e.g. 'grid.pairs=[[13,2]]'. ",
    (SftConfig, "language_pair"): "sft trains on languages, not pairs: e.g. 'data.languages=[en,sw]'. ",
    (SftConfig, "split"): "sft trains on the sample half of a task. ",
    (SftConfig, "limit"): "The number of documents is data.limit. ",
    (GridConfig, "prompt"): "prompt is a key of evaluate: a grid asks the target prompt. ",
}


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
            hint = _ELSEWHERE.get((schema, name)) or _which_key(name, known)
            return [f"{given}: there is no key {name}. {hint}{_allowed_keys(name, known)}"]
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
    elif isinstance(config, SftConfig):
        faults += _training_faults(config, unclear)
    elif isinstance(config, DoctorConfig):
        faults += _wrong_values(config, _intervention_checks(config), unclear)
    if isinstance(config, EvaluateConfig) and config.selection is not None:
        if config.transplant.layers is not None:
            faults.append(
                "selection and transplant.layers: both say what to transplant. Give transplant.layers=null with "
                "selection."
            )
        elif config.transplant.intervention != PAPER or config.transplant.mean_over:
            faults.append(
                "selection and transplant: how vectors are written is the selection's. Give selection with no key of "
                "transplant but transplant.control."
            )
    if isinstance(config, GridConfig):
        faults += _grid_faults(config, num_layers, unclear)
    if isinstance(config, GridReader):
        faults += _reader_faults(config, unclear)
    if isinstance(config, RunReader) and "runs" not in unclear:
        faults += [
            f"runs: {shown(pattern)} matches no folder. Give folders of runs, e.g. runs=[outputs/evaluate/*]."
            for pattern in listed(config.runs)
            if not isinstance(pattern, str) or not folders(pattern)
        ]
        faults += [] if listed(config.runs) else ["runs=[]: empty. Give folders of runs, e.g. runs=[outputs]."]
    if isinstance(config, ReportConfig):
        faults += _wrong_values(config, {"seed": (config.seed >= 0, "0 or more")}, unclear)
        faults += _output_faults(config.output_dir) if config.output is None and config.output_dir.strip() else []
    if isinstance(config, ReproduceConfig):
        faults += _reproduction_faults(config, unclear)
    if isinstance(config, ExportConfig):
        faults += _wrong_values(config, {"largest": (config.largest >= 0, "megabytes, 0 or more")}, unclear)
        faults += _output_faults(config.output_dir) if config.to is None and config.output_dir.strip() else []
    if isinstance(config, DiffConfig):
        faults += _wrong_values(config, {"tolerance": (config.tolerance >= 0, "nats, 0 or more")}, unclear)
    if isinstance(config, RunReader) and config.output is not None and not _is_unclear("output", unclear):
        path = Path(config.output).expanduser()
        if path.is_dir():
            example = path / ("report.html" if isinstance(config, ReportConfig) else "summary.txt")
            faults.append(f"output={config.output}: a folder. Give a file, e.g. output={example}.")
        elif path.exists() and not config.overwrite:
            faults.append(f"output={config.output}: there is one. Give another, or replace it with overwrite=true.")
    return faults


def idle_settings(configs: Sequence[JobConfig], unclear: Collection[str] = ()) -> list[str]:
    """The fault of settings that act in none of the runs, of a sweep: of a transplant where all runs are vanilla, of an
    adapter where all train the whole model.

    Which component is not transplanted may be said: a sweep over components has its vanilla run, too.
    """
    runs = [config for config in configs if isinstance(config, EvaluateConfig)]
    trainings = [config for config in configs if isinstance(config, SftConfig)]
    if runs and "transplant.layers" not in unclear and all(config.is_vanilla for config in runs):
        given = _departing("transplant", runs, TransplantConfig, unclear, but=("component",))
        without = "transplant.layers; give e.g. transplant.layers=[last,first]"
    elif trainings and "method" not in unclear and all(config.method is Method.full for config in trainings):
        given = _departing("lora", trainings, LoraConfig, unclear)
        without = "an adapter: give method=lora, or leave it out"
    else:
        return []
    verb = "has" if len(given) == 1 else "have"
    return [f"{', '.join(given)} {verb} no effect without {without}"] if given else []


def _departing(
    section: str, configs: Sequence[JobConfig], schema: type, unclear: Collection[str], but: Collection[str] = ()
) -> list[str]:
    """The settings of a section that are not at their defaults, the first value of each."""
    given: dict[str, str] = {}
    for key in keys(schema):
        for config in configs:
            value, name = getattr(getattr(config, section), key.name), f"{section}.{key.name}"
            if key.name not in but and not _is_unclear(name, unclear) and value != key.default:
                given.setdefault(name, f"{name}={shown(value)}")
    return list(given.values())


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
        checks["prompt"] = (
            config.prompt is PromptLanguages.target or not task.apply_chat_template,
            "target with task.apply_chat_template=true: two chats cannot be one after the other",
        )
    faults = _wrong_values(config, checks | _intervention_checks(config), unclear) + _data_folder_faults(task)
    if config.output_dir.strip():
        faults += _output_faults(config.output_dir)
    return faults + _tracking_faults(config, unclear)


def _data_folder_faults(task: TaskConfig) -> list[str]:
    folder = os.environ.get("XTRANSPLANT_DATA")
    if folder and task.data_dir is None and task.data_files and not Path(folder).is_dir():
        return [
            f"XTRANSPLANT_DATA={folder}: no such folder. Set it to the folder of local data, give that as "
            "task.data_dir, or unset it to take the data from its origin."
        ]
    return []


def _training_faults(config: SftConfig, unclear: Collection[str]) -> list[str]:
    data, lora = config.data, config.lora
    languages = data.languages
    by_task = config.trains_on_task
    weighted = data.mixture is Mixture.weights
    evaluations = math.inf if config.steps is None else math.ceil(config.steps / max(config.eval_steps, 1))
    ends = config.patience is None or config.patience < evaluations
    names = isinstance(lora.targets, list) and bool(lora.targets) and all(isinstance(t, str) for t in lora.targets)
    checks = {
        "data.languages": (
            bool(languages) and len(set(languages)) == len(languages),
            "one language or more, each once, e.g. 'data.languages=[en,sw]'",
        ),
        "data.split": (
            not by_task or data.split == "sample",
            "sample: on the other half, unseen, models are evaluated, and a model may not be trained on what it is "
            "evaluated on",
        ),
        "data.apply_chat_template": (
            not (by_task and data.apply_chat_template),
            "false with a task's own prompts; as turns of a chat they come by task.apply_chat_template=true",
        ),
        "data.weights": (
            (not weighted and not data.weights)
            or (
                weighted
                and set(data.weights) == set(languages)
                and all(math.isfinite(share) and share >= 0 for share in data.weights.values())
                and any(data.weights.values())
            ),
            "with data.mixture=weights a share of each language, 0 or more, e.g. "
            f"'data.weights={{{','.join(f'{each}:1' for each in languages[:3])}}}'; else none",
        ),
        "data.limit": (data.limit is None or data.limit >= 1, "1 or more, or null for all documents"),
        "data.held_out": (0 <= data.held_out < 1, "a share, from 0 up to but not 1"),
        "lora.rank": (lora.rank >= 1, "1 or more"),
        "lora.alpha": (math.isfinite(lora.alpha) and lora.alpha > 0, "a number above 0"),
        "lora.dropout": (0 <= lora.dropout < 1, "a share, from 0 up to but not 1"),
        "lora.targets": (lora.targets == "all-linear" or names, "all-linear, or a list of names, e.g. [q_proj,v_proj]"),
        "steps": (
            config.epochs is not None if config.steps is None else config.steps >= 1,
            "1 or more; null only with epochs, e.g. steps=null epochs=1",
        ),
        "epochs": (config.epochs is None or (math.isfinite(config.epochs) and config.epochs > 0), "a number above 0"),
        "max_length": (config.max_length >= 2, "2 or more"),
        "learning_rate": (math.isfinite(config.learning_rate) and config.learning_rate > 0, "a number above 0"),
        "warmup": (0 <= config.warmup < 1, "a share of the steps, from 0 up to but not 1"),
        "weight_decay": (math.isfinite(config.weight_decay) and config.weight_decay >= 0, "a number, 0 or more"),
        "patience": (
            config.patience is None or (config.patience >= 1 and data.held_out > 0 and ends),
            "1 or more, and only with data.held_out above 0; or null"
            if ends
            else f"less than the number of evaluations, which is {config.steps} / {config.eval_steps} with "
            f"steps={config.steps} and eval_steps={config.eval_steps}: else it would never end the training; or null",
        ),
        "seed": (config.seed >= 0, "0 or more"),
        "model.adapter": (
            config.model.adapter is None or config.method is Method.full,
            "null with method=lora: the new adapter would be of weights that no folder holds. Train all weights with "
            "method=full, or give as model.path a folder in which the adapter is merged",
        ),
        "model.device": (config.model.device in ("auto", "cpu", "cuda", "mps"), "auto, cpu, cuda or mps"),
        "model.device_map": (config.model.device_map is None, "null: the trainer places the model"),
        **{
            name: (getattr(config, name) >= 1, "1 or more")
            for name in ("batch_size", "accumulation", "eval_steps", "checkpoint_steps")
        },
    }
    faults = _wrong_values(config, checks, unclear)
    if config.steps is not None and config.epochs is not None and not {"steps", "epochs"} & set(unclear):
        faults.append(
            f"steps={config.steps} and epochs={config.epochs:g}: both say how long to train. Give steps=null "
            f"epochs={config.epochs:g}, or steps={config.steps} alone."
        )
    if by_task:
        faults += _data_folder_faults(config.task)
        faults += [] if config.task.tasks else ["task.tasks: none. Give at least one lm-eval task."]
    missing = [name for name in ("trl", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        faults.append(f"sft needs {' and '.join(missing)}, not installed here. Run: pip install 'xtransplant[sft]'")
    if config.output_dir.strip():
        faults += _output_faults(config.output_dir)
    return faults + _tracking_faults(config, unclear)


def _tracking_faults(config: RunJob, unclear: Collection[str]) -> list[str]:
    given = config.tracking
    if given.backend is TrackingBackend.none:
        # The group is not a wish to track: a sweep gives its name to all of its runs.
        idle = [name for name in ("mode", "project", "entity", "tags") if getattr(given, name) != getattr(_IDLE, name)]
        return [
            f"tracking.{name}={shown(getattr(given, name))}: nothing is tracked. Add tracking=wandb."
            for name in idle
            if not _is_unclear(f"tracking.{name}", unclear)
        ]
    plain = "without / \\ # ? % : and at most 128 characters"
    checks = {
        "tracking.project": (_is_wandb_name(given.project), f"a name {plain}"),
        "tracking.entity": (given.entity is None or _is_wandb_name(given.entity), f"a name {plain}, or null"),
        "tracking.group": (given.group is None or len(given.group) <= 128, "at most 128 characters, or null"),
        "tracking.tags": (all(0 < len(tag.strip()) <= 64 for tag in given.tags), "texts of 1 to 64 characters"),
    }
    faults = _wrong_values(config, checks, unclear)
    if given.mode is not TrackingMode.disabled and importlib.util.find_spec("wandb") is None:
        faults.append("tracking=wandb: the package wandb is not installed. pip install wandb, or give tracking=none.")
    return faults


_IDLE = TrackingConfig()


def _is_wandb_name(name: str) -> bool:
    return len(name) <= 128 and not set(name) & set("/\\#?%:")


# Variables of the environment that hold what nobody else may know, by their names; addresses with a password in them.
_SECRET_NAME = re.compile("(?:key|token|secret|passwd|password|credentials?)s?(?:_|$)", re.IGNORECASE)
_SECRET_ADDRESS = re.compile(r"://[^/\s@]+:[^/\s@]+@")


def secrets(config: JobConfig) -> list[str]:
    """Keys that hold a secret, which every record of the run would hold too. The messages do not show it."""
    texts = {key.name: shown(functools.reduce(getattr, key.name.split("."), config)) for key in keys(type(config))}
    return [fault for name, text in texts.items() for fault in _secrets_in(name, text)]


def secrets_for_hydra(overrides: Sequence[str]) -> list[str]:
    """The same of what is said to Hydra alone: a sweep's record holds its command."""
    parts = [line.lstrip("+~").partition("=") for line in overrides]
    return [fault for name, _, text in parts if name.startswith("hydra") for fault in _secrets_in(name, text)]


def _secrets_in(name: str, text: str) -> list[str]:
    known = {
        value: variable
        for variable, value in os.environ.items()
        if len(value) >= 8 and _SECRET_NAME.search(variable) is not None
    }
    held = next((variable for value, variable in known.items() if value in text), None)
    if held is not None:
        instead = "Leave it out: what needs it reads the environment."
        if name.startswith("hydra.job.env_set"):
            instead = f"Give 'hydra.job.env_copy=[{held}]' instead."
        return [
            f"{name}: holds the value of the environment variable {held}, and a run's config is kept and logged. "
            f"{instead}"
        ]
    if _SECRET_ADDRESS.search(text):
        return [
            f"{name}: an address with a password in it, and a run's config is kept and logged. Give it without; let "
            "git or a .netrc file know the password."
        ]
    return []


def _intervention_checks(config: TaskJob | DoctorConfig) -> dict[str, tuple[bool, str]]:
    given = config.transplant
    positions = given.positions
    number = isinstance(positions, int) and not isinstance(positions, bool) and positions >= 1
    fast = isinstance(config, GridConfig)
    checks = {
        "transplant.positions": (
            number or (positions == "all" and not fast),
            "1 or more" + (" (all is for evaluate)" if fast else ", or all for prompts of equal length"),
        ),
        "transplant.strength": (
            math.isfinite(given.strength) and (given.mode is not Mode.replace or given.strength == 1),
            "a number; with transplant.mode=replace only 1, a part of it is transplant.mode=interpolate",
        ),
    }
    if isinstance(config, DoctorConfig):
        return checks | {
            "transplant.control": (given.control is Control.none, "none: doctor reads its source prompt"),
            "transplant.mean_over": (not given.mean_over, "[]: doctor reads its source prompt"),
        }
    idle = given.control is Control.zero and (given.match_norm or given.mode is Mode.add)
    both = isinstance(config, EvaluateConfig) and config.prompt is PromptLanguages.both
    wrong = _wrong_languages(config)
    return checks | {
        "transplant.control": (
            not idle and not (both and given.control is Control.random_document),
            "zero only with transplant.mode=replace or interpolate and without match_norm: else nothing would change"
            if idle
            else "random_document only with prompt=target",
        ),
        "transplant.mean_over": (not wrong, "; ".join(wrong)),
    }


def _wrong_languages(config: TaskJob) -> list[str]:
    """What `transplant.mean_over` would have to be, where it is not so."""
    given, languages = config.transplant.mean_over, config.task.languages
    unknown = [each for each in given if languages and each not in languages]
    wrong = []
    if given and config.transplant.control is Control.self:
        wrong.append("none with transplant.control=self")
    if len(set(given)) < len(given) or config.language_pair.source in given:
        wrong.append(f"different languages, the pair's source ({config.language_pair.source}) not among them")
    if unknown:
        wrong.append(
            f"languages of the task, not {', '.join(unknown)}. {config.task.name} has: {', '.join(sorted(languages))}"
        )
    return wrong


def _wrong_values(config: JobConfig, checks: Mapping[str, tuple[bool, str]], unclear: Collection[str]) -> list[str]:
    """A message for each key whose check (is it good, what is allowed) fails."""
    faults = []
    for name, (good, allowed) in checks.items():
        if not good and not _is_unclear(name, unclear):
            value = functools.reduce(getattr, name.split("."), config)
            end = "" if allowed.endswith("?") else "."
            faults.append(f"{name}={shown(value)}: wrong value. Allowed: {allowed}{end}")
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
        "grid.memory": (config.grid.memory is None or config.grid.memory > 0, "gigabytes, above 0; or null"),
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
                    f"{name}: {shown(pattern)} matches no folder. Give folders of grid runs, e.g. outputs/grid/*-"
                    f"{ {'grid': 'sample', 'unseen': 'unseen', 'controls': 'noise'}[name] }-*."
                )
    if isinstance(config, SelectConfig):
        cell = isinstance(config.fixed, list) and len(config.fixed) == 3 and config.fixed[0] in ("ffn", "attn")
        number = isinstance(config.candidates, int) and not isinstance(config.candidates, bool)
        checks = {
            "strategy": (
                config.strategy in STRATEGIES,
                f"one of {', '.join(STRATEGIES)}. {did_you_mean(config.strategy, STRATEGIES)}".strip(" ."),
            ),
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


def _reproduction_faults(config: ReproduceConfig, unclear: Collection[str]) -> list[str]:
    checks = {
        "cells": (config.cells is None or config.cells >= 1, "1 or more, or null for all"),
        "batch_size": (config.batch_size is None or config.batch_size >= 1, "1 or more, or null for the run's own"),
        "tolerance": (math.isfinite(config.tolerance) and config.tolerance >= 0, "a number, 0 or more"),
        "seed": (config.seed >= 0, "0 or more"),
        "set": (
            all(re.match(r"[A-Za-z_][\w.]*=", each) for each in config.set),
            "keys of the run's config with values, e.g. set=[model.path=/models/mine]",
        ),
    }
    faults = _wrong_values(config, checks, unclear)
    return faults + (_output_faults(config.output_dir) if config.output_dir.strip() else [])


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
            if name == "task.data_files" and not disk.is_below(template):
                faults.append(f"{name}: {template} leads out of its folder. Give paths below task.data_dir.")
            elif fields - set(allowed):
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
    if isinstance(layers, list) and len(layers) == 2 and not any(isinstance(layer, list) for layer in layers):
        pairs = [[layer, layer] for layer in layers]  # one fault must not hide the other
    faults = []
    for pair in pairs:
        try:
            LayerPair.parse_several(pair, num_layers or 10**9)
        except XTransplantError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))
