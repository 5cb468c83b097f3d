"""Multi-resolution hash encoding in PyTorch: the specification and the CPU path.

Source: Mueller et al., "Instant neural graphics primitives with a multiresolution hash encoding",
SIGGRAPH 2022, section 3.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from scaledreamer.kernels.hash_encode.levels import PRIMES, HashLevels


def hash_encode(table: Tensor, points: Tensor, levels: HashLevels) -> Tensor:
    """Features [N, L * F] of a table [E, F] at points [N, 3]."""
    share = (points * 0.5 + 0.5).clamp(0, 1)
    corners = torch.tensor(list(product((0, 1), repeat=3)), device=points.device)  # [8, 3]
    primes = torch.tensor(PRIMES, device=points.device)
    features = []
    for cells, offset, dense in zip(
        levels.resolutions, levels.offsets, levels.is_dense, strict=True
    ):
        position = share * cells
        cell = position.floor().long().clamp(0, cells - 1)  # [N, 3]
        fraction = (position - cell)[:, None]  # in [0, 1], 1 only on the cube's far faces
        vertex = cell[:, None] + corners  # [N, 8, 3]
        if dense:
            x, y, z = vertex.unbind(dim=-1)
            index = x + (cells + 1) * (y + (cells + 1) * z)
        else:
            x, y, z = (vertex * primes).unbind(dim=-1)
            index = (x ^ y ^ z) & ((1 << levels.log2_table_size) - 1)  # equation (4)
        weight = torch.where(corners == 1, fraction, 1 - fraction).prod(dim=-1)  # [N, 8]
        features.append((table[offset + index] * weight[..., None]).sum(dim=1))
    return torch.cat(features, dim=-1)
