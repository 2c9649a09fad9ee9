"""From a `ModelConfig` to a loaded model: weights, a tokenizer, and where they came from."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtransplant import logs
from xtransplant.config import Dtype, ModelConfig
from xtransplant.disk import replacing
from xtransplant.embedded import (
    MARKER,
    checkpoint_folder,
    embedded_folder,
    from_pretrained,
    home,
    progress_bar,
    quiet,
    read_json,
    sha256_of,
)
from xtransplant.models import PICKLED_WEIGHTS, TRAINED_ON, WEIGHTS, Kind, check, kind_of, trainings
from xtransplant.types import XTransplantError

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_OTHER_FILES = {".json", ".model", ".jinja", ".txt", ".py", ".tiktoken"}  # configuration, tokenizer, code

# Fields of ModelConfig that do not change what is loaded.
_LABELS = {"name", "licence", "modules"}

# Of TRAINED_ON: what the documents are known by, those of earlier trainings too.
_MARKS = ("documents", "questions", "before")
# Of a folder that a run of ours wrote: its records, which say nothing of what is loaded and differ from run to run.
_RECORDS = {TRAINED_ON, "manifest.json", "results.json", "failed.json", *logs.FILES}

# Smaller files are hashed anew each time; the sums of larger ones are kept.
_KEEP_SUM_OF = 16 * 2**20


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
    loaded = load_anew(config)
    _last = key, loaded
    return loaded


def load_anew(config: ModelConfig) -> LoadedModel:
    """As `load`, but a model of the caller's own, who may change it: it is not handed out again.

    Raises:
        XTransplantError: as `load`.
    """
    global _last
    _last = None  # before the next one is loaded: both may not fit
    faults = check(config)
    if faults:
        raise XTransplantError("\n".join(faults))
    device = _device(config)
    log.info("Loading %s", config.path, extra={"event": {"event": "loading", "model": config.path}})
    where = _where(config)
    from safetensors import SafetensorError

    try:
        loaded = _load(config, where, device)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        hint = ""
        if "use_safetensors" in str(error):
            hint = "\nWeights that are pickled are loaded only if you ask for it: model.allow_pickle=true"
        raise XTransplantError(f"model.path={config.path}: could not be loaded: {error}{hint}") from error
    logs.adopt()
    return loaded


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer alone.

    Raises:
        XTransplantError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            **_where(config), trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise XTransplantError(f"model.path={config.path}: its tokenizer could not be loaded: {error}") from error
    return found


def check_here(config: ModelConfig, chat: bool) -> None:
    """What only this machine and the tokenizer can tell, and is not to be found out after the data are loaded.

    Raises:
        XTransplantError: there is no such device; the adapter was trained on other weights; or prompts are to be chats,
            and the tokenizer has no template.
    """
    if config.device not in ("auto", "cpu"):
        _device(config)
    _refuse_other_base(config)
    if chat:
        try:
            tokenizer = load_tokenizer(config)
        except XTransplantError:
            return  # said when the model is loaded
        check_chat_template(tokenizer)


def _refuse_other_base(config: ModelConfig) -> None:
    """An adapter of `xtransplant sft` is for the weights that it was trained on, wherever they lie and whatever
    they are called. Of other adapters, and of a hub's model that is not here yet, nothing is known.

    Raises:
        XTransplantError: the model has others.
    """
    folder = Path(config.adapter or "").expanduser()
    made = read_json(folder / "manifest.json") if config.adapter is not None else None
    if made is None or made.get("job") != "sft":
        return
    base = made["model"]
    # An embedded model is converted on each machine, with its versions: which it is, its name says.
    if kind_of(config.path) is Kind.embedded and base["path"] == config.path:
        return
    where = _where(config)
    place = _hub_snapshot(config) or Path(where["pretrained_model_name_or_path"])
    files = [place / where["gguf_file"]] if "gguf_file" in where else _checkpoint_files(place, with_pickled=True)
    known, found = _weights(base["files"]), _weights(_sums([path for path in files if _is_weights(path.name)]))
    if known and found and known != found:
        raise XTransplantError(
            f"model.adapter={config.adapter}: it was trained on {base['path']}, whose weights have the sha256 "
            f"{known[0][:12]}…; those of model.path={config.path} have {found[0][:12]}…. Give its own model."
        )


def _is_weights(name: str) -> bool:
    return Path(name).suffix in WEIGHTS | PICKLED_WEIGHTS | {".gguf"}


def _weights(sums: Mapping[str, str]) -> list[str]:
    """The sums of the files that are loaded: pickled ones only where there are no others."""
    named = {name: each for name, each in sums.items() if _is_weights(name)}
    pickled = [name for name in named if Path(name).suffix in PICKLED_WEIGHTS]
    return sorted(each for name, each in named.items() if len(pickled) == len(named) or name not in pickled)


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises:
    XTransplantError: prompts cannot be made chats with this tokenizer.
    """
    if tokenizer.chat_template is None:
        raise XTransplantError(
            "apply_chat_template=true: this model's tokenizer has no chat template. Use false, or an "
            "instruction-tuned model."
        )


def _load(config: ModelConfig, where: dict[str, Any], device: str | None) -> LoadedModel:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    # Otherwise transformers asks a bot on the hub to convert pickled weights, and loads what it uploads.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    where = {**where, "trust_remote_code": config.trust_remote_code}
    dtype = Dtype(config.dtype)
    on_device = device if device != "cpu" and importlib.util.find_spec("accelerate") else None
    with quiet() if _loads_fast(config, where) else nullcontext():
        checkpoint = AutoConfig.from_pretrained(**where)
        # How attention is computed is not the checkpoint's to say: it may name code on the hub.
        checkpoint._attn_implementation = None
        snapshot = _hub_snapshot(config)
        if snapshot is not None:
            where["revision"] = snapshot.name  # what is on the hub may change between two requests
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = from_pretrained(
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
    named = config.adapter
    if named is not None:
        _refuse_other_base(config)  # of a hub's model only now
        model, adapter = _merge_adapter(model, named)
        _warn_of_other_base(config, adapter)
    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    model.eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, _provenance(config, where, snapshot, model, adapter))


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
    kind = kind_of(config.path)
    if kind is Kind.embedded:
        return {"pretrained_model_name_or_path": str(embedded_folder(config.path.removeprefix("embedded:")))}
    if kind is Kind.hub:
        revision = {"revision": config.revision} if config.revision else {}
        return {"pretrained_model_name_or_path": config.path, **revision}
    path = Path(config.path).expanduser()
    if kind is Kind.gguf:
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path)}


def _loads_fast(config: ModelConfig, where: dict[str, Any]) -> bool:
    """A folder with weights below 4 GB."""
    if kind_of(config.path) not in (Kind.embedded, Kind.folder):
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
    if kind_of(adapter) is Kind.hub:
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
        **_training(folder),
    }
    return with_adapter.merge_and_unload(), described


def _warn_of_other_base(config: ModelConfig, adapter: Mapping[str, Any]) -> None:
    """Of an adapter that is not ours there is only the name that its base had; a folder's says nothing elsewhere."""
    base = adapter["base_model"]
    names = (config.path, base) if base and "training" not in adapter else ()
    if len(set(names)) == 2 and all(kind_of(each) in (Kind.embedded, Kind.hub) for each in names):
        log.warning(
            "model.adapter=%s: made for %s, says its adapter_config.json, and merged into %s.",
            config.adapter,
            base,
            config.path,
        )


# --- Provenance ------------------------------------------------------------------------------------------------------


def _provenance(
    config: ModelConfig,
    where: dict[str, Any],
    snapshot: Path | None,
    model: PreTrainedModel,
    adapter: dict[str, Any] | None,
) -> dict[str, Any]:
    """What was loaded, from where, and how, as plain values."""
    kind = kind_of(config.path)
    folder = snapshot or Path(where["pretrained_model_name_or_path"])
    gguf = where.get("gguf_file")
    sums = _sums([folder / gguf] if gguf else _checkpoint_files(folder, config.allow_pickle))
    described: dict[str, Any] = {
        "path": config.path,
        "kind": kind.value,
        "requested_revision": config.revision,
        "revision": snapshot.name if snapshot else None,
        "licence": config.licence,
        "files": sums,
        **_training(folder),
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
    if kind is Kind.embedded:
        described["made_from"] = _converted_from(config.path, folder, sums)
    return described


def _training(folder: Path) -> dict[str, Any]:
    """Which run of `xtransplant sft` made the weights of a folder, where one did."""
    record = read_json(folder / TRAINED_ON)
    if record is None:
        return {}
    return {"training": {name: value for name, value in record.items() if name not in _MARKS}}


def trained_on(config: ModelConfig) -> dict[str, set[str]]:
    """Folder of the model or its adapter that a run of ours trained -> the marks of the documents that it saw.

    As `Selection.marks`. Those of a hub repository are not looked for.

    Raises:
        XTransplantError: the record is there and cannot be read.
    """
    found = {}
    for given in trainings(config):
        path = Path(given).expanduser() / TRAINED_ON
        record = read_json(path) or {}
        try:
            found[given] = {mark for name in _MARKS for mark in record[name]}
        except (KeyError, TypeError) as error:
            raise XTransplantError(
                f"{path}: cannot be read, so it is not known what the model was trained on. Train it anew, or copy the "
                "whole folder of its run again."
            ) from error
    return found


def changed_since(config: ModelConfig, recorded: Mapping[str, Any]) -> list[str]:
    """Which files of the model and its adapter are not those that a run recorded (`LoadedModel.provenance`).

    Of a hub repository: whether its cached commit is another one.
    """
    kind = kind_of(config.path)
    if kind is Kind.hub:
        snapshot = _hub_snapshot(config)
        changed = [] if snapshot is None or snapshot.name == recorded["revision"] else [f"{config.path} on the hub"]
    elif kind is Kind.embedded:
        changed = []  # checked whenever it is loaded, and not to be fetched for this
    else:
        changed = _unlike(Path(_where(config)["pretrained_model_name_or_path"]), recorded["files"])
    adapter = recorded["adapter"]
    named = str(config.adapter)
    if adapter is not None and kind_of(named) is not Kind.hub:
        changed += _unlike(Path(named).expanduser(), adapter["files"])
    return changed


def files_here(config: ModelConfig) -> dict[str, Any] | None:
    """What can be told of `LoadedModel.provenance` without loading: `revision`, `files`, and `files` of the `adapter`.

    None: the model, or its adapter, is not on this machine yet.
    """
    kind = kind_of(config.path)
    snapshot = _hub_snapshot(config)
    gguf = None
    folder: Path | None
    if kind is Kind.hub:
        folder = snapshot
    elif kind is Kind.embedded:
        made = checkpoint_folder(config.path.removeprefix("embedded:"))
        folder = made if (made / MARKER).is_file() else None
    else:
        where = _where(config)
        folder, gguf = Path(where["pretrained_model_name_or_path"]), where.get("gguf_file")
    if folder is None:
        return None
    paths = [folder / gguf] if gguf else _checkpoint_files(folder, config.allow_pickle)
    if not any(_is_weights(path.name) for path in paths):
        return None
    adapter = None
    if config.adapter is not None:
        if kind_of(config.adapter) is Kind.hub:
            return None
        own = _checkpoint_files(Path(config.adapter).expanduser(), False)
        adapter = {"files": _sums([path for path in own if path.name.startswith("adapter_")])}
    return {"revision": snapshot.name if snapshot else None, "files": _sums(paths), "adapter": adapter}


def _unlike(folder: Path, expected: Mapping[str, str]) -> list[str]:
    there = _sums([folder / name for name in expected if (folder / name).is_file()])
    return [str(folder / name) for name, known in expected.items() if there.get(name) != known]


def _converted_from(path: str, folder: Path, sums: dict[str, str]) -> dict[str, Any]:
    """The marker of a converted folder, less its files, which must still be the ones that were written."""
    marker = read_json(folder / MARKER) or {"files": {}}
    for name, file in marker.pop("files").items():
        if sums.get(name) != file["sha256"]:
            raise XTransplantError(
                f"model.path={path}: {folder / name} has changed since it was made. Expected sha256 {file['sha256']}, "
                f"found {sums.get(name)}. Delete the folder {folder}; the next run makes it anew."
            )
    return marker


def _hub_snapshot(config: ModelConfig) -> Path | None:
    """The folder of one commit in the hub's cache, once a file of it is there; its name is the commit's hash."""
    if kind_of(config.path) is not Kind.hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(config.path, "config.json", revision=config.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _checkpoint_files(folder: Path, with_pickled: bool) -> list[Path]:
    """A checkpoint's weights, tokenizer, configuration and code."""
    suffixes = WEIGHTS | _OTHER_FILES | (PICKLED_WEIGHTS if with_pickled else set())
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in suffixes and path.is_file() and path.name != MARKER and path.name not in _RECORDS
    )


def _sums(paths: list[Path]) -> dict[str, str]:
    """File name -> sha256."""
    sums = {path: _known_sum(path) for path in paths}
    total = sum(path.stat().st_size for path, known in sums.items() if known is None)
    with progress_bar(desc="hashing the model's files", total=total, unit="B", unit_scale=True, delay=2.0) as bar:
        return {path.name: known or _computed_sum(path, bar) for path, known in sums.items()}


def _known_sum(path: Path) -> str | None:
    """The sha256 as the hub's cache has it (in a large file's name), or as kept from an earlier run."""
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", path.resolve().name):
        return path.resolve().name
    kept = read_json(_kept_sum(path))
    return kept["sha256"] if kept is not None and kept["of"] == _state(path) else None


def _computed_sum(path: Path, bar: tqdm[Any]) -> str:
    before = _state(path)
    found = sha256_of(path, bar)
    if path.stat().st_size >= _KEEP_SUM_OF:
        kept = _kept_sum(path)
        with suppress(OSError):  # a read-only cache: hash again next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as part:
                part.write_text(json.dumps({"of": before, "sha256": found}), encoding="utf-8")
    return found


def _kept_sum(path: Path) -> Path:
    return home() / "sums" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"


def _state(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
