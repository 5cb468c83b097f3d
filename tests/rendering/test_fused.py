"""Renders, regularizers and surfaces of a generator's field on the fused path equal the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scaledreamer.cameras import ring
from scaledreamer.generators._triplane import TriplaneField
from scaledreamer.interfaces import TriplaneStructure, Views
from scaledreamer.kernels.backend import use_backend
from scaledreamer.rendering.normals import finite_difference_gradient, spatial_gradient
from scaledreamer.rendering.volume import RenderConfig, render
from tests.kernels.triplanes import Case, structure

CONFIG = RenderConfig(num_stratified=6, num_importance=3, min_weight=0.0, chunk_rays=20)
# tf32 products are exact in the interpreter; on a GPU they carry 10 bits.
TOLERANCE = 1e-4 if not torch.cuda.is_available() else 2e-2


@pytest.fixture
def small(triton_device: torch.device) -> TriplaneStructure:
    case = Case(16, (16, 16), (16, 16), num_scenes=2, texels=6)
    return structure(case, torch.float32, triton_device)


def _both(small: TriplaneStructure, call: Callable[[TriplaneField], Any]) -> tuple[Any, Any]:
    fused = call(TriplaneField(small))
    with use_backend("reference"):
        return fused, call(TriplaneField(small))


def _gradient(small: TriplaneStructure, value: Tensor) -> Tensor:
    return torch.autograd.grad(value, small.planes)[0]


@pytest.mark.interpreted
def test_a_render_equals_the_reference(small: TriplaneStructure):
    cameras = ring(2, (20.0, 200.0)).to(small.planes.device)
    white = torch.ones(2, 3, device=small.planes.device)

    def call(field: TriplaneField, with_normals: bool = False) -> Views:
        return render(field, cameras, white, CONFIG, 5, beta=0.125, with_normals=with_normals)

    with torch.no_grad():
        normals, smooth = (views.normal for views in _both(small, lambda f: call(f, True)))
    # finite differences smooth over texel borders; the analytic gradient does not
    assert (normals - smooth).abs().mean() < 0.05
    fused, expected = _both(small, call)
    for name in ("rgb", "opacity", "depth"):
        torch.testing.assert_close(
            getattr(fused, name), getattr(expected, name), atol=TOLERANCE, rtol=TOLERANCE
        )
    torch.testing.assert_close(
        _gradient(small, fused.rgb.square().sum()),
        _gradient(small, expected.rgb.square().sum()),
        atol=1e-2 * float(TOLERANCE > 1e-3) + 1e-4,
        rtol=TOLERANCE,
    )


@pytest.mark.interpreted
def test_an_eikonal_loss_trains_through_the_analytic_gradient(small: TriplaneStructure):
    points = torch.rand(2, 40, 3, device=small.planes.device) * 1.6 - 0.8

    def call(field: TriplaneField) -> Tensor:
        return spatial_gradient(field, points, eps=1e-3)

    fused, expected = _both(small, call)
    field = TriplaneField(small)
    with use_backend("reference"):
        torch.testing.assert_close(expected, finite_difference_gradient(field, points, 1e-3))
    assert (fused - expected).abs().median() < 5e-3
    loss = (fused.norm(dim=-1) - 1).square().mean()
    assert _gradient(small, loss).abs().sum() > 0


@pytest.mark.interpreted
def test_a_field_is_queried_fused(small: TriplaneStructure):
    points = torch.rand(2, 50, 3, device=small.planes.device) * 2 - 1
    (fused, colour), (expected, plain) = _both(
        small, lambda field: field.geometry_and_colour(points)
    )
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(colour, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.interpreted
def test_widths_that_no_kernel_takes_render_as_before(triton_device: torch.device):
    odd = structure(Case(16, (24,), (16,), texels=4), torch.float32, triton_device)
    cameras = ring(1, (0.0,)).to(triton_device)
    white = torch.ones(1, 3, device=triton_device)
    views = render(TriplaneField(odd), cameras, white, CONFIG, 4, beta=0.125)
    assert views.rgb.isfinite().all()
