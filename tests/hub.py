"""Data sets as the Hugging Face hub has them, in the current folder: `datasets` prefers such a folder to the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def hub_repository(name: str, files: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> None:
    """Lay out `./<name>` like a data set on the hub: {(config, split): rows}."""
    folder = Path(name)
    configs: dict[str, list[dict[str, str]]] = {}
    for (config, split), rows in files.items():
        path = folder / config / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        configs.setdefault(config, []).append({"split": split, "path": f"{config}/{split}.jsonl"})
    header = {"configs": [{"config_name": config, "data_files": found} for config, found in configs.items()]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n", encoding="utf-8")
