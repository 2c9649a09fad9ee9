"""The blocked and the screened output head against all logits at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from xtransplant import output_head
from xtransplant.engine import Decoder, Work

HIDDEN = 48


def decoder_of(weight: Tensor, **config: Any) -> Decoder:
    """As much of a decoder as the head needs."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(weight.shape[1], len(weight), bias=False, dtype=weight.dtype)
            self.head.weight.data = weight
            self.config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(**config))

        def get_output_embeddings(self) -> nn.Linear:
            return self.head

    return cast(Decoder, SimpleNamespace(model=Model(), work=Work(), work_of=lambda tokens, rows: Work()))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[True, False], ids=["screened", "all"])
def screened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(output_head, "multiplies_bfloat16", lambda: request.param)
    return bool(request.param)


@torch.inference_mode()
@pytest.mark.parametrize("vocabulary", [40, 64, 8192 + 65, 20_000])
def test_greedy_is_the_largest_logit(screened: bool, vocabulary: int) -> None:
    weight, hidden = random(vocabulary, HIDDEN), random(600, HIDDEN, seed=1) * 7
    decoder = decoder_of(weight)
    assert output_head.greedy(decoder, hidden) == (hidden @ weight.T).argmax(-1).tolist()
    assert (output_head._screen_of(decoder) is not None) == screened


@torch.inference_mode()
def test_candidates_closer_than_bfloat16_can_tell_are_told_apart(screened: bool) -> None:
    """Every row's best tokens differ by less than its logits' rounding in bfloat16; equal ones give the first."""
    hidden = random(50, HIDDEN, seed=2)
    weight = random(5_000, HIDDEN, seed=3) * 0.1
    for row in range(50):
        own = hidden[row] / hidden[row].norm()
        weight[100 * row + 3] = own * 4.000
        weight[100 * row + 97] = own * 4.001  # the largest, by 0.03 %
        weight[100 * row + 99] = own * 4.001
    assert output_head.greedy(decoder_of(weight), hidden) == [100 * row + 97 for row in range(50)]
    assert (hidden.bfloat16() @ weight.bfloat16().T).argmax(-1).tolist() != [100 * row + 97 for row in range(50)]


@torch.inference_mode()
def test_the_screen_keeps_whatever_rounding_could_have_hidden() -> None:
    """No true logit lies above what the bound allows, for vectors of very unlike sizes."""
    weight = random(4_096, HIDDEN, seed=4) * torch.logspace(-2, 2, 4_096)[:, None]
    hidden = random(200, HIDDEN, seed=5) * torch.logspace(-3, 3, 200)[:, None]
    kept = output_head._groups(output_head._make_screen(weight), hidden)
    best = (hidden.double() @ weight.double().T).argmax(-1)
    assert bool(kept[torch.arange(200), best // 64].all())
    assert kept.float().mean() < 0.2


def test_a_changed_head_is_screened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_head, "multiplies_bfloat16", lambda: True)
    decoder, hidden = decoder_of(random(300, HIDDEN)), random(5, HIDDEN, seed=6)
    output_head.greedy(decoder, hidden)
    head = decoder.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.neg_()
    assert output_head.greedy(decoder, hidden) == (hidden @ head.weight.T).argmax(-1).tolist()


@torch.inference_mode()
@pytest.mark.parametrize("config", [{"final_logit_softcapping": 5.0}, {"logit_scale": -1.0}])
def test_what_the_bound_does_not_cover_is_not_screened(
    config: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_head, "multiplies_bfloat16", lambda: True)
    assert output_head._screen_of(decoder_of(random(300, HIDDEN), **config)) is None
    assert output_head._screen_of(decoder_of(random(300, HIDDEN).bfloat16())) is None


@torch.inference_mode()
def test_read_is_log_softmax() -> None:
    weight, hidden = random(9_000, HIDDEN), random(300, HIDDEN, seed=1) * 3
    logits = torch.tanh(hidden @ weight.T * 0.5 / 30) * 30
    decoder = decoder_of(weight, logit_scale=0.5, final_logit_softcapping=30.0)
    found = output_head.read(decoder, hidden, [0, 8_191, 8_192, 8_999])
    torch.testing.assert_close(found.largest, logits.amax(-1))
    torch.testing.assert_close(found.normaliser, logits.logsumexp(-1))
    torch.testing.assert_close(found.asked, logits[:, [0, 8_191, 8_192, 8_999]])
    assert found.best is None


@torch.inference_mode()
def test_of_equal_logits_in_half_precision_the_first_is_the_greedy_one() -> None:
    weight = random(9_000, HIDDEN).bfloat16()
    weight[8_500] = weight[17]
    hidden = weight[[17, 8_500, 40]] * 2
    found = output_head.read(decoder_of(weight), hidden, [17, 8_500])
    assert found.best is not None and found.best.tolist() == [17, 17, 40]
    assert (found.asked[:2] == found.largest[:2, None]).all()
