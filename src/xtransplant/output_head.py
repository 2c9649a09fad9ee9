"""The output head on many rows, in blocks of rows and of the vocabulary: no [S, V] tensor of logits ever exists.

Shapes: S final hidden states, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from xtransplant.engine import Decoder

# Rows and columns of the vocabulary at a time. A block of logits stays in a CPU's cache.
ROWS = 256
COLUMNS = 8192
_GPU_ROWS = 8192


def read(decoder: Decoder, hidden: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """For final hidden states [S, H]: the largest logit [S], the log-sum-exp [S], the tokens' logits [S, len(tokens)].

    `torch.logsumexp` is many times slower on a CPU than these running sums of exponentials.
    """
    asked = torch.empty(len(hidden), len(tokens), device=hidden.device)
    largest = torch.full((len(hidden),), float("-inf"), device=hidden.device)
    total = torch.zeros(len(hidden), device=hidden.device)
    for rows, columns, logits in _blocks(decoder, hidden):
        here = [n for n, token in enumerate(tokens) if token in columns]
        if here:
            asked[rows, here] = logits[:, [tokens[n] - columns.start for n in here]]
        new = torch.maximum(largest[rows], logits.amax(-1))
        sums = logits.sub_(new[:, None]).exp_().sum(-1)
        total[rows] = total[rows] * torch.exp(largest[rows] - new) + sums
        largest[rows] = new
    return largest, largest + torch.log(total), asked


def greedy(decoder: Decoder, hidden: Tensor) -> list[int]:
    """The token of the largest logit for each of the final hidden states [S, H]; of equal ones the first."""
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
