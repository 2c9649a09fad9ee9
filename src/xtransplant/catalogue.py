"""What there is to choose from: models, tasks, languages, data, experiments; and which language a near miss may mean.

Read from the YAML files as they are. Composing each of them with Hydra would take seconds.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from xtransplant import disk
from xtransplant.checks import near
from xtransplant.config import TaskConfig
from xtransplant.types import XTransplantError

# What can be listed -> what a line of the list holds.
KINDS = {
    "models": "name for model=, path, licence",
    "tasks": "name for task=, what it is, number of languages, how an answer is got",
    "languages": "code for language_pair=<source>-<target>, name, the tasks that have it",
    "data": "name for data= of sft, path, what it is, languages, whether they are parallel, licence",
    "experiments": "name for experiment=, what it is, the job it is for first, number of runs with -m, what it needs",
}

# The output_type of lm-eval's that a family's file names -> in words.
REQUESTS = {
    "multiple_choice": "multiple choice by likelihood",
    "loglikelihood": "likelihood",
    "generate_until": "generate",
}
_TASK_KEYS = {each.name for each in dataclasses.fields(TaskConfig)}

_SENTENCE_END = re.compile(r"\.(?=\s+[A-Z]|$)")


@dataclass(frozen=True)
class Entry:
    """One line of a list."""

    columns: tuple[str, ...]  # as shown; the first is the name
    languages: tuple[str, ...] = ()  # codes; a search looks at them and at their names, although they are not shown

    @property
    def name(self) -> str:
        return self.columns[0]


def config_folder(config_dir: str) -> Path:
    """The folder of the user's own files.

    Raises:
        XTransplantError: it does not exist, or has a task's or a model's file outside task/ and model/.
    """
    folder = Path(config_dir).absolute()
    if not folder.is_dir():
        raise XTransplantError(
            f"--config-dir {config_dir}: no such folder. Give one with files such as model/<name>.yaml."
        )
    for path in sorted(folder.rglob("*.yaml")):
        try:
            content = disk.yaml_of(path)
        except (yaml.YAMLError, FileNotFoundError):
            continue  # said where it is used; a link to nothing, such as an editor's lock, is used nowhere
        except (OSError, ValueError) as error:
            raise XTransplantError(f"--config-dir {config_dir}: {path} cannot be read: {error}.") from error
        beyond = [each for each in _named_files(content) if ".." in each.split("/")]
        if beyond:
            raise XTransplantError(
                f"--config-dir {config_dir}: {path} names a file outside of its folder: {beyond[0]}. Put that "
                "file into the folder, or give its own as --config-dir."
            )
        if path.parent != folder:
            continue
        # A file of defaults, for --config-name, has sections in place of these.
        group = "task" if isinstance(content, dict) and "tasks" in content else None
        group = "model" if isinstance(content, dict) and {"name", "path"} <= content.keys() else group
        if group is not None:
            given = Path(config_dir)
            raise XTransplantError(
                f"--config-dir {config_dir}: found {given / path.name}: it should be {given / group / path.name}."
            )
    return folder


def _named_files(content: Any) -> list[str]:
    """What the `defaults` of a file name."""
    listed = content.get("defaults") if isinstance(content, dict) else None
    named = [each if isinstance(each, dict) else {"": each} for each in listed] if isinstance(listed, list) else []
    return [str(part) for each in named for pair in each.items() for part in pair]


def entries(kind: str, config_dir: str | None = None) -> list[Entry]:
    """Everything of a kind, by name; a file of the user's stands before ours of the same name, as in Hydra.

    Args:
        kind: one of `KINDS`.
        config_dir: folder of the user's own files.

    Raises:
        XTransplantError: there is no such folder, or a file in it is not YAML.
    """
    if kind == "languages":
        families: dict[str, list[str]] = {}
        for task in entries("tasks", config_dir):
            for code in task.languages:
                families.setdefault(code, []).append(task.name)
        return [
            Entry((code, language_name(code) or "-", ", ".join(families[code])), (code,)) for code in sorted(families)
        ]
    choices = choices_of(kind.removesuffix("s"), config_dir)
    found = []
    for name, path in sorted(choices.items()):
        about = description(path)
        if kind == "models":
            content = choice_content(name, choices)
            # A preset without a path takes the one that is given on the command line.
            where = str(content.get("path", "???")).replace("???", "model.path=…")
            found.append(Entry((name, where, str(content.get("licence") or about))))
        elif kind == "tasks":
            content = choice_content(name, choices)
            languages = content.get("languages") or {}
            facts = [f"{len(languages)} languages" if languages else "any language"]
            if content.get("requests") is not None:
                facts.append(REQUESTS.get(content["requests"], str(content["requests"])))
            unknown = sorted(map(str, content.keys() - _TASK_KEYS - {"defaults"}))
            facts += [f"to be mended: there is no key {', '.join(unknown)}"] if unknown else []
            found.append(Entry((name, f"{about} ({'; '.join(facts)})".lstrip()), tuple(map(str, languages))))
        elif kind == "data":
            content = choice_content(name, choices)
            where = str(content.get("path", "???")).replace("???", "data.path=…")
            codes = content.get("codes") or {}
            if where == "task":
                facts = ["the task's languages, parallel, licence"]
            else:
                facts = [f"{len(codes)} languages" if codes else "any language"]
                facts.append(f"parallel by {content['key']}" if content.get("key") else "not parallel")
                facts += [str(content["licence"])] if content.get("licence") else []
            found.append(Entry((name, where, f"{about} ({'; '.join(facts)})"), tuple(map(str, codes))))
        else:
            of_it = ", ".join(_facts(name, path, choice_content(name, choices), config_dir))
            found.append(Entry((name, f"{about} ({of_it})")))
    return found


def of_job(job: str) -> tuple[list[str], dict[str, str | None]]:
    """A job's examples, which stand at the top of its file, and its groups of choices with the default of each."""
    path = Path(str(files("xtransplant.conf"))) / f"{job}.yaml"
    commands = [line for line in _head(path) if line.startswith("xtransplant ")]
    named = disk.yaml_of(path)["defaults"]
    return commands, {group: choice for each in named if isinstance(each, dict) for group, choice in each.items()}


def jobs_of(experiment: str, path: Path) -> dict[str, str]:
    """The jobs that the comment at an experiment's top has a command for, the first first -> the command."""
    found: dict[str, str] = {}
    for line in _head(path):
        command = re.match(rf"xtransplant (\w+) .*experiment={re.escape(experiment)}(?=\s|$)", line)
        if command is not None:
            found.setdefault(command[1], line)
    return found


def _facts(name: str, path: Path, content: Mapping[str, Any], config_dir: str | None) -> list[str]:
    """The job of an experiment, how many runs its sweep has, and what it needs."""
    params = ((content.get("hydra") or {}).get("sweeper") or {}).get("params") or {}
    runs = math.prod(_count(str(values)) for values in params.values())
    facts = [*list(jobs_of(name, path))[:1], f"{runs} run{'s' if runs != 1 else ''}"]
    needs = re.search(r"\b[Nn]eeds (.+?)\.(?=\s|$)", " ".join(_head(path)))
    facts += [f"needs {needs[1]}"] if needs is not None else []
    models = choices_of("model", config_dir)
    overrides = [each for each in content.get("defaults") or [] if isinstance(each, dict)]
    named = str(params.get("model", "")).split(",") + [str(each.get("override /model")) for each in overrides]
    gated = [each for each in dict.fromkeys(named) if "gated" in str(choice_content(each, models).get("licence"))]
    return facts + ([f"{', '.join(gated)} gated"] if gated else [])


def _count(values: str) -> int:
    """How many a comma separates; those within brackets do not."""
    while (inner := re.sub(r"\[[^\[\]]*\]", "", values)) != values:
        values = inner
    return values.count(",") + 1


def search(given: Sequence[Entry], words: Sequence[str]) -> list[Entry]:
    """The entries in which all words occur, in any case; a language's code as a word of its own, not inside another."""
    codes = _codes(given)
    return [entry for entry in given if all(_occurs(word.casefold(), entry, codes) for word in words)]


def near_names(given: Sequence[Entry], words: Sequence[str]) -> list[str]:
    """Names, or codes of languages, like those words of a search that occur in no entry."""
    names, codes = [entry.name for entry in given], _codes(given)
    missed = [word for word in words if not search(given, [word])]
    alike = [name for word in missed for name in languages_meant(word, codes) or near(word, names)]
    return list(dict.fromkeys(alike))[:3]


def lines(given: Sequence[Entry]) -> list[str]:
    """One line an entry, in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*(entry.columns for entry in given), strict=True)]
    padded = [[f"{text:<{width}}" for text, width in zip(entry.columns, widths, strict=True)] for entry in given]
    return ["  ".join(columns).rstrip() for columns in padded]


def _codes(given: Sequence[Entry]) -> list[str]:
    return sorted({code for entry in given for code in entry.languages})


def _occurs(word: str, entry: Entry, codes: Collection[str]) -> bool:
    text = " ".join(entry.columns).casefold()
    if word in map(str.casefold, codes):
        alone = re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", text) is not None
        return alone or word in map(str.casefold, entry.languages)
    return word in text or any(word in language_name(code).casefold().split() for code in entry.languages)


# --- Files -----------------------------------------------------------------------------------------------------------


def choices_of(group: str, config_dir: str | None = None) -> dict[str, Path]:
    """Name of a choice, with its subfolders -> its file."""
    roots = [Path(str(files("xtransplant.conf"))), *([] if config_dir is None else [config_folder(config_dir)])]
    return {
        path.relative_to(root / group).with_suffix("").as_posix(): path
        for root in roots
        for path in (root / group).rglob("*.yaml")
    }


def choice_content(name: str, choices: Mapping[str, Path], below: Collection[str] = ()) -> dict[str, Any]:
    """A file's keys, on top of those of the files of its group that its `defaults` name."""
    if name not in choices or name in below:
        return {}
    try:
        content = disk.yaml_of(choices[name])
    except (yaml.YAMLError, ValueError) as error:
        raise XTransplantError(f"{choices[name]}: not YAML: {error}\nMend the file.") from error
    if not isinstance(content, dict):
        return {}
    merged: dict[str, Any] = {}
    for each in content.get("defaults") or []:
        if isinstance(each, str) and each != "_self_":
            merged |= choice_content(each.rpartition("/")[2], choices, (*below, name))
    return merged | content


def description(path: Path) -> str:
    """The first sentence of the comment at the top, commands and Hydra's own lines left out."""
    said = [text for text in _head(path) if not text.startswith(("xtransplant ", "@"))]
    return _SENTENCE_END.split(" ".join(filter(None, said)), maxsplit=1)[0].rstrip(":")


def _head(path: Path) -> list[str]:
    """The lines of the comment at the top."""
    said = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.strip() and not line.startswith("#"):
            break
        said.append(line.removeprefix("#").strip())
    return said


# --- Languages -------------------------------------------------------------------------------------------------------


def language_name(code: str) -> str:
    """A language's English name in the Unicode CLDR, e.g. Swahili; empty where that has none."""
    languages, scripts = _names()
    base, _, subtag = code.partition("-")
    whole = languages.get(code.replace("-", "_"))
    if whole is None and subtag in scripts and base in languages:
        whole = f"{languages[base]} ({scripts[subtag]})"
    return whole or ""


def languages_meant(given: str, known: Collection[str]) -> list[str]:
    """Codes of `known` that a wrong one may stand for: in another spelling, by its name, or as a country's code.

    EN and en_GB mean en; swa, Swahili and Swahilli sw; and jp, which is Japan's, ja.
    """
    from babel.core import get_global

    by_code = {code.casefold().replace("_", "-"): code for code in known}
    by_name = {name.casefold(): code for code in known if (name := language_name(code))}
    wanted = given.casefold().replace("_", "-").strip()
    shorter = get_global("language_aliases").get(wanted, "")  # three letters -> two
    spoken_there = get_global("likely_subtags").get(f"und_{wanted.upper()}", "").partition("_")[0]
    candidates = [
        *(by_code.get(each) for each in (wanted, wanted.partition("-")[0], shorter, spoken_there)),
        *(by_code[each] for each in difflib.get_close_matches(wanted, by_code, n=1, cutoff=0.8)),
        *(by_name[each] for each in difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.8)),
    ]
    return list(dict.fromkeys(code for code in candidates if code is not None))[:2]


def pair_meant(given: str) -> str | None:
    """The language pair that english-swahili, en_sw, EN-SW or sw alone may stand for, of languages that we have."""
    known = _codes(entries("tasks"))
    for separator in re.finditer(r"[^A-Za-z0-9]+", given):
        sides = given[: separator.start()], given[separator.end() :]
        source, target = (languages_meant(side, known) for side in sides)
        if source and target:
            return f"{source[0]}-{target[0]}"
    alone = [code for code in languages_meant(given, known) if code != "en"]
    return f"en-{alone[0]}" if alone else None


@functools.cache
def _names() -> tuple[dict[str, str], dict[str, str]]:
    from babel import Locale

    english = Locale("en")
    return dict(english.languages), dict(english.scripts)
