from __future__ import annotations

import numpy as np
import pytest
import torch

from scaledreamer.mesh.colour import colour
from scaledreamer.mesh.isosurface import IsosurfaceConfig, isosurface
from tests.mesh.fields import AnalyticField, sphere


def test_every_vertex_has_the_fields_colour_there() -> None:
    field = AnalyticField(sphere(0.4), sphere(0.8, (0.5, 0.0, 0.0)))
    surfaces = isosurface(field, IsosurfaceConfig(resolution=24))
    assert len(surfaces[0].vertices) != len(surfaces[1].vertices)
    for surface in colour(field, surfaces, chunk_points=100):
        assert surface.colours is not None
        assert np.allclose(surface.colours, (surface.vertices + 1) / 2, atol=1e-6)


def test_colours_are_kept_in_range_and_must_be_finite() -> None:
    field = AnalyticField(sphere(0.5))
    surfaces = isosurface(field, IsosurfaceConfig(resolution=16))
    field.geometry_and_colour = lambda points: (points[..., 0], 3 * points)  # type: ignore
    (surface,) = colour(field, surfaces)
    assert surface.colours is not None
    assert surface.colours.min() == 0
    assert surface.colours.max() == 1
    field.geometry_and_colour = lambda points: (points[..., 0], points / 0)  # type: ignore
    with pytest.raises(ValueError, match="colours hold non-finite"):
        colour(field, surfaces)


def test_surfaces_and_scenes_must_match() -> None:
    surfaces = isosurface(AnalyticField(sphere(0.5)), IsosurfaceConfig(resolution=16))
    with pytest.raises(ValueError, match="1 surfaces for a field of 2"):
        colour(AnalyticField(sphere(0.5), sphere(0.5)), surfaces)


def test_colour_runs_without_gradients() -> None:
    weight = torch.ones(3, requires_grad=True)
    field = AnalyticField(sphere(0.5))
    field.geometry_and_colour = lambda points: (points[..., 0], points * weight)  # type: ignore
    (surface,) = colour(field, isosurface(field, IsosurfaceConfig(resolution=16)))
    assert isinstance(surface.colours, np.ndarray)
