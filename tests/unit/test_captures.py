"""The bank of source vectors: whose they are, and what stands in for them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.equivalence.test_architectures import decoder_of
from xtransplant import captures, engine
from xtransplant.captures import Captures
from xtransplant.types import Component, Control, Site

PROMPTS = [(5, 6, 7), (9, 8)]
SOURCES = [(prompt,) for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "_held", OrderedDict())


@pytest.mark.parametrize("kept", ["on disk", "in memory"])
def test_vectors_are_those_of_the_engine_and_computed_once(kept: str, tmp_path: Path) -> None:
    decoder = decoder_of("llama")
    expected = engine.capture(decoder, PROMPTS, [Component.ffn])[Component.ffn]
    for computed in (2, 0):
        bank = Captures(decoder, tmp_path if kept == "on disk" else None, {"files": {"a": "1"}})
        bank.prepare(SOURCES, [Component.ffn], Site.module)
        assert bank.computed == computed
        torch.testing.assert_close(bank.vectors(SOURCES, [Component.ffn], Site.module)[Component.ffn], expected)
        assert bank.computed == computed


@pytest.mark.parametrize("kept", ["on disk", "in memory"])
def test_vectors_have_the_same_bits_whatever_was_computed_before(kept: str, tmp_path: Path) -> None:
    """Of half precision, which shows best that a prompt was run with others beside it."""
    decoder = copy.deepcopy(decoder_of("llama"))
    decoder.model.bfloat16()
    generator = torch.Generator().manual_seed(0)
    sources = [
        (tuple(torch.randint(5, 60, (int(length),), generator=generator).tolist()),)
        for length in torch.randint(2, 40, (24,), generator=generator)
    ]
    found: list[torch.Tensor] = []
    histories: list[list[Any]] = [[], [sources[:5]], [sources[7:], sources[::2]]]
    for history in histories:
        captures._held.clear()
        folder = tmp_path / str(len(found)) if kept == "on disk" else None
        for before in history:
            Captures(decoder, folder, {}).prepare(before, [Component.ffn], Site.module)
        bank = Captures(decoder, folder, {})
        bank.prepare(sources[::-1], [Component.attn], Site.module)
        found.append(bank.vectors(sources, [Component.ffn], Site.module)[Component.ffn])
    assert all(torch.equal(found[0], other) for other in found[1:])
    some = engine.capture(decoder, [prompt for source in sources[:5] for prompt in source], [Component.ffn])
    assert not torch.equal(some[Component.ffn], found[0][:, :5])


def test_memory_holds_what_fits_and_was_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of("llama")
    size = 2 * decoder.num_layers * decoder.hidden_size * decoder.model.dtype.itemsize  # of a prompt, both components
    monkeypatch.setattr(captures, "_MEMORY", 2 * size)

    def computed(*prompts: tuple[int, ...]) -> int:
        bank = Captures(decoder, None, {})
        sources = [(prompt,) for prompt in prompts]
        bank.prepare(sources, [Component.ffn], Site.module)
        assert len(bank.vectors(sources, [Component.ffn], Site.module)[Component.ffn][0]) == len(prompts)
        return bank.computed

    assert [computed((5, 6)), computed((7, 8)), computed((5, 6)), computed((9, 8))] == [1, 1, 0, 1]
    assert [computed((5, 6)), computed((7, 8))] == [0, 1]
    # More than there is room for: computed where it is needed, and nothing else has to go.
    assert [computed((1, 2), (3, 4), (5, 6)), computed((7, 8))] == [3, 0]


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
