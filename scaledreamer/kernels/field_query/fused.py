"""A triplane field at points in two Triton kernels, with the geometry's spatial gradient.

Letters: f features, J their Jacobian in space, z = a * decoder(f) + base(x) what the geometry is a
function of, v = d decoder / d f. The gradient of z is a * v J + grad base. A loss that sees it
through a vector u per point needs one directional derivative: u . (v J) = v . t with t = J u, and t
goes through the decoder like a feature, with the ReLUs' switches of f: their second derivative is
zero almost everywhere. v J is bilinear in planes and v, so each texel gets the gradient of f times
its share plus v times the derivative of its share along u.
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
    load_matrix,
    load_output,
    load_output_bias,
    locate,
    outputs,
    programs_per_owner,
    readable,
    row_stride,
    sample,
    sample_along,
    scatter,
    scatter_along,
    store_output_bias,
    store_sums,
    sum_columns,
    sum_partials,
    zero_sums,
)
from scaledreamer.kernels._triplane.fused import dot as _dot
from scaledreamer.kernels.backend import alert_not_deterministic

ROWS = tl.constexpr(64)
"""Points of a program. 128 on four warps spill kilobytes a thread in the backward pass."""
WARPS = 4
FORWARD_REGISTERS = 128
"""Registers a thread, so that four programs fit on a multiprocessor."""


@triton.jit
@no_type_check
def _load_points(points, point, is_point):
    x = tl.load(points + point * 3, mask=is_point, other=0.0)
    y = tl.load(points + point * 3 + 1, mask=is_point, other=0.0)
    z = tl.load(points + point * 3 + 2, mask=is_point, other=0.0)
    return x, y, z, tl.sqrt(x * x + y * y + z * z)


@triton.jit
@no_type_check
def query_forward(
    planes, params, points, out, rgb, slope,
    num_points, resolution, params_stride_x16, sdf_scale, sphere_radius,
    C: tl.constexpr, HS: tl.constexpr, HC: tl.constexpr, LAYERS: tl.constexpr,
    IS_DENSITY: tl.constexpr, WITH_COLOUR: tl.constexpr, WITH_GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    SDF_SIZE: tl.constexpr = (C + 1) * HS + (LAYERS - 1) * (HS + 1) * HS + HS
    tiles = tl.cdiv(num_points, ROWS)
    scene = (tl.program_id(0) // tiles).to(tl.int64)
    planes += tl.multiple_of(scene * (3 * C) * resolution * resolution, 16)
    params += tl.multiple_of(scene * params_stride_x16, 16)
    row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    is_point = row < num_points
    point = scene * num_points + row
    px, py, pz, radius = _load_points(points, point, is_point)
    x = locate(px, resolution)
    y = locate(py, resolution)
    z = locate(pz, resolution)
    features = sample(planes, x, y, z, resolution, C, ACC)

    s1, s2 = hidden(features, params, C, HS, LAYERS, PRECISION)
    if WITH_COLOUR:
        _, c2 = hidden(features, params + SDF_SIZE, C, HC, LAYERS, PRECISION)
        output = outputs(s2, c2, params, C, HS, HC, LAYERS, PRECISION)
        column = tl.arange(0, OUTPUTS)[None, :]
        is_colour = is_point[:, None] & (column >= 1) & (column < 4)
        tl.store(rgb + point[:, None] * 3 + column - 1, tl.sigmoid(output), mask=is_colour)
    else:
        output = _dot(s2, load_output(params, C, HS, LAYERS, 0, 1), PRECISION)
        output += load_output_bias(params, C, HS, HC, LAYERS)[None, :]
    value, d_raw = geometry(sum_columns(output, 0, 1), radius, sdf_scale, sphere_radius, IS_DENSITY)
    tl.store(out + point, value, mask=is_point)
    if WITH_GRADIENT:
        v, _, _ = decoder_slope(s1, s2, params, C, HS, LAYERS, PRECISION)
        gx, gy, gz = gradient(planes, x, y, z, v, resolution, C, ACC)
        # d_raw is also the derivative of the geometry in z, times the decoder's factor in z.
        inverse = 1.0 / tl.maximum(radius, 1e-12)
        base = -d_raw / sdf_scale * inverse if IS_DENSITY else inverse
        tl.store(slope + point * 3, d_raw * gx + base * px, mask=is_point)
        tl.store(slope + point * 3 + 1, d_raw * gy + base * py, mask=is_point)
        tl.store(slope + point * 3 + 2, d_raw * gz + base * pz, mask=is_point)


@triton.jit
@no_type_check
def query_backward(
    planes, params, points, g_out, g_rgb, g_slope, d_planes, partials,
    num_points, resolution, params_stride_x16, programs, sdf_scale, sphere_radius,
    C: tl.constexpr, HS: tl.constexpr, HC: tl.constexpr, LAYERS: tl.constexpr,
    SIZE: tl.constexpr, IS_DENSITY: tl.constexpr, WITH_COLOUR: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    SDF_SIZE: tl.constexpr = (C + 1) * HS + (LAYERS - 1) * (HS + 1) * HS + HS
    scene = (tl.program_id(0) // programs).to(tl.int64)
    offset_planes = tl.multiple_of(scene * (3 * C) * resolution * resolution, 16)
    planes += offset_planes
    d_planes += offset_planes
    params += tl.multiple_of(scene * params_stride_x16, 16)
    sums_s = zero_sums(C, HS, ACC)
    sums_c = zero_sums(C, HC, ACC)
    tangent_sums = zero_sums(C, HS, ACC)
    sum_output = tl.zeros((ROWS, OUTPUTS), ACC)
    column = tl.arange(0, OUTPUTS)[None, :]

    tile = tl.program_id(0) % programs
    while tile * ROWS < num_points:
        row = tile * ROWS + tl.arange(0, ROWS)
        is_point = row < num_points
        point = scene * num_points + row
        px, py, pz, radius = _load_points(points, point, is_point)
        x = locate(px, resolution)
        y = locate(py, resolution)
        z = locate(pz, resolution)
        features = sample(planes, x, y, z, resolution, C, ACC)
        s1, s2 = hidden(features, params, C, HS, LAYERS, PRECISION)
        if WITH_COLOUR:
            c1, c2 = hidden(features, params + SDF_SIZE, C, HC, LAYERS, PRECISION)
            output = outputs(s2, c2, params, C, HS, HC, LAYERS, PRECISION)
            is_colour = is_point[:, None] & (column >= 1) & (column < 4)
            gc = tl.load(g_rgb + point[:, None] * 3 + column - 1, mask=is_colour, other=0.0)
            colour = tl.sigmoid(output)
            d_output = gc * colour * (1.0 - colour)
        else:
            output = _dot(s2, load_output(params, C, HS, LAYERS, 0, 1), PRECISION)
            output += load_output_bias(params, C, HS, HC, LAYERS)[None, :]
            d_output = tl.zeros((ROWS, OUTPUTS), ACC)
        _, d_raw = geometry(sum_columns(output, 0, 1), radius, sdf_scale, sphere_radius, IS_DENSITY)
        d_z = tl.load(g_out + point, mask=is_point, other=0.0) * d_raw
        if WITH_GRADIENT:
            v, d_first, d_last = decoder_slope(s1, s2, params, C, HS, LAYERS, PRECISION)
            hx = tl.load(g_slope + point * 3, mask=is_point, other=0.0)
            hy = tl.load(g_slope + point * 3 + 1, mask=is_point, other=0.0)
            hz = tl.load(g_slope + point * 3 + 2, mask=is_point, other=0.0)
            ux = hx * d_raw
            uy = hy * d_raw
            uz = hz * d_raw
            t = sample_along(planes, x, y, z, ux, uy, uz, resolution, C, ACC)
            if IS_DENSITY:
                # The slope of softplus turns with z: its derivative times u . grad z / slope.
                inverse = 1.0 / tl.maximum(radius, 1e-12)
                outward = (hx * px + hy * py + hz * pz) * inverse / sdf_scale
                d_z += (1.0 - d_raw) * (tl.sum(v * t, axis=1) - d_raw * outward)
        d_output = tl.where(column == 0, d_z[:, None], d_output)
        sum_output += d_output
        d_output = tl.where(column == ONES, 1.0, d_output)
        # Else the weights that were read above would be kept for here.
        tl.debug_barrier()
        d_features, sums_s = hidden_backward(
            features, s1, s2, d_output, params, sums_s, C, HS, LAYERS, 0, 1, PRECISION
        )
        if WITH_COLOUR:
            d_colour, sums_c = hidden_backward(
                features, c1, c2, d_output, params + SDF_SIZE, sums_c, C, HC, LAYERS, 1, 3,
                PRECISION,
            )  # fmt: skip
            d_features += d_colour
        if WITH_GRADIENT:
            tangent_sums = _tangent_sums(
                t, s1, s2, d_first, d_last, d_output, params, tangent_sums, C, HS, LAYERS, PRECISION
            )
            scatter_along(d_planes, x, y, z, ux, uy, uz, d_features, v, is_point, resolution, C)
        else:
            scatter(d_planes, x, y, z, d_features, is_point, resolution, C)
        tile += programs

    partials += tl.multiple_of(tl.program_id(0).to(tl.int64) * SIZE, 16)
    store_sums(partials, _joined(sums_s, tangent_sums), C, HS, LAYERS, 0, 1)
    store_sums(partials + SDF_SIZE, sums_c, C, HC, LAYERS, 1, 3)
    store_output_bias(partials, sum_output, C, HS, HC, LAYERS)


@triton.jit
@no_type_check
def _tangent_sums(t, s1, s2, d_first, d_last, d_output, params, sums, C: tl.constexpr,
                  H: tl.constexpr, LAYERS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """`sums` with the weights' gradients of v . t; biases have none. t holds the factor u.

    They are sums of their own: two products that one accumulator chains would each be computed by
    every warp.
    """
    sum_w1, sum_b1, sum_w2, sum_b2, sum_out = sums
    sum_w1 += _dot(tl.trans(t), d_first, PRECISION)
    along = tl.where(s1 > 0, _dot(t, load_matrix(params, C, H), PRECISION), 0.0)
    if LAYERS == 2:
        sum_w2 += _dot(tl.trans(along), d_last, PRECISION)
        w2 = load_matrix(params + (C + 1) * H, H, H)
        along = tl.where(s2 > 0, _dot(along, w2, PRECISION), 0.0)
    sum_out += _dot(tl.trans(d_output), along, PRECISION)
    return sum_w1, sum_b1, sum_w2, sum_b2, sum_out


@triton.jit
@no_type_check
def _joined(sums, tangent_sums):
    """Both sums in one. The row of ones summed the tangents, whose output is the geometry's."""
    sum_w1, sum_b1, sum_w2, sum_b2, sum_out = sums
    tangent_w1, _, tangent_w2, _, tangent_out = tangent_sums
    row = tl.arange(0, OUTPUTS)[:, None]
    along = tl.sum(tl.where(row == ONES, tangent_out, 0.0), axis=0)
    sum_out += tl.where(row == 0, along[None, :], 0.0)
    return sum_w1 + tangent_w1, sum_b1, sum_w2 + tangent_w2, sum_b2, sum_out


@torch.library.custom_op("scaledreamer::field_query", mutates_args=())
@no_type_check
def query(
    planes: Tensor,
    params: Tensor,
    points: Tensor,
    hidden: Sequence[int],
    is_density: bool,
    sdf_scale: float,
    sphere_radius: float,
    precision: str,
    with_colour: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Geometry, and colour and gradient (empty unless asked for). Every tensor is contiguous.

    `params` are packed decoders and `hidden` their (distance width, colour width, hidden layers).
    """
    num_scenes, num_points, _ = points.shape
    out = points.new_empty(num_scenes, num_points)
    rgb = torch.empty_like(points) if with_colour else points.new_empty(0)
    slope = torch.empty_like(points) if with_gradient else points.new_empty(0)
    if out.numel() == 0:
        return out, rgb, slope
    with torch.cuda.device_of(planes):
        query_forward[(num_scenes * triton.cdiv(num_points, ROWS.value),)](
            readable(planes, precision), params, points, out, rgb, slope,
            num_points, planes.shape[2], row_stride(params), sdf_scale, sphere_radius,
            WITH_COLOUR=with_colour, WITH_GRADIENT=with_gradient,
            num_warps=WARPS, maxnreg=FORWARD_REGISTERS,
            **constants(planes, hidden, is_density, precision),
        )  # fmt: skip
    return out, rgb, slope


@query.register_fake
def _(planes: Tensor, params: Tensor, points: Tensor, *others: Any) -> tuple[Tensor, ...]:
    with_colour, with_gradient = others[-2:]
    return (
        points.new_empty(points.shape[0], points.shape[1]),
        torch.empty_like(points) if with_colour else points.new_empty(0),
        torch.empty_like(points) if with_gradient else points.new_empty(0),
    )


@torch.library.custom_op("scaledreamer::field_query_backward", mutates_args=())
@no_type_check
def query_gradients(
    g_out: Tensor,
    g_rgb: Tensor,
    g_slope: Tensor,
    planes: Tensor,
    params: Tensor,
    points: Tensor,
    hidden: Sequence[int],
    is_density: bool,
    sdf_scale: float,
    sphere_radius: float,
    precision: str,
    with_colour: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of planes and packed decoders."""
    alert_not_deterministic("field_query_backward", planes, ADVICE)
    num_scenes, num_points, _ = points.shape
    d_planes = torch.zeros_like(planes)
    if g_out.numel() == 0:
        return d_planes, torch.zeros_like(params)
    tiles = triton.cdiv(num_points, ROWS.value)
    programs = programs_per_owner(num_scenes, tiles, planes.device)
    partials = params.new_empty(num_scenes * programs, params.shape[1])
    with torch.cuda.device_of(planes):
        query_backward[(len(partials),)](
            readable(planes, precision), params, points,
            g_out.contiguous(), g_rgb.contiguous(), g_slope.contiguous(), d_planes, partials,
            num_points, planes.shape[2], row_stride(params), programs, sdf_scale, sphere_radius,
            SIZE=params.shape[1], WITH_COLOUR=with_colour, WITH_GRADIENT=with_gradient,
            num_warps=WARPS, maxnreg=BACKWARD_REGISTERS,
            **constants(planes, hidden, is_density, precision),
        )  # fmt: skip
        owner = torch.arange(num_scenes, device=planes.device)
        return d_planes, sum_partials(partials, owner, programs, params)


@query_gradients.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs[3]), torch.empty_like(inputs[4])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]
    ctx.shapes = [value.shape for value in output]


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    points = ctx.saved_tensors[2]
    filled = [
        points.new_zeros(shape) if grad is None else grad
        for grad, shape in zip(grads, ctx.shapes, strict=True)
    ]
    return (*query_gradients(*filled, *ctx.saved_tensors, *ctx.settings), *(None,) * 8)


query.register_autograd(_backward, setup_context=_setup)
