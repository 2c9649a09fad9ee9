"""Every architecture of the engine's table against plain forwards with one hook, one prompt at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.equivalence.tiny import CASES, DEVICE, VOCAB, tiny
from xtransplant import engine
from xtransplant.engine import ARCHITECTURES, Decoder, Modules, Writes
from xtransplant.types import Component, Intervention, Site, XTransplantError

PAIRS = [(0, 0), (3, 0), (1, 3), (2, 2)]
LENGTHS = [15, 9, 12, 4]
_draw = torch.Generator().manual_seed(1)
TARGETS = [torch.randint(3, VOCAB, (n,), generator=_draw).tolist() for n in LENGTHS]
SOURCES = [torch.randint(3, VOCAB, (n,), generator=_draw).tolist() for n in reversed(LENGTHS)]
CHOICES = [[5, 7, 9], [5, 8], [11]]

every_case = pytest.mark.parametrize("case", CASES)
every_site = pytest.mark.parametrize("site", Site)
every_component = pytest.mark.parametrize("component", Component)


@lru_cache(maxsize=1)
def decoder_of(case: str) -> Decoder:
    return Decoder(tiny(case), None)  # type: ignore[arg-type]


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any], pre: bool = False) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True) if pre else module.register_forward_hook(hook)
    with handle:
        yield


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def reference(
    decoder: Decoder, source: Sequence[int], target: Sequence[int], tail: Sequence[int], component: Component,
    site: Site, pair: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Log-probabilities [len(tail) + 1, V] after the target prompt and after each token behind it: two plain forwards
    of unpadded single prompts, without a cache."""
    read: list[Tensor] = []
    residual: list[Tensor] = []
    with (
        hooked(
            decoder.layers[pair[0]],
            lambda m, args, kw: residual.append((args[0] if args else kw["hidden_states"])[0, -1].clone()),
            pre=True,
        ),
        hooked(
            decoder.module_at(pair[0], component, site),
            lambda m, args, out: read.append(first(out).reshape(1, len(source), -1)[0, -1].clone()),
        ),
    ):
        decoder.model(input_ids=torch.tensor([list(source)], device=DEVICE), use_cache=False)
    vector = read[0] + residual[0] if component is Component.attn_as_released else read[0]

    def write(module: nn.Module, args: Any, output: Any) -> Any:
        new = first(output).clone()
        new.view(1, len(target) + len(tail), -1)[0, len(target) - 1] = vector
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with hooked(decoder.module_at(pair[1], component, site), write):
        logits = decoder.model(input_ids=torch.tensor([[*target, *tail]], device=DEVICE), use_cache=False).logits
    return logits[0, len(target) - 1 :].log_softmax(-1)


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@every_case
@every_site
@every_component
def test_batched_transplant_equals_one_hook_a_prompt(case: str, component: Component, site: Site) -> None:
    decoder = decoder_of(case)
    effects = []
    for pair in PAIRS:
        expected = torch.cat(
            [reference(decoder, s, t, [], component, site, pair) for s, t in zip(SOURCES, TARGETS, strict=True)]
        )
        prefix = engine.read_and_write(decoder, SOURCES, TARGETS, component, *pair, Intervention(site))
        assert prefix.written == len(TARGETS)
        torch.testing.assert_close(prefix.logits.log_softmax(-1), expected, atol=2e-4, rtol=0)
        vanilla = engine.prefill(decoder, TARGETS).logits.log_softmax(-1)
        effects.append(float((expected - vanilla).abs().max()))
    assert max(effects) > 0.1, "the transplants change nothing: the comparison has no power"


@every_case
def test_any_batch_gives_the_single_prompt_result(case: str) -> None:
    decoder = decoder_of(case)
    alone = torch.cat(
        [
            engine.read_and_write(decoder, [s], [t], Component.ffn, 3, 1).logits
            for s, t in zip(SOURCES, TARGETS, strict=True)
        ]
    )
    for size in (2, 3, 4):
        batched = torch.cat(
            [
                engine.read_and_write(decoder, SOURCES[n : n + size], TARGETS[n : n + size], Component.ffn, 3, 1).logits
                for n in range(0, len(TARGETS), size)
            ]
        )
        torch.testing.assert_close(batched, alone, atol=2e-4, rtol=0)


@every_case
@every_site
@pytest.mark.parametrize("component", [Component.attn, Component.ffn])
def test_self_transplant_changes_nothing(case: str, component: Component, site: Site) -> None:
    decoder = decoder_of(case)
    for layer in range(decoder.num_layers):
        assert engine.self_transplant_error(decoder, TARGETS, component, layer, site) == 0.0


@every_case
def test_attn_and_ffn_account_for_the_residual_stream(case: str) -> None:
    assert engine.residual_error(decoder_of(case), TARGETS, Site.branch) < 1e-5


@every_case
def test_sites_differ_only_where_a_norm_follows_the_module(case: str) -> None:
    decoder = decoder_of(case)
    error = engine.residual_error(decoder, TARGETS, Site.module)
    assert (error < 1e-5) is (decoder.modules.ffn_branch is None)


@every_case
@every_component
def test_scores_of_choices_equal_a_full_forward(case: str, component: Component) -> None:
    decoder = decoder_of(case)
    pair = (3, 1)
    prefix = engine.read_and_write(decoder, SOURCES, TARGETS, component, *pair)
    # Unlike numbers of choices, as the documents of a batch may have.
    asked = [CHOICES[: 1 + n % 3] for n in range(len(TARGETS))]
    scores = engine.score(decoder, prefix, asked)
    for n, choices in enumerate(asked):
        for choice, found in zip(choices, scores[n], strict=True):
            logprobs = reference(decoder, SOURCES[n], TARGETS[n], choice, component, Site.module, pair)[:-1]
            expected = sum(float(logprobs[k, token]) for k, token in enumerate(choice))
            assert found.logprob == pytest.approx(expected, abs=5e-4)
            assert found.greedy == (logprobs.argmax(-1).tolist() == choice)


@every_case
@pytest.mark.parametrize("pair", [None, (3, 1)])
def test_generation_equals_full_forwards(case: str, pair: tuple[int, int] | None) -> None:
    decoder = decoder_of(case)
    prefix = (
        engine.prefill(decoder, TARGETS)
        if pair is None
        else engine.read_and_write(decoder, SOURCES, TARGETS, Component.ffn, *pair)
    )
    ends = {7, 8, 9, 10}  # some rows end early and leave the batch
    found = engine.generate(decoder, prefix, 6, lambda tokens: tokens[-1] in ends)
    for source, target, tokens in zip(SOURCES, TARGETS, found, strict=True):
        expected: list[int] = []
        while len(expected) < 6 and not (expected and expected[-1] in ends):
            if pair is None:
                ids = torch.tensor([[*target, *expected]], device=DEVICE)
                with torch.no_grad():
                    logprobs = decoder.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            else:
                logprobs = reference(decoder, source, target, expected, Component.ffn, Site.module, pair)
            best = logprobs[-1].topk(2).values
            assert best[0] - best[1] > 1e-4, "a tie: choose another seed"
            expected.append(int(logprobs[-1].argmax()))
        assert tokens == expected


def test_rows_of_a_batch_may_be_written_at_different_layers() -> None:
    decoder = decoder_of("llama")
    vectors = engine.capture(decoder, SOURCES, [Component.ffn])[Component.ffn][2]
    layers = [0, 3, 1, 3]
    together = engine.prefill(decoder, TARGETS, Writes(Component.ffn, layers, vectors)).logits
    for n, layer in enumerate(layers):
        alone = engine.prefill(decoder, [TARGETS[n]], Writes(Component.ffn, [layer], vectors[n : n + 1])).logits
        torch.testing.assert_close(together[n : n + 1], alone, atol=2e-4, rtol=0)


def test_captured_vectors_are_copies() -> None:
    # Falcon adds the attention output to the MLP output in place.
    decoder = decoder_of("falcon")
    captured = engine.capture(decoder, TARGETS, [Component.ffn])[Component.ffn]
    assert engine.residual_error(decoder, TARGETS) < 1e-5
    torch.testing.assert_close(engine.capture(decoder, TARGETS, [Component.ffn])[Component.ffn], captured)


def test_no_hook_is_left_after_success_or_failure() -> None:
    decoder = Decoder(tiny("gemma3_text"), None)  # type: ignore[arg-type]
    engine.read_and_write(decoder, SOURCES, TARGETS, Component.attn_as_released, 1, 2)
    assert hook_count(decoder.model) == 0
    wrong_size = Writes(Component.ffn, [1] * len(TARGETS), torch.zeros(len(TARGETS), 7))
    with pytest.raises(RuntimeError):
        engine.prefill(decoder, TARGETS, wrong_size)
    assert hook_count(decoder.model) == 0
    if DEVICE == "cpu":  # a GPU takes nothing more from a process after this
        with pytest.raises(IndexError):  # the vocabulary has no such token
            engine.capture(decoder, [[VOCAB + 5]], [Component.attn])
        assert hook_count(decoder.model) == 0
    with pytest.raises(AttributeError):  # the first layers are hooked when the last proves not to be there
        engine.capture(decoder, TARGETS, [Component.attn], layers=[0, 1, 99])
    assert hook_count(decoder.model) == 0


def test_unknown_architecture_says_how_to_name_its_modules() -> None:
    model = tiny("llama")
    model.config.model_type = "brand_new"  # type: ignore[misc]
    with pytest.raises(XTransplantError, match=r"model\.modules=\{layers: model\.layers") as fault:
        Decoder(model, None)  # type: ignore[arg-type]
    assert "self_attn" in str(fault.value) and "xtransplant doctor" in str(fault.value)
    assert Decoder(model, None, Modules()).num_layers == 4  # type: ignore[arg-type]
    with pytest.raises(XTransplantError, match="no_such_module"):
        Decoder(model, None, Modules(attn="no_such_module"))  # type: ignore[arg-type]


def test_module_that_is_no_hidden_state_is_refused() -> None:
    with pytest.raises(XTransplantError, match="hidden size"):
        Decoder(tiny("llama"), None, Modules(ffn="mlp.up_proj"))  # type: ignore[arg-type]


def test_support_table_in_the_docs(project_root: Path) -> None:
    tested = {kind for kind, _ in CASES.values()}
    lines = [
        "# Supported architectures",
        "",
        "Written by `tests/equivalence/test_architectures.py` (XTRANSPLANT_UPDATE_DOCS=1 writes it anew). Each",
        "`yes` stands on a tiny random checkpoint of that architecture: captured attention + FFN outputs account for",
        "the change of the residual stream, a self-transplant changes nothing, batches equal single prompts, and",
        "scores and generated tokens equal full forwards with one hook.",
        "",
        "`branch` names what is added to the residual stream where a norm follows the module",
        "(`transplant.site=branch`); elsewhere both sites are the same.",
        "",
        "| model_type | layers | attn | ffn | attn branch | ffn branch | tested |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, names in sorted(ARCHITECTURES.items()):
        cells = [names.layers, names.attn, names.ffn, names.attn_branch, names.ffn_branch]
        shown = " | ".join(f"`{cell}`" if cell else "same" for cell in cells)
        lines.append(f"| {kind} | {shown} | {'yes' if kind in tested else 'no'} |")
    text = "\n".join(lines) + "\n"
    page = project_root / "docs" / "architectures.md"
    if os.environ.get("XTRANSPLANT_UPDATE_DOCS"):
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text
    assert tested == set(ARCHITECTURES), "every architecture of the table needs a tiny checkpoint"
