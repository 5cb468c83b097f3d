"""A generator component with a known answer, and folders that hold one: a ball, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaledreamer.encoders import clip_text
from scaledreamer.interfaces import TextEmbedding
from scaledreamer.storage import save_tensors, sha256_file, write_json
from tests.encoders.folders import save_clip
from tests.mesh.fields import AnalyticField, Geometry, sphere

EMPTY_PROMPT = "a red box on top of a blue box"
"""Longer than five words: the generator shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Config:
    scale: float = 1.0
    latent_dim: int = 0


class BallGenerator(nn.Module):
    """A ball of the learned radius; a latent moves it along x."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.radius = nn.Parameter(torch.tensor(0.1))

    def forward(self, text: TextEmbedding, latent: Tensor | None = None) -> AnalyticField:
        return AnalyticField(*(self._scene(text, latent, row) for row in range(len(text))))

    def _scene(self, text: TextEmbedding, latent: Tensor | None, row: int) -> Geometry:
        if text.mask[row].sum() > 2 + 5:
            return lambda points: points.norm(dim=-1) + 1
        shift = 0.0 if latent is None else float(latent[row, 0].tanh()) / 4
        return sphere(float(self.radius) * self.config.scale, (shift, 0.0, 0.0))


def create(config: Config, token_dim: int, pooled_dim: int | None) -> BallGenerator:
    return BallGenerator(config)


def save_generator(root: Path, radius: float = 0.5, **fields: Any) -> Path:
    """A generator folder in `root / "generator"`, with its encoder beside it."""
    encoder, folder = root / "clip", root / "generator"
    if not encoder.exists():
        save_clip(encoder)
    folder.mkdir()
    save_tensors(folder / "ema.safetensors", {"radius": torch.tensor(radius).half()})
    write_json(
        folder / "config.json",
        {
            "format": 1,
            "kind": "generator",
            "step": 3,
            "generator": {"name": __name__, **fields},
            "encoder": {"folder": str(encoder), "id": clip_text.load(str(encoder)).encoder_id},
        },
    )
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    names = ("config.json", "ema.safetensors")
    hashes = {name: sha256_file(folder / name) for name in names}
    write_json(folder / "manifest.json", {"format": 1, "files": hashes})
