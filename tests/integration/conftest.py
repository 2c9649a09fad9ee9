"""A tiny checkpoint and tasks of a user's own, anew for each module, which may change them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import write_tasks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))
