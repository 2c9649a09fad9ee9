"""The reference: keys, choices and exit codes as the code and conf/ have them, written when the site is built.

Below the text of a page in reference/ comes what a function here makes of the code, as Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from sphinx.application import Sphinx

from xtransplant import catalogue, cli
from xtransplant.checks import keys, shown
from xtransplant.config import JOBS

# Groups of conf/ -> what is chosen.
_GROUPS = {
    "model": "a model; any other: `model=hf model.path=…`",
    "transplant": "where a vector is read and written",
    "data": "what `sft` trains on",
    "tracking": "where runs are logged beside their folders",
    "hydra/launcher": "where the runs of a sweep are computed",
    "experiment": "a whole study; `-m` runs all that it sweeps over",
}


def jobs() -> str:
    """Every job with its examples, its groups of choices and its keys."""
    parts = []
    for job, schema in JOBS.items():
        commands, defaults = catalogue.of_job(job)
        parts += [f"## {job}", f"{_sentence(schema.__doc__ or '')}"]
        parts += ["\n".join(["```bash", *commands, "```"])] if commands else []
        if defaults:
            rows = [(f"`{group}`", f"`{shown(default)}`") for group, default in defaults.items()]
            parts.append(_table(("choice", "default"), rows))
        found = [(f"`{key.name}`", f"`{shown(key.default)}`", key.type, key.help) for key in keys(schema)]
        parts.append(_table(("key", "default", "values", "what it is"), found))
    return "\n\n".join(parts)


def command_line() -> str:
    """Words that are no jobs, options, and what an exit code says."""
    options = [
        (" ".join(filter(None, (f"`{short}`," if short else "", f"`{name}`", f"`{value}`" if value else ""))), what)
        for name, (short, value, what) in cli.OPTIONS.items()
    ]
    return "\n\n".join(
        [
            "## Jobs",
            _table(("job", "what it does"), [(f"`{job}`", what) for job, what in cli.first_words().items()]),
            "## Options",
            _table(("option", "what it does"), options),
            "## Exit codes",
            _table(("code", "what it says"), exit_codes(cli.__doc__ or "")),
        ]
    )


def exit_codes(text: str) -> list[tuple[str, str]]:
    """Codes and what they say, from "Exit codes: <code> <what>; <code> <what>."

    Raises:
        ValueError: a part of it does not begin with a code.
    """
    found = []
    for part in " ".join(text.partition("Exit codes: ")[2].split()).rstrip(".").split("; "):
        match = re.fullmatch(r"(\d+(?: \+ n| to \d+)?) (.+)", part)
        if match is None:
            raise ValueError(f"no exit code: {part!r}. Codes and what they say are parted by semicolons, in cli.py.")
        found.append((f"`{match[1]}`", match[2]))
    return found


def choices() -> str:
    """The files of each group of conf/."""
    parts = []
    for group, what in _GROUPS.items():
        files = catalogue.choices_of(group)
        rows = []
        for name, path in sorted(files.items()):
            content = catalogue.choice_content(name, files)
            said = catalogue.description(path) or str(content.get("path", ""))
            licence = content.get("licence")
            rows.append((f"`{name}`", said + (f" ({licence})" if licence else "")))
        parts += [f"## {group}", f"{what[0].upper()}{what[1:]}.", _table(("name", "what it is"), rows)]
    return "\n\n".join(parts)


_PAGES: dict[str, Callable[[], str]] = {
    "reference/jobs": jobs,
    "reference/command-line": command_line,
    "reference/choices": choices,
}


def _sentence(text: str) -> str:
    plain = " ".join(text.split())
    return f"{plain[:1].upper()}{plain[1:]}."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """As it is: no bar ends the cell, and what is not between backticks is no markup."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part.replace("|", "\\|") if part.startswith("`") else re.sub(r"([\\*_<>\[\]|$])", r"\\\1", part)
        for part in parts
    )


def _add(app: Sphinx, name: str, source: list[str]) -> None:
    if name in _PAGES:
        source[0] += "\n\n" + _PAGES[name]() + "\n"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
