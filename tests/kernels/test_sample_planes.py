"""Plane sampling against a loop over texels and against planes whose features are known.

Largest differences allowed, relative to the largest expected value, and the worst measured.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor

from scaledreamer.kernels.backend import Backend, use_backend
from scaledreamer.kernels.sample_planes import sample_planes

TOLERANCES = {
    "reference": 1e-14,  # 3.1e-16, in float64
    "numba": 1e-6,  # 3.0e-7, in float32 like those below
    "numba planes": 2e-6,  # 7.1e-7
    "numba points": 4e-6,  # 1.1e-6
}
DTYPES = {"reference": torch.float64, "numba": torch.float32}
PAIRS = ((0, 1), (0, 2), (1, 2))


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes aren't checked: `torch.compile` can't trace the checker."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(params=["reference", "numba"])
def form(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "numba":
        pytest.importorskip("numba")
    with use_backend(request.param):
        yield request.param


def _assert_close(found: Tensor, expected: Tensor, tolerance: str) -> None:
    assert found.shape == expected.shape
    if expected.numel():
        error = (found.double() - expected.double()).abs().max() / expected.abs().max()
        assert error <= TOLERANCES[tolerance]


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
def test_matches_a_loop_over_texels(
    form: Backend, size: int, channels: int, num_points: int
) -> None:
    planes = torch.randn(2, 3, size, size, channels, dtype=torch.float64)
    points = torch.rand(2, num_points, 3, dtype=torch.float64) * 2 - 1
    planes, points = planes.to(DTYPES[form]), points.to(DTYPES[form])
    expected = _by_hand(planes.double(), points.double())
    _assert_close(sample_planes(planes, points), expected, form)


def test_a_transposed_memory_layout_changes_nothing(form: Backend) -> None:
    planes = torch.randn(2, 3, 6, 5, 6).transpose(3, 4).to(DTYPES[form])
    points = torch.rand(2, 3, 11, dtype=DTYPES[form]).transpose(1, 2) * 2 - 1
    expected = sample_planes(planes.contiguous(), points.contiguous())
    assert torch.equal(sample_planes(planes, points), expected)


@pytest.mark.parametrize("plane", [0, 1, 2])
@pytest.mark.parametrize("is_height", [False, True])
def test_a_ramp_along_one_side_recovers_its_coordinate(
    form: Backend, plane: int, is_height: bool
) -> None:
    size = 8
    centres = (2 * torch.arange(size, dtype=DTYPES[form]) + 1) / size - 1
    planes = torch.zeros(1, 3, size, size, 1, dtype=DTYPES[form])
    planes[0, plane, :, :, 0] = centres[:, None] if is_height else centres[None, :]
    points = torch.rand(1, 50, 3, dtype=DTYPES[form]) * 1.7 - 0.85  # between the outer centres
    axis = PAIRS[plane][int(is_height)]
    _assert_close(sample_planes(planes, points)[..., 0], points[..., axis], form)


def test_points_outside_take_the_border(form: Backend) -> None:
    planes = torch.randn(1, 3, 4, 4, 2, dtype=DTYPES[form])
    outside = torch.tensor([[[1.0, 3.0, -2.0], [1e30, -1e30, 0.3]]], dtype=DTYPES[form])
    assert torch.equal(sample_planes(planes, outside), sample_planes(planes, outside.clamp(-1, 1)))


def test_gradients() -> None:
    planes = torch.randn(2, 3, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    # Away from texel centres, where the bilinear surface has a kink.
    cells = torch.randint(0, 3, (2, 6, 3)) + torch.rand(2, 6, 3, dtype=torch.float64) * 0.8 + 0.1
    points = (2 * (cells + 0.5) / 4 - 1).requires_grad_()
    assert torch.autograd.gradcheck(sample_planes, (planes, points))


def _gradients(planes: Tensor, points: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    inputs = planes.requires_grad_(), points.requires_grad_()
    grad_planes, grad_points = torch.autograd.grad(sample_planes(*inputs), inputs, grad)
    return grad_planes, grad_points


@pytest.mark.parametrize(
    ("num_scenes", "num_points", "size", "channels"),
    [(1, 1, 1, 1), (2, 33, 2, 3), (3, 101, 9, 16), (1, 257, 33, 5)],
)
def test_numba_gradients_are_those_of_the_reference(
    num_scenes: int, num_points: int, size: int, channels: int
) -> None:
    pytest.importorskip("numba")
    planes = torch.randn(num_scenes, 3, size, size, channels)
    points = torch.rand(num_scenes, num_points, 3) * 2.4 - 1.2
    grad = torch.randn(num_scenes, channels, num_points).transpose(1, 2)
    expected = _gradients(planes.double(), points.double(), grad.double())
    with use_backend("numba"):
        found = _gradients(planes, points, grad)
    _assert_close(found[0], expected[0], "numba planes")
    if size == 1:
        assert not found[1].any()
        assert not expected[1].any()
    else:
        _assert_close(found[1], expected[1], "numba points")


@pytest.mark.parametrize("num_parts", [2, 3, 7])
@pytest.mark.parametrize("num_scenes", [1, 2, 4])
def test_any_number_of_threads_gives_the_same_gradient(num_parts: int, num_scenes: int) -> None:
    pytest.importorskip("numba")
    from scaledreamer.kernels.sample_planes import numba_cpu

    shape = (num_scenes, 3, 5, 5, 4)
    points, grad = torch.rand(num_scenes, 23, 3) * 2 - 1, torch.randn(num_scenes, 23, 4)
    with use_backend("numba"):
        expected, _ = _gradients(torch.zeros(shape), points.clone(), grad)
    found = torch.zeros(shape)
    spare = torch.full((num_parts - 1, *shape[1:]), math.nan)
    numba_cpu._backward_planes(
        points.numpy(), grad.numpy(), found.numpy(), spare.numpy(), num_parts
    )
    _assert_close(found, expected, "numba planes")


def test_only_the_gradients_that_are_needed_are_made() -> None:
    pytest.importorskip("numba")
    with use_backend("numba"):
        for needed in (0, 1):
            inputs = [torch.randn(1, 3, 4, 4, 2), torch.rand(1, 5, 3)]
            inputs[needed].requires_grad_()
            sample_planes(*inputs).sum().backward()
            assert inputs[needed].grad is not None
            assert inputs[1 - needed].grad is None


@pytest.mark.parametrize(("num_scenes", "num_points"), [(2, 0), (0, 3)])
def test_nothing_to_sample_gives_nothing(form: Backend, num_scenes: int, num_points: int) -> None:
    if form == "reference" and num_scenes == 0:
        pytest.skip("grid_sample wants a scene")
    planes = torch.randn(num_scenes, 3, 4, 4, 2, dtype=DTYPES[form], requires_grad=True)
    points = torch.zeros(num_scenes, num_points, 3, dtype=DTYPES[form])
    out = sample_planes(planes, points)
    assert out.shape == (num_scenes, num_points, 2)
    out.sum().backward()
    assert planes.grad is not None
    assert not planes.grad.any()


def test_numba_reads_no_texel_that_is_not_there() -> None:
    """Not-a-number counts as the first texel, as in the reference's forward, and has no slope."""
    pytest.importorskip("numba")
    nan = math.nan
    points = torch.tensor([[[nan, 0.3, 0.1], [0.2, nan, -0.4], [nan, nan, nan]]])
    planes = torch.randn(1, 3, 4, 4, 2)
    with use_backend("numba"):
        out = sample_planes(planes.requires_grad_(), points.requires_grad_())
        replaced = sample_planes(planes, points.detach().nan_to_num(nan=-1.0))
    assert torch.equal(out, replaced)
    out.sum().backward()
    assert planes.grad is not None
    assert points.grad is not None
    assert planes.grad.sum().item() == pytest.approx(3 * 3 * 2)
    assert not points.grad[torch.isnan(points)].any()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_code_that_samples_planes_runs(untyped: None) -> None:
    pytest.importorskip("numba")
    planes, points = torch.randn(1, 3, 4, 4, 2), torch.rand(1, 5, 3)
    with use_backend("numba"):
        traced = torch.compile(lambda a, b: 2 * sample_planes(a, b), backend="eager")
        assert torch.equal(traced(planes, points), 2 * sample_planes(planes, points))


def test_wrong_arguments_are_named() -> None:
    planes, points = torch.zeros(2, 3, 4, 4, 2), torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"^planes: got"):
        sample_planes(planes.half(), points)
    for bad in (points.double(), points.to("meta")):
        with pytest.raises(ValueError, match=r"^points: got"):
            sample_planes(planes, bad)


def test_pytorch_keeps_its_number_of_threads() -> None:
    program = """
import torch
torch.set_num_threads(1)
from scaledreamer.kernels.backend import use_backend
from scaledreamer.kernels.sample_planes import sample_planes
planes = torch.randn(1, 3, 4, 4, 2, requires_grad=True)
with use_backend("numba"):
    sample_planes(planes, torch.rand(1, 50, 3)).sum().backward()
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
