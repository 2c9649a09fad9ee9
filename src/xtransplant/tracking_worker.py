"""What is logged of a run to Weights & Biases, and the process that does it: see `tracking.py`.

A request is a line of JSON on the standard input. The answer is several lines on the standard output, each an object
that adds to those before: one when W&B's part begins, one when its files are there, and one with `end`. All is read
from the runs' folders. Nothing of the environment, the command line or git is recorded but what a manifest says.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtransplant import exchange, record
from xtransplant.measures import Measure, measures, samples
from xtransplant.overview import overview
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from xtransplant.grid import Grid

# A table of samples is to look at: all of them are in the artifact.
ROWS = 200
CHARACTERS = 4_000  # of a text in a table
# Only an upload needs them; what writes the files does not see them.
_FOR_UPLOADS = (
    *("WANDB_API_KEY", "WANDB_X_EXTRA_HTTP_HEADERS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
)

Table = tuple[list[str], list[list[Any]]]


# --- What there is to say of a run -----------------------------------------------------------------------------------


@dataclass
class Content:
    """A W&B run to be written."""

    name: str
    job_type: str
    tags: list[str]
    about: dict[str, Any]  # in its config, as `run`
    values: dict[str, float]  # its metrics
    tables: dict[str, Table]
    folder: Path  # its artifact
    metadata: dict[str, Any]  # of that
    pictures: dict[str, bytes] = field(default_factory=dict)  # PNG
    history: list[dict[str, float]] = field(default_factory=list)  # metrics by their `step`
    group: str | None = None
    id: str | None = None


def of_run(folder: Path) -> Content:
    """A finished run of `evaluate`, `grid` or `sft`.

    Raises:
        XTransplantError: it is not finished, or damaged.
    """
    run = record.load_run(folder)
    if run is None:
        raise XTransplantError(f"{folder} is not finished")
    facts = run.manifest
    job = str(facts["job"])
    if job == "sft":
        return _of_training(run)
    kept = ("config_hash", "model_name", "task_name", "language_pair", "split", "condition", "control", "transplant")
    found = [_Told(each, each.interval(int(facts["seed"]))) for several in measures(run).values() for each in several]
    rows, total = sample_rows(run)
    pair = facts["language_pair"]
    content = Content(
        name=folder.name,
        job_type=job,
        tags=[*_label(run)[1:4], *([] if facts["split"] == "all" else [str(facts["split"])]), _label(run)[-1]],
        about={name: facts[name] for name in kept if name in facts} | {"environment": facts["environment"]},
        # A grid's own metrics are those without a transplant.
        values={(name if job == "evaluate" else f"vanilla/{name}"): value for name, value in summary(found).items()}
        | {"samples/shown": len(rows[1]), "samples/all": total},
        tables={
            "tasks": (["language_pair", *_COLUMNS], [[pair, *each.row()] for each in found]),
            "samples": rows,
        },
        folder=folder,
        metadata={"config_hash": facts["config_hash"], "manifest_sha256": _sha256(run), "files": facts["files"]},
    )
    if job == "grid":
        grid = _grid(folder)
        content.tables["grid"], best = cells(grid)
        content.values |= best
        content.pictures = _pictures(grid)
    return content


def _of_training(run: record.Run) -> Content:
    """A training: its loss by step, and what it came to and cost."""
    from xtransplant import charts

    facts = run.manifest
    lines = (run.folder / Path(facts["training"]).name).read_text(encoding="utf-8").splitlines()
    history = [json.loads(line) for line in lines]
    kept = ("config_hash", "model_name", "data", "languages", "method", "examples", "examples_sha256", "parameters")
    numbers = {"loss": facts["loss"], "eval_loss": facts["eval_loss"], "steps": facts["steps"]}
    numbers |= {"best_step": facts["best_step"], **facts["cost"]}
    return Content(
        name=run.folder.name,
        job_type="sft",
        tags=[*(str(facts[name]) for name in ("model_name", "data", "method")), *facts["languages"]],
        about={name: facts[name] for name in kept} | {"environment": facts["environment"]},
        values={f"final/{name}": float(value) for name, value in numbers.items() if value is not None},
        tables={},
        folder=run.folder,
        metadata={"config_hash": facts["config_hash"], "manifest_sha256": _sha256(run), "files": facts["files"]},
        pictures={"loss_curve": charts.loss_curve_png(history, run.folder.name)},
        history=[{name: value for name, value in row.items() if math.isfinite(value)} for row in history],
    )


_TRAINING_COLUMNS = ["run", "model", "data", "method", "languages"]


def trainings(runs: Sequence[record.Run]) -> Table:
    """Runs of `sft`: a row each, with what it came to and cost."""
    parts = ["steps", "best_step", "loss", "eval_loss"]
    rows = []
    for run in runs:
        facts = run.manifest
        names = [run.folder.name, *(facts[name] for name in ("model_name", "data", "method"))]
        cost = [facts["cost"][name] for name in ("seconds", "tokens", "flops")]
        rows.append([*names, " ".join(facts["languages"]), *(facts[part] for part in parts), *cost])
    return [*_TRAINING_COLUMNS, *parts, "seconds", "tokens", "flops"], rows


def of_sweep(folder: Path, runs: Sequence[Path], tracking: Mapping[str, Any]) -> Content:
    """The comparison over a sweep's runs. Its id follows from their results and where they are logged.

    Raises:
        XTransplantError: none is finished, or one is damaged.
    """
    finished = [run for run in map(record.load_run, runs) if run is not None]
    if not finished:
        raise XTransplantError("no run is finished")
    job = str(finished[0].manifest["job"])
    manifests = sorted(_sha256(run) for run in finished)
    known = json.dumps([folder.name, dict(tracking), manifests])
    tables = {"evaluate": comparison, "grid": best_cells, "sft": trainings}
    return Content(
        name=folder.name,
        job_type="sweep",
        tags=[job, *dict.fromkeys(part for run in finished for part in _tags(run))],
        about={
            "job": job,
            "runs": [run.folder.name for run in finished],
            "environment": finished[0].manifest["environment"],
        },
        values={"runs": len(finished)},
        tables={"comparison": tables[job](finished)},
        folder=folder,
        metadata={"manifests_sha256": manifests},
        group=tracking["group"] or folder.name,
        id=hashlib.sha256(known.encode()).hexdigest()[:16],
    )


def _sha256(run: record.Run) -> str:
    return hashlib.sha256((run.folder / record.MANIFEST).read_bytes()).hexdigest()


@dataclass(frozen=True)
class _Told:
    """A metric with its 95 % interval."""

    measure: Measure
    interval: tuple[float, float] | None

    @property
    def name(self) -> str:
        """In a run's metrics."""
        each = self.measure
        return each.metric if each.filter == "none" else f"{each.metric}_{each.filter}"

    def row(self) -> list[Any]:
        each = self.measure
        return [
            *(each.task, each.metric, each.filter, each.value, each.stderr, *(self.interval or (None, None))),
            *(each.documents, each.trivial),
        ]

    def flat(self, name: str) -> dict[str, float]:
        low, high = self.interval or (None, None)
        parts = {"": self.measure.value, "/stderr": self.measure.stderr, "/low": low, "/high": high}
        return {f"{name}{part}": value for part, value in parts.items() if value is not None}


_COLUMNS = ["task", "metric", "filter", "value", "stderr", "low", "high", "documents", "trivial"]


def summary(found: Sequence[_Told]) -> dict[str, float]:
    """Metric -> value, with its interval; over the documents of all tasks, and of several tasks each for itself too."""
    values: dict[str, float] = {}
    tasks = list(dict.fromkeys(each.measure.task for each in found))
    for each in found:
        if len(tasks) > 1:
            values |= each.flat(f"{each.measure.task}/{each.name}")
    for name in dict.fromkeys(each.name for each in found):
        several = [each for each in found if each.name == name]
        if len(tasks) == 1:
            values |= several[0].flat(name)
        else:
            # None of them, e.g. where no answer's language could be told.
            told = [each.measure for each in several if each.measure.documents]
            if told:
                values[name] = sum(each.value * each.documents for each in told) / sum(each.documents for each in told)
    return values


def sample_rows(run: record.Run) -> tuple[Table, int]:
    """The first documents of each task, at most `ROWS` in all, and of how many."""
    metrics = list(
        dict.fromkeys(key.split(",")[0] for task in run.manifest["tasks"] for key in run.results["results"][task])
    )
    metrics = [each for each in metrics if each != "alias" and not each.endswith("_stderr")]
    header = ["task", "key", "filter", "source_prompts", "prompt", "choices", "responses", "answer", *metrics]
    share = max(1, ROWS // len(run.manifest["tasks"]))
    rows: list[list[Any]] = []
    total = 0
    for task in run.manifest["tasks"]:
        asked = samples(run, task)
        total += len(asked)
        for sample in asked[:share]:
            given = sample.get("arguments") or []
            texts = [
                task,
                sample["key"],
                sample.get("filter", "none"),
                "\n\n".join(sample.get("source_prompts") or []),
                given[0][0] if given else "",
                # Of a generated text the second argument says how it is generated.
                [each[1] for each in given if isinstance(each[1], str)],
                sample.get("filtered_resps"),
                sample.get("target"),
            ]
            known = [sample.get(metric) for metric in metrics]
            rows.append(
                [*map(_cell, texts), *(float(each) if isinstance(each, int | float) else None for each in known)]
            )
    return (header, rows), total


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS // 2]} […] {text[-CHARACTERS // 2 :]}"


def _grid(folder: Path) -> Grid:
    from xtransplant.grid import Grid

    return Grid.load(folder / "grid.npz")


def cells(grid: Grid) -> tuple[Table, dict[str, float]]:
    """Every cell of a grid, and the best of each component with its adjusted p (see `analysis.Effect`)."""
    from xtransplant import analysis

    header = ["component", "source", "target", "documents", "score", "gain", "p_max_t", "logprob_change"]
    rows: list[list[Any]] = []
    best: dict[str, float] = {}
    for component in analysis.components(grid):
        found = analysis.effect(grid, component)
        nats = analysis.effect(grid, component, "logprob", permutations=1)
        assert found is not None  # every grid has scores
        for index, cell in enumerate(found.cells):
            numbers = [found.mean[index], found.gain[index], found.adjusted[index]]
            numbers.append(math.nan if nats is None else nats.gain[index])
            seen = [component.value, cell.source, cell.target, int(found.seen[index])]
            rows.append([*seen, *(float(each) if math.isfinite(each) else None for each in numbers)])
        if found.complete.any():
            index = found.ranked()[0]
            best |= {
                f"best/{component.value}/source": found.cells[index].source,
                f"best/{component.value}/target": found.cells[index].target,
                f"best/{component.value}/score": float(found.mean[index]),
                f"best/{component.value}/gain": float(found.gain[index]),
                f"best/{component.value}/p_max_t": float(found.adjusted[index]),
            }
    return (header, rows), {name: value for name, value in best.items() if math.isfinite(value)}


def _pictures(grid: Grid) -> dict[str, bytes]:
    from xtransplant import charts

    pictures = {}
    with suppress(XTransplantError):  # no cell was seen on all documents
        pictures["heatmap"] = charts.heatmap_png([grid])
    with suppress(XTransplantError):
        pictures["heatmap_logprob"] = charts.heatmap_png([grid], "logprob")
    return pictures


def comparison(runs: Sequence[record.Run]) -> Table:
    """Runs of `evaluate`: what `xtransplant summarize` has in its CSV, with the runs' names for their folders."""
    lines = [{**line, "folder": line["folder"] and Path(line["folder"]).name} for line in overview(runs).records()]
    return list(lines[0]), [list(line.values()) for line in lines]


_LABEL = ["run", "model", "task", "language_pair", "split"]


def _label(run: record.Run) -> list[str]:
    """`_LABEL`, and what was done: a condition, or a grid's control."""
    facts = run.manifest
    what = facts["condition"] if facts["job"] == "evaluate" else facts["control"] or "grid"
    return [run.folder.name, *(str(facts[key]) for key in ("model_name", "task_name", "language_pair", "split")), what]


def _tags(run: record.Run) -> list[str]:
    facts = run.manifest
    return [str(facts["model_name"]), str(facts["data" if facts["job"] == "sft" else "task_name"])]


def best_cells(runs: Sequence[record.Run]) -> Table:
    """Runs of `grid`: a row per run and component, the best cell, which was chosen on the documents of its score."""
    parts = ["source", "target", "score", "gain", "p_max_t"]
    rows = []
    for run in runs:
        documents = sum(facts["documents"] for facts in run.manifest["tasks"].values())
        best = cells(_grid(run.folder))[1]
        for component in dict.fromkeys(name.split("/")[1] for name in best):
            numbers = [best.get(f"best/{component}/{part}") for part in parts]
            rows.append([*_label(run), documents, component, *numbers])
    return [*_LABEL, "control", "documents", "component", *parts], rows


# --- Weights & Biases ------------------------------------------------------------------------------------------------


def write(content: Content, config: Mapping[str, Any], place: Path) -> Path:
    """Write it as an offline run below `<place>/wandb`. Returns the folder of its files.

    Args:
        config: the job's, as `config.to_dict` gives it.
    """
    import wandb

    # Only what has an id is the same each time that it is asked for.
    there = sorted(place.joinpath("wandb").glob(f"offline-run-*-{content.id}")) if content.id else []
    if there:
        return there[0]
    given = config["tracking"]
    about = {"run": content.about}
    if "WANDB_SWEEP_ID" in os.environ:
        # What the sweep varies has its own place in the config, which a section of the same name cannot take: `task`.
        about["resolved"] = dict(config)
    with (
        wandb.init(
            dir=str(place),
            mode="offline",
            # Where `wandb agent` waits for a run, W&B takes these from the environment instead.
            id=content.id,
            project=given["project"],
            entity=given["entity"],
            name=content.name,
            group=content.group or given["group"],
            job_type=content.job_type,
            tags=list(dict.fromkeys(tag[:64] for tag in [*content.tags, *given["tags"]] if tag)),
            config={**config, **about},
            reinit="finish_previous",
            # Several processes would point the same link elsewhere.
            settings=exchange.wandb_settings(symlink=False),
        ) as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        tables = {name: wandb.Table(columns=[*header], data=rows) for name, (header, rows) in content.tables.items()}
        pictures = {}
        for name, picture in content.pictures.items():
            Path(folder, f"{name}.png").write_bytes(picture)
            pictures[name] = wandb.Image(str(Path(folder, f"{name}.png")))
        for row in content.history:
            run.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))
        run.log({**content.values, **tables, **pictures})
        kind = "sweep" if content.job_type == "sweep" else f"run-{content.job_type}"
        artifact = wandb.Artifact(content.name, type=kind, metadata=content.metadata)
        for path in sorted(content.folder.glob("*")):
            # A whole model stays where it is: its hash is in the manifest.
            if path.is_file() and not path.name.startswith(".") and not path.match("model*.safetensors"):
                artifact.add_file(str(path), name=path.name, skip_cache=True)
        run.log_artifact(artifact)
    if "WANDB_SWEEP_ID" in os.environ:
        for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
            os.environ.pop(name, None)
        wandb.teardown()  # the agent waits for one run: others are not its
    return Path(run.settings.sync_dir)


def upload(files: Path, until: float, environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """As `wandb sync` does. Returns the run's address, and what went wrong.

    Args:
        until: when it is given up, in seconds since the epoch.
        environment: variables beside this process's own.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wandb", "sync", str(files)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            # Its own log beside the files; else it would be in the current folder.
            env={**os.environ, **environment, "WANDB_DIR": str(files.parents[1])},
        )
        try:
            process.wait(max(0.1, until - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None, "the server did not answer in time"
        said.seek(0)
        lines = [line.removeprefix("wandb: ").strip() for line in said.read().splitlines()]
    url = next((line.rpartition(" at ")[2] for line in lines if "View run" in line), None)
    if any(files.glob("*.wandb.synced")):
        return url, None
    # It says `Error: <why>` or `ERROR <why>`, and where more is said.
    errors = [line[5:].strip(": ") for line in lines if line.casefold().startswith("error")]
    errors = [line for line in errors if line and not line.startswith("Find detailed")]
    return url, next(iter(errors or lines[-1:]), f"exit code {process.returncode}")


# --- The process -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until the standard input ends."""
    # W&B's own process inherits the standard output, and others may print: the answers have a way of their own.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def say(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    secrets = {name: os.environ.pop(name) for name in _FOR_UPLOADS if name in os.environ}
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # to W&B's makers, over the network
    with suppress(ImportError):  # said when there is a run to log
        # What takes a second to load, while the run is computed.
        for name in ("wandb", "xtransplant.stats"):
            importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        url, failed = None, None
        try:
            folder, config = Path(request["folder"]), request["config"]
            if "runs" in request:
                content = of_sweep(folder, [Path(each) for each in request["runs"]], config["tracking"])
            else:
                content = of_run(folder)
            say({})
            until = time.time() + (request["upload_within"] or 0)
            files = write(content, config, Path(request["place"]))
            say({"files": str(files)})
            if request["upload_within"] is not None:
                url, failed = upload(files, until, secrets)
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        say({"url": url, "error": failed, "end": True})


if __name__ == "__main__":
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
