"""View-dependent prompting: which of front, side, back, overhead a caption says, and how strongly.

Source: the suffixes are those of Poole et al., "DreamFusion", 2023; blending by azimuth and the
weights of negatives are those of perp-neg (Armandpour et al., 2023), with ScaleDreamer's values.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.interfaces import CameraBatch

CLASSES = ("front", "side", "back", "overhead")
NEGATIVES = ("front", "side")
"""What a view can be kept from showing."""
PERP_NEG_SCALE = -0.5
_SIDE_TO_FRONT = (4.0, 0.5, -2.426)
"""Decay a exp(-b r) + c of a negative between front and side; 0 where the view is that side."""
_BACK_SIDE, _BACK_FRONT = (1.0, 0.5, -0.606), (1.0, 0.5, 0.967)
"""The same between side and back, of the side and of the front."""


def turned_deg(cameras: CameraBatch) -> Float[Tensor, "N"]:
    """|azimuth| in [0, 180], 0 from the front; scene-major."""
    return ((cameras.azimuth_deg.flatten() + 180.0) % 360.0 - 180.0).abs()


def hard(cameras: CameraBatch, front_deg: float, overhead_deg: float) -> Float[Tensor, "N 4"]:
    """One class each: front within `front_deg`, back within it of 180, else side."""
    turned = turned_deg(cameras)
    index = torch.where(turned < front_deg, 0, torch.where(turned > 180.0 - front_deg, 2, 1))
    index = torch.where(cameras.elevation_deg.flatten() > overhead_deg, 3, index)
    return torch.nn.functional.one_hot(index, len(CLASSES)).float()


def blended(cameras: CameraBatch, overhead_deg: float) -> Float[Tensor, "N 4"]:
    """Linear in the azimuth between front, side and back; all overhead above that elevation."""
    turned = turned_deg(cameras)
    front = (1 - turned / 90.0).clamp(min=0)
    back = (turned / 90.0 - 1).clamp(min=0)
    is_over = (cameras.elevation_deg.flatten() > overhead_deg).to(front)
    around = torch.stack((front, 1 - front - back, back), dim=1)
    return torch.cat((around * (1 - is_over[:, None]), is_over[:, None]), dim=1)


def negative_weights(cameras: CameraBatch, overhead_deg: float) -> Float[Tensor, "2 N"]:
    """Weights, at most 0, of `NEGATIVES`: what a view is near is not held against it."""
    turned = turned_deg(cameras)
    towards_front, towards_side = 1 - turned / 90.0, 2 - turned / 90.0
    is_back = turned > 90.0
    front = torch.where(
        is_back, _decay(towards_side, *_BACK_FRONT), _decay(towards_front, *_SIDE_TO_FRONT)
    )
    side = torch.where(
        is_back, _decay(towards_side, *_BACK_SIDE), _decay(1 - towards_front, *_SIDE_TO_FRONT)
    )
    is_around = cameras.elevation_deg.flatten() <= overhead_deg
    weights = PERP_NEG_SCALE * torch.stack((front, side)) * is_around
    return weights.clamp(max=0.0)


def _decay(r: Tensor, a: float, b: float, c: float) -> Tensor:
    return a * torch.exp(-b * r) + c
