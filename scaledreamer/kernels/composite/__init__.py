"""Compositing of samples along rays."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.kernels.backend import Backend, choose
from scaledreamer.kernels.composite import reference


class Composited(NamedTuple):
    """What samples along a ray add up to; nothing is divided by the opacity."""

    weights: Float[Tensor, "*rays S"]
    rgb: Float[Tensor, "*rays 3"]
    opacity: Float[Tensor, "*rays"]
    depth: Float[Tensor, "*rays"]


def composite(
    density: Float[Tensor, "*rays S"],
    lengths: Float[Tensor, "*rays S"],
    colours: Float[Tensor, "*rays S 3"],
    distances: Float[Tensor, "*rays S"],
) -> Composited:
    """Composite front-to-back samples; alpha = 1 - exp(-density * length).

    Source: Max, "Optical models for direct volume rendering", 1995. `lengths` are the metres of ray
    that each sample stands for, `distances` its metres along the unit ray. Differentiable in all.

    >>> one = torch.ones(1, 4)
    >>> out = composite(one, one / 4, torch.ones(1, 4, 3), one)
    >>> out.opacity  # 1 - exp(-1)
    tensor([0.6321])

    Raises:
        ValueError: an input's shape, dtype or device does not match `density`.
    """
    _check("lengths", lengths, density, density.shape)
    _check("distances", distances, density, density.shape)
    _check("colours", colours, density, (*density.shape, 3))
    forms: tuple[Backend, ...] = ("reference",)
    if density.dtype in (torch.float32, torch.float64):
        forms = (*forms, "triton")
    if choose("composite", density, forms) == "triton":
        from scaledreamer.kernels.composite import fused

        return Composited(*fused.composite(density, lengths, colours, distances))
    return Composited(*reference.composite(density, lengths, colours, distances))


def _check(name: str, value: Tensor, density: Tensor, shape: tuple[int, ...]) -> None:
    if not density.is_floating_point():
        raise ValueError(f"density: got {density.dtype}; pass a floating dtype")
    if value.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; expected {tuple(shape)}")
    if value.dtype != density.dtype or value.device != density.device:
        raise ValueError(
            f"{name}: got {value.dtype} on {value.device}; "
            f"expected {density.dtype} on {density.device} like density"
        )
