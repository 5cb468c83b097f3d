"""Field -> watertight triangles: sample a lattice over [-1, 1]^3, then marching cubes.

Lattice arrays are [B, n + 1, n + 1, n + 1] for n cells an edge, indexed (x, y, z), negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from scaledreamer.interfaces import Field
from scaledreamer.mesh.surface import Surface, face_volumes

_BLOCK = 4
"""Cells an edge of the blocks that coarse-to-fine sampling keeps or skips."""
_SLOPE_MARGIN = 1.5
"""A block is skipped only where no gradient this much above the steepest seen reaches zero."""
_NUDGE = 1e-3
"""Least distance of a vertex from a lattice point, in cells: keeps slivers out of the mesh."""


class EmptySurfaceError(ValueError):
    """The field has no surface inside the box."""


@dataclass(frozen=True, kw_only=True)
class IsosurfaceConfig:
    resolution: int = 96
    """Cells along an edge of the box, 16 to 512."""
    density_level: float = 25.0
    """Where a density field has its surface, 1/m; sdf fields have it at 0. Source: threestudio."""
    min_volume_share: float = 0.01
    """Connected parts below this share of the enclosed volume are dropped; 1 keeps the largest."""
    use_coarse_to_fine: bool = True
    """Skip blocks far from the surface of an sdf field; the mesh stays the same."""
    chunk_points: int = 1 << 16
    """Points of one scene that the field sees in one call."""

    def __post_init__(self) -> None:
        if not 16 <= self.resolution <= 512:
            raise ValueError(f"resolution: got {self.resolution}; must lie within 16 to 512")
        if not 0 <= self.min_volume_share <= 1:
            raise ValueError(f"min_volume_share: got {self.min_volume_share}; within 0 to 1")
        if self.chunk_points < 1:
            raise ValueError(f"chunk_points: got {self.chunk_points}; must be at least 1")


def isosurface(
    field: Field, config: IsosurfaceConfig, device: torch.device | str = "cpu"
) -> list[Surface]:
    """One closed, outward-wound surface per scene; parts that the box cuts are capped at its sides.

    Raises: EmptySurfaceError when a scene has none; ValueError when the field is not finite.
    """
    lattice = sample_lattice(field, config, device)
    return [extract(values, config.min_volume_share) for values in lattice]


class _Lattice:
    """Values of a field at lattice points, negative inside."""

    def __init__(self, field: Field, config: IsosurfaceConfig, device: torch.device | str) -> None:
        self.field, self.config, self.device = field, config, device
        size = config.resolution + 1
        self.values = np.zeros((field.num_scenes, size, size, size), np.float32)
        self.is_known = np.zeros((size, size, size), bool)

    @torch.inference_mode()
    def sample(self, points: Bool[np.ndarray, "n n n"]) -> None:
        """Evaluate the field at the marked points that are not known yet."""
        size, scenes = self.config.resolution + 1, self.field.num_scenes
        wanted = np.flatnonzero(points & ~self.is_known)
        flat = self.values.reshape(scenes, -1)
        for start in range(0, len(wanted), self.config.chunk_points):
            chosen = wanted[start : start + self.config.chunk_points]
            index = np.stack(np.unravel_index(chosen, (size, size, size)), axis=-1)
            position = torch.from_numpy(index).to(self.device, torch.float32)
            position = position * (2 / self.config.resolution) - 1  # [N, 3]
            value = self.field.geometry(position.expand(scenes, -1, -1)).float()
            if self.field.density_kind == "density":
                value = self.config.density_level - value
            if not torch.isfinite(value).all():
                raise ValueError("the field's geometry holds non-finite values; check its weights")
            flat[:, chosen] = value.cpu().numpy()
        self.is_known |= points


def sample_lattice(
    field: Field, config: IsosurfaceConfig, device: torch.device | str = "cpu"
) -> Float[np.ndarray, "B n n n"]:
    """Signed values, exact wherever a cell meets the surface; elsewhere only the sign may be."""
    lattice = _Lattice(field, config, device)
    if field.density_kind != "sdf" or not config.use_coarse_to_fine:
        lattice.sample(np.ones_like(lattice.is_known))
        return lattice.values
    n = config.resolution
    nodes = np.unique(np.append(np.arange(0, n, _BLOCK), n))
    on_node = np.zeros_like(lattice.is_known)
    on_node[np.ix_(nodes, nodes, nodes)] = True
    lattice.sample(on_node)
    coarse = lattice.values[(slice(None), *np.ix_(nodes, nodes, nodes))]
    block_of = np.minimum(np.arange(n + 1) // _BLOCK, len(nodes) - 2)
    spread = coarse[(slice(None), *np.ix_(block_of, block_of, block_of))]
    lattice.values = np.where(on_node, lattice.values, spread)
    blocks = _blocks_near_surface(coarse, nodes * (2 / n))
    while True:
        cells = blocks[np.ix_(block_of[:n], block_of[:n], block_of[:n])]
        lattice.sample(_corners_of(cells))
        missed = np.argwhere(_crossed_cells(lattice.values) & ~cells)
        if not len(missed):
            return lattice.values
        blocks[tuple((missed // _BLOCK).T)] = True


def _blocks_near_surface(
    coarse: Float[np.ndarray, "B k k k"], nodes_m: Float[np.ndarray, "k"]
) -> Bool[np.ndarray, "m m m"]:
    """Blocks that the zero level may enter, judged by the steepest slope between nodes."""
    steps = np.diff(nodes_m)
    slope = max(
        float(np.abs(np.diff(np.moveaxis(coarse, axis, -1), axis=-1) / steps).max())
        for axis in (1, 2, 3)
    )
    reach = _SLOPE_MARGIN * slope * steps.max() * np.sqrt(3) / 2
    low, high = _over_corners(np.minimum, coarse), _over_corners(np.maximum, coarse)
    return np.any((low <= reach) & (high >= -reach), axis=0)


def _over_corners(combine: np.ufunc, values: np.ndarray) -> np.ndarray:
    """Reduce over the eight corners of each cell: [B, k, k, k] -> [B, k - 1, k - 1, k - 1]."""
    for axis in (1, 2, 3):
        lower, upper = np.moveaxis(values, axis, 0)[:-1], np.moveaxis(values, axis, 0)[1:]
        values = np.moveaxis(combine(lower, upper), 0, axis)
    return values


def _crossed_cells(values: Float[np.ndarray, "B n n n"]) -> Bool[np.ndarray, "m m m"]:
    inside = values < 0
    mixed = _over_corners(np.logical_or, inside) & ~_over_corners(np.logical_and, inside)
    return np.any(mixed, axis=0)


def _corners_of(cells: Bool[np.ndarray, "m m m"]) -> Bool[np.ndarray, "n n n"]:
    size = len(cells)
    points = np.zeros((size + 1,) * 3, bool)
    for x, y, z in product((0, 1), repeat=3):
        points[x : x + size, y : y + size, z : z + size] |= cells
    return points


def extract(values: Float[np.ndarray, "n n n"], min_volume_share: float = 0.01) -> Surface:
    """Closed surface of one lattice over [-1, 1]^3, negative inside.

    Source: marching cubes with Lewiner et al.'s topology (2003).
    Raises: EmptySurfaceError
    """
    n = len(values) - 1
    inside = values < 0
    if inside.all() or not inside.any():
        where = "inside" if inside.any() else "outside"
        raise EmptySurfaceError(
            f"the surface is empty: the field is {where} everywhere at resolution {n}; "
            "try another prompt, or train the generator longer"
        )
    crossing = inside[1:] != inside[:-1]
    step = np.abs(np.diff(values, axis=0))[crossing].mean() if crossing.any() else 1.0
    least = np.float32(_NUDGE * step)
    closed = np.where(np.abs(values) < least, np.where(inside, -least, least), values)
    for axis in range(3):
        sides = np.moveaxis(closed, axis, 0)[:: len(closed) - 1]
        np.maximum(sides, least, out=sides)
    if not (closed < 0).any():
        raise EmptySurfaceError(f"the surface is empty: nothing lies inside the box's sides ({n})")
    vertices, faces, _, _ = marching_cubes(closed, 0.0)
    surface = _without_floaters(vertices * np.float32(2 / n) - 1, faces, min_volume_share)
    assert surface.volume > 0, "marching cubes wound the surface inward"
    return surface


def _without_floaters(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], min_share: float
) -> Surface:
    count = len(vertices)
    links = np.concatenate((faces[:, :2], faces[:, 1:]))
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), (count, count))
    num_parts, part = connected_components(graph, directed=False)
    volumes = np.bincount(part[faces[:, 0]], face_volumes(vertices, faces), num_parts)
    share = np.abs(volumes) / np.abs(volumes).sum()
    is_kept = (share >= min_share) | (share == share.max())
    vertex_kept = is_kept[part]
    renumber = np.cumsum(vertex_kept) - 1
    kept_faces = renumber[faces[vertex_kept[faces[:, 0]]]]
    return Surface(vertices[vertex_kept], kept_faces, num_dropped=int((~is_kept).sum()))
