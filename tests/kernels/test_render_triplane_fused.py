"""Rendering of triplanes by the fused kernels against the reference.

Largest differences allowed, relative to the largest expected value, and the worst measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from scaledreamer.interfaces import DensityKind
from scaledreamer.kernels._triplane import structure as shared
from scaledreamer.kernels.backend import use_backend
from scaledreamer.kernels.render_triplane import (
    Draw,
    Rendered,
    Stratified,
    reference,
    render_triplane,
)
from scaledreamer.rng import StepRng
from tests.kernels.triplanes import (
    BETA,
    CASES,
    TINY,
    Case,
    alerts,
    inputs,
    leaves,
    poisoned,
    rays,
    results,
    structure,
    with_leaves,
    worst,
)

TOLERANCES = {
    "float64": 1e-13,  # 2.3e-14, interpreted like those below
    "float32": 5e-6,  # 2.5e-6
    # 2.1e-3, float16 in bfloat16's place; 4.2e-2 in a normal where a ReLU switches.
    "half": 6e-2,
}
DIFFERENTIABLE = ("rgb", "opacity", "depth")


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checker of shapes, which `torch.compile` can't trace and errors come behind."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def _gradcheck(case: Case, device: torch.device, fast_mode: bool) -> None:
    made, views = inputs(case, torch.float64, device)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        return render_triplane(
            with_leaves(made, values), **views, beta=BETA,
            samples=Stratified(case.num_samples), precision="exact",
        )[:3]  # fmt: skip

    torch.autograd.gradcheck(run, tuple(leaves(made).values()), fast_mode=fast_mode)


def _samples(mode: str, case: Case, views: dict[str, Tensor]) -> Any:
    near, far = views["near"], views["far"]
    if mode == "given":
        shares = torch.rand(*near.shape, case.num_samples).sort(dim=-1).values.to(near)
        return near[..., None] + (far - near)[..., None] * shares
    if mode == "offsets":
        return Stratified(case.num_samples, torch.rand(near.shape).to(near))
    if mode == "drawn":
        rng = StepRng(3, (1 << 31) + 5, torch.tensor([(1 << 40) + 9, 7, 8], device=near.device))
        return Stratified(case.num_samples, Draw.of(rng, "a", views["scene"], near[0].numel()))
    return Stratified(case.num_samples, 0.25)


def _both(
    case: Case, device: torch.device, dtype: torch.dtype, mode: str = "constant", **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results of the fused form, in poisoned memory, and of the reference in float64."""
    found = []
    for used, form in ((dtype, "triton"), (torch.float64, "reference")):
        torch.manual_seed(0)
        made, views = structure(case, used, device), rays(case, dtype, device)
        samples = _samples(mode, case, views)
        views = {name: value.to(used) if value.is_floating_point() else value
                 for name, value in views.items()}  # fmt: skip
        if isinstance(samples, Tensor):
            samples = samples.to(used)
        elif isinstance(samples.offset, Tensor):
            samples = Stratified(samples.num, samples.offset.to(used))

        def run(made: Any = made, views: Any = views, samples: Any = samples) -> Rendered:
            return render_triplane(
                made, **views, beta=BETA, samples=samples, with_normals=True, **options
            )

        if form == "triton":
            with poisoned():
                found.append(results(run, made, DIFFERENTIABLE))
        else:
            with use_backend("reference"):
                found.append(results(run, made, DIFFERENTIABLE))
    return found[0], found[1]


@pytest.fixture(params=[True, False], ids=["windowed", "direct"])
def _splat(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without it takes the default, a window."""
    from scaledreamer.kernels.render_triplane import fused

    monkeypatch.setattr(fused, "WINDOWED", request.param)


@pytest.mark.interpreted
@pytest.mark.usefixtures("_splat")
def test_fused_scatters_both_ways(triton_device: torch.device) -> None:
    case = Case(num_samples=6, texels=3)
    found, expected = _both(case, triton_device, torch.float32, precision="exact")
    assert worst(found, expected) < TOLERANCES["float32"]


@pytest.mark.interpreted
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fused_matches_the_reference(case: Case, triton_device: torch.device) -> None:
    found, expected = _both(case, triton_device, torch.float32, precision="exact")
    assert worst(found, expected) < TOLERANCES["float32"]
    unseen = set(range(case.num_scenes)) - set(case.scene)
    for scene in unseen:
        assert not any(
            found[f"d {name}"][scene].any() for name in ("planes", "sdf.weight0", "colour.bias1")
        )


@pytest.mark.interpreted
@pytest.mark.usefixtures("_splat")
@pytest.mark.parametrize("channels", [16, 48])
def test_tiles_that_fit_a_window_and_tiles_that_do_not(
    channels: int, triton_device: torch.device
) -> None:
    from benchmarks.splat_reuse import WINDOWS, in_tiles, reuse
    from scaledreamer.kernels._triplane.fused import WINDOW

    case = Case(channels, kind="density", texels=13, height=4, width=8, num_samples=8, spread=0.05)
    found, expected = _both(case, triton_device, torch.float64, "given", precision="exact")
    assert worst(found, expected) < TOLERANCES["float64"]

    torch.manual_seed(0)
    structure(case, torch.float64, "cpu")
    views = rays(case, torch.float64, "cpu")
    tdist = _samples("given", case, views)[..., None]
    points = views["origins"][..., None, :] + tdist * views["directions"][..., None, :]
    is_hit = (views["far"] > views["near"])[..., None, None].expand(tdist.shape)
    tiles, is_hit = (
        in_tiles(values.flatten(0, 2), (case.height, case.width)) for values in (points, is_hit)
    )
    fits = reuse(tiles.clamp(-1, 1), is_hit[..., 0], case.texels)[f"fits {WINDOW.value}²"]
    assert WINDOW.value in WINDOWS
    assert 0 < fits < 1


@pytest.mark.interpreted
@pytest.mark.usefixtures("_splat")
def test_a_gradient_that_is_not_a_number_reaches_the_planes(triton_device: torch.device) -> None:
    made, views = inputs(TINY, torch.float32, triton_device)
    out = render_triplane(made, **views, beta=BETA, samples=Stratified(3))
    (grad,) = torch.autograd.grad((out.opacity * float("nan")).sum(), made.planes)
    assert grad.isnan().any()


@pytest.mark.interpreted
def test_fused_gradients_say_that_they_do_not_repeat(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaledreamer.kernels.render_triplane import fused

    found = alerts(monkeypatch, fused)
    made, views = inputs(TINY, torch.float32, triton_device)
    results(
        lambda: render_triplane(made, **views, beta=BETA, samples=Stratified(3)), made, ("rgb",)
    )
    assert found == ["render_triplane_backward"]


@pytest.mark.interpreted
@pytest.mark.parametrize("mode", ["given", "offsets", "drawn"])
def test_fused_samples_where_the_reference_does(mode: str, triton_device: torch.device) -> None:
    case = Case(scene=(1, 0), num_scenes=2, num_samples=6)
    found, expected = _both(case, triton_device, torch.float32, mode, precision="accurate")
    assert worst(found, expected) < TOLERANCES["float32"]


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_fused_is_exact_in_float64(kind: DensityKind, triton_device: torch.device) -> None:
    case = Case(16, (16, 16), (16, 16), kind)
    found, expected = _both(case, triton_device, torch.float64, precision="exact")
    assert worst(found, expected) < TOLERANCES["float64"]


@pytest.mark.interpreted
def test_fused_gradients(triton_device: torch.device) -> None:
    _gradcheck(TINY, triton_device, fast_mode=True)


@pytest.mark.interpreted
def test_fused_in_half_precision(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shared.PRECISIONS, "bf16", "fp16")
    case = replace(CASES[0], scene=(0,), num_scenes=1)
    found, expected = _both(case, triton_device, torch.float32, precision="bf16")
    assert worst(found, expected) < TOLERANCES["half"]


@pytest.mark.interpreted
def test_fused_takes_any_memory_layout(triton_device: torch.device) -> None:
    case = Case(scene=(0,), width=4)
    made, views = inputs(case, torch.float32, triton_device)
    samples = Stratified(5, torch.rand(1, 3, 4, device=triton_device))
    straight = render_triplane(made, **views, beta=BETA, samples=samples)
    turned = [value.detach().mT.contiguous().mT for value in leaves(made).values()]
    other = {
        name: value.transpose(1, 2).contiguous().transpose(1, 2) if value.dim() > 1 else value
        for name, value in views.items()
    }
    assert isinstance(samples.offset, Tensor)
    offset = samples.offset.mT.contiguous().mT
    out = render_triplane(
        with_leaves(made, turned), **other, beta=BETA, samples=Stratified(5, offset)
    )
    for one, two in zip(out[:3], straight[:3], strict=True):
        assert torch.equal(one, two)


@pytest.mark.interpreted
def test_fused_gradients_from_one_output(triton_device: torch.device) -> None:
    made, views = inputs(TINY, torch.float32, triton_device)

    def run() -> Rendered:
        return render_triplane(made, **views, beta=BETA, samples=Stratified(3), precision="exact")

    found = results(run, made, ("opacity",))
    with use_backend("reference"):
        expected = results(run, made, ("opacity",))
    assert worst(found, expected) < TOLERANCES["float32"]


@pytest.mark.interpreted
def test_fused_early_termination_keeps_its_bound(triton_device: torch.device) -> None:
    """A patch that is cut behind k samples is the whole of rays that end midway to the next."""
    made, views = inputs(replace(TINY, height=4, width=4), torch.float64, triton_device)
    # Straight down on the middle of the ball, so that every ray fades.
    down = torch.tensor([0.0, 0.0, 1.0]).to(views["origins"]).expand_as(views["origins"])
    views |= {"directions": -down, "origins": 2 * down + 0.1 * torch.rand_like(down)}
    near, far = torch.ones_like(views["near"]), torch.full_like(views["far"], 3.0)
    views |= {"near": near, "far": far}
    tdist = reference.stratified(near, far, 16, 0.5)
    settings: dict[str, Any] = {"beta": BETA / 4, "precision": "exact"}

    def run(bound: float) -> dict[str, Tensor]:
        return results(
            lambda: render_triplane(
                made, **views, samples=tdist, min_transmittance=bound, **settings
            ),
            made,
            DIFFERENTIABLE,
        )

    whole, cut = run(0.0), run(0.1)
    missing = whole["opacity"] - cut["opacity"]
    assert 0 < missing.max() < 0.1
    assert missing.min() >= 0
    assert (whole["rgb"] - cut["rgb"]).abs().max() < 0.1
    errors = []
    for kept in (4, 8, 12):
        views["far"] = 0.5 * (tdist[..., kept - 1] + tdist[..., kept])
        with use_backend("reference"):
            expected = results(
                lambda kept=kept: render_triplane(
                    made, **views, samples=tdist[..., :kept], **settings
                ),
                made,
                DIFFERENTIABLE,
            )
        errors.append(worst(cut, expected))
    assert min(errors) < TOLERANCES["float64"]


@pytest.mark.interpreted
def test_fused_rays_that_miss_see_nothing(triton_device: torch.device) -> None:
    made, views = inputs(TINY, torch.float32, triton_device)
    views["near"], views["far"] = (torch.zeros_like(views["near"]) for _ in range(2))
    with poisoned():
        found = results(
            lambda: render_triplane(
                made, **views, beta=BETA, samples=Stratified(3), with_normals=True
            ),
            made,
            DIFFERENTIABLE,
        )
    assert not any(value.any() for value in found.values())


@pytest.mark.interpreted
def test_operators_are_well_formed(triton_device: torch.device, untyped: None) -> None:
    from scaledreamer.kernels.render_triplane import fused

    made, views = inputs(TINY, torch.float32, triton_device)
    tensors = (made.planes, shared.pack(made).detach().requires_grad_(), *views.values())
    settings = (None, None, 0, 0, 3, 0.5, (16, 16, 1), False, 0.25, 0.5, BETA, "ieee")
    torch.library.opcheck(fused.render, (*tensors, *settings, True, 0.0))
    with torch.no_grad():
        rgb, opacity, depth, _, stop = fused.render(*tensors, *settings, True, 0.0)
    detached = [value.detach() for value in tensors]
    saved = (rgb, opacity, depth, rgb, opacity, depth, stop, *detached)
    torch.library.opcheck(fused.render_gradients, (*saved, *settings))


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_code_matches(triton_device: torch.device, untyped: None) -> None:
    made, views = inputs(TINY, torch.float32, triton_device)
    rng = StepRng(3, 5, torch.tensor([2], device=triton_device))
    samples = Stratified(3, Draw.of(rng, "a", views["scene"], 4))

    def run() -> Rendered:
        return render_triplane(made, **views, beta=BETA, samples=samples)

    expected = results(run, made, DIFFERENTIABLE)
    compiled: Callable[[], Rendered] = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = results(compiled, made, DIFFERENTIABLE)
    assert worst(found, expected) == 0


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Case(channels=20), "structure.planes"),
        (Case(sdf_hidden=(24,)), "structure.sdf_decoder"),
        (Case(colour_hidden=(16, 16, 16)), "structure.colour_decoder"),
        (Case(colour_hidden=(16, 16)), "structure.colour_decoder"),
    ],
    ids=["channels", "width", "depth", "depths"],
)
def test_what_the_kernel_does_not_take_is_named(
    case: Case, name: str, triton_device: torch.device
) -> None:
    made, views = inputs(case, torch.float32, triton_device)
    with pytest.raises(ValueError, match=rf"^{name}: got .*use_backend"):
        render_triplane(made, **views, beta=BETA, samples=Stratified(3))


@pytest.mark.interpreted
def test_float64_planes_need_exact_products(triton_device: torch.device) -> None:
    made = structure(TINY, torch.float64, triton_device)
    views = rays(TINY, torch.float64, triton_device)
    with pytest.raises(ValueError, match=r"^precision: got 'tf32' for float64"):
        render_triplane(made, **views, beta=BETA, samples=Stratified(3))
