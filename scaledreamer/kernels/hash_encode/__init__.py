"""Multi-resolution hash encoding of points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.kernels.backend import Backend, choose
from scaledreamer.kernels.hash_encode import reference
from scaledreamer.kernels.hash_encode.levels import HashLevels

__all__ = ["HashLevels", "hash_encode"]

_FUSED_FEATURES = (2, 4)
"""Features an entry that the fused form has, one vector instruction each."""


def hash_encode(
    table: Float[Tensor, "E F"], points: Float[Tensor, "N 3"], levels: HashLevels
) -> Float[Tensor, "N LF"]:
    """Trilinear features of every level, coarsest first, at points in [-1, 1]^3.

    Source: Mueller et al., Instant NGP, SIGGRAPH 2022, section 3. Conventions are the paper's: a
    coordinate x lies at p = (x / 2 + 1 / 2) N_l, its cell is floor(p), and the cube's faces are
    vertices at every level, so that no level reads beyond the cube. (tiny-cuda-nn has N_l vertices
    a side and shifts p by half a cell; tables are not interchangeable.) p is rounded to the
    points' dtype before its cell is taken. Points outside take the nearest face's features.
    Differentiable once in the table; points get no gradient. The result may be a transposed view.

    >>> levels = HashLevels(num_levels=2, base_resolution=1, finest_resolution=2)
    >>> hash_encode(torch.ones(levels.num_entries, 2), torch.zeros(1, 3), levels)
    tensor([[1., 1., 1., 1.]])

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, or points want a gradient.
    """
    _check(table, points, levels)
    forms: tuple[Backend, ...] = ("reference", "numba")
    if table.shape[1] in _FUSED_FEATURES:
        forms = (*forms, "triton")
    form = choose("hash_encode", table, forms)
    if form == "triton":
        from scaledreamer.kernels.hash_encode import fused

        return fused.hash_encode(table, points, levels)
    if form == "numba":
        from scaledreamer.kernels.hash_encode import numba_cpu

        return numba_cpu.hash_encode(table, points, levels)
    return reference.hash_encode(table, points, levels)


def _check(table: Tensor, points: Tensor, levels: HashLevels) -> None:
    if table.dim() != 2 or len(table) != levels.num_entries:
        raise ValueError(
            f"table: got shape {tuple(table.shape)}; expected [{levels.num_entries}, F]"
        )
    if table.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"table: got {table.dtype}; expected float32 or float64")
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"points: got shape {tuple(points.shape)}; expected [N, 3]")
    if points.dtype != table.dtype or points.device != table.device:
        raise ValueError(
            f"points: got {points.dtype} on {points.device}; "
            f"expected {table.dtype} on {table.device} like table"
        )
    if points.requires_grad and torch.is_grad_enabled():
        raise ValueError("points: want a gradient, which the encoding has not; pass them detached")
