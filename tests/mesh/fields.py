"""Analytic fields: exact geometry and colour for what reads a `Field`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scaledreamer.interfaces import DensityKind

Geometry = Callable[[Tensor], Tensor]


class AnalyticField:
    """One scene per function of points [N, 3] -> [N]; rgb = (position + 1) / 2."""

    structure = None

    def __init__(self, *scenes: Geometry, density_kind: DensityKind = "sdf") -> None:
        self.scenes = scenes
        self.density_kind: DensityKind = density_kind
        self.num_scenes = len(scenes)
        self.num_points = 0

    def geometry(self, points: Tensor) -> Tensor:
        self.num_points += points.shape[1]
        pairs = zip(self.scenes, points, strict=True)
        return torch.stack([scene(own) for scene, own in pairs])

    def geometry_and_colour(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.geometry(points), (points + 1) / 2

    def background(self, directions: Tensor) -> None:
        return None


def sphere(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Geometry:
    return lambda points: (points - torch.tensor(centre)).norm(dim=-1) - radius


def torus(major: float, minor: float) -> Geometry:
    def distance(points: Tensor) -> Tensor:
        ring = points[:, :2].norm(dim=-1) - major
        return torch.stack((ring, points[:, 2]), dim=-1).norm(dim=-1) - minor

    return distance


def union(*parts: Geometry) -> Geometry:
    return lambda points: torch.stack([part(points) for part in parts]).amin(dim=0)


def scaled(geometry: Geometry, factor: float) -> Geometry:
    return lambda points: factor * geometry(points)


def ripples(points: Tensor) -> Tensor:
    """A bumpy, far from Euclidean field."""
    return points.norm(dim=-1) - 0.6 + 0.1 * torch.sin(9 * points).sum(dim=-1)
