"""What the processor is quick at."""

from __future__ import annotations

from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@cache
def multiplies_bfloat16_fast() -> bool:
    """Whether the processor multiplies bfloat16 in less time than float32.

    Instructions for it do not say: a Xeon whose AMX is hidden by a hypervisor has those of AVX-512,
    and takes twice the time with them.
    """
    flags = torch.cpu.get_capabilities()
    if not any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return False
    wide = torch.ones(512, 512)
    return _least_seconds(wide.bfloat16()) < _least_seconds(wide)


@cache
def multiplies_bytes() -> bool:
    """Whether the processor has instructions for products of eight bits."""
    flags = torch.cpu.get_capabilities()
    return any(flags.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _least_seconds(x: Tensor) -> float:
    """Of a few products, as others may use the machine too."""
    seconds = []
    for _ in range(8):
        start = perf_counter()
        torch.mm(x, x)
        seconds.append(perf_counter() - start)
    return min(seconds)
