"""A triplane field at points in PyTorch: the specification and the CPU path."""

from __future__ import annotations

import torch
from torch import Tensor

from scaledreamer.interfaces import TriplaneStructure
from scaledreamer.kernels._triplane.structure import decode, signed
from scaledreamer.kernels.sample_planes.reference import sample_planes

_PAIRS = ((0, 1), (0, 2), (1, 2))


def field_query(
    structure: TriplaneStructure, points: Tensor, with_colour: bool, with_gradient: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Geometry [B, N], rgb [B, N, 3] and the geometry's gradient [B, N, 3] at points [B, N, 3]."""
    is_recording = torch.is_grad_enabled()
    gradient = None
    with torch.set_grad_enabled(is_recording or with_gradient):
        points = points.detach().requires_grad_(with_gradient)
        # the faster sampling has no second derivative
        sample = lerp_planes if with_gradient else sample_planes
        features = sample(structure.planes, points)
        geometry = signed(structure, decode(structure.sdf_decoder, features)[..., 0], points)
        if with_gradient:
            (gradient,) = torch.autograd.grad(geometry.sum(), points, create_graph=is_recording)
        rgb = torch.sigmoid(decode(structure.colour_decoder, features)) if with_colour else None
    if not is_recording:
        geometry, rgb = geometry.detach(), None if rgb is None else rgb.detach()
    return geometry, rgb, gradient


def lerp_planes(planes: Tensor, points: Tensor) -> Tensor:
    """`sample_planes` by gathers and lerps, which can be differentiated twice."""
    size = planes.shape[2]
    at = (((points + 1) * size - 1) / 2).clamp(0, size - 1)  # [B, N, 3]
    low = at.detach().floor().long()
    high = (low + 1).clamp_max(size - 1)
    share = at - low
    scene = torch.arange(len(planes), device=planes.device)[:, None]
    total = planes.new_zeros(())
    for plane, (u, v) in enumerate(_PAIRS):
        texels, across = planes[:, plane], share[..., u, None]
        rows = [
            torch.lerp(
                texels[scene, row[..., v], low[..., u]],
                texels[scene, row[..., v], high[..., u]],
                across,
            )
            for row in (low, high)
        ]
        total = total + torch.lerp(rows[0], rows[1], share[..., v, None])
    return total
