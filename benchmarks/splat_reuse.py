"""What a tile of the fused render's backward pass would save by summing on chip first.

python -m benchmarks.splat_reuse

A tile is 4 x 4 rays x 4 steps; per plane its samples touch texels that lie in a small window or do
not. Written directly, a sample adds 4 rows of channels a plane to memory, 12 in all; a window that
fits adds one row for each texel touched. Samples lie where training places them, jittered, on the
sphere that an untrained generator shows, and at the narrower surface of a trained one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scaledreamer.cameras import CameraDistribution
from scaledreamer.cli.errors import Parser, run
from scaledreamer.generators._triplane import TriplaneField
from scaledreamer.interfaces import MLPWeights, TriplaneStructure
from scaledreamer.rendering.volume import RenderConfig, _bundle, _distances
from scaledreamer.rng import StepRng

WINDOWS = (4, 8)
PLANES = ((0, 1), (0, 2), (1, 2))
SIDE = 4
"""Rays of a patch along each side, and steps of a tile."""


@dataclass(frozen=True)
class Workload:
    image_px: int
    plane_px: int
    num_stratified: int
    num_importance: int

    @property
    def name(self) -> str:
        samples = f"{self.num_stratified} + {self.num_importance} samples"
        return f"{self.image_px} px, {self.plane_px}² planes, {samples}"


WORKLOADS = (
    Workload(32, 32, 20, 8),
    Workload(64, 64, 48, 16),
    Workload(64, 64, 64, 0),
    Workload(256, 128, 48, 16),
    Workload(256, 128, 64, 0),
)


def tiles(work: Workload, beta: float) -> tuple[Tensor, Tensor]:
    """Positions [T, 64, 3] of the tiles' samples in the box, and which rays meet it [T, 64]."""
    planes = torch.zeros(1, 3, 2, 2, 1)
    sdf, colour = (MLPWeights((torch.zeros(1, 1, n),), (torch.zeros(1, n),)) for n in (1, 3))
    field = TriplaneField(TriplaneStructure(planes, sdf, colour, 0.25, 0.55))
    rng = StepRng(0, 0, torch.zeros(1, dtype=torch.int64))
    cameras = CameraDistribution().sample(4, rng)
    bundle = _bundle(cameras, work.image_px, rng)
    config = RenderConfig(num_stratified=work.num_stratified, num_importance=work.num_importance)
    tdist = _distances(field, bundle, config, beta)
    points = bundle.points(tdist).unflatten(1, (tdist.shape[1], -1))
    is_hit = (bundle.far > bundle.near)[..., None].expand(tdist.shape)
    size = (work.image_px, work.image_px)
    return in_tiles(points[0], size), in_tiles(is_hit[0][..., None], size)[..., 0]


def in_tiles(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[R, S, F] of whole pictures of that height and width to [T, 64, F]."""
    height, width = size
    views = values.view(-1, height // SIDE, SIDE, width // SIDE, SIDE, *values.shape[1:])
    steps = views.unflatten(5, (-1, SIDE))
    return steps.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, SIDE**3, values.shape[-1])


def reuse(points: Tensor, is_hit: Tensor, plane_px: int) -> dict[str, float]:
    """Share of tiles' planes that fit a window, and rows a sample that then reach memory."""
    at = (((points + 1) * plane_px - 1) / 2).clamp(0, plane_px - 1)
    low = at.long()
    high = (low + 1).clamp_max(plane_px - 1)
    kept = is_hit.any(dim=1)
    low, high, is_hit = low[kept], high[kept], is_hit[kept]
    first = low.masked_fill(~is_hit[..., None], plane_px).amin(dim=1)
    extent = high.masked_fill(~is_hit[..., None], 0).amax(dim=1) - first + 1
    num_samples = int(is_hit.sum())
    out: dict[str, float] = {}
    for window in WINDOWS:
        rows, fitting = 0, 0
        for a, b in PLANES:
            fits = (extent[:, a] <= window) & (extent[:, b] <= window)
            corners = [
                (u[..., a] - first[:, None, a]) * window + v[..., b] - first[:, None, b]
                for u in (low, high)
                for v in (low, high)
            ]
            index = torch.stack(corners, dim=-1).masked_fill(~is_hit[..., None], window**2)
            touched = torch.zeros(int(fits.sum()), window**2 + 1)
            touched.scatter_(1, index[fits].flatten(1), 1.0)
            rows += int(touched[:, :-1].sum()) + 4 * int(is_hit[~fits].sum())
            fitting += int(fits.sum())
        out[f"fits {window}²"] = fitting / (3 * len(low))
        out[f"rows {window}²"] = rows / num_samples
    return out


def main(argv: Sequence[str] | None = None) -> int:
    _parser().parse_args(argv)
    return run(_tabulate)


def _parser() -> argparse.ArgumentParser:
    return Parser(
        prog="python -m benchmarks.splat_reuse",
        description="Texel rows a sample that a summed window would write, against 12 directly.",
    )


def _tabulate() -> int:
    columns = [f"{what} {window}²" for window in WINDOWS for what in ("fits", "rows")]
    print(f"| workload | beta | {' | '.join(columns)} |")
    print(f"|{'---|' * (len(columns) + 2)}")
    for work in WORKLOADS:
        for beta in (0.1, 0.02):
            found = reuse(*tiles(work, beta), work.plane_px)
            cells = [f"{found[c]:.0%}" if "fits" in c else f"{found[c]:.2f}" for c in columns]
            print(f"| {work.name} | {beta} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
