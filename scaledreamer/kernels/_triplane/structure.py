"""Checks of a triplane structure, and its decoders as one vector a scene for the kernels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from scaledreamer.interfaces import MLPWeights, TriplaneStructure
from scaledreamer.kernels.backend import choose

WIDTHS = (16, 32, 48, 64)
"""Channels and hidden widths that the kernels take; 48 is padded to 64."""
NUM_LAYERS = (1, 2)
"""Hidden layers that the kernels take."""
Precision = Literal["bf16", "tf32", "accurate", "exact"]
PRECISIONS = {"bf16": "bf16", "tf32": "tf32", "accurate": "tf32x3", "exact": "ieee"}
"""What the decoders' products are computed in, by the doors' name and by the kernels'.

Planes are also read in bfloat16 with "bf16". "exact" uses no tensor cores and is for tests.
"""
ALIGNED = 16
"""Numbers that a scene's packed vector is a multiple of: kernels load four at once."""


def check_structure(structure: TriplaneStructure) -> None:
    """Raises: ValueError naming the tensor whose shape, dtype or device does not fit the planes."""
    planes = structure.planes
    is_square = planes.dim() == 5 and planes.shape[2] == planes.shape[3] > 0
    if not is_square or planes.shape[1] != 3:
        raise ValueError(
            f"structure.planes: got shape {tuple(planes.shape)}; expected [B, 3, R, R, C]"
        )
    if planes.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"structure.planes: got {planes.dtype}; expected float32 or float64")
    if structure.density_kind not in ("sdf", "density"):
        raise ValueError(
            f"structure.density_kind: got {structure.density_kind!r}; expected sdf or density"
        )
    if structure.density_kind == "density" and structure.sdf_scale <= 0:
        raise ValueError(
            f"structure.sdf_scale: got {structure.sdf_scale}; must be positive for a density"
        )
    _check_decoder("structure.sdf_decoder", structure.sdf_decoder, planes, 1)
    _check_decoder("structure.colour_decoder", structure.colour_decoder, planes, 3)


def _check_decoder(name: str, decoder: MLPWeights, planes: Tensor, outputs: int) -> None:
    if not decoder.weights or len(decoder.weights) != len(decoder.biases):
        raise ValueError(
            f"{name}: got {len(decoder.weights)} weights and {len(decoder.biases)} biases; "
            "expected as many of both, at least one"
        )
    inputs, last = planes.shape[-1], len(decoder.weights) - 1
    for layer, (weight, bias) in enumerate(zip(decoder.weights, decoder.biases, strict=True)):
        width = outputs if layer == last else weight.shape[-1]
        _check_rows(f"{name}.weights[{layer}]", weight, planes, (inputs, width))
        _check_rows(f"{name}.biases[{layer}]", bias, planes, (width,))
        inputs = width


def _check_rows(name: str, value: Tensor, planes: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape[1:] != shape or value.shape[0] not in (1, len(planes)):
        wanted = ", ".join(map(str, shape))
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}; expected [{len(planes)} or 1, {wanted}]"
        )
    check_like(name, value, "structure.planes", planes)


def check_like(name: str, value: Tensor, model: str, expected: Tensor) -> None:
    """Raises: ValueError when dtype or device differ."""
    if value.dtype != expected.dtype or value.device != expected.device:
        raise ValueError(
            f"{name}: got {value.dtype} on {value.device}; "
            f"expected {expected.dtype} on {expected.device} like {model}"
        )


def check_fused(structure: TriplaneStructure, precision: str) -> tuple[int, int, int]:
    """Hidden widths of the distance's and of the colour's decoder, and hidden layers of each.

    Raises: ValueError naming what the kernels don't take.
    """
    _, _, resolution, _, channels = structure.planes.shape
    advice = "expected {}; or choose the reference with use_backend"
    if channels not in WIDTHS:
        raise ValueError(
            f"structure.planes: got {channels} channels; {advice.format(f'one of {WIDTHS}')}"
        )
    if 3 * resolution * resolution * channels >= 1 << 31:
        raise ValueError(
            f"structure.planes: got {resolution} texels a side; {advice.format('fewer')}"
        )
    if structure.planes.dtype == torch.float64 and precision != "exact":
        raise ValueError(f"precision: got {precision!r} for float64 planes; expected 'exact'")
    depths: list[tuple[int, int]] = []
    for name in ("sdf_decoder", "colour_decoder"):
        widths = [one.shape[-1] for one in getattr(structure, name).weights[:-1]]
        if len(widths) not in NUM_LAYERS or len(set(widths)) != 1 or widths[0] not in WIDTHS:
            wanted = advice.format(f"1 or 2 of one width of {WIDTHS}")
            raise ValueError(f"structure.{name}: got hidden widths {widths}; {wanted}")
        depths.append((widths[0], len(widths)))
    (sdf_hidden, num_layers), (colour_hidden, other) = depths
    if other != num_layers:
        raise ValueError(
            f"structure.colour_decoder: got {other} hidden layers; "
            f"{advice.format(f'{num_layers} like sdf_decoder')}"
        )
    return sdf_hidden, colour_hidden, num_layers


def packed_size(channels: int, sdf_hidden: int, colour_hidden: int, num_layers: int) -> int:
    """Numbers of one scene's packed vector."""
    used = 4
    for hidden, outputs in ((sdf_hidden, 1), (colour_hidden, 3)):
        used += (channels + 1 + outputs) * hidden + (num_layers - 1) * (hidden + 1) * hidden
    return -(-used // ALIGNED) * ALIGNED


def is_fused(structure: TriplaneStructure) -> bool:
    """Whether fused kernels take the structure: on its device, by choice, and with its widths.

    Raises: ValueError when Triton is chosen and can't run here.
    """
    planes = structure.planes
    if choose("render_triplane", planes, ("reference", "triton")) != "triton":
        return False
    if planes.dtype != torch.float32:
        return False
    try:
        check_fused(structure, "exact")
    except ValueError:
        return False
    return True


def pack(structure: TriplaneStructure) -> Tensor:
    """[B or 1, P]: of each decoder weight, bias, ..., weight; then the last biases and zeros.

    One row where all scenes share their weights. Everything but the last biases is a multiple of 16
    numbers long, so that matrices stay aligned.
    """
    decoders = (structure.sdf_decoder, structure.colour_decoder)
    parts: list[Tensor] = []
    for decoder in decoders:
        for layer, weight in enumerate(decoder.weights):
            parts.append(weight)
            if layer < len(decoder.weights) - 1:
                parts.append(decoder.biases[layer])
    parts += [decoder.biases[-1] for decoder in decoders]
    num_rows = max(len(part) for part in parts)
    rows = [part.reshape(len(part), -1).expand(num_rows, -1) for part in parts]
    missing = -sum(row.shape[1] for row in rows) % ALIGNED
    return torch.cat([*rows, rows[0].new_zeros(num_rows, missing)], dim=1)


def decode(decoder: MLPWeights, features: Tensor) -> Tensor:
    """[B, N, K] of features [B, N, C]: x @ weight + bias, ReLU between layers."""
    last = len(decoder.weights) - 1
    for layer, (weight, bias) in enumerate(zip(decoder.weights, decoder.biases, strict=True)):
        features = features @ weight + bias[:, None]
        if layer < last:
            features = torch.relu(features)
    return features


def signed(structure: TriplaneStructure, raw: Tensor, points: Tensor) -> Tensor:
    """Signed distance or density [B, N] of the first decoder's output [B, N]."""
    sphere = points.norm(dim=-1) - structure.sphere_radius
    if structure.density_kind == "sdf":
        return structure.sdf_scale * raw + sphere
    return torch.nn.functional.softplus(raw - sphere / structure.sdf_scale)
