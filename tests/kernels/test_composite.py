"""Compositing against closed forms and a loop over samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scaledreamer.kernels.composite import composite


def _rays(num_rays: int = 3, num_samples: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    density = torch.rand(num_rays, num_samples, dtype=torch.float64) * 3
    lengths = torch.rand_like(density) + 0.1
    colours = torch.rand(num_rays, num_samples, 3, dtype=torch.float64)
    return density, lengths, colours, lengths.cumsum(dim=-1)


@pytest.mark.parametrize("num_samples", [1, 2, 17])
def test_a_slab_of_constant_density_follows_beer_and_lambert(num_samples: int) -> None:
    sigma, length, start = 1.7, 0.9, 2.0
    step = length / num_samples
    density = torch.full((1, num_samples), sigma, dtype=torch.float64)
    centres = start + step * (torch.arange(num_samples, dtype=torch.float64) + 0.5)[None]
    colour = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).expand(1, num_samples, 3)
    out = composite(density, torch.full_like(density, step), colour, centres)
    opacity = 1 - math.exp(-sigma * length)
    assert out.opacity.item() == pytest.approx(opacity, abs=1e-12)
    assert torch.allclose(out.rgb, opacity * colour[:, 0])
    # Mean free path of a truncated exponential; midpoints approximate it to second order.
    mean = start * opacity + 1 / sigma - (length + 1 / sigma) * math.exp(-sigma * length)
    assert out.depth.item() == pytest.approx(mean, abs=0.2 * step**2 + 1e-12)


def test_the_weights_are_alpha_times_transmittance() -> None:
    density, lengths, colours, distances = _rays()
    out = composite(density, lengths, colours, distances)
    for ray in range(len(density)):
        transmittance, rgb, depth = 1.0, torch.zeros(3, dtype=torch.float64), 0.0
        for sample in range(density.shape[1]):
            alpha = 1 - math.exp(-density[ray, sample] * lengths[ray, sample])
            weight = alpha * transmittance
            assert out.weights[ray, sample].item() == pytest.approx(weight, abs=1e-12)
            rgb += weight * colours[ray, sample]
            depth += weight * distances[ray, sample].item()
            transmittance *= 1 - alpha
        assert torch.allclose(out.rgb[ray], rgb)
        assert out.depth[ray].item() == pytest.approx(depth)
        assert out.opacity[ray].item() == pytest.approx(1 - transmittance)


def test_no_density_gives_exact_zeros_and_infinite_density_one() -> None:
    density, lengths, colours, distances = (x.float() for x in _rays())
    empty = composite(torch.zeros_like(density), lengths, colours, distances)
    assert all(not value.any() for value in empty)
    full = composite(torch.full_like(density, 1e30), lengths, colours, distances)
    assert torch.equal(full.opacity, torch.ones(3))
    assert torch.equal(full.rgb, colours[:, 0])


def test_gradients() -> None:
    inputs = tuple(x.requires_grad_() for x in _rays(2, 5))
    assert torch.autograd.gradcheck(composite, inputs)


def test_an_opaque_sample_leaves_finite_gradients() -> None:
    density, lengths, colours, distances = (x.float() for x in _rays())
    density[:, 2] = 1e6
    density.requires_grad_()
    composite(density, lengths, colours, distances).rgb.sum().backward()
    assert density.grad is not None
    assert torch.isfinite(density.grad).all()


@pytest.mark.parametrize("name", ["lengths", "distances", "colours"])
def test_wrong_arguments_are_named(name: str) -> None:
    density, lengths, colours, distances = _rays()
    good = {"lengths": lengths, "colours": colours, "distances": distances}
    for bad in (good[name].float(), good[name].to("meta")):
        with pytest.raises(ValueError, match=f"^{name}: got"):
            composite(density, **{**good, name: bad})
