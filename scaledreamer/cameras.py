"""Cameras on a sphere around the world's origin, and the one distribution they are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.interfaces import CameraBatch
from scaledreamer.rng import StepRng


def orbit(
    azimuth_deg: Tensor, elevation_deg: Tensor, distance: Tensor, fov_deg: Tensor
) -> CameraBatch:
    """Cameras that look at the origin, z up. Inputs [B, V], elevation within (-90, 90)."""
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    backward = torch.stack(
        (
            torch.cos(elevation) * torch.cos(azimuth),
            torch.cos(elevation) * torch.sin(azimuth),
            torch.sin(elevation),
        ),
        dim=-1,
    )  # [B, V, 3]
    right = torch.stack((-torch.sin(azimuth), torch.cos(azimuth), torch.zeros_like(azimuth)), -1)
    up = torch.linalg.cross(backward, right)
    c2w = torch.zeros(*azimuth.shape, 4, 4, dtype=azimuth.dtype, device=azimuth.device)
    c2w[..., :3, :] = torch.stack((right, up, backward, backward * distance[..., None]), dim=-1)
    c2w[..., 3, 3] = 1.0
    return CameraBatch(c2w, fov_deg, azimuth_deg, elevation_deg, distance)


def ring(
    num_scenes: int,
    azimuths_deg: tuple[float, ...],
    elevation_deg: float = 15.0,
    distance: float = 3.0,
    fov_deg: float = 40.0,
) -> CameraBatch:
    """The same views of every scene, at one elevation: what previews and judges look through."""
    azimuth = torch.tensor(azimuths_deg, dtype=torch.float32).expand(num_scenes, -1)
    full = torch.full_like(azimuth, 1.0)
    return orbit(azimuth, full * elevation_deg, full * distance, full * fov_deg)


def rays(
    cameras: CameraBatch, size_px: int
) -> tuple[Float[Tensor, "B V H W 3"], Float[Tensor, "B V H W 3"]]:
    """Origins and unit directions through the pixel centres of square images."""
    c2w = cameras.c2w
    line = (torch.arange(size_px, device=c2w.device, dtype=c2w.dtype) + 0.5) / size_px * 2 - 1
    y, x = torch.meshgrid(-line, line, indexing="ij")  # row 0 on top
    half = torch.tan(torch.deg2rad(cameras.fov_deg) / 2)[..., None, None]  # [B, V, 1, 1]
    local = torch.stack(
        torch.broadcast_tensors(x * half, y * half, torch.full_like(half, -1.0)), dim=-1
    )
    directions = torch.einsum("bvij,bvhwj->bvhwi", c2w[..., :3, :3], local)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    origins = c2w[..., None, None, :3, 3].expand_as(directions)
    return origins, directions


@dataclass(frozen=True, kw_only=True)
class CameraDistribution:
    """Where training cameras stand; a prior's card stores the one it was trained with."""

    distance: tuple[float, float] = (2.8, 3.2)
    """Range in metres."""
    fov_deg: tuple[float, float] = (40.0, 40.0)
    """Vertical field of view, range."""
    elevation_deg: tuple[float, float] = (-5.0, 40.0)
    """Range; drawn uniformly in the angle."""
    azimuth_layout: Literal["spread", "independent"] = "spread"
    """spread: the V views of a scene stand 360/V apart, turned by one random angle."""
    share_views: bool = False
    """One elevation, distance and field of view for all views of a prompt, as multi-view priors
    were trained; False draws them for each view."""

    def __post_init__(self) -> None:
        for name in ("distance", "fov_deg", "elevation_deg"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"cameras.{name}: got [{low}, {high}]; the first must not exceed")
        if self.distance[0] <= 1.0:
            raise ValueError(f"cameras.distance: got {self.distance[0]}; must exceed 1")
        if not (self.fov_deg[0] > 0 and self.fov_deg[1] < 180):
            raise ValueError(f"cameras.fov_deg: got {self.fov_deg}; must lie within (0, 180)")
        if not (self.elevation_deg[0] > -90 and self.elevation_deg[1] < 90):
            raise ValueError(f"cameras.elevation_deg: got {self.elevation_deg}; within (-90, 90)")

    def sample(self, num_views: int, rng: StepRng) -> CameraBatch:
        """[B, V] cameras for the samples of `rng`, on its device."""

        def draw(stream: str, bounds: tuple[float, float]) -> Tensor:
            low, high = bounds
            u = rng.uniform(f"camera/{stream}", 1 if self.share_views else num_views)
            return low + (high - low) * u.expand(-1, num_views)

        turn = rng.uniform("camera/azimuth", num_views)
        if self.azimuth_layout == "spread":
            steps = torch.arange(num_views, device=turn.device) / num_views
            turn = turn[:, :1] + steps
        return orbit(
            (turn * 360.0) % 360.0,
            draw("elevation", self.elevation_deg),
            draw("distance", self.distance),
            draw("fov", self.fov_deg),
        )

    def outside(self, other: CameraDistribution) -> list[str]:
        """Names of the ranges of this one that exceed those of `other`."""
        names = ("distance", "fov_deg", "elevation_deg")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [name for name, mine, theirs in pairs if mine[0] < theirs[0] or mine[1] > theirs[1]]


def framing_distance(fov_deg: float, radius: float = 1.0) -> float:
    """Distance at which a sphere of that radius just fills the view."""
    return radius / math.sin(math.radians(fov_deg) / 2)
