"""What was run and whether it is complete: a run's folder, its manifest, and finding runs again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xtransplant.checks import folders
from xtransplant.types import XTransplantError

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
FAILED = "failed.json"  # why a run was not finished: in its folder until it is begun again
FORMAT = 1
_PACKAGES = (
    *("xtransplant", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft"),
    *("lm_eval", "datasets", "numpy", "hydra-core", "omegaconf", "babel", "py3langid"),
)


@dataclass
class Run:
    """A finished run, read back."""

    folder: Path
    manifest: dict[str, Any]
    results: dict[str, Any]


def open_run(folder: Path, config: str, keep: str | None = None) -> None:
    """Make the run's folder and write its resolved config; what an earlier run left there is removed.

    Args:
        keep: a folder in it with finished parts of an interrupted run, which stays.

    Raises:
        XTransplantError: the folder cannot be written.
    """
    try:
        if folder.exists():
            # The manifest first: without it the rest counts for nothing.
            (folder / MANIFEST).unlink(missing_ok=True)
            for path in folder.iterdir():
                if path.is_dir() and path.name != keep:
                    shutil.rmtree(path)
                elif not path.is_dir():
                    path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / CONFIG, config)
    except OSError as error:
        raise XTransplantError(
            f"output_dir: {folder} cannot be written ({error.strerror}). Give a folder that you may write to."
        ) from error


def close_run(folder: Path, manifest: Mapping[str, Any], without: str | None = None) -> None:
    """Write the manifest, with a hash of every other file: its existence says that the run is complete.

    Args:
        without: a folder in it that is about to be removed.
    """
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (without is None or not path.is_relative_to(folder / without))
    }
    write(folder / MANIFEST, as_json({"format": FORMAT, **manifest, "files": hashes}))


def load_run(folder: Path) -> Run | None:
    """The finished run in a folder; None if there is none.

    Raises:
        XTransplantError: a file of the run is missing or was changed since.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                raise XTransplantError(f"{folder / name} was changed after its run. Run again with overwrite=true.")
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise XTransplantError(f"{folder} is damaged: {error}. Run again with overwrite=true.") from error
    return Run(folder, manifest, results)


def find_runs(places: Iterable[str], job: str = "evaluate", key: str = "runs") -> list[Run]:
    """Every finished run of a job in or below the given folders, which may be patterns with * and ?.

    Args:
        key: of the config that names the places, for the message.

    Raises:
        XTransplantError: a place does not exist or holds no finished run of the job.
    """
    runs: dict[Path, Run] = {}
    for place in places:
        manifests = sorted({path for folder in folders(place) for path in folder.rglob(MANIFEST)})
        found = [run for run in map(load_run, (path.parent for path in manifests)) if run is not None]
        wanted = [run for run in found if run.manifest["job"] == job]
        if not wanted:
            begun = find_unfinished([place], job)
            failed = [f"{folder} failed: {why}" for folder, why in begun if why is not None]
            more = f", {len(begun)} begun{f': {failed[0]}' if failed else ''}" if begun else ""
            raise XTransplantError(
                f"{key}: {place} holds no finished run of {job}{more}. Give folders of such runs, e.g. "
                f"{key}=[outputs/{job}]."
            )
        runs |= {run.folder: run for run in wanted}
    return list(runs.values())


def find_unfinished(places: Iterable[str], job: str = "evaluate") -> list[tuple[Path, str | None]]:
    """Folders of a job's runs, in or below the given ones, that have no manifest; and what was said if they failed."""
    begun = {
        path.parent
        for place in places
        for folder in folders(place)
        for name in (CONFIG, FAILED)
        for path in folder.rglob(name)
    }
    found = []
    for folder in sorted(begun):
        if folder.resolve().parent.name != job or (folder / MANIFEST).is_file():
            continue
        try:
            why = str(json.loads((folder / FAILED).read_text(encoding="utf-8"))["error"])
        except (OSError, ValueError, KeyError, TypeError):
            why = None
        found.append((folder, why))
    return found


def write(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


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
