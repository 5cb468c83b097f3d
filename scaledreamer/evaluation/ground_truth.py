"""Scores of a generated field against the exact scene of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.interfaces import Field, Views
from scaledreamer.toybox.world.grammar import Scene
from scaledreamer.toybox.world.truth import signed_distance


@dataclass(frozen=True)
class TruthScores:
    """Per prompt."""

    silhouette_iou: Float[Tensor, "B"]
    """Mean over the views of the intersection over union of opacity > 0.5."""
    psnr_db: Float[Tensor, "B"]
    colour_error: Float[Tensor, "B"]
    """Mean absolute rgb difference where both silhouettes are."""


def image_scores(views: Views, truth: Views) -> TruthScores:
    """Both rendered through the same cameras on the same background."""
    mine, exact = views.opacity > 0.5, truth.opacity > 0.5
    both, either = (mine & exact).float(), (mine | exact).float()
    iou = both.sum((2, 3)) / either.sum((2, 3)).clamp(min=1)
    difference = (views.rgb - truth.rgb).abs().mean(dim=2)
    colour = (difference * both).sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp(min=1)
    error = (views.rgb - truth.rgb).square().mean(dim=(1, 2, 3, 4))
    return TruthScores(
        iou.mean(1).cpu(), (-10 * error.clamp(min=1e-10).log10()).cpu(), colour.cpu()
    )


@torch.no_grad()
def volume_iou(
    field: Field, scenes: Sequence[Scene], resolution: int = 48, level: float = 0.0
) -> Float[Tensor, "B"]:
    """Intersection over union of the solids on a grid; `level` is the surface's sdf value."""
    line = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).view(1, -1, 3)
    points = grid.expand(len(scenes), -1, -1)
    mine = field.geometry(points).cpu() < level
    exact = signed_distance(scenes, points) < 0
    return (mine & exact).sum(1) / (mine | exact).sum(1).clamp(min=1)
