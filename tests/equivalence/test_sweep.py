"""The sweep over all layer pairs, cell by cell, against one hooked full forward a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch

from tests.equivalence.test_architectures import decoder_of, every_case, every_site, hook_count, reference
from tests.equivalence.tiny import DEVICE, VOCAB
from xtransplant import engine, output_head, processor, shared_prefix, sweep
from xtransplant.engine import Decoder
from xtransplant.types import PAPER, Cell, Component, Intervention, Site

# Longer and shorter than the sliding windows (6) of the tiny models; one prompt of a single token.
LENGTHS = [15, 9, 4, 12]
_draw = torch.Generator().manual_seed(3)
TARGETS = [torch.randint(3, VOCAB, (n,), generator=_draw).tolist() for n in LENGTHS]
SOURCES = [torch.randint(3, VOCAB, (n,), generator=_draw).tolist() for n in reversed(LENGTHS)]
# Shared beginnings, a choice that is another's beginning, unlike numbers and lengths.
CHOICES = [[[5, 7, 9], [5, 7, 8], [5, 8], [11]], [[6], [7]], [[5, 7], [5, 7, 9]], [[20, 21, 22, 23, 24, 25, 26]]]
ALL_PAIRS = [(source, target) for source in range(4) for target in range(4)]
# Those that the shared attention does not know: ALiBi, and Falcon's own attention code.
SLOW = {"bloom", "falcon", "falcon_new", "falcon_alibi"}


def cells_of(components: Sequence[Component], pairs: Sequence[tuple[int, int]] = ALL_PAIRS) -> list[Cell]:
    return [Cell(component, *pair) for component in components for pair in pairs]


def expected_scores(decoder: Decoder, d: int, cell: Cell, site: Site) -> list[tuple[float, bool]]:
    found = []
    for choice in CHOICES[d]:
        logprobs = reference(
            decoder, SOURCES[d], TARGETS[d], choice[:-1], cell.component, site, (cell.source, cell.target)
        )
        own = logprobs[range(len(choice)), choice]
        found.append((float(own.sum()), bool((own == logprobs.max(-1).values).all())))
    return found


@every_case
@every_site
def test_every_cell_equals_one_hooked_forward(case: str, site: Site) -> None:
    decoder = decoder_of(case)
    components = list(Component)
    vectors = engine.capture(decoder, SOURCES, components, site)
    cells = cells_of(components)
    found = sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES, Intervention(site))
    for d, scores in enumerate(found):
        assert scores.logprob.shape == (1 + len(cells), len(CHOICES[d]))
        for row, cell in enumerate(cells, 1):
            expected = expected_scores(decoder, d, cell, site)
            np.testing.assert_allclose(scores.logprob[row], [logprob for logprob, _ in expected], atol=1e-3, rtol=0)
            assert scores.greedy[row].tolist() == [greedy for _, greedy in expected]
    # The untouched prompts, which come along.
    vanilla = engine.score(decoder, engine.prefill(decoder, TARGETS), CHOICES)
    for scores, plain in zip(found, vanilla, strict=True):
        np.testing.assert_allclose(scores.logprob[0], [score.logprob for score in plain], atol=1e-4, rtol=0)
    assert len({tuple(row.round(3)) for row in found[0].logprob}) > len(cells) / 2, "transplants without an effect"
    assert hook_count(decoder.model) == 0


@every_case
def test_which_way_is_taken(case: str) -> None:
    decoder = decoder_of(case)
    reasons = {sweep.why_slow(decoder, Intervention(site)) for site in Site}
    assert (reasons != {None}) == (case in SLOW), reasons


@every_case
def test_texts_equal_one_generation_a_cell(case: str) -> None:
    decoder = decoder_of(case)
    components = [Component.ffn, Component.attn]
    vectors = engine.capture(decoder, SOURCES, components)
    cells = cells_of(components)

    def ended(tokens: list[int]) -> bool:
        # Some end at once, some late, some never.
        return sum(tokens) % 7 == 0

    found = sweep.generate_cells(decoder, TARGETS, vectors, cells, 8, ended)
    lengths = set()
    for d, target in enumerate(TARGETS):
        plain = engine.generate(decoder, engine.prefill(decoder, [target]), 8, ended)
        assert found[d][0] == plain[0]
        for row, cell in enumerate(cells, 1):
            prefix = engine.read_and_write(decoder, [SOURCES[d]], [target], *cell)
            assert found[d][row] == engine.generate(decoder, prefix, 8, ended)[0], cell
            lengths.add(len(found[d][row]))
    assert len(lengths) > 2
    assert hook_count(decoder.model) == 0


@pytest.mark.parametrize("case", ["llama", "bloom"])
def test_any_order_of_cells_gives_the_same(case: str) -> None:
    """A rule names its cells by their scores: components take turns within a target layer."""
    decoder = decoder_of(case)
    components = [Component.ffn, Component.attn]
    vectors = engine.capture(decoder, SOURCES, components)
    cells = cells_of(components)
    mixed = [int(n) for n in torch.randperm(len(cells), generator=torch.Generator().manual_seed(5))]
    ordered = sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES)
    shuffled = sweep.score_cells(decoder, TARGETS, vectors, [cells[n] for n in mixed], CHOICES)
    for one, other in zip(ordered, shuffled, strict=True):
        np.testing.assert_allclose(other.logprob[1:], one.logprob[1:][mixed], atol=1e-4, rtol=0)
    texts = sweep.generate_cells(decoder, TARGETS, vectors, cells, 6, lambda tokens: False)
    again = sweep.generate_cells(decoder, TARGETS, vectors, [cells[n] for n in mixed], 6, lambda tokens: False)
    for text, repeated in zip(texts, again, strict=True):
        assert repeated[1:] == [text[1 + n] for n in mixed]


@pytest.mark.parametrize("screened", [True, False])
def test_any_blocks_of_the_output_head_give_the_same(screened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny vocabulary is one block; a real one is many."""
    decoder = decoder_of("llama")
    vectors = engine.capture(decoder, SOURCES, [Component.ffn])
    cells = cells_of([Component.ffn])
    scores = sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES)
    texts = sweep.generate_cells(decoder, TARGETS, vectors, cells, 6, lambda tokens: False)
    monkeypatch.setattr(output_head, "COLUMNS", 64)
    monkeypatch.setattr(output_head, "ROWS", 7)
    monkeypatch.setattr(output_head, "_screens", WeakKeyDictionary())
    monkeypatch.setattr(output_head, "multiplies_bfloat16", lambda: screened)
    assert VOCAB > 64
    for one, other in zip(scores, sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES), strict=True):
        np.testing.assert_allclose(other.logprob, one.logprob, atol=1e-4, rtol=0)
        np.testing.assert_array_equal(other.greedy, one.greedy)
    assert sweep.generate_cells(decoder, TARGETS, vectors, cells, 6, lambda tokens: False) == texts


@pytest.mark.skipif(DEVICE != "cpu" or not torch.backends.mkldnn.is_available(), reason="no oneDNN here")
@pytest.mark.parametrize("case", ["llama", "gemma3_text", "gpt_neox"])
def test_either_library_multiplies(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever this processor takes, the other is right too; and the one asked for is the one used."""
    decoder = decoder_of(case)
    components = [Component.ffn, Component.attn]
    vectors = engine.capture(decoder, SOURCES, components)
    cells = cells_of(components)
    found: dict[bool, Any] = {}
    products: list[torch.Tensor] = []
    in_blocks = processor._in_blocks

    def watched(*args: torch.Tensor) -> torch.Tensor:
        products.append(args[0])
        return in_blocks(*args)

    monkeypatch.setattr(processor, "_in_blocks", watched)
    for fast in (True, False):
        monkeypatch.setattr(processor, "_has_faster", lambda fast=fast: fast)
        products.clear()
        scores = sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES)
        scored = len(products)
        found[fast] = scores, sweep.generate_cells(decoder, TARGETS, vectors, cells, 6, lambda tokens: False)
        assert (scored > 0, len(products) > scored) == (fast, fast)
    for one, other in zip(found[True][0], found[False][0], strict=True):
        np.testing.assert_allclose(other.logprob, one.logprob, atol=1e-4, rtol=0)
    assert found[True][1] == found[False][1]


@pytest.mark.parametrize("case", ["llama", "gemma2", "gemma3_text"])
def test_attention_some_queries_at_a_time_gives_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of(case)
    vectors = engine.capture(decoder, SOURCES, [Component.attn])
    cells = cells_of([Component.attn])
    expected = sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES)
    monkeypatch.setattr(shared_prefix, "_LOGIT_BYTES", 4096)
    for one, other in zip(expected, sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES), strict=True):
        np.testing.assert_allclose(other.logprob, one.logprob, atol=1e-4, rtol=0)


def test_no_new_tokens_are_none() -> None:
    decoder = decoder_of("llama")
    vectors = engine.capture(decoder, SOURCES, [Component.ffn])
    texts = sweep.generate_cells(decoder, TARGETS, vectors, cells_of([Component.ffn]), 0, lambda tokens: False)
    assert texts == [[[]] * 17] * len(TARGETS)


def test_a_batch_keeps_to_the_memory_its_prompts_included() -> None:
    """Few cells and long prompts: what fills the memory is the prompts' cache."""
    decoder = decoder_of("llama")
    prompts = [[5] * length for length in range(200, 260)]
    one = sweep.cost(decoder, 259, 2, [Cell(Component.ffn, 0, 0)], PAPER).memory
    for memory in (one, 7 * one):
        chunks = list(sweep.batches(decoder, prompts, [2] * 60, 1, memory))
        assert sorted(d for chunk in chunks for d in chunk) == list(range(60))
        for chunk in chunks:
            longest = max(len(prompts[d]) for d in chunk)
            needed = len(chunk) * sweep.cost(decoder, longest, 2, [Cell(Component.ffn, 0, 0)], PAPER).memory
            assert needed <= memory or len(chunk) == 1
    # A killed run has these to do again.
    most = sweep._MOST_DOCUMENTS[decoder.device.type]
    assert max(map(len, sweep.batches(decoder, [[5, 6]] * 300, [1] * 300, 1, 2**40))) == most


def test_broken_attention_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN too, which no comparison finds too large."""
    decoder = decoder_of("llama")
    for factor in (1.5, float("nan")):
        monkeypatch.setattr(sweep, "_slow", WeakKeyDictionary())
        attend = shared_prefix._attend

        def broken(*given: Any, attend: Any = attend, factor: float = factor) -> Any:
            out, lse = attend(*given)
            return out * factor, lse

        with monkeypatch.context() as patched:
            patched.setattr(shared_prefix, "_attend", broken)
            assert "differ by" in str(sweep.why_slow(decoder))


@pytest.mark.parametrize("case", ["llama", "gemma3_text", "bloom"])
def test_little_memory_gives_the_same(case: str) -> None:
    decoder = decoder_of(case)
    vectors = engine.capture(decoder, SOURCES, [Component.ffn])
    cells = cells_of([Component.ffn])[::-1]  # any order of the cells
    plenty = sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES)
    scarce = sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES, memory=1)
    for one, other in zip(plenty, scarce, strict=True):
        np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-4, rtol=0)
    texts = sweep.generate_cells(decoder, TARGETS, vectors, cells, 6, lambda tokens: False)
    assert texts == sweep.generate_cells(decoder, TARGETS, vectors, cells, 6, lambda tokens: False, memory=1)


@pytest.mark.parametrize("case", ["gpt2", "mistral", "falcon"])
def test_single_token_prompts(case: str) -> None:
    decoder = decoder_of(case)
    source, target = [9], [4]
    vectors = engine.capture(decoder, [source], [Component.ffn])
    [scores] = sweep.score_cells(decoder, [target], vectors, [Cell(Component.ffn, 2, 1)], [[[5, 6]]])
    expected = reference(decoder, source, target, [5], Component.ffn, Site.module, (2, 1))
    assert scores.logprob[1, 0] == pytest.approx(float(expected[0, 5] + expected[1, 6]), abs=1e-3)


def test_hooks_and_attention_are_put_back_after_a_failure() -> None:
    decoder = decoder_of("llama")
    config = decoder.model.config
    before = config._attn_implementation
    wrong_size = {Component.ffn: torch.zeros(4, len(TARGETS), 7, device=decoder.device)}
    with pytest.raises(RuntimeError):
        sweep.score_cells(decoder, TARGETS, wrong_size, [Cell(Component.ffn, 0, 0)], CHOICES)
    assert config._attn_implementation == before
    assert hook_count(decoder.model) == 0


def test_cost_grows_with_the_cells() -> None:
    decoder = decoder_of("llama")
    few = sweep.cost(decoder, 20, 3, cells_of([Component.ffn], [(0, 3)]), PAPER)
    many = sweep.cost(decoder, 20, 3, cells_of([Component.ffn]), PAPER)
    assert 0 < few.flops < many.flops and 0 < few.memory < many.memory
