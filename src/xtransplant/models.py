"""What a `ModelConfig` names: which kind of model, how many layers, and what is wrong with it.

All of it is answered without weights, and without torch but for a checkpoint that brings code of its own.
"""

from __future__ import annotations

import functools
import os
import re
import struct
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from xtransplant.config import ModelConfig, short_name
from xtransplant.disk import is_below
from xtransplant.embedded import EMBEDDED, checkpoint_folder, package_faults, read_json, unknown_embedded

# What `xtransplant sft` leaves beside the weights: what they were trained on. It goes where the folder goes.
TRAINED_ON = "trained_on.json"

WEIGHTS = {".safetensors"}
PICKLED_WEIGHTS = {".bin", ".pt", ".pth"}

_MOST_LAYERS = 1000  # the deepest models have some hundred; a module is made for each that is claimed
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
_ATTENTION_PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-interface"}
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# An answer from the hub within this time, or the check does without.
_HUB_SECONDS = 4.0

# Adapters that add virtual tokens or change the forward pass: there are no plain weights to merge them into.
_NO_MERGE = {"XLORA", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"}


class Kind(Enum):
    """What `model.path` or `model.adapter` can name."""

    embedded = "embedded"
    folder = "folder"
    gguf = "gguf"
    hub = "hub"
    nothing = "nothing"  # no such file or folder, and not the form of a hub id


def kind_of(path: str) -> Kind:
    """What `path` names; no more is looked at than whether it is there."""
    if path.startswith("embedded:"):
        return Kind.embedded
    local = Path(path).expanduser()
    if local.is_dir():
        return Kind.folder
    if local.is_file():
        return Kind.gguf
    if path.startswith((".", "~")) or local.is_absolute() or local.suffix == ".gguf" or not _HUB_ID.fullmatch(path):
        return Kind.nothing
    return Kind.hub


def adapter_of(config: ModelConfig) -> str | None:
    """What `model.adapter` names: of a pattern the folder that matches it, if it is the only one."""
    found = _matching(config.adapter)
    return str(found[0]) if len(found) == 1 else config.adapter


def _matching(given: str | None) -> list[Path]:
    """Folders that a pattern names; none if it is no pattern."""
    if given is None or not any(sign in given for sign in "*?["):
        return []
    path = Path(given).expanduser()
    found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    return sorted(each for each in found if each.is_dir() and each.name[0] != ".")


def trainings(config: ModelConfig) -> list[str]:
    """Those of the model and its adapter that are folders of `xtransplant sft`, as they are given."""
    given = [each for each in (config.path, config.adapter) if each is not None and kind_of(each) is Kind.folder]
    return [each for each in given if (Path(each).expanduser() / TRAINED_ON).exists()]


def is_fine_tuned(config: ModelConfig) -> bool:
    """As far as can be known: there is an adapter, or a training of ours made the model."""
    return config.adapter is not None or bool(trainings(config))


def names_of(config: ModelConfig, with_base: bool) -> list[str]:
    """The model's short name.

    Args:
        with_base: then, of a fine-tuned one, those by which what it was fine-tuned from was known.
    """
    made = [read_json(Path(each).expanduser() / "manifest.json") or {} for each in trainings(config) if with_base]
    bases = [str(each["model_name"]) for each in made if "model_name" in each]
    return list(dict.fromkeys([short_name(config), *bases]))


def num_layers(config: ModelConfig) -> int | None:
    """Number of decoder layers, without torch and without weights; None where that cannot be told."""
    kind = kind_of(config.path)
    if kind is Kind.embedded:
        embedded = EMBEDDED.get(config.path.removeprefix("embedded:"))
        return embedded.num_layers if embedded else None
    if kind is Kind.gguf:
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


def tokenizer_file(config: ModelConfig) -> Path | None:
    """The model's tokenizer.json, where it lies on this machine already; None if it does not: nothing is fetched."""
    kind = kind_of(config.path)
    found: Path | None = None
    if kind is Kind.embedded and config.path.removeprefix("embedded:") in EMBEDDED:
        found = checkpoint_folder(config.path.removeprefix("embedded:")) / "tokenizer.json"
    elif kind is Kind.folder:
        found = Path(config.path).expanduser() / "tokenizer.json"
    elif kind is Kind.hub:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(config.path, "tokenizer.json", revision=config.revision)
        found = Path(cached) if isinstance(cached, str) else None
    return found if found is not None and found.is_file() else None


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

        def skip(kind: int, count: int = 1) -> None:
            if kind not in (string, array):
                stream.seek(count * struct.calcsize(f"<{plain[kind]}"), os.SEEK_CUR)
                return
            for _ in range(count):
                if kind == string:
                    stream.seek(number("Q"), os.SEEK_CUR)
                else:
                    skip(kind=number("I"), count=number("Q"))

        try:
            if stream.read(4) != b"GGUF":
                return None
            stream.seek(4 + 8, os.SEEK_CUR)
            for _ in range(number("Q")):
                key = stream.read(number("Q")).decode("utf-8", "replace")
                kind = number("I")
                if key.endswith(".block_count"):
                    return number(plain[kind])
                skip(kind)
        except (struct.error, KeyError, ValueError, OSError, OverflowError, MemoryError, RecursionError):
            # Cut off, damaged (there is no such place in a file), or not this version's layout.
            return None
    return None


def _checkpoint_config(config: ModelConfig) -> dict[str, Any] | None:
    """`config.json` of a folder or a hub repository."""
    kind = kind_of(config.path)
    if kind is Kind.folder:
        return read_json(Path(config.path).expanduser() / "config.json")
    if kind is Kind.hub:
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
            return read_json(Path(cached)), None
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
        Kind.embedded: _embedded_faults,
        Kind.folder: _folder_faults,
        Kind.gguf: _gguf_faults,
        Kind.hub: _hub_faults,
        Kind.nothing: _nothing_faults,
    }
    kind = kind_of(config.path)
    faults = [*by_kind[kind](config), *_code_faults(config), *_adapter_faults(config), *_device_faults(config)]
    if config.revision is not None and kind is not Kind.hub:
        faults.append(
            f"model.revision={config.revision}: only a model on the hub has revisions, and model.path={config.path} "
            f"is none. Leave it out."
        )
    return faults


def _embedded_faults(config: ModelConfig) -> list[str]:
    name = config.path.removeprefix("embedded:")
    if name not in EMBEDDED:
        return [unknown_embedded(name)]
    return _gguf_package_faults(config)


def _gguf_package_faults(config: ModelConfig) -> list[str]:
    return package_faults(f"model.path={config.path}", "gguf", "accelerate")


def _folder_faults(config: ModelConfig) -> list[str]:
    folder = Path(config.path).expanduser()
    given = f"model.path={config.path}"
    unfinished = _unfinished(given, folder)
    if unfinished:
        return unfinished
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return [
                f"{given}: this folder holds an adapter. Give its base model there, and model.adapter={config.path}"
            ]
        return [f"{given}: the folder has no config.json. A checkpoint as written by save_pretrained is needed."]
    if read_json(folder / "config.json") is None:
        return [f"{given}: config.json cannot be read as JSON. Write the checkpoint anew, with save_pretrained."]
    faults = []
    names = {path.name for path in folder.iterdir()}
    if not any(Path(name).suffix in WEIGHTS for name in names):
        pickled = sorted(name for name in names if Path(name).suffix in PICKLED_WEIGHTS)
        if not pickled:
            faults.append(f"{given}: the folder has no weights. It needs model.safetensors, or its shards and index.")
        elif not config.allow_pickle:
            faults.append(
                f"{given}: the weights are pickled ({pickled[0]}), and loading such a file can run any code. Only "
                f"safetensors are loaded unless asked for. If you trust it: model.allow_pickle=true"
            )
    index = read_json(folder / "model.safetensors.index.json") or {}
    named = index.get("weight_map", {})
    missing = sorted(set(map(str, named.values() if isinstance(named, dict) else [named])) - names)
    if missing:
        faults.append(
            f"{given}: {len(missing)} file(s) of the weights are missing: {', '.join(missing)}. Copy them too."
        )
    layers = num_layers(config)
    if layers is not None and not 0 < layers <= _MOST_LAYERS:
        faults.append(f"{given}: config.json says {layers} layers. Between 1 and {_MOST_LAYERS} are allowed.")
    for name in ("config.json", "tokenizer_config.json"):
        for key, value in (read_json(folder / name) or {}).items():
            if key.endswith("_file") and isinstance(value, str) and _leads_out(key, value):
                faults.append(f"{given}: {name} names a file outside of the folder: {key}={value}. Take it out.")
    if not any(name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece")) for name in names):
        faults.append(f"{given}: the folder has no tokenizer. Save it there too: tokenizer.save_pretrained(folder)")
    return faults


def _leads_out(key: str, value: str) -> bool:
    """Whether a file that a checkpoint names is there, outside of its folder. Many name one of the machine that they
    were made on; and the map of special tokens is not read by this key."""
    if not value or is_below(value) or key == "special_tokens_map_file":
        return False
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # no path at all
        return False


def _unfinished(given: str, folder: Path) -> list[str]:
    """The fault of a folder in which `xtransplant sft` did not come to its end: its manifest is written last."""
    run = folder.resolve().parent.parent
    if (run / TRAINED_ON).is_file():
        # What it was trained on would not be known, and not be refused.
        return [f"{given}: a checkpoint of a training that did not finish. Give what it ends with: {run}."]
    failed = read_json(folder / "failed.json")
    if (folder / "manifest.json").is_file() or (failed is None and not (folder / TRAINED_ON).is_file()):
        return []
    why = f" ({str(failed['error']).strip()})" if failed is not None and "error" in failed else ""
    return [
        f"{given}: its training did not finish{why}. Run the same `xtransplant sft` again: it goes on from its last "
        "checkpoint. If the folder is a copy of a finished one, its manifest.json is missing: copy that too."
    ]


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
    """A checkpoint that needs Python code of its own, or of the hub's, and no leave to run it."""
    described = _checkpoint_config(config) or {}
    # Only a text is a name: older versions of transformers also wrote `_attn_implementation_autoset: true`.
    attentions = [each for each in _attention_named(described) if isinstance(each, str)]
    kernels = [each for each in attentions if each not in _ATTENTION]
    if kernels:
        return [
            f"model.path={config.path}: its config.json names {kernels[0]!r} for its attention: code that would be "
            "fetched from the hub, and none is run. Take that key out of it; how attention is computed is "
            "model.attn_implementation."
        ]
    if config.trust_remote_code or "auto_map" not in described:
        return []
    # Costs the import of torch, but only for a checkpoint with code of its own.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

    if described.get("model_type") in CONFIG_MAPPING_NAMES:
        return []  # its code is an older way: transformers has the architecture by now
    named = described["auto_map"]
    files = ", ".join(sorted(map(str, named.values() if isinstance(named, dict) else [named])))
    return [
        f"model.path={config.path}: the checkpoint needs Python code that it brings along ({files}), and none is run "
        f"unless asked for. Read it; if you trust it: model.trust_remote_code=true"
    ]


def _attention_named(described: Any) -> Iterator[Any]:
    """How a checkpoint, or a part of it, wants attention to be computed."""
    for key, value in described.items() if isinstance(described, dict) else ():
        if key.strip("_").startswith("attn_implementation"):
            yield from value.values() if isinstance(value, dict) else [value]
        else:
            yield from _attention_named(value)


def _adapter_faults(config: ModelConfig) -> list[str]:
    if config.adapter is None:
        return []
    given, adapter = f"model.adapter={config.adapter}", adapter_of(config)
    assert adapter is not None
    faults = package_faults(given, "peft")
    kind = kind_of(adapter)
    described: dict[str, Any] | None = None
    if kind is Kind.folder:
        folder = Path(adapter).expanduser()
        unfinished = _unfinished(given, folder)
        if unfinished:
            return [*faults, *unfinished]
        described = read_json(folder / "adapter_config.json")
        if described is None:
            return [
                *faults,
                f"{given}: the folder has no readable adapter_config.json. It must hold an adapter saved by PEFT.",
            ]
        if not (folder / "adapter_model.safetensors").is_file():
            faults.append(
                f"{given}: the folder has no adapter_model.safetensors. Save the adapter with PEFT 0.6 or newer."
            )
    elif kind is Kind.hub:
        described, fault = _hub_json(adapter, "adapter_config.json", None)
        faults += [f"{given}: {fault}."] if fault else []
    else:
        several = ", ".join(str(each) for each in _matching(adapter))
        what = "no such folder, and not a hub id (org/name). Give the folder of a PEFT adapter"
        faults.append(f"{given}: {f'several folders match: {several}. Give one of them' if several else what}.")
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
        faults += package_faults(f"model.device_map={config.device_map}", "accelerate")
    if config.attn_implementation not in _ATTENTION:
        faults.append(
            f"model.attn_implementation={config.attn_implementation}: unknown. Allowed: {', '.join(_ATTENTION)}."
        )
    elif config.attn_implementation in _ATTENTION_PACKAGES:  # without it transformers takes a kernel of the hub's
        given, package = config.attn_implementation, _ATTENTION_PACKAGES[config.attn_implementation]
        faults += package_faults(f"model.attn_implementation={given}", package)
    return faults
