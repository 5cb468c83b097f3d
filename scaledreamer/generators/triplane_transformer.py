"""Triplane-Transformer: learned tokens that read the prompt's words become three planes.

Source: Ma et al., "ScaleDreamer", ECCV 2024, and its code, after Hong et al., "LRM", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaledreamer.generators._layers import Attention, initial_scales
from scaledreamer.generators._triplane import TriplaneField
from scaledreamer.interfaces import MLPWeights, TextEmbedding, TriplaneStructure


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes; the defaults suit the embedded world, the published ones are named."""

    grid_px: int = 16
    """Tokens along a plane's side; planes have twice as many texels. Published: 32."""
    width: int = 128
    """Of the tokens, a multiple of `head_dim`; published: 768."""
    num_blocks: int = 3
    """Published: 12."""
    head_dim: int = 32
    """Width of an attention head; published: 48."""
    plane_channels: int = 16
    """Features per texel; those of the three planes are joined. Published: 32."""
    hidden: tuple[int, ...] = (32, 32)
    """Hidden widths of the two bias-free decoders; published: 64, 64."""
    sdf_scale: float = 0.5
    """Factor of the decoder's distance, metres."""
    sphere_radius: float = 0.55
    """Radius of the sphere that an untrained generator shows, metres; published: 0.8."""
    background: Literal["none", "learned"] = "none"
    """learned: a colour to every direction, the same for all prompts, as published."""
    use_checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping what they hold."""

    def __post_init__(self) -> None:
        if self.width % self.head_dim or self.width <= 0:
            raise ValueError(
                f"generator.width: got {self.width}; must be a multiple of head_dim {self.head_dim}"
            )
        for name in ("grid_px", "num_blocks", "plane_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}: got {getattr(self, name)}; at least 1")
        if not self.hidden:
            raise ValueError("generator.hidden: got none; at least one width")


class Block(nn.Module):
    """Cross-attention to the text, self-attention, and an MLP, each behind a norm."""

    def __init__(self, width: int, token_dim: int, head_dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.cross = Attention(width, token_dim, head_dim, has_bias=False)
        self.own = Attention(width, None, head_dim, has_bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        x = x + self.cross(self.norms[0](x), text, mask)
        x = x + self.own(self.norms[1](x))
        return x + self.mlp(self.norms[2](x))


class SharedDecoder(nn.Module):
    """A bias-free MLP that all scenes share, as per-scene weights."""

    def __init__(self, dims: tuple[int, ...], out_scale: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            torch.randn(a, b) * scale
            for (a, b), scale in zip(pairwise(dims), initial_scales(dims, out_scale), strict=True)
        )

    def forward(self, num_scenes: int) -> MLPWeights:
        weights = tuple(one.expand(num_scenes, -1, -1) for one in self.weights)
        return MLPWeights(
            weights, tuple(one.new_zeros(num_scenes, one.shape[-1]) for one in weights)
        )


class TriplaneTransformer(nn.Module):
    """Reads the prompt's tokens alone; deterministic."""

    def __init__(self, config: Config, token_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.tokens = nn.Parameter(torch.randn(3 * config.grid_px**2, width) * 0.5)
        self.blocks = nn.ModuleList(
            Block(width, token_dim, config.head_dim) for _ in range(config.num_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.up = nn.ConvTranspose2d(width, config.plane_channels, 2, stride=2)
        features = 3 * config.plane_channels
        self.sdf = SharedDecoder((features, *config.hidden, 1), 0.1)
        self.colour = SharedDecoder((features, *config.hidden, 3), 0.3)
        self.sky = None
        if config.background == "learned":
            self.sky = SharedDecoder((9, 16, 16, 3), 0.3)

    def forward(self, text: TextEmbedding, latent: Tensor | None = None) -> TriplaneField:
        if latent is not None:
            raise ValueError(f"latent: got shape {tuple(latent.shape)}; this generator takes none")
        config, count = self.config, len(text)
        structure = TriplaneStructure(
            planes=side_by_side(self._planes(text)),
            sdf_decoder=self.sdf(count),
            colour_decoder=self.colour(count),
            sdf_scale=config.sdf_scale,
            sphere_radius=config.sphere_radius,
        )
        return TriplaneField(structure, None if self.sky is None else self.sky(count))

    def _planes(self, text: TextEmbedding) -> Tensor:
        """[B, 3, R, R, C], channels last in memory, at least float32."""
        side = self.config.grid_px
        x = self.tokens.expand(len(text), -1, -1)
        for block in self.blocks:
            if self.config.use_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, text.tokens, text.mask, use_reentrant=False)
            else:
                x = block(x, text.tokens, text.mask)
        x = self.norm(x).unflatten(1, (3, side, side)).flatten(0, 1).permute(0, 3, 1, 2)
        planes = self.up(x).permute(0, 2, 3, 1).unflatten(0, (-1, 3))
        return planes.to(self.tokens.dtype)


def side_by_side(planes: Float[Tensor, "B 3 R R C"]) -> Float[Tensor, "B 3 R R C3"]:
    """Each plane's features in channels of its own, so that the sum of the three joins them."""
    channels = planes.shape[-1]
    parts = [nn.functional.pad(planes[:, k], (k * channels, (2 - k) * channels)) for k in range(3)]
    return torch.stack(parts, dim=1)


def create(config: Config, token_dim: int, pooled_dim: int | None) -> TriplaneTransformer:
    """An untrained generator for texts of that token width."""
    return TriplaneTransformer(config, token_dim)
