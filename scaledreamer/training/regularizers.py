"""Losses on the rendered field itself; their names are the keys of `losses` in the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.interfaces import Field, Views
from scaledreamer.rendering.normals import spatial_gradient


def eikonal(views: Views, field: Field) -> Tensor:
    """mean (|grad sdf| - 1)^2 at the render's sample points.

    Source: Gropp et al., "Implicit geometric regularization", 2020, eq. 2.
    Raises: ValueError for a field of density.
    """
    if field.density_kind != "sdf":
        raise ValueError(
            "losses.eikonal: this generator makes a density, no distance; set losses.eikonal=0"
        )
    assert views.points is not None, "the render kept no points"
    gradient = spatial_gradient(field, views.points)  # [B, N, 3]
    return (gradient.norm(dim=-1) - 1.0).square().mean()


def sparsity(views: Views, field: Field) -> Tensor:
    """mean sqrt(opacity^2 + 0.01). Source: threestudio, as used by ScaleDreamer."""
    return torch.sqrt(views.opacity.float().square() + 0.01).mean()


def opacity(views: Views, field: Field) -> Tensor:
    """Binary entropy of the opacity in nats: rays hit or miss. Source: as `sparsity`."""
    hit: Float[Tensor, "B V H W"] = views.opacity.float().clamp(1e-3, 1 - 1e-3)
    return -(hit * hit.log() + (1 - hit) * torch.log1p(-hit)).mean()


REGULARIZERS: Mapping[str, Callable[[Views, Field], Tensor]] = {
    "eikonal": eikonal,
    "sparsity": sparsity,
    "opacity": opacity,
}


def regularizers(views: Views, field: Field, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Those of `REGULARIZERS` with a weight other than 0; other names are the distiller's."""
    return {name: term(views, field) for name, term in REGULARIZERS.items() if weights.get(name)}
