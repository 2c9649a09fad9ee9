"""Matrix products in float32 on processors where PyTorch's own library is slow.

On x86 PyTorch multiplies float32 with MKL, which on AMD's processors reaches half of oneDNN's rate
(benchmarks/README.md). Both are float32 and sum in another order. oneDNN is part of these builds of PyTorch, but
`nn.functional.linear` does not ask for it in float32.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextmanager
def fast_products() -> Iterator[None]:
    """While open, `nn.functional.linear` on float32 tensors of a CPU goes to oneDNN where that is faster.

    Decided by the processor's maker, not by a measurement: the same machine always gives the same numbers.
    """
    if not _is_faster():
        yield
        return
    with _OneDNN():
        yield


class _OneDNN(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and not kwargs and all(map(_plain, args)):
            data, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(data, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


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
def _is_faster() -> bool:
    """Whether MKL would be used on a processor of another maker, and oneDNN is there and right.

    The operation is not a public one: it is asked to multiply once.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()) or _maker() != "AuthenticAMD":
        return False
    data, weight, bias = (torch.arange(1.0, n + 1).view(shape) for n, shape in ((6, (2, 3)), (12, (4, 3)), (4, (4,))))
    try:
        found = torch.ops.mkldnn._linear_pointwise(data, weight, bias, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.equal(found, data @ weight.T + bias))


def _maker() -> str:
    """The processor's maker, as the processor says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor().rpartition(" ")[2]
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
