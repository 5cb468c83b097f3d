"""Multi-resolution hash encoding on the CPU, forward and backward.

Blocks of points go through one level after another, so that a level's entries and a block's
features stay in a core's cache. For a few points at a time, entries and weights of all corners are
computed in vectors and left in small buffers; entries are then read or added to one at a time.
Forward, every thread owns a range of points. Backward, every thread
owns levels, whose entries nobody else writes: no races, and results are bit for bit the same with
any number of threads.

Features go two at a time where their number is even: memory is then seen as float64, whose halves
are two float32, as LLVM forms no vectors of two by itself. Integers are cast after every operation,
as numba widens them to 64 bits otherwise, and a vector holds half as many.
`no_type_check` keeps run-time type checkers, which wrap functions, from what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaledreamer.kernels.cpu_threads import array, kernel_threads, num_threads
from scaledreamer.kernels.hash_encode.levels import PRIMES, HashLevels

_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy"}
_LARGEST: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
# A plain 1 would turn float32 expressions into float64, uint32 ones into int64.
_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_NEXT = np.uint32(1)
_BLOCK = 2048
"""Points that take one level after another: 256 KB at 32 features, a share of a core's L2."""
_STEP = 128
"""Points whose corners are kept at once, 8 KB; divides `_BLOCK`."""


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
                data = _level_data(levels)
                _forward(array(table), array(points), out.numpy(), data, num_parts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (points,) = ctx.saved_tensors
        grad_table = grad.new_zeros(ctx.shape)
        if grad.numel():
            num_parts = num_threads(ctx.levels.num_levels, _LARGEST)
            with kernel_threads(numba.set_num_threads, num_parts):
                data = _level_data(ctx.levels)
                _backward(array(points), array(grad), grad_table.numpy(), data, num_parts)
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


def _forward(
    table: np.ndarray, points: np.ndarray, out: np.ndarray, level_data: np.ndarray, num_parts: int
) -> None:
    num_units, entries, features = _in_units(table, out)
    _encode(entries, features, points.reshape(-1), level_data, num_units, num_parts)


def _backward(
    points: np.ndarray,
    grad: np.ndarray,
    grad_table: np.ndarray,
    level_data: np.ndarray,
    num_parts: int,
) -> None:
    """Adds to `grad_table`."""
    num_units, entries, features = _in_units(grad_table, grad)
    _encode_backward(entries, features, points.reshape(-1), level_data, num_units, num_parts)


def _in_units(table: np.ndarray, features: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Pairs (of an even number, aligned) or features an entry, and both arrays, flat, in those."""
    num_features = table.shape[1]
    entries, flat = table.reshape(-1), features.reshape(-1)
    is_aligned = entries.ctypes.data % 8 == 0 and flat.ctypes.data % 8 == 0
    if num_features % 2 or not is_aligned:
        return num_features, entries, flat
    return num_features // 2, entries.view(np.float64), flat.view(np.float64)


@intrinsic
@no_type_check
def _add_product(_, weight, unit, total):
    """total + weight * unit, of float32 or of pairs of them."""

    def generate(_, builder, __, values):
        weight, first, second = values
        if unit == types.float64:
            pair, lane = ir.VectorType(ir.FloatType(), 2), ir.IntType(32)
            first, second = builder.bitcast(first, pair), builder.bitcast(second, pair)
            low = builder.insert_element(ir.Constant(pair, ir.Undefined), weight, lane(0))
            weight = builder.insert_element(low, weight, lane(1))
        product = builder.fmul(weight, first, flags=("contract",))
        result = builder.fadd(product, second, flags=("contract",))
        return builder.bitcast(result, ir.DoubleType()) if unit == types.float64 else result

    return unit(weight, unit, total), generate


@njit(**_OPTIONS)
@no_type_check
def _keep_shares(points, first, count, shares):
    """Coordinates in [0, 1], one axis after the other; not-a-number stays one."""
    for i in range(count):
        for axis in range(3):
            share = points[3 * (first + i) + axis] * _HALF + _HALF
            share = _ZERO if share < _ZERO else share
            shares[axis * _BLOCK + i] = _ONE if share > _ONE else share


@njit(**_OPTIONS)
@no_type_check
def _locate(share, cells):
    """Cell along an axis and the share of its far vertex."""
    position = share * np.float32(cells)
    inside = position if position > _ZERO else _ZERO  # so is not-a-number
    cell = min(np.int32(inside), np.int32(cells - np.int32(1)))
    return np.uint32(cell), position - np.float32(cell)


@njit(**_OPTIONS)
@no_type_check
def _keep_weights(shares, weights, cells):
    """Trilinear weights of the corners, x running fastest."""
    for i in range(_STEP):
        _, u = _locate(shares[i], cells)
        _, v = _locate(shares[_BLOCK + i], cells)
        _, w = _locate(shares[2 * _BLOCK + i], cells)
        a, b, c, d = (_ONE - v) * (_ONE - w), v * (_ONE - w), (_ONE - v) * w, v * w
        t = _ONE - u
        weights[i], weights[_STEP + i] = t * a, u * a
        weights[2 * _STEP + i], weights[3 * _STEP + i] = t * b, u * b
        weights[4 * _STEP + i], weights[5 * _STEP + i] = t * c, u * c
        weights[6 * _STEP + i], weights[7 * _STEP + i] = t * d, u * d


@njit(**_OPTIONS)
@no_type_check
def _keep_dense_entries(shares, entries, cells, by, bz):
    for i in range(_STEP):
        x, _ = _locate(shares[i], cells)
        y, _ = _locate(shares[_BLOCK + i], cells)
        z, _ = _locate(shares[2 * _BLOCK + i], cells)
        a = np.uint32(x + np.uint32(np.uint32(y * by) + np.uint32(z * bz)))
        b, c = np.uint32(a + by), np.uint32(a + bz)
        d = np.uint32(b + bz)
        entries[i], entries[_STEP + i] = a, np.uint32(a + _NEXT)
        entries[2 * _STEP + i], entries[3 * _STEP + i] = b, np.uint32(b + _NEXT)
        entries[4 * _STEP + i], entries[5 * _STEP + i] = c, np.uint32(c + _NEXT)
        entries[6 * _STEP + i], entries[7 * _STEP + i] = d, np.uint32(d + _NEXT)


@njit(**_OPTIONS)
@no_type_check
def _keep_hashed_entries(shares, entries, cells, by, bz, mask):
    for i in range(_STEP):
        x, _ = _locate(shares[i], cells)
        y, _ = _locate(shares[_BLOCK + i], cells)
        z, _ = _locate(shares[2 * _BLOCK + i], cells)
        far = np.uint32(x + _NEXT)
        y0, z0 = np.uint32(y * by), np.uint32(z * bz)
        y1, z1 = np.uint32(y0 + by), np.uint32(z0 + bz)
        a, b, c, d = np.uint32(y0 ^ z0), np.uint32(y1 ^ z0), np.uint32(y0 ^ z1), np.uint32(y1 ^ z1)
        entries[i], entries[_STEP + i] = np.uint32(a ^ x) & mask, np.uint32(a ^ far) & mask
        entries[2 * _STEP + i] = np.uint32(b ^ x) & mask
        entries[3 * _STEP + i] = np.uint32(b ^ far) & mask
        entries[4 * _STEP + i] = np.uint32(c ^ x) & mask
        entries[5 * _STEP + i] = np.uint32(c ^ far) & mask
        entries[6 * _STEP + i] = np.uint32(d ^ x) & mask
        entries[7 * _STEP + i] = np.uint32(d ^ far) & mask


@njit(**_OPTIONS)
@no_type_check
def _keep_corners(shares, entries, weights, data):
    """Of `_STEP` points, also where fewer are left; the others' entries exist, too."""
    cells, by, bz = np.int32(data[0]), np.uint32(data[2]), np.uint32(data[3])
    if data[4] == 0:
        _keep_dense_entries(shares, entries, cells, by, bz)
    else:
        _keep_hashed_entries(shares, entries, cells, by, bz, np.uint32(data[4]))
    _keep_weights(shares, weights, cells)


@njit(**_OPTIONS)
@no_type_check
def _gather(table, out, stride, num_units, count, entries, weights):
    zero = table.dtype.type(0)
    for i in range(count):
        for unit in range(num_units):
            total = zero
            for corner in range(8):
                k = corner * _STEP + i
                entry = np.intp(entries[k]) * num_units + unit
                total = _add_product(weights[k], table[entry], total)
            out[np.uint64(i * stride + unit)] = total


@njit(**_OPTIONS)
@no_type_check
def _scatter(grad_table, grad, stride, num_units, count, entries, weights):
    for i in range(count):
        for unit in range(num_units):
            value = grad[np.uint64(i * stride + unit)]
            for corner in range(8):
                k = corner * _STEP + i
                entry = np.intp(entries[k]) * num_units + unit
                grad_table[entry] = _add_product(weights[k], value, grad_table[entry])


@njit(parallel=True, **_OPTIONS)
@no_type_check
def _encode(table, out, points, level_data, num_units, num_parts):
    num_points, num_levels = len(points) // 3, len(level_data)
    stride = num_levels * num_units
    for part in prange(num_parts):
        begin, end = part * num_points // num_parts, (part + 1) * num_points // num_parts
        shares = np.zeros(3 * _BLOCK, np.float32)
        entries, weights = np.empty(8 * _STEP, np.uint32), np.empty(8 * _STEP, np.float32)
        for block in range(begin, end, _BLOCK):
            size = min(_BLOCK, end - block)
            _keep_shares(points, block, size, shares)
            for level in range(num_levels):
                own = table[level_data[level, 1] * num_units :]
                for step in range(0, size, _STEP):
                    count = min(_STEP, size - step)
                    _keep_corners(shares[step:], entries, weights, level_data[level])
                    into = out[(block + step) * stride + level * num_units :]
                    _gather(own, into, stride, num_units, count, entries, weights)


@njit(parallel=True, **_OPTIONS)
@no_type_check
def _encode_backward(grad_table, grad, points, level_data, num_units, num_parts):
    """Parts take neighbouring levels, whose gradients share cache lines."""
    num_points, num_levels = len(points) // 3, len(level_data)
    stride = num_levels * num_units
    for part in prange(num_parts):
        begin, end = part * num_levels // num_parts, (part + 1) * num_levels // num_parts
        shares = np.zeros(3 * _BLOCK, np.float32)
        entries, weights = np.empty(8 * _STEP, np.uint32), np.empty(8 * _STEP, np.float32)
        for block in range(0, num_points, _BLOCK):
            size = min(_BLOCK, num_points - block)
            _keep_shares(points, block, size, shares)
            for level in range(begin, end):
                own = grad_table[level_data[level, 1] * num_units :]
                for step in range(0, size, _STEP):
                    count = min(_STEP, size - step)
                    _keep_corners(shares[step:], entries, weights, level_data[level])
                    source = grad[(block + step) * stride + level * num_units :]
                    _scatter(own, source, stride, num_units, count, entries, weights)
