"""The formulas of torch-ngp's gridencoder in PyTorch: its levels and its hash.

Level l has scale 2^(l S) H - 1 with S = log2 of the scale between levels, resolution
ceil(scale) + 1, and min(resolution^3, 2^T) entries rounded up to eights.
"""

from __future__ import annotations

from itertools import pairwise, product
from math import ceil, log2

import torch
from torch import Tensor, nn


class GridEncoder(nn.Module):
    offsets: Tensor

    def __init__(
        self,
        input_dim: int,
        num_levels: int,
        level_dim: int,
        per_level_scale: float,
        base_resolution: int,
        log2_hashmap_size: int,
        gridtype: str,
        align_corners: bool,
    ) -> None:
        super().__init__()
        assert (input_dim, gridtype, align_corners) == (3, "hash", True), "what is imitated here"
        offsets = [0]
        for level in range(num_levels):
            vertices = ceil(base_resolution * per_level_scale**level) ** 3
            offsets.append(offsets[-1] + ceil(min(vertices, 1 << log2_hashmap_size) / 8) * 8)
        self.steps = log2(per_level_scale), base_resolution
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32))
        self.embeddings = nn.Parameter(torch.zeros(offsets[-1], level_dim))

    def forward(self, points: Tensor) -> Tensor:
        share = (points + 1) / 2
        bounds = self.offsets.tolist()
        features = []
        for level, (first, last) in enumerate(pairwise(bounds)):
            step, base = self.steps
            # in float32, as the kernel has it
            scale = float(torch.exp2(torch.tensor(level * step)) * base - 1)
            features.append(_sample(self.embeddings[first:last], share * scale, ceil(scale) + 1))
        return torch.cat(features, dim=-1)


def _sample(table: Tensor, position: Tensor, resolution: int) -> Tensor:
    cell = position.floor()
    fraction = position - cell
    total = torch.zeros(len(position), table.shape[1])
    for corner in product((0, 1), repeat=3):
        side = torch.tensor(corner)
        weight = torch.where(side == 1, fraction, 1 - fraction).prod(dim=-1)
        x, y, z = (cell.long() + side).unbind(dim=-1)
        if resolution**3 <= len(table):
            index = x + resolution * (y + resolution * z)
        else:
            index = x ^ (y * 2654435761 & 0xFFFFFFFF) ^ (z * 805459861 & 0xFFFFFFFF)
        total = total + weight[:, None] * table[index % len(table)]
    return total
