"""From what a field says about its geometry to volume density."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.interfaces import DensityKind


def laplace_density(distance: Float[Tensor, "*n"], beta: float) -> Float[Tensor, "*n"]:
    """Density of a signed distance: 1 / beta inside, half of it on the surface, 1/m.

    Source: Yariv et al., VolSDF, NeurIPS 2021, equations 2 and 3 with alpha = 1 / beta.
    """
    tail = 0.5 * torch.exp(-distance.abs() / beta)
    return torch.where(distance > 0, tail, 1.0 - tail) / beta


def to_density(values: Float[Tensor, "*n"], kind: DensityKind, beta: float) -> Float[Tensor, "*n"]:
    """Volume density, 1/m, of `Field.geometry`; a field of kind "density" already gives it."""
    return laplace_density(values, beta) if kind == "sdf" else values
