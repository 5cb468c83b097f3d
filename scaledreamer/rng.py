"""Counter-based random numbers, equal on every device, process count and resume.

A draw is keyed by (seed, stream name) and counted by (step, global sample index, element), never by
rank or by how many draws came before.
Source: Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the
conversion to [0, 1) is Triton's, so that a kernel can repeat a draw.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b for unsigned 32-bit values held in int64."""
    low_product = a * (b & 0xFFFF)
    high_product = a * (b >> 16) + (low_product >> 16)
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Four random 32-bit words per counter, as int64 [..., 4].

    Source: Philox4x32-10. Counters are int64 tensors of one shape holding unsigned 32-bit values.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi_a, lo_a = _multiply(_ROUND_A, c0)
        hi_b, lo_b = _multiply(_ROUND_B, c2)
        c0, c1, c2, c3 = hi_b ^ c1 ^ k0, lo_b, hi_a ^ c3 ^ k1, lo_a
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def to_uniform(words: Tensor) -> Tensor:
    """32-bit words -> float32 in [0, 1), by Triton's formula."""
    signed = torch.where(words > 0x7FFFFFFF, words - (1 << 32), words)
    return torch.where(signed < 0, -signed - 1, signed).float() * 4.6566127342e-10


def stream_key(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@dataclass(frozen=True)
class StepRng:
    """Draws of one step for B samples, by stream name.

    Every method returns [B, *shape] on the device of `sample_index`; the same name draws the same
    numbers again, so each use has its own name.
    """

    seed: int
    step: int
    sample_index: Tensor
    """[B] int64, global over all processes."""

    @property
    def num_samples(self) -> int:
        return len(self.sample_index)

    def _words(self, stream: str, count: int) -> Tensor:
        """[B, count] words."""
        blocks = -(-count // 4)
        index = self.sample_index[:, None]
        element = torch.arange(blocks, device=index.device)[None, :]
        element, index = torch.broadcast_tensors(element, index)
        step = torch.full_like(element, self.step & _MASK)
        counter = (element, index & _MASK, step, (index >> 32) & _MASK)
        return philox(counter, stream_key(self.seed, stream)).flatten(1)[:, :count]

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """float32 in [0, 1)."""
        return to_uniform(self._words(stream, math.prod(shape))).view(-1, *shape)

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal float32, by Box and Muller's transform."""
        count = math.prod(shape)
        u = to_uniform(self._words(stream, 2 * count)).double()
        radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :count]))
        return (radius * torch.cos(2 * math.pi * u[:, count:])).float().view(-1, *shape)

    def integers(self, stream: str, high: int, *shape: int) -> Tensor:
        """int64 in [0, high), high up to 2^31."""
        return (self._words(stream, math.prod(shape)) * high >> 32).view(-1, *shape)
