"""What departs from the paper's transplant, against plain forwards with one hook a layer: positions, arithmetic, scope,
several layers, several source languages, zeros; alone, batched, and in a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.equivalence.test_architectures import decoder_of, first, hook_count, hooked
from tests.equivalence.tiny import DEVICE, VOCAB
from xtransplant import engine, sweep
from xtransplant.captures import Captures
from xtransplant.engine import Decoder, Writes
from xtransplant.types import PAPER, Cell, Component, Control, Intervention, Mode, Scope, Site, XTransplantError

HOWS = {
    "paper": PAPER,
    "add": Intervention(mode=Mode.add, strength=0.7),
    "subtract": Intervention(mode=Mode.add, strength=-1.5),
    "interpolate": Intervention(mode=Mode.interpolate, strength=0.3),
    "match_norm": Intervention(match_norm=True),
    "add_match_norm": Intervention(mode=Mode.add, strength=2, match_norm=True),
    "branch_interpolate": Intervention(site=Site.branch, mode=Mode.interpolate, strength=0.5, match_norm=True),
    "last_3": Intervention(positions=3),
    "last_3_add": Intervention(positions=3, mode=Mode.add, match_norm=True),
    "every_step": Intervention(scope=Scope.every_step),
    "every_step_add": Intervention(scope=Scope.every_step, mode=Mode.add, strength=0.5),
    "last_2_every_step": Intervention(positions=2, scope=Scope.every_step, mode=Mode.interpolate, strength=0.8),
}
every_how = pytest.mark.parametrize("name", HOWS)
# Plain, with norms after the modules and a sliding window, with learned positions, with ALiBi (no shared attention).
every_case = pytest.mark.parametrize("case", ["llama", "gemma3_text", "gpt2", "bloom"])

_draw = torch.Generator().manual_seed(11)


def _prompt(length: int) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=_draw).tolist()


TARGETS = [_prompt(n) for n in (11, 6, 4)]
SOURCES = [_prompt(n) for n in (5, 9, 6)]
CHOICES = [[[5, 7, 9], [5, 7, 8], [11]], [[6], [7, 5]], [[20, 21, 22, 23]]]


@torch.no_grad()
def read(decoder: Decoder, source: Sequence[int], component: Component, layer: int, site: Site) -> Tensor:
    """[T, H]: what a module gives on a prompt."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(first(output).reshape(len(source), -1).clone())

    with hooked(decoder.module_at(layer, component, site), keep):
        decoder.model(input_ids=torch.tensor([list(source)], device=DEVICE), use_cache=False)
    return found[0]


@torch.no_grad()
def reference(
    decoder: Decoder, vectors: Sequence[Tensor], targets: Sequence[int], prompt: Sequence[int], tail: Sequence[int],
    component: Component, how: Intervention,
) -> Tensor:  # fmt: skip
    """Log-probabilities [len(tail) + 1, V] after the prompt and each token behind it, in one plain forward.

    Args:
        vectors: for each target layer what is written at the prompt's end, [P, H].
    """
    length = len(prompt) + len(tail)

    def write(read: Tensor) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            new = first(output).clone()
            rows = new.view(length, -1)
            places = {len(prompt) - len(read) + n: read[n] for n in range(len(read))}
            if how.scope is Scope.every_step:
                places |= {len(prompt) + n: read[-1] for n in range(len(tail))}
            for place, vector in places.items():
                own = rows[place].clone()
                v = vector * own.norm() / vector.norm() if how.match_norm else vector
                if how.mode is Mode.replace:
                    rows[place] = v
                elif how.mode is Mode.add:
                    rows[place] = own + how.strength * v
                else:
                    rows[place] = (1 - how.strength) * own + how.strength * v
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    with ExitStack() as stack:
        for target, vector in zip(targets, vectors, strict=True):
            stack.enter_context(hooked(decoder.module_at(target, component, how.site), write(vector)))
        logits = decoder.model(input_ids=torch.tensor([[*prompt, *tail]], device=DEVICE), use_cache=False).logits
    return logits[0, len(prompt) - 1 :].log_softmax(-1)


def expected_scores(decoder: Decoder, vectors: list[Tensor], targets: list[int], d: int, how: Intervention,
                    component: Component = Component.ffn) -> list[tuple[float, bool]]:  # fmt: skip
    found = []
    for choice in CHOICES[d]:
        logprobs = reference(decoder, vectors, targets, TARGETS[d], choice[:-1], component, how)
        own = logprobs[range(len(choice)), choice]
        found.append((float(own.sum()), bool((own == logprobs.max(-1).values).all())))
    return found


def last(decoder: Decoder, d: int, layer: int, how: Intervention, component: Component = Component.ffn) -> Tensor:
    return read(decoder, SOURCES[d], component, layer, how.site)[-int(how.positions) :]


@every_case
@every_how
def test_a_batch_equals_one_hook_a_prompt(case: str, name: str) -> None:
    decoder, how = decoder_of(case), HOWS[name]
    for component in (Component.ffn, Component.attn):
        prefix = engine.read_and_write(decoder, SOURCES, TARGETS, component, 2, 1, how)
        assert prefix.written == len(TARGETS)
        for d, scores in enumerate(engine.score(decoder, prefix, CHOICES)):
            expected = expected_scores(decoder, [last(decoder, d, 2, how, component)], [1], d, how, component)
            np.testing.assert_allclose([s.logprob for s in scores], [e for e, _ in expected], atol=1e-3, rtol=0)
            assert [score.greedy for score in scores] == [greedy for _, greedy in expected]
    assert hook_count(decoder.model) == 0


@every_case
@every_how
def test_every_cell_of_a_sweep_equals_one_hooked_forward(case: str, name: str) -> None:
    decoder, how = decoder_of(case), HOWS[name]
    components = [Component.ffn, Component.attn]
    positions = None if how.positions == 1 else int(how.positions)
    vectors = engine.capture(decoder, SOURCES, components, how.site, positions=positions)
    cells = [Cell(component, *pair) for component in components for pair in ((3, 0), (0, 2), (1, 3))]
    found = sweep.score_cells(decoder, TARGETS, vectors, cells, CHOICES, how)
    for d, scores in enumerate(found):
        for row, cell in enumerate(cells, 1):
            vector = last(decoder, d, cell.source, how, cell.component)
            expected = expected_scores(decoder, [vector], [cell.target], d, how, cell.component)
            np.testing.assert_allclose(scores.logprob[row], [e for e, _ in expected], atol=1e-3, rtol=0)
    slow = sweep.why_slow(decoder, how)
    assert (slow is None) == (case != "bloom" and how.positions == 1 and how.scope is Scope.first_token), slow


@pytest.mark.parametrize("case", ["llama", "gemma3_text"])
@every_how
def test_texts_equal_those_of_plain_forwards(case: str, name: str) -> None:
    decoder, how = decoder_of(case), HOWS[name]
    positions = None if how.positions == 1 else int(how.positions)
    vectors = engine.capture(decoder, SOURCES, [Component.ffn], how.site, positions=positions)
    cells = [Cell(Component.ffn, 3, 0), Cell(Component.ffn, 1, 2)]
    swept = sweep.generate_cells(decoder, TARGETS, vectors, cells, 6, lambda tokens: False, how)
    for d, prompt in enumerate(TARGETS):
        for row, cell in enumerate(cells, 1):
            text: list[int] = []
            for _ in range(6):
                vector = last(decoder, d, cell.source, how)
                logprobs = reference(decoder, [vector], [cell.target], prompt, text, Component.ffn, how)
                text.append(int(logprobs[-1].argmax()))
            assert swept[d][row] == text
            prefix = engine.read_and_write(
                decoder, [SOURCES[d]], [prompt], Component.ffn, cell.source, cell.target, how
            )
            assert engine.generate(decoder, prefix, 6, lambda tokens: False) == [text]


@pytest.mark.parametrize("name", ["paper", "add", "last_2_every_step"])
def test_several_layers_at_once(name: str) -> None:
    decoder, how = decoder_of("gemma3_text"), HOWS[name]
    pairs = [(3, 0), (3, 1), (2, 3)]
    positions = None if how.positions == 1 else int(how.positions)
    read_layers = engine.capture(decoder, SOURCES, [Component.ffn], positions=positions)[Component.ffn]
    writes = [Writes(Component.ffn, [j] * len(TARGETS), read_layers[i], how) for i, j in pairs]
    prefix = engine.prefill(decoder, TARGETS, *writes)
    assert prefix.written == len(TARGETS) * len(pairs)
    for d, scores in enumerate(engine.score(decoder, prefix, CHOICES)):
        vectors = [last(decoder, d, i, how) for i, _ in pairs]
        expected = expected_scores(decoder, vectors, [j for _, j in pairs], d, how)
        np.testing.assert_allclose([s.logprob for s in scores], [e for e, _ in expected], atol=1e-3, rtol=0)


def test_all_positions_of_prompts_of_one_length() -> None:
    decoder = decoder_of("llama")
    how = Intervention(positions="all")
    source, target = _prompt(9), _prompt(9)
    prefix = engine.read_and_write(decoder, [source], [target], Component.ffn, 2, 1, how)
    vectors = [read(decoder, source, Component.ffn, 2, Site.module)]
    expected = reference(decoder, vectors, [1], target, [], Component.ffn, how)
    torch.testing.assert_close(prefix.logits.log_softmax(-1), expected, atol=1e-4, rtol=0)
    own = engine.read_and_write(decoder, [target], [target], Component.ffn, 1, 1, how)
    torch.testing.assert_close(own.logits, engine.prefill(decoder, [target]).logits)
    with pytest.raises(XTransplantError, match="positions=all: prompts of 4, 9 tokens"):
        engine.read_and_write(decoder, [source], [TARGETS[2]], Component.ffn, 2, 1, how)
    with pytest.raises(XTransplantError, match="positions=5: a prompt has 4 tokens only"):
        engine.read_and_write(decoder, SOURCES, TARGETS, Component.ffn, 2, 1, Intervention(positions=5))


@pytest.mark.parametrize("positions", [None, 2])
def test_a_source_in_several_languages_is_the_mean_of_their_vectors(positions: int | None) -> None:
    decoder = decoder_of("llama")
    source = tuple(map(tuple, SOURCES))
    bank = Captures(decoder, None, {})
    for _ in ("computed for this", "prepared"):
        found = bank.vectors([source, source[:1]], [Component.ffn], Site.module, [2], positions)[Component.ffn][0]
        each = torch.stack(
            [read(decoder, prompt, Component.ffn, 2, Site.module)[-(positions or 1) :] for prompt in SOURCES]
        )
        expected = each.mean(0), each[0]
        for row, vectors in enumerate(expected):
            torch.testing.assert_close(found[row].reshape(vectors.shape), vectors, atol=1e-5, rtol=1e-4)
        bank.prepare([source], [Component.ffn], Site.module)


@pytest.mark.parametrize("positions", [None, 3])
def test_zeros_deactivate_the_module(positions: int | None) -> None:
    decoder = decoder_of("llama")
    bank = Captures(decoder, None, {}, Control.zero)
    sources = [(tuple(source),) for source in SOURCES]
    vectors = bank.vectors(sources, [Component.attn], Site.module, [2], positions)[Component.attn][0]
    assert bank.computed == 0 and not bank.missing(sources, [Component.attn], Site.module)
    prefix = engine.prefill(decoder, TARGETS, Writes(Component.attn, [2] * len(TARGETS), vectors))
    zeros = torch.zeros(positions or 1, decoder.hidden_size, device=DEVICE)
    for d, scores in enumerate(engine.score(decoder, prefix, CHOICES)):
        expected = expected_scores(decoder, [zeros], [2], d, PAPER, Component.attn)
        np.testing.assert_allclose([s.logprob for s in scores], [e for e, _ in expected], atol=1e-3, rtol=0)


def test_half_precision_is_changed_in_single() -> None:
    own, v = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), torch.tensor([[0.0, 1e-3]])
    written = engine.changed(own, v, Intervention(mode=Mode.interpolate, strength=0.25, match_norm=True))
    torch.testing.assert_close(written, torch.tensor([[0.75, 0.25]], dtype=torch.bfloat16))
    # A vector of zeros has no direction.
    none = engine.changed(own, torch.zeros(1, 2), Intervention(match_norm=True))
    assert torch.equal(none, torch.zeros(1, 2, dtype=torch.bfloat16))
