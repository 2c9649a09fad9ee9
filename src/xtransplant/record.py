"""What was run and whether it is complete: a run's folder, its manifest, and finding runs again."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import platform
import re
import shutil
import subprocess
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xtransplant import disk, logs
from xtransplant.checks import folders
from xtransplant.types import XTransplantError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
RESULTS = "results.json"
FAILED = "failed.json"  # why a run was not finished: in its folder until it is begun again
SWEEP = "sweep.json"  # of a sweep: its runs, and how they ended
REPRODUCTION = "reproduction.json"  # of a run that was computed again: in the folder that holds that
# 2: a manifest has the hash of itself. Those of 1, which have none, are read too.
FORMAT = 2
_PACKAGES = (
    *("xtransplant", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "trl"),
    *("lm_eval", "datasets", "numpy", "hydra-core", "omegaconf", "babel", "py3langid"),
)


@dataclass
class Run:
    """A finished run, read back."""

    folder: Path
    manifest: dict[str, Any]
    results: dict[str, Any]


class Damaged(XTransplantError):
    """Files of a finished run are missing, or are not those that it wrote."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While open, no other process works in this folder, which need not be there; waits for one that does.

    Raises:
        XTransplantError: the place of the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            lock_file = folder.parent / ".locks" / f"{folder.name}.lock"
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(disk.alone(lock_file, f"computing {folder}"))
        except OSError as error:
            raise unwritable(folder, error) from error
        yield


@contextmanager
def doing(folder: Path) -> Iterator[None]:
    """As `alone`, for the run of this folder. An exception is kept in it as FAILED, until the run is begun again.

    Raises:
        XTransplantError: as `alone`.
    """
    with alone(folder):
        try:
            yield
        except Exception as error:
            facts = {"error": in_words(error)}
            _fail(folder, facts | {"traceback": traceback.format_exc(), "time": datetime.now(UTC).isoformat()})
            raise


def unwritable(folder: Path, error: OSError) -> XTransplantError:
    """What is said where a folder of results cannot be written."""
    return XTransplantError(
        f"output_dir: {folder} cannot be written ({error.strerror}). Give a folder that you may write to."
    )


def open_run(folder: Path, config: str, keep: str | None = None) -> None:
    """Make the run's folder and write its resolved config; what an earlier run left there is removed.

    The log of an interrupted one stays: it is gone on with.

    Args:
        keep: a folder in it with finished parts of an interrupted run, which stays.

    Raises:
        XTransplantError: the folder cannot be written.
    """
    try:
        if folder.exists():
            # The manifest first: without it the rest counts for nothing.
            stays = () if (folder / MANIFEST).is_file() else logs.FILES
            (folder / MANIFEST).unlink(missing_ok=True)
            for path in folder.iterdir():
                if path.name in stays:
                    continue
                if path.is_dir() and path.name != keep:
                    shutil.rmtree(path)
                elif not path.is_dir():
                    path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / CONFIG, config)
    except OSError as error:
        raise unwritable(folder, error) from error


def close_run(folder: Path, manifest: Mapping[str, Any], without: str | None = None) -> None:
    """Write the manifest, with a hash of every other file but the log: its existence says that the run is complete.

    Args:
        without: a folder in it that is about to be removed.
    """
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in logs.FILES
        and (without is None or not path.is_relative_to(folder / without))
    }
    write(folder / MANIFEST, as_json(disk.sealed({"format": FORMAT, **manifest, "files": hashes})))


def load_run(folder: Path) -> Run | None:
    """The finished run in a folder; None if there is none.

    Raises:
        Damaged: a file of the run is missing or was changed since.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = disk.unsealed(disk.json_of(path))
        files = manifest["files"]
        strange = [str(name) for name in (*files, *manifest.get("tasks", ())) if not disk.is_below(str(name))]
        if strange or not isinstance(manifest["job"], str):
            raise ValueError(f"it names {strange[0]!r}" if strange else "its job has no name")
        for name, expected in files.items():
            if _sum(folder / name, folder) != expected:
                raise Damaged(f"{folder / name} was changed after its run. The run's command computes it anew.")
        if RESULTS not in files:
            raise ValueError(f"it does not vouch for {RESULTS}")
        results = disk.json_of(folder / RESULTS)
    except FileNotFoundError as error:
        raise Damaged(f"{error.filename} is missing. The run's command computes it anew.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder}: a file is damaged ({error}). The run's command computes it anew.") from error
    return Run(folder, manifest, results)


def _sum(path: Path, folder: Path) -> str:
    """Raises:
    OSError, ValueError: it cannot be read, is no plain file, or a link leads out of the folder.
    """
    if not path.resolve(strict=True).is_relative_to(folder.resolve()):
        raise ValueError(f"{path.name} leads out of the folder")
    if not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def config_of(folder: Path, schema: type) -> Any:
    """The resolved config that a run has recorded, as an object of its job's dataclass.

    Raises:
        OSError, ValueError, yaml.YAMLError, OmegaConfBaseException: it cannot be read, or is none.
    """
    plain = literal(disk.yaml_of(folder / CONFIG))
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(plain)))


def literal(value: Any) -> Any:
    """Values in which OmegaConf fills in nothing any more: what looks so was text."""
    if isinstance(value, Mapping):
        return {key: literal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [literal(each) for each in value]
    # Before `${` a backslash escapes, so those that stand there are escaped too.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def whole_run(folder: Path) -> Run | None:
    """The finished run in a folder; None if there is none, or a damaged one."""
    try:
        return load_run(folder)
    except Damaged:
        return None


def find_beside(places: Iterable[str], jobs: Iterable[str], key: str = "runs") -> list[Run]:
    """Every finished run of some jobs in or below the given folders, which may be patterns with * and ?; and of each
    sweep that is recorded there, wherever its runs are.

    Args:
        key: of the config that names the places, for the message.

    Raises:
        XTransplantError: a place does not exist, or holds no such run.
    """
    wanted = tuple(jobs)
    runs: dict[Path, Run] = {}
    for place in places:
        found = [run for run in map(load_run, _finished(place)) if run is not None and run.manifest["job"] in wanted]
        if not found:
            raise XTransplantError(
                f"{key}: {place} holds no finished run of {' or '.join(wanted)}. Give folders of such runs, or of a "
                f"sweep of them, e.g. {key}=[outputs/{wanted[0]}]."
            )
        runs |= {run.folder.resolve(): run for run in found}
    return list(runs.values())


def _finished(place: str) -> list[Path]:
    """Folders with a manifest below a place, and those that its sweeps name."""
    found: dict[Path, None] = {}
    for folder in folders(place):
        found |= dict.fromkeys(path.parent for path in below(folder, MANIFEST))
        for path in below(folder, SWEEP):
            job, runs = _sweep(path)
            # Beside the sweep, which may have been moved with them: <output_dir>/sweeps/<sweep>/sweep.json.
            finished = [each for name in runs if (each := path.parents[2] / job / name / MANIFEST).is_file()]
            if len(finished) < len(runs):
                missing = len(runs) - len(finished)
                log.warning("%s: %d of its %d runs are not finished.", path.parent, missing, len(runs))
            found |= dict.fromkeys(each.parent for each in finished)
    return list(found)


def below(folder: Path, name: str) -> list[Path]:
    """Files of a name in or below a folder, sorted; none of runs that were computed again, for they are the same runs:
    these are found in their own folder only."""
    found = []
    for path in sorted(folder.rglob(name)):
        between = path.relative_to(folder).parents
        if not any((folder / each / REPRODUCTION).is_file() for each in between if each != Path()):
            found.append(path)
    return found


def _sweep(path: Path) -> tuple[str, list[str]]:
    """The job of a sweep, and the names of its runs' folders.

    Raises:
        Damaged: its record cannot be read, or names what is no folder beside the others.
    """
    try:
        content = disk.json_of(path)
        job, runs = str(content["job"]), [Path(each["folder"] or "nowhere").name for each in content["runs"]]
        if any(not disk.is_below(each) or "/" in each for each in (job, *runs)):
            raise ValueError("it names other folders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: the record of a sweep is damaged ({error}). Its command writes it anew.") from error
    return job, runs


def find_runs(places: Iterable[str], job: str = "evaluate", key: str = "runs", whole: bool = True) -> list[Run]:
    """Every finished run of a job in or below the given folders, which may be patterns with * and ?.

    Args:
        key: of the config that names the places, for the message.
        whole: raise for a damaged run, or else leave it out (`find_unfinished` has it).

    Raises:
        XTransplantError: a place does not exist or holds no finished run of the job.
        Damaged: a file of a run is missing or was changed since.
    """
    load = load_run if whole else whole_run
    runs: dict[Path, Run] = {}
    for place in places:
        manifests = sorted({path for folder in folders(place) for path in below(folder, MANIFEST)})
        found = [run for run in map(load, (path.parent for path in manifests)) if run is not None]
        wanted = [run for run in found if run.manifest["job"] == job]
        if not wanted:
            begun = find_unfinished([place], job)
            said = [f"{folder} {status}: {why.rstrip('.')}" for folder, status, why in begun if why]
            more = f", {len(begun)} begun{f': {said[0]}' if said else ''}" if begun else ""
            raise XTransplantError(
                f"{key}: {place} holds no finished run of {job}{more}. Give folders of such runs, e.g. "
                f"{key}=[outputs/{job}]."
            )
        runs |= {run.folder: run for run in wanted}
    return list(runs.values())


def explained(error: BaseException) -> str | None:
    """What the user is told, in a sentence or two; None where only a traceback helps."""
    if isinstance(error, XTransplantError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK:
            where = f" ({cause.filename})" if cause.filename else ""
            return f"{_DISK[cause.errno]}{where}. What is finished is kept: the same command goes on."
        if type(cause).__name__ == "OutOfMemoryError" or isinstance(cause, MemoryError):
            said = str(cause).split(". ")[0].strip()
            return (
                f"Too little memory{f': {said}' if said else ''}. Lower batch_size (evaluate, sft) or grid.memory "
                "(grid), take model.dtype=bfloat16, or a smaller model. What is finished is kept."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def in_words(error: BaseException) -> str:
    """As `explained`; where only a traceback helps, the exception itself."""
    return explained(error) or f"{type(error).__name__}: {error}"


_DISK = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EROFS: "The file system is read-only",
    errno.EFBIG: "A file would be larger than is allowed here",
}


def _fail(folder: Path, facts: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).is_file():
            write(folder / FAILED, as_json(facts))
    except OSError as error:
        log.warning("%s cannot be written: %s.", folder / FAILED, error.strerror)


def find_unfinished(
    places: Iterable[str], job: str = "evaluate", finished: Collection[Path] = ()
) -> list[tuple[Path, str, str]]:
    """Folders of a job's runs, in or below the given ones, that have no result; the status in a word, what was said.

    Args:
        finished: folders that are known to have one.
    """
    begun = {
        path.parent
        for place in places
        for folder in folders(place)
        for name in (CONFIG, FAILED, MANIFEST)
        for path in below(folder, name)
    }
    found = []
    for folder in sorted(begun - set(finished)):
        if folder.resolve().parent.name != job:
            continue
        try:
            if load_run(folder) is not None:
                continue
            status, why = "failed", str(disk.json_of(folder / FAILED)["error"])
        except Damaged as damage:
            status, why = "damaged", str(damage)
        except (OSError, ValueError, KeyError, TypeError):
            status, why = "not finished", ""
        found.append((folder, status, why))
    return found


def write(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    with disk.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(value: Any, indent: int | None = 2) -> str:
    """The same value always gives the same text."""
    return json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def environment() -> dict[str, Any]:
    """Versions of what computes, and the project's commit where it runs from a checkout."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git": _git(),
    }


# Of results.json what says where something lies and by which name it is called: what it holds, other hashes say. There
# are no times in it.
_PLACES = ("model.path", "model.revision", "model.adapter", "task.include_path")


def without_places(results: Mapping[str, Any]) -> dict[str, Any]:
    """results.json as it is wherever model and data lie: the same run gives the same text (`as_json`) on any machine
    that computes the same. What has times in it, and differs between two runs, is in the manifest only."""
    plain: dict[str, Any] = json.loads(json.dumps(results))
    asked = plain.get("config", {}).get("model_args", {})
    for place in _PLACES:
        section, _, key = place.partition(".")
        asked.get(section, {}).pop(key, None)
    for task in plain.get("configs", {}).values():
        task.pop("dataset_kwargs", None)
        if task.get("dataset_path") == "json":  # local files instead of the origin
            task.pop("dataset_path")
            task.pop("dataset_name", None)
    return plain


def _git() -> dict[str, Any] | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
