"""Plane sampling against a loop over texels and against planes whose features are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scaledreamer.kernels.sample_planes import sample_planes

PAIRS = ((0, 1), (0, 2), (1, 2))


def _by_hand(planes: Tensor, points: Tensor) -> Tensor:
    num_scenes, _, size, _, channels = planes.shape
    out = torch.zeros(num_scenes, points.shape[1], channels, dtype=planes.dtype)
    for scene in range(num_scenes):
        for n, point in enumerate(points[scene].tolist()):
            for plane, (across, along) in enumerate(PAIRS):
                column, row = (((point[axis] + 1) * size - 1) / 2 for axis in (across, along))
                left, top = math.floor(column), math.floor(row)
                for x, y in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
                    share = (1 - abs(column - x)) * (1 - abs(row - y))
                    inside = [min(max(i, 0), size - 1) for i in (y, x)]
                    out[scene, n] += share * planes[scene, plane, inside[0], inside[1]]
    return out


@pytest.mark.parametrize(("size", "channels", "num_points"), [(1, 1, 1), (4, 3, 9), (7, 5, 20)])
def test_matches_a_loop_over_texels(size: int, channels: int, num_points: int) -> None:
    planes = torch.randn(2, 3, size, size, channels, dtype=torch.float64)
    points = torch.rand(2, num_points, 3, dtype=torch.float64) * 2 - 1
    assert torch.allclose(sample_planes(planes, points), _by_hand(planes, points))


def test_a_transposed_memory_layout_changes_nothing() -> None:
    planes = torch.randn(2, 3, 6, 5, 6).transpose(3, 4)
    points = torch.rand(2, 11, 3) * 2 - 1
    expected = sample_planes(planes.contiguous(), points)
    assert torch.equal(sample_planes(planes, points), expected)


@pytest.mark.parametrize("plane", [0, 1, 2])
@pytest.mark.parametrize("is_height", [False, True])
def test_a_ramp_along_one_side_recovers_its_coordinate(plane: int, is_height: bool) -> None:
    size = 8
    centres = (2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1
    planes = torch.zeros(1, 3, size, size, 1, dtype=torch.float64)
    planes[0, plane, :, :, 0] = centres[:, None] if is_height else centres[None, :]
    points = torch.rand(1, 50, 3, dtype=torch.float64) * 1.7 - 0.85  # between the outer centres
    axis = PAIRS[plane][int(is_height)]
    assert torch.allclose(sample_planes(planes, points)[..., 0], points[..., axis])


def test_points_outside_take_the_border() -> None:
    planes = torch.randn(1, 3, 4, 4, 2)
    outside = torch.tensor([[[1.0, 3.0, -2.0]]])
    assert torch.equal(sample_planes(planes, outside), sample_planes(planes, outside.clamp(-1, 1)))


def test_gradients() -> None:
    planes = torch.randn(2, 3, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    # Away from texel centres, where the bilinear surface has a kink.
    cells = torch.randint(0, 3, (2, 6, 3)) + torch.rand(2, 6, 3, dtype=torch.float64) * 0.8 + 0.1
    points = (2 * (cells + 0.5) / 4 - 1).requires_grad_()
    assert torch.autograd.gradcheck(sample_planes, (planes, points))


def test_wrong_arguments_are_named() -> None:
    planes, points = torch.zeros(2, 3, 4, 4, 2), torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"^planes: got"):
        sample_planes(planes.half(), points)
    for bad in (points.double(), points.to("meta")):
        with pytest.raises(ValueError, match=r"^points: got"):
            sample_planes(planes, bad)
