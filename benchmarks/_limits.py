"""What the hardware can do, measured: copy, L2 read and reduction bandwidth of a GPU.

The floors of benchmarks/kernels.py are made of these. Loads and stores stream; reductions are 16
bytes wide, as the kernels' scatters are, onto random rows, the texels of planes, and one hot row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks._timing import Budget, interleaved

ROW = 32
"""Channels of a row that reductions add to: 128 bytes."""


def measure(device: torch.device, size: int = 1 << 26) -> dict[str, float]:
    """Bytes a second by name; `size` is the number of floats that are copied."""
    source, target = torch.rand(size, device=device), torch.empty(size, device=device)
    calls: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    moved = {"copy": 8.0 * size}
    if device.type == "cuda":
        from benchmarks._limit_kernels import read, reduce

        small = torch.rand(1 << 22, device=device)  # 16 MB: within the L2 cache
        sums = torch.empty(4096, device=device)
        rounds = 16
        reading: Any = read[(4096,)]
        adding: Any = reduce[((1 << 20) // 64,)]
        calls["l2_read"] = lambda: reading(small, sums, len(small), ROUNDS=rounds, BLOCK=1024)
        moved["l2_read"] = 4.0 * 4096 * rounds * 1024
        num = 1 << 20
        for name, rows in {"red_random": 1 << 16, "red_texels": 3 * 64 * 64, "red_hot": 1}.items():
            index = torch.randint(rows, (num,), device=device, dtype=torch.int32)
            table = torch.zeros(rows, ROW, device=device)

            def scatter(index=index, table=table) -> object:
                return adding(table, index, C=ROW, BLOCK=64)

            calls[name] = scatter
            moved[name] = 4.0 * num * ROW
    timings = interleaved(calls, device, Budget(warm_up=3, repeats=30, seconds=1.0))
    return {name: moved[name] / (1e-3 * timing.median_ms) for name, timing in timings.items()}
