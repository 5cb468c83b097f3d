"""Vertex colours from the field that a surface came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from scaledreamer.interfaces import Field
from scaledreamer.mesh.surface import Surface


@torch.inference_mode()
def colour(
    field: Field,
    surfaces: Sequence[Surface],
    device: torch.device | str = "cpu",
    chunk_points: int = 1 << 16,
) -> list[Surface]:
    """The surfaces of all B scenes with the field's sRGB colours at their vertices.

    Raises: ValueError when a colour is not finite.
    """
    if len(surfaces) != field.num_scenes:
        raise ValueError(f"got {len(surfaces)} surfaces for a field of {field.num_scenes} scenes")
    longest = max(len(surface.vertices) for surface in surfaces)
    points = torch.zeros(len(surfaces), longest, 3)
    for row, surface in zip(points, surfaces, strict=True):
        row[: len(surface.vertices)] = torch.from_numpy(surface.vertices)
    parts = [
        field.geometry_and_colour(part.to(device))[1].float().cpu()
        for part in points.split(chunk_points, dim=1)
    ]
    rgb = torch.cat(parts, dim=1).numpy()  # [B, longest, 3]
    if not np.isfinite(rgb).all():
        raise ValueError("the field's colours hold non-finite values; check its weights")
    return [
        replace(surface, colours=row[: len(surface.vertices)].clip(0, 1))
        for row, surface in zip(rgb, surfaces, strict=True)
    ]
