"""VolSDF's density against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from scaledreamer.rendering.density import laplace_density, to_density


@pytest.mark.parametrize("beta", [0.1, 0.02])
def test_the_density_is_the_scaled_laplace_distribution_function(beta: float) -> None:
    distance = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    laplace = torch.distributions.Laplace(torch.zeros((), dtype=torch.float64), beta)
    assert torch.allclose(laplace_density(distance, beta), laplace.cdf(-distance) / beta)


def test_values_at_the_surface_and_at_one_beta() -> None:
    beta = 0.05
    distance = torch.tensor([0.0, beta, -beta, 9.0, -9.0], dtype=torch.float64)
    out = laplace_density(distance, beta) * beta
    expected = [0.5, 0.5 / math.e, 1 - 0.5 / math.e, 0.0, 1.0]
    assert out.tolist() == pytest.approx(expected, abs=1e-12)


def test_gradients_do_not_overflow_far_away() -> None:
    distance = torch.tensor([-50.0, -0.1, 0.1, 50.0], requires_grad=True)
    laplace_density(distance, 1e-3).sum().backward()
    assert distance.grad is not None
    assert torch.isfinite(distance.grad).all()
    assert (distance.grad <= 0).all()


def test_a_density_field_is_taken_at_its_word() -> None:
    values = torch.rand(4)
    assert torch.equal(to_density(values, "density", 0.1), values)
