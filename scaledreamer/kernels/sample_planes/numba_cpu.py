"""Bilinear sampling of three planes on the CPU, forward and backward.

Planes are read in place with their channels last, so that the twelve texels of a point are twelve
short runs of memory. Every thread owns a fixed range of points: results depend on the number of
threads, never on their timing. Contraction into FMAs is the only licence that compilation takes.
`no_type_check` keeps run-time type checkers, which wrap functions, away from what numba compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaledreamer.kernels.cpu_threads import array, kernel_threads, num_threads

_OPTIONS: dict[str, Any] = {
    "parallel": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"contract"},
}
# Sums over channels may change their order, so that they run in vectors.
_SUM_OPTIONS: dict[str, Any] = {**_OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}}
_LARGEST: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
# A plain 1 would turn float32 expressions into float64.
_ONE = np.float32(1)


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Summed features [B, N, C] of float32 planes [B, 3, R, R, C] at points [B, N, 3].

    A graph that `torch.compile` traces breaks here.
    """
    return _apply(planes, points)


class _SamplePlanes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, planes: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(planes, points)
        out = planes.new_empty(*points.shape[:2], planes.shape[-1])
        if out.numel():
            num_parts = num_threads(points[..., 0].numel(), _LARGEST)
            with kernel_threads(numba.set_num_threads, num_parts):
                _forward(array(planes), array(points), out.numpy(), num_parts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        planes, points = ctx.saved_tensors
        needs_planes, needs_points = ctx.needs_input_grad
        # Zeros of torch come from memory that the allocator keeps.
        grad_planes = (
            torch.zeros_like(planes, memory_format=torch.contiguous_format)
            if needs_planes
            else None
        )
        grad_points = (
            torch.zeros_like(points, memory_format=torch.contiguous_format)
            if needs_points
            else None
        )
        if grad.numel():
            num_parts = num_threads(points[..., 0].numel(), _LARGEST)
            with kernel_threads(numba.set_num_threads, num_parts):
                if grad_planes is not None:
                    # Part 0 and every part that starts a scene write to the result.
                    shape = (num_parts - 1, *planes.shape[1:])
                    spare = planes.new_empty(shape).numpy()
                    at, into = array(points), grad_planes.numpy()
                    _backward_planes(at, array(grad), into, spare, num_parts)
                if grad_points is not None:
                    into = grad_points.numpy()
                    _backward_points(array(planes), array(points), array(grad), into, num_parts)
        return grad_planes, grad_points


_apply: Callable[[Tensor, Tensor], Tensor] = torch.compiler.disable(_SamplePlanes.apply)  # pyright: ignore[reportAssignmentType]


@njit(inline="always")
@no_type_check
def _locate(value: Any, size: int) -> tuple[int, Any, bool]:
    """First of two texels along an axis, the second one's share, whether the share can change.

    Not-a-number goes to the first texel, as in `grid_sample`.
    """
    at = ((value + _ONE) * np.float32(size) - _ONE) * np.float32(0.5)
    is_free = (at > 0) and (at < size - 1)
    if not at > 0:
        at = np.float32(0)
    if at > size - 1:
        at = np.float32(size - 1)
    first = int(at)
    return first, at - np.float32(first), is_free


@njit(**_OPTIONS)
@no_type_check
def _forward(planes, points, out, num_parts):
    num_points, size, num_channels = points.shape[1], planes.shape[2], planes.shape[4]
    total = points.shape[0] * num_points
    last = size - 1
    for part in prange(num_parts):
        for one in range(part * total // num_parts, (part + 1) * total // num_parts):
            scene, n = one // num_points, one % num_points
            x0, u, _ = _locate(points[scene, n, 0], size)
            y0, v, _ = _locate(points[scene, n, 1], size)
            z0, w, _ = _locate(points[scene, n, 2], size)
            x1, y1, z1 = min(x0 + 1, last), min(y0 + 1, last), min(z0 + 1, last)
            uv, uw, vw = u * v, u * w, v * w
            xy, xz, yz = planes[scene, 0], planes[scene, 1], planes[scene, 2]
            a00, a01, a10, a11 = xy[y0, x0], xy[y0, x1], xy[y1, x0], xy[y1, x1]
            b00, b01, b10, b11 = xz[z0, x0], xz[z0, x1], xz[z1, x0], xz[z1, x1]
            c00, c01, c10, c11 = yz[z0, y0], yz[z0, y1], yz[z1, y0], yz[z1, y1]
            row = out[scene, n]
            # One loop over twelve runs is a third faster than three over four.
            for i in range(num_channels):
                first = (_ONE - u - v + uv) * a00[i] + (u - uv) * a01[i]
                first += (v - uv) * a10[i] + uv * a11[i]
                second = (_ONE - u - w + uw) * b00[i] + (u - uw) * b01[i]
                second += (w - uw) * b10[i] + uw * b11[i]
                third = (_ONE - v - w + vw) * c00[i] + (v - vw) * c01[i]
                third += (w - vw) * c10[i] + vw * c11[i]
                row[i] = first + second + third


@njit(inline="always")
@no_type_check
def _scatter(plane, row, column, u, v, values):
    """Adds bilinear shares of `values` to four texels, which may coincide at the border."""
    last = plane.shape[0] - 1
    row1, column1 = min(row + 1, last), min(column + 1, last)
    uv = u * v
    a, b, c, d = plane[row, column], plane[row, column1], plane[row1, column], plane[row1, column1]
    for i in range(len(values)):
        a[i] += (_ONE - u - v + uv) * values[i]
    for i in range(len(values)):
        b[i] += (u - uv) * values[i]
    for i in range(len(values)):
        c[i] += (v - uv) * values[i]
    for i in range(len(values)):
        d[i] += uv * values[i]


@njit(**_OPTIONS)
@no_type_check
def _backward_planes(points, grad, grad_planes, spare, num_parts):
    """Adds to zeroed `grad_planes`; `spare` [num_parts - 1, 3, R, R, C] is scratch memory.

    A part's points of a scene that the part before has begun go to the part's own planes, which are
    added afterwards in the order of the parts.
    """
    num_points, size = points.shape[1], grad_planes.shape[2]
    total = points.shape[0] * num_points
    for part in prange(num_parts):
        begin, end = part * total // num_parts, (part + 1) * total // num_parts
        begun = begin // num_points if begin % num_points else -1
        if begun >= 0:
            spare[part - 1] = 0
        for one in range(begin, end):
            scene, n = one // num_points, one % num_points
            into = spare[part - 1] if scene == begun else grad_planes[scene]
            x, u, _ = _locate(points[scene, n, 0], size)
            y, v, _ = _locate(points[scene, n, 1], size)
            z, w, _ = _locate(points[scene, n, 2], size)
            values = grad[scene, n]
            _scatter(into[0], y, x, u, v, values)
            _scatter(into[1], z, x, u, w, values)
            _scatter(into[2], z, y, v, w, values)
    for line in prange(3 * size):
        plane, row = line // size, line % size
        for part in range(1, num_parts):
            begin = part * total // num_parts
            if begin % num_points:
                into, values = grad_planes[begin // num_points], spare[part - 1]
                for column in range(size):
                    for i in range(into.shape[3]):
                        into[plane, row, column, i] += values[plane, row, column, i]


@njit(inline="always")
@no_type_check
def _slopes(plane, row, column, u, v, values):
    """Derivatives of the plane's contribution in the texel units of column and row."""
    last = plane.shape[0] - 1
    row1, column1 = min(row + 1, last), min(column + 1, last)
    a, b, c, d = plane[row, column], plane[row, column1], plane[row1, column], plane[row1, column1]
    across = along = np.float32(0)
    for i in range(len(values)):
        twist = a[i] - b[i] - c[i] + d[i]
        across += values[i] * (b[i] - a[i] + v * twist)
        along += values[i] * (c[i] - a[i] + u * twist)
    return across, along


@njit(**_SUM_OPTIONS)
@no_type_check
def _backward_points(planes, points, grad, grad_points, num_parts):
    num_points, size = points.shape[1], planes.shape[2]
    total = points.shape[0] * num_points
    for part in prange(num_parts):
        for one in range(part * total // num_parts, (part + 1) * total // num_parts):
            scene, n = one // num_points, one % num_points
            x, u, is_x_free = _locate(points[scene, n, 0], size)
            y, v, is_y_free = _locate(points[scene, n, 1], size)
            z, w, is_z_free = _locate(points[scene, n, 2], size)
            values = grad[scene, n]
            xy_x, xy_y = _slopes(planes[scene, 0], y, x, u, v, values)
            xz_x, xz_z = _slopes(planes[scene, 1], z, x, u, w, values)
            yz_y, yz_z = _slopes(planes[scene, 2], z, y, v, w, values)
            scale = np.float32(0.5 * size)
            grad_points[scene, n, 0] = scale * (xy_x + xz_x) if is_x_free else 0
            grad_points[scene, n, 1] = scale * (xy_y + yz_y) if is_y_free else 0
            grad_points[scene, n, 2] = scale * (xz_z + yz_z) if is_z_free else 0
