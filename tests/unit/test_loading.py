"""Loading: what is loaded, what is kept, what is refused, and what is recorded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.equivalence.tiny import CASES, save_checkpoint
from tests.unit.model_files import Packages, config, logits, sha256
from xtransplant import loading
from xtransplant.config import Dtype
from xtransplant.embedded import embedded_folder, sha256_of
from xtransplant.loading import load
from xtransplant.models import check, num_layers
from xtransplant.types import XTransplantError

pytestmark = pytest.mark.usefixtures("cache")


def test_a_folder_is_loaded_for_reading_only(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load(config(llama, device="cpu"))
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
    first = load(config(folder))
    assert load(config(folder)) is first
    assert load(dataclasses.replace(config(folder), name="another", licence="MIT")) is first
    half = load(config(folder, dtype=Dtype.bfloat16))
    assert half is not first
    assert half.model.dtype == torch.bfloat16
    described = (folder / "config.json").read_text()
    (folder / "config.json").write_text(described + "\n")  # the files changed: load anew
    again = load(config(folder, dtype=Dtype.bfloat16))
    assert again is not half


def test_dtype_auto_is_that_of_the_checkpoint(tmp_path: Path, llama: Path) -> None:
    AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path)
    assert load(config(tmp_path, dtype=Dtype.auto)).provenance["dtype"] == "float16"
    assert load(config(tmp_path)).provenance["dtype"] == "float32"


def test_device_map_places_the_model(llama: Path) -> None:
    loaded = load(config(llama, device_map="auto"))
    assert loaded.provenance["device_map"] == "auto"
    assert loaded.model.device.type in {"cpu", "cuda", "mps"}


def test_a_gguf_file_is_loaded_as_it_is(tiny_gguf: Path) -> None:
    loaded = load(config(tiny_gguf))
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
        load(config(folder))
    loaded = load(config(folder, allow_pickle=True))
    assert torch.equal(logits(loaded.model), expected)
    assert "pytorch_model.bin" in loaded.provenance["files"]


def test_safetensors_are_preferred_where_both_are(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    loaded = load(config(folder, allow_pickle=True))
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

    loaded = load(config(llama, adapter=str(tmp_path / "adapter")))
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    plain = AutoModelForCausalLM.from_pretrained(llama)
    assert [name for name, _ in loaded.model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert torch.allclose(logits(loaded.model), expected, atol=1e-5)
    assert not torch.allclose(logits(plain), expected, atol=1e-2)
    recorded = loaded.provenance["adapter"]
    assert (recorded["type"], recorded["merged"], recorded["revision"]) == ("LORA", True, None)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    assert recorded["files"]["adapter_model.safetensors"] == sha256(weights)

    # With the manifest of a training of ours it is merged into the weights that it was trained on, and into no others.
    manifest: dict[str, Any] = {"job": "sft", "model": {"path": "org/tiny", "files": {"renamed.safetensors": "0" * 64}}}
    (tmp_path / "adapter" / "manifest.json").write_text(json.dumps(manifest))
    given = config(llama, adapter=str(tmp_path / "adapter"))
    for refuse in (lambda: loading.load_anew(given), lambda: loading.check_here(given, chat=False)):
        with pytest.raises(
            XTransplantError, match=rf"trained on org/tiny, .*0000….*model\.path={llama} have .*own model"
        ):
            refuse()
    manifest["model"]["files"] = {"renamed.safetensors": sha256(llama / "model.safetensors"), "config.json": "other"}
    (tmp_path / "adapter" / "manifest.json").write_text(json.dumps(manifest))
    loading.check_here(given, chat=False)


def test_of_a_gemma_3_that_takes_pictures_the_language_model_is_used(tmp_path: Path) -> None:
    save_checkpoint("gemma3", tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(whole).__name__ == "Gemma3ForConditionalGeneration"
    loaded = load(config(tmp_path))
    assert type(loaded.model).__name__ == "Gemma3ForCausalLM"
    assert loaded.model.get_submodule("model.layers.3.mlp") is not None
    assert torch.equal(logits(loaded.model), logits(whole))
    assert num_layers(config(tmp_path)) == loaded.provenance["num_layers"] == 4


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_loads_with_the_defaults(case: str, tmp_path: Path) -> None:
    given = config(save_checkpoint(case, tmp_path))
    assert check(given) == []
    recorded = load(given).provenance
    assert recorded["num_layers"] == num_layers(given)
    # These two have no other in transformers; the record says so.
    assert recorded["attn_implementation"] == ("eager" if case in {"bloom", "gemma2"} else "sdpa")


def test_attention_is_as_asked_for(llama: Path) -> None:
    assert load(config(llama, attn_implementation="eager")).provenance["attn_implementation"] == "eager"


def test_a_device_that_is_not_there(llama: Path) -> None:
    with pytest.raises(XTransplantError, match=r"model\.device=cuda:99: PyTorch finds no such GPU here.*cpu"):
        load(config(llama, device="cuda:99"))


def test_unreadable_weights_are_an_error_not_a_traceback(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(XTransplantError, match="could not be loaded"):
        load(config(folder))


def test_weights_that_are_lacking_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(XTransplantError, match=r"1 weights of LlamaForCausalLM are not in the checkpoint.*up_proj"):
        load(config(folder))


# --- Provenance ------------------------------------------------------------------------------------------------------


def watch_hashing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read to be hashed, from now on."""
    hashed: list[str] = []

    def watched(path: Path, *bar: Any) -> str:
        hashed.append(path.name)
        return sha256_of(path, *bar)

    monkeypatch.setattr(loading, "sha256_of", watched)
    return hashed


def test_a_changed_converted_file_is_refused(packages: Packages) -> None:
    made = embedded_folder("tiny")
    text = (made / "generation_config.json").read_text()
    (made / "generation_config.json").write_text(text.replace('"eos_token_id": 1', '"eos_token_id": 0'))
    with pytest.raises(XTransplantError, match=r"generation_config\.json has changed since it was made.*Delete"):
        load(config("embedded:tiny"))


def test_load_of_an_embedded_model_records_its_origin(packages: Packages, tiny_gguf: Path) -> None:
    loaded = load(config("embedded:tiny", licence="MIT"))
    assert loaded.provenance["revision"] is None
    assert loaded.provenance["licence"] == "MIT"
    assert loaded.provenance["made_from"]["sha256"] == sha256(tiny_gguf)
    assert loaded.provenance["made_from"]["distributions"] == ["tiny-part0==1.0", "tiny-part1==1.0"]
    assert "source.json" not in loaded.provenance["files"]


def test_a_hub_model_is_recorded_with_its_commit(hub: str, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = config("org/tiny")
    assert check(given) == []
    assert num_layers(given) == 4
    hashed = watch_hashing(monkeypatch)
    recorded = load(given).provenance
    assert recorded["revision"] == hub
    assert recorded["requested_revision"] is None
    assert recorded["files"]["model.safetensors"] == sha256(llama / "model.safetensors")
    assert recorded["files"]["config.json"] == sha256(llama / "config.json")
    assert "model.safetensors" not in hashed  # its blob is named by it


def test_hashes_of_large_files_are_kept_until_they_change(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_KEEP_SUM_OF", 4)
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    large.write_bytes(b"12345")
    small.write_bytes(b"123")
    expected = {"large.bin": sha256(large), "small.bin": sha256(small)}
    assert loading._sums([large, small]) == expected
    assert len(list((cache / "sums").iterdir())) == 1
    hashed = watch_hashing(monkeypatch)
    assert loading._sums([large, small]) == expected
    assert hashed == ["small.bin"]
    large.write_bytes(b"12346")
    assert loading._sums([large, small]) == {"large.bin": sha256(large), "small.bin": sha256(small)}


def test_hashes_work_with_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_KEEP_SUM_OF", 1)
    (tmp_path / "file").write_bytes(b"1")
    monkeypatch.setenv("XTRANSPLANT_HOME", str(tmp_path / "file"))
    assert loading._sums([tmp_path / "file"]) == {"file": sha256(tmp_path / "file")}


def test_how_attention_is_computed_is_not_the_checkpoints_to_say(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "eager"}), encoding="utf-8")
    assert load(config(folder)).provenance["attn_implementation"] == "sdpa"
    assert load(config(folder, attn_implementation="eager")).provenance["attn_implementation"] == "eager"
