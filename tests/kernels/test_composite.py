"""Compositing against closed forms and a loop over samples, and its forms against each other.

Largest differences allowed, relative to the largest expected value, and the worst measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor

from scaledreamer.kernels.backend import use_backend
from scaledreamer.kernels.composite import composite

TOLERANCES = {
    "outputs": 2e-6,  # 8.1e-7, float32 interpreted, like the rest
    "gradients": 2e-6,  # 7.8e-7
    "opaque": 1e-6,  # 1.4e-7, gradients where a sample is opaque
}
# Registers and shared memory in bytes that compiled kernels may take; as compiled: 60 and 1024.
MOST_REGISTERS, MOST_SHARED = 64, 1024
NAMES = ("density", "lengths", "colours", "distances")


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


def _loss_weights(shape: tuple[int, ...]) -> list[Tensor]:
    """One a composited quantity, so that each has a gradient of its own."""
    rays = shape[:-1]
    shapes = shape, (*rays, 3), rays, rays
    return [torch.randn(one, dtype=torch.float64) for one in shapes]


def _run(inputs: list[Tensor], grads: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of the inputs for the given gradients of the outputs."""
    leaves = [one.detach().requires_grad_() for one in inputs]
    out = composite(*leaves)
    found = torch.autograd.grad(list(out), leaves, grads)
    return [one.detach().cpu() for one in out], [one.cpu() for one in found]


def _assert_close(found: Tensor, expected: Tensor, tolerance: str) -> None:
    assert found.shape == expected.shape
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCES[tolerance]


@pytest.fixture
def _poison() -> Iterator[None]:
    """Memory that nobody has written is not-a-number."""
    torch.use_deterministic_algorithms(True)
    assert torch.isnan(torch.zeros(1).new_empty(1))
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.interpreted
@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("shape", [(1,), (3, 1), (17, 16), (2, 3, 33), (37, 71)])
def test_triton_is_the_reference(shape: tuple[int, ...], triton_device: torch.device) -> None:
    density = torch.rand(shape, dtype=torch.float64) * 3
    density[..., 1::4] = 0
    lengths = torch.rand_like(density) * 4 / shape[-1]
    inputs = [density, lengths, torch.rand(*shape, 3).double(), lengths.cumsum(dim=-1)]
    inputs = [one.float().double() for one in inputs]
    grads = _loss_weights(shape)
    with use_backend("reference"):
        outputs, gradients = _run(inputs, grads)
    for is_contiguous in (True, False):
        single = [one.float().to(triton_device) for one in (*inputs, *grads)]
        if not is_contiguous:
            single = [one.mT.contiguous().mT if one.dim() > 1 else one for one in single]
        found = _run(single[:4], single[4:])
        for one, other in zip(found[0], outputs, strict=True):
            _assert_close(one, other, "outputs")
        for one, other in zip(found[1], gradients, strict=True):
            _assert_close(one, other, "gradients")


@pytest.mark.interpreted
@pytest.mark.parametrize("largest", [1e2, 1e6, 1e30])
def test_triton_near_opaque_samples(largest: float, triton_device: torch.device) -> None:
    inputs = [one.float().double() for one in _rays(5, 40)]
    inputs[0][:, 3] = largest
    inputs[0][2:, 35] = largest
    grads = _loss_weights((5, 40))
    with use_backend("reference"):
        _, expected = _run(inputs, grads)
    found = _run(
        [one.float().to(triton_device) for one in inputs],
        [one.float().to(triton_device) for one in grads],
    )[1]
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        _assert_close(one, other, "opaque")


@pytest.mark.interpreted
def test_no_density_gives_exact_zeros_in_triton(triton_device: torch.device) -> None:
    density, lengths, colours, distances = (x.float().to(triton_device) for x in _rays(3, 40))
    density[:, ::2] = 0
    assert not composite(density, lengths, colours, distances).weights[:, ::2].any()
    empty = composite(torch.zeros_like(density), lengths, colours, distances)
    assert all(not value.any() for value in empty)


@pytest.mark.interpreted
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_to_composite_gives_nothing(
    shape: tuple[int, ...], triton_device: torch.device
) -> None:
    density = torch.zeros(shape, device=triton_device, requires_grad=True)
    colours = torch.zeros(*shape, 3, device=triton_device)
    out = composite(density, density, colours, density)
    assert out.rgb.shape == (shape[0], 3)
    assert all(not value.any() for value in out)
    out.depth.sum().backward()
    assert density.grad is not None


@pytest.mark.interpreted
@pytest.mark.parametrize("output", range(4))
def test_triton_makes_only_the_gradients_that_are_needed(
    output: int, triton_device: torch.device
) -> None:
    rays = [one.float().to(triton_device) for one in _rays(3, 7)]
    for needed in range(4):
        inputs = [one.clone().requires_grad_(i == needed) for i, one in enumerate(rays)]
        found = []
        for form in ("reference", "triton"):
            with use_backend(form):
                out = composite(*inputs)[output]
                if not out.requires_grad:
                    out = out + 0 * inputs[needed].sum()
                grad = torch.autograd.grad(out.square().sum(), inputs[needed], allow_unused=True)
            found.append(torch.zeros(()) if grad[0] is None else grad[0])
        # The reference leaves unused what the fused form finds to be zero.
        assert torch.allclose(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.interpreted
def test_triton_gradients(triton_device: torch.device) -> None:
    inputs = tuple(x.to(triton_device).requires_grad_() for x in _rays(3, 35))
    assert torch.autograd.gradcheck(composite, inputs, fast_mode=True)


@pytest.mark.interpreted
def test_the_custom_operators_are_sound(triton_device: torch.device) -> None:
    from scaledreamer.kernels.composite import fused

    rays = [one.float().to(triton_device) for one in _rays()]
    weights, rgb, behind, _ = fused._composite(*rays)
    torch.library.opcheck(fused._composite, tuple(one.requires_grad_() for one in rays))
    saved = (*(one.detach() for one in rays), weights, behind)
    needs = [True, False, True, True]
    grads = None, rgb, behind, None
    torch.library.opcheck(fused._composite_backward, (*saved, *grads, needs))


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_compiled_graph_gives_the_same(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `torch.compile` can't trace the checker of shapes.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    rays = [one.float().to(triton_device) for one in _rays(5, 9)]
    found = []
    for form in (composite, torch.compile(composite, fullgraph=True, backend="aot_eager")):
        inputs = [one.clone().requires_grad_() for one in rays]
        out = form(*inputs)
        loss = out.rgb.square().sum() + out.depth.sum()
        found.append((*(one.detach() for one in out), *torch.autograd.grad(loss, inputs)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("index", range(4))
def test_compiled_kernels_are_lean(index: int, capability: int, compiler: None) -> None:
    from benchmarks._compiled_other import composite as specialisations
    from benchmarks.compiled import compile_kernel

    _, kernel, signature, constants, num_warps, _ = specialisations()[index]
    made = compile_kernel(kernel, signature, constants, capability, num_warps)
    assert made.stack_bytes == 0
    assert made.registers <= MOST_REGISTERS
    assert made.shared_bytes <= MOST_SHARED
    assert made.count("ATOM|RED") == 0
