"""Volume rendering of triplanes in PyTorch: the specification and the CPU path."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from scaledreamer.interfaces import MLPWeights, TriplaneStructure
from scaledreamer.kernels._triplane.structure import decode, signed
from scaledreamer.kernels.field_query.reference import field_query
from scaledreamer.kernels.sample_planes.reference import sample_planes


def render_triplane(
    structure: TriplaneStructure,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    scene: Tensor,
    beta: float,
    tdist: Tensor,
    with_normals: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """rgb [V, H, W, 3], opacity and depth [V, H, W], normal [V, H, W, 3] of rays of V views."""
    seen = select(structure, scene)
    points = origins[..., None, :] + tdist[..., None] * directions[..., None, :]
    points = points.clamp(-1.0, 1.0).flatten(1, 3)  # [V, H * W * S, 3]
    features = sample_planes(seen.planes, points)
    geometry = signed(seen, decode(seen.sdf_decoder, features)[..., 0], points)
    colours = torch.sigmoid(decode(seen.colour_decoder, features))
    density = laplace_density(geometry, beta) if seen.density_kind == "sdf" else geometry
    lengths = interval_lengths(tdist, near, far)
    depths = torch.cumsum(density.view_as(tdist) * lengths, dim=-1)
    light = torch.nn.functional.pad(torch.exp(-depths), (1, 0), value=1.0)
    weights = light[..., :-1] - light[..., 1:]  # [V, H, W, S]
    rgb = (weights[..., None] * colours.view(*tdist.shape, 3)).sum(dim=-2)
    depth = (weights * tdist).sum(dim=-1)
    normal = None
    if with_normals:
        with torch.no_grad():
            outward = field_query(seen, points, with_colour=False, with_gradient=True)[2]
            assert outward is not None, "a gradient was asked for"
            unit = torch.nn.functional.normalize(outward, dim=-1).view(*tdist.shape, 3)
            sign = 1.0 if seen.density_kind == "sdf" else -1.0
            normal = sign * (weights[..., None] * unit).sum(dim=-2)
    return rgb, 1.0 - light[..., -1], depth, normal


def stratified(near: Tensor, far: Tensor, num: int, offset: Tensor | float) -> Tensor:
    """One distance in each of `num` equal strata [V, H, W, S]; offset [V, H, W] or one for all."""
    steps = torch.arange(num, device=near.device, dtype=near.dtype)
    share = (steps + (offset[..., None] if isinstance(offset, Tensor) else offset)) / num
    return near[..., None] + (far - near)[..., None] * share


def interval_lengths(tdist: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Stretch of ray that each sorted sample stands for: borders midway, ray ends outside."""
    middle = 0.5 * (tdist[..., 1:] + tdist[..., :-1])
    return torch.cat((near[..., None], middle, far[..., None]), dim=-1).diff(dim=-1)


def laplace_density(distance: Tensor, beta: float) -> Tensor:
    """Volume density, 1/m, of a signed distance.

    Source: Yariv et al., VolSDF, NeurIPS 2021, equations 2 and 3 with alpha = 1 / beta.
    """
    tail = 0.5 * torch.exp(-distance.abs() / beta)
    return torch.where(distance > 0, tail, 1.0 - tail) / beta


def select(structure: TriplaneStructure, scene: Tensor) -> TriplaneStructure:
    """The structure with one scene a view; weights that all scenes share stay one row."""

    def pick(decoder: MLPWeights) -> MLPWeights:
        weights, biases = (
            tuple(value if len(value) == 1 else value[scene] for value in values)
            for values in (decoder.weights, decoder.biases)
        )
        return MLPWeights(weights, biases)

    return replace(
        structure,
        planes=structure.planes[scene],
        sdf_decoder=pick(structure.sdf_decoder),
        colour_decoder=pick(structure.colour_decoder),
    )
