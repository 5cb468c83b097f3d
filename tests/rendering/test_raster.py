from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from scaledreamer.cameras import orbit, rays, ring
from scaledreamer.interfaces import CameraBatch, Views
from scaledreamer.rendering import raster
from scaledreamer.rendering.raster import rasterise
from scaledreamer.rendering.sheet import contact_sheet

Mesh = tuple[Tensor, Tensor, Tensor]


def ball(radius: float, subdivisions: int) -> Mesh:
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    vertices = torch.tensor(np.asarray(mesh.vertices), dtype=torch.float32)
    return vertices, torch.tensor(np.asarray(mesh.faces)), (vertices + 1) / 2


def by_ray_casting(mesh: Mesh, cameras: CameraBatch, size_px: int) -> tuple[Tensor, ...]:
    """rgb, opacity and distance by intersecting every ray with every triangle, float64.

    Source: Moller and Trumbore, 1997.
    """
    vertices, faces, colours = mesh[0].double(), mesh[1], mesh[2].double()
    origin, direction = (part.double().flatten(0, 3) for part in rays(cameras, size_px))
    a, b, c = vertices[faces].unbind(1)
    p = torch.linalg.cross(direction[:, None], (c - a)[None])
    determinant = (p * (b - a)).sum(-1)
    offset = origin[:, None] - a
    u = (p * offset).sum(-1) / determinant
    q = torch.linalg.cross(offset, (b - a).expand_as(offset))
    v = (q * direction[:, None]).sum(-1) / determinant
    tdist = (q * (c - a)).sum(-1) / determinant
    tdist = torch.where((u >= 0) & (v >= 0) & (u + v <= 1) & (tdist > 0), tdist, math.inf)
    nearest, face = tdist.min(dim=1)
    u, v = u.gather(1, face[:, None]), v.gather(1, face[:, None])
    ca, cb, cc = colours[faces[face]].unbind(1)
    hit = nearest.isfinite()
    rgb = torch.where(hit[:, None], ca * (1 - u - v) + cb * u + cc * v, 1.0)
    shape = (*cameras.c2w.shape[:2], size_px, size_px)
    depth = torch.where(hit, nearest, 0.0).view(shape)
    return rgb.view(*shape, 3).permute(0, 1, 4, 2, 3), hit.view(shape).double(), depth


def test_equals_ray_casting_pixel_by_pixel() -> None:
    vertices, faces, colours = ball(0.7, 1)
    mesh = (vertices * torch.tensor((1.0, 0.6, 0.8)) + 0.1, faces, colours)
    cameras = orbit(
        *map(torch.tensor, ([[10.0, 200.0]], [[15.0, -40.0]], [[3.0, 2.5]], [[40.0, 50.0]]))
    )
    views = rasterise(*mesh, cameras, 33, supersample=1)
    rgb, opacity, depth = by_ray_casting(mesh, cameras, 33)
    assert torch.equal(views.opacity.double(), opacity)
    assert (views.rgb - rgb).abs().max() < 1e-4
    assert (views.depth - depth).abs().max() < 1e-4


@pytest.mark.parametrize("distance", [2.6, 4.0])
def test_sphere_covers_its_disc(distance: float) -> None:
    views = rasterise(*ball(0.8, 4), ring(1, (30.0,), distance=distance), 96)
    radius_px = math.tan(math.asin(0.8 / distance)) / math.tan(math.radians(20)) * 48
    assert views.opacity.sum().item() == pytest.approx(math.pi * radius_px**2, rel=3e-3)
    assert views.depth[0, 0, 48, 48].item() == pytest.approx(distance - 0.8, abs=2e-3)


def triangle(x: float, colour: float, size: float = 0.5) -> Mesh:
    """Parallel to the screen of the front camera."""
    corners = torch.tensor([[x, -size, -size], [x, size, -size], [x, -size, size]])
    return corners, torch.tensor([[0, 1, 2]]), torch.full((3, 3), colour)


def test_triangle_covers_its_area() -> None:
    vertices, faces, colours = triangle(0.0, 0.0)
    vertices = vertices + torch.tensor((0.0, 0.013, 0.007))  # no edge runs through pixel centres
    views = rasterise(vertices, faces, colours, ring(1, (0.0,), elevation_deg=0.0), 128)
    side_px = 1.0 / (3.0 * math.tan(math.radians(20))) * 64
    assert views.opacity.sum().item() == pytest.approx(side_px**2 / 2, rel=0.01)
    # The corner without neighbours lies at y, z = -0.5: left and below the middle from the front.
    left, low = views.opacity[0, 0, 64:, :64].sum(), views.opacity[0, 0, :64, 64:].sum()
    assert left > 10 * low


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_triangle_wins(order: tuple[int, int]) -> None:
    pair = (triangle(0.5, 0.2), triangle(-0.5, 0.9, size=2.0))
    vertices = torch.cat([pair[k][0] for k in order])
    colours = torch.cat([pair[k][2] for k in order])
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    cameras = ring(1, (0.0, 180.0), elevation_deg=0.0)
    views = rasterise(vertices, faces, colours, cameras, 32)
    assert views.rgb[0, 0, 0, 18, 14].item() == pytest.approx(0.2)
    assert views.rgb[0, 1, 0, 18, 18].item() == pytest.approx(0.9)


def test_background_and_edges_mix_by_coverage() -> None:
    views = rasterise(*triangle(0.0, 0.0), ring(1, (0.0,)), 64, background=0.5)
    expected = 0.5 * (1 - views.opacity[:, :, None])
    assert torch.allclose(views.rgb, expected.expand_as(views.rgb), atol=1e-6)
    assert ((views.opacity > 0) & (views.opacity < 1)).any()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, cameras = ball(0.7, 2), ring(1, (20.0,))
    whole = rasterise(*mesh, cameras, 48)
    monkeypatch.setattr(raster, "_CHUNK_PIXELS", 50)
    assert torch.equal(rasterise(*mesh, cameras, 48).rgb, whole.rgb)


@pytest.mark.parametrize("x", [3.5, 30.0])
def test_triangles_behind_the_camera_are_left_out(x: float) -> None:
    views = rasterise(*triangle(x, 0.0, size=5.0), ring(1, (0.0,), elevation_deg=0.0), 16)
    assert views.opacity.max() == 0


def test_headlight_darkens_what_turns_away() -> None:
    vertices, faces, _ = ball(0.8, 4)
    white = torch.ones_like(vertices)

    def shade(strength: float) -> Views:
        return rasterise(vertices, faces, white, ring(1, (0.0,)), 64, 0.0, 1, headlight=strength)

    assert torch.allclose(shade(0.0).rgb[:, :, 0], shade(0.0).opacity)
    lit = shade(1.0).rgb[0, 0, 0]
    assert lit[32, 32].item() == pytest.approx(1, abs=0.02)
    edge = (lit[32] > 0).nonzero().min()
    assert lit[32, edge].item() < 0.4


def test_contact_sheet_places_images_and_captions() -> None:
    images = torch.stack([torch.full((3, 20, 20), value) for value in (0.0, 0.5)])
    sheet = np.asarray(contact_sheet([("a mug", images), ("a far longer caption", images)]))
    assert sheet.shape[1] == 2 * 20 + 4
    assert (sheet[:20, :20] == 0).all()
    assert (sheet[:20, 24:] == 128).all()
    assert (sheet[20:38] < 128).any()
    second = int(np.flatnonzero((sheet[25:, :20] == 0).all(axis=(1, 2)))[0]) + 25
    assert (sheet[second : second + 20, 24:] == 128).all()
