"""The workloads of benchmarks/kernels.py: inputs, calls, and what the hardware allows at best.

W0 is Lightplane's published one, W1 four scenes seen from four sides at the paper's size. Densities
are those of random weights, where rays pass through everything, and of a solid sphere, which is
what a trained field is like: a tenth of the box is occupied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from scaledreamer.cameras import orbit, rays
from scaledreamer.interfaces import MLPWeights, TriplaneStructure
from scaledreamer.kernels.composite import composite
from scaledreamer.kernels.field_query import field_query
from scaledreamer.kernels.hash_encode import HashLevels, hash_encode
from scaledreamer.kernels.render_triplane import Stratified, render_triplane
from scaledreamer.kernels.sample_planes import sample_planes
from scaledreamer.rendering.density import to_density
from scaledreamer.rendering.sampling import interval_edges, resample, stratified

Limits = Mapping[str, float]
Run = Callable[[Sequence[Tensor], str], Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """One operation on one workload. `run(leaves, precision)` gives the outputs that are timed."""

    op: str
    workload: str
    units: int
    """Samples or points: what a rate is counted in."""
    leaves: Callable[[torch.device, torch.Generator], Sequence[Tensor]]
    """Differentiable inputs."""
    run: Run
    precisions: tuple[str, ...] = ("float32",)
    """Of the fused form; the reference computes in the dtype of its leaves."""
    floor_ms: Callable[[Limits], tuple[float, float]] | None = None
    """Least time of the forward and of both passes, given measured bandwidths."""


@dataclass(frozen=True)
class RenderSize:
    scenes: int
    views: int
    image_px: int
    samples: int
    plane_px: int
    channels: int
    hidden: tuple[int, ...]

    @property
    def units(self) -> int:
        return self.scenes * self.views * self.image_px**2 * self.samples


RENDERS = {
    "W1": RenderSize(4, 4, 64, 64, 64, 32, (64,)),
    "toybox": RenderSize(4, 2, 32, 28, 32, 16, (32, 32)),
    "256px": RenderSize(4, 1, 256, 64, 128, 32, (64,)),
    "W0": RenderSize(1, 1, 256, 256, 32, 32, (32, 32)),
}
PROPOSALS = 128
"""Samples a ray whose density alone is asked for, to place those that are rendered."""
POINTS = {"1M": 1 << 20, "4M": 1 << 22}
COMPOSITED = {"1M": 1 << 20, "33M": 1 << 25}
TABLES = {
    "L16F2T19": (HashLevels(num_levels=16, log2_table_size=19), 2),
    "L16F2T14": (HashLevels(num_levels=16, log2_table_size=14), 2),
    "L8F4T19": (HashLevels(num_levels=8, log2_table_size=19), 4),
}


def cases(is_small: bool, is_cpu: bool) -> list[Case]:
    """All of them, of a CPU's size on a CPU; small ones show that everything runs, no more."""
    renders = {name: smallest(size) if is_small else size for name, size in RENDERS.items()}
    points = {"64": 64} if is_small else {"131k": 131_072} if is_cpu else POINTS
    samples = points if is_small or is_cpu else COMPOSITED
    tables = dict(TABLES)
    if is_cpu:
        del tables["L16F2T19"], tables["L8F4T19"]
    if is_small:
        tables = {"L2F2T8": (HashLevels(num_levels=2, log2_table_size=8), 2)}
    # interpreted, a small case takes seconds
    kinds, proposals = (("sphere",), 4) if is_small else (("random", "sphere"), PROPOSALS)
    out = [
        _render(f"{name} {kind}", size, kind == "sphere")
        for name, size in renders.items()
        for kind in kinds
    ]
    out += [
        _render(f"W1 proposals normals {kind}", renders["W1"], kind == "sphere", proposals)
        for kind in kinds
    ]
    out += [
        _query(f"{name} points {kind}", renders["W1"], count, kind == "sphere")
        for name, count in points.items()
        for kind in kinds
    ]
    out += [
        hash_case(f"{table} {name} {kind}", *tables[table], count, kind == "rays")
        for table in tables
        for name, count in points.items()
        for kind in ("uniform", "rays")
    ]
    out += [
        composite_case(f"{name} samples {kind}", count // 64, 64, kind == "sphere")
        for name, count in samples.items()
        for kind in kinds
    ]
    out += [_sample(f"64x64x{width}", width, 64 if is_small else 131_072) for width in (16, 32)]
    return out


def smallest(size: RenderSize) -> RenderSize:
    return replace(size, scenes=1, views=1, image_px=4, samples=4, plane_px=8)


def _uniform(count: int) -> Tensor:
    """Points [count, 3] of the box, always the same."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1


def decoders(
    size: RenderSize, device: torch.device, generator: torch.Generator
) -> tuple[list[Tensor], int]:
    """Both decoders' layers, flat, and how many there are in one."""
    flat = []
    for outputs in (1, 3):
        widths = (size.channels, *size.hidden, outputs)
        for a, b in pairwise(widths):
            weight = torch.randn(size.scenes, a, b, generator=generator) * (2 / a) ** 0.5
            flat += [weight.to(device), torch.zeros(size.scenes, b, device=device)]
    return flat, len(size.hidden) + 1


def _structure(leaves: Sequence[Tensor], num_layers: int, is_sphere: bool) -> TriplaneStructure:
    planes, *flat = leaves
    first, second = flat[: 2 * num_layers], flat[2 * num_layers :]
    return TriplaneStructure(
        planes=planes,
        sdf_decoder=MLPWeights(tuple(first[::2]), tuple(first[1::2])),
        colour_decoder=MLPWeights(tuple(second[::2]), tuple(second[1::2])),
        sdf_scale=0.02 if is_sphere else 0.5,
        sphere_radius=0.6,
    )


def _field_leaves(
    size: RenderSize, device: torch.device, generator: torch.Generator
) -> list[Tensor]:
    shape = (size.scenes, 3, size.plane_px, size.plane_px, size.channels)
    planes = torch.randn(shape, generator=generator).to(device)
    return [planes, *decoders(size, device, generator)[0]]


View = Callable[[torch.device, torch.dtype], tuple[Tensor, ...]]
BETA = 0.05
"""Width of the surface, metres."""


def views(size: RenderSize) -> View:
    """Origins, directions, near and far of rays from all sides, and each view's scene."""

    @cache
    def view(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        turn = torch.arange(size.views) * (360.0 / size.views)
        full = torch.ones(size.scenes, size.views)
        cameras = orbit(turn.expand_as(full), 15 * full, 3 * full, 40 * full)
        bundle = rays(cameras.to(device), size.image_px)
        origins, directions = (x.flatten(0, 1).to(dtype).contiguous() for x in bundle)
        near = torch.full(origins.shape[:-1], 2.0, device=device, dtype=dtype)
        scene = torch.arange(size.scenes, device=device).repeat_interleave(size.views)
        return origins, directions, near, near + 2.0, scene

    return view


def _proposed(
    structure: TriplaneStructure, bundle: tuple[Tensor, ...], num: int, kept: int, precision: str
) -> Tensor:
    """`kept` distances a ray [V, H, W, S], placed by the density at `num` others."""
    origins, directions, near, far, _ = bundle
    tdist = stratified(near, far, num, 0.5)
    points = (origins[..., None, :] + tdist[..., None] * directions[..., None, :]).clamp(-1, 1)
    points = points.reshape(len(structure.planes), -1, 3)
    found = field_query(structure, points, with_colour=False, precision=precision)  # type: ignore[arg-type]
    density = to_density(found.geometry, structure.density_kind, BETA).view_as(tdist)
    edges = interval_edges(tdist, near, far)
    colours = density.new_zeros(*density.shape, 3)
    weights = composite(density, edges.diff(dim=-1), colours, density).weights
    return resample(edges, weights, kept, 0.5)


def _render(workload: str, size: RenderSize, is_sphere: bool, proposals: int = 0) -> Case:
    """With proposals also normals, as in training; errors are then those of the placement too."""
    num_layers = len(size.hidden) + 1
    view = views(size)

    def run(leaves: Sequence[Tensor], precision: str) -> Sequence[Tensor]:
        structure = _structure(leaves, num_layers, is_sphere)
        bundle = view(leaves[0].device, leaves[0].dtype)
        samples: Stratified | Tensor = Stratified(size.samples, 0.5)
        if proposals:
            with torch.no_grad():
                samples = _proposed(structure, bundle, proposals, size.samples, precision)
        out = render_triplane(
            structure,
            *bundle,
            beta=BETA,
            samples=samples,
            with_normals=proposals > 0,
            precision=precision,  # type: ignore[arg-type]
        )
        return out.rgb, out.opacity, out.depth

    def floor(limits: Limits) -> tuple[float, float]:
        forward = 0.075e-6 * size.units
        scatter = 12 * size.channels * 4 * size.units / limits["red_texels"] * 1e3
        return forward, forward + max(0.16e-6 * size.units, scatter)

    return Case(
        op="render_triplane",
        workload=workload,
        units=size.units,
        leaves=lambda device, generator: _field_leaves(size, device, generator),
        run=run,
        precisions=("bf16", "tf32", "accurate"),
        floor_ms=None if proposals else floor,
    )


def _query(workload: str, size: RenderSize, count: int, is_sphere: bool) -> Case:
    num_layers = len(size.hidden) + 1
    one = replace(size, scenes=1)

    @cache
    def points(device: torch.device, dtype: torch.dtype) -> Tensor:
        return _uniform(count)[None].to(device, dtype)

    def run(leaves: Sequence[Tensor], precision: str) -> Sequence[Tensor]:
        structure = _structure(leaves, num_layers, is_sphere)
        where = points(leaves[0].device, leaves[0].dtype)
        out = field_query(structure, where, precision=precision)  # type: ignore[arg-type]
        assert out.rgb is not None, "colours were asked for"
        return out.geometry, out.rgb

    return Case(
        op="field_query",
        workload=workload,
        units=count,
        leaves=lambda device, generator: _field_leaves(one, device, generator),
        run=run,
        precisions=("bf16", "tf32", "accurate"),
    )


@cache
def points_of(count: int, along_rays: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Points [count, 3] that hash cases read at."""
    where = _uniform(count)
    if along_rays:  # 64 neighbouring samples on a line
        starts = where[: -(-count // 64), None]
        where = (0.9 * starts + torch.linspace(0, 0.1, 64)[:, None]).flatten(0, 1)[:count]
    return where.to(device, dtype)


def hash_case(
    workload: str, levels: HashLevels, features: int, count: int, along_rays: bool
) -> Case:

    def run(leaves: Sequence[Tensor], precision: str) -> Sequence[Tensor]:
        points = points_of(count, along_rays, leaves[0].device, leaves[0].dtype)
        return (hash_encode(leaves[0], points, levels),)

    def floor(limits: Limits) -> tuple[float, float]:
        sectors = 8 * levels.num_levels * 32 * count
        forward = 0.75 * sectors / limits["l2_read"] * 1e3
        return forward, forward + sectors / limits["red_random"] * 1e3

    return Case(
        op="hash_encode",
        workload=workload,
        units=count,
        leaves=lambda device, generator: [
            torch.randn(levels.num_entries, features, generator=generator).to(device)
        ],
        run=run,
        floor_ms=floor,
    )


@cache
def steps_of(
    num_rays: int, num_samples: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Lengths and distances [R, S] of two metres of ray from the first."""
    lengths = torch.full((num_rays, num_samples), 2.0 / num_samples, device=device, dtype=dtype)
    return lengths, lengths.cumsum(-1)


def composite_case(workload: str, num_rays: int, num_samples: int, is_sphere: bool) -> Case:
    shape = (max(num_rays, 1), num_samples)

    def leaves(device: torch.device, generator: torch.Generator) -> list[Tensor]:
        density, colours = (torch.rand(one, generator=generator) for one in (shape, (*shape, 3)))
        if is_sphere:  # parallel rays through the box and a ball of radius 0.6 with the sdf's width
            across = torch.rand(shape[0], 2, generator=generator) * 2 - 1
            across[0] = 0.0  # one hits, also where there is but one
            along = torch.linspace(-1, 1, num_samples)
            distance = (across.square().sum(-1)[:, None] + along.square()).sqrt() - 0.6
            density = to_density(distance, "sdf", BETA)
        return [density.to(device), colours.to(device)]

    def run(leaves: Sequence[Tensor], precision: str) -> Sequence[Tensor]:
        density, colours = leaves
        lengths, distances = steps_of(*shape, density.device, density.dtype)
        out = composite(density, lengths, colours, distances)
        return out.rgb, out.opacity, out.depth

    def floor(limits: Limits) -> tuple[float, float]:
        read_and_written = 28 * shape[0] * shape[1] / limits["copy"] * 1e3
        # back: the same inputs, the weights, and the gradients of density and colours
        return read_and_written, read_and_written + 44 / 28 * read_and_written

    units = shape[0] * shape[1]
    return Case("composite", workload, units, leaves, run, floor_ms=floor)


def _sample(workload: str, channels: int, count: int) -> Case:
    def leaves(device: torch.device, generator: torch.Generator) -> list[Tensor]:
        return [torch.randn(1, 3, 64, 64, channels, generator=generator).to(device)]

    @cache
    def points(device: torch.device, dtype: torch.dtype) -> Tensor:
        return _uniform(count)[None].to(device, dtype)

    def run(leaves: Sequence[Tensor], precision: str) -> Sequence[Tensor]:
        return (sample_planes(leaves[0], points(leaves[0].device, leaves[0].dtype)),)

    return Case("sample_planes", workload, count, leaves, run)
