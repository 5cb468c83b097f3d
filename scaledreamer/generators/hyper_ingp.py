"""Hyper-iNGP: one hash grid for all prompts, and decoders that each prompt's text generates.

Source: Ma et al., "ScaleDreamer", ECCV 2024, and its code; Mueller et al., Instant NGP, SIGGRAPH
2022, for the grid. Unlike the code, any number of views of a prompt share its decoders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from scaledreamer.generators._field import DecodedField
from scaledreamer.generators._layers import initial_scales, pooled_text
from scaledreamer.interfaces import MLPWeights, TextEmbedding
from scaledreamer.kernels.hash_encode import HashLevels, hash_encode

_FEATURE_STD = 0.1
"""Deviation of the coarsest level's untrained features; that of finer ones falls with their cells,
so that the first surface is smooth. The paper's code starts all at 1e-4."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes; the defaults suit the embedded world, the published ones are named."""

    num_levels: int = 8
    """Levels of the grid; published: 16."""
    log2_table_size: int = 14
    """Most entries of a level, as a power of two; published: 19."""
    base_resolution: int = 4
    """Cells a side of the coarsest level; published: 16."""
    finest_resolution: int = 64
    """Cells a side of the finest level; published: 4096."""
    level_features: int = 2
    """Features of an entry."""
    code_dim: int = 64
    """Width of what the text becomes before it generates weights."""
    hidden: int = 64
    """Hidden width of the generated decoders, which have one hidden layer and no biases."""
    sdf_scale: float = 0.5
    """Factor of the decoder's distance, metres."""
    sphere_radius: float = 0.55
    """Radius of the sphere that an untrained generator shows, metres; published: 0.5."""
    background: Literal["none", "learned"] = "none"
    """learned: a grid over directions and a generated decoder, conditioned on the prompt."""

    def __post_init__(self) -> None:
        for name in ("level_features", "code_dim", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}: got {getattr(self, name)}; at least 1")
        if self.sdf_scale <= 0:
            raise ValueError(f"generator.sdf_scale: got {self.sdf_scale}; must be positive")
        _ = self.levels  # raises for a grid that can't be

    @property
    def levels(self) -> HashLevels:
        try:
            return HashLevels(
                num_levels=self.num_levels,
                log2_table_size=self.log2_table_size,
                base_resolution=self.base_resolution,
                finest_resolution=self.finest_resolution,
            )
        except ValueError as error:
            raise ValueError(f"generator.{error}") from error


_SKY_LEVELS = HashLevels(
    num_levels=16, log2_table_size=19, base_resolution=16, finest_resolution=16
)
"""As in the paper's code, whose levels over directions are all of one resolution."""


class HashGrid(nn.Module):
    """A trainable table over [-1, 1]^3."""

    def __init__(self, levels: HashLevels, num_features: int) -> None:
        super().__init__()
        self.levels = levels
        self.width = levels.num_levels * num_features
        table = torch.randn(levels.num_entries, num_features) * _FEATURE_STD
        parts = zip(levels.sizes, levels.resolutions, strict=True)
        fall = [torch.full((size, 1), levels.resolutions[0] / cells) for size, cells in parts]
        self.table = nn.Parameter(table * torch.cat(fall))

    def forward(self, points: Tensor) -> Tensor:
        """[B, N, 3] -> [B, N, LF]; the points get no gradient."""
        with torch.autocast(points.device.type, enabled=False):
            flat = points.detach().to(self.table.dtype).reshape(-1, 3)
            return hash_encode(self.table, flat, self.levels).view(*points.shape[:2], self.width)


class HyperNetwork(nn.Module):
    """A text vector -> the weights of bias-free MLPs of one hidden layer on shared features.

    The last layer has unit gain and its output is scaled to He's deviations, so that Adam's step is
    as small beside generated weights as beside any others; the paper's code starts it by Xavier.
    """

    def __init__(
        self, inputs: int, config: Config, features: int, outputs: tuple[tuple[int, float], ...]
    ) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int]] = []
        self.scales: list[float] = []
        for width, out_scale in outputs:
            dims = (features, config.hidden, width)
            self.shapes += pairwise(dims)
            self.scales += initial_scales(dims, out_scale)
        self.code = nn.Sequential(
            nn.Linear(inputs, config.code_dim, bias=False), nn.LayerNorm(config.code_dim), nn.SiLU()
        )
        self.weights = nn.Linear(config.code_dim, sum(a * b for a, b in self.shapes))
        nn.init.normal_(self.weights.weight, std=0.5 / math.sqrt(config.code_dim))
        nn.init.normal_(self.weights.bias)

    def forward(self, text: Tensor) -> list[MLPWeights]:
        """One MLP for each of the outputs."""
        with torch.autocast(text.device.type, enabled=False):
            flat = self.weights(self.code(text.float()))
        parts = flat.split([a * b for a, b in self.shapes], dim=-1)
        weights = [
            scale * part.unflatten(-1, shape)
            for part, shape, scale in zip(parts, self.shapes, self.scales, strict=True)
        ]
        zeros = [flat.new_zeros(len(flat), outputs) for _, outputs in self.shapes]
        return [
            MLPWeights(tuple(weights[i : i + 2]), tuple(zeros[i : i + 2]))
            for i in range(0, len(weights), 2)
        ]


class HyperINGP(nn.Module):
    """Reads the pooled text alone; deterministic."""

    def __init__(self, config: Config, token_dim: int, pooled_dim: int | None) -> None:
        super().__init__()
        self.config = config
        self.pooled_dim = pooled_dim
        inputs = token_dim if pooled_dim is None else pooled_dim
        self.grid = HashGrid(config.levels, config.level_features)
        self.hyper = HyperNetwork(inputs, config, self.grid.width, ((1, 0.1), (3, 0.3)))
        self.sky_grid = self.sky = None
        if config.background == "learned":
            self.sky_grid = HashGrid(_SKY_LEVELS, config.level_features)
            self.sky = HyperNetwork(inputs, config, self.sky_grid.width, ((3, 0.3),))

    def forward(self, text: TextEmbedding, latent: Tensor | None = None) -> DecodedField:
        if latent is not None:
            raise ValueError(f"latent: got shape {tuple(latent.shape)}; this generator takes none")
        pooled = pooled_text(text, self.pooled_dim)
        sdf, colour = self.hyper(pooled)
        sky = None
        if self.sky is not None and self.sky_grid is not None:
            sky = (self.sky_grid, self.sky(pooled)[0])
        config = self.config
        return DecodedField(self.grid, sdf, colour, config.sdf_scale, config.sphere_radius, sky)


def create(config: Config, token_dim: int, pooled_dim: int | None) -> HyperINGP:
    """An untrained generator for texts of that token and pooled width."""
    return HyperINGP(config, token_dim, pooled_dim)
