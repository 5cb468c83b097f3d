"""Triton kernels of the bandwidth measurements in `_limits`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read(source, sums, size, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    """Every program reads ROUNDS blocks spread over the buffer; `size` is a multiple of BLOCK."""
    start = tl.program_id(0) * BLOCK
    total = tl.zeros((BLOCK,), tl.float32)
    for turn in range(ROUNDS):
        first = tl.multiple_of((start + turn * 7919 * BLOCK) % size, 16)
        total += tl.load(source + first + tl.arange(0, BLOCK))
    tl.store(sums + tl.program_id(0), tl.sum(total))


@triton.jit
def reduce(table, index, C: tl.constexpr, BLOCK: tl.constexpr):
    """Adds 1 to all C channels of the rows that `index` names."""
    rows = tl.load(index + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
    first = tl.multiple_of(rows * C, 16)
    where = first[:, None] + tl.arange(0, C)[None, :]
    tl.atomic_add(table + where, tl.full((BLOCK, C), 1.0, tl.float32), sem="relaxed")
