"""The command line: `xtransplant <job> key=value …`. Refuses bad input before anything is loaded.

Exit codes: 0 done; 1 a run failed (a full disk, too little memory, a bug with its traceback), a search in a list found
nothing, or two runs differ; 2 the input was refused; 11 to 16 the first level that differs, of `reproduce`
(`reproduction.CODES`); 130 interrupted; 128 + n killed by signal n.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from argparse import Namespace
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from xtransplant import __version__, catalogue, logs, multirun, record
from xtransplant.checks import (
    did_you_mean,
    keys,
    refusal,
    shown,
)
from xtransplant.config import (
    JOBS,
    AnalyzeConfig,
    CompareConfig,
    DiffConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    GridConfig,
    JobConfig,
    ReportConfig,
    ReproduceConfig,
    SelectConfig,
    SftConfig,
    StrategiesConfig,
)
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from xtransplant.compose import Request

log = logging.getLogger(__name__)

_LIST = "list"
_LIST_HELP = f"what there is: {', '.join(catalogue.KINDS)}; further words are a search"
_LM_EVAL = "lm-eval"
_LM_EVAL_HELP = "lm-evaluation-harness's own command line, with --model xtransplant"

# Hydra's options: long name -> short name, what follows it, what it does.
OPTIONS: dict[str, tuple[str, str, str]] = {
    "--multirun": ("-m", "", "a run for each combination of the values given as key=a,b"),
    "--config-dir": ("-cd", "FOLDER", "your own files, e.g. FOLDER/model/mine.yaml for model=mine"),
    "--config-name": ("-cn", "NAME", "your own file of defaults in that folder, instead of <job>.yaml"),
    "--cfg": ("-c", "job|hydra|all", "show the composed config and stop"),
    "--package": ("-p", "KEY", "with --cfg: only this section"),
    "--resolve": ("", "", "with --cfg: resolve interpolations"),
    "--info": ("-i", "[all|config|defaults|defaults-tree|plugins|searchpath]", "show how it is composed and stop"),
    "--hydra-help": ("", "", "Hydra's own help"),
}
_COMPUTING = ("evaluate", "grid", "sft", "reproduce")
# Keys that stand before the others as words alone, as in other programs of the name.
_POSITIONAL = {"diff": ("a", "b")}
_SHORT = {short: name for name, (short, _, _) in OPTIONS.items() if short}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; arguments default to the process's own. Returns the exit code."""
    # Before torch starts its threads. By default they spin while they wait, which costs nothing on an idle machine
    # and most of the time on a shared one.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _answered(given)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        try:
            print(flush=True)  # was it this one?
        except BrokenPipeError:
            # Whoever reads has enough, e.g. `head`. What is left must not be written at the exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        raise  # of another pipe


def _answered(arguments: list[str]) -> int:
    try:
        with redirect_stdout(logs.Plain(sys.stdout)):
            return _main(arguments)
    except KeyboardInterrupt:
        print(f"interrupted. {multirun.goes_on(arguments)}", file=sys.stderr)
        return 130
    except Exception as error:
        said = record.explained(error)
        if said is None:
            raise
        print(f"error: {logs.plain(said)}", file=sys.stderr)
        return 2 if isinstance(error, XTransplantError) else 1


def entry() -> int:
    """The command: `main` in a process of its own where it computes, so that somebody is left to say it was killed."""
    given = sys.argv[1:]
    computes = bool(given) and given[0] in _COMPUTING and not any(each in ("-h", "--help") for each in given)
    return multirun.supervised(lambda: main(given), given) if computes else main(given)


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"xtransplant {__version__}")
        return 0
    job, *rest = arguments
    if job == _LM_EVAL:
        from xtransplant import jobs

        jobs.lm_eval(rest)
        return 0
    if job == _LIST:
        return _list(rest)
    if job not in JOBS:
        known = [*JOBS, _LIST, _LM_EVAL]
        hint = did_you_mean(job, known) or did_you_mean(job, [f"{_LIST} {kind}" for kind in catalogue.KINDS])
        raise XTransplantError(
            f"{job}: not a job. {hint}Jobs: {', '.join(known)}. "
            "The job comes first, e.g. xtransplant evaluate language_pair=en-sw."
        )
    options, overrides, faults = _split(rest)
    if "--help" in options:
        print(_job_help(job))
        return 0
    overrides = _named(job, overrides)
    if faults:
        raise refusal(faults)
    return _run_job(arguments, job, options, overrides)


def _split(
    arguments: Sequence[str], known: Collection[str] = tuple(OPTIONS)
) -> tuple[dict[str, str], list[str], list[str]]:
    """Options, overrides and faults, in any order; Hydra itself wants options first."""
    options: dict[str, str] = {}
    overrides, faults = [], []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = _SHORT.get(name, name)
        if not word.startswith("-"):
            overrides.append(word)
        elif word in ("-h", "--help"):
            options["--help"] = ""
        elif name not in known:
            faults.append(
                f"{word}: no such option. {did_you_mean(name, known)}Options: {', '.join(known)}. "
                "Settings are given as key=value, without dashes, e.g. limit=100."
            )
        else:
            wanted = OPTIONS[name][1]
            if wanted and not equals and rest and not rest[0].startswith("-") and "=" not in rest[0]:
                value = rest.pop(0)
            if wanted and not value and not wanted.startswith("["):
                faults.append(f"{word}: needs a value. Give {name} {wanted}.")
            if value and "|" in wanted and value not in wanted.strip("[]").split("|"):
                faults.append(f"{word} {value}: not known. Give {name} {wanted}.")
            options[name] = value
    return options, overrides, faults


def _named(job: str, overrides: Sequence[str]) -> list[str]:
    """Words without a = as the keys that they stand for."""
    names = iter(_POSITIONAL.get(job, ()))
    named = []
    for word in overrides:
        name = None if "=" in word else next(names, None)
        # Quoted: a word is not read as a number, or as anything of Hydra's.
        quoted = word.replace('"', '\\"')
        named.append(word if name is None else f'{name}="{quoted}"')
    return named


# --- Lists ---------------------------------------------------------------------------------------------------------


def _list(arguments: Sequence[str]) -> int:
    """Print what there is of a kind; on standard output names and what they are, nothing else."""
    options, words, faults = _split(arguments, known=("--config-dir",))
    if "--help" in options:
        print(_list_help())
        return 0
    kind, *sought = words or [""]
    if kind not in catalogue.KINDS:
        what = f" {kind}: no such list. {did_you_mean(kind, catalogue.KINDS)}" if kind else ": of what? "
        faults.append(f"{_LIST}{what}Give one of {', '.join(catalogue.KINDS)}, e.g. xtransplant {_LIST} tasks.")
    if faults:
        raise refusal(faults)
    all_of_them = catalogue.entries(kind, options.get("--config-dir"))
    found = catalogue.search(all_of_them, sought)
    if not found and sought:
        near = catalogue.near_names(all_of_them, sought)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        print(
            f"{_LIST} {kind} {' '.join(sought)}: none of the {len(all_of_them)} {kind} has "
            f"{'all these words' if len(sought) > 1 else 'this word'}. {hint}All: xtransplant {_LIST} {kind}.",
            file=sys.stderr,
        )
        return 1
    if not found:
        group = kind.removesuffix("s")
        print(f"There are no {kind}. Yours: {group}/<name>.yaml in a folder given as --config-dir.", file=sys.stderr)
        return 0
    print("\n".join(catalogue.lines(found)))
    return 0


# --- Running -------------------------------------------------------------------------------------------------------


def _run_job(arguments: Sequence[str], job: str, options: dict[str, str], overrides: list[str]) -> int:
    from hydra._internal.utils import get_args_parser

    from xtransplant import compose

    many = "--multirun" in options
    config_name = options.get("--config-name", job)
    with compose.open_hydra(options.get("--config-dir")) as hydra:
        request = compose.read(
            hydra, job, overrides, config_name=config_name, multirun=many, config_dir=options.get("--config-dir")
        )
        faults = list(request.faults)
        showing = options.keys() & {"--cfg", "--info", "--hydra-help"}
        if not showing:
            faults += compose.check_all(request)
        if faults:
            raise refusal(list(dict.fromkeys(faults)))
        if "--hydra-help" in options:
            hydra.hydra_help(config_name, get_args_parser(), Namespace(overrides=[]))
        elif "--info" in options:
            hydra.show_info(options["--info"] or "all", config_name, request.overrides)
        elif "--cfg" in options:
            package = options.get("--package")
            if many:
                print(_plan(request), file=sys.stderr)
            hydra.show_cfg(config_name, request.common, options["--cfg"], package, "--resolve" in options)
        elif many:
            return multirun.sweep(arguments, job, hydra, config_name, request, run)
        else:
            logs.start(multirun.verbosity(request.overrides))
            if request.axes:
                log.info("One run of the experiment, which sweeps over %s: -m for all.", ", ".join(request.axes))
            done = run(request.runs[0])
            return done if isinstance(done, int) else 0
    return 0


def _plan(request: Request) -> str:
    """What a sweep would run, beside the config that its runs have in common."""
    given = [each for each in request.overrides if each not in request.common]
    axes = [*given, *(f"{key}={values}" for key, values in request.axes.items())]
    return "\n".join(
        [
            f"# {len(request.runs)} runs, all combinations of these; the config that they share is below",
            *(f"#   {a}" for a in axes),
        ]
    )


def run(config: JobConfig, shown: bool = True) -> Path | int | None:
    """Do what the config says. Returns the folder of a run that `summarize`, `select` and others read; of a job whose
    exit code says what it found, that code.

    Args:
        shown: False prints nothing of such a run's result: a sweep shows all of them at its end.
    """
    from xtransplant import grid_jobs, jobs, share_jobs

    if isinstance(config, EvaluateConfig | GridConfig | SftConfig):
        if isinstance(config, EvaluateConfig):
            folder, show = jobs.evaluate(config), jobs.show
        elif isinstance(config, SftConfig):
            folder, show = jobs.sft(config), jobs.show_training
        else:
            folder, show = grid_jobs.grid(config), grid_jobs.show
        if shown:
            print(show(folder))
        return folder
    if isinstance(config, SelectConfig):
        grid_jobs.select(config)
    elif isinstance(config, StrategiesConfig):
        grid_jobs.strategies(config)
    elif isinstance(config, AnalyzeConfig):
        grid_jobs.analyze(config)
    elif isinstance(config, ReportConfig):
        grid_jobs.report(config)
    elif isinstance(config, ReproduceConfig):
        return share_jobs.reproduce(config)
    elif isinstance(config, DoctorConfig):
        jobs.doctor(config)
    elif isinstance(config, CompareConfig):
        jobs.compare(config)
    elif isinstance(config, ExportConfig):
        share_jobs.export(config)
    elif isinstance(config, DiffConfig):
        return share_jobs.diff(config)
    else:
        jobs.summarize(config)
    return None


# --- Help ------------------------------------------------------------------------------------------------------------


def first_words() -> dict[str, str]:
    """What may come first on the command line -> what it does."""
    of_config = {job: schema.__doc__ or "" for job, schema in JOBS.items()}
    return of_config | {_LIST: _LIST_HELP, _LM_EVAL: _LM_EVAL_HELP}


def _help() -> str:
    return "\n".join(
        [
            "xtransplant <job> key=value …    cross-lingual activation transplantation in language models",
            "",
            *_columns([(f"  {job}", text) for job, text in first_words().items()]),
            "",
            "xtransplant <job> --help lists a job's keys. xtransplant --version shows the version.",
            "Exit codes: 0 done; 1 a run failed, a list has nothing of the kind, or two runs differ (diff); 2 the",
            "input was refused; 11 to 16 the first level that differs (reproduce); 130 interrupted; 128 + n killed by",
            "signal n.",
        ]
    )


def _list_help() -> str:
    name, (short, value, what) = "--config-dir", OPTIONS["--config-dir"]
    return "\n".join(
        [
            f"xtransplant {_LIST} {'|'.join(catalogue.KINDS)} [words]",
            "",
            "What there is to choose from, one a line, its name first. Of several words all must occur in the line, in",
            "any case; tasks are found by their languages too, by code or name.",
            "",
            f"  xtransplant {_LIST} tasks",
            f"  xtransplant {_LIST} tasks xcopa swahili",
            f"  xtransplant {_LIST} models -cd my-conf",
            "",
            "What a line holds:",
            "",
            *_columns([(f"  {kind}", holds) for kind, holds in catalogue.KINDS.items()]),
            "",
            "Options:",
            "",
            *_columns([(f"  {short}, {name} {value}", what)]),
            "",
            "Exit codes: 0 done; 1 nothing has these words; 2 the input was refused.",
        ]
    )


def _job_help(job: str) -> str:
    commands, defaults = catalogue.of_job(job)
    lines = [f"xtransplant {job} key=value …", "", JOBS[job].__doc__ or "", "", *(f"  {each}" for each in commands)]
    if defaults:
        lines += ["", "Choices, each a file in conf/<group>/ (the first is the default):", ""]
        rows = []
        for group, default in defaults.items():
            names = sorted(catalogue.choices_of(group))
            choices = [shown(default), *(name for name in names if name != default)]
            more = ", any <source>-<target> of language codes, e.g. en-sw" if group == "language_pair" else ""
            rows.append((f"  {group}", ", ".join(choices) + more))
        lines += _columns(rows)
    lines += ["", f"Keys (??? {'is set by the choice above, or ' if defaults else ''}must be given):", ""]
    lines += _columns([(f"  {key.name}={shown(key.default)}", f"{key.help} ({key.type})") for key in keys(JOBS[job])])
    lines += ["", "Options:", ""]
    lines += _columns(
        [
            (f"  {', '.join(filter(None, (short, name)))} {value.partition('|')[0] and value}".rstrip(), what)
            for name, (short, value, what) in OPTIONS.items()
        ]
    )
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns, the second wrapped; a first entry that is too wide has a line of its own."""
    widest = min(max(len(left) for left, _ in rows), 44) + 2
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, 118 - widest) or [""]
        if len(left) + 2 > widest:
            lines.append(left)
            left = ""
        lines += [
            f"{start:<{widest}}{part}".rstrip()
            for start, part in zip([left, *[""] * len(wrapped)], wrapped, strict=False)
        ]
    return lines


if __name__ == "__main__":
    sys.exit(entry())
