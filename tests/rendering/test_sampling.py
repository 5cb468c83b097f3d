"""Ray-box intersection and sample placement against brute force and exact distributions."""

from __future__ import annotations

import pytest
import torch

from scaledreamer.rendering.sampling import (
    intersect_box,
    interval_edges,
    resample,
    stratified,
)


def _random_rays(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    origins = torch.nn.functional.normalize(torch.randn(num, 3), dim=-1) * 3
    directions = torch.nn.functional.normalize(torch.rand(num, 3) * 3 - 1.5 - origins, dim=-1)
    return origins.double(), directions.double()


def test_the_box_is_entered_and_left_where_marching_says() -> None:
    origins, directions = _random_rays(200)
    near, far = intersect_box(origins, directions)
    step = 1e-3
    march = torch.arange(0, 6, step, dtype=torch.float64)
    points = origins[:, None] + march[:, None] * directions[:, None]
    inside = (points.abs() <= 1).all(dim=-1)
    assert torch.allclose(far - near, inside.double().sum(dim=1) * step, atol=2 * step)
    is_hit = inside.any(dim=1)
    assert 20 < is_hit.sum() < 200
    first = march[inside[is_hit].int().argmax(dim=1)]
    assert torch.allclose(near[is_hit], first, atol=step)


def test_axis_parallel_rays_and_rays_from_inside() -> None:
    origins = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    directions = torch.tensor([[-1.0, 0, 0], [0, 0, 1.0], [-1.0, 0, 0], [1.0, 0, 0]])
    near, far = intersect_box(origins, directions)
    assert near.tolist() == [2.0, 0.0, 0.0, 0.0]
    assert far.tolist() == [4.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("num", [1, 5])
def test_strata_hold_one_sample_each_and_their_lengths_cover_the_ray(num: int) -> None:
    near, far = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 5.0])
    for offset in (0.5, torch.tensor([0.01, 0.99])):
        tdist = stratified(near, far, num, offset)
        position = (tdist - near[:, None]) / (far - near)[:, None] * num
        assert torch.equal(position.floor(), torch.arange(num).float().expand(2, num))
        edges = interval_edges(tdist, near, far)
        assert torch.allclose(edges.diff(dim=-1).sum(dim=-1), far - near)
        assert ((edges[:, :-1] <= tdist) & (tdist <= edges[:, 1:])).all()


def test_importance_samples_gather_around_the_heavy_sample() -> None:
    edges = torch.linspace(0, 1, 21).expand(4, 21)
    weights = torch.zeros(4, 20)
    weights[:, 8] = 1.0
    tdist = resample(edges, weights, 64, torch.rand(4))
    assert (tdist.diff(dim=-1) >= 0).all()
    # The sample's own stretch and one half share on either side: 0.35 to 0.5.
    assert ((tdist > 0.35) & (tdist < 0.5)).float().mean() > 0.97
    assert (tdist.mean(dim=-1) - 0.425).abs().max() < 0.01


def test_uniform_or_absent_weights_spread_samples_evenly() -> None:
    edges = torch.linspace(2, 4, 11).expand(1, 11)
    expected = 2 + 2 * (torch.arange(8) + 0.5) / 8
    for weights in (torch.zeros(1, 10), torch.full((1, 10), 0.1)):
        spread = resample(edges, weights, 8, 0.5)
        assert torch.allclose(spread[0], expected, atol=0.07)
    assert torch.allclose(resample(edges, torch.zeros(1, 10), 8, 0.5)[0], expected, atol=1e-4)


def test_a_ray_of_no_length_stays_finite() -> None:
    assert torch.equal(resample(torch.zeros(1, 5), torch.zeros(1, 4), 3, 0.5), torch.zeros(1, 3))
