"""Bundles: what is written and read, what is withheld, what is refused, short names, addresses; differences of runs.

The run is small and made up. What is refused is a bundle that was taken apart and put together again with one fault.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.unit.grids import choice_grid
from tests.unit.runs import a_sample
from xtransplant import bundle, cli, difference, exchange, record
from xtransplant.bundle import opened
from xtransplant.types import XTransplantError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "bundle_format_1.zip"
SHORT = "3fa9c1d20b77"


def a_run(
    place: Path,
    short: str = SHORT,
    job: str = "evaluate",
    task: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    selection: dict[str, Any] | None = None,
    files: dict[str, str] | None = None,
    scores: tuple[float, ...] = (1.0, 0.0, 1.0),
    logprob: float = -2.0,
    **config: Any,
) -> Path:
    """A finished run's folder."""
    folder = place / job / f"tiny-colour-en-sw-vanilla-{short}"
    asked = {
        "model": {"path": "somebody/tiny", "adapter": None},
        "task": {"name": "colour", "include_path": [], "licence": "CC0", "redistribute": True} | (task or {}),
        "language_pair": {"source": "en", "target": "sw"},
        "output_dir": str(place),
    }
    record.open_run(folder, yaml.safe_dump(asked | config))
    results = {
        "results": {"colour_sw": {"acc,none": sum(scores) / len(scores), "alias": "colour_sw"}},
        "config": {"model_args": {"selection": selection} if selection else {}},
    }
    record.write(folder / "results.json", record.as_json(results))
    rows = [
        a_sample(number, "acc", score)
        | {
            "doc": {"question": f"{number}?", "label": 1},
            "target": 1,
            "filtered_resps": [[logprob, False], [-9.0, True]],
        }
        for number, score in enumerate(scores)
    ]
    record.write(folder / "samples_colour_sw.jsonl", "".join(record.as_json(row, indent=None) for row in rows))
    for name, text in (files or {}).items():
        record.write(folder / name, text)
    if job == "grid":
        choice_grid(documents=4, num_layers=2, best=None).save(folder / "grid.npz")
    facts = {
        "job": job,
        "config_hash": short,
        "model": {"files": {"model.safetensors": "ab12"}, "adapter": None, "dtype": "float32"} | (model or {}),
        "environment": {"python": "3.11.7", "platform": "Linux", "versions": {"torch": "2.13.0+cpu"}, "git": None},
        "tasks": {"colour_sw": {"documents": len(scores), "prompts_sha256": {"source": "a", "target": "b"}}},
    }
    record.close_run(folder, facts)
    return folder


def reopened(run: Path) -> dict[str, Any]:
    """The facts of a finished run, which is to be closed again after a change."""
    facts: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    (run / "manifest.json").unlink()
    return {name: value for name, value in facts.items() if name not in ("format", "files")}


def export(*given: str) -> int:
    return cli.main(["export", *given])


@contextmanager
def exported(run: Path, path: Path, **how: Any) -> Iterator[bundle.Opened]:
    """A run that went through a bundle."""
    with opened(run) as own:
        bundle.write(own, path, **how)
    with opened(path) as found:
        yield found


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# --- What is in it -------------------------------------------------------------------------------------------------


def test_a_bundle_gives_the_run_back(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with exported(run, tmp_path / "a.zip") as found:
        assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == {
            path.name: path.read_bytes() for path in run.iterdir()
        }
        assert record.load_run(found.folder) is not None
        assert (found.folder.name, found.folder.parent.name, found.short) == (run.name, "evaluate", SHORT)
        assert found.config["task"]["name"] == "colour" and found.withheld == {}
        assert found.results["results"]["colour_sw"]["acc,none"] == pytest.approx(2 / 3)
        assert [row["key"] for row in found.samples("colour_sw")] == ["k0", "k1", "k2"]
        there = found.folder
    assert not there.exists()  # it is for as long as it is open


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with exported(a_run(tmp_path / name, output_dir="outputs"), tmp_path / f"{name}.zip"):
            pass
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_bundle_is_read_by_zipfile_and_json_alone(tmp_path: Path) -> None:
    with exported(a_run(tmp_path), tmp_path / "a.zip"):
        pass
    program = """if True:
        import hashlib, json, sys, zipfile
        bundle = zipfile.ZipFile(sys.argv[1])
        facts = json.loads(bundle.read("bundle.json"))
        assert {n: hashlib.sha256(bundle.read(n)).hexdigest() for n in bundle.namelist() if n != "bundle.json"} \
            == facts["files"]
        assert "xtransplant" not in sys.modules
        print(facts["format"], facts["short"], json.loads(bundle.read("run/results.json"))["results"]["colour_sw"])
        print(bundle.read("README.txt").decode())
    """
    arguments = [sys.executable, "-I", "-c", program, str(tmp_path / "a.zip")]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"1 {SHORT} {{'acc,none': 0.66")
    assert "samples_*.jsonl" in said and "licence: CC0" in said


@pytest.mark.parametrize(
    ("task", "samples", "why"),
    [
        ({"redistribute": None}, None, "it is not known whether the data of colour may be passed on"),
        ({"redistribute": False, "licence": "CC BY-NC 4.0"}, None, "colour (CC BY-NC 4.0) may not be passed on"),
        ({}, False, "as was asked for (samples=false)"),
        ({}, None, None),
        ({"redistribute": False}, True, None),
    ],
)
def test_texts_of_documents_are_passed_on_only_where_that_is_allowed(
    task: dict[str, Any], samples: bool | None, why: str | None, tmp_path: Path
) -> None:
    run = a_run(tmp_path, task=task)
    with exported(run, tmp_path / "a.zip", samples=samples) as found:
        entry = "run/samples_colour_sw.jsonl"
        text = contents(tmp_path / "a.zip")[entry].decode()
        if why is None:
            assert found.withheld == {} and text == (run / "samples_colour_sw.jsonl").read_text(encoding="utf-8")
            return
        whole = hashlib.sha256((run / "samples_colour_sw.jsonl").read_bytes()).hexdigest()
        assert found.withheld[entry]["sha256"] == whole == found.manifest["files"]["samples_colour_sw.jsonl"]
        assert why in found.withheld[entry]["why"] and why in contents(tmp_path / "a.zip")["README.txt"].decode()
        assert "0?" not in text and "source" not in text.replace("source_prompts", "")
        first = found.samples("colour_sw")[0]
        assert first["source_prompts"] == [f"sha256:{hashlib.sha256(b'source 0?').hexdigest()}"]
        assert (first["acc"], first["key"], first["filtered_resps"]) == (1.0, "k0", [[-2.0, False], [-9.0, True]])
        # The folder is a run's still, which all jobs read.
        assert record.load_run(found.folder) is not None


def test_settings_of_generation_are_no_text_of_a_document() -> None:
    row = {
        "key": "k",
        "arguments": [["What?", {"until": ["\n"]}]],
        "bleu": ["gold text", "answer"],
        "resps": [["said"]],
    }
    found = bundle.redacted(row)
    assert found["arguments"][0][0].startswith("sha256:") and found["arguments"][0][1] == {"until": ["\n"]}
    assert all(each.startswith("sha256:") for each in found["bleu"]) and found["resps"] == [["said"]]


def test_selection_adapter_and_tasks_come_along(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 8)
    (adapter / "trained_on.json").write_text("{}", encoding="utf-8")
    tasks = tmp_path / "tasks"
    (tasks / "__pycache__").mkdir(parents=True)
    (tasks / "__pycache__" / "x.py").write_text("", encoding="utf-8")
    (tasks / "colour_sw.yaml").write_text("task: colour_sw\n", encoding="utf-8")
    (tasks / "sw.jsonl").write_text("{}\n", encoding="utf-8")
    (tasks / "sw.txt").write_text("documents, a line each\n", encoding="utf-8")
    (tasks / "passwords.yaml").symlink_to("/etc/passwd")
    sums = {"adapter_model.safetensors": hashlib.sha256(bytes(range(256)) * 8).hexdigest()}
    run = a_run(
        tmp_path,
        model={"adapter": {"path": str(adapter), "files": sums}},
        task={"include_path": [str(tasks)]},
        selection={"format": 1, "strategy": "overall", "cells": [["ffn", 1, 0]]},
    )
    with exported(run, tmp_path / "a.zip") as found:
        assert found.selection is not None and found.adapter is not None
        [chosen] = json.loads(found.selection.read_text(encoding="utf-8"))["selections"]
        assert chosen["cells"] == [["ffn", 1, 0]]
        assert {path.name for path in found.adapter.iterdir()} == {"adapter_model.safetensors", "trained_on.json"}
        assert [[path.name for path in folder.iterdir()] for folder in found.include_path] == [["colour_sw.yaml"]]
        assert set(found.withheld) == {"tasks/0/sw.jsonl", "tasks/0/sw.txt", "tasks/0/passwords.yaml"}
        assert b"root:" not in b"".join(contents(tmp_path / "a.zip").values())
    with exported(run, tmp_path / "b.zip", largest=0.001) as found:
        assert found.withheld["adapter/adapter_model.safetensors"]["sha256"] == sums["adapter_model.safetensors"]
        assert found.adapter is None
    (adapter / "adapter_model.safetensors").write_bytes(b"other")
    with opened(run) as own, pytest.raises(XTransplantError, match=r"adapter_model\.safetensors has changed since"):
        bundle.write(own, tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def test_weights_of_a_training_are_a_hash_where_they_are_large(tmp_path: Path) -> None:
    run = a_run(tmp_path, job="sft", files={"model.safetensors": "weights" * 1000})
    with exported(run, tmp_path / "a.zip", largest=0.001) as found:
        assert not (found.folder / "model.safetensors").exists()
        assert "7000 bytes of weights" in found.withheld["run/model.safetensors"]["why"]
        assert record.load_run(found.folder) is not None
        assert "model.safetensors" in found.manifest["files"]  # as the run wrote it


def test_the_lock_is_what_the_run_had(tmp_path: Path) -> None:
    text = bundle.lock(
        {"python": "3.11.7", "versions": {"torch": "2.0.1+cpu", "xtransplant": "0.0.9", "lm_eval": "0.4"}}
    )
    lines = text.splitlines()
    assert (
        "torch==2.0.1  # 2.0.1+cpu" in lines and "lm-eval==0.4" in lines and any("pyyaml==" in each for each in lines)
    )
    assert "# xtransplant 0.0.9" in text and not any(each.startswith("xtransplant") for each in lines)


def test_export_and_what_stands_in_its_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, to = a_run(tmp_path / "outputs"), f"output_dir={tmp_path / 'outputs'}"
    assert export(f"run={run}", to) == 0
    made = tmp_path / "outputs" / "bundles" / f"{run.name}.zip"
    assert capsys.readouterr().out.splitlines()[-1] == str(made) and made.stat().st_mode & 0o077 == 0o044
    assert export(f"run={SHORT[:6]}", to) == 0  # the same bytes: nothing is replaced
    assert export(f"run={SHORT[:6]}", to, "samples=false") == 2
    assert "there is another file" in capsys.readouterr().err
    assert export(f"run={SHORT[:6]}", to, "samples=false", "overwrite=true") == 0
    assert "withheld: run/samples_colour_sw.jsonl: " in capsys.readouterr().out
    assert export(f"run={made}", f"to={tmp_path / 'elsewhere'}") == 0  # a bundle as it is
    assert (tmp_path / "elsewhere" / made.name).read_bytes() == made.read_bytes()
    # … or not at all: texts that it has are not taken out of it, nor put in.
    capsys.readouterr()
    assert export(f"run={made}", f"to={tmp_path / 'c'}", "samples=true") == 2
    assert "its documents' texts are hashes" in capsys.readouterr().err
    assert export(f"run={run}", f"to={tmp_path / 'whole.zip'}") == 0
    assert export(f"run={tmp_path / 'whole.zip'}", f"to={tmp_path / 'c'}", "samples=false") == 2
    assert "its documents' texts are in it" in capsys.readouterr().err and not (tmp_path / "c").exists()
    assert export(f"run={tmp_path}") == 2
    assert "is no run's folder; 1 lie below it. Give the folder of one run, e.g. " in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert export(f"run={run}", f"to={tmp_path / 'file' / 'a.zip'}") == 2
    assert "cannot be written" in capsys.readouterr().err
    (run / "results.json").write_text("{}", encoding="utf-8")
    assert export(f"run={run}", f"to={tmp_path / 'b.zip'}") == 2
    assert "results.json was changed after its run" in capsys.readouterr().err
    assert export(f"run={run}", "largest=-1") == 2
    assert "largest=-1.0: wrong value" in capsys.readouterr().err


# --- Formats -------------------------------------------------------------------------------------------------------


def test_a_bundle_of_format_1_still_opens() -> None:
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest().startswith("c36b9549cc0181e7")
    with opened(GOLDEN) as found:
        assert (found.content["format"], found.short) == (1, "03cb2c0db698")
        assert found.config["transplant"]["layers"] == [20, 10] and found.manifest["job"] == "evaluate"
        assert found.results["results"]["cldr_language_sw"]["acc,none"] == 1.0
        assert [row["key"] for row in found.samples("cldr_language_sw")] == ["language:SE", "language:NP"]
        assert found.withheld == {} and found.selection is None and found.adapter is None and found.include_path == []
        assert record.load_run(found.folder) is not None


def test_what_a_later_version_adds_to_the_format_is_left_alone(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda parts, facts: parts.update({"more/notes.txt": b"!"}) or facts.update(new=[1]))
    with opened(path) as found:
        assert found.content["new"] == [1]


# --- What is refused -----------------------------------------------------------------------------------------------

Parts = dict[str, bytes]
Change = Callable[[Parts, dict[str, Any]], Any]


def changed(folder: Path, change: Change, then: Callable[[Path], Any] = lambda path: None) -> Path:
    """The golden bundle with a change of its parts and of bundle.json, whose hashes are made to fit; then of the zip.

    What `bundle.json` says of a file after a change of its own is left as it is.
    """
    parts = contents(GOLDEN)
    facts = json.loads(parts.pop("bundle.json"))
    before = dict(parts)
    change(parts, facts)
    for name in parts.keys() | before.keys():
        if name in parts and parts[name] != before.get(name) and name != "bundle.json":
            facts["files"].setdefault(name, "")
            if name in before or facts["files"][name] == "":
                facts["files"][name] = hashlib.sha256(parts[name]).hexdigest()
    parts.setdefault("bundle.json", json.dumps(facts).encode())
    path = folder / "changed.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    then(path)
    return path


def add(name: str, content: bytes = b"x") -> Change:
    return lambda parts, facts: parts.update({name: content})


def edit(name: str, old: bytes, new: bytes) -> Change:
    def change(parts: Parts, facts: dict[str, Any]) -> None:
        assert old in parts[name]
        parts[name] = parts[name].replace(old, new, 1)

    return change


def without(name: str) -> Change:
    return lambda parts, facts: parts.pop(name)


def said(**given: Any) -> Change:
    return lambda parts, facts: facts.update(given)


def instead(text: str) -> Change:
    return lambda parts, facts: parts.update({"bundle.json": text.encode()})


MANIFEST, CONFIG = "run/manifest.json", "run/config.yaml"
WRONG: dict[str, tuple[Change, str]] = {
    "absolute": (add("/etc/cron.d/x"), "/etc/cron.d/x: an absolute path"),
    "parent": (add("run/../../x"), "run/../../x: its path leads out"),
    "parent at the end": (add("run/.."), r"run/\.\.: its path leads out"),
    "drive": (add("C:/x"), "C:/x: an absolute path, a drive"),
    "backslash": (add("run\\..\\..\\x"), "a character that a path of a bundle has not"),
    "stream": (add("run/a:b"), "a character that a path"),
    "device": (add("run/nul.txt"), "cannot be written everywhere"),
    "blank at the end": (add("run/a "), "cannot be written everywhere"),
    "empty part": (add("run//a"), "cannot be written everywhere"),
    "control character": (add("run/a\nb"), r"'run/a\\nb': its name cannot be shown"),
    "turns the reading direction": (add("run/\u202egpj.exe"), "its name cannot be shown"),
    "long": (add("run/" + "a" * 300), "cannot be written everywhere"),
    "folder": (add("more/", b""), "more/: "),
    "same in other case": (add("RUN/Config.yaml"), "RUN/Config.yaml: there twice, the other as run/config.yaml"),
    "same in another spelling": (lambda p, f: p.update({"a/é": b"x", "a/e\u0301": b"x"}), "there twice"),
    "below a file": (add("lock.txt/x"), "lock.txt/x: lies below what is a file"),
    "not named": (lambda p, f: p.update({"x.txt": b"x"}) or f["files"].update({"x.txt": "0" * 63}), "x.txt: "),
    "missing": (
        lambda p, f: f["files"].update({"run/more": "0" * 64}),
        "run/more: named in bundle.json, and not there",
    ),
    "other hash": (lambda p, f: f["files"].update({"lock.txt": "0" * 64}), "lock.txt: its hash is not the one"),
    "no bundle.json": (lambda p, f: p.update({"bundle.json": b""}), "bundle.json: not the JSON"),
    "no manifest": (lambda p, f: (p.pop(MANIFEST), f["files"].pop(MANIFEST)), "run/manifest.json: missing"),
    "newer format": (said(format=2), "bundle.json: format 2, written by xtransplant .*; this version reads 1. Update"),
    "no format": (said(format="1"), "bundle.json: no bundle's"),
    "true for 1": (said(format=True), "bundle.json: no bundle's"),
    "other job": (said(job="doctor"), "a run of 'doctor'"),
    "job of a path": (said(job="../x"), "a run of"),
    "name of a path": (said(name="../../x"), "cannot be a folder's name"),
    "files no object": (said(files=[]), "files is missing, or no object"),
    "other short name": (said(short="0" * 12), "manifest.json: its config_hash is not the one"),
    "nothing": (instead("null"), "no bundle's"),
    "depth": (instead("[" * 100_000), "bundle.json: nested too deep"),
    "NaN": (instead('{"format": NaN}'), "NaN, which is no number"),
    "infinite": (instead('{"format": 1e999}'), "a number that is too large"),
    "digits": (instead('{"format": ' + "9" * 10_000 + "}"), "a number of 10000 digits"),
    "twice": (instead('{"format": 1, "format": 1}'), "a name twice"),
    "not UTF-8": (lambda p, f: p.update({"bundle.json": b"\xff{}"}), "bundle.json: no text"),
    "run file that no manifest names": (add("run/more.json"), "run/more.json: not named in manifest.json"),
    "other samples": (edit("run/samples_cldr_language_sw.jsonl", b"0", b"1"), "not the file that manifest.json names"),
    "other results": (edit("run/results.json", b"1.0", b"0.0"), "run/results.json: not the file that manifest"),
    "manifest of nothing": (lambda p, f: p.update({MANIFEST: b"{}"}), "not a manifest"),
    "manifest of NaN": (edit(MANIFEST, b'"num_layers": 30', b'"num_layers": NaN'), "manifest.json: not the JSON"),
    "withheld without a hash": (said(withheld={"x": {"why": "so"}}), "x: bundle.json gives it no sha256"),
    "withheld without a word": (said(withheld={"x": 1}), "x: bundle.json does not say why"),
    "folder of tasks": (add("tasks/x/y.yaml"), "below tasks/ are numbered folders"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bundle_with_a_fault_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    change, match = WRONG[case]
    path = changed(tmp_path, change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(XTransplantError, match=match) as refused, opened(path):
        pass
    assert str(refused.value).startswith(f"run={path}: ")
    assert sorted(tmp_path.rglob("*")) == before and not Path("/etc/cron.d/x").exists()


def _patched(offset: int, code: str, value: int, name: str = "README.txt") -> Callable[[Path], None]:
    """A field in the list of entries at the end, where it is found by the entry's name, which follows it."""

    def patch(path: Path) -> None:
        content = bytearray(path.read_bytes())
        place = content.rindex(name.encode()) - 46
        assert content[place : place + 4] == b"PK\x01\x02"
        struct.pack_into(code, content, place + offset, value)
        path.write_bytes(content)

    return patch


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def _middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    path.write_bytes(content)


ZIPS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "link": (_patched(38, "<I", (stat.S_IFLNK | 0o777) << 16), "README.txt: a link"),
    "device": (_patched(38, "<I", (stat.S_IFCHR | 0o666) << 16), "README.txt: a link, a folder or a device"),
    "encrypted": (_patched(8, "<H", 1), "README.txt: encrypted"),
    "bzip2": (_patched(10, "<H", 12), "README.txt: compressed by method 12"),
    "method of nobody": (_patched(10, "<H", 77), "README.txt: compressed by method 77"),
    "larger than it says": (_patched(24, "<I", 10), "README.txt: "),
    "smaller than it says": (_patched(24, "<I", 100_000), "README.txt: damaged"),
    "bomb by its header": (_patched(24, "<I", 4_000_000_000), "README.txt: .* a zip bomb"),
    "wrong check sum": (_patched(16, "<I", 1), "README.txt: damaged"),
    "cut": (_cut, "not a bundle"),
    "not a zip": (lambda path: path.write_bytes(b"x" * 1000), "not a bundle"),
    "empty": (lambda path: path.write_bytes(b""), "not a bundle"),
    "more behind it": (lambda path: path.write_bytes(path.read_bytes() + b"#!"), "not a bundle"),
    "overwritten in the middle": (_middle, "damaged"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_a_zip_with_a_fault_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    then, match = ZIPS[case]
    path = changed(tmp_path, lambda parts, facts: None, then)
    with pytest.raises(XTransplantError, match=match) as refused, opened(path):
        pass
    assert str(refused.value).startswith(f"run={path}: ")


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda parts, facts: None)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore", UserWarning)  # zipfile's own, of what is done here on purpose
        archive.writestr("run/config.yaml", "other")
    with pytest.raises(XTransplantError, match=r"run/config.yaml: there twice"), opened(path):
        pass


@pytest.mark.parametrize(
    ("limit", "value", "match"),
    [
        ("MAX_ENTRIES", 3, "entries"),
        ("MAX_DIRECTORY", 100, "entries or more"),
        ("MAX_BYTES", 9_000, "in all from"),
        ("MAX_JSON", 300, "larger than"),
    ],
)
def test_what_is_large_is_refused_before_it_is_written(
    limit: str, value: int, match: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bundle, limit, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(XTransplantError, match=match), opened(GOLDEN):
        pass
    assert list(tmp_path.rglob("*")) == []


def test_a_bomb_is_refused_though_its_bytes_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = changed(tmp_path, add("tasks/0/zeros.txt", bytes(3 << 20)))
    with pytest.raises(XTransplantError, match=r"tasks/0/zeros.txt: .* a zip bomb"), opened(path):
        pass
    # Its header says less than comes out, and fits what it says.
    monkeypatch.setattr(zipfile.ZipExtFile, "_update_crc", lambda *_: None)
    path = changed(tmp_path, add("tasks/0/zeros.txt", bytes(3 << 20)), _patched(24, "<I", 1000, "tasks/0/zeros.txt"))
    with pytest.raises(XTransplantError, match=r"tasks/0/zeros.txt: "), opened(path):
        pass


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("model: !!python/object/apply:os.system ['touch /tmp/x']", "not the config of a run"),
        ("a: &a [*a]", "a value that holds itself"),
        ("- a", "not lines of key: value"),
        ("[" * 20_000, "nested too deep|not the config"),
        ("a: [", "not the config of a run"),
        ("1: 2", "not lines of key: value"),
    ],
)
def test_a_config_is_values_and_nothing_else(text: str, match: str) -> None:
    with pytest.raises(XTransplantError, match=match) as refused:
        bundle.read_config(text, "a.zip: run/config.yaml")
    assert str(refused.value).startswith("a.zip: run/config.yaml: ")


# --- Short names ---------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_short_name(tmp_path: Path) -> None:
    first = a_run(tmp_path / "outputs")
    second = a_run(tmp_path / "outputs" / "study", short="3fa9c1ffffff", job="grid")
    for given in ("3fa9c1d", SHORT):
        with opened(given, output_dir=tmp_path / "outputs") as found:
            assert found.folder == first
    with opened("3fa9c1f", output_dir=tmp_path / "outputs") as found:
        assert found.folder == second
    with opened(str(tmp_path / "outputs" / "*" / "*-vanilla-*")) as found:
        assert found.folder == first
    # The same config in another place: the nearest is meant.
    a_run(tmp_path / "outputs" / "demo")
    with opened(SHORT, output_dir=tmp_path / "outputs") as found:
        assert found.folder == first


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("3fa9c1", "2 runs below .* have a name that begins so: .*3fa9c1d20b77, .*3fa9c1ffffff. Give more digits"),
        ("3fb000", "no finished run below .* has this short name. Its 2 runs: "),
        ("3fa9c", "there is no such run or file. A short name has 6 to 12 lower-case hex digits"),
        ("3FA9C1", "A short name has 6 to 12 lower-case"),
        ("nothing.zip", "there is no such run or file. Give a run's folder, a bundle"),
        ("a\0b", "there is no such run or file"),
        ("x" * 5000, "there is no such run or file"),
    ],
)
def test_what_no_run_is_found_by_is_said(given: str, match: str, tmp_path: Path) -> None:
    a_run(tmp_path)
    a_run(tmp_path, short="3fa9c1ffffff")
    with pytest.raises(XTransplantError, match=match), opened(given, "a", tmp_path):
        pass


def test_a_short_name_that_looks_like_a_number_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for short in ("4e1234567890", "123456789012"):
        a_run(tmp_path, short=short)
        assert export(f"run={short}", f"output_dir={tmp_path}") == 0
        assert f"-{short}.zip" in capsys.readouterr().out
    assert cli.main(["diff", "4e123456", "123456789", f"output_dir={tmp_path}"]) == 0


# --- Differences ---------------------------------------------------------------------------------------------------


def levels(one: Path, two: Path, tolerance: float = 0.0) -> dict[str, difference.Level]:
    with opened(one) as a, opened(two) as b:
        return {level.name: level for level in difference.differences(a, b, tolerance)}


def test_a_run_and_its_bundle_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, task={"redistribute": None})
    with exported(run, tmp_path / "a.zip"):
        pass
    assert cli.main(["diff", str(run), str(tmp_path / "a.zip")]) == 0
    assert "The same: job, config" in capsys.readouterr().out


def test_where_a_run_was_done_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = a_run(tmp_path / "a"), a_run(tmp_path / "b", batch_size=3)
    assert cli.main(["diff", str(one), str(two)]) == 0
    shown = capsys.readouterr().out
    assert "where and how (does not count)" in shown and "batch_size" in shown


def test_what_differs_is_said_level_by_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = a_run(tmp_path / "a")
    two = a_run(
        tmp_path / "b", model={"files": {"model.safetensors": "cd34"}}, limit=3, scores=(1.0, 1.0, 1.0), logprob=-2.25
    )
    assert cli.main(["diff", f"a={one}", str(two)]) == 2  # the word is a, which is given already
    assert cli.main(["diff", str(one), str(two)]) == 1
    shown = capsys.readouterr().out
    assert "model.safetensors  ab12  cd34" in shown
    found = levels(one, two)
    assert found["config"].rows == [("limit", "null", "3", "")]
    assert found["metrics"].rows == [("colour_sw.acc,none", "0.666667", "1", "+0.333333")]
    assert found["responses"].notes == [
        "colour_sw: 3 of 3 documents have another response, e.g. k0",
        "colour_sw: 1 of 3 documents have another score, e.g. k1",
        "colour_sw: log-probabilities differ by up to 0.25, in k0",
    ]
    assert not found["data"].differs and not found["prompts"].differs
    assert "another response" not in str(levels(one, two, tolerance=0.3)["responses"].notes)


def test_documents_that_only_one_has_or_that_were_asked_otherwise(tmp_path: Path) -> None:
    one, two = a_run(tmp_path / "a"), a_run(tmp_path / "b", scores=(1.0, 0.0))
    assert "colour_sw: 1 documents only in a" in levels(one, two)["responses"].notes
    text = (two / "samples_colour_sw.jsonl").read_text(encoding="utf-8").replace('"source 0?"', '"other"')
    record.write(two / "samples_colour_sw.jsonl", text)
    manifest = reopened(two)
    record.close_run(two, manifest)
    assert "colour_sw: 1 of 2 documents were asked otherwise, e.g. k0" in levels(one, two)["responses"].notes


@pytest.mark.parametrize(
    "facts",
    [
        {"tasks": {"colour_sw": 3}},
        {"model": {"adapter": "mine"}},
        {"tasks": ["colour_sw"]},
        {"environment": {"versions": 1, "git": []}, "tasks": 7},
    ],
)
def test_records_of_another_form_are_no_difference(
    facts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "a")
    other = a_run(tmp_path / "b")
    record.close_run(other, reopened(other) | facts)
    assert cli.main(["diff", str(run), str(other)]) == 2
    said = capsys.readouterr().err
    assert "cannot be compared" in said or "is damaged" in said or "cannot be read" in said


def test_grids_are_compared_cell_by_cell(tmp_path: Path) -> None:
    one, two = a_run(tmp_path / "a", job="grid"), a_run(tmp_path / "b", job="grid")
    assert not levels(one, two)["cells"].differs
    grid = choice_grid(documents=4, num_layers=2, best=None)
    assert grid.logprob is not None
    grid.logprob[1, 2, 0] += 0.5
    grid.scores[0, 3, 0] = 1 - grid.scores[0, 3, 0]
    manifest = reopened(two)
    grid.save(two / "grid.npz")
    record.close_run(two, manifest)
    notes = levels(one, two)["cells"].notes
    cell = grid.cells[2]
    place = f"{cell.component.value} {cell.source}>{cell.target}, {grid.documents[1]}"
    assert notes[0] == f"log-probabilities: 1 of 32 differ, by up to 0.5 ({place})"
    assert notes[1].startswith("acc: 1 of 32 differ, by up to 1 (")


# --- Addresses -----------------------------------------------------------------------------------------------------


class Hub:
    """Stands in for huggingface_hub's client: a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **given: Any) -> None:
        self.asked.append((repo_id, given))

    def upload_file(self, *, path_or_fileobj: Path, path_in_repo: str, repo_id: str, **given: Any) -> str:
        to = self.folder / repo_id / path_in_repo
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path_or_fileobj, to)
        return f"https://huggingface.co/datasets/{repo_id}/blob/main/{path_in_repo}"

    def get_paths_info(self, repo_id: str, paths: list[str], **given: Any) -> list[Any]:
        self.asked.append((repo_id, given))
        there = self.folder / repo_id / paths[0]
        return [SimpleNamespace(size=there.stat().st_size)] if there.exists() else []

    def hf_hub_download(self, repo_id: str, filename: str, **given: Any) -> str:
        return str(self.folder / repo_id / filename)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in.hf_hub_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return stand_in


def test_a_bundle_goes_to_the_hub_and_comes_back(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, address = a_run(tmp_path), "hf://datasets/someone/runs/tiny/vanilla.zip"
    assert export(f"run={run}", f"to={address}") == 0
    assert "https://huggingface.co/datasets/someone/runs/blob/main/tiny/vanilla.zip" in capsys.readouterr().out
    assert hub.asked == [("someone/runs", {"repo_type": "dataset", "private": True, "exist_ok": True})]
    assert cli.main(["diff", str(run), address]) == 0
    with opened(f"{address}@abc123") as found:
        assert found.short == SHORT and hub.asked[-1][1]["revision"] == "abc123"
    with pytest.raises(XTransplantError, match="the repository has no such file"), opened(address[:-4] + "2.zip"):
        pass
    monkeypatch.setattr(bundle, "MAX_BYTES", 10)
    with pytest.raises(XTransplantError, match="a bundle has at most 0 MB"), opened(address):
        pass
    monkeypatch.setattr(hub, "get_paths_info", lambda *_, **__: 1 / 0)
    with (
        pytest.raises(XTransplantError, match=r"ZeroDivisionError: .*are you logged in \(hf auth login\)"),
        opened(address),
    ):
        pass


def test_the_commands_of_the_page_run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On made-up runs of the names that the page has, and stand-ins for both clients."""
    monkeypatch.chdir(tmp_path)
    a_run(Path("outputs"))
    a_run(Path("outputs"), short="77b0e2000000", seed=2)
    page = (GOLDEN.parents[2] / "docs" / "sharing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True)[1:] for block in blocks for line in block.splitlines()]
    lines = [line for line in lines if line and line[0] != "reproduce"]  # tests/integration/test_reproduce.py
    assert len(lines) >= 8
    monkeypatch.setattr(exchange, "_push_to_wandb", lambda path, *_: shutil.copyfile(path, "sent.zip"))
    monkeypatch.setattr(exchange, "_fetch_from_wandb", lambda *_: Path("sent.zip"))
    codes = [cli.main(line) for line in lines]
    assert codes == [int("77b0e2" in line) for line in lines]
    [python] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert (
        "colour_sw" in subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.parametrize(
    "address",
    [
        "hf://someone/runs/a.zip",
        "hf://datasets/someone/runs",
        "hf://datasets/someone/runs/../../x.zip",
        "wandb://me/project",
        "wandb://me/project/name;rm",
        "wandb://",
    ],
)
def test_an_address_of_no_form_that_is_known_is_refused(address: str) -> None:
    with pytest.raises(XTransplantError, match=r"no address that is known\. Give hf://datasets/"), opened(address):
        pass
    with pytest.raises(XTransplantError, match=r"to=.*no address that is known"):
        exchange.push(GOLDEN, address)


def test_a_version_is_nothing_to_send_to() -> None:
    with pytest.raises(XTransplantError, match="Leave @main out"):
        exchange.push(GOLDEN, "hf://datasets/a/b/c.zip@main")
    with pytest.raises(XTransplantError, match="Leave :v1 out"):
        exchange.push(GOLDEN, "wandb://a/b/c:v1")


def test_bytes_that_are_no_zip_never_raise_anything_else(tmp_path: Path) -> None:
    """One byte in twenty of the list of entries, and some of the rest, in turn."""
    whole = GOLDEN.read_bytes()
    path = tmp_path / "a.zip"
    for place in [*range(0, len(whole), 331), *range(len(whole) - 600, len(whole), 20)]:
        broken = io.BytesIO(whole)
        broken.seek(place)
        broken.write(bytes([whole[place] ^ 0x55]))
        path.write_bytes(broken.getvalue())
        try:
            with opened(path) as found:
                assert record.load_run(found.folder) is not None
        except XTransplantError as error:
            assert str(path) in str(error)
