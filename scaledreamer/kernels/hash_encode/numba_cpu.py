"""Multi-resolution hash encoding on the CPU, forward and backward.

Forward, every thread owns a range of points and takes it level by level in blocks. Backward, every
thread owns levels, whose entries nobody else writes: no races, and no dependence on the number of
threads. `no_type_check` keeps run-time type checkers, which wrap functions, from what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaledreamer.kernels.cpu_threads import array, kernel_threads, num_threads
from scaledreamer.kernels.hash_encode.levels import PRIMES, HashLevels

_OPTIONS: dict[str, Any] = {
    "parallel": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"contract"},
}
_LARGEST: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
# A plain 1 would turn float32 expressions into float64.
_ONE, _HALF = np.float32(1), np.float32(0.5)
_BLOCK = 512
"""Points whose features of all levels stay in a core's cache: 64 KB at 32 features."""


def hash_encode(table: Tensor, points: Tensor, levels: HashLevels) -> Tensor:
    """Features [N, L * F] of a float32 table [E, F] at points [N, 3].

    A graph that `torch.compile` traces breaks here.
    """
    return _apply(table, points, levels)


class _HashEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, points: Tensor, levels: HashLevels) -> Tensor:
        ctx.save_for_backward(points)
        ctx.levels, ctx.shape = levels, table.shape
        out = table.new_empty(len(points), levels.num_levels * table.shape[1])
        if out.numel():
            num_parts = num_threads(-(-len(points) // _BLOCK), _LARGEST)
            with kernel_threads(numba.set_num_threads, num_parts):
                into = out.numpy()
                _forward(array(table), array(points), into, _level_data(levels), num_parts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (points,) = ctx.saved_tensors
        grad_table = grad.new_zeros(ctx.shape)
        if grad.numel():
            num_parts = num_threads(ctx.levels.num_levels, _LARGEST)
            with kernel_threads(numba.set_num_threads, num_parts):
                into = grad_table.numpy()
                _backward(array(points), array(grad), into, _level_data(ctx.levels), num_parts)
        return grad_table, None, None


_apply: Callable[[Tensor, Tensor, HashLevels], Tensor] = torch.compiler.disable(_HashEncode.apply)  # pyright: ignore[reportAssignmentType]


@cache
def _level_data(levels: HashLevels) -> np.ndarray:
    """Cells a side, offset, factors of y and z, mask of a hashed index or 0 for each level."""
    mask = (1 << levels.log2_table_size) - 1
    rows = [
        (cells, offset, cells + 1, (cells + 1) ** 2, 0)
        if dense
        else (cells, offset, PRIMES[1], PRIMES[2], mask)
        for cells, offset, dense in zip(
            levels.resolutions, levels.offsets, levels.is_dense, strict=True
        )
    ]
    return np.array(rows, dtype=np.int64)


@njit(inline="always")
@no_type_check
def _locate(value, cells):
    """Cell along an axis and the share of its far vertex; not-a-number stays one."""
    share = value * _HALF + _HALF
    if share < 0:
        share = np.float32(0)
    if share > 1:
        share = _ONE
    position = share * np.float32(cells)
    cell = min(max(int(position), 0), cells - 1)
    return cell, position - np.float32(cell)


@njit(inline="always")
@no_type_check
def _entries(x, y, z, data):
    """Entries of a cell's corners, x running fastest."""
    offset, by, bz, mask = data[1], data[2], data[3], data[4]
    y0, y1, z0, z1 = y * by, (y + 1) * by, z * bz, (z + 1) * bz
    if mask == 0:
        a, b, c, d = offset + y0 + z0, offset + y1 + z0, offset + y0 + z1, offset + y1 + z1
        return a + x, a + x + 1, b + x, b + x + 1, c + x, c + x + 1, d + x, d + x + 1
    a, b, c, d = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
    return (
        offset + ((a ^ x) & mask),
        offset + ((a ^ (x + 1)) & mask),
        offset + ((b ^ x) & mask),
        offset + ((b ^ (x + 1)) & mask),
        offset + ((c ^ x) & mask),
        offset + ((c ^ (x + 1)) & mask),
        offset + ((d ^ x) & mask),
        offset + ((d ^ (x + 1)) & mask),
    )


@njit(inline="always")
@no_type_check
def _weights(u, v, w):
    """Trilinear weights of the corners in the order of `_entries`."""
    a, b, c, d = (_ONE - v) * (_ONE - w), v * (_ONE - w), (_ONE - v) * w, v * w
    t = _ONE - u
    return t * a, u * a, t * b, u * b, t * c, u * c, t * d, u * d


@njit(**_OPTIONS)
@no_type_check
def _forward(table, points, out, level_data, num_parts):
    num_points, num_features = len(points), table.shape[1]
    for part in prange(num_parts):
        begin, end = part * num_points // num_parts, (part + 1) * num_points // num_parts
        for first in range(begin, end, _BLOCK):
            for level in range(len(level_data)):
                data = level_data[level]
                column = level * num_features
                for n in range(first, min(first + _BLOCK, end)):
                    x, u = _locate(points[n, 0], data[0])
                    y, v = _locate(points[n, 1], data[0])
                    z, w = _locate(points[n, 2], data[0])
                    a, b, c, d, e, f, g, h = _entries(x, y, z, data)
                    p, q, r, s, i, j, k, m = _weights(u, v, w)
                    for o in range(num_features):
                        near = p * table[a, o] + q * table[b, o] + r * table[c, o] + s * table[d, o]
                        far = i * table[e, o] + j * table[f, o] + k * table[g, o] + m * table[h, o]
                        out[n, column + o] = near + far


@njit(**_OPTIONS)
@no_type_check
def _backward(points, grad, grad_table, level_data, num_parts):
    """Adds to zeroed `grad_table`; levels go round the parts, as fine ones take longer."""
    num_features = grad_table.shape[1]
    for part in prange(num_parts):
        for level in range(part, len(level_data), num_parts):
            data = level_data[level]
            column = level * num_features
            for n in range(len(points)):
                x, u = _locate(points[n, 0], data[0])
                y, v = _locate(points[n, 1], data[0])
                z, w = _locate(points[n, 2], data[0])
                a, b, c, d, e, f, g, h = _entries(x, y, z, data)
                p, q, r, s, i, j, k, m = _weights(u, v, w)
                for o in range(num_features):
                    value = grad[n, column + o]
                    grad_table[a, o] += p * value
                    grad_table[b, o] += q * value
                    grad_table[c, o] += r * value
                    grad_table[d, o] += s * value
                    grad_table[e, o] += i * value
                    grad_table[f, o] += j * value
                    grad_table[g, o] += k * value
                    grad_table[h, o] += m * value
