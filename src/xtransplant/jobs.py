"""The jobs: what each does, in order. Wiring only; torch and the harness are imported when a job needs them."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from xtransplant import (
    command,
    conditions,
    families,
    grading,
    loading,
    logs,
    models,
    overview,
    pairing,
    record,
    selection,
    tables,
    tracking,
)
from xtransplant import compare as comparing
from xtransplant.config import (
    CompareConfig,
    DoctorConfig,
    EvaluateConfig,
    LanguagePairConfig,
    Method,
    ModelConfig,
    PromptLanguages,
    RunJob,
    RunReader,
    SftConfig,
    SummarizeConfig,
    TaskJob,
    config_hash,
    departures,
    identity,
    listed,
    run_name,
    short_name,
    to_dict,
)
from xtransplant.selection import Selection
from xtransplant.types import LayerPair, Scope, XTransplantError

if TYPE_CHECKING:
    from xtransplant.lm import TransplantLM

log = logging.getLogger(__name__)

LOSS_CURVE = "training.svg"


def run_folder(config: RunJob) -> Path:
    """Where a run's record lies: a name to be read, and the hash of what is computed."""
    if isinstance(config, SftConfig):
        return Path(config.output_dir, "sft", f"{run_name(config)}-{config_hash(config)}")
    layers = models.num_layers(config.model)
    chosen = selection.of_run(config) if isinstance(config, EvaluateConfig) else None
    content, strategy = (None, None) if chosen is None else (chosen.as_dict(), chosen.strategy)
    if isinstance(config, EvaluateConfig) and selection.takes_of_base(config):
        strategy = f"{strategy}_of_base"
    job = "evaluate" if isinstance(config, EvaluateConfig) else "grid"
    name = f"{run_name(config, layers, strategy)}-{config_hash(config, layers, content)}"
    return Path(config.output_dir, job, name)


def evaluate(config: EvaluateConfig) -> Path:
    """Evaluate a model on a task's target language, vanilla or with a transplant. Returns the run's folder."""
    return do(config, _evaluate)


def do(config: RunJob, compute: Callable[[Any, Path], None], parts: str | None = None) -> Path:
    """Compute a run in its folder and log it, unless it is finished. Returns the folder.

    Args:
        parts: folder in it with what an interrupted run left, for the next to go on with.

    Raises:
        XTransplantError: as `refuse_to_resume` and `finished_run`.
    """
    folder = run_folder(config)
    refuse_to_resume(config, folder)
    with record.doing(folder):
        finished = finished_run(config, folder)
        if finished is None:
            tracking.start(config)
            compute(config, folder)
        elif parts is not None:
            shutil.rmtree(folder / parts, ignore_errors=True)  # left by a kill right after the run was finished
    if finished is None:
        tracking.log_run(config, folder)
    return folder


def _evaluate(config: EvaluateConfig, folder: Path) -> None:
    from xtransplant.lm import TransplantLM

    started = time.perf_counter()
    chosen = selection.of_run(config)
    content = None if chosen is None else chosen.as_dict()
    loading.check_here(config.model, config.task.apply_chat_template)
    pairs = load_pairs(config)
    refuse_trained(config, pairs)
    if chosen is not None:
        _refuse_selected(config, chosen, pairs)
        tasks = dict.fromkeys(str(grid["task_name"]) for grid in chosen.grids)
        if config.task.name not in tasks:
            log.warning("The selection was made on %s, and is applied to %s.", ", ".join(tasks), config.task.name)
        if config.prompt is PromptLanguages.both:
            log.warning("The selection was made on single prompts, and is applied to both in one.")
        if len(chosen.cells) > 1:
            grading.check([found.target for found in pairs])
    # Said only where it acts, as in all that `to_dict` gives: so the run can be done again without its sweep.
    written = to_dict(replace(config, selection_of_base=selection.takes_of_base(config)))
    record.open_run(folder, yaml.safe_dump(written, sort_keys=False, allow_unicode=True))
    with logs.kept(folder):
        lm = TransplantLM.from_config(config)
        loaded = time.perf_counter()
        results = harness(lm, pairs, config)
        results["config"]["model_args"] = identity(config, lm.decoder.num_layers, content)
        evaluated = time.perf_counter()
        counts = vars(lm.counts)
        event = {"event": "evaluated", "seconds": evaluated - loaded, "results": results["results"]}
        log.info("%d documents in %.1f s", counts["documents"], evaluated - loaded, extra={"event": event})
        write_results(folder, results)
        manifest = facts_of_run(config, lm, pairs) | {
            "job": "evaluate",
            "config_hash": config_hash(config, models.num_layers(config.model), content),
            "condition": _condition(config, lm.layer_pairs, chosen),
            "transplant": _transplanted(config, lm, chosen),
            "timings": {
                "tasks_seconds": loaded - started,
                "evaluation_seconds": evaluated - loaded,
                "total_seconds": time.perf_counter() - started,
            },
        }
        record.close_run(folder, manifest)


def show(folder: Path) -> str:
    """A finished run of `evaluate`, as text."""
    run = record.load_run(folder)
    assert run is not None
    facts = run.manifest
    promptless = facts["counts"]["promptless"]
    lines = [f"\n{facts['model_name']}, {facts['language_pair']}, {facts['condition']}", tables.run_table(run)]
    lines += [f"{promptless} requests had no prompt, and no transplant."] if promptless else []
    return "\n".join([*lines, f"\n{folder}"])


def refuse_to_resume(config: RunJob, folder: Path) -> None:
    """Not done within `record.doing`, which would keep the refusal as the failure of what is there.

    Raises:
        XTransplantError: there is a run, or parts of one, and these are not to be gone on with (resume=false).
    """
    if config.resume or config.overwrite or not folder.is_dir():
        return
    # A run that failed may have left parts: a grid's documents.
    if (folder / record.FAILED).is_file() and not any(path.is_dir() for path in folder.iterdir()):
        return
    what = "a finished run" if (folder / record.MANIFEST).is_file() else "parts of an interrupted run"
    raise XTransplantError(
        f"resume=false: {folder} holds {what}. Use it with resume=true, compute it with overwrite=true, or give "
        "another output_dir."
    )


def finished_run(config: RunJob, folder: Path) -> record.Run | None:
    """The run in a folder, if it is finished and need not be computed.

    Raises:
        XTransplantError: the model's files, or documents or prompts of local data, have changed since.
    """
    found = None
    if not config.overwrite:
        try:
            found = record.load_run(folder)
        except record.Damaged as damage:
            log.warning("%s", damage)
    if found is not None:
        changed = loading.changed_since(config.model, found.manifest["model"])
        if isinstance(config, SftConfig):
            changed += _changed_training_data(config, found)
        elif families.data_dir(config.task) is not None or config.task.include_path:
            # Files that somebody may have edited. What a hub holds is not fetched for this.
            for each in load_pairs(config):
                recorded = found.manifest["tasks"][each.name]
                other = [key for key, value in digests(each).items() if recorded.get(key, value) != value]
                if other:
                    what = "questions (prompts)" if other == ["questions_sha256"] else "documents"
                    changed.append(f"the {what} of {each.name}")
        if changed:
            raise XTransplantError(
                f"{folder} was computed with other files: changed since then: {', '.join(changed)}. "
                "Compute it anew with overwrite=true, or keep it and give another output_dir."
            )
        log.info("Already done, nothing computed (overwrite=true computes anew): %s", folder)
    return found


def digests(found: pairing.Pairing) -> dict[str, Any]:
    """Digests of a task's evaluated documents and of what they ask."""
    docs = [found.docs[row] for row in found.rows]
    return {
        "keys_sha256": pairing.texts_digest(found.keys[row] for row in found.rows),
        "docs_sha256": {
            "target": pairing.docs_digest(docs),
            "source": pairing.docs_digest(found.source_doc(doc) for doc in docs),
        },
        "questions_sha256": pairing.texts_digest(" ".join(question) for question in found.questions()),
    }


def load_pairs(config: TaskJob) -> list[pairing.Pairing]:
    """The documents of a run, both sides."""
    if isinstance(config, EvaluateConfig):
        config = selection.effective(config, selection.of_run(config))
    sources = pairing.Sources.of(config)
    pairs = pairing.load(config.task, config.language_pair, config.split, config.limit, sources)
    for found in pairs:
        event = {"event": "documents", "task": found.name, "documents": len(found.rows)}
        log.info(_line_of(found, config.language_pair), extra={"event": event})
    return pairs


def _line_of(found: pairing.Pairing, pair: LanguagePairConfig) -> str:
    """How many documents there are of a task, and where their sources come from."""
    target, source = found.name, str(found.source.config.task)
    if target == source:  # one task for all languages
        target, source = f"{target} ({pair.target})", f"{source} ({pair.source})"
    line = f"{target}: {len(found.rows)} documents, sources from {source}"
    aligned = len(found.keys) - found.source_rows.count(None)
    for side, count in (("target", len(found.keys)), ("source", len(found.source_docs))):
        if aligned < count:
            line += f"; {aligned} of the {count} documents of the {side} side have a counterpart"
    return line


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """The harness's results, and a file of samples for each task."""
    samples = results.pop("samples")
    record.write(folder / record.RESULTS, record.as_json(results))
    for name, rows in samples.items():
        record.write(folder / f"samples_{name}.jsonl", "".join(record.as_json(row, indent=None) for row in rows))


def refuse_trained(config: TaskJob, pairs: list[pairing.Pairing]) -> None:
    """No document may be evaluated that the model was trained on by `sft`; parallel documents count as one.

    Raises:
        XTransplantError: some were.
    """
    for folder, marks in loading.trained_on(config.model).items():
        documents = _marked(config, pairs)
        both = [name for name, question in documents if not marks.isdisjoint([name, *question])]
        if both:
            raise XTransplantError(
                f"model {folder}: it was trained on {len(both)} of {len(documents)} documents, e.g. "
                f"{', '.join(both[:3])}. Evaluate others: split=unseen."
            )


def _marked(config: TaskJob, pairs: list[pairing.Pairing]) -> list[tuple[str, list[str]]]:
    """What each document that is to be evaluated is known by: its name in every language, and what it asks."""
    return [
        (f"{template}/{found.keys[row]}", question)
        for template, found in zip(config.task.tasks, pairs, strict=True)
        for row, question in zip(found.rows, found.questions(), strict=True)
    ]


def _refuse_selected(config: EvaluateConfig, chosen: Selection, pairs: list[pairing.Pairing]) -> None:
    """No document may be evaluated that the choice was made on; parallel documents count as one.

    Raises:
        XTransplantError: some were; or the selection was made on another model's weights, those of the untouched model
            below a fine-tuned one not counting where that is asked for.
    """
    published = any(grid["weights"] is None for grid in chosen.grids)
    keys = [key for found in pairs for key in found.keys]
    if published and not all(key.startswith(("sample:", "unseen:")) for key in keys):
        raise XTransplantError(
            f"selection={config.selection}: these pairs were chosen on documents of the authors' files, which cannot "
            f"be told from others in this data, e.g. {keys[0]}. Give the folder that has xtransplant_paper as "
            "task.data_dir or XTRANSPLANT_DATA."
        )
    documents = _marked(config, pairs)
    marks = chosen.marks
    both = [name for name, question in documents if not marks.isdisjoint([name, *question])]
    if both:
        raise XTransplantError(
            f"selection={config.selection}: {len(both)} of {len(documents)} documents were selected on, e.g. "
            f"{', '.join(both[:3])}. Evaluate others: split=unseen."
        )
    made_on = [grid["weights"] for grid in chosen.grids if grid["weights"] is not None]
    provenance = loading.load(config.model).provenance
    untouched = conditions.untouched(provenance)
    own, base = ({name: each.get(name) for name in ("files", "adapter")} for each in (provenance, untouched))
    of_base = selection.takes_of_base(config)
    if all(each == (base if of_base else own) for each in made_on) and not (of_base and own in made_on):
        return
    name, again = short_name(config.model), "Run the grid and the selection again on"
    if of_base and own in made_on:
        said = "it was made on this very model. Leave selection_of_base=true out."
    elif of_base:
        said = f"it was not made on the model that {name} was fine-tuned from. {again} that"
        said += f": {untouched['path']}." if base != own else "; which it is, no manifest.json in its folder says."
    elif all(each == base for each in made_on):
        said = (
            f"it was made on other weights of {name}: on {untouched['path']}, from which these were fine-tuned. To "
            "take it as it is, add selection_of_base=true; or give layer pairs as transplant.layers."
        )
    else:
        said = f"it was made on other weights of {name}. {again} this model."
    raise XTransplantError(f"selection={config.selection}: {said}")


def _transplanted(config: EvaluateConfig, lm: TransplantLM, chosen: Selection | None) -> dict[str, Any] | None:
    """What was read and written, for the manifest; None for the vanilla model."""
    if chosen is not None:
        facts = {"selection": chosen.as_dict(), "control": config.transplant.control.value}
        return facts | ({"selected_on": "base model"} if selection.takes_of_base(config) else {})
    if not lm.layer_pairs:
        return None
    component, site = config.transplant.component, config.transplant.site
    return {
        **to_dict(config, lm.decoder.num_layers)["transplant"],
        "read": [lm.decoder.module_name(pair.source, component, site) for pair in lm.layer_pairs],
        "written": [lm.decoder.module_name(pair.target, component, site) for pair in lm.layer_pairs],
    }


def sft(config: SftConfig) -> Path:
    """Train a model; what it was trained on lies beside it, and is refused by `evaluate` and `grid`. Returns the run's
    folder, which is an adapter's, or a model's."""
    from xtransplant.sft import CHECKPOINTS

    return do(config, _sft, CHECKPOINTS)


def _sft(config: SftConfig, folder: Path) -> None:
    from xtransplant import charts, training_data
    from xtransplant.sft import CHECKPOINTS, HISTORY, chat_of, train

    started = time.perf_counter()
    if config.model.device != "auto":
        loading.check_here(config.model, chat=False)
    data = training_data.load(config, chat_of(config))
    counts = data.counts()
    for language, sides in counts.items():
        log.info("%s: %d examples, %d held out", language, sides["training"], sides["held_out"])
    if data.left_out:
        log.warning("%d rows without a prompt or an answer were left out.", data.left_out)
    # As for a grid: what is left of an interrupted run is of this very work.
    keep = None if (folder / record.MANIFEST).is_file() or config.overwrite else CHECKPOINTS
    record.open_run(folder, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), keep=keep)
    with logs.kept(folder):
        loaded = time.perf_counter()
        about = {
            "config_hash": config_hash(config),
            "model_name": short_name(config.model),
            "data": config.task.name if config.trains_on_task else config.data.name,
            "languages": config.data.languages,
            "method": config.method.value,
        }
        # Of a model that was trained before, what it saw then counts too. Written first: no weights without it.
        before = sorted({mark for marks in loading.trained_on(config.model).values() for mark in marks})
        marks = data.marks | {"before": before}
        record.write(folder / models.TRAINED_ON, record.as_json({"format": 1, **about, **marks}))
        trained = train(config, data, folder)
        record.write(folder / LOSS_CURVE, charts.loss_curve(trained.history, folder.name))
        losses = {
            "loss": trained.last("loss"),
            "eval_loss": trained.eval_loss,
            "steps": trained.steps,
            "best_step": trained.best_step,
        }
        record.write(folder / record.RESULTS, record.as_json(losses))
        manifest = {
            "job": "sft",
            **about,
            "seed": config.seed,
            "model": trained.provenance,
            "environment": record.environment(),
            "examples": counts,
            "left_out": data.left_out,
            "cut": trained.cut,
            "dropped": trained.dropped,
            "examples_sha256": data.sha256,
            "trained_on": models.TRAINED_ON,
            "documents": len(marks["documents"]),
            "training": HISTORY,
            **losses,
            "parameters": {"model": trained.parameters, "trained": trained.trainable},
            "cost": {"seconds": trained.seconds, "tokens": trained.tokens, "flops": trained.flops},
            "timings": {"data_seconds": loaded - started, "total_seconds": time.perf_counter() - started},
        }
        record.close_run(folder, manifest, without=CHECKPOINTS)
        # Only now: until the manifest is written, they are all that is left of the work.
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _changed_training_data(config: SftConfig, found: record.Run) -> list[str]:
    """Of local files, which somebody may have edited, whether the examples are other ones."""
    from xtransplant import training_data
    from xtransplant.sft import chat_of

    if config.trains_on_task:
        local = families.data_dir(config.task) is not None or bool(config.task.include_path)
    else:
        local = Path(config.data.path).expanduser().exists()
    same = not local or training_data.load(config, chat_of(config)).sha256 == found.manifest["examples_sha256"]
    return [] if same else ["the examples"]


def show_training(folder: Path) -> str:
    """A finished run of `sft`, as text."""
    run = record.load_run(folder)
    assert run is not None
    facts = run.manifest
    return "\n".join(
        [
            f"\n{facts['model_name']}, {facts['data']}, {facts['method']}, {', '.join(facts['languages'])}",
            tables.training_table([run]),
            f"\n{folder}",
            f"To evaluate it: {_to_evaluate(run)}",
        ]
    )


def show_trainings(folders: Sequence[Path]) -> str:
    """Finished runs of `sft` beside each other."""
    runs = [run for run in map(record.load_run, folders) if run is not None]
    return "\n".join([tables.training_table(runs), "\nTo evaluate them:", *map(_to_evaluate, runs)])


def _to_evaluate(run: record.Run) -> str:
    """The command that evaluates what was trained, of its languages the first that has a task's documents as a target:
    those of the task that it was trained on, else of its config's."""
    from xtransplant import training_data

    config = record.config_of(run.folder, SftConfig)
    assert isinstance(config, SftConfig)
    given = to_dict(config)
    asked: dict[str, Any] = {"model": given["model"] | {"adapter": str(run.folder)}}
    more = ""
    if config.method is Method.full:
        name = shlex.quote(f"{short_name(config.model)}_sft")
        more = f" model=hf model.path={shlex.quote(str(run.folder))} model.name={name}"
        more += f" model.dtype={config.model.dtype.value}" if config.model.dtype is not ModelConfig.dtype else ""
        asked = {}
    languages = sorted(config.data.languages, key=lambda each: each == "en")
    try:
        pair = training_data.direction(config.task, languages[0], config.data.languages)[0]
        asked |= {"task": given["task"], "language_pair": vars(pair)}
    except XTransplantError:  # a data set's language that the task has not
        more += " task=<task> language_pair=<source>-<target>"
    asked |= {"split": "unseen"} if config.trains_on_task else {}
    return command.command("evaluate", asked) + more


def summarize(config: SummarizeConfig) -> None:
    """Any set of finished runs beside each other, on standard output or in a file.

    Raises:
        XTransplantError: no run is finished, or the file cannot be written.
    """
    places = listed(config.runs)
    runs = record.find_runs(places, whole=False)
    done = [run.folder for run in runs]
    _deliver(tables.summary(runs, config.format.value, unfinished(places, done)), config)


def compare(config: CompareConfig) -> None:
    """Conditions against vanilla, and against another if asked, on standard output or in a file.

    Raises:
        XTransplantError: no run is finished, a run's files were changed since, runs that cannot be compared, there is
            no such condition, or the file cannot be written.
    """
    found = record.find_beside(listed(config.runs), ("evaluate", "grid", "sft"))
    of_job: dict[str, list[record.Run]] = {"evaluate": [], "grid": [], "sft": []}
    for run in found:
        of_job[run.manifest["job"]].append(run)
    if not of_job["evaluate"] and not of_job["grid"]:
        raise XTransplantError("runs: only trainings there. Give runs of evaluate or grid too, e.g. outputs/evaluate.")
    compared = comparing.compare(of_job["evaluate"], of_job["grid"], of_job["sft"], config.against)
    _deliver(tables.comparison(compared, config.format.value), config)


def _deliver(found: str, config: RunReader) -> None:
    """Print a result, or write it to the file that is asked for."""
    if config.output is None:
        print(found)
    else:
        write_output(Path(config.output).expanduser(), f"{found}\n")


def write_output(path: Path, text: str) -> None:
    """Write the file that a job was asked for, and print its path.

    Raises:
        XTransplantError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record.write(path, text)
    except OSError as error:
        raise XTransplantError(
            f"output={path}: cannot be written ({error.strerror}). Give a file in a folder of yours."
        ) from error
    print(path)


def unfinished(places: Iterable[str], finished: Collection[Path] = ()) -> list[overview.Unfinished]:
    """The runs of `evaluate` in or below folders (or patterns) that have no result: failed, damaged, not finished yet.

    Args:
        finished: folders that are known to have one.
    """
    found = []
    for folder, status, why in record.find_unfinished(places, finished=finished):
        facts: dict[str, Any] | None
        try:
            config = record.config_of(folder, EvaluateConfig)
            assert isinstance(config, EvaluateConfig)
            facts = _place_of(config)
        except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, XTransplantError):
            facts = None  # it came to nothing before it was begun, or what it names is gone
        found.append(overview.Unfinished(folder, status, why, facts))
    return found


def _place_of(config: EvaluateConfig) -> dict[str, Any]:
    """Of a run that may not have been made: what says where it belongs in an overview."""
    chosen, layers = selection.of_run(config), models.num_layers(config.model)
    given = config.transplant.layers
    pairs = [] if given is None else LayerPair.parse_several(given, layers or 10**6)
    return _labels(config) | {
        "condition": _condition(config, pairs, chosen),
        "model_args": identity(config, layers, None if chosen is None else chosen.as_dict()),
    }


def doctor(config: DoctorConfig) -> None:
    """Check the engine on a model, and show what is read and written for one prompt pair.

    Raises:
        XTransplantError: a check failed.
    """
    from xtransplant import engine
    from xtransplant.lm import load_decoder

    decoder = load_decoder(config.model)
    component, how = config.transplant.component, config.transplant.intervention
    layers = config.transplant.layers if config.transplant.layers is not None else ["last", "first"]
    pairs = LayerPair.parse_several(layers, decoder.num_layers)
    source = decoder.tokenizer.encode(config.source_prompt)
    target = decoder.tokenizer.encode(config.target_prompt)

    def where(tokens: list[int]) -> str:
        token = f"token {decoder.tokenizer.decode(tokens[-1:])!r}"
        if how.positions == 1:
            return f"position {len(tokens) - 1} (the last), {token}"
        first = 0 if how.positions == "all" else len(tokens) - int(how.positions)
        return f"positions {first} to {len(tokens) - 1}, the last {token}"

    name = f"{type(decoder.model).__name__}, {decoder.num_layers} layers, hidden size {decoder.hidden_size}"
    print(f"{short_name(config.model)}: {name}\n")
    steps = "in step 0 (the prefill) only" if how.scope is Scope.first_token else "in step 0 and at every later token"
    for pair in pairs:
        read, written = (decoder.module_name(layer, component, how.site) for layer in (pair.source, pair.target))
        print(f"read     {read}: output [1, {len(source)}, {decoder.hidden_size}]")
        print(f"         at {where(source)}, in the source prompt's only forward pass")
        print(f"written  {written}: output [1, {len(target)}, {decoder.hidden_size}]")
        print(f"         at {where(target)}, {steps}\n")
    pair = pairs[0]
    tolerance = 1e-3 if decoder.model.dtype.itemsize >= 4 else 1.0
    prefix = engine.read_and_write(decoder, [source], [target], component, pair.source, pair.target, how)
    checks = {
        "transplants missing or too many, of 1": (float(abs(prefix.written - 1)), 0.0),
        "self-transplant changes a log-probability by": (
            engine.self_transplant_error(decoder, [source, target], component, pair.target, how.site),
            tolerance,
        ),
        "padding changes a log-probability by": (engine.padding_error(decoder, [source, target]), tolerance),
        "choice scored behind the cache against a full forward": (
            engine.full_forward_error(decoder, target, source[-3:]),
            tolerance,
        ),
        "part of the residual stream that attn + ffn (site=branch) leave unexplained": (
            engine.residual_error(decoder, [source, target]),
            1e-4 if tolerance < 1 else 0.1,
        ),
    }
    for text, (error, allowed) in checks.items():
        print(f"{'ok  ' if error <= allowed else 'FAIL'}  {text}: {error:.2g} (allowed {allowed:g})")
    failed = [text for text, (error, allowed) in checks.items() if not error <= allowed]
    if failed:
        raise XTransplantError(
            f"{short_name(config.model)}: {len(failed)} of {len(checks)} checks failed. Do not trust results."
        )


def lm_eval(arguments: list[str]) -> None:
    """The harness's own command line, with ``--model xtransplant``."""
    from xtransplant.lm import lm_eval_main

    lm_eval_main(arguments)


def harness(lm: TransplantLM, pairs: list[pairing.Pairing], config: TaskJob) -> dict[str, Any]:
    """Let the harness build, ask and grade; its results, samples included, as plain JSON values."""
    import random

    import numpy as np
    from lm_eval import evaluator
    from lm_eval.loggers.utils import add_tokenizer_info
    from lm_eval.utils import handle_non_serializable

    random.seed(config.seed)
    np.random.seed(config.seed)
    results: dict[str, Any] = evaluator.evaluate(
        lm,
        {"tasks": {found.name: found.target for found in pairs}},
        # All of them is the default, and looking each up in a list of all would take long.
        samples={found.name: found.rows for found in pairs if len(found.rows) < len(found.keys)},
        system_instruction=config.task.system_instruction,
        apply_chat_template=config.task.apply_chat_template,
        fewshot_as_multiturn=config.task.fewshot_as_multiturn,
    )
    results["config"] = {
        "model": "xtransplant",
        "model_args": identity(config, lm.decoder.num_layers),
        "random_seed": config.seed,
        "numpy_seed": config.seed,
        "fewshot_seed": config.seed,
    }
    add_tokenizer_info(results, lm)
    for found in pairs:
        prompts: dict[str, list[str]] = {}
        for request in found.target.instances:
            prompts.setdefault(request.source_key, []).extend(request.source_prompts)
        for row in results["samples"][found.name]:
            row["key"] = found.key_of(row["doc"])
            row["source_task"] = found.source.config.task
            # One for all choices and a source language, as a rule; one for each where the contexts differ.
            row["source_prompts"] = list(dict.fromkeys(prompts[row["key"]]))
        # Where the files lie on this machine says nothing of the result.
        metadata = results["configs"][found.name].get("metadata") or {}
        metadata.pop("data_dir", None)
        metadata.pop("config_source", None)
    # Functions of a task are shown with their addresses, which differ from run to run.
    configs = json.dumps(results.pop("configs"), default=handle_non_serializable, ensure_ascii=False)
    plain: dict[str, Any] = json.loads(json.dumps(results, default=handle_non_serializable, ensure_ascii=False))
    return plain | {"configs": json.loads(re.sub(r" at 0x[0-9a-f]+", "", configs))}


def _condition(config: EvaluateConfig, pairs: Sequence[LayerPair], chosen: Selection | None) -> str:
    """What was done to the model, in a few words: the column in a table."""
    both = " (both prompts)" if config.prompt is PromptLanguages.both else ""
    if chosen is not None:
        what = chosen.strategy
    elif pairs:
        layers = ", ".join(f"{pair.source}>{pair.target}" for pair in pairs)
        what = f"{config.transplant.component.value} {layers}"
    else:
        return f"vanilla{both}"
    how = departures(selection.effective(config, chosen).transplant)
    how += ["chosen on base"] if selection.takes_of_base(config) else []
    return what + (f" ({', '.join(how)})" if how else "") + both


def _labels(config: TaskJob) -> dict[str, str]:
    return {
        "model_name": short_name(config.model),
        "task_name": config.task.name,
        "language_pair": f"{config.language_pair.source}-{config.language_pair.target}",
        "split": config.split.value,
    }


def facts_of_run(config: TaskJob, lm: TransplantLM, pairs: list[pairing.Pairing]) -> dict[str, Any]:
    """What every run's manifest says."""
    import torch

    tasks = {}
    for found in pairs:
        tasks[found.name] = {
            "source_task": found.source.config.task,
            "version": found.target.VERSION,
            "documents": len(found.rows),
            "available": len(found.keys),
            "available_source": len(found.source_docs),
            "aligned": len(found.keys) - found.source_rows.count(None),
            "gold_compared": found.gold_compared,
            "gold_equal": found.gold_equal,
            "trivial_baseline": pairing.trivial_baseline(found, config.task),
            **digests(found),
            "prompts_sha256": pairing.prompts_digest(found.target.instances),
        }
    return {
        **_labels(config),
        "seed": config.seed,
        "model": loading.load(config.model).provenance,
        # Another number of threads adds up in another order: the last bits differ.
        "environment": record.environment() | {"threads": torch.get_num_threads()},
        "tasks": tasks,
        "counts": {key: value for key, value in vars(lm.counts).items() if key != "checks"},
        "checks": lm.counts.checks,
        "cost": lm.cost,
    }
