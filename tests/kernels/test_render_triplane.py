"""Rendering of triplanes by the reference against closed forms and separate operations.

Largest differences allowed, relative to the largest expected value, and the worst measured.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from scaledreamer.generators._triplane import TriplaneField
from scaledreamer.interfaces import DensityKind, MLPWeights, TriplaneStructure
from scaledreamer.kernels.composite import composite
from scaledreamer.kernels.render_triplane import (
    Draw,
    Rendered,
    Stratified,
    render_triplane,
)
from scaledreamer.rendering.density import to_density
from scaledreamer.rendering.sampling import interval_edges, stratified
from scaledreamer.rng import StepRng
from tests.kernels.triplanes import (
    BETA,
    TINY,
    Case,
    inputs,
    leaves,
    rays,
    results,
    structure,
    with_leaves,
    worst,
)

TOLERANCES = {
    "separate operations": 1e-14,  # 9.0e-16, float64
}
DIFFERENTIABLE = ("rgb", "opacity", "depth")


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checker of shapes, which `torch.compile` can't trace and errors come behind."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def _uniform(kind: DensityKind, sdf_bias: float, colour_bias: tuple[float, ...]) -> Any:
    """A structure whose decoders say the same everywhere."""
    zeros = torch.zeros(1, 3, 2, 2, 4, dtype=torch.float64)

    def decoder(*bias: float) -> MLPWeights:
        return MLPWeights((zeros[:, 0, 0, 0, :, None].expand(1, 4, len(bias)),), (
            torch.tensor([bias], dtype=torch.float64),
        ))  # fmt: skip

    return TriplaneStructure(zeros, decoder(sdf_bias), decoder(*colour_bias), 1.0, 0.3, kind)


def _one_ray(near: float, far: float) -> dict[str, Any]:
    """Along -x through the centre, from x = 2."""
    zeros = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    axis = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    ends = (torch.full((1, 1, 1), end, dtype=torch.float64) for end in (near, far))
    names = ("origins", "directions", "near", "far")
    tensors = (zeros + 2 * axis, zeros - axis, *ends)
    return {**dict(zip(names, tensors, strict=True)), "scene": torch.zeros(1, dtype=torch.int64)}


def test_a_slab_of_constant_density_follows_beer_and_lambert() -> None:
    made = replace(_uniform("density", 0.7, (-1.0, 0.0, 2.0)), sdf_scale=1e12)
    out = render_triplane(made, **_one_ray(1.5, 2.25), beta=1.0, samples=Stratified(9, 0.25))
    opacity = 1 - math.exp(-math.log1p(math.exp(0.7)) * 0.75)
    assert out.opacity.item() == pytest.approx(opacity, abs=1e-10)
    colour = torch.sigmoid(torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64))
    assert torch.allclose(out.rgb[0, 0, 0], opacity * colour, atol=1e-10)


def test_a_soft_ball_has_the_opacity_of_its_integral() -> None:
    beta, radius = 0.2, 0.3
    made = _uniform("sdf", 0.0, (0.0, 0.0, 0.0))
    samples = Stratified(2000)
    out = render_triplane(made, **_one_ray(1, 3), beta=beta, samples=samples, with_normals=True)
    inside = radius / beta - 0.5 * (1 - math.exp(-radius / beta))
    outside = 0.5 * (1 - math.exp(-(1 - radius) / beta))
    opacity = 1 - math.exp(-2 * (inside + outside))
    assert out.opacity.item() == pytest.approx(opacity, abs=1e-5)
    # By symmetry the light that is stopped before the centre sees the normal +x, the rest -x.
    front = 1 - math.exp(-(inside + outside))
    assert out.normal is not None
    assert out.normal[0, 0, 0, 0].item() == pytest.approx(2 * front - opacity, abs=1e-5)
    assert out.normal[0, 0, 0, 1:].abs().max() == 0


def test_normals_point_outwards_in_both_kinds() -> None:
    for kind in ("sdf", "density"):
        made = replace(_uniform(kind, 0.0, (0.0, 0.0, 0.0)), sdf_scale=0.01)
        out = render_triplane(
            made, **_one_ray(1, 3), beta=0.01, samples=Stratified(64), with_normals=True
        )
        assert out.normal is not None
        assert out.normal[0, 0, 0, 0] > 0.95


@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_matches_separate_operations(kind: DensityKind) -> None:
    case = Case(6, (8,), (5,), kind, scene=(0, 0, 1, 1), num_scenes=2, num_samples=9)
    made, views = inputs(case, torch.float64, "cpu")
    offset = torch.rand(views["near"].shape, dtype=torch.float64)

    def separate() -> Rendered:
        field = TriplaneField(made)
        flat = {name: views[name].reshape(2, 30, *views[name].shape[3:]) for name in
                ("origins", "directions", "near", "far")}  # fmt: skip
        tdist = stratified(flat["near"], flat["far"], 9, offset.view(2, 30))
        points = flat["origins"][..., None, :] + tdist[..., None] * flat["directions"][..., None, :]
        values, colours = field.geometry_and_colour(points.flatten(1, 2).clamp(-1, 1))
        out = composite(
            to_density(values, field.density_kind, BETA).view_as(tdist),
            interval_edges(tdist, flat["near"], flat["far"]).diff(dim=-1),
            colours.view(*tdist.shape, 3),
            tdist,
        )
        shape = views["near"].shape
        return Rendered(
            out.rgb.view(*shape, 3), out.opacity.view(shape), out.depth.view(shape), None
        )

    def fused() -> Rendered:
        return render_triplane(made, **views, beta=BETA, samples=Stratified(9, offset))

    found, expected = (results(one, made, DIFFERENTIABLE) for one in (fused, separate))
    assert worst(found, expected) < TOLERANCES["separate operations"]


def test_reference_gradients() -> None:
    for kind in ("sdf", "density"):
        case = replace(TINY, channels=2, sdf_hidden=(3,), colour_hidden=(2,), kind=kind)
        _gradcheck(case, torch.device("cpu"), fast_mode=False)


def _gradcheck(case: Case, device: torch.device, fast_mode: bool) -> None:
    made, views = inputs(case, torch.float64, device)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        return render_triplane(
            with_leaves(made, values), **views, beta=BETA,
            samples=Stratified(case.num_samples),
        )[:3]  # fmt: skip

    torch.autograd.gradcheck(run, tuple(leaves(made).values()), fast_mode=fast_mode)


def test_normals_carry_no_gradient() -> None:
    made, views = inputs(TINY, torch.float64, "cpu")
    out = render_triplane(made, **views, beta=BETA, samples=Stratified(3), with_normals=True)
    assert out.normal is not None
    assert not out.normal.requires_grad


def test_a_draw_repeats_the_generator_of_the_step() -> None:
    rng = StepRng(3, (1 << 31) + 5, torch.tensor([7, (1 << 40) + 123]))
    scene, near = torch.tensor([1, 0, 1, 1]), torch.zeros(4, 3, 5)
    offsets = Draw.of(rng, "render/stratified", scene, 15).offsets(near).flatten(1)
    expected = rng.uniform("render/stratified", 45)
    for view, (owner, place) in enumerate(((1, 0), (0, 0), (1, 1), (1, 2))):
        assert torch.equal(offsets[view], expected[owner, 15 * place : 15 * place + 15])


# Errors


def _bad(good: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    near, scene, made = good["near"], good["scene"], good["structure"]
    draw = Draw((1, 2), 3, scene, scene)
    longer = replace(made.sdf_decoder, biases=made.sdf_decoder.biases[:1])
    wrong_row = MLPWeights((made.sdf_decoder.weights[0][:, :3], made.sdf_decoder.weights[1]),
                           made.sdf_decoder.biases)  # fmt: skip
    return [
        ("near", {"near": near[0]}),
        ("far", {"far": good["far"].double()}),
        ("origins", {"origins": good["origins"][..., :2]}),
        ("directions", {"directions": good["directions"].to("meta")}),
        ("scene", {"scene": scene.int()}),
        ("scene", {"scene": scene.repeat(2)}),
        ("scene", {"scene": scene - 1}),
        ("scene", {"scene": scene + 1}),
        ("beta", {"beta": 0.0}),
        ("precision", {"precision": "fp8"}),
        ("min_transmittance", {"min_transmittance": 1.0}),
        ("samples", {"samples": near}),
        ("samples", {"samples": near[..., None].double()}),
        ("samples.num", {"samples": Stratified(0)}),
        ("samples.offset", {"samples": Stratified(3, 1.5)}),
        ("samples.offset", {"samples": Stratified(3, near[0])}),
        ("samples.offset.first", {"samples": Stratified(3, replace(draw, first=scene.int()))}),
        ("structure.planes", {"structure": replace(made, planes=made.planes[:, :2])}),
        ("structure.planes", {"structure": replace(made, planes=made.planes.half())}),
        ("structure.sdf_decoder", {"structure": replace(made, sdf_decoder=longer)}),
        (
            r"structure.sdf_decoder.weights\[0\]",
            {"structure": replace(made, sdf_decoder=wrong_row)},
        ),
        ("structure.density_kind", {"structure": replace(made, density_kind="fog")}),
        (
            "structure.sdf_scale",
            {"structure": replace(made, density_kind="density", sdf_scale=0.0)},
        ),
    ]


def test_wrong_arguments_are_named(untyped: None) -> None:
    good: dict[str, Any] = {"structure": structure(TINY, torch.float32, "cpu"), "beta": BETA}
    good |= {**rays(TINY, torch.float32, "cpu"), "samples": Stratified(3)}
    render_triplane(**good)
    for name, change in _bad(good):
        with pytest.raises(ValueError, match=f"^{name}: got"):
            render_triplane(**{**good, **change})


def test_scenes_that_are_missing_need_no_wait(
    untyped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU and a traced graph get in place of the ValueError; here it is in time."""
    good: dict[str, Any] = {"structure": structure(TINY, torch.float32, "cpu"), "beta": BETA}
    good |= {**rays(TINY, torch.float32, "cpu"), "samples": Stratified(3)}
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    render_triplane(**good)
    with pytest.raises(RuntimeError, match="scene: got an index out of range; expected 0 to 0"):
        render_triplane(**{**good, "scene": good["scene"] + 1})
