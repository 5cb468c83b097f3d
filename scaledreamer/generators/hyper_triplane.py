"""Text to three feature planes and, by a hypernetwork, to the decoders that read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from scaledreamer.generators._layers import TransformerBlock, UpBlock, initial_scales, pooled_text
from scaledreamer.generators._triplane import SKY_DIMS, TriplaneField
from scaledreamer.interfaces import MLPWeights, TextEmbedding, TriplaneStructure

_CHANGE = 0.3
"""Size of what an untrained hypernetwork adds to the shared weights, as a share of theirs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a `HyperTriplane`; the defaults suit the embedded world."""

    planes_px: int = 32
    """Texels along a plane's side: `grid_px` times a power of two."""
    plane_channels: int = 16
    """Features per texel."""
    grid_px: int = 8
    """Side of the coarse planes, on which the transformer works."""
    width: int = 128
    """Channels of the transformer, a multiple of 32."""
    num_blocks: int = 2
    """Transformer blocks."""
    style_dim: int = 256
    """Width of the vector that the pooled text becomes."""
    seed_channels: int = 32
    """Channels of the coarse planes that the style writes directly."""
    up_channels: tuple[int, ...] = (96, 64)
    """Channels after each doubling from `grid_px` to `planes_px`, multiples of 16."""
    sdf_hidden: tuple[int, ...] = (32, 32)
    """Hidden widths of the generated distance decoder."""
    colour_hidden: tuple[int, ...] = (32, 32)
    """Hidden widths of the generated colour decoder; as many as `sdf_hidden`."""
    hyper_rank: int = 64
    """Width of the bottleneck before the generated weights."""
    sdf_scale: float = 0.5
    """Factor of the decoder's distance, metres."""
    sphere_radius: float = 0.55
    """Radius of the sphere that an untrained generator shows, metres."""
    latent_dim: int = 0
    """Width of the latent; 0 makes the generator a function of the text alone."""
    background: Literal["none", "learned"] = "none"
    """learned: a generated decoder gives a colour to every direction."""

    def __post_init__(self) -> None:
        doublings = len(self.up_channels)
        if self.planes_px != self.grid_px << doublings:
            raise ValueError(
                f"generator.planes_px: got {self.planes_px}; grid_px {self.grid_px} doubled "
                f"{doublings} times (up_channels) is {self.grid_px << doublings}"
            )
        if self.width % 32 or self.width <= 0:
            raise ValueError(f"generator.width: got {self.width}; must be a multiple of 32")
        if any(channels % 16 or channels <= 0 for channels in self.up_channels):
            raise ValueError(f"generator.up_channels: got {self.up_channels}; multiples of 16")
        if len(self.sdf_hidden) != len(self.colour_hidden) or not self.sdf_hidden:
            raise ValueError(
                f"generator.colour_hidden: got {len(self.colour_hidden)} layers; "
                f"sdf_hidden has {len(self.sdf_hidden)}, and both need at least one"
            )
        if self.latent_dim < 0:
            raise ValueError(f"generator.latent_dim: got {self.latent_dim}; must not be negative")


class HyperDecoder(nn.Module):
    """Per-scene MLP weights: learned shared ones plus what a style adds to them.

    The generating layers have unit gain and their output is scaled instead, so that Adam's step is
    as small beside the generated weights as beside any others.
    Source: Ha et al., "HyperNetworks", 2017; shared weights ours.
    """

    def __init__(self, dims: tuple[int, ...], style_dim: int, rank: int, out_scale: float) -> None:
        super().__init__()
        self.dims = tuple(pairwise(dims))
        scales = initial_scales(dims, out_scale)
        self.weights = nn.ParameterList(
            torch.randn(inputs, outputs) * scale
            for (inputs, outputs), scale in zip(self.dims, scales, strict=True)
        )
        self.biases = nn.ParameterList(torch.zeros(outputs) for _, outputs in self.dims)
        self.down = nn.Linear(style_dim, rank)
        self.gains = tuple(_CHANGE * scale for scale in scales)
        layers = [nn.Linear(rank, (a + 1) * b, bias=False) for a, b in self.dims]
        for layer in layers:
            nn.init.normal_(layer.weight, std=1 / math.sqrt(rank))
        self.up = nn.ModuleList(layers)

    def forward(self, style: Tensor) -> MLPWeights:
        code = nn.functional.silu(self.down(style))
        weights, biases = [], []
        layers = zip(self.dims, self.up, self.gains, self.weights, self.biases, strict=True)
        for (inputs, outputs), layer, gain, weight, bias in layers:
            change = gain * layer(code).unflatten(-1, (inputs + 1, outputs))
            weights.append(weight + change[:, :-1])
            biases.append(bias + change[:, -1])
        return MLPWeights(tuple(weights), tuple(biases))


class HyperTriplane(nn.Module):
    """A transformer over coarse planes that reads the text, then convolutions to fine planes."""

    def __init__(self, config: Config, token_dim: int, pooled_dim: int | None) -> None:
        super().__init__()
        self.config = config
        width, style_dim = config.width, config.style_dim
        self.pooled_dim = pooled_dim
        self.text = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, width))
        inputs = pooled_dim if pooled_dim is not None else token_dim
        self.style_norm = nn.LayerNorm(inputs)
        self.style = nn.Sequential(
            nn.Linear(inputs + config.latent_dim, style_dim),
            nn.SiLU(),
            nn.Linear(style_dim, style_dim),
            nn.SiLU(),
        )
        num_texels = 3 * config.grid_px**2
        self.positions = nn.Parameter(torch.randn(num_texels, width) * 0.5)
        self.seed = nn.Linear(style_dim, num_texels * config.seed_channels)
        self.seed_in = nn.Linear(config.seed_channels, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, style_dim) for _ in range(config.num_blocks)
        )
        channels = (width, *config.up_channels)
        self.ups = nn.ModuleList(UpBlock(a, b, style_dim) for a, b in pairwise(channels))
        self.planes = nn.Conv2d(channels[-1], config.plane_channels, 1)
        rank = config.hyper_rank
        features = config.plane_channels
        self.sdf = HyperDecoder((features, *config.sdf_hidden, 1), style_dim, rank, 0.1)
        self.colour = HyperDecoder((features, *config.colour_hidden, 3), style_dim, rank, 0.3)
        self.sky = (
            HyperDecoder(SKY_DIMS, style_dim, rank, 0.3) if config.background == "learned" else None
        )

    def forward(self, text: TextEmbedding, latent: Tensor | None = None) -> TriplaneField:
        style = self._style(text, latent)
        planes = self._planes(text, style)
        with torch.autocast(style.device.type, enabled=False):
            style = style.float() if style.dtype in (torch.bfloat16, torch.float16) else style
            structure = TriplaneStructure(
                planes=planes.to(style.dtype),
                sdf_decoder=self.sdf(style),
                colour_decoder=self.colour(style),
                sdf_scale=self.config.sdf_scale,
                sphere_radius=self.config.sphere_radius,
            )
            background = None if self.sky is None else self.sky(style)
        return TriplaneField(structure, background)

    def _style(self, text: TextEmbedding, latent: Tensor | None) -> Tensor:
        if (latent is None) != (self.config.latent_dim == 0):
            got = "none" if latent is None else f"shape {tuple(latent.shape)}"
            raise ValueError(f"latent: got {got}; expected [B, {self.config.latent_dim}]")
        pooled = self.style_norm(pooled_text(text, self.pooled_dim))
        if latent is not None:
            pooled = torch.cat((pooled, latent), dim=-1)
        return self.style(pooled)

    def _planes(self, text: TextEmbedding, style: Tensor) -> Tensor:
        grid_px = self.config.grid_px
        memory = self.text(text.tokens)
        seed = self.seed(style).unflatten(-1, (-1, self.config.seed_channels))
        x = self.positions + self.seed_in(seed)  # [B, 3 * g * g, W]
        for block in self.blocks:
            x = block(x, style, memory, text.mask)
        x = x.unflatten(1, (3, grid_px, grid_px)).flatten(0, 1).permute(0, 3, 1, 2)
        for up in self.ups:
            x = up(x, style)
        planes = self.planes(x).permute(0, 2, 3, 1)
        return planes.unflatten(0, (-1, 3))  # [B, 3, R, R, C], channels last in memory


def create(config: Config, token_dim: int, pooled_dim: int | None) -> HyperTriplane:
    """An untrained generator for texts of that token and pooled width."""
    return HyperTriplane(config, token_dim, pooled_dim)
