"""Volume rendering of triplanes in two Triton kernels, without a number stored per sample.

A program marches a patch of 4 x 4 rays in tiles of 4 steps: 64 neighbouring samples of one scene
share texels in the L1 cache. The backward pass recomputes the samples front to back: what lies
behind a sample is the saved total minus the sum so far. A tile's gradients of a plane are summed
over a window of texels where one holds them all, then added in memory; those of weights are summed
in registers over the patches of a program, then over programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from scaledreamer.kernels._triplane.fused import (
    ADVICE,
    BACKWARD_REGISTERS,
    ONES,
    OUTPUTS,
    constants,
    decoder_slope,
    geometry,
    gradient,
    hidden,
    hidden_backward,
    locate,
    outputs,
    programs_per_owner,
    readable,
    row_stride,
    sample,
    scatter,
    scatter_tile,
    store_output_bias,
    store_sums,
    sum_columns,
    sum_partials,
    zero_sums,
)
from scaledreamer.kernels.backend import alert_not_deterministic

SIDE = tl.constexpr(4)
RAYS = tl.constexpr(16)
STEPS = tl.constexpr(4)
ROWS = tl.constexpr(64)
GIVEN, CONSTANT, OFFSETS, DRAWN = (tl.constexpr(mode) for mode in range(4))
"""Where distances come from: all given; or one offset for all rays, one given a ray, one drawn."""
WARPS = 4
FORWARD_REGISTERS = 168
"""Registers a thread, so that three programs fit on a multiprocessor."""
NORMAL_REGISTERS = 255
"""With normals, two fit: in tf32 three would spill more than the L1 cache that they share holds."""
WINDOWED = True
"""Whether a tile's gradient of a plane is summed on chip first where a window holds it: about
half the traffic or less, for as many instructions and more spills; docs/kernels.md."""


@triton.jit
@no_type_check
def _pixels(view, patch, height, width):
    """Flat index of the patch's 16 pixels, and which of them lie in the picture."""
    per_row = tl.cdiv(width, SIDE)
    ray = tl.arange(0, RAYS)
    row = (patch // per_row) * SIDE + ray // SIDE
    column = (patch % per_row) * SIDE + ray % SIDE
    is_ray = (row < height) & (column < width)
    return (view.to(tl.int64) * height + row) * width + column, is_ray


@triton.jit
@no_type_check
def _offset(samples, counters, pixel, is_ray, view, pixels, key, step, offset, MODE: tl.constexpr):
    """[16] share of a stratum that lies before a ray's samples."""
    if MODE == OFFSETS:
        u = tl.load(samples + pixel, mask=is_ray, other=0.5)
    elif MODE == DRAWN:
        index = tl.load(counters + 2 * view)
        element = tl.load(counters + 2 * view + 1) + (pixel - view.to(tl.int64) * pixels)
        zero = (element * 0).to(tl.uint32)
        a, b, c, d = tl.philox(
            key,
            (element // 4).to(tl.uint32),
            zero + (index & 0xFFFFFFFF).to(tl.uint32),
            zero + step.to(tl.uint32),
            zero + ((index >> 32) & 0xFFFFFFFF).to(tl.uint32),
        )
        word = element % 4
        u = tl.uint_to_uniform_float(
            tl.where(word == 0, a, tl.where(word == 1, b, tl.where(word == 2, c, d)))
        )
    else:
        u = tl.zeros((RAYS,), tl.float32) + offset
    return u


@triton.jit
@no_type_check
def _distances(samples, pixel, is_ray, near, far, u, tile, num_samples, MODE: tl.constexpr):
    """[16, 4] distances of a tile's samples, and the stretch each stands for (0 if there is no such
    sample). Given distances lie in [near, far] and are sorted."""
    index = tile * STEPS + tl.arange(0, STEPS)[None, :]
    is_real = is_ray[:, None] & (index < num_samples)
    near = near[:, None]
    far = far[:, None]
    if MODE == GIVEN:
        pointers = samples + pixel[:, None] * num_samples + index
        t = tl.load(pointers, mask=is_real, other=0.0)
        before = tl.load(pointers - 1, mask=is_real & (index > 0), other=0.0)
        after = tl.load(pointers + 1, mask=is_real & (index + 1 < num_samples), other=0.0)
    else:
        place = index + u.to(near.dtype)[:, None]
        t = near + (far - near) * (place / num_samples)
        before = near + (far - near) * ((place - 1.0) / num_samples)
        after = near + (far - near) * ((place + 1.0) / num_samples)
    low = tl.where(index == 0, near, 0.5 * (before + t))
    high = tl.where(index == num_samples - 1, far, 0.5 * (t + after))
    return t, tl.where(is_real, high - low, 0.0)


@triton.jit
@no_type_check
def _sum_before(values):
    """Exclusive prefix sums along the 4 steps. Not a cumulative sum minus the value: an optical
    depth can be so large that nothing is left of the others."""
    step = tl.arange(0, STEPS)
    is_earlier = step[None, :] < step[:, None]
    return tl.sum(tl.where(is_earlier[None, :, :], values[:, None, :], 0.0), axis=2)


@triton.jit
@no_type_check
def _is_open(optical_depth, is_hit, min_transmittance, CUT: tl.constexpr):
    """Whether some ray of the patch still sees something behind."""
    if CUT:
        is_hit = is_hit & (tl.exp(-optical_depth) >= min_transmittance)
    return tl.max(is_hit.to(tl.int32), axis=0) > 0


@triton.jit
@no_type_check
def _point(origins, directions, pixel, is_ray, t, axis: tl.constexpr):
    """[64] coordinates along an axis, in the box."""
    origin = tl.load(origins + pixel * 3 + axis, mask=is_ray, other=0.0)
    direction = tl.load(directions + pixel * 3 + axis, mask=is_ray, other=0.0)
    place = origin[:, None] + t * direction[:, None]
    return tl.reshape(tl.minimum(tl.maximum(place, -1.0), 1.0), (ROWS,))


@triton.jit
@no_type_check
def _density(value, beta, IS_DENSITY: tl.constexpr):
    """Volume density of the geometry, and its derivative."""
    if IS_DENSITY:
        density = value
        slope = tl.zeros_like(value) + 1.0
    else:
        tail = 0.5 * tl.exp(-tl.abs(value) / beta)
        density = tl.where(value > 0, tail, 1.0 - tail) / beta
        slope = -tail / (beta * beta)
    return density, slope


@triton.jit(do_not_specialize=["key", "step"])
@no_type_check
def render_forward(
    planes, params, origins, directions, near, far, scene, samples, counters,
    rgb, opacity, depth, normal, stop,
    height, width, num_samples, resolution, params_stride_x16,
    key, step, offset, sdf_scale, sphere_radius, beta, min_transmittance,
    C: tl.constexpr, HS: tl.constexpr, HC: tl.constexpr, LAYERS: tl.constexpr,
    IS_DENSITY: tl.constexpr, MODE: tl.constexpr, WITH_NORMALS: tl.constexpr,
    CUT: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    SDF_SIZE: tl.constexpr = (C + 1) * HS + (LAYERS - 1) * (HS + 1) * HS + HS
    patches = tl.cdiv(height, SIDE) * tl.cdiv(width, SIDE)
    view = tl.program_id(0) // patches
    patch = tl.program_id(0) % patches
    owner = tl.load(scene + view)
    planes += tl.multiple_of(owner * (3 * C) * resolution * resolution, 16)
    params += tl.multiple_of(owner * params_stride_x16, 16)

    pixel, is_ray = _pixels(view, patch, height, width)
    start = tl.load(near + pixel, mask=is_ray, other=0.0)
    end = tl.load(far + pixel, mask=is_ray, other=0.0)
    is_hit = end > start
    u = _offset(samples, counters, pixel, is_ray, view, height * width, key, step, offset, MODE)

    optical_depth = tl.zeros((RAYS,), ACC)
    sum_output = tl.zeros((ROWS, OUTPUTS), ACC)
    sum_depth = tl.zeros((RAYS, STEPS), ACC)
    sum_nx = tl.zeros((ROWS,), ACC)
    sum_ny = tl.zeros((ROWS,), ACC)
    sum_nz = tl.zeros((ROWS,), ACC)
    tile = 0
    is_open = _is_open(optical_depth, is_hit, min_transmittance, CUT)
    while (tile * STEPS < num_samples) & is_open:
        t, length = _distances(samples, pixel, is_ray, start, end, u, tile, num_samples, MODE)
        px = _point(origins, directions, pixel, is_ray, t, 0)
        py = _point(origins, directions, pixel, is_ray, t, 1)
        pz = _point(origins, directions, pixel, is_ray, t, 2)
        x = locate(px, resolution)
        y = locate(py, resolution)
        z = locate(pz, resolution)
        features = sample(planes, x, y, z, resolution, C, ACC)
        s1, s2 = hidden(features, params, C, HS, LAYERS, PRECISION)
        _, c2 = hidden(features, params + SDF_SIZE, C, HC, LAYERS, PRECISION)
        output = outputs(s2, c2, params, C, HS, HC, LAYERS, PRECISION)
        radius = tl.sqrt(px * px + py * py + pz * pz)
        value, _ = geometry(sum_columns(output, 0, 1), radius, sdf_scale, sphere_radius, IS_DENSITY)
        density, _ = _density(value, beta, IS_DENSITY)

        thickness = tl.reshape(density, (RAYS, STEPS)) * length
        before = optical_depth[:, None] + _sum_before(thickness)
        weight = tl.exp(-before) - tl.exp(-(before + thickness))
        optical_depth += tl.sum(thickness, axis=1)
        sum_depth += weight * t
        row_weight = tl.reshape(weight, (ROWS,))
        sum_output += row_weight[:, None] * tl.sigmoid(output)
        if WITH_NORMALS:
            # Reverse mode to the features, then along the planes: one product, not three.
            along, _, _ = decoder_slope(s1, s2, params, C, HS, LAYERS, PRECISION)
            gx, gy, gz = gradient(planes, x, y, z, along, resolution, C, ACC)
            sign = -sdf_scale if IS_DENSITY else sdf_scale
            inverse = 1.0 / tl.maximum(radius, 1e-12)
            gx = sign * gx + px * inverse
            gy = sign * gy + py * inverse
            gz = sign * gz + pz * inverse
            norm = tl.maximum(tl.sqrt(gx * gx + gy * gy + gz * gz), 1e-12)
            sum_nx += row_weight * gx / norm
            sum_ny += row_weight * gy / norm
            sum_nz += row_weight * gz / norm
        tile += 1
        is_open = _is_open(optical_depth, is_hit, min_transmittance, CUT)

    column = tl.arange(0, OUTPUTS)[None, :]
    colour = tl.sum(tl.reshape(sum_output, (RAYS, STEPS, OUTPUTS)), axis=1)
    is_colour = is_ray[:, None] & (column >= 1) & (column < 4)
    tl.store(rgb + pixel[:, None] * 3 + column - 1, colour, mask=is_colour)
    tl.store(opacity + pixel, 1.0 - tl.exp(-optical_depth), mask=is_ray)
    tl.store(depth + pixel, tl.sum(sum_depth, axis=1), mask=is_ray)
    tl.store(stop + tl.program_id(0), tile)
    if WITH_NORMALS:
        nx = tl.sum(tl.reshape(sum_nx, (RAYS, STEPS)), axis=1)
        ny = tl.sum(tl.reshape(sum_ny, (RAYS, STEPS)), axis=1)
        nz = tl.sum(tl.reshape(sum_nz, (RAYS, STEPS)), axis=1)
        tl.store(normal + pixel * 3, nx, mask=is_ray)
        tl.store(normal + pixel * 3 + 1, ny, mask=is_ray)
        tl.store(normal + pixel * 3 + 2, nz, mask=is_ray)


@triton.jit(do_not_specialize=["key", "step"])
@no_type_check
def render_backward(
    planes, params, origins, directions, near, far, scene, samples, counters,
    rgb, opacity, depth, stop, g_rgb, g_opacity, g_depth, d_planes, partials,
    height, width, num_samples, resolution, params_stride_x16, programs,
    key, step, offset, sdf_scale, sphere_radius, beta,
    C: tl.constexpr, HS: tl.constexpr, HC: tl.constexpr, LAYERS: tl.constexpr,
    SIZE: tl.constexpr, IS_DENSITY: tl.constexpr, MODE: tl.constexpr, WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    SDF_SIZE: tl.constexpr = (C + 1) * HS + (LAYERS - 1) * (HS + 1) * HS + HS
    patches = tl.cdiv(height, SIDE) * tl.cdiv(width, SIDE)
    view = tl.program_id(0) // programs
    owner = tl.load(scene + view)
    offset_planes = tl.multiple_of(owner * (3 * C) * resolution * resolution, 16)
    planes += offset_planes
    d_planes += offset_planes
    params += tl.multiple_of(owner * params_stride_x16, 16)

    sums_s = zero_sums(C, HS, ACC)
    sums_c = zero_sums(C, HC, ACC)
    sum_output = tl.zeros((ROWS, OUTPUTS), ACC)
    column = tl.arange(0, OUTPUTS)[None, :]

    patch = tl.program_id(0) % programs
    while patch < patches:
        pixel, is_ray = _pixels(view, patch, height, width)
        start = tl.load(near + pixel, mask=is_ray, other=0.0)
        end = tl.load(far + pixel, mask=is_ray, other=0.0)
        u = _offset(samples, counters, pixel, is_ray, view, height * width, key, step, offset, MODE)
        go = tl.load(g_opacity + pixel, mask=is_ray, other=0.0)
        gd = tl.load(g_depth + pixel, mask=is_ray, other=0.0)
        total = go * tl.load(opacity + pixel, mask=is_ray, other=0.0)
        total += gd * tl.load(depth + pixel, mask=is_ray, other=0.0)
        is_colour = is_ray[:, None] & (column >= 1) & (column < 4)
        pointers = pixel[:, None] * 3 + column - 1
        gc = tl.load(g_rgb + pointers, mask=is_colour, other=0.0)
        total += tl.sum(gc * tl.load(rgb + pointers, mask=is_colour, other=0.0), axis=1)
        gc = tl.broadcast_to(gc[:, None, :], (RAYS, STEPS, OUTPUTS))
        gc = tl.reshape(gc, (ROWS, OUTPUTS))

        optical_depth = tl.zeros((RAYS,), ACC)
        done = tl.zeros((RAYS,), ACC)
        tiles = tl.load(stop + view * patches + patch)
        tile = 0
        while tile < tiles:
            t, length = _distances(samples, pixel, is_ray, start, end, u, tile, num_samples, MODE)
            px = _point(origins, directions, pixel, is_ray, t, 0)
            py = _point(origins, directions, pixel, is_ray, t, 1)
            pz = _point(origins, directions, pixel, is_ray, t, 2)
            x = locate(px, resolution)
            y = locate(py, resolution)
            z = locate(pz, resolution)
            features = sample(planes, x, y, z, resolution, C, ACC)
            s1, s2 = hidden(features, params, C, HS, LAYERS, PRECISION)
            c1, c2 = hidden(features, params + SDF_SIZE, C, HC, LAYERS, PRECISION)
            output = outputs(s2, c2, params, C, HS, HC, LAYERS, PRECISION)
            radius = tl.sqrt(px * px + py * py + pz * pz)
            value, d_raw = geometry(
                sum_columns(output, 0, 1), radius, sdf_scale, sphere_radius, IS_DENSITY
            )
            density, d_value = _density(value, beta, IS_DENSITY)
            colour = tl.sigmoid(output)

            # With q the derivative of the loss in a sample's weight: the derivative in its optical
            # thickness is q times the light behind it, minus the sum of weight times q behind it.
            q = tl.reshape(sum_columns(gc * colour, 1, 3), (RAYS, STEPS))
            q += gd[:, None] * t + go[:, None]
            thickness = tl.reshape(density, (RAYS, STEPS)) * length
            before = optical_depth[:, None] + _sum_before(thickness)
            behind = tl.exp(-(before + thickness))
            weight = tl.exp(-before) - behind
            part = weight * q
            rest = total[:, None] - (done[:, None] + _sum_before(part) + part)
            d_density = tl.reshape((behind * q - rest) * length, (ROWS,))
            optical_depth += tl.sum(thickness, axis=1)
            done += tl.sum(part, axis=1)

            row_weight = tl.reshape(weight, (ROWS,))
            d_geometry = d_density * d_value * d_raw
            d_output = row_weight[:, None] * gc * colour * (1.0 - colour)
            d_output = tl.where(column == 0, d_geometry[:, None], d_output)
            sum_output += d_output
            d_output = tl.where(column == ONES, 1.0, d_output)
            # Else the weights that were read above would be kept for here.
            tl.debug_barrier()
            d_sdf, sums_s = hidden_backward(
                features, s1, s2, d_output, params, sums_s, C, HS, LAYERS, 0, 1, PRECISION
            )
            d_colour, sums_c = hidden_backward(
                features, c1, c2, d_output, params + SDF_SIZE, sums_c, C, HC, LAYERS, 1, 3,
                PRECISION,
            )  # fmt: skip
            is_live = (row_weight != 0) | (d_geometry != 0)
            if WINDOWED:
                scatter_tile(d_planes, x, y, z, d_sdf + d_colour, is_live, resolution, C, PRECISION)
            else:
                scatter(d_planes, x, y, z, d_sdf + d_colour, is_live, resolution, C)
            tile += 1
        patch += programs

    partials += tl.multiple_of(tl.program_id(0).to(tl.int64) * SIZE, 16)
    store_sums(partials, sums_s, C, HS, LAYERS, 0, 1)
    store_sums(partials + SDF_SIZE, sums_c, C, HC, LAYERS, 1, 3)
    store_output_bias(partials, sum_output, C, HS, HC, LAYERS)


# Launches


def _patches(height: int, width: int) -> int:
    return -(-height // 4) * -(-width // 4)


def _mode(samples: Tensor | None, counters: Tensor | None) -> int:
    if counters is not None:
        return DRAWN.value
    if samples is None:
        return CONSTANT.value
    return OFFSETS.value if samples.dim() == 3 else GIVEN.value


@torch.library.custom_op("scaledreamer::render_triplane", mutates_args=())
@no_type_check
def render(
    planes: Tensor,
    params: Tensor,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    scene: Tensor,
    samples: Tensor | None,
    counters: Tensor | None,
    key: int,
    step: int,
    num_samples: int,
    offset: float,
    hidden: Sequence[int],
    is_density: bool,
    sdf_scale: float,
    sphere_radius: float,
    beta: float,
    precision: str,
    with_normals: bool,
    min_transmittance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """rgb, opacity, depth, normal (empty unless asked for) and, per patch, the tiles marched.

    `params` are packed decoders and `hidden` their (distance width, colour width, hidden layers).
    `samples` are distances [V, H, W, S] or offsets [V, H, W]; `counters` [V, 2] are a draw's global
    sample index and its first element. Every tensor is contiguous.
    """
    num_views, height, width = near.shape
    rgb, opacity, depth = torch.empty_like(origins), torch.empty_like(near), torch.empty_like(near)
    normal = torch.empty_like(origins) if with_normals else origins.new_empty(0)
    stop = near.new_empty(num_views * _patches(height, width), dtype=torch.int32)
    if stop.numel() == 0:
        return rgb, opacity, depth, normal, stop
    with torch.cuda.device_of(planes):
        render_forward[(stop.numel(),)](
            readable(planes, precision),
            params, origins, directions, near, far, scene, samples, counters,
            rgb, opacity, depth, normal, stop,
            height, width, num_samples, planes.shape[2], row_stride(params),
            key, step, offset, sdf_scale, sphere_radius, beta, min_transmittance,
            MODE=_mode(samples, counters), WITH_NORMALS=with_normals, CUT=min_transmittance > 0,
            num_warps=WARPS, maxnreg=NORMAL_REGISTERS if with_normals else FORWARD_REGISTERS,
            **constants(planes, hidden, is_density, precision),
        )  # fmt: skip
    return rgb, opacity, depth, normal, stop


@render.register_fake
def _(planes: Tensor, params: Tensor, origins: Tensor, *others: Any) -> tuple[Tensor, ...]:
    near, with_normals = others[1], others[-2]
    num_views, height, width = near.shape
    return (
        torch.empty_like(origins),
        torch.empty_like(near),
        torch.empty_like(near),
        torch.empty_like(origins) if with_normals else origins.new_empty(0),
        near.new_empty(num_views * _patches(height, width), dtype=torch.int32),
    )


@torch.library.custom_op("scaledreamer::render_triplane_backward", mutates_args=())
@no_type_check
def render_gradients(
    g_rgb: Tensor,
    g_opacity: Tensor,
    g_depth: Tensor,
    rgb: Tensor,
    opacity: Tensor,
    depth: Tensor,
    stop: Tensor,
    planes: Tensor,
    params: Tensor,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    scene: Tensor,
    samples: Tensor | None,
    counters: Tensor | None,
    key: int,
    step: int,
    num_samples: int,
    offset: float,
    hidden: Sequence[int],
    is_density: bool,
    sdf_scale: float,
    sphere_radius: float,
    beta: float,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of planes and packed decoders."""
    alert_not_deterministic("render_triplane_backward", planes, ADVICE)
    num_views, height, width = near.shape
    d_planes = torch.zeros_like(planes)
    if stop.numel() == 0:
        return d_planes, torch.zeros_like(params)
    programs = programs_per_owner(num_views, _patches(height, width), planes.device)
    partials = params.new_empty(num_views * programs, params.shape[1])
    with torch.cuda.device_of(planes):
        render_backward[(len(partials),)](
            readable(planes, precision),
            params, origins, directions, near, far, scene, samples, counters,
            rgb, opacity, depth, stop, g_rgb.contiguous(), g_opacity.contiguous(),
            g_depth.contiguous(), d_planes, partials,
            height, width, num_samples, planes.shape[2], row_stride(params), programs,
            key, step, offset, sdf_scale, sphere_radius, beta,
            SIZE=params.shape[1], MODE=_mode(samples, counters), WINDOWED=WINDOWED,
            num_warps=WARPS, maxnreg=BACKWARD_REGISTERS,
            **constants(planes, hidden, is_density, precision),
        )  # fmt: skip
        return d_planes, sum_partials(partials, scene, programs, params)


@render_gradients.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs[7]), torch.empty_like(inputs[8])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *outputs, normal, stop = output
    ctx.mark_non_differentiable(normal, stop)
    ctx.save_for_backward(*outputs, stop, *inputs[:9])
    ctx.settings = inputs[9:19]


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    outputs = ctx.saved_tensors[:3]
    filled = [
        torch.zeros_like(output) if grad is None else grad
        for grad, output in zip(grads[:3], outputs, strict=True)
    ]
    return (*render_gradients(*filled, *ctx.saved_tensors, *ctx.settings), *(None,) * 19)


render.register_autograd(_backward, setup_context=_setup)
