"""Imports point one way, the command line starts without torch, and what is imported is declared."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "xtransplant"

# module -> what it may import of the package. A new module gets a line here and in the README's tree.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "config": {"types"},
    "checks": {"types", "config", "disk"},
    "catalogue": {"types", "config", "checks", "disk"},
    "disk": set(),
    "logs": set(),
    "embedded": {"types", "disk"},
    "models": {"types", "config", "disk", "embedded"},
    "training_data": {"types", "config", "catalogue", "checks", "disk", "families", "pairing"},
    "sft": {"types", "config", "embedded", "lm", "loading", "record", "training_data"},
    "loading": {"types", "config", "disk", "embedded", "logs", "models"},
    "engine": {"types"},
    "answer_language": set(),
    "families": {"types", "config", "catalogue", "checks", "disk"},
    "pairing": {"types", "config", "families", "answer_language"},
    "captures": {"types", "disk", "engine"},
    "processor": set(),
    "output_head": {"engine", "processor"},
    "shared_prefix": {"engine"},
    "sweep": {"types", "engine", "output_head", "processor", "shared_prefix"},
    "stats": set(),
    "grid": {"types", "answer_language", "disk"},
    "selection": {"types", "config", "disk", "grid", "models"},
    "strategies": {"types", "grid", "selection", "stats"},
    "comparison": {"types", "grid", "selection", "stats", "strategies"},
    "analysis": {"types", "grid", "stats"},
    "charts": {"types", "grid", "analysis"},
    "grading": {"types", "answer_language", "grid", "pairing"},
    "lm": {"types", "config", "compose", "captures", "engine", "loading", "pairing", "selection", "sweep_lm"},
    "sweep_lm": {"types", "captures", "disk", "engine", "grid", "lm", "selection", "strategies", "sweep"},
    "record": {"types", "checks", "disk", "logs"},
    "measures": {"types", "disk", "answer_language", "record", "stats"},
    "overview": {"types", "config", "answer_language", "families", "grading", "measures", "record", "stats"},
    "tables": {"types", "answer_language", "compare", "conditions", "measures", "overview", "record"},
    "conditions": {"types", "disk", "comparison", "grid", "measures", "overview", "record"},
    "compare": {"types", "conditions", "overview", "record", "stats"},
    "languages": {"catalogue"},
    "command": {"config", "checks", "catalogue"},
    "report": {
        *(
            "types",
            "config",
            "catalogue",
            "disk",
            "models",
            "grid",
            "analysis",
            "selection",
            "record",
            "measures",
            "overview",
        ),
        *("compare", "languages", "command"),
    },
    "exchange": {"types"},
    "bundle": {"types", "checks", "disk", "embedded", "exchange", "models", "record"},
    "difference": {"types", "config", "checks", "bundle", "grid", "tables"},
    "reproduction": {
        *("types", "config", "checks", "bundle", "command", "compose", "grid", "record", "tables"),
    },
    "tracking": {"config"},
    "tracking_worker": {"types", "exchange", "record", "measures", "overview", "grid", "analysis", "charts"},
    "compose": {
        *("types", "config", "checks", "bundle", "catalogue", "exchange", "families", "models", "record"),
        *("selection", "training_data"),
    },
    "grid_jobs": {
        *("types", "config", "checks", "disk", "loading", "logs", "pairing", "record", "tables", "jobs", "lm", "sweep"),
        *("sweep_lm", "grid", "grading", "selection", "strategies", "comparison", "analysis", "charts"),
        "report",
    },
    "jobs": {
        "types",
        "charts",
        "families",
        "config",
        "models",
        "loading",
        "logs",
        "engine",
        "grading",
        "pairing",
        "lm",
        "record",
        "compare",
        "conditions",
        "overview",
        "command",
        "tables",
        "selection",
        "sft",
        "tracking",
        "training_data",
    },
    "share_jobs": {
        *("types", "config", "bundle", "difference", "exchange", "jobs", "grid_jobs", "loading", "pairing", "record"),
        "reproduction",
    },
    "multirun": {"types", "config", "compose", "jobs", "grid_jobs", "logs", "record", "tables", "tracking"},
    "cli": {
        *("types", "config", "checks", "catalogue", "compose", "jobs", "grid_jobs", "share_jobs", "logs", "multirun"),
        "record",
    },
}
# Each of them costs seconds; `--help` and refusals must not pay that.
HEAVY = ("torch", "transformers", "lm_eval", "datasets")


def imported_modules(source: str) -> set[str]:
    """Full names of everything that is imported anywhere in `source`, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # All modules lie in one folder, so one leading dot is the package itself.
            base = ".".join(part for part in ("xtransplant" if node.level else "", node.module or "") if part)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def imported_siblings(source: str, modules: set[str]) -> set[str]:
    """Those of `modules` of the package that `source` imports."""
    parts = [name.split(".") for name in imported_modules(source)]
    return {name[1] for name in parts if name[0] == "xtransplant" and len(name) > 1 and name[1] in modules}


def top_level_modules(folder: Path) -> set[str]:
    return {
        name.split(".")[0]
        for path in folder.rglob("*.py")
        for name in imported_modules(path.read_text(encoding="utf-8"))
    }


def test_every_module_has_a_line_in_the_table() -> None:
    present = {path.stem for path in SOURCES.glob("*.py")} - {"__init__", "__main__"}
    new = sorted(present - set(ALLOWED))
    assert not new, f"add {new} to ALLOWED in {Path(__file__).name}"


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_imports_point_one_way(module: str) -> None:
    path = SOURCES / f"{module}.py"
    found = imported_siblings(path.read_text(encoding="utf-8"), set(ALLOWED))
    wrong = sorted(found - ALLOWED[module])
    assert not wrong, f"{path.name} may import {sorted(ALLOWED[module])} of the package, but imports {wrong}"


def test_siblings_are_found_in_every_spelling() -> None:
    modules = {"types", "engine", "lm"}
    assert imported_siblings("import xtransplant.types", modules) == {"types"}
    assert imported_siblings("from xtransplant import engine as e", modules) == {"engine"}
    assert imported_siblings("def f():\n    from xtransplant.lm import A, B", modules) == {"lm"}
    assert imported_siblings("from . import types\nfrom .engine import X", modules) == {"types", "engine"}
    assert imported_siblings("import types, lm_eval\nfrom xtransplant import __version__", modules) == set()


@pytest.mark.parametrize("module", ["types", "config", "catalogue", "cli", "bundle"])
def test_light_modules_do_not_load_torch(module: str) -> None:
    program = f"import sys, xtransplant.{module}; print(*sorted(set(sys.modules) & set({HEAVY})))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_what_is_imported_is_declared() -> None:
    """A package that is there only because another one needs it may be gone with that one's next release."""
    requirements = importlib.metadata.requires("xtransplant") or []
    declared = {
        re.split(r"[\s\[<>=!~;(]", requirement)[0].lower().replace("_", "-")
        for requirement in requirements
        # The job that needs it says so when it is not there.
        if "extra ==" not in requirement or 'extra == "sft"' in requirement
    }
    distributions = importlib.metadata.packages_distributions()
    imported = top_level_modules(SOURCES) | top_level_modules(ROOT / "tasks")
    third_party = {name for name in imported if name in distributions and "xtransplant" not in distributions[name]}
    undeclared = {
        name: distributions[name]
        for name in sorted(third_party)
        if not declared & {each.lower().replace("_", "-") for each in distributions[name]}
    }
    assert not undeclared, f"add to the dependencies in pyproject.toml: {undeclared}"
