"""Fixtures for the tests of `embedded`, `models` and `loading`."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.equivalence.tiny import save_checkpoint
from tests.unit.model_files import Packages, sha256, write_gguf
from xtransplant import loading, models


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh cache folder, nothing loaded yet, an empty hub cache."""
    folder = tmp_path / "home"
    monkeypatch.setenv("XTRANSPLANT_HOME", str(folder))
    monkeypatch.setattr(loading, "_last", None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    models._hub_json.cache_clear()
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def packages(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    content = tiny_gguf.read_bytes()
    return Packages([content[:5000], content[5000:]], monkeypatch)


@pytest.fixture
def hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's cache after `org/tiny` was downloaded, and no network. Returns the commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot = repository / "snapshots" / commit
    for part in ("blobs", "refs"):
        (repository / part).mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for path in llama.iterdir():
        # As the hub names them: large files by their sha256, small ones by git's hash.
        blob = sha256(path) if path.suffix == ".safetensors" else hashlib.sha1(path.read_bytes()).hexdigest()
        shutil.copy(path, repository / "blobs" / blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob)
    return commit
