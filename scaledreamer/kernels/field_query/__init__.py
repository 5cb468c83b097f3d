"""A triplane field at given points."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from scaledreamer.interfaces import TriplaneStructure
from scaledreamer.kernels import backend
from scaledreamer.kernels._triplane.structure import (
    PRECISIONS,
    Precision,
    check_fused,
    check_like,
    check_structure,
    pack,
)
from scaledreamer.kernels.field_query import reference


class Queried(NamedTuple):
    """What a field says at points."""

    geometry: Float[Tensor, "B N"]
    """Signed distance in metres or density in 1/m, by the structure's `density_kind`."""
    rgb: Float[Tensor, "B N 3"] | None
    gradient: Float[Tensor, "B N 3"] | None
    """Spatial gradient of `geometry`; planes add nothing to it beyond their outermost texels."""


def field_query(
    structure: TriplaneStructure,
    points: Float[Tensor, "B N 3"],
    with_colour: bool = True,
    with_gradient: bool = False,
    precision: Precision = "tf32",
) -> Queried:
    """Geometry and, if asked for, colour and the geometry's gradient of B scenes at N points each.

    Every output is differentiable once in planes, weights and biases, `gradient` too, so that an
    eikonal loss trains through it; points carry no gradient. `precision` is that of the fused
    kernel's products; the reference is always exact. The fused gradient of the planes is added up
    in no fixed order.
    Source: ours; planes as in Chan et al., EG3D, CVPR 2022.

    >>> import torch
    >>> from scaledreamer.interfaces import MLPWeights
    >>> sdf = MLPWeights((torch.zeros(1, 2, 1),), (torch.zeros(1, 1),))
    >>> colour = MLPWeights((torch.zeros(1, 2, 3),), (torch.zeros(1, 3),))
    >>> ball = TriplaneStructure(torch.zeros(1, 3, 4, 4, 2), sdf, colour, 0.5, 0.5)
    >>> out = field_query(ball, torch.tensor([[[0.0, 0.0, 0.75]]]), with_gradient=True)
    >>> out.geometry, out.gradient
    (tensor([[0.2500]]), tensor([[[0., 0., 1.]]]))

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, or the fused kernel does not
            take the structure's widths; names the argument.
    """
    check_structure(structure)
    num_scenes = len(structure.planes)
    if points.dim() != 3 or points.shape[0] != num_scenes or points.shape[2] != 3:
        raise ValueError(f"points: got shape {tuple(points.shape)}; expected [{num_scenes}, N, 3]")
    check_like("points", points, "structure.planes", structure.planes)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if backend.choose("field_query", structure.planes, ("reference", "triton")) == "reference":
        return Queried(*reference.field_query(structure, points, with_colour, with_gradient))
    hidden = check_fused(structure, precision)

    from scaledreamer.kernels.field_query.fused import query

    geometry, rgb, gradient = query(
        structure.planes.contiguous(),
        pack(structure),
        points.detach().contiguous(),
        hidden,
        structure.density_kind == "density",
        structure.sdf_scale,
        structure.sphere_radius,
        PRECISIONS[precision],
        with_colour,
        with_gradient,
    )
    return Queried(geometry, rgb if with_colour else None, gradient if with_gradient else None)
