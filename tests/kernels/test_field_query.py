"""A triplane field at points against closed forms, the path of separate operations, and its forms.

Largest differences allowed, relative to the largest expected value, and the worst measured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from scaledreamer.generators._triplane import TriplaneField
from scaledreamer.interfaces import DensityKind, MLPWeights, TriplaneStructure
from scaledreamer.kernels._triplane import structure as shared
from scaledreamer.kernels.backend import use_backend
from scaledreamer.kernels.field_query import Queried, field_query
from tests.kernels.triplanes import (
    CASES,
    Case,
    alerts,
    leaves,
    poisoned,
    results,
    structure,
    with_leaves,
    worst,
)

TOLERANCES = {
    "separate operations": 1e-14,  # 4.8e-16, reference in float64
    "float64": 1e-14,  # 5.2e-16, Triton interpreted like those below
    "float32": 8e-6,  # 4.7e-6
    "half": 4e-3,  # 1.1e-3, float16 in bfloat16's place
}
OUTPUTS = ("geometry", "rgb", "gradient")
SMALL = Case(num_scenes=2)


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checker of shapes, which `torch.compile` can't trace and errors come behind."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def _points(case: Case, num: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Some lie outside the box, on its faces and in the centre; none where the slope jumps."""
    points = 1.2 * (torch.rand(case.num_scenes, num, 3) * 2 - 1)
    points[:, 0], points[:, 1] = 0.01, torch.tensor([1.0, -1.0, 0.3])
    return points.to(device, dtype)


def _ramps(kind: DensityKind) -> TriplaneStructure:
    """Six channels, each one coordinate of one plane; the decoder adds them with weights 1 to 6."""
    size = 8
    centres = (2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1
    planes = torch.zeros(1, 3, size, size, 6, dtype=torch.float64)
    for plane in range(3):
        planes[0, plane, :, :, 2 * plane] = centres[None, :]
        planes[0, plane, :, :, 2 * plane + 1] = centres[:, None]
    weight = torch.arange(1.0, 7.0, dtype=torch.float64)[None, :, None]
    sdf = MLPWeights((weight,), (weight.new_zeros(1, 1),))
    colour = MLPWeights((weight.new_zeros(1, 6, 3),), (weight.new_zeros(1, 3),))
    return TriplaneStructure(planes, sdf, colour, 0.25, 0.5, kind)


@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_linear_planes_have_their_slope_as_gradient(kind: DensityKind) -> None:
    points = torch.rand(1, 20, 3, dtype=torch.float64) * 1.7 - 0.85
    out = field_query(_ramps(kind), points, with_gradient=True)
    # Planes (x, y), (x, z), (y, z): x is seen with weights 1 and 3, y with 2 and 5, z with 4 and 6.
    slope = torch.tensor([4.0, 7.0, 10.0], dtype=torch.float64)
    radius = points.norm(dim=-1)
    outward = points / radius[..., None]
    if kind == "sdf":
        geometry = 0.25 * (points @ slope) + radius - 0.5
        gradient = 0.25 * slope + outward
    else:
        z = points @ slope + (0.5 - radius) / 0.25
        geometry = torch.log1p(torch.exp(z))
        gradient = torch.sigmoid(z)[..., None] * (slope - outward / 0.25)
    assert out.gradient is not None
    assert torch.allclose(out.geometry, geometry)
    assert torch.allclose(out.gradient, gradient)


def test_beyond_the_outermost_texels_planes_add_no_slope() -> None:
    points = torch.tensor([[[0.99, -0.95, 0.2], [0.0, 3.0, 0.0]]], dtype=torch.float64)
    out = field_query(_ramps("sdf"), points, with_colour=False, with_gradient=True)
    assert out.rgb is None
    assert out.gradient is not None
    planes = out.gradient - points / points.norm(dim=-1, keepdim=True)
    expected = 0.25 * torch.tensor([[[0.0, 0.0, 10.0], [4.0, 0.0, 10.0]]], dtype=torch.float64)
    assert torch.allclose(planes, expected)


@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_matches_separate_operations(kind: DensityKind) -> None:
    case = Case(6, (8, 8), (5, 5), kind, num_scenes=2)
    made, points = structure(case, torch.float64, "cpu"), _points(case, 30, torch.float64)

    def separate() -> Queried:
        return Queried(*TriplaneField(made).geometry_and_colour(points), None)

    found, expected = (
        results(one, made, ("geometry", "rgb"))
        for one in (lambda: field_query(made, points), separate)
    )
    assert worst(found, expected) < TOLERANCES["separate operations"]


def _gradcheck(case: Case, num: int, device: torch.device | str, fast_mode: bool) -> None:
    made = structure(case, torch.float64, device)
    points = _points(case, num, torch.float64, device)

    def run(*values: Tensor) -> Any:
        return field_query(with_leaves(made, values), points, True, True, precision="exact")

    torch.autograd.gradcheck(run, tuple(leaves(made).values()), fast_mode=fast_mode)


@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_reference_gradients(kind: DensityKind) -> None:
    _gradcheck(Case(2, (3, 3), (2, 2), kind, texels=3), 4, "cpu", fast_mode=False)


def test_without_recording_the_gradient_is_there() -> None:
    made, points = structure(SMALL, torch.float64, "cpu"), _points(SMALL, 5, torch.float64)
    with torch.no_grad():
        out = field_query(made, points, with_gradient=True)
    again = field_query(made, points, with_gradient=True)
    for one, two in zip(out, again, strict=True):
        assert one is not None
        assert two is not None
        assert not one.requires_grad
        assert torch.equal(one, two)


# Triton


def _both(
    case: Case, num: int, device: torch.device, dtype: torch.dtype, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results of the fused form, in poisoned memory, and of the reference in float64."""
    found = []
    for used, form in ((dtype, "triton"), (torch.float64, "reference")):
        torch.manual_seed(0)
        made, points = structure(case, used, device), _points(case, num, used, device)

        def run(made: Any = made, points: Any = points) -> Queried:
            return field_query(made, points, with_gradient=True, **options)

        if form == "triton":
            with poisoned():
                found.append(results(run, made, OUTPUTS))
        else:
            with use_backend("reference"):
                found.append(results(run, made, OUTPUTS))
    return found[0], found[1]


@pytest.mark.interpreted
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fused_matches_the_reference(case: Case, triton_device: torch.device) -> None:
    found, expected = _both(case, 130, triton_device, torch.float32, precision="exact")
    assert worst(found, expected) < TOLERANCES["float32"]


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", ["sdf", "density"])
@pytest.mark.parametrize("hidden", [(16,), (16, 16)], ids=str)
def test_fused_is_exact_in_float64(
    kind: DensityKind, hidden: tuple[int, ...], triton_device: torch.device
) -> None:
    case = Case(16, hidden, hidden, kind, num_scenes=2)
    found, expected = _both(case, 77, triton_device, torch.float64, precision="exact")
    assert worst(found, expected) < TOLERANCES["float64"]


@pytest.mark.interpreted
def test_fused_gradients(triton_device: torch.device) -> None:
    _gradcheck(Case(), 16, triton_device, fast_mode=True)


@pytest.mark.interpreted
def test_fused_in_half_precision(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shared.PRECISIONS, "bf16", "fp16")
    found, expected = _both(Case(), 64, triton_device, torch.float32, precision="bf16")
    assert worst(found, expected) < TOLERANCES["half"]


@pytest.mark.interpreted
def test_fused_without_colour_or_gradient(triton_device: torch.device) -> None:
    made = structure(SMALL, torch.float32, triton_device)
    points = _points(SMALL, 9, torch.float32, triton_device)

    def run() -> Queried:
        return field_query(made, points, with_colour=False, precision="exact")

    with poisoned():
        found = results(run, made, ("geometry",))
    with use_backend("reference"):
        expected = results(run, made, ("geometry",))
    assert found.keys() == {"geometry"} | {f"d {name}" for name in leaves(made)}
    assert worst(found, expected) < TOLERANCES["float32"]


@pytest.mark.interpreted
def test_fused_eikonal_loss_trains(triton_device: torch.device) -> None:
    """A loss of the gradient alone reaches planes and weights as it does in the reference."""
    made = structure(SMALL, torch.float64, triton_device)
    points = _points(SMALL, 20, torch.float64, triton_device)

    def gradients() -> list[Tensor]:
        out = field_query(made, points, False, True, precision="exact")
        assert out.gradient is not None
        loss = (out.gradient.norm(dim=-1) - 1).square().mean()
        named = leaves(made)
        inputs = [value for name, value in named.items() if "colour" not in name]
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        return [
            torch.zeros_like(one) if grad is None else grad
            for one, grad in zip(inputs, grads, strict=True)
        ]

    found = gradients()
    with use_backend("reference"):
        expected = gradients()
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(found, expected, strict=True))
    assert found[0].any()


@pytest.mark.interpreted
def test_fused_takes_any_memory_layout(triton_device: torch.device) -> None:
    made = structure(SMALL, torch.float32, triton_device)
    points = _points(SMALL, 9, torch.float32, triton_device)
    straight = field_query(made, points)
    turned = [value.detach().mT.contiguous().mT for value in leaves(made).values()]
    out = field_query(with_leaves(made, turned), points.mT.contiguous().mT)
    assert torch.equal(out.geometry, straight.geometry)
    assert out.rgb is not None
    assert straight.rgb is not None
    assert torch.equal(out.rgb, straight.rgb)


@pytest.mark.interpreted
def test_fused_gradients_say_that_they_do_not_repeat(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaledreamer.kernels.field_query import fused

    found = alerts(monkeypatch, fused)
    made = structure(SMALL, torch.float32, triton_device)
    points = _points(SMALL, 2, torch.float32, triton_device)
    results(lambda: field_query(made, points), made, ("geometry",))
    assert found == ["field_query_backward"]


@pytest.mark.interpreted
def test_fused_no_points(triton_device: torch.device) -> None:
    made = structure(SMALL, torch.float32, triton_device)
    points = torch.zeros(2, 0, 3, device=triton_device)
    found = results(lambda: field_query(made, points), made, ("geometry", "rgb"))
    assert found["geometry"].shape == (2, 0)
    assert not any(value.any() for value in found.values())


@pytest.mark.interpreted
def test_operators_are_well_formed(triton_device: torch.device, untyped: None) -> None:
    from scaledreamer.kernels.field_query import fused

    made = structure(SMALL, torch.float32, triton_device)
    points = _points(SMALL, 5, torch.float32, triton_device)
    tensors = (made.planes, shared.pack(made).detach().requires_grad_(), points)
    settings = ((16, 16, 1), False, 0.25, 0.5, "ieee", True, True)
    torch.library.opcheck(fused.query, (*tensors, *settings))
    detached = [value.detach() for value in tensors]
    grads = (torch.randn(2, 5).to(triton_device), points, points)
    torch.library.opcheck(fused.query_gradients, (*grads, *detached, *settings))


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_code_matches(triton_device: torch.device, untyped: None) -> None:
    made = structure(SMALL, torch.float32, triton_device)
    points = _points(SMALL, 5, torch.float32, triton_device)

    def run() -> Queried:
        return field_query(made, points, with_gradient=True)

    expected = results(run, made, OUTPUTS)
    found = results(torch.compile(run, fullgraph=True, backend="aot_eager"), made, OUTPUTS)
    assert worst(found, expected) == 0


# Errors


def test_wrong_arguments_are_named(untyped: None) -> None:
    made, points = structure(SMALL, torch.float32, "cpu"), torch.zeros(2, 5, 3)
    field_query(made, points)
    for bad in (points[0], points[..., :2], points[:1], points.double(), points.to("meta")):
        with pytest.raises(ValueError, match=r"^points: got"):
            field_query(made, bad)
    with pytest.raises(ValueError, match=r"^precision: got 'fp8'"):
        field_query(made, points, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^structure.planes: got"):
        field_query(replace(made, planes=made.planes[:, :2]), points)


@pytest.mark.interpreted
def test_what_the_kernel_does_not_take_is_named(triton_device: torch.device) -> None:
    points = torch.zeros(1, 5, 3, device=triton_device)
    for case, name in ((Case(20), "planes"), (Case(sdf_hidden=(24,)), "sdf_decoder")):
        made = structure(case, torch.float32, triton_device)
        with pytest.raises(ValueError, match=rf"^structure.{name}: got .*use_backend"):
            field_query(made, points)
    with pytest.raises(ValueError, match=r"^precision: got 'tf32' for float64"):
        field_query(structure(Case(), torch.float64, triton_device), points.double())
