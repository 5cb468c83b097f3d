"""Compositing in Triton, forward and backward.

A program marches 16 or 32 rays through tiles of samples and carries what went before. Sums over
earlier samples are scans over a tile that is read again shifted by one: subtracting a sample from a
running total would lose the total where the sample is opaque.
Backward marches back to front on the weights, which are an output anyway: the transmittance behind
sample i is that behind the ray plus the later weights, a sum of positive terms, and the later
samples' share of the gradient is exactly zero behind an opaque one, whatever density multiplies it.
`no_type_check` keeps run-time type checkers, which wrap functions, from what is read as source and
from sizes that are symbols.
"""

from __future__ import annotations

from math import prod
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = ((16, 32, 16), (None, 16, 32))
"""Most samples along a ray, rays and samples of a tile: short rays would leave long tiles empty."""
_NUM_WARPS = 8
"""Two samples a thread take at most 60 registers and four 96: more warps to wait for memory."""


def composite(
    density: Tensor, lengths: Tensor, colours: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [..., S], rgb [..., 3], opacity [...] and depth [...] of rays."""
    *rays, num_samples = density.shape
    flat = prod(rays), num_samples
    weights, rgb, behind, depth = _composite(
        density.reshape(flat),
        lengths.reshape(flat),
        colours.reshape(*flat, 3),
        distances.reshape(flat),
    )
    return (
        weights.view(density.shape),
        rgb.view(*rays, 3),
        1 - behind.view(rays),
        depth.view(rays),
    )


@torch.library.custom_op("scaledreamer::composite", mutates_args=())
@no_type_check
def _composite(
    density: Tensor, lengths: Tensor, colours: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [R, S], rgb [R, 3], transmittance behind the last sample [R] and depth [R]."""
    num_rays, num_samples = density.shape
    outputs = _outputs(density)
    if num_rays:
        rays_a_tile, samples_a_tile = _tile(num_samples)
        launch: Any = _forward_kernel[(-(-num_rays // rays_a_tile),)]
        with torch.cuda.device_of(density):
            launch(
                density.contiguous(),
                lengths.contiguous(),
                colours.contiguous(),
                distances.contiguous(),
                *outputs,
                num_rays,
                num_samples,
                RAYS=rays_a_tile,
                SAMPLES=samples_a_tile,
                num_warps=_NUM_WARPS,
                num_stages=1,
                enable_fp_fusion=True,
            )
    return outputs


@torch.library.custom_op("scaledreamer::composite_backward", mutates_args=())
@no_type_check
def _composite_backward(
    density: Tensor,
    lengths: Tensor,
    colours: Tensor,
    distances: Tensor,
    weights: Tensor,
    behind: Tensor,
    grad_weights: Tensor | None,
    grad_rgb: Tensor | None,
    grad_behind: Tensor | None,
    grad_depth: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four inputs; those that nobody needs are empty."""
    num_rays, num_samples = density.shape
    grads = _gradients(density, needs)
    if num_rays and num_samples:
        rays_a_tile, samples_a_tile = _tile(num_samples)
        of_rays = (
            behind.new_zeros(shape) if one is None else one.contiguous()
            for one, shape in (
                (grad_rgb, (num_rays, 3)),
                (grad_behind, num_rays),
                (grad_depth, num_rays),
            )
        )
        launch: Any = _backward_kernel[(-(-num_rays // rays_a_tile),)]
        with torch.cuda.device_of(density):
            launch(
                density.contiguous(),
                lengths.contiguous(),
                colours.contiguous(),
                distances.contiguous(),
                weights,
                behind,
                weights if grad_weights is None else grad_weights.contiguous(),
                *of_rays,
                *grads,
                num_rays,
                num_samples,
                HAS_GRAD_WEIGHTS=grad_weights is not None,
                NEEDS_DENSITY=needs[0],
                NEEDS_LENGTHS=needs[1],
                NEEDS_COLOURS=needs[2],
                NEEDS_DISTANCES=needs[3],
                RAYS=rays_a_tile,
                SAMPLES=samples_a_tile,
                num_warps=_NUM_WARPS,
                num_stages=1,
                enable_fp_fusion=True,
            )
    return grads


@_composite.register_fake
@no_type_check
def _(density, lengths, colours, distances):
    return _outputs(density)


@_composite_backward.register_fake
@no_type_check
def _(density, *tensors_and_needs):
    return _gradients(density, tensors_and_needs[-1])


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    weights, _, behind, _ = output
    ctx.save_for_backward(*inputs, weights, behind)
    # Weights often have no gradient: the kernel then reads none.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad)
    found = _composite_backward(*ctx.saved_tensors, *grads, needs)
    return tuple(one if needed else None for one, needed in zip(found, needs, strict=True))


_composite.register_autograd(_backward, setup_context=_setup)


@no_type_check
def _outputs(density: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_rays, num_samples = density.shape
    shapes = (num_rays, num_samples), (num_rays, 3), (num_rays,), (num_rays,)
    return tuple(density.new_empty(shape) for shape in shapes)


@no_type_check
def _gradients(density: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat = tuple(density.shape)
    shapes = flat, flat, (*flat, 3), flat
    return tuple(
        density.new_empty(shape if needed else 0)
        for shape, needed in zip(shapes, needs, strict=True)
    )


def _tile(num_samples: int) -> tuple[int, int]:
    """Rays and samples of a tile."""
    return next(
        (rays, samples) for most, rays, samples in TILES if most is None or num_samples <= most
    )


@triton.jit
@no_type_check
def _product(one, other, at, is_in):
    return tl.load(one + at, mask=is_in, other=0.0) * tl.load(other + at, mask=is_in, other=0.0)


@triton.jit
@no_type_check
def _slope(
    colours,
    distances,
    grad_weights,
    red,
    green,
    blue,
    length,
    at,
    is_in,
    HAS_GRAD_WEIGHTS: tl.constexpr,
):
    """Gradient of samples' weights."""
    value = red * tl.load(colours + at * 3, mask=is_in, other=0.0)
    value += green * tl.load(colours + at * 3 + 1, mask=is_in, other=0.0)
    value += blue * tl.load(colours + at * 3 + 2, mask=is_in, other=0.0)
    value += length * tl.load(distances + at, mask=is_in, other=0.0)
    if HAS_GRAD_WEIGHTS:
        value += tl.load(grad_weights + at, mask=is_in, other=0.0)
    return value


@triton.jit
@no_type_check
def _forward_kernel(
    density,
    lengths,
    colours,
    distances,
    weights,
    rgb,
    behind,
    depth,
    num_rays,
    num_samples,
    RAYS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    rays = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    is_ray = rays < num_rays
    columns = tl.arange(0, SAMPLES)
    is_later = (columns > 0)[None, :]
    optical_depth = tl.zeros([RAYS], dtype=density.dtype.element_ty)
    # Columns are added up after the loop: a sum along a ray takes shuffles between threads.
    red = tl.zeros([RAYS, SAMPLES], dtype=density.dtype.element_ty)
    green, blue, length = red, red, red
    for start in range(0, num_samples, SAMPLES):
        samples = start + columns
        at = rays[:, None] * num_samples + samples[None, :]
        is_in = is_ray[:, None] & (samples < num_samples)[None, :]
        own = _product(density, lengths, at, is_in)
        before = tl.cumsum(_product(density, lengths, at - 1, is_in & is_later), axis=1)
        weight = tl.exp(-(optical_depth[:, None] + before)) * (1 - tl.exp(-own))
        optical_depth += tl.sum(own, axis=1)
        tl.store(weights + at, weight, mask=is_in)
        red += weight * tl.load(colours + at * 3, mask=is_in, other=0.0)
        green += weight * tl.load(colours + at * 3 + 1, mask=is_in, other=0.0)
        blue += weight * tl.load(colours + at * 3 + 2, mask=is_in, other=0.0)
        length += weight * tl.load(distances + at, mask=is_in, other=0.0)
    tl.store(rgb + rays * 3, tl.sum(red, axis=1), mask=is_ray)
    tl.store(rgb + rays * 3 + 1, tl.sum(green, axis=1), mask=is_ray)
    tl.store(rgb + rays * 3 + 2, tl.sum(blue, axis=1), mask=is_ray)
    tl.store(behind + rays, tl.exp(-optical_depth), mask=is_ray)
    tl.store(depth + rays, tl.sum(length, axis=1), mask=is_ray)


@triton.jit
@no_type_check
def _backward_kernel(
    density,
    lengths,
    colours,
    distances,
    weights,
    behind,
    grad_weights,
    grad_rgb,
    grad_behind,
    grad_depth,
    grad_density,
    grad_lengths,
    grad_colours,
    grad_distances,
    num_rays,
    num_samples,
    HAS_GRAD_WEIGHTS: tl.constexpr,
    NEEDS_DENSITY: tl.constexpr,
    NEEDS_LENGTHS: tl.constexpr,
    NEEDS_COLOURS: tl.constexpr,
    NEEDS_DISTANCES: tl.constexpr,
    RAYS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    rays = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    is_ray = rays < num_rays
    red = tl.load(grad_rgb + rays * 3, mask=is_ray, other=0.0)[:, None]
    green = tl.load(grad_rgb + rays * 3 + 1, mask=is_ray, other=0.0)[:, None]
    blue = tl.load(grad_rgb + rays * 3 + 2, mask=is_ray, other=0.0)[:, None]
    length = tl.load(grad_depth + rays, mask=is_ray, other=0.0)[:, None]
    # Transmittance behind the tile, and the gradient that later samples pass to earlier ones.
    transmittance = tl.load(behind + rays, mask=is_ray, other=0.0)
    later = transmittance * tl.load(grad_behind + rays, mask=is_ray, other=0.0)
    columns = tl.arange(0, SAMPLES)
    is_later = (columns > 0)[None, :]
    for start in range(0, num_samples, SAMPLES):
        # Columns run back to front, so that an ordinary scan sums the samples behind.
        samples = num_samples - 1 - start - columns
        at = rays[:, None] * num_samples + samples[None, :]
        is_in = is_ray[:, None] & (samples >= 0)[None, :]
        weight = tl.load(weights + at, mask=is_in, other=0.0)
        if NEEDS_COLOURS:
            tl.store(grad_colours + at * 3, red * weight, mask=is_in)
            tl.store(grad_colours + at * 3 + 1, green * weight, mask=is_in)
            tl.store(grad_colours + at * 3 + 2, blue * weight, mask=is_in)
        if NEEDS_DISTANCES:
            tl.store(grad_distances + at, length * weight, mask=is_in)
        if NEEDS_DENSITY or NEEDS_LENGTHS:
            value = _slope(
                colours,
                distances,
                grad_weights,
                red,
                green,
                blue,
                length,
                at,
                is_in,
                HAS_GRAD_WEIGHTS,
            )
            shifted = tl.load(weights + at + 1, mask=is_in & is_later, other=0.0)
            slope = (transmittance[:, None] + tl.cumsum(shifted, axis=1)) * value
            shifted *= _slope(
                colours,
                distances,
                grad_weights,
                red,
                green,
                blue,
                length,
                at + 1,
                is_in & is_later,
                HAS_GRAD_WEIGHTS,
            )
            slope -= later[:, None] + tl.cumsum(shifted, axis=1)
            transmittance += tl.sum(weight, axis=1)
            later += tl.sum(weight * value, axis=1)
            if NEEDS_DENSITY:
                own = tl.load(lengths + at, mask=is_in, other=0.0)
                tl.store(grad_density + at, slope * own, mask=is_in)
            if NEEDS_LENGTHS:
                own = tl.load(density + at, mask=is_in, other=0.0)
                tl.store(grad_lengths + at, slope * own, mask=is_in)
