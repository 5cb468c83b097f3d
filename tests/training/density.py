"""A generator component whose field is a constant density."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scaledreamer.interfaces import DensityKind, TextEmbedding


@dataclass(frozen=True, kw_only=True)
class Config:
    pass


class Fog:
    density_kind: DensityKind = "density"
    structure = None

    def __init__(self, level: Tensor, num_scenes: int) -> None:
        self.level, self.num_scenes = level, num_scenes

    def geometry(self, points: Tensor) -> Tensor:
        return self.level.expand(points.shape[:-1])

    def geometry_and_colour(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.geometry(points), torch.zeros_like(points)

    def background(self, directions: Tensor) -> None:
        return None


class FogGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.ones(()))

    def forward(self, text: TextEmbedding, latent: Tensor | None = None) -> Fog:
        return Fog(self.level, len(text))


def create(config: Config, token_dim: int, pooled_dim: int | None) -> FogGenerator:
    return FogGenerator()
