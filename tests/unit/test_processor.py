"""Products that go to oneDNN: the same numbers to float32's rounding, and nothing but what it takes goes there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from xtransplant import processor

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What is multiplied by oneDNN, on a processor of any maker."""
    monkeypatch.setattr(processor, "_has_faster", lambda: True)
    found: list[Tensor] = []
    exact = torch.ops.mkldnn._linear_pointwise

    class Watched(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is exact or func is exact.default:
                found.append(args[0])
            return func(*args, **(kwargs or {}))

    with Watched():
        yield found


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 640), (257, 640), (3, 5, 640)])
@pytest.mark.parametrize("biased", [True, False])
def test_products_are_those_of_float64(sent: list[Tensor], shape: tuple[int, ...], biased: bool) -> None:
    data, weight, bias = random(*shape), random(1000, 640, seed=1)[100:900], random(800, seed=2) if biased else None
    with processor.fast_products():
        found = functional.linear(data, weight, bias)
    assert len(sent) == 1
    exact = functional.linear(data.double(), weight.double(), None if bias is None else bias.double())
    # Sums of 640 products, up to about 100 on the way, each addition of which rounds by up to 4e-6.
    torch.testing.assert_close(found, exact.float(), atol=5e-4, rtol=0)
    assert found.dtype is torch.float32


@torch.inference_mode()
def test_modules_go_there_too(sent: list[Tensor]) -> None:
    with processor.fast_products():
        torch.nn.Linear(8, 4)(random(2, 8))
    assert len(sent) == 1
    torch.nn.Linear(8, 4)(random(2, 8))
    assert len(sent) == 1, "closed again"


def test_what_it_cannot_do_stays(sent: list[Tensor]) -> None:
    weight = random(4, 8)
    with processor.fast_products():
        functional.linear(random(2, 8).double(), weight.double())
        functional.linear(random(2, 8).bfloat16(), weight.bfloat16())
        functional.linear(random(8, 2).T, weight)
        functional.linear(random(0, 8), weight)
        functional.linear(random(2, 8), weight.clone().requires_grad_()).sum().backward()
    assert sent == []


@torch.inference_mode()
def test_any_number_of_rows_is_made_of_a_few(sent: list[Tensor]) -> None:
    """What oneDNN prepares for a number of rows stays in memory."""
    weight = random(6, 4)
    with processor.fast_products():
        for rows in (*range(1, 200), *range(200, 3000, 37)):
            data = random(rows, 4)
            torch.testing.assert_close(functional.linear(data, weight), data @ weight.T)
    assert {len(some) for some in sent} <= {1, 2, 4, 8, 16, 32, *range(64, 513, 64)}


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "Path", lambda _: path)
    caches = (processor._described, processor._has_faster)
    for cached in caches:
        cached.cache_clear()
    yield path
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("maker", "flags", "faster", "bfloat16"),
    [
        ("AuthenticAMD", "fpu avx512f", torch.backends.mkl.is_available(), False),
        ("AuthenticAMD", "fpu avx512f avx512_bf16", torch.backends.mkl.is_available(), True),
        ("GenuineIntel", "fpu amx_bf16 amx_tile", False, True),
        ("GenuineIntel", "fpu amx_bf16_of_tomorrow", False, False),
    ],
)
def test_the_processor_decides(cpuinfo: Path, maker: str, flags: str, faster: bool, bfloat16: bool) -> None:
    core = f"processor\t: 0\nvendor_id\t: {maker}\nmodel name\t: EPYC\nflags\t\t: {flags}\nvmx flags\t: vnmi\n\n"
    cpuinfo.write_text(core * 2, encoding="utf-8")
    assert processor._has_faster() == faster
    assert processor.multiplies_bfloat16() == bfloat16


def test_a_processor_that_does_not_say(cpuinfo: Path) -> None:
    cpuinfo.write_text("Processor: of another kind\n", encoding="utf-8")
    assert not processor._has_faster()
    assert not processor.multiplies_bfloat16()
