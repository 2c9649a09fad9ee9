"""The output head on many rows, in blocks of rows and of the vocabulary: no [S, V] tensor of logits ever exists.

Shapes: S final hidden states, H hidden size, V vocabulary, G groups of neighbouring tokens of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from xtransplant.engine import Decoder, index
from xtransplant.processor import multiplies_bfloat16

# Rows and columns of the vocabulary at a time. A block of logits stays in a CPU's cache.
ROWS = 256
COLUMNS = 8192
_GPU_ROWS = 8192
# Screening: neighbouring tokens that are kept or dropped together.
_GROUP = 64
_SCREENED_ROWS = 512


class Read(NamedTuple):
    """What is read at final hidden states [S, H]."""

    largest: Tensor  # [S], the largest logit
    best: Tensor | None  # [S], its token, the first of equal ones; None in float32, where ties do not happen
    normaliser: Tensor  # [S], log-sum-exp of the logits
    asked: Tensor  # [S, len(tokens)], the tokens' logits


def read(decoder: Decoder, hidden: Tensor, tokens: Sequence[int]) -> Read:
    """What is to be known of the logits to score tokens.

    `torch.logsumexp` is many times slower on a CPU than these running sums of exponentials.
    """
    decoder.work += decoder.work_of(0, len(hidden))
    tied = hidden.dtype.itemsize < 4
    best = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    asked = torch.empty(len(hidden), len(tokens), device=hidden.device)
    largest = torch.full((len(hidden),), float("-inf"), device=hidden.device)
    total = torch.zeros(len(hidden), device=hidden.device)
    for rows, columns, logits in _blocks(decoder, hidden):
        here = [n for n, token in enumerate(tokens) if token in columns]
        if here:
            places = index([tokens[n] - columns.start for n in here], hidden.device)
            asked[rows, index(here, hidden.device)] = logits[:, places]
        if tied:
            values, places = logits.max(-1)
            best[rows] = torch.where(values > largest[rows], places + columns.start, best[rows])
        else:
            values = logits.amax(-1)
        new = torch.maximum(largest[rows], values)
        sums = logits.sub_(new[:, None]).exp_().sum(-1)
        total[rows] = total[rows] * torch.exp(largest[rows] - new) + sums
        largest[rows] = new
    return Read(largest, best if tied else None, largest + torch.log(total), asked)


def greedy(decoder: Decoder, hidden: Tensor) -> list[int]:
    """The token of the largest logit for each of the final hidden states [S, H]; of equal ones the first.

    On a processor that multiplies bfloat16 several times as fast as float32, a float32 head is screened first: see
    `_Screen`. The answer is that of float32 either way.
    """
    # What is computed twice behind a screen is not counted: it would differ from processor to processor.
    decoder.work += decoder.work_of(0, len(hidden))
    screen = _screen_of(decoder)
    if screen is not None:
        return _greedy_screened(decoder, screen, hidden)
    largest = torch.full((len(hidden),), float("-inf"), device=hidden.device)
    best = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    for rows, columns, logits in _blocks(decoder, hidden):
        values, places = logits.max(-1)
        better = values > largest[rows]
        largest[rows] = torch.where(better, values, largest[rows])
        best[rows] = torch.where(better, places + columns.start, best[rows])
    found: list[int] = best.tolist()
    return found


def _blocks(decoder: Decoder, hidden: Tensor) -> Iterator[tuple[slice, range, Tensor]]:
    """(rows, columns, their logits in float32, which may be overwritten): columns ascend for every row."""
    head, finish = _plain_head(decoder)
    rows_at_once = ROWS if hidden.device.type == "cpu" else _GPU_ROWS
    for low in range(0, len(head.weight), COLUMNS):
        weight = head.weight[low : low + COLUMNS]
        bias = None if head.bias is None else head.bias[low : low + COLUMNS]
        for start in range(0, len(hidden), rows_at_once):
            rows = slice(start, start + rows_at_once)
            logits = finish(functional.linear(hidden[rows], weight, bias)).float()
            yield rows, range(low, low + len(weight)), logits


def _plain_head(decoder: Decoder) -> tuple[nn.Linear, Callable[[Tensor], Tensor]]:
    """The output head, and what the model does to its logits: a scale, a soft cap."""
    config = decoder.model.config.get_text_config(decoder=True)
    head = decoder.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    scale = getattr(config, "logit_scale", None)
    cap = getattr(config, "final_logit_softcapping", None)

    def finish(logits: Tensor) -> Tensor:
        if scale is not None:
            logits = logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return head, finish


# --- Which tokens can be the greedy one ------------------------------------------------------------------------------


class _Screen(NamedTuple):
    """The head in bfloat16, and how far its logits can be from the true ones.

    A row's logit of a token is off by at most |h - h'| |w| + |h'| |w - w'| (h', w' the rounded vectors; Cauchy and
    Schwarz), the rounding of the sum and that of the result. Groups whose largest logit cannot reach the row's best
    by that much are dropped; the others are computed in float32.
    """

    weight: Tensor  # [64 G, H] bfloat16, filled up with zeros
    sizes: Tensor  # [G]: the largest |w| of a group
    errors: Tensor  # [G]: the largest |w - w'|
    version: int  # of the weight that it was made of


def _groups(screen: _Screen, hidden: Tensor) -> Tensor:
    """[S, G]: which groups may hold a row's largest logit."""
    rounded = hidden.bfloat16()
    highest = torch.empty(len(hidden), len(screen.sizes))
    for low in range(0, len(screen.weight), COLUMNS):
        weight = screen.weight[low : low + COLUMNS]
        for start in range(0, len(hidden), _SCREENED_ROWS):
            logits = functional.linear(rounded[start : start + _SCREENED_ROWS], weight).float()
            groups = slice(low // _GROUP, (low + len(weight)) // _GROUP)
            highest[start : start + _SCREENED_ROWS, groups] = logits.view(len(logits), -1, _GROUP).amax(-1)
    off = (hidden - rounded.float()).norm(dim=1)[:, None]
    size = rounded.float().norm(dim=1)[:, None]
    # Twice the rounding of float32 sums of H products, and twice that of a bfloat16 result.
    sums = hidden.shape[1] * 2.0**-23
    slack = (
        off * screen.sizes + size * (screen.errors + sums * (screen.sizes + screen.errors)) + 2.0**-8 * highest.abs()
    )
    return highest + slack >= (highest - slack).amax(dim=1, keepdim=True)


def _greedy_screened(decoder: Decoder, screen: _Screen, hidden: Tensor) -> list[int]:
    weight = _plain_head(decoder)[0].weight
    largest = torch.full((len(hidden),), float("-inf"))
    best = torch.zeros(len(hidden), dtype=torch.long)
    possible = _groups(screen, hidden)
    # In ascending order, so that of equal logits the first is kept.
    for group in possible.any(0).nonzero().flatten().tolist():
        rows = possible[:, group].nonzero().flatten()
        low = group * _GROUP
        values, places = functional.linear(hidden[rows], weight[low : low + _GROUP]).max(-1)
        better = values > largest[rows]
        largest[rows[better]] = values[better]
        best[rows[better]] = places[better] + low
    found: list[int] = best.tolist()
    return found


_screens: WeakKeyDictionary[nn.Module, _Screen | None] = WeakKeyDictionary()


def _screen_of(decoder: Decoder) -> _Screen | None:
    """The model's screen, made once; None where it does not apply or would not pay."""
    head, _ = _plain_head(decoder)
    known = _screens.get(decoder.model)
    if decoder.model not in _screens or (known is not None and known.version != _version(head.weight)):
        config = decoder.model.config.get_text_config(decoder=True)
        scale = getattr(config, "logit_scale", None)
        plain = head.bias is None and getattr(config, "final_logit_softcapping", None) is None
        applies = plain and (scale is None or scale > 0) and multiplies_bfloat16()
        applies = applies and head.weight.device.type == "cpu" and head.weight.dtype is torch.float32
        _screens[decoder.model] = _make_screen(head.weight) if applies else None
    return _screens[decoder.model]


def screen_bytes(decoder: Decoder) -> int:
    """Memory of what `greedy` keeps beside the model."""
    screen = _screen_of(decoder)
    return 0 if screen is None else screen.weight.nbytes


def _make_screen(weight: Tensor) -> _Screen:
    weight = weight.detach()
    groups = -(-len(weight) // _GROUP)
    rounded = torch.zeros(groups * _GROUP, weight.shape[1], dtype=torch.bfloat16)
    sizes, errors = torch.zeros(groups * _GROUP), torch.zeros(groups * _GROUP)
    for low in range(0, len(weight), COLUMNS):
        some = weight[low : low + COLUMNS]
        here = slice(low, low + len(some))
        rounded[here] = some
        sizes[here] = some.norm(dim=1)
        errors[here] = (some - rounded[here].float()).norm(dim=1)
    return _Screen(rounded, sizes.view(-1, _GROUP).amax(1), errors.view(-1, _GROUP).amax(1), _version(weight))


def _version(weight: Tensor) -> int:
    """Counts changes in place, which tensors made in inference mode do not."""
    return 0 if weight.is_inference() else weight._version
