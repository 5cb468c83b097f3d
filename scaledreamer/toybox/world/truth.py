"""Exact geometry of a prompt: signed distance, surface colour, mesh."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from skimage.measure import marching_cubes
from torch import Tensor

from scaledreamer.toybox.world.grammar import Scene
from scaledreamer.toybox.world.render import Look, _normals, shading
from scaledreamer.toybox.world.scene import batch


def signed_distance(scenes: Sequence[Scene], points: Float[Tensor, "B N 3"]) -> Tensor:
    """[B, N] metres, negative inside: exact outside, a bound inside."""
    return batch(scenes).signed_distance(points)


def surface_colour(scenes: Sequence[Scene], points: Float[Tensor, "B N 3"]) -> Tensor:
    """sRGB [B, N, 3] of surface points under the reference light."""
    parts = batch(scenes)
    nearest = parts.distances(points).argmin(dim=1)
    albedo = parts.colours.to(points).gather(1, nearest[..., None].expand(-1, -1, 3))
    light = shading(_normals(parts, points), Look.reference(len(scenes)))
    return (albedo * light[..., None]).clamp(0, 1)


def mesh(scene: Scene, resolution: int = 96) -> trimesh.Trimesh:
    """Vertex-coloured watertight ground-truth mesh, z up, `resolution` grid points a side."""
    line = torch.linspace(-1, 1, resolution)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).view(1, -1, 3)
    distance = torch.cat([signed_distance([scene], part) for part in grid.split(1 << 16, dim=1)], 1)
    volume = distance.view(resolution, resolution, resolution).numpy()
    step = 2 / (resolution - 1)
    vertices, faces, _, _ = marching_cubes(
        volume, 0.0, spacing=(step, step, step), gradient_direction="descent"
    )
    vertices = torch.as_tensor(vertices.copy(), dtype=torch.float32) - 1
    colours = surface_colour([scene], vertices[None])[0].numpy()
    return trimesh.Trimesh(
        vertices.numpy(), faces, vertex_colors=np.round(colours * 255).astype(np.uint8)
    )
