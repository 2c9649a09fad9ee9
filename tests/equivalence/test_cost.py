"""What a run says it computed, against counts worked by hand for the tiny Llama."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from tests.equivalence.tiny import tiny
from xtransplant import captures, engine, sweep
from xtransplant.engine import Decoder, Work, Writes
from xtransplant.types import Cell, Component, Intervention, Scope, Site

# Queries and outputs 32 x 32, keys and values 32 x 16, three matrices of the feed-forward module 32 x 48, two norms.
LAYER = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32)
TOKEN = 4 * LAYER
HEAD = 2 * 32 * 96
CHOICES = [[7, 8], [7, 9], [4]]
FFN = Component.ffn


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(tiny("llama"), None)  # type: ignore[arg-type]


def test_loading_computes_nothing_that_counts(decoder: Decoder) -> None:
    assert decoder.work == Work(0, 0)


def test_choices_are_run_once_for_each_beginning(decoder: Decoder) -> None:
    prefix = engine.prefill(decoder, [[5, 6, 7], [5, 6, 7, 8, 9]])
    assert decoder.work == Work(8, 8 * TOKEN + 2 * HEAD)  # padding does not count; the head at each prompt's end
    engine.score(decoder, prefix, [CHOICES, [[4]]])
    assert decoder.work == Work(9, 9 * TOKEN + 3 * HEAD)  # the token 7, which two choices begin with


def test_each_new_token_but_the_last_is_run(decoder: Decoder) -> None:
    prefix = engine.prefill(decoder, [[5, 6, 7]])
    engine.generate(decoder, prefix, 3, lambda tokens: False)
    assert decoder.work == Work(3 + 2, 5 * TOKEN + 3 * HEAD)


def test_a_check_does_not_count(decoder: Decoder) -> None:
    with decoder.unmetered():
        engine.padding_error(decoder, [[5, 6], [7]])
    sweep.why_slow(decoder)
    assert decoder.work == Work(0, 0)


def test_rows_of_a_sweep_count_from_the_layer_that_they_join_at(decoder: Decoder) -> None:
    vectors = torch.zeros(4, 1, 32)
    cells = [Cell(FFN, 0, 0), Cell(FFN, 1, 3)]
    sweep.score_cells(decoder, [[5, 6, 7, 8, 9, 4]], {FFN: vectors}, cells, [CHOICES])
    # Five tokens of the beginning. Behind them the last one and a 7, of the untouched row and of the cells: two rows in
    # the layers 0 to 2, three in layer 3.
    assert decoder.work == Work(5 + 3 * 2, 5 * TOKEN + (2 + 2 + 2 + 3) * 2 * LAYER + 3 * 2 * HEAD)


def test_padding_of_a_batch_does_not_count(decoder: Decoder) -> None:
    prompts, choices = [[5, 6, 7, 8, 9, 4], [5, 6]], [CHOICES, [[4]]]
    cells = [Cell(FFN, 0, 1), Cell(FFN, 1, 3)]
    sweep.score_cells(decoder, prompts, {FFN: torch.zeros(4, 2, 32)}, cells, choices)
    together, decoder.work = decoder.work, Work()
    for n in (0, 1):
        sweep.score_cells(decoder, prompts[n : n + 1], {FFN: torch.zeros(4, 1, 32)}, cells, choices[n : n + 1])
    assert decoder.work == together


@pytest.mark.parametrize("how", [Intervention(), Intervention(scope=Scope.every_step)])
def test_a_sweep_takes_less_than_its_cells_one_by_one(decoder: Decoder, how: Intervention) -> None:
    prompt, choices = [5, 6, 7, 8, 9, 4], [CHOICES]
    cells = [Cell(FFN, source, target) for source, target in itertools.product(range(4), repeat=2)]
    vectors = torch.randn(4, 1, 32)
    sweep.score_cells(decoder, [prompt], {FFN: vectors}, cells, choices, how)
    swept, decoder.work = decoder.work, Work()
    engine.score(decoder, engine.prefill(decoder, [prompt]), choices)
    for cell in cells:
        writes = Writes(FFN, [cell.target], vectors[cell.source], how)
        engine.score(decoder, engine.prefill(decoder, [prompt], writes), choices)
    one_by_one = decoder.work
    assert one_by_one == Work(17 * 7, 17 * (7 * TOKEN + 2 * HEAD))
    assert swept.flops < (0.5 if how == Intervention() else 0.6) * one_by_one.flops
    assert swept.tokens < one_by_one.tokens


def test_texts_that_agree_are_one_text_while_they_do(decoder: Decoder) -> None:
    prompt, cells = [5, 6, 7, 8], [Cell(FFN, 0, 3), Cell(FFN, 1, 0)]
    own = engine.capture(decoder, [prompt], [FFN])
    own[FFN] = torch.stack([own[FFN][3], own[FFN][0], own[FFN][2], own[FFN][3]])  # each cell writes what is there
    found = sweep.generate_cells(decoder, [prompt], own, cells, 3, lambda tokens: False)[0]
    assert found[0] == found[1] == found[2]
    # A row of the text; a transplant at the top layer leaves no trace in it, so the first cell needs no row of its own.
    decoder.work = Work()
    sweep.generate_cells(decoder, [prompt], own, cells, 3, lambda tokens: False)
    first = 3 * TOKEN + (2 + 2 + 2 + 3) * LAYER + 3 * HEAD
    later = (1 + 2 + 2 + 2) * LAYER + 2 * HEAD
    assert decoder.work == Work(3 + 3 + 2 * 2, first + 2 * later)


def test_sources_count_whoever_computed_their_vectors(decoder: Decoder) -> None:
    sources = [((5, 6, 7),), ((8, 9),), ((5, 6, 7),)]
    for _ in range(2):  # the second finds them held
        bank = captures.Captures(decoder, None, {"files": "cost"})
        bank.prepare(sources, [FFN], Site.module)
        bank.prepare(sources, [FFN], Site.module)
        assert bank.work == Work(5, 5 * TOKEN)
    bank.vectors([((4, 4),)], [FFN], Site.module, positions=2)  # prepared by nobody
    assert bank.work == Work(7, 7 * TOKEN)
    assert decoder.work == Work(0, 0)


def test_seconds_of_the_first_run_of_a_process_are_without_its_imports() -> None:
    """Else the first condition of a sweep, mostly vanilla, has some seconds more than the others."""
    code = """
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from xtransplant import lm

@contextmanager
def running():
    assert "xtransplant.engine" in sys.modules
    yield

assert "torch" not in sys.modules
lm.metered(lambda answering: print("answered"))(SimpleNamespace(meter=SimpleNamespace(running=running)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "answered\n", found.stderr
