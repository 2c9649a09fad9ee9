"""English COPA with the documents of XCOPA's test and validation split: the English side that lm-eval's xcopa lacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets


def load(data_dir: str | None = None, data_files: dict[str, str] | None = None, **_: Any) -> datasets.DatasetDict:
    """Splits `test` (500) and `validation` (100) with lm-eval's xcopa fields: premise, choice1, choice2, question,
    label, idx.

    Args:
        data_dir: folder with `xcopa/en.test.jsonl` and `xcopa/en.validation.jsonl`; else the one that the environment
            variable XTRANSPLANT_DATA names. Where it has no such files, the hub is asked.
        data_files: these files instead, by split.
    """
    folder = data_dir if data_dir is not None else os.environ.get("XTRANSPLANT_DATA")
    if data_files is None and folder:
        files = {split: Path(folder) / "xcopa" / f"en.{split}.jsonl" for split in ("test", "validation")}
        if all(path.is_file() for path in files.values()):
            data_files = {split: str(path) for split, path in files.items()}
    if data_files is not None:
        return datasets.load_dataset("json", data_files=data_files)
    copa = datasets.load_dataset("pkavumba/balanced-copa")
    return datasets.DatasetDict(
        {
            "test": _with_idx(copa["test"]),
            # COPA's items 401 to 500; from 1001 on `train` has items that mirror others, which XCOPA does not have.
            "validation": _with_idx(copa["train"].filter(lambda item: 401 <= item["id"] <= 500)),
        }
    )


def _with_idx(items: datasets.Dataset) -> datasets.Dataset:
    """Add XCOPA's `idx`: COPA's number, counted from 0 in each split."""
    numbers = items["id"]
    first = min(numbers)
    return items.add_column("idx", [number - first for number in numbers])
