"""KLAR: facts asked in 12 languages, from a local folder; lm-eval loads this file by its path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets

try:
    from xtransplant.types import XTransplantError
except ImportError:  # plain lm-eval with this folder as its --include_path: xtransplant need not be installed

    class XTransplantError(Exception):  # type: ignore[no-redef]
        """A fault the user can act on."""


def load(language: str, data_dir: str | None = None, **_: Any) -> datasets.DatasetDict:
    """Split `test`: id, relation, subject, object, prompt (ends where the answer is due), choices (4), label.

    Args:
        data_dir: folder with `klar/<language>.jsonl`; else the one that XTRANSPLANT_DATA names.

    Raises:
        XTransplantError: there is no such file. KLAR has no hub repository that gives these fields.
    """
    folder = data_dir if data_dir is not None else os.environ.get("XTRANSPLANT_DATA")
    path = Path(folder or "", "klar", f"{language}.jsonl")
    if not folder or not path.is_file():
        raise XTransplantError(
            f"KLAR in {language!r} comes from local files only, and there is no klar/{language}.jsonl with "
            f"{f'the data folder {folder}' if folder else 'XTRANSPLANT_DATA unset'}. Put JSON lines with id, prompt, "
            "choices and label there (the facts: https://github.com/cisnlp/multilingual-fact-tracing), and name the "
            "folder above klar by task.data_dir=... or XTRANSPLANT_DATA."
        )
    return datasets.load_dataset("json", data_files={"test": str(path)})
