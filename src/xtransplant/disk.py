"""Files that several processes use: complete or not there, and one writer at a time. Files that strangers wrote: read
within bounds, whatever is in them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the path's place once it is complete; nothing is left of one that is not."""
    # Processes of two machines, or containers, may have the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def alone(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock, which a process that is killed gives back; waits for one that has it.

    Args:
        what: is being done by the other process, for the message.

    Raises:
        OSError: the lock cannot be made.
    """
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("Another process is %s: waiting for it.", what)
        lock.acquire()
    except NotImplementedError:
        log.warning("%s: this file system has no locks. Start nothing twice at once.", lock_file.parent)
    try:
        yield
    finally:
        lock.release()


# --- Files that strangers wrote --------------------------------------------------------------------------------------

# A manifest or results file of a large sweep has some MB; what a person writes by hand some KB.
_JSON_BYTES, _YAML_BYTES = 2**28, 2**21
_ARRAYS_BYTES = 2**33
_YAML_DEPTH, _YAML_VALUES = 100, 10**6
# libyaml's, where PyYAML was built with it, is eight times as fast.
YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def bytes_of(path: Path, most: int = _JSON_BYTES) -> bytes:
    """What is in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no plain file, such as a pipe, whose end may never come; or larger than `most` bytes.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("not a file")
    if size > most:
        raise ValueError(f"{size / 1e6:.0f} MB: at most {most / 1e6:.0f} are read")
    return path.read_bytes()


def json_in(content: bytes | str) -> Any:
    """The value that a text in JSON stands for.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def json_of(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        As `bytes_of` and `json_in`.
    """
    return json_in(bytes_of(path))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a record with its own hash, by which damage is seen; no protection against intent."""
    plain = json.loads(_plain({name: value for name, value in content.items() if name != "sha256"}))
    return {**plain, "sha256": _digest(plain)}


def unsealed(content: Any) -> dict[str, Any]:
    """The content of a record as it was sealed; of format 1, which has no hash, as it is.

    Raises:
        ValueError: it is no record, or not the one that was written.
    """
    if not isinstance(content, dict):
        raise ValueError("not a record")
    if content.get("format", 1) == 1 and "sha256" not in content:
        return content
    rest = {name: value for name, value in content.items() if name != "sha256"}
    if content.get("sha256") != _digest(rest):
        raise ValueError("not what was written: its own hash differs")
    return rest


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_plain(content).encode()).hexdigest()


def _plain(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)


def yaml_of(path: Path, loader: Any = YamlLoader) -> Any:
    """The value in a YAML file; see `yaml_in`.

    Raises:
        As `bytes_of` and `yaml_in`.
    """
    return yaml_in(bytes_of(path, _YAML_BYTES), loader)


def yaml_in(content: bytes | str, loader: Any = YamlLoader) -> Any:
    """The value that a text in YAML stands for, if it is no more than it seems: aliases make a petabyte of ten lines.

    Args:
        loader: to construct the values with; a subclass of `YamlLoader`, for tags that are not plain YAML's.

    Raises:
        ValueError: it is too long, nested too deep, or has too many values once aliases are written out.
        yaml.YAMLError: it is no YAML, or asks for other than plain values.
    """
    if len(content) > _YAML_BYTES:
        raise ValueError(f"{len(content) / 1e6:.0f} MB: at most {_YAML_BYTES / 1e6:.0f} are read")
    # Before any value is made: the parser gives events one after the other, the composer calls itself, and deep in C
    # that ends the process.
    open_ones, anchors = [0], [""]
    sizes: dict[str, int] = {}
    for event in yaml.parse(content, Loader=loader):
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            open_ones.append(1)
            anchors.append(event.anchor or "")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            size, anchor = open_ones.pop(), anchors.pop()
            sizes[anchor] = size
            open_ones[-1] += size
        elif isinstance(event, yaml.ScalarEvent):
            open_ones[-1] += 1
            sizes[event.anchor or ""] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise ValueError("a value that holds itself")
            open_ones[-1] += sizes.get(event.anchor or "", 1)
        if len(open_ones) > _YAML_DEPTH:
            raise ValueError(f"nested deeper than {_YAML_DEPTH}")
        if open_ones[-1] > _YAML_VALUES:
            raise ValueError(f"more than {_YAML_VALUES} values once its aliases are written out")
    return yaml.load(content, Loader=loader)


def arrays_of(path: Path, known: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, whole and checked: numpy allocates what a header claims before it has read it, checks
    no sum where the header claims less, and would load objects, which are code.

    Args:
        known: names that it may hold; None: any.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, is damaged, or has other arrays; or more than `_ARRAYS_BYTES`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(bytes_of(path, _ARRAYS_BYTES))) as archive:
            entries = archive.infolist()
            if sum(each.file_size for each in entries) > _ARRAYS_BYTES:
                raise ValueError(f"more than {_ARRAYS_BYTES / 1e9:.0f} GB")
            names = [each.filename.removesuffix(".npy") for each in entries]
            if len(set(names)) < len(names) or not set(names) <= set(names if known is None else known):
                raise ValueError(f"it holds {', '.join(map(repr, names))}")
            return {name: _array(archive.read(each)) for name, each in zip(names, entries, strict=True)}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
        raise ValueError(f"no whole .npz file: {error}") from error


def _array(content: bytes) -> np.ndarray:
    """What `numpy.save` wrote: plain numbers or characters, exactly as many as its header says."""
    import numpy as np  # here, for `--help` answers without it

    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
    except Exception as error:  # whatever Python's own parser raises, which numpy calls
        raise ValueError(f"no array: {error}") from error
    rest = content[stream.tell() :]
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(rest) or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype} in {shape} that is not there, or would run code")
    flat = np.frombuffer(rest, dtype=dtype) if rest else np.zeros(math.prod(shape), dtype)
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def is_below(name: str) -> bool:
    """Whether a file's name, as a record or an archive has it, stays in the folder that it is seen from."""
    parts = PurePosixPath(name).parts
    return bool(parts) and name.isprintable() and "\\" not in name and not {"/", ".."} & set(parts)
