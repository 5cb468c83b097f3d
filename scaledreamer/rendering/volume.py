"""Volume rendering of a field: B scenes times V views in one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.cameras import rays
from scaledreamer.interfaces import CameraBatch, Field, TriplaneStructure, Views
from scaledreamer.kernels._triplane.structure import is_fused
from scaledreamer.kernels.composite import composite
from scaledreamer.kernels.render_triplane import render_triplane
from scaledreamer.rendering.backgrounds import blend
from scaledreamer.rendering.density import to_density
from scaledreamer.rendering.normals import finite_difference_normal
from scaledreamer.rendering.sampling import (
    intersect_box,
    interval_edges,
    resample,
    stratified,
)
from scaledreamer.rng import StepRng


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """How rays are sampled."""

    num_stratified: int = 24
    """Evenly spread samples a ray, between its entry into the box and its exit."""
    num_importance: int = 8
    """Further samples a ray, placed by the weights of the stratified ones; 0 for none."""
    min_weight: float = 0.05
    """Samples lighter than this share of the mean in an opaque ray (1 over the number of samples)
    count as empty: neither colour nor gradient is computed for them, and a pixel loses at most
    this much opacity. While gradients are recorded the share is of the scene's largest weight, so
    that a fading scene keeps receiving them. 0 keeps all. Fused kernels keep all."""
    chunk_rays: int = 8192
    """Rays a scene that are rendered at once where no gradient is recorded."""
    normal_eps: float = 0.01
    """Step of the finite differences of normals, metres; fused kernels know the gradient itself."""

    def __post_init__(self) -> None:
        for name in ("num_stratified", "chunk_rays"):
            if getattr(self, name) < 1:
                raise ValueError(f"render.{name}: got {getattr(self, name)}; at least 1")
        if self.num_importance < 0:
            raise ValueError(f"render.num_importance: got {self.num_importance}; at least 0")
        if not 0.0 <= self.min_weight < 1.0:
            raise ValueError(f"render.min_weight: got {self.min_weight}; must lie in [0, 1)")
        if self.normal_eps <= 0:
            raise ValueError(f"render.normal_eps: got {self.normal_eps}; must be positive")


@dataclass(frozen=True)
class _Rays:
    """[B, R, ...] rays and where they are sampled."""

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    offsets: tuple[Tensor | float, Tensor | float]

    def __getitem__(self, part: slice) -> _Rays:
        offsets = [u[:, part] if isinstance(u, Tensor) else u for u in self.offsets]
        return _Rays(
            self.origins[:, part],
            self.directions[:, part],
            self.near[:, part],
            self.far[:, part],
            (offsets[0], offsets[1]),
        )

    def points(self, tdist: Tensor) -> Tensor:
        """[B, R * S, 3], inside the box."""
        points = self.origins[..., None, :] + tdist[..., None] * self.directions[..., None, :]
        return points.flatten(1, 2).clamp(-1.0, 1.0)


@dataclass(frozen=True)
class _Packing:
    """The kept of [B, M] samples, moved to the front of [B, K]; K is the most a scene keeps."""

    shape: tuple[int, int]
    num_slots: int
    kept: Tensor
    """Flat indices into [B * M]."""
    slots: Tensor
    """Where those go in [B * K]."""

    @staticmethod
    def of(is_kept: Tensor) -> _Packing:
        num_scenes, num_samples = is_kept.shape
        counts = is_kept.sum(dim=1)
        num_slots = max(int(counts.max()), 1)
        is_used = torch.arange(num_slots, device=is_kept.device) < counts[:, None]
        kept, slots = (mask.flatten().nonzero()[:, 0] for mask in (is_kept, is_used))
        return _Packing((num_scenes, num_samples), num_slots, kept, slots)

    def pack(self, values: Tensor) -> Tensor:
        """[B, M, F] -> [B, K, F], zeros behind the kept."""
        rows = values.flatten(0, 1).index_select(0, self.kept)
        packed = values.new_zeros(self.shape[0] * self.num_slots, values.shape[-1])
        return packed.index_copy(0, self.slots, rows).unflatten(0, (self.shape[0], -1))

    def unpack(self, packed: Tensor) -> Tensor:
        """[B, K, F] -> [B, M, F], zeros where not kept."""
        rows = packed.flatten(0, 1).index_select(0, self.slots)
        values = packed.new_zeros(self.shape[0] * self.shape[1], packed.shape[-1])
        return values.index_copy(0, self.kept, rows).unflatten(0, self.shape)


def render(
    field: Field,
    cameras: CameraBatch,
    background: Float[Tensor, "B 3"] | None,
    config: RenderConfig,
    size_px: int,
    beta: float,
    rng: StepRng | None = None,
    num_points: int = 0,
    with_normals: bool = False,
) -> Views:
    """Render [B, V] cameras of the field's B scenes; differentiable in the field's parameters.

    `background` None asks the field. `beta` (metres) is the width of the surface of a distance
    field. Without `rng` samples lie at the midpoints and the result is deterministic; with it they
    are jittered per ray, and `num_points` of their positions a scene are returned for regularizers.
    Source: VolSDF, NeurIPS 2021, on the quadrature of Max, 1995.

    Raises:
        ValueError: no background, or another number of scenes in field and cameras.
    """
    num_scenes, num_views = cameras.fov_deg.shape
    if field.num_scenes != num_scenes:
        raise ValueError(f"cameras: got {num_scenes} scenes; the field has {field.num_scenes}")
    if beta <= 0:
        raise ValueError(f"beta: got {beta}; must be positive")
    bundle = _bundle(cameras, size_px, rng)
    structure = field.structure
    # fused normals carry no gradient
    trains_normals = with_normals and torch.is_grad_enabled()
    if structure is not None and is_fused(structure) and not trains_normals:
        chunks = range(0, bundle.near.shape[1], config.chunk_rays)
        placed = [
            _distances(field, bundle[start : start + config.chunk_rays], config, beta)
            for start in chunks
        ]
        tdist = torch.cat(placed, dim=1)
        size = (num_views, size_px)
        parts = _march_fused(structure, bundle, tdist, beta, with_normals, size)
    else:
        parts = _march_in_chunks(field, bundle, config, beta, with_normals)
    rgb, opacity, depth, normal, tdist = parts
    rgb = blend(rgb, opacity, _background(field, background, bundle.directions))

    def image(values: Tensor) -> Tensor:
        return values.unflatten(1, (num_views, size_px, size_px))

    return Views(
        rgb=image(rgb).movedim(-1, 2),
        opacity=image(opacity),
        depth=image(depth),
        normal=image(normal).movedim(-1, 2) if with_normals else None,
        points=_subset(bundle, tdist, num_points, rng) if num_points else None,
    )


def _bundle(cameras: CameraBatch, size_px: int, rng: StepRng | None) -> _Rays:
    origins, directions = (x.flatten(1, 3) for x in rays(cameras, size_px))
    near, far = intersect_box(origins, directions)
    if rng is None:
        return _Rays(origins, directions, near, far, (0.5, 0.5))
    num_rays = near.shape[1]
    jitter = rng.uniform("render/stratified", num_rays), rng.uniform("render/importance", num_rays)
    return _Rays(origins, directions, near, far, jitter)


def _march_fused(
    structure: TriplaneStructure,
    bundle: _Rays,
    tdist: Tensor,
    beta: float,
    with_normals: bool,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `_march`, in one kernel from samples to pixels; `size` is views a scene and their side."""
    num_views, size_px = size

    def views(values: Tensor) -> Tensor:
        return values.unflatten(1, (num_views, size_px, size_px)).flatten(0, 1)

    scene = torch.arange(len(tdist), device=tdist.device).repeat_interleave(num_views)
    out = render_triplane(
        structure,
        views(bundle.origins),
        views(bundle.directions),
        views(bundle.near),
        views(bundle.far),
        scene,
        beta,
        views(tdist),
        with_normals,
        precision="bf16" if torch.is_autocast_enabled(tdist.device.type) else "tf32",
    )

    def rays(values: Tensor) -> Tensor:
        return values.unflatten(0, (-1, num_views)).flatten(1, 3)

    normal = out.rgb[..., :0] if out.normal is None else out.normal
    return rays(out.rgb), rays(out.opacity), rays(out.depth), rays(normal), tdist


def _march_in_chunks(
    field: Field, bundle: _Rays, config: RenderConfig, beta: float, with_normals: bool
) -> tuple[Tensor, ...]:
    num_rays = bundle.near.shape[1]
    chunk = num_rays if torch.is_grad_enabled() else config.chunk_rays
    parts = [
        _march(field, bundle[start : start + chunk], config, beta, with_normals)
        for start in range(0, num_rays, chunk)
    ]
    return tuple(torch.cat(items, dim=1) for items in zip(*parts, strict=True))


def _march(
    field: Field, bundle: _Rays, config: RenderConfig, beta: float, with_normals: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """rgb [B, R, 3], opacity, depth [B, R], normal [B, R, 3 or 0], sample distances [B, R, S]."""
    is_training = torch.is_grad_enabled()
    with torch.no_grad():
        tdist, weights = _place(field, bundle, config, beta)
        largest = weights.amax(dim=(1, 2), keepdim=True) if is_training else 1.0
        limit = largest * config.min_weight / tdist.shape[-1]
        is_kept = (weights >= limit).flatten(1)
        edges = interval_edges(tdist, bundle.near, bundle.far)
        points = bundle.points(tdist)
    density, colours, packing = _evaluate(field, points, is_kept, beta)
    out = composite(
        density.view_as(tdist),
        edges.diff(dim=-1),
        colours.view(*tdist.shape, 3),
        tdist,
    )
    normal = out.rgb[..., :0]
    if with_normals:
        unit = finite_difference_normal(field, packing.pack(points), config.normal_eps)
        unit = packing.unpack(unit).view(*tdist.shape, 3)
        normal = (out.weights[..., None] * unit).sum(dim=-2)
    return out.rgb, out.opacity, out.depth, normal, tdist


def _place(field: Field, bundle: _Rays, config: RenderConfig, beta: float) -> tuple[Tensor, Tensor]:
    """Sorted sample distances and, where they are needed, weights [B, R, S] in the picture."""
    near, far = bundle.near, bundle.far
    tdist = stratified(near, far, config.num_stratified, bundle.offsets[0])
    if config.num_importance == 0 and config.min_weight == 0:
        return tdist, torch.ones_like(tdist)
    density = _density_at(field, bundle, tdist, beta)
    if config.num_importance:
        extra = _importance(density, tdist, bundle, config)
        tdist, order = torch.cat((tdist, extra), dim=-1).sort(dim=-1)
        more = _density_at(field, bundle, extra, beta)
        density = torch.cat((density, more), dim=-1).gather(-1, order)
    return tdist, _weights(density, interval_edges(tdist, near, far))


@torch.no_grad()
def _distances(field: Field, bundle: _Rays, config: RenderConfig, beta: float) -> Tensor:
    """The sorted sample distances [B, R, S] of `_place` alone."""
    tdist = stratified(bundle.near, bundle.far, config.num_stratified, bundle.offsets[0])
    if config.num_importance == 0:
        return tdist
    density = _density_at(field, bundle, tdist, beta)
    extra = _importance(density, tdist, bundle, config)
    return torch.cat((tdist, extra), dim=-1).sort(dim=-1).values


def _density_at(field: Field, bundle: _Rays, tdist: Tensor, beta: float) -> Tensor:
    values = field.geometry(bundle.points(tdist))
    return to_density(values, field.density_kind, beta).view_as(tdist)


def _importance(density: Tensor, tdist: Tensor, bundle: _Rays, config: RenderConfig) -> Tensor:
    edges = interval_edges(tdist, bundle.near, bundle.far)
    weights = _weights(density, edges)
    return resample(edges, weights, config.num_importance, bundle.offsets[1])


def _weights(density: Tensor, edges: Tensor) -> Tensor:
    lengths = edges.diff(dim=-1)
    return composite(density, lengths, density.new_zeros(*density.shape, 3), density).weights


def _evaluate(
    field: Field, points: Tensor, is_kept: Tensor, beta: float
) -> tuple[Tensor, Tensor, _Packing]:
    """Density [B, M] and colour [B, M, 3], zero where not kept."""
    packing = _Packing.of(is_kept)
    values, colours = field.geometry_and_colour(packing.pack(points))
    density = to_density(values, field.density_kind, beta)
    sparse = packing.unpack(torch.cat((density[..., None], colours), dim=-1))
    return sparse[..., 0], sparse[..., 1:], packing


def _background(field: Field, colour: Tensor | None, directions: Tensor) -> Tensor:
    if colour is not None:
        return colour[:, None].to(directions).expand_as(directions)
    learned = field.background(directions)
    if learned is None:
        raise ValueError("background: got None, and the field has no learned one; pass a colour")
    return learned


def _subset(bundle: _Rays, tdist: Tensor, num_points: int, rng: StepRng | None) -> Tensor:
    num_samples = tdist.shape[1] * tdist.shape[2]
    if rng is None:
        index = torch.linspace(0, num_samples - 1, num_points, device=tdist.device).long()
        index = index.expand(len(tdist), -1)
    else:
        index = rng.integers("render/points", num_samples, num_points)
    points = bundle.points(tdist)
    return points.gather(1, index[..., None].expand(-1, -1, 3))
