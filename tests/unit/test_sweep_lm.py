"""What a sweep behind the harness keeps, and under which name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.equivalence.test_architectures import decoder_of
from xtransplant.captures import Captures, made_by
from xtransplant.sweep_lm import Sweep, SweepLM, rounds
from xtransplant.types import PAPER, Cell, Component, Control, Intervention, Mode, Scope, Site, XTransplantError


def lm(how: Intervention = PAPER, control: Control = Control.none, seed: int = 0, files: str = "1") -> SweepLM:
    decoder = decoder_of("llama")
    bank = Captures(decoder, None, {"files": {"a": files}}, control, seed)
    return SweepLM(decoder, Sweep((Component.ffn,), how), captures=lambda: bank)


def test_an_answer_is_named_by_everything_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    key: Any = ((5, 6), (7, 8))
    cells = [Cell(Component.ffn, 0, 1)]
    names = [
        lm()._question("score", key, [[1]], cells),
        lm()._question("text", key, [[1]], cells),
        lm()._question("score", ((5, 7), (7, 8)), [[1]], cells),
        lm()._question("score", ((5, 6), (7, 9)), [[1]], cells),
        lm()._question("score", key, [[1, 2]], cells),
        lm()._question("score", key, [[1]], [Cell(Component.attn, 0, 1)]),
        lm()._question("score", key, [[1]], [*cells, Cell(Component.ffn, 1, 1)]),
        lm(Intervention(Site.branch))._question("score", key, [[1]], cells),
        lm(Intervention(mode=Mode.add))._question("score", key, [[1]], cells),
        lm(Intervention(mode=Mode.add, strength=0.5))._question("score", key, [[1]], cells),
        lm(Intervention(match_norm=True))._question("score", key, [[1]], cells),
        lm(Intervention(positions=2))._question("score", key, [[1]], cells),
        lm(Intervention(scope=Scope.every_step))._question("score", key, [[1]], cells),
        lm(control=Control.zero)._question("score", key, [[1]], cells),
        lm(control=Control.noise)._question("score", key, [[1]], cells),
        lm(control=Control.noise, seed=3)._question("score", key, [[1]], cells),
        lm(files="2")._question("score", key, [[1]], cells),
    ]
    assert len(set(names)) == len(names)
    assert names[0] == lm()._question("score", key, [[1]], cells)
    monkeypatch.setattr("xtransplant.sweep_lm.made_by", lambda *modules: "other code")
    assert lm()._question("score", key, [[1]], cells) not in names


def test_vectors_are_of_the_code_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of("llama")
    first = Captures(decoder, tmp_path, {})
    first.prepare([((5, 6),)], [Component.ffn], Site.module)
    assert Captures(decoder, tmp_path, {}).missing([((5, 6),)], [Component.ffn], Site.module) == []
    monkeypatch.setattr("torch.__version__", "1.2.3")
    assert Captures(decoder, tmp_path, {}).missing([((5, 6),)], [Component.ffn], Site.module) == [(5, 6)]
    assert made_by("engine") != made_by("sweep") != made_by("engine", "sweep")


def test_the_better_half_of_the_cells_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of("llama")
    bank = Captures(decoder, None, {})
    # A cell is as good as its number, in the order of the documents' rounds.
    found = SweepLM(
        decoder,
        Sweep((Component.ffn,)),
        halving=rounds(0.5),
        quality=lambda document: np.arange(17.0),
        captures=lambda: bank,
    )
    monkeypatch.setattr(found, "_keys", lambda requests: [])
    monkeypatch.setattr(found, "_announce", lambda *given: None)
    requests: Any = [SimpleNamespace(task_name="t", doc_id=n, idx=0, args=(str(n),)) for n in range(14)]
    asked: list[tuple[int, list[int]]] = []
    found._in_rounds(requests, lambda some, cells, bar: asked.append((len(some), cells)), True)
    assert asked == [(2, [*range(16)]), (4, [*range(8, 16)]), (8, [*range(12, 16)])]
    assert found.left_out[-1] == "round 3: 8 documents in 4 of 16 cells"


@pytest.mark.parametrize("budget", [1.0, 0.6, 0.4, 0.2])
def test_rounds_stay_within_the_budget_and_use_every_document(budget: float) -> None:
    plan = rounds(budget)(100, 648)
    assert sum(documents for documents, _ in plan) == 100
    assert sum(documents * cells for documents, cells in plan) <= budget * 100 * 648
    assert [cells for _, cells in plan] == [648 // 2**n for n in range(len(plan))]
    assert plan == sorted(plan)  # more documents in later rounds


def test_a_budget_too_small_is_refused() -> None:
    with pytest.raises(XTransplantError, match=r"grid\.budget=0\.05: too little for 4 documents and 16 cells"):
        rounds(0.05)(4, 16)
