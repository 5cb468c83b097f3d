from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass
class DecoderParams:
    mlp_params: Tensor
    n_hidden_trunk: Tensor
    n_hidden_opacity: Tensor
    n_hidden_color: Tensor
    color_chn: int


@dataclass
class Rays:
    directions: Tensor
    origins: Tensor
    grid_idx: Tensor
    near: Tensor
    far: Tensor
    encoding: Tensor


def flatten_decoder_params(*lists: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, then biases, of trunk, opacity and colour; the input widths and all outputs."""
    vector = torch.cat([one.reshape(-1) for many in lists for one in many])
    widths = [
        torch.tensor([len(weights[0]), *(weight.shape[1] for weight in weights)])
        for weights in lists[::2]
    ]
    return vector, widths[0], widths[1], widths[2]


def lightplane_renderer(
    rays: Rays,
    grid: Tensor,
    decoder_params: DecoderParams,
    num_samples: int,
    gain: float,
    grid_sizes: list[list[int]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Expected distance, negative logarithm of the transmittance, colour."""
    assert grid.isfinite().all(), "what stripping takes away"
    delta = ((rays.far - rays.near) / (num_samples - 1))[:, None]
    tdist = rays.near[:, None] + delta * torch.arange(num_samples)
    points = rays.origins[:, None] + tdist[..., None] * rays.directions[:, None]  # [R, S, 3]
    features = torch.zeros(*tdist.shape, grid.shape[-1])
    first = 0
    for scenes, depth, height, width, channels in grid_sizes:
        count = scenes * depth * height * width
        volume = grid[first : first + count].view(scenes, depth, height, width, channels)
        features = features + _sampled(volume, points, rays.grid_idx)
        first += count
    params = decoder_params
    trunk, opacity, colour = _mlps(params)
    hidden = torch.relu(_run(trunk, features))
    density = torch.nn.functional.softplus(_run(opacity, hidden)[..., 0])
    colours = torch.sigmoid(_run(colour, hidden + rays.encoding[:, None]))
    total = (delta * gain * density).cumsum(dim=-1)
    light = torch.nn.functional.pad(torch.exp(-total), (1, 0), value=1.0)
    weights = light[:, :-1] - light[:, 1:]
    picture = (weights[..., None] * colours).sum(dim=1)
    return (weights * tdist).sum(dim=1), total[:, -1], picture[:, : params.color_chn]


def _sampled(volume: Tensor, points: Tensor, scene: Tensor) -> Tensor:
    grid = points[:, :, None, None]  # x runs along the width, y along the height
    volumes = volume.movedim(-1, 1)[scene]
    sampled = torch.nn.functional.grid_sample(
        volumes, grid, padding_mode="border", align_corners=False
    )
    return sampled[..., 0, 0].transpose(1, 2)


def _mlps(params: DecoderParams) -> list[list[tuple[Tensor, Tensor]]]:
    rest, out = params.mlp_params, []
    for widths in (params.n_hidden_trunk, params.n_hidden_opacity, params.n_hidden_color):
        pairs = list(pairwise(widths.tolist()))
        sizes = [a * b for a, b in pairs] + [b for _, b in pairs]
        *parts, rest = rest.split([*sizes, len(rest) - sum(sizes)])
        weights = [part.view(pair) for part, pair in zip(parts, pairs, strict=False)]
        out.append(list(zip(weights, parts[len(pairs) :], strict=True)))
    return out


def _run(layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    for number, (weight, bias) in enumerate(layers):
        x = x @ weight + bias
        if number < len(layers) - 1:
            x = torch.relu(x)
    return x
