"""How priors see a camera: as features."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.interfaces import CameraBatch

NUM_FEATURES = 8


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


def camera_matrices(cameras: CameraBatch) -> Float[Tensor, "N 16"]:
    """Camera-to-world matrices, row by row, with the camera's place moved onto the unit sphere.

    Scene-major. Source: Shi et al., "MVDream", ICLR 2024, and its code: z up, OpenGL axes, as ours.
    """
    matrices = cameras.c2w.flatten(0, 1).clone()
    place = matrices[:, :3, 3]
    matrices[:, :3, 3] = place / place.norm(dim=1, keepdim=True).clamp(min=1e-8)
    return matrices.flatten(1)


FEATURES: Mapping[int, Callable[[CameraBatch], Tensor]] = {
    NUM_FEATURES: camera_features,
    16: camera_matrices,
}
"""By the width that a network's camera input has."""
