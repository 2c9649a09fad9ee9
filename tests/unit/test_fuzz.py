"""Damage of any kind: a file reads as exactly what was written, or is refused by an error that names it.

Never another exception, which would be a traceback to a user; and never a different number.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.unit.grids import choice_grid
from xtransplant import bundle, compose, config, disk, families, record, selection
from xtransplant.config import EvaluateConfig, config_hash, to_dict
from xtransplant.grid import Grid
from xtransplant.types import XTransplantError

# The same examples each time: a test that fails by chance helps nobody. More by hand: `--hypothesis-seed`, and these.
FEW = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- What happens to a file ------------------------------------------------------------------------------------------


def flipped(content: bytes, place: int, bits: int) -> bytes:
    damaged = bytearray(content)
    damaged[place % len(content)] ^= bits
    return bytes(damaged)


def cut(content: bytes, place: int, bits: int) -> bytes:
    return content[: place % len(content)]


def shortened(content: bytes, place: int, bits: int) -> bytes:
    place %= len(content)
    return content[:place] + content[place + bits :]


def doubled(content: bytes, place: int, bits: int) -> bytes:
    place %= len(content)
    return content[:place] + content[place : place + bits] + content[place:]


def spliced(content: bytes, place: int, bits: int) -> bytes:
    """One part in another's place."""
    place %= len(content)
    other = (place * bits) % len(content)
    return content[:place] + content[other : other + 8] + content[place + 8 :]


def digit(content: bytes, place: int, bits: int) -> bytes:
    """Another digit for one that is there: what reads on as a number."""
    digits = [index for index, byte in enumerate(content) if chr(byte).isdigit()]
    if not digits:
        return content
    place = digits[place % len(digits)]
    return content[:place] + str(bits % 10).encode() + content[place + 1 :]


DAMAGES: list[Callable[[bytes, int, int], bytes]] = [flipped, cut, shortened, doubled, spliced, digit]
damage = st.tuples(st.sampled_from(DAMAGES), st.integers(0, 2**24), st.integers(1, 255))


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A run, a selection, a grid and a bundle, whole."""
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        run = here / "outputs" / "evaluate" / "mine-0123456789ab"
        record.open_run(run, "model: {name: tiny, path: a/b}\nlimit: 12\nseed: 1234\n")
        results = {"results": {"mine": {"acc,none": 0.8125, "acc_stderr,none": 0.0321}}, "config": {"seed": 1234}}
        record.write(run / record.RESULTS, record.as_json(results))
        record.write(run / "samples_mine.jsonl", '{"key": "a", "acc": 1.0}\n')
        facts = {"job": "evaluate", "config_hash": "0123456789ab", "model": {"files": {"m": "ab"}}, "environment": {}}
        record.close_run(run, {**facts, "tasks": {"mine": {"documents": 12}}, "cost": {"seconds": 1.25}})
        grid = choice_grid(documents=5, num_layers=2, best=None)
        grid.save(here / "grid.npz")
        made_on = {"model_name": "tiny", "task_name": "mine", "language_pair": ["en", "sw"], "weights": None}
        chosen = selection.Selection(
            "overall", grid.cells[:1], None, False, (8, 8), ["mine/1", "mine/2"], ["ab12"],
            [{**made_on, "intervention": {"site": "module"}, "control": None}], 0.625, 0.5,
        )  # fmt: skip
        record.write(here / "selection.json", record.as_json(selection.as_record([chosen])))
        pack(run, here / "run.zip")
        yield here


def pack(run: Path, path: Path) -> None:
    with bundle.opened(run) as found:
        bundle.write(found, path, samples=True)


def same_or_refused(path: Path, content: bytes, read: Callable[[], Any], whole: Any) -> None:
    """Put the content in the file's place, and read it."""
    path.write_bytes(content)
    try:
        found = read()
    except XTransplantError as error:
        assert path.name in str(error) or path.parent.name in str(error)
    else:
        assert found == whole


# --- The readers -----------------------------------------------------------------------------------------------------


@FEW
@given(damage)
def test_a_manifest(place: Path, how: tuple[Any, int, int]) -> None:
    whole_or_damaged(place, record.MANIFEST, how)


@FEW
@given(damage)
def test_results(place: Path, how: tuple[Any, int, int]) -> None:
    whole_or_damaged(place, record.RESULTS, how)


def whole_or_damaged(place: Path, name: str, how: tuple[Any, int, int]) -> None:
    run = place / "outputs" / "evaluate" / "mine-0123456789ab"
    path = run / name
    content = path.read_bytes()

    def read() -> Any:
        found = record.load_run(run)
        assert found is not None
        return found.manifest, found.results

    whole = read()
    try:
        same_or_refused(path, how[0](content, *how[1:]), read, whole)
    finally:
        path.write_bytes(content)


@FEW
@given(damage)
def test_a_selection(place: Path, how: tuple[Any, int, int]) -> None:
    content = (place / "selection.json").read_bytes()
    whole = [each.as_dict() for each in selection.read(str(place / "selection.json"))]
    path = place / "damaged.json"
    same_or_refused(
        path, how[0](content, *how[1:]), lambda: [each.as_dict() for each in selection.read(str(path))], whole
    )


@FEW
@given(damage)
def test_a_grid(place: Path, how: tuple[Any, int, int]) -> None:
    content = (place / "grid.npz").read_bytes()
    whole = Grid.load(place / "grid.npz").sha256
    path = place / "damaged.npz"
    same_or_refused(path, how[0](content, *how[1:]), lambda: Grid.load(path).sha256, whole)


@FEW
@given(damage)
def test_a_bundle(place: Path, how: tuple[Any, int, int]) -> None:
    path = place / "damaged.zip"

    def read(bundle_file: Path = path) -> Any:
        with bundle.opened(bundle_file) as found:
            samples = (found.folder / "samples_mine.jsonl").read_bytes()
            return found.manifest, found.config, found.results, found.withheld, samples

    whole = read(place / "run.zip")
    content = (place / "run.zip").read_bytes()
    same_or_refused(path, how[0](content, *how[1:]), read, whole)


def test_an_entry_that_hides_those_behind_it(place: Path) -> None:
    """Found by damage: the length of an entry's extra field takes the next entries with it."""
    content = (place / "grid.npz").read_bytes()
    lengths = [index + 30 for index in range(len(content)) if content[index : index + 4] == b"PK\x01\x02"]
    assert len(lengths) > 5
    path, whole = place / "damaged.npz", Grid.load(place / "grid.npz").sha256
    for first in lengths:
        for hidden in range(len(content) - first):
            damaged = content[:first] + hidden.to_bytes(2, "little") + content[first + 2 :]
            same_or_refused(path, damaged, lambda: Grid.load(path).sha256, whole)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@FEW
@given(
    st.sampled_from(["format", "job", "files", "tasks", "cells", "grids", "rule", "selections", "documents"]), values
)
def test_other_values_in_a_record_that_is_whole(place: Path, key: str, value: Any) -> None:
    """Not by damage: somebody wrote it so, its own hash too."""
    run = place / "outputs" / "evaluate" / "mine-0123456789ab"
    manifest = (run / record.MANIFEST).read_bytes()
    changed = disk.sealed(disk.unsealed(json.loads(manifest)) | {key: value})
    try:
        (run / record.MANIFEST).write_text(json.dumps(changed), encoding="utf-8")
        found = record.load_run(run)
        assert found is not None and isinstance(found.manifest["job"], str)
    except XTransplantError as error:
        assert run.name in str(error)
    finally:
        (run / record.MANIFEST).write_bytes(manifest)
    content = disk.unsealed(json.loads((place / "selection.json").read_bytes()))
    content["selections"][0] |= {key: value}
    path = place / "changed.json"
    path.write_text(json.dumps(disk.sealed(content)), encoding="utf-8")
    try:
        assert all(cell.source >= 0 for each in selection.read(str(path)) for cell in each.cells)
    except XTransplantError as error:
        assert path.name in str(error)


# --- The config ------------------------------------------------------------------------------------------------------

KEYS = [
    "limit",
    "seed",
    "model.name",
    "model.dtype",
    "task.key",
    "task.languages",
    "transplant.layers",
    "tracking.tags",
]
words = st.text(st.sampled_from("aZ09 ._-/\\'\"$#{}[]()=,:~+*?<>|&;!%^`\n\t\0é\x1b\u202e${oc.env:HOME}"), max_size=12)


@settings(FEW, max_examples=25)
@given(st.sampled_from([*KEYS, "model", "hydra.launcher", "++x", "~limit", ""]), words)
@example("model.name", "${oc.env:HOME}")
@example("limit", "${limit}")
@example("model.name", "${" * 200)
@example("task.languages", "{" * 200)
def test_an_override(key: str, text: str) -> None:
    """What is taken is composed to the same again from its record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "check", lambda *_: [])
        try:
            composed = compose.compose("evaluate", [f"{key}={text}"])
        except XTransplantError as error:
            assert str(error)
            return
    assert isinstance(composed, EvaluateConfig)
    with tempfile.TemporaryDirectory() as name:
        record.write(Path(name, record.CONFIG), json.dumps(to_dict(composed)))
        again = record.config_of(Path(name), config.EvaluateConfig)
    assert config_hash(again) == config_hash(composed)


# --- Text that looks like an interpolation ---------------------------------------------------------------------------


@FEW
@given(st.text(alphabet="\\\\${}:ab.", max_size=12))
@example("\\${oc.env:HOME}")
def test_a_recorded_text_is_that_text(text: str) -> None:
    """Whatever a record holds, OmegaConf looks nothing up."""
    assert OmegaConf.create(record.literal({"a": [text]})).a[0] == text
