"""Renders of analytic fields against exact silhouettes, depths, normals and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scaledreamer.cameras import CameraDistribution, orbit, rays, ring
from scaledreamer.rendering.volume import RenderConfig, render
from scaledreamer.rng import StepRng
from tests.mesh.fields import AnalyticField, Geometry, sphere, torus

BETA = 0.004
FINE = RenderConfig(num_stratified=64, num_importance=64, min_weight=1e-3)
COARSE = RenderConfig(num_stratified=16, num_importance=8, min_weight=0.0)
WHITE = torch.ones(1, 3)


def _box(half: float) -> Geometry:
    def distance(points: Tensor) -> Tensor:
        excess = points.abs() - half
        return excess.clamp_min(0).norm(dim=-1) + excess.amax(dim=-1).clamp_max(0)

    return distance


def test_a_sphere_has_its_exact_silhouette_depth_normal_and_colour() -> None:
    radius, centre = 0.6, torch.tensor([0.1, -0.2, 0.15])
    cameras = ring(1, (0.0, 75.0))
    field = AnalyticField(sphere(radius, (0.1, -0.2, 0.15)))
    with torch.no_grad():
        views = render(field, cameras, WHITE, FINE, 24, BETA, with_normals=True)
    assert views.normal is not None
    origins, directions = rays(cameras, 24)
    along = ((centre - origins) * directions).sum(dim=-1)
    miss = (origins + along[..., None] * directions - centre).norm(dim=-1)
    inside, outside = miss < radius - 0.05, miss > radius + 0.05
    assert (views.opacity[inside] > 0.99).all()
    assert (views.opacity[outside] < 0.01).all()
    assert torch.allclose(
        views.rgb.movedim(2, -1)[outside], torch.ones(int(outside.sum()), 3), atol=0.01
    )
    exact = along - (radius**2 - miss**2).clamp_min(0).sqrt()
    assert (views.depth - exact)[inside].abs().max() < 0.03
    hit = origins + exact[..., None] * directions
    normal = (hit - centre) / radius
    assert (views.normal.movedim(2, -1) - normal)[inside].abs().max() < 0.08
    assert (views.rgb.movedim(2, -1) - (hit + 1) / 2)[inside].abs().max() < 0.03


def test_a_box_seen_from_the_front_is_a_square() -> None:
    half, distance, fov = 0.5, 3.0, 40.0
    flat = torch.zeros(1, 1)
    cameras = orbit(flat, flat, flat + distance, flat + fov)
    with torch.no_grad():
        opacity = render(AnalyticField(_box(half)), cameras, WHITE, FINE, 32, BETA).opacity[0, 0]
    # Its front face, `half` nearer than the centre, spans this share of the picture.
    share = half / (distance - half) / math.tan(math.radians(fov / 2))
    side = (opacity > 0.5).float().sum().sqrt().item()
    assert side == pytest.approx(32 * share, abs=1.0)


def test_a_constant_density_dims_by_the_length_of_the_ray_in_the_box() -> None:
    field = AnalyticField(lambda points: torch.full(points.shape[:1], 0.7), density_kind="density")
    flat = torch.zeros(1, 1)
    cameras = orbit(flat, flat, flat + 3, flat + 1e-3)
    opacity = render(field, cameras, WHITE, COARSE, 1, BETA).opacity
    assert opacity.item() == pytest.approx(1 - math.exp(-0.7 * 2), abs=1e-5)


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_an_empty_scene_is_its_background(tolerance: float) -> None:
    field = AnalyticField(lambda points: points.norm(dim=-1) + 50)
    colour = torch.tensor([[0.1, 0.7, 0.3]])
    config = replace(COARSE, min_weight=tolerance)
    views = render(field, ring(1, (30.0,)), colour, config, 8, BETA)
    assert torch.equal(views.rgb[0, 0], colour[0, :, None, None].expand(3, 8, 8))
    assert not views.opacity.any()
    assert not views.depth.any()


def test_many_scenes_and_views_equal_one_by_one_whatever_the_batch() -> None:
    scenes = (sphere(0.5), torus(0.5, 0.2), sphere(0.3, (0.4, 0.0, 0.2)))
    colours = torch.rand(3, 3)
    rng = StepRng(3, 11, torch.tensor([40, 7, 1]))
    cameras = CameraDistribution().sample(2, rng)
    together = render(AnalyticField(*scenes), cameras, colours, FINE, 12, 0.02, rng, 5)
    assert together.points is not None
    for scene in range(3):
        rows = slice(scene, scene + 1)
        own = StepRng(3, 11, rng.sample_index[rows])
        field = AnalyticField(scenes[scene])
        alone = render(field, cameras[rows], colours[rows], FINE, 12, 0.02, own, 5)
        assert torch.allclose(alone.rgb[0], together.rgb[scene], atol=1e-5)
        assert torch.allclose(alone.depth[0], together.depth[scene], atol=1e-5)
        assert alone.points is not None
        assert torch.allclose(alone.points[0], together.points[scene], atol=1e-6)
    exact = replace(FINE, min_weight=0.0)
    pictures = [
        render(AnalyticField(scenes[1]), orbit(*angles), WHITE, exact, 12, 0.02).rgb[0, 0]
        for angles in zip(
            *(
                getattr(cameras, name)[1][:, None, None]
                for name in ("azimuth_deg", "elevation_deg", "distance", "fov_deg")
            ),
            strict=True,
        )
    ]
    both = render(AnalyticField(scenes[1]), cameras[1:2], WHITE, exact, 12, 0.02).rgb[0]
    assert torch.allclose(torch.stack(pictures), both, atol=1e-5)


def test_chunks_of_rays_change_nothing() -> None:
    field, cameras = AnalyticField(torus(0.6, 0.2)), ring(1, (20.0, 130.0))
    rng = StepRng(0, 0, torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        whole = render(field, cameras, WHITE, COARSE, 9, 0.02, rng, with_normals=True)
        small = replace(COARSE, chunk_rays=25)
        parts = render(field, cameras, WHITE, small, 9, 0.02, rng, with_normals=True)
    for name in ("rgb", "opacity", "depth", "normal"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-6), name


def test_samples_are_jittered_with_a_stream_and_fixed_without() -> None:
    field, cameras = AnalyticField(sphere(0.5)), ring(1, (0.0,))
    rngs = [StepRng(0, step, torch.zeros(1, dtype=torch.int64)) for step in (1, 2)]
    first, second = (render(field, cameras, WHITE, COARSE, 8, 0.05, rng).rgb for rng in rngs)
    assert not torch.equal(first, second)
    again = [render(field, cameras, WHITE, COARSE, 8, 0.05).rgb for _ in range(2)]
    assert torch.equal(*again)
    assert torch.allclose(first, again[0], atol=0.15)


def test_importance_samples_sharpen_the_depth() -> None:
    field, cameras = AnalyticField(sphere(0.6)), ring(1, (10.0,))
    reference = render(field, cameras, WHITE, FINE, 16, BETA)
    inside = reference.opacity > 0.99
    error = {}
    for num_stratified, num_importance in ((24, 0), (16, 8)):
        config = RenderConfig(num_stratified=num_stratified, num_importance=num_importance)
        depth = render(field, cameras, WHITE, config, 16, BETA).depth
        error[num_importance] = (depth - reference.depth)[inside].abs().mean().item()
    assert error[8] < 0.6 * error[0]


def _radius_gradient(config: RenderConfig, radius: float = 0.5, beta: float = 0.03) -> Tensor:
    size = torch.tensor(radius, requires_grad=True)
    field = AnalyticField(lambda points: points.norm(dim=-1) - size)
    render(field, ring(1, (0.0,)), WHITE, config, 16, beta).opacity.mean().backward()
    assert size.grad is not None
    return size.grad


def test_leaving_out_light_samples_keeps_picture_and_gradient() -> None:
    cameras, field = ring(1, (15.0,)), AnalyticField(torus(0.5, 0.2))
    config = RenderConfig()
    assert config.min_weight > 0
    exact = replace(config, min_weight=0.0)
    whole, culled = (render(field, cameras, WHITE, c, 16, 0.03) for c in (exact, config))
    bound = config.min_weight
    assert (whole.opacity - culled.opacity).abs().max() <= bound
    assert (whole.rgb - culled.rgb).abs().max() <= bound
    assert torch.allclose(_radius_gradient(exact), _radius_gradient(config), rtol=0.03)


def test_a_fading_scene_still_receives_gradients() -> None:
    assert _radius_gradient(RenderConfig(), radius=-0.25) > 0


def test_the_gradient_is_that_of_the_picture() -> None:
    radius, step = 0.5, 1e-3
    config = replace(FINE, num_importance=0, min_weight=0.0)

    def opacity(value: float) -> float:
        field = AnalyticField(sphere(value))
        return render(field, ring(1, (0.0,)), WHITE, config, 16, 0.03).opacity.mean().item()

    numeric = (opacity(radius + step) - opacity(radius - step)) / (2 * step)
    assert _radius_gradient(config).item() == pytest.approx(numeric, rel=0.01)


def test_points_lie_in_the_box_and_on_rays() -> None:
    rng = StepRng(0, 0, torch.arange(2))
    cameras = CameraDistribution().sample(2, rng)
    field = AnalyticField(sphere(0.5), sphere(0.4))
    points = render(field, cameras, WHITE.expand(2, 3), COARSE, 8, 0.05, rng, 100).points
    assert points is not None
    assert points.shape == (2, 100, 3)
    assert points.abs().max() <= 1
    assert len(points[0].unique(dim=0)) > 80


def test_mistakes_are_named() -> None:
    field, cameras = AnalyticField(sphere(0.5)), ring(1, (0.0,))
    with pytest.raises(ValueError, match=r"^background: got None"):
        render(field, cameras, None, COARSE, 4, 0.1)
    with pytest.raises(ValueError, match=r"^beta: got 0"):
        render(field, cameras, WHITE, COARSE, 4, 0.0)
    with pytest.raises(ValueError, match=r"^cameras: got 2 scenes"):
        render(field, ring(2, (0.0,)), WHITE, COARSE, 4, 0.1)
    wrong: tuple[dict[str, Any], ...] = (
        {"num_stratified": 0},
        {"num_importance": -1},
        {"min_weight": 1.0},
    )
    for values in wrong:
        with pytest.raises(ValueError, match=f"^render.{next(iter(values))}: got"):
            RenderConfig(**values)
