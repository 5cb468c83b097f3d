"""What nerfacc 0.5.3 documents of weights and accumulation, in PyTorch, for rays of one length."""

from __future__ import annotations

import torch
from torch import Tensor


def render_weight_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """w = T alpha with T = exp(-sum of the optical depths before)."""
    depths = sigmas * (t_ends - t_starts)
    rows = depths if ray_indices is None else depths.view(n_rays or 1, -1)
    light = torch.exp(rows - rows.cumsum(-1)).view_as(depths)
    alphas = 1 - torch.exp(-depths)
    return light * alphas, light, alphas


def accumulate_along_rays(
    weights: Tensor,
    values: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
) -> Tensor:
    source = weights[..., None] if values is None else weights[..., None] * values
    if ray_indices is None or n_rays is None:
        return source.sum(dim=-2)
    return source.new_zeros(n_rays, source.shape[-1]).index_add(0, ray_indices, source)
