"""The jobs that pass runs on: export one, compare two. Wiring only."""

from __future__ import annotations

import tempfile
from pathlib import Path

from xtransplant import bundle, difference
from xtransplant.config import DiffConfig, ExportConfig


def export(config: ExportConfig) -> None:
    """Write a run's bundle, or send it; a bundle is sent on as it is. Prints where it is, and what is withheld."""
    with (
        bundle.opened(config.run, "run", config.output_dir) as run,
        tempfile.TemporaryDirectory(prefix="xtransplant-") as temporary,
    ):
        name = f"{run.folder.name}.zip"
        away = config.to is not None and bundle.is_address(config.to)
        path = Path(temporary, name) if away else _file(config, name)
        if run.file is None:
            content = bundle.write(run, path, config.samples, config.largest, config.overwrite)
        else:
            content = run.content
            bundle.copy(run.file, path, config.overwrite)
        for entry, facts in sorted(content["withheld"].items()):
            print(f"withheld: {entry}: {facts['why']}")
        print(f"{run.manifest['job']} {run.short}, {path.stat().st_size / 2**20:.2f} MB")
        print(bundle.push(path, str(config.to)) if away else path)


def _file(config: ExportConfig, name: str) -> Path:
    """Where the bundle is to be: a folder, which need not be there, has no .zip at its end."""
    if config.to is None:
        return Path(config.output_dir, "bundles", name)
    path = Path(config.to).expanduser()
    return path if path.suffix == ".zip" and not path.is_dir() else path / name


def diff(config: DiffConfig) -> int:
    """Print what differs between two runs. Returns the exit code: 0 if nothing that counts does, else 1."""
    with (
        bundle.opened(config.a, "a", config.output_dir) as one,
        bundle.opened(config.b, "b", config.output_dir) as two,
    ):
        levels = difference.differences(one, two, config.tolerance)
        print(difference.text(one, two, levels))
        return int(difference.differ(levels))
