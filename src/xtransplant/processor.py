"""What is fast on this processor, by what it is and not by a measurement: a machine always gives the same numbers.

On x86 PyTorch multiplies float32 with MKL, which on AMD's processors reaches half of oneDNN's rate
(benchmarks/README.md). Both are float32 and sum in another order. oneDNN is part of these builds of PyTorch, but
`nn.functional.linear` does not ask for it in float32.
"""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_AMD = "AuthenticAMD"
# Rows of a product; of the last one a multiple of the step, or a power of two below it.
_ROWS = 512
_STEP = 64


@contextmanager
def fast_products() -> Iterator[None]:
    """While open, `nn.functional.linear` on float32 tensors of a CPU goes to oneDNN where that is faster."""
    if not _has_faster():
        yield
        return
    with _OneDNN():
        yield


class _OneDNN(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and not kwargs and all(map(_plain, args)):
            return _in_blocks(*args)
        return func(*args, **(kwargs or {}))


def _in_blocks(data: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product in numbers of rows that occur again and again.

    oneDNN keeps what it has prepared for each number of rows, megabytes each: left alone, a batch that grows in every
    layer was seen to leave two GB behind. So rows are taken in blocks of one size, and the last is filled up to one of
    a few.
    """
    rows = data.reshape(-1, data.shape[-1])
    products = []
    for some in rows.split(_ROWS):
        count = len(some)
        filled = -(-count // _STEP) * _STEP if count > _STEP else 1 << (count - 1).bit_length()
        if filled > count:
            some = functional.pad(some, (0, 0, 0, filled - count))
        products.append(torch.ops.mkldnn._linear_pointwise(some, weight, bias, "none", [], "")[:count])
    found = products[0] if len(products) == 1 else torch.cat(products)
    return found.view(*data.shape[:-1], len(weight))


def _plain(tensor: Tensor | None) -> bool:
    """What the operation takes; it has no gradient."""
    return tensor is None or (
        tensor.dtype is torch.float32
        and tensor.device.type == "cpu"
        and tensor.numel() > 0
        and tensor.is_contiguous()
        and not (torch.is_grad_enabled() and tensor.requires_grad)
    )


@functools.cache
def _has_faster() -> bool:
    """Whether MKL would be used on a processor of another maker, and oneDNN is there and right.

    The operation is not a public one: it is asked to multiply once.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and _described()[0] == _AMD):
        return False
    data, weight, bias = (torch.arange(1.0, n + 1).view(shape) for n, shape in ((6, (2, 3)), (12, (4, 3)), (4, (4,))))
    try:
        found = torch.ops.mkldnn._linear_pointwise(data, weight, bias, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.equal(found, data @ weight.T + bias))


def multiplies_bfloat16() -> bool:
    """Whether it has instructions for it: twice as many products in the same time as in float32, or more."""
    return not _described()[1].isdisjoint(("amx_bf16", "avx512_bf16"))


@functools.cache
def _described() -> tuple[str, frozenset[str]]:
    """The processor's maker and features, as it names them; empty where they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor().rpartition(" ")[2], frozenset()
    found = dict(re.findall(r"^(vendor_id|flags)\s*: (.*)$", text, re.MULTILINE))
    return found.get("vendor_id", ""), frozenset(found.get("flags", "").split())
