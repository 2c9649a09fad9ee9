"""What is known of a model before it is loaded: its layers and its faults; the presets."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub.constants
import pytest
import yaml
from peft import PromptTuningConfig, TaskType

from tests.unit.model_files import config
from xtransplant.config import Dtype, ModelConfig
from xtransplant.embedded import EMBEDDED
from xtransplant.models import check, num_layers

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("cache")


def test_nothing_heavy_is_needed_to_check() -> None:
    program = (
        "import sys; import xtransplant.loading; from xtransplant.config import ModelConfig\n"
        "from xtransplant.models import check, num_layers\n"
        "given = ModelConfig(name='x', path='embedded:gemma3_270m')\n"
        "assert check(given) == [] and num_layers(given) == 18\n"
        "print(*sorted(set(sys.modules) & {'torch', 'transformers', 'huggingface_hub', 'peft', 'gguf'}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"num_hidden_layers": 7}, 7),
        ({"n_layer": 6}, 6),
        ({"num_layers": 5}, 5),
        ({"text_config": {"num_hidden_layers": 34}, "vision_config": {"num_hidden_layers": 27}}, 34),
        ({"hidden_size": 8}, None),
        ({"text_config": None}, None),
    ],
)
def test_layers_are_read_from_config_json(described: dict[str, Any], expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert num_layers(config(tmp_path)) == expected


def test_layers_of_an_embedded_model_need_no_file() -> None:
    assert num_layers(config("embedded:smollm2_135m")) == 30
    assert num_layers(config("embedded:smollm3")) is None


def test_layers_are_read_from_a_gguf_header(tiny_gguf: Path, tmp_path: Path) -> None:
    assert num_layers(config(tiny_gguf)) == 1
    # After an array of texts, one of numbers, and a text.
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "odd")
    writer.add_array("before.texts", ["a", "bc", "déf"])
    writer.add_array("before.numbers", [1.5, 2.5])
    writer.add_bool("before.flag", True)
    writer.add_string("before.text", "block_count")
    writer.add_block_count(12)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert num_layers(config(tmp_path / "odd.gguf")) == 12
    content = (tmp_path / "odd.gguf").read_bytes()
    for length in (3, 8, 30, len(content) // 2):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        assert num_layers(config(tmp_path / "cut.gguf")) is None


@pytest.mark.parametrize("length", [2**40, 2**60, 2**64 - 1])
def test_a_damaged_gguf_header_has_no_layers(length: int, tmp_path: Path) -> None:
    """A text that is said to be longer than a file can be."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + struct.pack("<Q", 1) + b"a" + struct.pack("<IQ", 8, length)
    (tmp_path / "damaged.gguf").write_bytes(header)
    assert num_layers(config(tmp_path / "damaged.gguf")) is None


def damaged(folder: Path, case: str) -> Path:
    weights = folder / "model.safetensors"
    if case == "no config":
        (folder / "config.json").unlink()
    elif case == "broken config":
        (folder / "config.json").write_text("{")
    elif case == "no weights":
        weights.unlink()
    elif case == "pickled":
        weights.rename(folder / "pytorch_model.bin")
    elif case == "missing shard":
        weights.rename(folder / "model-00001-of-00002.safetensors")
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    elif case == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif case == "adapter":
        (folder / "config.json").unlink()
        (folder / "adapter_config.json").write_text("{}")
    elif case == "own code":
        described = json.loads((folder / "config.json").read_text())
        described |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
        (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no config", "no config.json"),
        ("broken config", "config.json cannot be read"),
        ("no weights", "has no weights"),
        ("pickled", r"pickled \(pytorch_model.bin\).*model.allow_pickle=true"),
        ("missing shard", "1 file.* missing: model-00002-of-00002.safetensors"),
        ("no tokenizer", "no tokenizer"),
        ("adapter", "holds an adapter.*model.adapter="),
        ("own code", "modeling_mine.Mine.*model.trust_remote_code=true"),
    ],
)
def test_faults_of_a_folder(case: str, expected: str, folder: Path) -> None:
    (fault,) = check(config(damaged(folder, case)))
    assert re.search(expected, fault)
    assert fault.startswith(f"model.path={folder}: ")


def test_what_was_asked_for_is_no_fault(folder: Path) -> None:
    assert check(config(folder)) == []
    assert check(config(damaged(folder, "own code"), trust_remote_code=True)) == []
    assert check(config(damaged(folder, "pickled"), allow_pickle=True, trust_remote_code=True)) == []


def test_what_older_versions_left_in_a_checkpoint_is_no_fault(folder: Path) -> None:
    """Nothing is fetched or read by it: a mark, a path of another machine, one that nobody looks at."""
    (folder / "there.json").write_text("{}")
    told: dict[str, Any] = {"_attn_implementation_autoset": True, "_attn_implementation": "sdpa"}
    elsewhere: dict[str, Any] = {
        "special_tokens_map_file": str(folder / "there.json"),
        "tokenizer_file": "/nowhere/.cache/tokenizer.json",
    }
    for name, more in {"config.json": told, "tokenizer_config.json": elsewhere}.items():
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | more))
    assert check(config(folder)) == []


def test_old_code_of_an_architecture_that_is_known_by_now_is_not_needed(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    described["auto_map"] = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    (folder / "config.json").write_text(json.dumps(described))
    assert check(config(folder)) == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("???", "model.path: not given"),
        ("", "model.path: not given"),
        ("embedded:gemma_270m", "Did you mean embedded:gemma3_270m"),
        ("embedded:zzz", "Embedded are: gemma3_270m, smollm2_135m. For any other"),
        ("gemma3_270m", "Did you mean model.path=embedded:gemma3_270m"),
        ("/no/such/folder", "no such folder or file"),
        ("./models/mine", "no such folder or file"),
        ("mine.gguf", "no such folder or file"),
        ("a/b/c", "not a hub id"),
        ("org/name", "not in the hub cache, and HF_HUB_OFFLINE"),
    ],
)
def test_faults_of_a_path(path: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (fault,) = check(config(path))
    assert expected in fault
    assert num_layers(config(path)) is None


def test_a_file_that_is_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    (fault,) = check(config(tmp_path / "model.gguf"))
    assert "not a GGUF file" in fault
    assert num_layers(config(tmp_path / "model.gguf")) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"device": "gpu"}, "model.device=gpu: no such device"),
        ({"device": "cuda:x"}, "model.device=cuda:x: no such device"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
        ({"device_map": "everywhere"}, "model.device_map=everywhere: unknown"),
        ({"attn_implementation": "fast"}, "model.attn_implementation=fast: unknown"),
        ({"revision": "main"}, "only a model on the hub has revisions"),
        ({"adapter": "/no/such"}, "model.adapter=/no/such: no such folder"),
    ],
)
def test_faults_of_other_keys(values: dict[str, Any], expected: str, llama: Path) -> None:
    (fault,) = check(config(llama, **values))
    assert expected in fault


def test_the_folder_of_an_unfinished_training(llama: Path, tmp_path: Path) -> None:
    folder, dots = tmp_path / "runs" / "adapter", tmp_path / "runs" / ".locks"
    for each in (folder, dots):
        each.mkdir(parents=True)
    (folder / "trained_on.json").write_text("{}")
    given = config(llama, adapter=f"{tmp_path}/runs/*")
    for faults in (check(given), check(config(folder))):
        (fault,) = faults
        assert "its training did not finish. Run the same `xtransplant sft` again" in fault
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    for faults in (check(config(llama, adapter=str(checkpoint))), check(config(checkpoint))):
        assert "a checkpoint of a training that did not finish" in faults[0]
    (folder / "failed.json").write_text('{"error": "The disk is full."}')
    assert "did not finish (The disk is full.)" in check(given)[0]
    for name in ("adapter_config.json", "manifest.json"):
        (folder / name).write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").touch()
    assert check(given) == []
    (tmp_path / "runs" / "other").mkdir()
    (fault,) = check(given)
    assert f"several folders match: {folder}, {tmp_path}/runs/other. Give one of them." in fault


def test_all_faults_at_once() -> None:
    given = config("embedded:gema", adapter="/no/such", device="cpux", attn_implementation="fast")
    assert [fault.partition(":")[0] for fault in check(given)] == [
        "model.path=embedded", "model.adapter=/no/such", "model.device=cpux", "model.attn_implementation=fast"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("package", "values"),
    [("peft", {"adapter": "."}), ("accelerate", {"device_map": "auto"}), ("gguf", {"path": "embedded:gemma3_270m"})],
)
def test_a_missing_package_comes_with_its_command(
    package: str, values: dict[str, str], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    faults = check(config(**{"path": llama, **values}))
    assert any(f"needs {package}" in fault and f"Run: pip install {package}" in fault for fault in faults)


def test_faults_of_an_adapter(tmp_path: Path, llama: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (fault,) = check(config(llama, adapter=str(adapter)))
    assert "no readable adapter_config.json" in fault
    described = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    described.save_pretrained(str(adapter))
    no_weights, no_merge = check(config(llama, adapter=str(adapter)))
    assert "no adapter_model.safetensors" in no_weights
    assert "PROMPT_TUNING" in no_merge


# --- The hub ---------------------------------------------------------------------------------------------------------


def test_a_revision_that_is_not_there(hub: str) -> None:
    (fault,) = check(config("org/tiny", revision="v2"))
    assert "not in the hub cache" in fault


class Answer:
    """The hub's reply to one request."""

    def __init__(self, error: Exception | None, body: dict[str, Any] | None = None) -> None:
        self.error, self.body = error, body

    def get(self, *_: Any, **__: Any) -> Answer:
        if self.error is not None:
            raise self.error
        return self

    def json(self) -> Any:
        return self.body


def hub_error(name: str) -> Exception:
    kind = getattr(huggingface_hub.errors, name)
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("GatedRepoError", "Accept the terms on its hub page"),
        ("RevisionNotFoundError", "no revision 'v2'"),
        ("RepositoryNotFoundError", r"no such \(public\) repository"),
        ("EntryNotFoundError", "has no config.json"),
        (ConnectionError("no route"), "cannot be reached.*model=gemma3_270m"),
    ],
)
def test_what_the_hub_says(error: str | Exception, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    answer = Answer(hub_error(error) if isinstance(error, str) else error)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: answer)
    (fault,) = check(config("org/name", revision="v2"))
    assert re.search(expected, fault)


def test_a_slow_hub_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadTimeout(Exception):
        pass

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: Answer(ReadTimeout()))
    assert check(config("org/name")) == []
    assert num_layers(config("org/name")) is None


def test_layers_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    answer = Answer(None, {"num_hidden_layers": 28})
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: answer)
    monkeypatch.setattr("huggingface_hub.utils.hf_raise_for_status", lambda response: None)
    assert num_layers(config("org/name")) == 28


# --- Presets ---------------------------------------------------------------------------------------------------------


PRESETS = sorted((ROOT / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_complete(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    preset = yaml.safe_load(text)
    assert text.startswith(f"# xtransplant evaluate model={path.stem}")
    assert set(preset) <= {field.name for field in dataclasses.fields(ModelConfig)}
    if path.stem == "hf":
        assert preset == {"name": "${.path}", "path": "???"}
        return
    assert preset["name"] == path.stem
    assert preset["licence"]
    assert "revision" not in preset
    assert preset.get("dtype", "float32") in Dtype.__members__
    embedded = preset["path"].removeprefix("embedded:")
    if embedded != preset["path"]:
        assert embedded == path.stem
        assert preset["licence"] == EMBEDDED[embedded].licence
    else:
        assert re.fullmatch(r"[\w-]+/[\w.-]+", preset["path"])


def test_every_embedded_model_has_a_preset() -> None:
    assert set(EMBEDDED) <= {path.stem for path in PRESETS}
    for embedded in EMBEDDED.values():
        assert all(re.fullmatch(r"[0-9a-f]{64}", chunk.sha256) for chunk in embedded.chunks)
        assert re.fullmatch(r"[0-9a-f]{64}", embedded.sha256)
