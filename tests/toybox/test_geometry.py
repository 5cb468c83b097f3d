"""Primitives, scenes and the renderer against second routes to the same numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from scaledreamer.cameras import orbit, rays, ring
from scaledreamer.toybox.world import grammar, truth
from scaledreamer.toybox.world.kinds import KINDS, parts_of
from scaledreamer.toybox.world.primitives import (
    MAIN,
    PartBatch,
    ball,
    blob,
    box,
    cone,
    torus,
)
from scaledreamer.toybox.world.primitives import (
    ring as tube,
)
from scaledreamer.toybox.world.render import Look, render, shading
from scaledreamer.toybox.world.scene import MAX_HALF_EXTENT, MAX_RADIUS, build

EXAMPLES = {
    "box": box(MAIN, (0.1, -0.2, 0.05), (0.3, 0.2, 0.4), 0.05, ("z", 30)),
    "cone": cone(MAIN, (0, 0.1, 0), (0.4, 0.15), 0.3, (1, 1, 0.5)),
    "cylinder": cone(MAIN, (0, 0, 0), (0.3, 0.3), 0.4),
    "torus": torus(MAIN, (0, 0, 0.1), 0.4, 0.12, (1, 0, 0)),
    "ring": tube(MAIN, (0, 0, 0), 0.4, 0.06, 0.3),
    "blob": blob(MAIN, (-0.2, 0, 0), (0.3, 0.2, 0.1), (0.25, 0.1)),
    "ball": ball(MAIN, (0.1, 0.1, 0.1), 0.3),
}


def _plain(kind: str) -> grammar.Scene:
    """Of any edition's kinds."""
    return grammar.Scene(grammar.Item(kind, "red"))


def _batch(part) -> PartBatch:
    return PartBatch([[part]], [[(1.0, 0.0, 0.0)]])


def _cloud(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_distance_outside_is_the_nearest_surface_point(name: str):
    """Brute force: the distance to the nearest of many points found on the surface."""
    shape = _batch(EXAMPLES[name])
    surface = _cloud(60_000)
    for _ in range(6):  # Newton steps along the gradient
        surface.requires_grad_(True)
        distance = shape.signed_distance(surface)
        (gradient,) = torch.autograd.grad(distance.sum(), surface)
        step = distance[..., None] * gradient / gradient.square().sum(-1, keepdim=True)
        step = torch.where(distance.abs()[..., None] > 1e-5, step, 0.0)  # no gradient at 0
        surface = (surface - step).detach()
    surface = surface[shape.signed_distance(surface).abs() < 1e-4]
    points = _cloud(200, seed=1)
    distance = shape.signed_distance(points)
    nearest = torch.cdist(points[0], surface).amin(dim=1)
    outside = distance[0] > 0.02
    assert outside.sum() > 50
    torch.testing.assert_close(distance[0][outside], nearest[outside], atol=6e-3, rtol=0.01)


@pytest.mark.parametrize("name", EXAMPLES)
def test_bounds_hold_the_solid_and_touch_it(name: str):
    part = EXAMPLES[name]
    points = _cloud(400_000) * 0.9
    inside = points[_batch(part).signed_distance(points) < 0]
    low, high = torch.tensor(part.bounds)
    assert (inside.amin(0) >= low - 1e-4).all()
    assert (inside.amax(0) <= high + 1e-4).all()
    torch.testing.assert_close(inside.amin(0).double(), low, atol=0.05, rtol=0)
    torch.testing.assert_close(inside.amax(0).double(), high, atol=0.05, rtol=0)


def test_every_scene_form_fits_the_view():
    prompts = [
        "a red mug",
        "a yellow duck wearing a blue hat",
        "a green cactus on top of a purple box",
        "a red mug next to a blue house",
    ]
    for scene in (*map(grammar.parse, prompts), *map(_plain, KINDS)):
        parts, colours = build(scene)
        assert len(parts) == len(colours)
        corners = np.concatenate([part.bounds for part in parts])
        assert abs(corners).max() <= MAX_HALF_EXTENT + 1e-9
        farthest = max(
            float(np.linalg.norm(corner))
            for low, high in (part.bounds for part in parts)
            for corner in itertools.product(*zip(low, high, strict=True))
        )
        assert farthest <= MAX_RADIUS + 1e-9
        np.testing.assert_allclose(corners.max(0) + corners.min(0), 0, atol=1e-9)


def test_stacked_objects_touch_without_overlap():
    parts, _ = build(grammar.parse("a green cactus on top of a purple box"))
    split = len(parts_of("cactus"))
    above = min(part.bounds[0, 2] for part in parts[:split])
    below = max(part.bounds[1, 2] for part in parts[split:])
    assert abs(above - below) < 0.02


def test_render_of_a_box_agrees_with_marching_every_ray_by_brute_force():
    scene = grammar.parse("a red box with a blue lid")
    cameras = ring(1, (30.0,), 20.0)
    views = render([scene], cameras, 24)
    origin, direction = rays(cameras, 24)
    tdist = torch.linspace(1.8, 4.2, 1200)
    points = origin[..., None, :] + tdist[:, None] * direction[..., None, :]
    inside = truth.signed_distance([scene], points.view(1, -1, 3)).view(24, 24, -1) < 0
    hit = inside.any(-1)
    first = tdist[inside.float().argmax(-1)]
    assert ((views.opacity[0, 0] > 0.99) == hit).float().mean() > 0.99
    solid = (views.opacity[0, 0] > 0.99) & hit
    torch.testing.assert_close(
        views.depth[0, 0][solid], first[solid], atol=0.02, rtol=0
    )  # a hit is within 2 mm


def test_normals_are_unit_outward_and_light_is_fixed_to_the_world():
    scene = grammar.parse("a white snowman")
    cameras = ring(1, (0.0, 180.0))
    views = render([scene], cameras, 32)
    assert views.normal is not None
    solid = views.opacity[0] > 0.99
    normal = views.normal[0].movedim(1, -1)[solid]
    torch.testing.assert_close(normal.norm(dim=-1), torch.ones(len(normal)), atol=1e-4, rtol=0)
    _, direction = rays(cameras, 32)
    assert ((normal * direction[0][solid]).sum(-1) < 0.2).all()
    front, back = views.rgb[0].mean(dim=(1, 2, 3))
    assert front > back  # the lamp stands before the scene


def test_shading_at_a_known_normal():
    look = Look.reference(1)
    up = torch.tensor([[[0.0, 0.0, 1.0]]])
    lamp = 0.75 / math.sqrt(0.55**2 + 0.35**2 + 0.75**2)
    assert float(shading(up, look)) == pytest.approx(0.54 + 0.18 + 0.28 * lamp, abs=1e-6)


def test_kinds_with_a_front_differ_from_behind_by_more_than_a_mirror_image():
    fronted = grammar._read_vocabulary("2")["fronted"]
    scenes = [_plain(kind) for kind in KINDS]
    view = ring(len(scenes), (0.0, 180.0))
    views = render(scenes, view, 32)
    mirrored = views.rgb[:, 1].flip(-1)
    coverage = views.opacity.amax(dim=1).mean(dim=(1, 2))
    difference = (views.rgb[:, 0] - mirrored).abs().mean(dim=(1, 2, 3)) / coverage
    pairs = zip(KINDS, difference.tolist(), strict=True)
    assert not [kind for kind, value in pairs if kind in fronted and value < 0.04]


@pytest.mark.parametrize("kind", KINDS)
def test_ground_truth_mesh_is_watertight_and_outward(kind: str):
    scene = _plain(kind)
    mesh = truth.mesh(scene, resolution=48)
    assert mesh.is_watertight
    points = _cloud(40_000)
    inside = truth.signed_distance([scene], points) < 0
    assert mesh.volume == pytest.approx(8 * float(inside.float().mean()), rel=0.25)


def test_camera_turns_counter_clockwise_from_above():
    views = orbit(*(torch.tensor([[value]]) for value in (90.0, 0.0, 3.0, 40.0)))
    torch.testing.assert_close(
        views.c2w[0, 0, :3, 3], torch.tensor([0.0, 3.0, 0.0]), atol=1e-6, rtol=0
    )
