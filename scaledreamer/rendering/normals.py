"""Spatial gradients of a field, in closed form where a kernel knows it, else by finite differences.

`grid_sample` has no second derivative, so neither a normal that is trained nor the eikonal term can
go through autograd twice.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.interfaces import Field
from scaledreamer.kernels._triplane.structure import is_fused
from scaledreamer.kernels.field_query import field_query


def spatial_gradient(
    field: Field, points: Float[Tensor, "B N 3"], eps: float = 0.01
) -> Float[Tensor, "B N 3"]:
    """Gradient of `field.geometry` at points, differentiable in the field's parameters.

    Exact where fused kernels take the field; else by `finite_difference_gradient`.
    """
    structure = field.structure
    if structure is None or not is_fused(structure):
        return finite_difference_gradient(field, points, eps)
    out = field_query(
        structure, points, with_colour=False, with_gradient=True, precision="accurate"
    )
    assert out.gradient is not None, "a gradient was asked for"
    return out.gradient


def finite_difference_gradient(
    field: Field, points: Float[Tensor, "B N 3"], eps: float = 0.01
) -> Float[Tensor, "B N 3"]:
    """Gradient of `field.geometry` at points by central differences of half-width eps, metres.

    Six evaluations, second-order accurate in eps, differentiable in the field's parameters. Runs
    without autocast: a difference over eps does not survive bfloat16.
    """
    steps = eps * torch.eye(3, device=points.device, dtype=points.dtype)
    shifted = points[:, None] + torch.cat((steps, -steps))[:, None]  # [B, 6, N, 3]
    with torch.autocast(points.device.type, enabled=False):
        values = field.geometry(shifted.flatten(1, 2)).unflatten(1, (2, 3, -1))
    return (values[:, 0] - values[:, 1]).transpose(1, 2) / (2.0 * eps)


def finite_difference_normal(
    field: Field, points: Float[Tensor, "B N 3"], eps: float = 0.01
) -> Float[Tensor, "B N 3"]:
    """Outward unit normal at points: up the distance, down the density."""
    gradient = finite_difference_gradient(field, points, eps)
    outward = gradient if field.density_kind == "sdf" else -gradient
    return torch.nn.functional.normalize(outward, dim=-1, eps=1e-6)
