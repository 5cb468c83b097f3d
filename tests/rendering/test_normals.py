"""Finite differences against exact gradients."""

from __future__ import annotations

import torch

from scaledreamer.interfaces import DensityKind
from scaledreamer.rendering.normals import finite_difference_gradient, finite_difference_normal
from tests.mesh.fields import AnalyticField, ripples, scaled, sphere


def test_a_linear_field_is_differentiated_exactly() -> None:
    slope = torch.tensor([0.3, -2.0, 0.7], dtype=torch.float64)
    field = AnalyticField(lambda points: points @ slope + 0.4)
    points = torch.rand(1, 20, 3, dtype=torch.float64)
    gradient = finite_difference_gradient(field, points, eps=0.1)
    assert torch.allclose(gradient, slope.expand_as(gradient))


def test_the_error_falls_with_the_square_of_the_step() -> None:
    points = torch.rand(1, 50, 3, dtype=torch.float64)
    leaf = points.clone().requires_grad_()
    (exact,) = torch.autograd.grad(ripples(leaf[0]).sum(), leaf)
    errors = [
        (finite_difference_gradient(AnalyticField(ripples), points, eps) - exact).abs().max()
        for eps in (0.02, 0.01)
    ]
    assert errors[1] < errors[0] / 3.5
    assert errors[1] < 0.05


def test_it_is_differentiable_in_the_parameters_of_the_field() -> None:
    scale = torch.tensor(1.3, requires_grad=True)
    field = AnalyticField(lambda points: scale * sphere(0.5)(points))
    gradient = finite_difference_gradient(field, torch.rand(1, 9, 3) + 0.1)
    (gradient.norm(dim=-1) - 1).square().mean().backward()
    assert scale.grad is not None
    assert abs(scale.grad.item() - 2 * 0.3) < 1e-3


def test_normals_point_outward_for_either_kind() -> None:
    points = torch.nn.functional.normalize(torch.randn(1, 30, 3), dim=-1) * 0.5
    outward = points / 0.5
    cases: tuple[tuple[DensityKind, float], ...] = (("sdf", 3.0), ("density", -3.0))
    for kind, factor in cases:
        field = AnalyticField(scaled(sphere(0.5), factor), density_kind=kind)
        assert torch.allclose(finite_difference_normal(field, points), outward, atol=1e-3)
