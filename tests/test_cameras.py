"""Cameras: where they stand, what they see, and rays against a pinhole projection."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from scaledreamer.cameras import CameraDistribution, framing_distance, orbit, rays, ring
from scaledreamer.interfaces import CameraBatch
from scaledreamer.rng import StepRng


def _random_cameras(num_scenes: int = 3, num_views: int = 5) -> CameraBatch:
    shape = (num_scenes, num_views)
    return orbit(
        torch.rand(shape) * 360,
        torch.rand(shape) * 170 - 85,
        torch.rand(shape) * 3 + 1.5,
        torch.rand(shape) * 60 + 20,
    )


def _pixels(cameras: CameraBatch, point: list[float], size_px: int) -> torch.Tensor:
    """Column and row of a world point in every view, by the pinhole formula. [B, V, 2]"""
    homogeneous = torch.tensor([*point, 1.0])
    x, y, z, _ = (torch.linalg.inv(cameras.c2w) @ homogeneous).unbind(-1)
    focal = size_px / 2 / torch.tan(torch.deg2rad(cameras.fov_deg) / 2)
    return torch.stack((size_px / 2 - focal * x / z, size_px / 2 + focal * y / z), dim=-1)


def test_azimuth_zero_stands_in_front_and_turns_counter_clockwise() -> None:
    cameras = ring(1, (0.0, 90.0, 180.0, 270.0), elevation_deg=0.0, distance=2.0)
    expected = torch.tensor([[2.0, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]])
    assert torch.allclose(cameras.c2w[0, :, :3, 3], expected, atol=1e-6)
    above = ring(1, (0.0,), elevation_deg=30.0, distance=2.0)
    assert above.c2w[0, 0, 2, 3].item() == pytest.approx(1.0)


def test_the_front_camera_sees_left_and_right_as_a_viewer_does() -> None:
    front = ring(1, (0.0,), elevation_deg=0.0)
    column, row = _pixels(front, [0.0, 0.5, 0.0], 64)[0, 0]
    assert column > 33
    assert row == pytest.approx(32.0, abs=1e-3)
    column, row = _pixels(front, [0.0, 0.0, 0.5], 64)[0, 0]
    assert column == pytest.approx(32.0, abs=1e-3)
    assert row < 31
    origins, directions = rays(front, 64)
    assert torch.allclose(origins[0, 0, 0, 0], torch.tensor([3.0, 0.0, 0.0]))
    assert (directions[0, 0, :, -1, 1] > 0).all()
    assert (directions[0, 0, 0, :, 2] > 0).all()
    assert (directions[0, 0, ..., 0] < 0).all()


def test_frames_are_right_handed_orthonormal_and_look_at_the_origin() -> None:
    cameras = _random_cameras()
    rotation, position = cameras.c2w[..., :3, :3], cameras.c2w[..., :3, 3]
    identity = torch.eye(3).expand_as(rotation)
    assert torch.allclose(rotation.mT @ rotation, identity, atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(3, 5), atol=1e-5)
    assert torch.allclose(position, rotation[..., 2] * cameras.distance[..., None], atol=1e-5)
    assert torch.allclose(rotation[..., 2, 0], torch.zeros(3, 5), atol=1e-6)
    assert (rotation[..., 2, 1] > 0).all()
    assert torch.equal(cameras.c2w[..., 3, :], torch.tensor([0.0, 0, 0, 1]).expand(3, 5, 4))


def test_points_along_rays_project_back_to_their_pixel_centres() -> None:
    cameras, size_px = _random_cameras(2, 3), 7
    origins, directions = rays(cameras, size_px)
    assert directions.shape == (2, 3, size_px, size_px, 3)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(2, 3, size_px, size_px), atol=1e-5)
    points = origins + 1.7 * directions
    for row, column in ((0, 0), (0, 6), (3, 3), (6, 2)):
        for scene in range(2):
            for view in range(3):
                point = points[scene, view, row, column].tolist()
                pixel = _pixels(cameras, point, size_px)[scene, view]
                centre = torch.tensor([column + 0.5, row + 0.5])
                assert torch.allclose(pixel, centre, atol=1e-3)


def test_the_field_of_view_spans_the_image_from_edge_to_edge() -> None:
    camera = ring(1, (0.0,), elevation_deg=0.0, distance=2.0, fov_deg=50.0)
    edge = 2.0 * math.tan(math.radians(25.0))
    top_right = _pixels(camera, [0.0, edge, edge], 32)[0, 0]
    assert torch.allclose(top_right, torch.tensor([32.0, 0.0]), atol=1e-4)


def test_a_framed_sphere_touches_the_border() -> None:
    distance = framing_distance(40.0, radius=0.9)
    origins, directions = rays(ring(1, (30.0,), 20.0, distance, 40.0), 400)
    nearest = torch.linalg.cross(origins, directions, dim=-1).norm(dim=-1)[0, 0]
    assert nearest[0, 200].item() == pytest.approx(0.9, rel=0.01)


def test_the_distribution_stays_in_its_ranges_and_fills_them() -> None:
    distribution = CameraDistribution(
        distance=(2.0, 3.0), fov_deg=(30.0, 50.0), elevation_deg=(-10.0, 60.0)
    )
    cameras = distribution.sample(4, StepRng(0, 0, torch.arange(500)))
    for name in ("distance", "fov_deg", "elevation_deg"):
        low, high = getattr(distribution, name)
        values = getattr(cameras, name)
        assert values.shape == (500, 4)
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, rel=0.03)
    azimuth = torch.histc(cameras.azimuth_deg, 8, 0.0, 360.0)
    assert (azimuth > 180).all()


def test_layouts_of_the_azimuths() -> None:
    rng = StepRng(0, 0, torch.arange(50))
    spread = CameraDistribution().sample(4, rng).azimuth_deg
    gaps = (spread.roll(-1, dims=1) - spread) % 360.0
    assert torch.allclose(gaps, torch.full_like(gaps, 90.0), atol=1e-3)
    loose = CameraDistribution(azimuth_layout="independent").sample(4, rng).azimuth_deg
    assert ((loose.roll(-1, dims=1) - loose) % 360.0).std() > 50


def test_selecting_scenes_and_moving_keep_the_fields_together() -> None:
    cameras = _random_cameras()
    some = cameras[torch.tensor([2, 0])].to("cpu")
    assert torch.equal(some.c2w, cameras.c2w[[2, 0]])
    assert torch.equal(some.fov_deg, cameras.fov_deg[[2, 0]])


def test_ranges_outside_another_distribution_are_named() -> None:
    inner = CameraDistribution()
    wide = replace(inner, distance=(2.5, 3.0), elevation_deg=(0.0, 80.0))
    assert wide.outside(inner) == ["distance", "elevation_deg"]
    assert inner.outside(inner) == []


@pytest.mark.parametrize(
    ("ranges", "name"),
    [
        ({"distance": (3.0, 2.0)}, "distance"),
        ({"distance": (0.5, 2.0)}, "distance"),
        ({"fov_deg": (0.0, 40.0)}, "fov_deg"),
        ({"fov_deg": (40.0, 180.0)}, "fov_deg"),
        ({"elevation_deg": (0.0, 90.0)}, "elevation_deg"),
        ({"elevation_deg": (10.0, 0.0)}, "elevation_deg"),
    ],
)
def test_impossible_ranges_are_refused(ranges: dict[str, tuple[float, float]], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^cameras\.{name}: got"):
        replace(CameraDistribution(), **ranges)


def test_shared_views_differ_in_azimuth_alone():
    distribution = CameraDistribution(
        distance=(2.0, 3.0), elevation_deg=(0.0, 30.0), fov_deg=(30.0, 50.0), share_views=True
    )
    cameras = distribution.sample(4, StepRng(0, 0, torch.arange(3)))
    for values in (cameras.distance, cameras.elevation_deg, cameras.fov_deg):
        assert values.shape == (3, 4)
        assert torch.equal(values, values[:, :1].expand(3, 4))
        assert len(values.unique()) == 3
    steps = (cameras.azimuth_deg.diff(dim=1) + 360) % 360
    torch.testing.assert_close(steps, torch.full((3, 3), 90.0), atol=1e-3, rtol=0)
