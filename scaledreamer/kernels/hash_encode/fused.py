"""Multi-resolution hash encoding in Triton, forward and backward.

A program takes a block of points through one level; levels are the slow axis of the grid, so that
one level's entries stay hot in the caches. Features are written one row a feature, where a warp
writes whole sectors; row by row each level would write 8 bytes of every 128.
The gradient of an entry is added by one vector reduction of its F features: relaxed atomics on
addresses that the compiler can prove aligned, as it does where F divides the offset.
`no_type_check` keeps run-time type checkers, which wrap functions, from what is read as source and
from sizes that are symbols.
"""

from __future__ import annotations

from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from scaledreamer.kernels.backend import alert_not_deterministic
from scaledreamer.kernels.hash_encode.levels import PRIMES, HashLevels

_BLOCK = 128
_NUM_WARPS = 4


def hash_encode(table: Tensor, points: Tensor, levels: HashLevels) -> Tensor:
    """Features [N, L * F], a transposed view, of a table [E, F] at points [N, 3]; F is 2 or 4."""
    shape = levels.num_levels, levels.log2_table_size
    resolutions = levels.base_resolution, levels.finest_resolution
    return _encode(table, points, *shape, *resolutions).t()


@torch.library.custom_op("scaledreamer::hash_encode", mutates_args=())
@no_type_check
def _encode(
    table: Tensor,
    points: Tensor,
    num_levels: int,
    log2_table_size: int,
    base_resolution: int,
    finest_resolution: int,
) -> Tensor:
    """Features [L * F, N]."""
    table, points = table.contiguous(), points.contiguous()
    num_features = table.shape[1]
    out = table.new_empty(num_levels * num_features, len(points))
    if out.numel():
        levels = _levels(num_levels, log2_table_size, base_resolution, finest_resolution)
        launch: Any = _forward_kernel[_grid(len(points), num_levels)]
        with torch.cuda.device_of(points):
            launch(
                table,
                points,
                out,
                _level_data(levels, table.device),
                len(points),
                FEATURES=num_features,
                BLOCK=_BLOCK,
                num_warps=_NUM_WARPS,
                enable_fp_fusion=True,
            )
    return out


@torch.library.custom_op("scaledreamer::hash_encode_backward", mutates_args=())
@no_type_check
def _encode_backward(
    points: Tensor,
    grad: Tensor,
    num_features: int,
    num_levels: int,
    log2_table_size: int,
    base_resolution: int,
    finest_resolution: int,
) -> Tensor:
    """Gradient [E, F] of the table from that of the features [L * F, N], in any layout."""
    advice = 'encode in a block `with use_backend("reference")`'
    alert_not_deterministic("hash_encode_backward", points, advice)
    levels = _levels(num_levels, log2_table_size, base_resolution, finest_resolution)
    points = points.contiguous()
    grad_table = grad.new_zeros(levels.num_entries, num_features)
    if grad.numel():
        launch: Any = _backward_kernel[_grid(len(points), num_levels)]
        with torch.cuda.device_of(points):
            launch(
                points,
                grad,
                grad_table,
                _level_data(levels, points.device),
                len(points),
                grad.stride(0),
                grad.stride(1),
                FEATURES=num_features,
                BLOCK=_BLOCK,
                num_warps=_NUM_WARPS,
                enable_fp_fusion=True,
            )
    return grad_table


@_encode.register_fake
@no_type_check
def _(table: Tensor, points: Tensor, num_levels: int, *_: int) -> Tensor:
    return table.new_empty(num_levels * table.shape[1], points.shape[0])


@_encode_backward.register_fake
@no_type_check
def _(points: Tensor, grad: Tensor, num_features: int, *levels: int) -> Tensor:
    return grad.new_empty(_levels(*levels).num_entries, num_features)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, points, *ctx.levels = inputs
    ctx.num_features = table.shape[1]
    ctx.save_for_backward(points)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (points,) = ctx.saved_tensors
    grad_table = _encode_backward(points, grad, ctx.num_features, *ctx.levels)
    return grad_table, None, None, None, None, None


_encode.register_autograd(_backward, setup_context=_setup)


def _levels(num: int, log2_size: int, base: int, finest: int) -> HashLevels:
    return HashLevels(
        num_levels=num, log2_table_size=log2_size, base_resolution=base, finest_resolution=finest
    )


def _grid(num_points: int, num_levels: int) -> tuple[int, int]:
    return -(-num_points // _BLOCK), num_levels


@cache
def _level_data(levels: HashLevels, device: torch.device) -> Tensor:
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
    return torch.tensor(rows, dtype=torch.int64, device=device)


@triton.jit
@no_type_check
def _locate(value, cells):
    """Cell along an axis and the share of its far vertex; not-a-number stays one."""
    share = tl.clamp(value * 0.5 + 0.5, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    position = share * cells.to(value.dtype)
    cell = tl.minimum(tl.maximum(position.to(tl.int32), 0), cells - 1)
    return cell.to(tl.uint32), position - cell.to(value.dtype)


@triton.jit
@no_type_check
def _cell(points, level_data, level, rows, is_row):
    """Cells and shares of points, and what the level's addresses need."""
    data = level_data + level * 5
    cells = tl.load(data).to(tl.int32)
    x, u = _locate(tl.load(points + rows * 3, mask=is_row, other=0.0), cells)
    y, v = _locate(tl.load(points + rows * 3 + 1, mask=is_row, other=0.0), cells)
    z, w = _locate(tl.load(points + rows * 3 + 2, mask=is_row, other=0.0), cells)
    by, bz = tl.load(data + 2).to(tl.uint32), tl.load(data + 3).to(tl.uint32)
    return x, y * by, z * bz, u, v, w, tl.load(data + 1), by, bz, tl.load(data + 4).to(tl.uint32)


@triton.jit
@no_type_check
def _corner(x, y, z, u, v, w, offset, by, bz, mask, CORNER: tl.constexpr):
    """Entry and weight of a cell's corner; products and sums are those of 32 bits."""
    if CORNER & 1:
        x, u = x + 1, 1 - u
    if CORNER & 2:
        y, v = y + by, 1 - v
    if CORNER & 4:
        z, w = z + bz, 1 - w
    index = tl.where(mask == 0, x + y + z, (x ^ y ^ z) & mask)
    return offset + index.to(tl.int64), (1 - u) * (1 - v) * (1 - w)


@triton.jit
@no_type_check
def _forward_kernel(
    table, points, out, level_data, num_points, FEATURES: tl.constexpr, BLOCK: tl.constexpr
):
    level = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_points
    x, y, z, u, v, w, offset, by, bz, mask = _cell(points, level_data, level, rows, is_row)
    features = tl.arange(0, FEATURES)
    total = tl.zeros([BLOCK, FEATURES], dtype=table.dtype.element_ty)
    # Rows beyond the last point read entries that exist.
    for corner in tl.static_range(8):
        entry, weight = _corner(x, y, z, u, v, w, offset, by, bz, mask, corner)
        values = tl.load(table + (entry * FEATURES)[:, None] + features[None, :])
        total += weight[:, None] * values
    lines = (level * FEATURES + features).to(tl.int64) * num_points
    tl.store(out + lines[None, :] + rows[:, None], total, mask=is_row[:, None])


@triton.jit
@no_type_check
def _backward_kernel(
    points,
    grad,
    grad_table,
    level_data,
    num_points,
    stride_feature,
    stride_point,
    FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    level = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_points
    x, y, z, u, v, w, offset, by, bz, mask = _cell(points, level_data, level, rows, is_row)
    features = tl.arange(0, FEATURES)
    lines = (level * FEATURES + features).to(tl.int64) * stride_feature
    at = grad + lines[None, :] + (rows * stride_point)[:, None]
    values = tl.load(at, mask=is_row[:, None], other=0.0)
    # Samples in empty space have exact zeros; whole entries, or the reduction is not a vector.
    is_row = is_row & (tl.sum((values != 0).to(tl.int32), axis=1) > 0)
    for corner in tl.static_range(8):
        entry, weight = _corner(x, y, z, u, v, w, offset, by, bz, mask, corner)
        target = grad_table + (entry * FEATURES)[:, None] + features[None, :]
        tl.atomic_add(target, weight[:, None] * values, mask=is_row[:, None], sem="relaxed")
