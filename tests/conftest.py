"""Settings and fixtures for every test.

The variables are set before any test module imports torch, and reach the processes that tests start.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist's workers share the cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the hub

DATA_VARIABLE = "XTRANSPLANT_DATA"


def why_no_data() -> str | None:
    """The reason why tests on real data are skipped; None when the data folder is there."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return f"{DATA_VARIABLE} is not set: it names the folder with the evaluation data"
    if not Path(folder).is_dir():
        return f"{DATA_VARIABLE}={folder} is not a folder"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_no_data()
    if reason is None:
        return
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder of pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the evaluation data. A test that asks for it is skipped where there is none."""
    reason = why_no_data()
    if reason is not None:
        pytest.skip(reason)
    return Path(os.environ[DATA_VARIABLE]).resolve()
