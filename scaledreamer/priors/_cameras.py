"""How ToyBox priors see a camera: as features, or as words in the caption."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.interfaces import CameraBatch

NUM_FEATURES = 8
_FRONT_DEG = 45.0
"""Half-width of the sectors called front and back."""


def camera_features(cameras: CameraBatch) -> Float[Tensor, "N 8"]:
    """sin, cos of the azimuth, of twice it and of the elevation, distance about 3 m, and a flag.

    Scene-major, N = B * V. A dropped camera is eight zeros; the flag, 1, tells the two apart.
    """
    azimuth = torch.deg2rad(cameras.azimuth_deg)
    elevation = torch.deg2rad(cameras.elevation_deg)
    columns = (
        azimuth.sin(),
        azimuth.cos(),
        (2 * azimuth).sin(),
        (2 * azimuth).cos(),
        elevation.sin(),
        elevation.cos(),
        (cameras.distance - 3.0) / 0.2,
        torch.ones_like(azimuth),
    )
    return torch.stack(columns, dim=-1).flatten(0, 1)


def view_words(cameras: CameraBatch, overhead_deg: float) -> list[str]:
    """One of front, side, back, overhead for each of the B * V cameras, scene-major."""
    angles = zip(
        cameras.azimuth_deg.flatten().tolist(),
        cameras.elevation_deg.flatten().tolist(),
        strict=True,
    )
    return [view_word(*pair, overhead_deg) for pair in angles]


def view_word(azimuth_deg: float, elevation_deg: float, overhead_deg: float) -> str:
    """Overhead above that elevation; front within 45 degrees, back beyond 135, else side."""
    if elevation_deg > overhead_deg:
        return "overhead"
    turned_deg = abs((azimuth_deg + 180.0) % 360.0 - 180.0)
    if turned_deg < _FRONT_DEG:
        return "front"
    return "back" if turned_deg > 180.0 - _FRONT_DEG else "side"
