"""Volume rendering quadrature in PyTorch: the specification and the CPU path.

Source: Max, "Optical models for direct volume rendering", 1995, equation 5; written with optical
depths, so that no product of (1 - alpha) is formed and the gradient needs no division.
"""

from __future__ import annotations

import torch
from torch import Tensor


def composite(
    density: Tensor, lengths: Tensor, colours: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [..., S], rgb [..., 3], opacity [...] and depth [...] of rays."""
    optical_depth = torch.cumsum(density * lengths, dim=-1)
    transmittance = torch.nn.functional.pad(torch.exp(-optical_depth), (1, 0), value=1.0)
    weights = transmittance[..., :-1] - transmittance[..., 1:]  # [..., S]
    rgb = (weights[..., None] * colours).sum(dim=-2)
    opacity = 1.0 - transmittance[..., -1]
    depth = (weights * distances).sum(dim=-1)
    return weights, rgb, opacity, depth
