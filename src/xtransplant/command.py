"""The command line that computes a run again, from the config that the run has recorded."""

from __future__ import annotations

import functools
import json
import re
import shlex
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib.resources import files
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf

from xtransplant import catalogue
from xtransplant.checks import keys, shown
from xtransplant.config import JOBS

# Where and how a run is done: not asked for again.
_LEFT_OUT = ("tracking", "resume", "overwrite")
_PLAIN = re.compile(r"[\w./+@-]+")


def command(job: str, config: Mapping[str, Any]) -> str:
    """`xtransplant <job> key=value …` for a run's `config.yaml`: presets where they fit, and every key that differs.

    Keys that the config lacks, because it is older than they are, are at their defaults. What the command composes to
    has the run's hash (tested), as long as the presets and defaults are those of the run's commit.
    """
    if job not in JOBS:
        return shlex.join(["xtransplant", job])  # of a version that has more jobs
    hints = typing.get_type_hints(JOBS[job])
    overrides: list[str] = []
    for name, value in config.items():
        if name in _LEFT_OUT or name not in hints:
            continue
        annotation = hints[name]
        if not (isinstance(annotation, type) and is_dataclass(annotation)):
            default = {key.name: key.default for key in keys(JOBS[job])}[name]
            overrides += [] if value == _plain(default) else [_override(name, value)]
        elif name == "language_pair":
            overrides.append(shlex.quote(f"language_pair={value['source']}-{value['target']}"))
        else:
            overrides += _section(job, name, annotation, value)
    return " ".join(["xtransplant", job, *overrides])


def _section(job: str, name: str, schema: type, value: Mapping[str, Any]) -> list[str]:
    """The choice of a group that leaves the fewest keys to be given, and those keys."""
    usual = _defaults(job).get(name)
    choices = _choices(name) if usual is not None else {}
    start = {key.name: _plain(key.default) for key in keys(schema)}
    found = []
    for choice, content in (choices or {"": {}}).items():
        preset = start | content
        given = [
            _override(f"{name}.{key}", each)
            for key, each in value.items()
            if key in start and each != preset.get(key, MISSING)
        ]
        chosen = [] if choice in ("", usual) else [f"{name}={choice}"]
        # Of equals the one of the same name, then the usual one.
        found.append((len(chosen) + len(given), choice != value.get("name"), choice != usual, chosen + given))
    return min(found)[-1]


@functools.cache
def _defaults(job: str) -> dict[str, str]:
    """Group -> the choice that a job makes by itself."""
    text = files("xtransplant.conf").joinpath(f"{job}.yaml").read_text(encoding="utf-8")
    listed = yaml.safe_load(text)["defaults"]
    return {group: str(choice) for each in listed if isinstance(each, dict) for group, choice in each.items()}


@functools.cache
def _choices(group: str) -> dict[str, dict[str, Any]]:
    choices = catalogue.choices_of(group)
    return {name: catalogue.choice_content(name, choices) for name in choices}


def _plain(value: Any) -> Any:
    """A default as YAML has it."""
    return OmegaConf.to_container(OmegaConf.create({"value": value}), enum_to_str=True)["value"]  # type: ignore[index, call-overload]


def _override(name: str, value: Any) -> str:
    """key=value, quoted for Hydra and for the shell."""
    return shlex.quote(f"{name}={_written(value)}")


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {_written(each)}' for key, each in value.items())}}}"
    return shown(value)
