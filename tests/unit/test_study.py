"""The page of results says what the results say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> Any:
    """A file of benchmarks/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study() -> Any:
    return script("study")


def test_the_page_is_that_of_the_results(study: Any) -> None:
    text, picture = study.page()
    assert (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8") == text
    assert picture.startswith("<?xml")


def test_results_are_of_the_pieces_that_the_study_names(study: Any) -> None:
    for path in (ROOT / "docs" / "results").glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert tuple(result["piece"]) in study.PIECES
        assert path.stem == study.name_of(result["piece"])


def test_the_page_of_conditions_is_that_of_its_table() -> None:
    conditions = script("conditions")
    text, picture = conditions.page(conditions.records())
    assert (ROOT / "docs" / "results" / "conditions.md").read_text(encoding="utf-8") == text
    assert picture.startswith("<?xml")
