"""Time, memory and error of a differentiable call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    median_ms: float
    low_ms: float
    high_ms: float
    """Fastest and slowest decile."""

    @staticmethod
    def of(milliseconds: Sequence[float]) -> Timing:
        ordered = sorted(milliseconds)
        tenth = len(ordered) // 10
        return Timing(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth])


@dataclass(frozen=True)
class Budget:
    """How long a call is measured."""

    warm_up: int = 20
    repeats: int = 100
    seconds: float = 3.0
    """Warm-up and repeats each stop when this is over, but not before one and three of them."""


def interleaved(
    calls: dict[str, Callable[[], object]], device: torch.device, budget: Budget
) -> dict[str, Timing]:
    """Times several calls in turn, so that a slow phase of the machine meets all of them."""
    for call in calls.values():
        start = time.perf_counter()
        for _ in range(budget.warm_up):
            call()
            if time.perf_counter() - start > budget.seconds:
                break
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for number in range(budget.repeats):
        if number >= 3 and time.perf_counter() - start > budget.seconds * len(calls):
            break
        for name, call in calls.items():
            times[name].append(_once(call, device))
    return {name: Timing.of(values) for name, values in times.items()}


def _once(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The GPU idles about a millisecond, while the CPU queues the call: its launches don't count.
    torch.cuda._sleep(2_000_000)
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def peak_memory_mb(call: Callable[[], object], device: torch.device) -> float | None:
    """Most memory a call holds beyond what was held before; None where nothing counts it."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def worst_error(mine: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest of the pairs' relative errors; NaN is larger than any."""
    return largest([relative_error(a, b) for a, b in zip(mine, exact, strict=True)])


def largest(errors: Sequence[float]) -> float:
    return max(errors, key=lambda value: (isnan(value), value))


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Largest deviation as a share of the largest exact value."""
    scale = exact.abs().max().clamp(min=1e-30)
    return float((value.to(exact) - exact).abs().max() / scale)
