"""Exponential moving average of a module's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def ema_decay(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)): the first steps forget the initialisation sooner."""
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """A frozen copy of a module that follows it; generation uses the copy."""

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(source).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        """average <- d * average + (1 - d) * weights, d of that step; buffers are copied."""
        weight = 1.0 - ema_decay(self.decay, step)
        averages: list[Tensor] = list(self.module.parameters())
        values: list[Tensor] = list(source.parameters())
        torch._foreach_lerp_(averages, values, weight)
        for mine, theirs in zip(self.module.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)
