"""Bilinear features of three axis-aligned planes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.kernels.backend import choose
from scaledreamer.kernels.sample_planes import reference


def sample_planes(
    planes: Float[Tensor, "B 3 R R C"], points: Float[Tensor, "B N 3"]
) -> Float[Tensor, "B N C"]:
    """Sum of the three planes' bilinear features at points in [-1, 1]^3.

    Planes lie in (x, y), (x, z), (y, z); the first axis of a pair runs along a plane's last R.
    `align_corners=False`: texel i is centred at (2 i + 1) / R - 1. Points outside the box take the
    border's features. Differentiable once in both arguments.
    Source: Chan et al., EG3D, CVPR 2022, section 4 (tri-plane representation).

    >>> sample_planes(torch.ones(1, 3, 4, 4, 2), torch.zeros(1, 1, 3))
    tensor([[[3., 3.]]])

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other.
    """
    shape = tuple(planes.shape)
    if planes.dim() != 5 or shape[1] != 3 or shape[2] != shape[3] or shape[2] == 0:
        raise ValueError(f"planes: got shape {shape}; expected [B, 3, R, R, C] with R >= 1")
    if points.dim() != 3 or points.shape[0] != planes.shape[0] or points.shape[2] != 3:
        raise ValueError(
            f"points: got shape {tuple(points.shape)}; expected [{planes.shape[0]}, N, 3]"
        )
    if planes.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"planes: got {planes.dtype}; expected float32 or float64")
    if points.dtype != planes.dtype or points.device != planes.device:
        raise ValueError(
            f"points: got {points.dtype} on {points.device}; "
            f"expected {planes.dtype} on {planes.device} like planes"
        )
    if choose("sample_planes", planes, ("reference", "numba")) == "numba":
        from scaledreamer.kernels.sample_planes import numba_cpu

        return numba_cpu.sample_planes(planes, points)
    return reference.sample_planes(planes, points)
