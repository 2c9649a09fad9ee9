"""One file for a run: what was asked, what came out, and what it takes to compute it again. Writing and reading.

A bundle is a zip that needs nothing of this program to be read: JSON, text, and a grid's arrays. `FORMAT` is its
version: within one, entries and keys may be added; a reader ignores keys that it does not know. What would be read
wrongly by an older version (a key with another meaning, an entry that moves) needs the next format, and the old one
stays readable (tests/golden holds a bundle of each).

Bundles come from strangers. Nothing in one is run; nothing is written but below a folder of its own, and no more than
the limits below, whatever its headers say; each file has the hash that `bundle.json` gives it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import yaml

from xtransplant import __version__, disk, exchange, record
from xtransplant.checks import folders
from xtransplant.embedded import sha256_of
from xtransplant.models import TRAINED_ON
from xtransplant.types import XTransplantError

log = logging.getLogger(__name__)

FORMAT = 1
CONTENT, README, LOCK = "bundle.json", "README.txt", "lock.txt"
RUN, SELECTION, ADAPTER, TASKS = "run", "selection", "adapter", "tasks"
JOBS = ("evaluate", "grid", "sft")  # whose runs can be in a bundle

# What a bundle may hold. A grid of 100,000 documents is below a tenth of these.
MAX_ENTRIES = 10_000
MAX_DIRECTORY = 4 << 20  # bytes of the zip's list of entries
MAX_BYTES = 4 << 30  # of all entries together, unpacked
MAX_JSON = 256 << 20  # of a file that is read as a whole
MAX_RATIO = 200  # unpacked to packed, of what is larger than
FREE_OF_RATIO = 1 << 20

_SHORT = re.compile(r"[0-9a-f]{6,12}")
_RUN_FOLDER = re.compile(r".*-(?P<short>[0-9a-f]{12})")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Names that mean a device somewhere, and characters that mean more than themselves.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NOT_IN_NAMES = set('\\:*?"<>|')

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# What an own task is made of. What else lies beside it, data above all (.txt is a format of it), is somebody's.
_TASK_FILES = (".yaml", ".yml", ".py", ".toml", ".jinja", ".jinja2", ".md")
_MAX_TASK_FILES = 2_000
# Of a document in a file of samples: what is no text of the data. What the model generated is the model's.
_NO_TEXT_OF_DATA = (
    *("key", "filter", "metrics", "source_task", "doc_id", "doc_hash", "prompt_hash", "target_hash"),
    *("resps", "filtered_resps"),
)
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip knows: the same run gives the same bytes


@dataclass(frozen=True)
class Opened:
    """A finished run that was checked: each file has the hash that the manifest gives it.

    Attributes:
        place: what was asked for: a folder, a bundle, an address or a short name.
        folder: a run's folder, that the jobs which read runs take. Of a bundle one that is gone afterwards, in which
            the manifest's hashes are those of what was passed on.
        manifest: as the run wrote it, with the hashes of its own files.
        config: config.yaml, as plain values.
        results: results.json.
        withheld: path in the bundle -> {"sha256": of the original, "why": …}, e.g. of run/samples_<task>.jsonl. What is
            withheld as a whole is not in the folder; of samples the texts alone are (`redacted`).
        extras: folder with selection/, adapter/ and tasks/ as far as there are any; None for a run's own folder, whose
            config says where they lie.
        content: bundle.json; empty for a run's own folder.
        file: the bundle; None for a run's own folder.
    """

    place: str
    folder: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    results: dict[str, Any]
    withheld: dict[str, dict[str, Any]] = field(default_factory=dict)
    extras: Path | None = None
    content: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @property
    def short(self) -> str:
        """The run's short name: the hash of its config."""
        return str(self.manifest["config_hash"])

    def samples(self, task: str) -> list[dict[str, Any]]:
        """A task's documents as the harness writes them; their texts may be withheld, see `redacted`.

        Raises:
            XTransplantError: the run has none of this task, or they cannot be read.
        """
        name = f"samples_{task}.jsonl"
        where = f"{self.place}: {name}"
        if name not in self.manifest["files"] or not (self.folder / name).is_file():
            raise XTransplantError(f"{where}: the run has no such file.")
        rows = [row for _, row in rows_of(self.folder / name, where)]
        if not all(isinstance(row, dict) for row in rows):
            raise XTransplantError(f"{where}: not a file of samples.")
        return rows

    @property
    def chosen(self) -> Mapping[str, Any] | None:
        """The selection that the run took, as it has recorded it; None if it took none."""
        asked = (self.results.get("config") or {}).get("model_args") or {}
        return asked.get("selection")

    @property
    def selection(self) -> Path | None:
        """The selection.json that came with the run; None if none did."""
        return self._extra(SELECTION, "selection.json")

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter that came with the run; None if none did, or not all of it."""
        partly = any(path.startswith(f"{ADAPTER}/") for path in self.withheld)
        return None if partly else self._extra(ADAPTER)

    @property
    def include_path(self) -> list[Path]:
        """The folders of own tasks that came with the run, in the order of the config's task.include_path."""
        if self.extras is None or not (self.extras / TASKS).is_dir():
            return []
        return sorted((self.extras / TASKS).iterdir(), key=lambda each: int(each.name))

    def _extra(self, *parts: str) -> Path | None:
        found = None if self.extras is None else self.extras.joinpath(*parts)
        return found if found is not None and found.exists() else None


# --- Opening -------------------------------------------------------------------------------------------------------


@contextmanager
def opened(place: str | Path, key: str = "run", output_dir: str | Path = "outputs") -> Iterator[Opened]:
    """A run from its folder, a bundle, or its short name; what a bundle holds is there while this is open.

    Args:
        place: a run's folder, or a pattern that one matches; a bundle's file, or its address on the hub or W&B; at
            least 6 of the 12 hex digits that end a run folder's name.
        key: of the config that names the place, for messages.
        output_dir: below which short names are looked for.

    Raises:
        XTransplantError: nothing, or no finished run, is there; several are; a file is damaged, or was changed since
            the run; the bundle is not one, is of a newer format, or breaks a rule: the message names bundle and entry.
    """
    given = str(place)
    with tempfile.TemporaryDirectory(prefix="xtransplant-") as temporary:
        fetched, unpacked = Path(temporary, "fetched"), Path(temporary, "unpacked")
        if exchange.is_address(given):
            path = exchange.fetch(given, fetched, MAX_BYTES, key)
        else:
            path = find(given, key, output_dir)
        if path.is_dir():
            yield _from_folder(given, path, key)
        else:
            unpacked.mkdir()
            yield _Reader(path, f"{key}={given}").unpack(unpacked)


def faults(place: str, key: str, output_dir: str | Path = "outputs") -> list[str]:
    """What is wrong with a place, as far as can be seen before it is opened."""
    try:
        if exchange.is_address(place):
            exchange.check_address(place, key)
        else:
            find(place, key, output_dir)
    except XTransplantError as error:
        return [str(error)]
    return []


def find(given: str, key: str = "run", output_dir: str | Path = "outputs") -> Path:
    """The run's folder or the bundle's file that a place here means.

    Raises:
        XTransplantError: there is none, or there are several: then with their names.
    """
    with suppress(OSError, ValueError):  # no path at all: too long, or a NUL in it
        if (path := Path(given).expanduser()).exists():
            return path
    if _SHORT.fullmatch(given):
        return _by_short_name(given, key, Path(output_dir).expanduser())
    matching = folders(given) if any(sign in given for sign in "*?[") else []
    matching = [folder for folder in matching if (folder / record.MANIFEST).is_file()]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise XTransplantError(
            f"{key}={given}: {len(matching)} runs match, e.g. {matching[0]} and {matching[1]}. Give one of them."
        )
    near = ""
    if re.fullmatch("[0-9a-fA-F]{1,12}", given):
        near = " A short name has 6 to 12 lower-case hex digits."
    raise XTransplantError(
        f"{key}={given}: there is no such run or file.{near} Give a run's folder, a bundle (a .zip that "
        "`xtransplant export` wrote), or a run's short name, the hex digits at the end of its folder's name."
    )


def _by_short_name(given: str, key: str, output_dir: Path) -> Path:
    there = _short_names(output_dir)
    found = [folder for folder, short in there.items() if short.startswith(given)]
    if len({there[folder] for folder in found}) == 1:
        # One config, computed in several places, such as outputs/demo.
        nearest = min(found, key=lambda folder: len(folder.parts))
        if len(found) > 1:
            log.info("%s=%s: %s, the nearest of %d runs of this config.", key, given, nearest, len(found))
        return nearest
    if found:
        shown = ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")
        raise XTransplantError(
            f"{key}={given}: {len(found)} runs below {output_dir} have a name that begins so: {shown}. Give more "
            "digits, or the folder."
        )
    close = sorted(there, key=lambda folder: -_alike(given, there[folder]))[:3]
    hint = f" Its {len(there)} runs: {', '.join(map(str, close))}{', …' if len(there) > 3 else ''}." if there else ""
    raise XTransplantError(
        f"{key}={given}: no finished run below {output_dir} has this short name.{hint} Give a folder or a bundle, or "
        "as output_dir the folder that the run is in."
    )


def _short_names(output_dir: Path) -> dict[Path, str]:
    """Folder of a finished run -> the hex digits that end its name."""
    names = {path.parent: _RUN_FOLDER.fullmatch(path.parent.name) for path in record.below(output_dir, record.MANIFEST)}
    return {folder: match["short"] for folder, match in names.items() if match is not None}


def _alike(one: str, other: str) -> int:
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def _from_folder(place: str, folder: Path, key: str) -> Opened:
    run = record.load_run(folder)
    if run is None:
        below = [path.parent for path in record.below(folder, record.MANIFEST)]
        eg = below[0] if below else "outputs/evaluate/<name>"
        what = f"is no run's folder; {len(below)} lie below it" if below else "holds no finished run"
        raise XTransplantError(f"{key}={place}: {folder} {what}. Give the folder of one run, e.g. {eg}.")
    job = run.manifest.get("job")
    if job not in JOBS:
        raise XTransplantError(f"{key}={place}: a run of {job}. Give one of {', '.join(JOBS)}.")
    text = text_of(folder / record.CONFIG, str(folder / record.CONFIG))
    return Opened(place, folder, run.manifest, read_config(text, str(folder / record.CONFIG)), run.results)


def text_of(path: Path, where: str) -> str:
    """A text file of a stranger's.

    Raises:
        XTransplantError: it cannot be read, is no UTF-8, or too large.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise XTransplantError(f"{where}: larger than {_size(MAX_JSON)}, which is no such file of ours.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise XTransplantError(f"{where}: cannot be read ({error}).") from error


def rows_of(path: Path, where: str) -> Iterator[tuple[str, Any]]:
    """The lines of a file of samples: which line it is, for messages, and its value.

    Raises:
        XTransplantError: as `text_of` and `read_json`.
    """
    # Not by splitlines: a text may hold other line ends, such as U+2028, and they are not escaped.
    for number, line in enumerate(text_of(path, where).split("\n"), start=1):
        if line:
            place = f"{where}, line {number}"
            yield place, read_json(line, place, strict=False)


def read_json(text: str, where: str, strict: bool = True) -> Any:
    """JSON from a stranger.

    Args:
        where: the file, for messages.
        strict: no NaN and infinity, which results may have: the mean of nothing.

    Raises:
        XTransplantError: not JSON; nested too deep; a number that is none, or too large; a name twice in one object.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in found}) < len(found):
            raise ValueError("a name twice in one object")
        return dict(found)

    def whole(digits: str) -> int:
        if len(digits) > 20:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def real(digits: str) -> float:
        if not math.isfinite(number := float(digits)):
            raise ValueError(f"a number that is too large: {digits[:30]}")
        return number

    def constant(name: str) -> float:
        if strict:
            raise ValueError(f"{name}, which is no number")
        return float(name)

    try:
        return json.loads(
            text, object_pairs_hook=pairs, parse_int=whole, parse_float=real, parse_constant=constant
        )  # fmt: skip
    except RecursionError as error:
        raise XTransplantError(f"{where}: nested too deep to be read.") from error
    except ValueError as error:
        raise XTransplantError(f"{where}: not the JSON that it should be ({error}).") from error


def read_config(text: str, where: str) -> dict[str, Any]:
    """A run's config.yaml from a stranger, as plain values: nothing in it is looked up or run, `${…}` is text.

    Raises:
        XTransplantError: not YAML, or large or deep as none of ours is; not a mapping; tags of Python's.
    """
    try:
        content = disk.yaml_in(text)
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            raise ValueError("not lines of key: value")
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise XTransplantError(f"{where}: not the config of a run ({' '.join(str(error).split())}).") from error
    return content


class _Reader:
    """Reads one bundle; every error names it, and the entry.

    Args:
        named: the bundle, as it was asked for.
    """

    def __init__(self, path: Path, named: str) -> None:
        self.path, self.named = path, named

    def unpack(self, folder: Path) -> Opened:
        """Check all of it, write it to a folder, which is there and empty, and read the run."""
        try:
            with self.path.open("rb") as stream:
                self._check_directory(stream)
                with zipfile.ZipFile(stream) as archive:
                    return self._unpack(archive, folder)
        except XTransplantError:
            raise
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise XTransplantError(f"{self.named}: damaged, or no zip ({error}). Copy or export it again.") from error
        except (OSError, ValueError) as error:
            raise XTransplantError(f"{self.named}: cannot be read ({error}). Copy or export it again.") from error

    def _refuse(self, entry: str, why: str, todo: str = "Do not trust it, or export it again.") -> NoReturn:
        shown = entry if entry.isprintable() else ascii(entry)
        raise XTransplantError(f"{self.named}: {shown[:200]}: {why}. {todo}")

    def _check_directory(self, stream: BinaryIO) -> None:
        """The end of the zip: how long its list of entries is, before that is read into memory.

        22 bytes: signature, four numbers of 16 bits (of which the last is the count of entries), the size and place of
        the list (32 bits each), and the length of a comment (16 bits).
        """
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 42))
        end = stream.read()
        if end[-22:-18] != b"PK\x05\x06" or end[-2:] != b"\0\0":
            raise XTransplantError(
                f"{self.named}: not a bundle: no zip, one that was cut off, or one with something behind it. Give the "
                ".zip that `xtransplant export` wrote, or copy it again."
            )
        count, length = struct.unpack("<HI", end[-12:-6])
        if count > MAX_ENTRIES or length > MAX_DIRECTORY or end[:4] == b"PK\x06\x07":
            raise XTransplantError(f"{self.named}: {count} entries or more; a bundle has at most {MAX_ENTRIES}.")

    def _unpack(self, archive: zipfile.ZipFile, folder: Path) -> Opened:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise XTransplantError(f"{self.named}: {len(entries)} entries; a bundle has at most {MAX_ENTRIES}.")
        self._check_names(entries)
        by_name = {entry.filename: entry for entry in entries}
        if CONTENT not in by_name:
            self._refuse(CONTENT, "missing, so this is no bundle", "Give the .zip that `xtransplant export` wrote.")
        self._check_entry(by_name[CONTENT])
        if by_name[CONTENT].file_size > MAX_JSON:
            self._refuse(CONTENT, f"larger than {_size(MAX_JSON)}")
        try:
            text = b"".join(self._blocks(archive, by_name[CONTENT], MAX_JSON)).decode("utf-8")
        except UnicodeDecodeError as error:
            self._refuse(CONTENT, f"no text ({error})")
        content = self._check_content(read_json(text, f"{self.named}: {CONTENT}"), set(by_name))
        self._check_sizes(entries)
        # As a run lies among others: <job>/<name>.
        run = folder / content["job"] / content["name"]
        run.mkdir(parents=True)
        left = MAX_BYTES
        for name, expected in content["files"].items():
            top, _, rest = name.partition("/")
            path = run / rest if top == RUN else folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            digest, size = hashlib.sha256(), 0
            with path.open("xb") as output:
                for block in self._blocks(archive, by_name[name], left):
                    digest.update(block)
                    output.write(block)
                    size += len(block)
            left -= size
            if digest.hexdigest() != expected:
                self._refuse(name, f"its hash is not the one that {CONTENT} gives it, so it was changed or damaged")
        return self._read_run(folder, run, content)

    def _check_names(self, entries: list[zipfile.ZipInfo]) -> None:
        seen: dict[str, str] = {}
        for entry in entries:
            name = entry.orig_filename
            why = what_is_wrong_with(name)
            if why is not None:
                self._refuse(name, why)
            # Upper and lower case, and two ways to write an accent, are one name on many a disk.
            plain = unicodedata.normalize("NFC", name).casefold()
            if plain in seen:
                self._refuse(name, f"there twice, the other as {seen[plain]}")
            seen[plain] = name
        for plain, name in seen.items():
            parts = plain.split("/")
            for end in range(1, len(parts)):
                if "/".join(parts[:end]) in seen:
                    self._refuse(name, "lies below what is a file")

    def _check_entry(self, entry: zipfile.ZipInfo) -> None:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or entry.is_dir():
            self._refuse(entry.filename, "a link, a folder or a device; a bundle has files only")
        if entry.flag_bits & (0x1 | 0x40 | 0x2000):
            self._refuse(entry.filename, "encrypted; a bundle is open to everybody")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            self._refuse(entry.filename, f"compressed by method {entry.compress_type}; a bundle is stored or deflated")

    def _check_sizes(self, entries: list[zipfile.ZipInfo]) -> None:
        for entry in entries:
            self._check_entry(entry)
            if entry.file_size > max(FREE_OF_RATIO, entry.compress_size * MAX_RATIO):
                self._refuse(entry.filename, f"{_size(entry.file_size)} from {_size(entry.compress_size)}: a zip bomb")
        total, packed = sum(entry.file_size for entry in entries), self.path.stat().st_size
        # Of all together by the file's own size: entries may share bytes.
        if total > min(MAX_BYTES, max(FREE_OF_RATIO, packed * MAX_RATIO)):
            largest = max(entries, key=lambda entry: entry.file_size)
            self._refuse(largest.filename, f"{_size(total)} in all from {_size(packed)}; at most {_size(MAX_BYTES)}")

    def _blocks(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> Iterator[bytes]:
        """The content of an entry; what comes out is counted, not what the header promises."""
        size = 0
        try:
            with archive.open(entry) as stream:
                while block := stream.read(1 << 20):
                    size += len(block)
                    if size > min(limit, entry.file_size):
                        self._refuse(entry.filename, f"more than the {_size(min(limit, entry.file_size))} it may have")
                    yield block
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError) as error:
            self._refuse(entry.filename, f"damaged ({error})", "Copy or export it again.")
        if size != entry.file_size:
            self._refuse(entry.filename, f"damaged: {size} bytes of {entry.file_size}", "Copy or export it again.")

    def _check_content(self, content: Any, names: set[str]) -> dict[str, Any]:
        """bundle.json: its form, and that it names every entry and no other."""
        version = content.get("format") if isinstance(content, dict) else None
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            self._refuse(CONTENT, "no bundle's", "Give the .zip that `xtransplant export` wrote.")
        if version > FORMAT:
            self._refuse(
                CONTENT,
                f"format {version}, written by xtransplant {str(content.get('xtransplant'))[:40]}; this version reads "
                f"{FORMAT}",
                "Update xtransplant.",
            )
        for name, kind in {"job": str, "name": str, "short": str, "files": dict, "withheld": dict}.items():
            if not isinstance(content.get(name), kind):
                self._refuse(CONTENT, f"{name} is missing, or no {'text' if kind is str else 'object'}")
        if content["job"] not in JOBS:
            self._refuse(CONTENT, f"a run of {content['job'][:40]!r}; known are {', '.join(JOBS)}")
        if what_is_wrong_with(content["name"]) is not None or "/" in content["name"]:
            self._refuse(CONTENT, f"{content['name'][:80]!r} cannot be a folder's name")
        files, withheld = content["files"], content["withheld"]
        for path, digest in files.items():
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                self._refuse(path, f"{CONTENT} gives it no sha256")
            top, _, rest = path.partition("/")
            if top == TASKS and not re.fullmatch(r"\d{1,4}/.+", rest):
                self._refuse(path, f"below {TASKS}/ are numbered folders")
        for path, facts in withheld.items():
            if not isinstance(facts, dict) or not isinstance(facts.get("why"), str):
                self._refuse(path, f"{CONTENT} does not say why it is withheld")
            if not _SHA256.fullmatch(str(facts.get("sha256"))):
                self._refuse(path, f"{CONTENT} gives it no sha256")
        missing, extra = files.keys() - names, names - files.keys() - {CONTENT}
        if missing or CONTENT in files:
            self._refuse(min(missing or {CONTENT}), f"named in {CONTENT}, and not there")
        if extra:
            self._refuse(min(extra), f"not named in {CONTENT}")
        for name in (record.MANIFEST, record.CONFIG, "results.json"):
            if f"{RUN}/{name}" not in files:
                self._refuse(f"{RUN}/{name}", "missing")
        return dict(content)

    def _read_run(self, folder: Path, run: Path, content: dict[str, Any]) -> Opened:
        def text(name: str) -> str:
            return text_of(run / name, f"{self.named}: {RUN}/{name}")

        def where(name: str) -> str:
            return f"{self.named}: {RUN}/{name}"

        try:
            manifest = disk.unsealed(read_json(text(record.MANIFEST), where(record.MANIFEST)))
        except ValueError as error:
            self._refuse(f"{RUN}/{record.MANIFEST}", str(error))
        kinds = {"files": dict, "model": dict, "environment": dict}
        for name, kind in kinds.items():
            if not isinstance(manifest.get(name), kind):
                self._refuse(f"{RUN}/{record.MANIFEST}", f"not a manifest: {name} is missing")
        for name, said in {"job": content["job"], "config_hash": content["short"]}.items():
            if manifest.get(name) != said:
                self._refuse(f"{RUN}/{record.MANIFEST}", f"its {name} is not the one that {CONTENT} gives")
        hashes = self._check_run_files(manifest["files"], content)
        results = read_json(text("results.json"), where("results.json"), strict=False)
        if not isinstance(results, dict):
            self._refuse(f"{RUN}/results.json", "not the results of a run")
        if any(path.startswith(f"{RUN}/") for path in content["withheld"]):
            record.write(run / record.MANIFEST, record.as_json(disk.sealed({**manifest, "files": hashes})))
        return Opened(
            self.named.partition("=")[2],
            run,
            manifest,
            read_config(text(record.CONFIG), where(record.CONFIG)),
            results,
            content["withheld"],
            folder,
            content,
            self.path,
        )

    def _check_run_files(self, recorded: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, str]:
        """The files that the manifest names are in the bundle, or withheld; their hashes as they are here."""
        here: dict[str, str] = {}
        for name, digest in recorded.items():
            path = f"{RUN}/{name}"
            withheld = content["withheld"].get(path)
            if digest != (content["files"].get(path) if withheld is None else withheld["sha256"]):
                self._refuse(path, f"not the file that {record.MANIFEST} names")
            if path in content["files"]:
                here[name] = content["files"][path]
        ours = {path.removeprefix(f"{RUN}/") for path in content["files"] if path.startswith(f"{RUN}/")}
        extra = ours - here.keys() - {record.MANIFEST}
        if extra:
            self._refuse(f"{RUN}/{min(extra)}", f"not named in {record.MANIFEST}")
        return here


def what_is_wrong_with(name: str) -> str | None:
    """Why a path is not one to be written below a folder, on any system; None if it is."""
    parts = name.split("/")
    if not name or not name.isprintable() or len(name.encode("utf-8", "replace")) > 1024:
        return "its name cannot be shown, or is empty or longer than 1024 bytes"
    if name.startswith("/") or _NOT_IN_NAMES & set(name):
        return "an absolute path, a drive, or a character that a path of a bundle has not"
    if ".." in parts or "." in parts:
        return "its path leads out of the bundle"
    if any(not part or part[-1] in ". " or len(part.encode()) > 255 or _DEVICE.fullmatch(part) for part in parts):
        return "its path cannot be written everywhere: a part is empty, too long, a device, or ends in a dot or blank"
    return None


def _size(number: int) -> str:
    for unit in ("bytes", "KB", "MB"):
        if number < 10_000:
            return f"{number} {unit}"
        number //= 1024
    return f"{number} GB"


# --- Writing -------------------------------------------------------------------------------------------------------


def redacted(row: Mapping[str, Any]) -> dict[str, Any]:
    """A document of a file of samples with the data's texts as hashes, `sha256:<hex>`; all else, and its form, stays.

    Equal texts have equal hashes, so prompts can still be compared. Scores, log-probabilities and what the model
    generated are there.
    """
    found = {name: value if name in _NO_TEXT_OF_DATA else _hashed(value) for name, value in row.items()}
    if "doc" in row:
        found["doc"] = _hashed(json.dumps(row["doc"], sort_keys=True, ensure_ascii=False))
    if isinstance(row.get("arguments"), list):
        # How was generated, a mapping, is no text of the data.
        found["arguments"] = [
            [part if isinstance(part, Mapping) else _hashed(part) for part in each]
            if isinstance(each, list)
            else _hashed(each)
            for each in row["arguments"]
        ]
    return found


def _hashed(value: Any) -> Any:
    if isinstance(value, str):
        return f"sha256:{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()}"
    if isinstance(value, Mapping):
        return {name: _hashed(each) for name, each in value.items()}
    return [_hashed(each) for each in value] if isinstance(value, list) else value


def write(
    run: Opened, path: Path, samples: bool | None = None, largest: float = 64, overwrite: bool = False
) -> dict[str, Any]:
    """Write a run's bundle, at once or not at all; the same run gives the same bytes in the same environment.

    Args:
        run: from its own folder.
        samples: pass on the texts of documents; None: if the run's config says that they may be (task.redistribute).
        largest: megabytes of a file of weights that is passed on; of a larger one its hash is.
        overwrite: replace a file that is there with other content.

    Returns:
        bundle.json.

    Raises:
        XTransplantError: the adapter has changed since the run; there are too many task files; the file is there and
            not to be replaced, or cannot be written; or the bundle would break a rule of those that are read.
    """
    content, entries = _Collected(run, samples, int(largest * 2**20)).all()
    with _replacing(path, overwrite) as temporary:
        with zipfile.ZipFile(temporary, "w", allowZip64=False, compresslevel=9) as archive:
            for name in sorted(entries):
                _put(archive, name, entries[name])
        with opened(temporary, "to"):
            pass  # what is written can be read
    return content


def copy(file: Path, path: Path, overwrite: bool = False) -> None:
    """Write a bundle that was opened to another place, as it is.

    Raises:
        XTransplantError: as `write`, of the file.
    """
    with _replacing(path, overwrite) as temporary:
        shutil.copyfile(file, temporary)


@contextmanager
def _replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk.replacing(path) as temporary:
            yield temporary
            if path.exists() and not overwrite and sha256_of(path) != sha256_of(temporary):
                raise XTransplantError(
                    f"to={path}: there is another file. Give another name, or replace it with overwrite=true."
                )
    except (OSError, zipfile.LargeZipFile) as error:
        raise XTransplantError(f"to={path}: cannot be written ({error}). Give a file in a folder of yours.") from error


def _put(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3  # Unix, whatever this is
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    if isinstance(content, bytes):
        archive.writestr(entry, content)
    else:
        with content.open("rb") as source, archive.open(entry, "w") as output:
            shutil.copyfileobj(source, output, 1 << 20)


class _Collected:
    """What goes into a run's bundle: its entries, and what is withheld, and why."""

    def __init__(self, run: Opened, samples: bool | None, largest: int) -> None:
        self.run, self.largest = run, largest
        self.entries: dict[str, bytes | Path] = {}
        self.withheld: dict[str, dict[str, Any]] = {}
        task = run.config.get("task") or {}
        self.licence = task.get("licence")
        allowed = task.get("redistribute") is True
        self.whole = allowed if samples is None else samples
        name = task.get("name")
        if samples is False:
            self.why = "its documents' texts are hashes, as was asked for (samples=false)"
        elif task.get("redistribute") is False:
            self.why = f"its documents' texts are hashes: the data of {name} ({self.licence}) may not be passed on"
        else:
            self.why = f"its documents' texts are hashes: it is not known whether the data of {name} may be passed on"

    def all(self) -> tuple[dict[str, Any], dict[str, bytes | Path]]:
        """bundle.json, and every entry."""
        manifest = self.run.manifest
        for name in manifest["files"]:
            self._run_file(name)
        self.entries[f"{RUN}/{record.MANIFEST}"] = self.run.folder / record.MANIFEST
        content = {
            "format": FORMAT,
            "xtransplant": __version__,
            "job": manifest["job"],
            "name": self.run.folder.name,
            "short": self.run.short,
            "documents": {"licence": self.licence, "passed_on": self.whole},
            "selection": self._selection(),
            "adapter": self._adapter(),
            "tasks": self._tasks(),
            "withheld": self.withheld,
        }
        self.entries[LOCK] = lock(manifest["environment"]).encode()
        self.entries[README] = _readme(content, manifest).encode()
        content["files"] = {name: self._sha256(entry) for name, entry in sorted(self.entries.items())}
        self.entries[CONTENT] = record.as_json(content).encode()
        return content, self.entries

    def _sha256(self, entry: bytes | Path) -> str:
        return sha256_of(entry) if isinstance(entry, Path) else hashlib.sha256(entry).hexdigest()

    def _run_file(self, name: str) -> None:
        path, entry = self.run.folder / name, f"{RUN}/{name}"
        if name.startswith("samples_") and name.endswith(".jsonl") and not self.whole:
            self._withhold(entry, path, self.why)
            with path.open(encoding="utf-8") as lines:
                rows = [record.as_json(redacted(json.loads(line)), indent=None) for line in lines]
            self.entries[entry] = "".join(rows).encode()
        else:
            self._add(entry, path)

    def _add(self, entry: str, path: Path) -> None:
        size = path.stat().st_size
        if path.suffix in _WEIGHTS and size > self.largest:
            self._withhold(entry, path, f"{_size(size)} of weights, more than largest={self.largest / 2**20:g} MB")
        else:
            self.entries[entry] = path

    def _withhold(self, entry: str, path: Path, why: str) -> None:
        self.withheld[entry] = {"sha256": sha256_of(path), "why": why}

    def _selection(self) -> str | None:
        """As the run has recorded it: the file may hold others, or have changed since."""
        chosen = self.run.chosen
        if chosen is None:
            return None
        path = f"{SELECTION}/selection.json"
        self.entries[path] = record.as_json({"format": chosen["format"], "selections": [chosen]}).encode()
        return path

    def _adapter(self) -> dict[str, Any] | None:
        """An adapter in a folder; of one on the hub its name and commit say what it was."""
        known = self.run.manifest["model"].get("adapter")
        if known is None:
            return None
        folder, files = Path(str(known["path"])).expanduser(), known.get("files") or {}
        there = folder.is_dir()
        for name, digest in files.items():
            path, entry = folder / name, f"{ADAPTER}/{name}"
            if not there or not path.is_file():
                self.withheld[entry] = {"sha256": digest, "why": "it was not in a folder here when this was written"}
            elif sha256_of(path) != digest:
                raise XTransplantError(
                    f"model.adapter: {path} has changed since the run. Put the adapter back that the run was made "
                    "with, or do the run again with overwrite=true."
                )
            else:
                self._add(entry, path)
        # What says which documents it was trained on, so that they are refused there too.
        for name in (TRAINED_ON, record.MANIFEST) if there else ():
            if (folder / name).is_file():
                self.entries[f"{ADAPTER}/{name}"] = folder / name
        return {"path": known["path"], "revision": known.get("revision"), "files": files}

    def _tasks(self) -> list[dict[str, Any]]:
        """The folders of own tasks: what tasks are made of; of other files, of data, the hashes."""
        found = []
        for number, given in enumerate((self.run.config.get("task") or {}).get("include_path") or []):
            folder = Path(str(given)).expanduser()
            found.append({"folder": f"{TASKS}/{number}" if folder.is_dir() else None, "given": given})
            paths = [
                path
                for path in sorted(folder.rglob("*"))
                if path.is_file()
                and not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
            ]
            if len(paths) > _MAX_TASK_FILES:
                raise XTransplantError(
                    f"task.include_path: {folder} holds {len(paths)} files, and all of it would be in the bundle. Move "
                    f"the tasks to a folder of their own, of at most {_MAX_TASK_FILES} files."
                )
            for path in paths:
                entry = f"{TASKS}/{number}/{path.relative_to(folder).as_posix()}"
                if not path.resolve().is_relative_to(folder.resolve()):
                    self._withhold(entry, path, "a link that leads out of its folder")
                elif path.suffix in _TASK_FILES:
                    self.entries[entry] = path
                else:
                    self._withhold(entry, path, "not a task's own file; it is not known whether data may be passed on")
        return found


def lock(environment: Mapping[str, Any]) -> str:
    """Requirements for pip: the versions that a run has recorded, and of all other packages those that are here."""
    recorded: Mapping[str, str] = environment.get("versions") or {}
    own = {_plain_name(name): version for name, version in recorded.items()}
    here = {_plain_name(each.metadata["Name"]): each.version for each in distributions() if each.metadata["Name"]}
    git = environment.get("git") or {}
    commit = f", commit {git['commit']}{' and changes' if git.get('changed') else ''}" if git.get("commit") else ""
    lines = [
        f"# Python {environment.get('python')}, {environment.get('platform')}",
        f"# xtransplant {own.get('xtransplant')}{commit}: install that first, then: pip install -r {LOCK}",
        "# Versions that the run did not record are those of where this file was written.",
    ]
    for name, version in sorted((here | own).items()):
        if name not in ("xtransplant", "pip"):
            public, plus, _ = version.partition("+")
            lines.append(f"{name}=={public}{f'  # {version}' if plus else ''}")
    return "\n".join(lines) + "\n"


def _plain_name(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def _readme(content: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    withheld = content["withheld"]
    lines = [
        f"A run of xtransplant {content['xtransplant']}: {content['job']}, {content['name']}.",
        "",
        "Cross-lingual activation transplantation (arXiv 2412.12686): the outputs of a language model's layers for a",
        "prompt in one language, put into the forward pass for the same prompt in another.",
        "",
        "This zip needs no program of ours to be read. All text is UTF-8.",
        "",
        f"  {CONTENT}             what is here, with the sha256 of every file; format {content['format']}",
        f"  {LOCK}                the packages, as pip wants them",
        "  run/config.yaml         what was asked",
        "  run/manifest.json       what was computed: model, data and prompts by their hashes, environment, cost",
        "  run/results.json        the metrics",
    ]
    if any(name.startswith("samples_") for name in manifest["files"]):
        lines.append(
            "  run/samples_*.jsonl     a document a line: prompts, responses (log-probabilities or texts), scores"
        )
    if "grid.npz" in manifest["files"]:
        lines += [
            "  run/grid.npz            every layer pair: arrays for numpy.load(…, allow_pickle=False); `names` is JSON",
            "                          (as bytes) with documents, cells and metrics, in the order of the arrays",
        ]
    if content["selection"]:
        lines.append("  selection/              the layer pairs that were chosen, and on what")
    if content["adapter"]:
        lines.append("  adapter/                the PEFT adapter, as far as it is small enough")
    if content["tasks"]:
        lines.append("  tasks/<n>/              lm-eval tasks of task.include_path, by their number there")
    licence = content["documents"]["licence"]
    if licence is not None:
        lines += ["", f"The documents' licence: {licence}."]
    if withheld:
        lines += ["", f"Withheld, the hash of the original in {CONTENT}:", ""]
        lines += [f"  {name}: {facts['why']}" for name, facts in sorted(withheld.items())]
    lines += [
        "",
        "In Python:",
        "",
        "  import json, zipfile",
        "  bundle = zipfile.ZipFile('this.zip')",
        "  json.loads(bundle.read('run/results.json'))['results']",
        "",
        "With xtransplant: xtransplant reproduce run=this.zip; xtransplant diff this.zip other.zip.",
    ]
    return "\n".join(lines) + "\n"
