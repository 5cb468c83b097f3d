from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from scaledreamer.mesh.isosurface import (
    EmptySurfaceError,
    IsosurfaceConfig,
    extract,
    isosurface,
    sample_lattice,
)
from scaledreamer.mesh.surface import Surface
from tests.mesh.fields import AnalyticField, Geometry, ripples, scaled, sphere, torus, union


def surface_of(geometry: Geometry, **options: float) -> Surface:
    config = IsosurfaceConfig(**{"resolution": 48, **options})
    return isosurface(AnalyticField(geometry), config)[0]


def assert_closed(surface: Surface) -> None:
    mesh = surface.to_trimesh()
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert surface.volume > 0
    assert mesh.area_faces.min() > 0


def test_sphere_has_its_volume_and_radius() -> None:
    surface = surface_of(sphere(0.7, (0.1, -0.2, 0.05)))
    assert_closed(surface)
    assert surface.volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=4e-3)
    radii = np.linalg.norm(surface.vertices - np.array((0.1, -0.2, 0.05)), axis=1)
    assert np.abs(radii - 0.7).max() < 5e-4
    assert surface.num_dropped == 0


def test_faces_look_outward() -> None:
    mesh = surface_of(sphere(0.6)).to_trimesh()
    assert (np.einsum("fi,fi->f", mesh.face_normals, mesh.triangles_center) > 0).all()


def test_torus_keeps_its_hole() -> None:
    surface = surface_of(torus(0.6, 0.2))
    assert_closed(surface)
    assert surface.to_trimesh().euler_number == 0
    assert surface.volume == pytest.approx(2 * math.pi**2 * 0.6 * 0.2**2, rel=1e-2)


def test_surface_cut_by_the_box_is_capped_at_its_sides() -> None:
    surface = surface_of(sphere(1.2))
    assert_closed(surface)
    assert np.abs(surface.vertices).max() == pytest.approx(1, abs=1e-3)
    cap = math.pi * 0.2**2 * (3 * 1.2 - 0.2) / 3
    assert surface.volume == pytest.approx(4 / 3 * math.pi * 1.2**3 - 6 * cap, rel=1e-2)


def test_half_space_becomes_half_the_box() -> None:
    surface = surface_of(lambda points: points[:, 0] - 0.013)
    assert_closed(surface)
    assert surface.volume == pytest.approx(4 * 1.013, rel=1e-2)


def test_floaters_are_dropped_by_share_of_volume() -> None:
    geometry = union(sphere(0.5), sphere(0.08, (0.8, 0.8, 0.8)), sphere(0.3, (-0.7, -0.7, -0.7)))
    assert surface_of(geometry).to_trimesh().body_count == 2
    assert surface_of(geometry).num_dropped == 1
    assert surface_of(geometry, min_volume_share=0).to_trimesh().body_count == 3
    largest = surface_of(geometry, min_volume_share=1)
    assert largest.num_dropped == 2
    assert largest.volume == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=1e-2)


@pytest.mark.parametrize("resolution", [33, 64])
@pytest.mark.parametrize(
    "geometry",
    [
        sphere(0.5),
        scaled(torus(0.6, 0.1), 0.05),
        scaled(sphere(0.3, (0.6, 0.1, -0.4)), 20),
        union(sphere(0.05, (0.5, 0.5, 0.5)), sphere(0.3)),
        lambda points: (points[:, 2] - 0.01).abs() - 0.05,
        sphere(1.6),
        ripples,
    ],
    ids=["sphere", "flat", "steep", "small", "plate", "cut", "ripples"],
)
def test_coarse_to_fine_gives_the_dense_mesh(geometry: Geometry, resolution: int) -> None:
    meshes, counts = [], []
    for use_coarse_to_fine in (False, True):
        field = AnalyticField(geometry)
        config = IsosurfaceConfig(
            resolution=resolution, use_coarse_to_fine=use_coarse_to_fine, min_volume_share=0
        )
        meshes += isosurface(field, config)
        counts.append(field.num_points)
    assert np.array_equal(meshes[0].faces, meshes[1].faces)
    assert np.allclose(meshes[0].vertices, meshes[1].vertices, atol=1e-6)
    assert counts[1] <= counts[0]


def test_coarse_to_fine_evaluates_little() -> None:
    field = AnalyticField(sphere(0.5))
    isosurface(field, IsosurfaceConfig(resolution=96))
    assert field.num_points < 0.2 * 97**3


def test_skipped_blocks_that_the_surface_reaches_are_evaluated_after_all() -> None:
    def needle(points: torch.Tensor) -> torch.Tensor:
        """Steep only near the axis, between the coarse nodes."""
        beside = (points[:, :2] - 1 / 16).norm(dim=-1)
        return torch.where(beside < 0.05, points[:, 2].abs() - 0.7, points.norm(dim=-1) - 0.2)

    found = [
        isosurface(AnalyticField(needle), IsosurfaceConfig(resolution=64, use_coarse_to_fine=use))
        for use in (False, True)
    ]
    assert np.array_equal(found[0][0].faces, found[1][0].faces)


def test_density_fields_are_cut_at_the_level() -> None:
    def blob(points: torch.Tensor) -> torch.Tensor:
        return 100 * torch.exp(-4 * points.square().sum(dim=-1))

    field = AnalyticField(blob, density_kind="density")
    (surface,) = isosurface(field, IsosurfaceConfig(resolution=40, density_level=25))
    radius = math.sqrt(math.log(100 / 25) / 4)
    assert np.linalg.norm(surface.vertices, axis=1) == pytest.approx(radius, abs=2e-3)
    assert_closed(surface)


def test_surface_through_lattice_points_has_no_slivers() -> None:
    surface = surface_of(sphere(0.5), resolution=32)
    assert_closed(surface)
    merged = trimesh.Trimesh(surface.vertices, surface.faces, process=True)
    assert merged.is_watertight
    assert len(merged.faces) == len(surface.faces)


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_watertight(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=(18, 18, 18)).astype(np.float32)
    assert extract(noise, min_volume_share=0).to_trimesh().is_watertight


def test_scenes_of_a_batch_stay_apart() -> None:
    field = AnalyticField(sphere(0.4), torus(0.6, 0.2), sphere(0.2, (0.5, 0.5, 0.5)))
    config = IsosurfaceConfig(resolution=33, chunk_points=1000)
    for surface, geometry in zip(isosurface(field, config), field.scenes, strict=True):
        (alone,) = isosurface(AnalyticField(geometry), config)
        assert np.array_equal(surface.faces, alone.faces)


@pytest.mark.parametrize(("value", "side"), [(0.3, "outside"), (-0.3, "inside")])
def test_empty_surface_is_a_clear_error(value: float, side: str) -> None:
    with pytest.raises(EmptySurfaceError, match=f"surface is empty.*{side} everywhere"):
        surface_of(lambda points: torch.full_like(points[:, 0], value))


def test_field_inside_at_the_sides_only_is_empty() -> None:
    values = np.ones((17, 17, 17), np.float32)
    values[0] = -1
    with pytest.raises(EmptySurfaceError, match="sides"):
        extract(values)


def test_non_finite_field_is_an_error() -> None:
    with pytest.raises(ValueError, match="non-finite"):
        surface_of(lambda points: torch.full_like(points[:, 0], math.nan))


@pytest.mark.parametrize("resolution", [-3, 15, 513])
def test_resolution_is_checked(resolution: int) -> None:
    with pytest.raises(ValueError, match=f"resolution: got {resolution}; must lie within 16 to"):
        IsosurfaceConfig(resolution=resolution)


def test_lattice_is_indexed_x_y_z_from_corner_to_corner() -> None:
    field = AnalyticField(lambda points: points @ torch.tensor((1.0, 0.1, 0.01)))
    values = sample_lattice(field, IsosurfaceConfig(resolution=16, use_coarse_to_fine=False))[0]
    assert values[0, 0, 0] == pytest.approx(-1.11)
    assert values[16, 0, 8] == pytest.approx(1 - 0.1)
