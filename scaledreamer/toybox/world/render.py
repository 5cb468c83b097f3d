"""Analytic renderer: batched sphere tracing, light fixed to the world.

Source: Hart, "Sphere tracing", 1996. Silhouettes are antialiased by the distance at which a ray
misses; colour is a function of the surface point alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.cameras import rays
from scaledreamer.interfaces import CameraBatch, Views
from scaledreamer.toybox.world.grammar import Scene
from scaledreamer.toybox.world.primitives import PartBatch
from scaledreamer.toybox.world.scene import MAX_RADIUS, batch

NUM_STEPS = 40
HIT_DISTANCE = 2e-3
RAY_CHUNK = 1 << 15
"""Rays traced together: enough to amortise the calls, few enough for the processor's cache."""


@dataclass(frozen=True)
class Look:
    """What a prompt leaves open, per scene [B]; `reference` is the look of ground truth."""

    light: Float[Tensor, "B 3"]
    """Unit direction towards the light, world frame."""
    diffuse: Float[Tensor, "B"]
    shade: Float[Tensor, "B 3"]
    """Factor on every colour."""
    scale: Float[Tensor, "B"]
    """Size about the origin."""

    @staticmethod
    def reference(num_scenes: int) -> Look:
        light = torch.nn.functional.normalize(torch.tensor([[0.55, 0.35, 0.75]]), dim=-1)
        one = torch.ones(num_scenes)
        return Look(light.expand(num_scenes, 3), 0.28 * one, torch.ones(num_scenes, 3), one)

    @staticmethod
    def drawn(num_scenes: int, generator: torch.Generator) -> Look:
        """Lamp within about 35 degrees of the reference, shade within 12 %, size within 7 %."""

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(num_scenes, *shape, generator=generator)

        lamp = Look.reference(num_scenes).light
        lamp = lamp + 0.45 * torch.randn(num_scenes, 3, generator=generator)
        lamp = torch.nn.functional.normalize(lamp, dim=-1)
        lamp[:, 2] = lamp[:, 2].abs()
        return Look(
            light=lamp,
            diffuse=uniform(0.18, 0.36),
            shade=uniform(0.88, 1.06, 1) * uniform(0.97, 1.03, 3),
            scale=uniform(0.93, 1.07),
        )


def _trace(parts: PartBatch, origin: Tensor, direction: Tensor, pixel: float, reach: float):
    """Rays [B, N, 3] -> (tdist of the hit or of the nearest miss, coverage) [B, N]."""
    middle = -(origin * direction).sum(-1)
    half = (reach**2 - (origin.square().sum(-1) - middle**2)).clamp(min=0).sqrt()
    tdist, end = middle - half, middle + half
    nearest, nearest_at = torch.full_like(tdist, torch.inf), middle.clone()
    is_hit = torch.zeros_like(tdist, dtype=torch.bool)
    rows = torch.arange(tdist.shape[0])[:, None]
    live = (half > 0).float().argsort(dim=1, descending=True)[:, : int((half > 0).sum(1).max())]
    for step in range(NUM_STEPS):
        at = tdist[rows, live]
        points = origin[rows, live] + at[..., None] * direction[rows, live]
        distance = parts.signed_distance(points)
        missed = distance / (pixel * at)
        best = nearest[rows, live]
        nearest_at[rows, live] = torch.where(missed < best, at, nearest_at[rows, live])
        nearest[rows, live] = torch.minimum(missed, best)
        is_hit[rows, live] |= distance < HIT_DISTANCE
        going = ~is_hit[rows, live] & (at < end[rows, live])
        tdist[rows, live] = torch.where(going, at + distance, at)
        if step % 4 == 3:
            if not going.any():
                break
            order = going.float().argsort(dim=1, descending=True)[:, : int(going.sum(1).max())]
            live = live.gather(1, order)
    coverage = torch.where(is_hit, 1.0, (0.5 - nearest).clamp(0, 1))
    coverage = coverage * (half > 0)
    return torch.where(is_hit, tdist, nearest_at), coverage


def _normals(parts: PartBatch, points: Tensor, eps: float = 2e-3) -> Tensor:
    """Unit gradient of the distance by the tetrahedron rule; points [B, N, 3]."""
    corners = torch.tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]]).to(points)
    taps = (points[:, None] + eps * corners[:, None, :]).flatten(1, 2)
    distance = parts.signed_distance(taps).unflatten(1, (4, -1))
    return torch.nn.functional.normalize(torch.einsum("bkn,kc->bnc", distance, corners), dim=-1)


def shading(normal: Tensor, look: Look) -> Tensor:
    """Light factor [B, N] on the albedo: ambient, sky from above and one lamp."""
    lamp = torch.einsum("bnc,bc->bn", normal, look.light).clamp(min=0)
    return 0.54 + 0.18 * (0.5 + 0.5 * normal[..., 2]) + look.diffuse[:, None] * lamp


def _render_chunk(scenes: Sequence[Scene], cameras: CameraBatch, size_px: int, look: Look):
    num_views = cameras.fov_deg.shape[1]
    parts = batch(scenes, look.scale.tolist())
    origin, direction = (x.flatten(1, 3) for x in rays(cameras, size_px))
    pixel = float(2 * torch.tan(torch.deg2rad(cameras.fov_deg.max()) / 2) / size_px)
    reach = MAX_RADIUS * float(look.scale.max()) + 0.02
    tdist, coverage = _trace(parts, origin, direction, pixel, reach)
    points = origin + tdist[..., None] * direction
    normal = _normals(parts, points)
    nearest = parts.distances(points).argmin(dim=1)  # [B, N]
    albedo = parts.colours.gather(1, nearest[..., None].expand(-1, -1, 3))
    rgb = (albedo * look.shade[:, None] * shading(normal, look)[..., None]).clamp(0, 1)
    shape = (len(scenes), num_views, size_px, size_px)
    return (
        rgb.view(*shape, 3),
        coverage.view(shape),
        (coverage * tdist).view(shape),
        (coverage[..., None] * normal).view(*shape, 3),
    )


@torch.no_grad()
def render(
    scenes: Sequence[Scene],
    cameras: CameraBatch,
    size_px: int,
    background: float | Float[Tensor, "B 3"] = 1.0,
    look: Look | None = None,
) -> Views:
    """Ground-truth images of B scenes through [B, V] cameras, on the CPU.

    `background` is one grey or a colour per scene. The colour under partly covered pixels is that
    of the surface point the ray passes nearest.
    """
    look = look or Look.reference(len(scenes))
    chunks = []
    step = max(1, RAY_CHUNK // (cameras.fov_deg.shape[1] * size_px**2))
    for start in range(0, len(scenes), step):
        rows = slice(start, start + step)
        part = Look(look.light[rows], look.diffuse[rows], look.shade[rows], look.scale[rows])
        chunks.append(_render_chunk(scenes[rows], cameras[rows], size_px, part))
    rgb, opacity, depth, normal = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    if isinstance(background, Tensor):
        behind = background[:, None, None, None, :]
    else:
        behind = torch.full((3,), background)
    rgb = opacity[..., None] * rgb + (1 - opacity[..., None]) * behind
    return Views(
        rgb=rgb.permute(0, 1, 4, 2, 3).contiguous(),
        opacity=opacity,
        depth=depth,
        normal=normal.permute(0, 1, 4, 2, 3).contiguous(),
    )
