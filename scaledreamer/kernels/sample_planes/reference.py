"""Bilinear sampling of three planes in PyTorch: the specification and the CPU path."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Summed features [B, N, C] of planes [B, 3, R, R, C] at points [B, N, 3].

    Planes and scenes fold into the batch axis, over which the CPU kernel splits its work. The
    result is a transposed view of channels-first memory.
    """
    num_scenes, num_planes, height, width, channels = planes.shape
    x, y, z = points.unbind(dim=-1)
    grid = torch.stack((x, y, x, z, y, z), dim=-1).unflatten(-1, (3, 2))  # [B, N, 3, 2]
    features = torch.nn.functional.grid_sample(
        planes.permute(0, 1, 4, 2, 3).reshape(-1, channels, height, width),
        grid.transpose(1, 2).reshape(num_scenes * num_planes, -1, 1, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # [B * 3, C, N, 1]
    return features.view(num_scenes, num_planes, channels, -1).sum(dim=1).transpose(1, 2)
