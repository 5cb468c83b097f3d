"""Where a ray is sampled. Distances `tdist` are metres along unit directions.

Every ray has one uniform offset u in [0, 1) that all its samples share (systematic sampling): as
free of banding as an offset a sample, and S times fewer random numbers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

_FLOOR = 0.01


def intersect_box(
    origins: Float[Tensor, "*rays 3"], directions: Float[Tensor, "*rays 3"]
) -> tuple[Float[Tensor, "*rays"], Float[Tensor, "*rays"]]:
    """Entry and exit distance of [-1, 1]^3, both 0 for a ray that misses it.

    Source: Kay and Kajiya, "Ray tracing complex scenes", 1986 (slabs).
    """
    tiny = torch.finfo(directions.dtype).tiny
    inverse = 1.0 / torch.where(directions == 0, tiny, directions)
    a, b = (-1.0 - origins) * inverse, (1.0 - origins) * inverse
    near = torch.minimum(a, b).amax(dim=-1).clamp_min(0.0)
    far = torch.maximum(a, b).amin(dim=-1)
    is_hit = far > near
    return near * is_hit, torch.where(is_hit, far, 0.0)


def stratified(
    near: Float[Tensor, "*rays"], far: Float[Tensor, "*rays"], num: int, offset: Tensor | float
) -> Float[Tensor, "*rays S"]:
    """One distance in each of `num` equal strata; offset [*rays], or 0.5 for the midpoints."""
    steps = torch.arange(num, device=near.device, dtype=near.dtype)
    fraction = (steps + _per_ray(offset)) / num
    return near[..., None] + (far - near)[..., None] * fraction


def interval_edges(
    tdist: Float[Tensor, "*rays S"], near: Float[Tensor, "*rays"], far: Float[Tensor, "*rays"]
) -> Float[Tensor, "*rays S1"]:
    """Borders of the stretches that sorted samples stand for: midpoints, ray ends outside."""
    middle = 0.5 * (tdist[..., 1:] + tdist[..., :-1])
    return torch.cat((near[..., None], middle, far[..., None]), dim=-1)


def resample(
    edges: Float[Tensor, "*rays S1"],
    weights: Float[Tensor, "*rays S"],
    num: int,
    offset: Tensor | float,
) -> Float[Tensor, "*rays K"]:
    """`num` sorted distances, distributed like the weights; carries no gradient.

    Inverse of the piecewise linear CDF at (k + offset) / num. Each weight first becomes the mean of
    the two maxima with its neighbours, for the surface may lie on either side of the sample that
    hit it, and gets a floor that spreads samples of empty rays evenly.
    Source: Barron et al., mip-NeRF, ICCV 2021, equation 18; floor ours.
    """
    with torch.no_grad():
        wide = pad(weights, (1, 1))
        pairs = torch.maximum(wide[..., :-1], wide[..., 1:])
        length = (edges[..., 1:] - edges[..., :-1]) / (edges[..., -1:] - edges[..., :1] + 1e-9)
        mass = 0.5 * (pairs[..., :-1] + pairs[..., 1:]) + _FLOOR * length + 1e-9
        cdf = pad(torch.cumsum(mass, dim=-1), (1, 0))
        steps = torch.arange(num, device=edges.device, dtype=edges.dtype)
        wanted = cdf[..., -1:] * (steps + _per_ray(offset)) / num  # [*rays, K]
        wanted = wanted.expand(*edges.shape[:-1], num).contiguous()
        upper = torch.searchsorted(cdf, wanted, right=True).clamp(1, weights.shape[-1])
        low, high = cdf.gather(-1, upper - 1), cdf.gather(-1, upper)
        left, right = edges.gather(-1, upper - 1), edges.gather(-1, upper)
        return torch.lerp(left, right, (wanted - low) / (high - low))


def _per_ray(offset: Tensor | float) -> Tensor | float:
    return offset[..., None] if isinstance(offset, Tensor) else offset
