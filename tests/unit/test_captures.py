"""The bank of source vectors: whose they are, and what stands in for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.equivalence.test_architectures import decoder_of
from xtransplant import engine
from xtransplant.captures import Captures
from xtransplant.types import Component, Control, Site

PROMPTS = [(5, 6, 7), (9, 8)]
SOURCES = [(prompt,) for prompt in PROMPTS]


def test_vectors_are_those_of_the_engine_and_come_from_the_folder(tmp_path: Path) -> None:
    decoder = decoder_of("llama")
    expected = engine.capture(decoder, PROMPTS, [Component.ffn])[Component.ffn]
    for computed in (2, 0):
        bank = Captures(decoder, tmp_path, {"files": {"a": "1"}})
        bank.prepare(SOURCES, [Component.ffn], Site.module)
        assert bank.computed == computed
        torch.testing.assert_close(bank.vectors(SOURCES, [Component.ffn], Site.module)[Component.ffn], expected)


def test_another_model_has_another_bank(tmp_path: Path) -> None:
    """Of the same architecture and name: other weights, adapter, dtype or attention code."""
    decoder = decoder_of("llama")
    facts: dict[str, Any] = {
        "files": {"a": "1"},
        "adapter": None,
        "dtype": "float32",
        "attn_implementation": "sdpa",
        "class": "Llama",
    }
    changes: list[dict[str, Any]] = [
        {},
        {"files": {"a": "2"}},
        {"adapter": {"files": {}}},
        {"dtype": "bfloat16"},
        {"class": "Other"},
    ]
    changes.append({"attn_implementation": "eager"})
    banks = [Captures(decoder, tmp_path, facts | change) for change in changes]
    assert len({bank.folder for bank in banks}) == len({bank.model for bank in banks}) == len(changes)


def test_noise_has_the_lengths_of_what_it_replaces() -> None:
    decoder = decoder_of("llama")
    real = Captures(decoder, None, {}).vectors(SOURCES, [Component.ffn], Site.module)[Component.ffn]
    noise = [
        Captures(decoder, None, {}, Control.noise, seed).vectors(SOURCES, [Component.ffn], Site.module)[Component.ffn]
        for seed in (1, 1, 2)
    ]
    torch.testing.assert_close(noise[0].norm(dim=-1), real.norm(dim=-1))
    assert torch.equal(noise[0], noise[1])
    for other in (real, noise[2]):
        cosine = torch.nn.functional.cosine_similarity(noise[0], other, dim=-1)
        assert cosine.abs().max() < 0.9
