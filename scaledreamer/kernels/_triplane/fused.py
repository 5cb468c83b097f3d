"""Device functions of the kernels on triplane structures.

M rows are points of one scene. Features are padded to CP channels and hidden layers to HP units,
powers of two; padding holds zeros. Both decoders write one output tile [M, 16]: column 0 is the
geometry's raw output, 1 to 3 are the colour's. In backward passes column 4 of its gradient is one:
the product that sums weights' gradients over rows then sums biases' too.
`no_type_check` keeps checkers of types, which wrap functions, from what is read as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

OUTPUTS = tl.constexpr(16)
ONES = tl.constexpr(4)
WINDOW = tl.constexpr(8)
"""Texels along each side of what a tile's gradient of a plane is summed in before memory."""
PROGRAMS_PER_SM = 4
"""Backward programs: two waves of the two that fit on a multiprocessor."""
BACKWARD_REGISTERS = 255
"""Registers that a thread may have: all. Unless told, the assembler may settle for 32 and spill."""
ADVICE = "keep the field on the CPU, where the reference adds in a fixed order"
"""To who asks for a plane's gradient that repeats; `grid_sample` on a GPU has none either."""
READ_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Type of the copy of the planes that is read; their own where none is listed."""


@triton.jit
@no_type_check
def dot(a, b, PRECISION: tl.constexpr):
    """a @ b, accumulated in the type of `a`."""
    if PRECISION == "bf16":
        out = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRECISION == "fp16":
        out = tl.dot(a.to(tl.float16), b.to(tl.float16))
    else:
        out = tl.dot(a, b, input_precision=PRECISION, out_dtype=a.dtype)
    return out


@triton.jit
@no_type_check
def sum_columns(tile, FIRST: tl.constexpr, NUM: tl.constexpr):
    """Sum of columns FIRST to FIRST + NUM - 1 of an output tile."""
    column = tl.arange(0, OUTPUTS)[None, :]
    return tl.sum(tl.where((column >= FIRST) & (column < FIRST + NUM), tile, 0.0), axis=1)


# Decoders


@triton.jit
@no_type_check
def load_matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] padded with zeros to powers of two."""
    PADDED_ROWS: tl.constexpr = 64 if ROWS == 48 else ROWS
    PADDED_COLUMNS: tl.constexpr = 64 if COLUMNS == 48 else COLUMNS
    row = tl.arange(0, PADDED_ROWS)[:, None]
    column = tl.arange(0, PADDED_COLUMNS)[None, :]
    is_real = (row < ROWS) & (column < COLUMNS)
    return tl.load(pointer + row * COLUMNS + column, mask=is_real, other=0.0)


@triton.jit
@no_type_check
def store_matrix(pointer, value, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, value.shape[0])[:, None]
    column = tl.arange(0, value.shape[1])[None, :]
    is_real = (row < ROWS) & (column < COLUMNS)
    tl.store(pointer + row * COLUMNS + column, value, mask=is_real)


@triton.jit
@no_type_check
def load_vector(pointer, SIZE: tl.constexpr):
    PADDED: tl.constexpr = 64 if SIZE == 48 else SIZE
    index = tl.arange(0, PADDED)
    return tl.load(pointer + index, mask=index < SIZE, other=0.0)


@triton.jit
@no_type_check
def load_output(params, C: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr,
                FIRST: tl.constexpr, NUM: tl.constexpr):  # fmt: skip
    """Last weight [HP, 16] of a decoder that writes columns FIRST to FIRST + NUM - 1."""
    START: tl.constexpr = (C + 1) * H + (LAYERS - 1) * (H + 1) * H
    PADDED: tl.constexpr = 64 if H == 48 else H
    row = tl.arange(0, PADDED)[:, None]
    column = tl.arange(0, OUTPUTS)[None, :] - FIRST
    is_real = (row < H) & (column >= 0) & (column < NUM)
    return tl.load(params + START + row * NUM + column, mask=is_real, other=0.0)


@triton.jit
@no_type_check
def load_output_bias(params, C: tl.constexpr, HS: tl.constexpr, HC: tl.constexpr,
                     LAYERS: tl.constexpr):  # fmt: skip
    """[16]: the biases of both decoders' outputs, in their columns."""
    START: tl.constexpr = (
        (C + 1) * (HS + HC) + (LAYERS - 1) * ((HS + 1) * HS + (HC + 1) * HC) + HS + 3 * HC
    )
    column = tl.arange(0, OUTPUTS)
    return tl.load(params + START + column, mask=column < 4, other=0.0)


@triton.jit
@no_type_check
def hidden(features, params, C: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """Activations of the first and of the last hidden layer of the decoder at `params`.

    Weights are read again for every tile, here and in the backward pass: products spread each over
    so many threads that kept ones would take more registers than there are.
    """
    b1 = load_vector(params + C * H, H)
    first = tl.maximum(dot(features, load_matrix(params, C, H), PRECISION) + b1[None, :], 0.0)
    last = first
    if LAYERS == 2:
        w2 = load_matrix(params + (C + 1) * H, H, H)
        b2 = load_vector(params + (C + 1 + H) * H, H)
        last = tl.maximum(dot(first, w2, PRECISION) + b2[None, :], 0.0)
    return first, last


@triton.jit
@no_type_check
def decoder_slope(first, last, params, C: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """Derivative [M, CP] of the first decoder's output in the features, and the derivatives in the
    sums of both hidden layers that it consists of."""
    w_out = load_output(params, C, H, LAYERS, 0, 1)
    d_last = tl.where(last > 0, tl.sum(w_out, axis=1)[None, :], 0.0)
    d_first = d_last
    if LAYERS == 2:
        w2 = load_matrix(params + (C + 1) * H, H, H)
        d_first = tl.where(first > 0, dot(d_last, tl.trans(w2), PRECISION), 0.0)
    return dot(d_first, tl.trans(load_matrix(params, C, H)), PRECISION), d_first, d_last


@triton.jit
@no_type_check
def outputs(s_last, c_last, params, C: tl.constexpr, HS: tl.constexpr, HC: tl.constexpr,
            LAYERS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The output tile of both decoders' last hidden layers."""
    SDF_SIZE: tl.constexpr = (C + 1) * HS + (LAYERS - 1) * (HS + 1) * HS + HS
    out = dot(s_last, load_output(params, C, HS, LAYERS, 0, 1), PRECISION)
    out += dot(c_last, load_output(params + SDF_SIZE, C, HC, LAYERS, 1, 3), PRECISION)
    return out + load_output_bias(params, C, HS, HC, LAYERS)[None, :]


@triton.jit
@no_type_check
def zero_sums(C: tl.constexpr, H: tl.constexpr, ACC: tl.constexpr):
    """Gradients of one decoder's hidden weights and, transposed, of its biases and last weight."""
    CP: tl.constexpr = 64 if C == 48 else C
    HP: tl.constexpr = 64 if H == 48 else H
    w1 = tl.zeros((CP, HP), ACC)
    w2 = tl.zeros((HP, HP), ACC)
    b1 = tl.zeros((OUTPUTS, HP), ACC)
    b2 = tl.zeros((OUTPUTS, HP), ACC)
    out = tl.zeros((OUTPUTS, HP), ACC)
    return w1, b1, w2, b2, out


@triton.jit
@no_type_check
def hidden_backward(features, first, last, d_output, params, sums, C: tl.constexpr,
                    H: tl.constexpr, LAYERS: tl.constexpr, FIRST: tl.constexpr,
                    NUM: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradient of the features, and `sums` with these rows' gradients of the weights."""
    sum_w1, sum_b1, sum_w2, sum_b2, sum_out = sums
    w_out = load_output(params, C, H, LAYERS, FIRST, NUM)
    d_output_t = tl.trans(d_output)
    sum_out += dot(d_output_t, last, PRECISION)
    d_first = tl.where(last > 0, dot(d_output, tl.trans(w_out), PRECISION), 0.0)
    if LAYERS == 2:
        sum_w2 += dot(tl.trans(first), d_first, PRECISION)
        sum_b2 += dot(d_output_t, d_first, PRECISION)
        w2 = load_matrix(params + (C + 1) * H, H, H)
        d_first = tl.where(first > 0, dot(d_first, tl.trans(w2), PRECISION), 0.0)
    sum_w1 += dot(tl.trans(features), d_first, PRECISION)
    sum_b1 += dot(d_output_t, d_first, PRECISION)
    d_features = dot(d_first, tl.trans(load_matrix(params, C, H)), PRECISION)
    return d_features, (sum_w1, sum_b1, sum_w2, sum_b2, sum_out)


@triton.jit
@no_type_check
def store_sums(params, sums, C: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr,
               FIRST: tl.constexpr, NUM: tl.constexpr):  # fmt: skip
    """Write one decoder's gradients in the order of its packed weights."""
    sum_w1, sum_b1, sum_w2, sum_b2, sum_out = sums
    START: tl.constexpr = (C + 1) * H + (LAYERS - 1) * (H + 1) * H
    row = tl.arange(0, OUTPUTS)[:, None]
    unit = tl.arange(0, sum_out.shape[1])[None, :]
    is_bias = (row == ONES) & (unit < H)
    store_matrix(params, sum_w1, C, H)
    tl.store(params + C * H + unit + 0 * row, sum_b1, mask=is_bias)
    if LAYERS == 2:
        store_matrix(params + (C + 1) * H, sum_w2, H, H)
        tl.store(params + (C + 1 + H) * H + unit + 0 * row, sum_b2, mask=is_bias)
    is_output = (row >= FIRST) & (row < FIRST + NUM) & (unit < H)
    tl.store(params + START + unit * NUM + row - FIRST, sum_out, mask=is_output)


@triton.jit
@no_type_check
def store_output_bias(params, d_output, C: tl.constexpr, HS: tl.constexpr, HC: tl.constexpr,
                      LAYERS: tl.constexpr):  # fmt: skip
    """Write the rows' sum of the output tile's gradient, and zeros up to a multiple of 16."""
    START: tl.constexpr = (
        (C + 1) * (HS + HC) + (LAYERS - 1) * ((HS + 1) * HS + (HC + 1) * HC) + HS + 3 * HC
    )
    column = tl.arange(0, OUTPUTS)
    total = tl.sum(d_output, axis=0)
    tl.store(params + START + column, tl.where(column < 4, total, 0.0))


@triton.jit
@no_type_check
def reduce_partials(
    partials,
    owner,
    out,
    num_rows,
    rows_per_owner,
    SIZE: tl.constexpr,
    IS_SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[b] = sum of the rows of scene b (of all rows, if shared), in a fixed order."""
    num_blocks = tl.cdiv(SIZE, COLUMNS)
    scene = tl.program_id(0) // num_blocks
    column = (tl.program_id(0) % num_blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), partials.dtype.element_ty)
    start = 0
    while start < num_rows:
        row = start + tl.arange(0, ROWS)
        is_real = row < num_rows
        if not IS_SHARED:
            mine = tl.load(owner + row // rows_per_owner, mask=is_real, other=-1)
            is_real = is_real & (mine == scene)
        pointers = partials + row.to(tl.int64)[:, None] * SIZE + column
        total += tl.load(pointers, mask=is_real[:, None] & (column < SIZE), other=0.0)
        start += ROWS
    summed = tl.sum(total, axis=0)
    column = (tl.program_id(0) % num_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(out + scene.to(tl.int64) * SIZE + column, summed, mask=column < SIZE)


# Planes


@triton.jit
@no_type_check
def locate(x, resolution):
    """Lower and upper texel along one axis, the upper's share, and its derivative in x.

    Centres lie at (2 i + 1) / R - 1; beyond the outermost the border holds and the slope is zero.
    """
    at = ((x + 1.0) * resolution - 1.0) * 0.5
    slope = tl.where((at >= 0.0) & (at <= resolution - 1.0), 0.5 * resolution, 0.0).to(x.dtype)
    at = tl.minimum(tl.maximum(at, 0.0), resolution - 1.0)
    low = at.to(tl.int32)
    high = tl.minimum(low + 1, resolution - 1)
    return low, high, (at - low.to(x.dtype)).to(x.dtype), slope


@triton.jit
@no_type_check
def _texels(planes, plane, row, column, resolution, C: tl.constexpr):
    """Pointers to the channels of texels, and which of the padded channels exist."""
    CP: tl.constexpr = 64 if C == 48 else C
    channel = tl.arange(0, CP)[None, :]
    offset = ((plane * resolution + row) * resolution + column) * C
    return planes + offset[:, None] + channel, channel < C


@triton.jit
@no_type_check
def _read(planes, plane, row, column, resolution, C: tl.constexpr, ACC: tl.constexpr):
    pointers, is_real = _texels(planes, plane, row, column, resolution, C)
    texel = tl.load(pointers, mask=is_real, other=0.0) if C == 48 else tl.load(pointers)
    return texel.to(ACC)


@triton.jit
@no_type_check
def _sample(planes, plane, across, along, resolution, C: tl.constexpr, ACC: tl.constexpr):
    left, right, right_share, _ = across
    top, bottom, bottom_share, _ = along
    left_share = 1.0 - right_share
    top_share = 1.0 - bottom_share
    out = (left_share * top_share)[:, None] * _read(planes, plane, top, left, resolution, C, ACC)
    out += (right_share * top_share)[:, None] * _read(planes, plane, top, right, resolution, C, ACC)
    out += (left_share * bottom_share)[:, None] * _read(
        planes, plane, bottom, left, resolution, C, ACC
    )
    out += (right_share * bottom_share)[:, None] * _read(
        planes, plane, bottom, right, resolution, C, ACC
    )
    return out


@triton.jit
@no_type_check
def sample(planes, x, y, z, resolution, C: tl.constexpr, ACC: tl.constexpr):
    """Features [M, CP] of one scene's planes at located x, y, z."""
    out = _sample(planes, 0, x, y, resolution, C, ACC)
    out += _sample(planes, 1, x, z, resolution, C, ACC)
    out += _sample(planes, 2, y, z, resolution, C, ACC)
    return out


@triton.jit
@no_type_check
def _differences(planes, plane, across, along, direction, resolution, C: tl.constexpr,
                 ACC: tl.constexpr):  # fmt: skip
    """Derivatives across and along of `direction` . features; direction is [M, CP]."""
    left, right, right_share, across_slope = across
    top, bottom, bottom_share, along_slope = along
    a = _read(planes, plane, top, left, resolution, C, ACC)
    b = _read(planes, plane, top, right, resolution, C, ACC)
    c = _read(planes, plane, bottom, left, resolution, C, ACC)
    d = _read(planes, plane, bottom, right, resolution, C, ACC)
    twist = a - b - c + d
    d_across = tl.sum(direction * (b - a + bottom_share[:, None] * twist), axis=1)
    d_along = tl.sum(direction * (c - a + right_share[:, None] * twist), axis=1)
    return d_across * across_slope, d_along * along_slope


@triton.jit
@no_type_check
def _along(planes, plane, across, along, du, dv, resolution, C: tl.constexpr, ACC: tl.constexpr):
    left, right, right_share, across_slope = across
    top, bottom, bottom_share, along_slope = along
    du = du * across_slope
    dv = dv * along_slope
    left_share = 1.0 - right_share
    top_share = 1.0 - bottom_share
    out = (-du * top_share - dv * left_share)[:, None] * _read(
        planes, plane, top, left, resolution, C, ACC
    )
    out += (du * top_share - dv * right_share)[:, None] * _read(
        planes, plane, top, right, resolution, C, ACC
    )
    out += (dv * left_share - du * bottom_share)[:, None] * _read(
        planes, plane, bottom, left, resolution, C, ACC
    )
    out += (du * bottom_share + dv * right_share)[:, None] * _read(
        planes, plane, bottom, right, resolution, C, ACC
    )
    return out


@triton.jit
@no_type_check
def sample_along(planes, x, y, z, ux, uy, uz, resolution, C: tl.constexpr, ACC: tl.constexpr):
    """Derivative [M, CP] of the features in the direction u."""
    out = _along(planes, 0, x, y, ux, uy, resolution, C, ACC)
    out += _along(planes, 1, x, z, ux, uz, resolution, C, ACC)
    out += _along(planes, 2, y, z, uy, uz, resolution, C, ACC)
    return out


@triton.jit
@no_type_check
def gradient(planes, x, y, z, direction, resolution, C: tl.constexpr, ACC: tl.constexpr):
    """Spatial gradient of `direction` . features, three [M]."""
    x0, y0 = _differences(planes, 0, x, y, direction, resolution, C, ACC)
    x1, z1 = _differences(planes, 1, x, z, direction, resolution, C, ACC)
    y2, z2 = _differences(planes, 2, y, z, direction, resolution, C, ACC)
    return x0 + x1, y0 + y2, z1 + z2


@triton.jit
@no_type_check
def _add(planes, plane, row, column, value, is_live, resolution, C: tl.constexpr):
    pointers, is_real = _texels(planes, plane, row, column, resolution, C)
    mask = is_live[:, None]
    if C == 48:
        mask = mask & is_real
    tl.atomic_add(pointers, value, mask=mask, sem="relaxed")


@triton.jit
@no_type_check
def _scatter(planes, plane, across, along, value, is_live, resolution, C: tl.constexpr):
    left, right, right_share, _ = across
    top, bottom, bottom_share, _ = along
    left_share = 1.0 - right_share
    top_share = 1.0 - bottom_share
    _add(planes, plane, top, left, (left_share * top_share)[:, None] * value, is_live,
         resolution, C)  # fmt: skip
    _add(planes, plane, top, right, (right_share * top_share)[:, None] * value, is_live,
         resolution, C)  # fmt: skip
    _add(planes, plane, bottom, left, (left_share * bottom_share)[:, None] * value, is_live,
         resolution, C)  # fmt: skip
    _add(planes, plane, bottom, right, (right_share * bottom_share)[:, None] * value, is_live,
         resolution, C)  # fmt: skip


@triton.jit
@no_type_check
def scatter(planes, x, y, z, value, is_live, resolution, C: tl.constexpr):
    """Add the features' gradient [M, CP] of live rows to the planes'."""
    _scatter(planes, 0, x, y, value, is_live, resolution, C)
    _scatter(planes, 1, x, z, value, is_live, resolution, C)
    _scatter(planes, 2, y, z, value, is_live, resolution, C)


@triton.jit
@no_type_check
def _window(axis, is_live):
    """First texel of the live rows along an axis, and whether a window holds all."""
    low, high, _, _ = axis
    first = tl.min(tl.where(is_live, low, 1 << 24), axis=0)
    last = tl.max(tl.where(is_live, high, 0), axis=0)
    return first, last < first + WINDOW


@triton.jit
@no_type_check
def _splat(planes, plane, across, along, left, top, value, is_live, resolution,
           C: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """`_scatter` of rows whose texels lie in the window at `left`, `top`: summed by one product."""
    texel = tl.arange(0, WINDOW * WINDOW)
    column = texel % WINDOW
    row = texel // WINDOW
    low, _, share, _ = across
    # Dead rows lie outside of the window.
    u = tl.where(is_live, (low - left).to(share.dtype) + share, -1.0)
    low, _, share, _ = along
    v = (low - top).to(share.dtype) + share
    weight = tl.maximum(1.0 - tl.abs(u[None, :] - column[:, None].to(u.dtype)), 0.0)
    weight *= tl.maximum(1.0 - tl.abs(v[None, :] - row[:, None].to(v.dtype)), 0.0)
    total = dot(weight, value, PRECISION)
    # Not-a-number is passed on, and reaches all of the window, which may end beyond the plane.
    is_touched = tl.sum(tl.abs(total), axis=1) != 0.0
    is_touched &= (top + row < resolution) & (left + column < resolution)
    _add(planes, plane, top + row, left + column, total, is_touched, resolution, C)


@triton.jit
@no_type_check
def _scatter_plane(planes, plane, across, along, left, top, fits, value, is_live, resolution,
                   C: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    if fits:
        _splat(planes, plane, across, along, left, top, value, is_live, resolution, C, PRECISION)
    else:
        _scatter(planes, plane, across, along, value, is_live, resolution, C)


@triton.jit
@no_type_check
def scatter_tile(planes, x, y, z, value, is_live, resolution, C: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """`scatter` of rows that lie close together: summed on chip where a window holds them."""
    x0, is_x = _window(x, is_live)
    y0, is_y = _window(y, is_live)
    z0, is_z = _window(z, is_live)
    _scatter_plane(planes, 0, x, y, x0, y0, is_x & is_y, value, is_live, resolution, C, PRECISION)
    _scatter_plane(planes, 1, x, z, x0, z0, is_x & is_z, value, is_live, resolution, C, PRECISION)
    _scatter_plane(planes, 2, y, z, y0, z0, is_y & is_z, value, is_live, resolution, C, PRECISION)


@triton.jit
@no_type_check
def _scatter_along(planes, plane, across, along, du, dv, value, slope, is_live, resolution,
                   C: tl.constexpr):  # fmt: skip
    left, right, right_share, across_slope = across
    top, bottom, bottom_share, along_slope = along
    du = du * across_slope
    dv = dv * along_slope
    left_share = 1.0 - right_share
    top_share = 1.0 - bottom_share
    part = (left_share * top_share)[:, None] * value
    part += (-du * top_share - dv * left_share)[:, None] * slope
    _add(planes, plane, top, left, part, is_live, resolution, C)
    part = (right_share * top_share)[:, None] * value
    part += (du * top_share - dv * right_share)[:, None] * slope
    _add(planes, plane, top, right, part, is_live, resolution, C)
    part = (left_share * bottom_share)[:, None] * value
    part += (dv * left_share - du * bottom_share)[:, None] * slope
    _add(planes, plane, bottom, left, part, is_live, resolution, C)
    part = (right_share * bottom_share)[:, None] * value
    part += (du * bottom_share + dv * right_share)[:, None] * slope
    _add(planes, plane, bottom, right, part, is_live, resolution, C)


@triton.jit
@no_type_check
def scatter_along(planes, x, y, z, ux, uy, uz, value, slope, is_live, resolution,
                  C: tl.constexpr):  # fmt: skip
    """`scatter` of the gradient `value` of the features and `slope` of their derivative along u."""
    _scatter_along(planes, 0, x, y, ux, uy, value, slope, is_live, resolution, C)
    _scatter_along(planes, 1, x, z, ux, uz, value, slope, is_live, resolution, C)
    _scatter_along(planes, 2, y, z, uy, uz, value, slope, is_live, resolution, C)


# Geometry


@triton.jit
@no_type_check
def geometry(raw, radius, sdf_scale, sphere_radius, IS_DENSITY: tl.constexpr):
    """Signed distance or density of the decoder's output, and its derivative in that."""
    if IS_DENSITY:
        z = raw + (sphere_radius - radius) / sdf_scale
        tail = tl.exp(-tl.abs(z))
        above = 1.0 + tail
        # log(1 + tail) without losing a small tail (Kahan).
        is_lost = above == 1.0
        log = tl.where(is_lost, tail, tl.log(above) * (tail / tl.where(is_lost, 1.0, above - 1.0)))
        value = tl.maximum(z, 0.0) + log
        slope = tl.where(z > 0, 1.0, tail) / above
    else:
        value = sdf_scale * raw + (radius - sphere_radius)
        slope = tl.zeros_like(raw) + sdf_scale
    return value, slope


# Launches


def constants(
    planes: Tensor, hidden: Sequence[int], is_density: bool, precision: str
) -> dict[str, Any]:
    """Launch arguments that every kernel on a structure takes."""
    return {
        "C": planes.shape[-1],
        "HS": hidden[0],
        "HC": hidden[1],
        "LAYERS": hidden[2],
        "IS_DENSITY": is_density,
        "PRECISION": precision,
        "ACC": tl.float64 if planes.dtype == torch.float64 else tl.float32,
        "num_stages": 1,
    }


def readable(planes: Tensor, precision: str) -> Tensor:
    return planes.to(READ_DTYPES.get(precision, planes.dtype))


def row_stride(params: Tensor) -> int:
    """Between scenes' packed decoders; 0 where they share one."""
    return 0 if len(params) == 1 else params.shape[1]


def programs_per_owner(num_owners: int, num_tiles: int, device: torch.device) -> int:
    """Backward programs that share the tiles of one view or scene, each with sums of its own."""
    wanted = 2 * num_owners
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        wanted = PROGRAMS_PER_SM * properties.multi_processor_count
    return max(1, min(num_tiles, -(-wanted // max(num_owners, 1))))


def sum_partials(partials: Tensor, owner: Tensor, programs: int, params: Tensor) -> Tensor:
    """Gradient of packed decoders: each owner has `programs` rows of partial sums.

    `owner` [rows / programs] int64 is the scene that they belong to.
    """
    out = torch.empty_like(params)
    num_rows, size = partials.shape
    launch: Any = reduce_partials[(len(params) * triton.cdiv(size, 64),)]
    launch(
        partials,
        owner,
        out,
        num_rows,
        programs,
        SIZE=size,
        IS_SHARED=len(params) == 1,
        ROWS=32,
        COLUMNS=64,
        num_warps=4,
    )
    return out
