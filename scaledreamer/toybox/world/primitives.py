"""Signed-distance primitives, evaluated for many scenes at once.

Source: the exact distance formulas collected by Inigo Quilez, "distance functions"; the batching is
ours. All lengths in metres; each primitive stands along its local z axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

MAIN, ACCENT = "main", "accent"
"""Colour slots; any other slot is the name of a fixed palette colour."""


@dataclass(frozen=True)
class Part:
    """One primitive of an object."""

    shape: str
    params: tuple[float, float, float, float]
    centre: tuple[float, float, float]
    rotation: np.ndarray
    """[3, 3], columns are the local axes."""
    slot: str

    def placed(self, scale: float, offset: np.ndarray) -> Part:
        """The part after x -> scale * x + offset."""
        centre = tuple(scale * np.asarray(self.centre) + offset)
        params = tuple(scale * value for value in self.params)
        return Part(self.shape, params, centre, self.rotation, self.slot)  # type: ignore[arg-type]

    @cached_property
    def bounds(self) -> np.ndarray:
        """[2, 3] exact axis-aligned box."""
        a, b, c, _ = self.params
        centre, axis = np.asarray(self.centre), self.rotation[:, 2]
        across = np.sqrt(np.clip(1.0 - axis**2, 0.0, None))
        if self.shape == "box":
            half = np.abs(self.rotation) @ np.array([a, b, c])
            return np.stack((centre - half, centre + half))
        if self.shape == "torus":
            half = a * across + b
            return np.stack((centre - half, centre + half))
        if self.shape == "ring":
            half = (a + b) * across + c * np.abs(axis)
            return np.stack((centre - half, centre + half))
        if self.shape == "cone":
            radii, ends = (a * across, b * across), (centre - c * axis, centre + c * axis)
        else:
            radii, ends = (np.full(3, a), np.full(3, b)), (centre, centre + c * axis)
        low = np.minimum(ends[0] - radii[0], ends[1] - radii[1])
        return np.stack((low, np.maximum(ends[0] + radii[0], ends[1] + radii[1])))


Parts = list[Part]


def _frame(axis: Sequence[float] | np.ndarray) -> np.ndarray:
    """A rotation whose third column is the axis; the first stays as near to x as it can."""
    z = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    helper = np.array([1.0, 0.0, 0.0]) if abs(z[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    y = np.cross(z, helper)
    y /= np.linalg.norm(y)
    return np.stack((np.cross(y, z), y, z), axis=1)


def _turn(axis: str, angle_deg: float) -> np.ndarray:
    angle = np.radians(angle_deg)
    cos, sin = np.cos(angle), np.sin(angle)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = cos, -sin, sin, cos
    return matrix


Point = tuple[float, float, float]


def box(
    slot: str,
    centre: Point,
    half: Point,
    rounding: float = 0.03,
    turn: tuple[str, float] = ("z", 0),
) -> Part:
    """Rounded box by half extents, turned about one axis by degrees."""
    return Part("box", (*half, min(rounding, *half)), centre, _turn(*turn), slot)


def cone(
    slot: str,
    centre: Point,
    radii: tuple[float, float],
    half_height: float,
    axis: Point = (0, 0, 1),
) -> Part:
    """Capped cone (cylinder when the radii agree): bottom and top radius."""
    return Part("cone", (*radii, half_height, 0.0), centre, _frame(axis), slot)


def torus(slot: str, centre: Point, radius: float, tube: float, axis: Point = (0, 0, 1)) -> Part:
    return Part("torus", (radius, tube, 0.0, 0.0), centre, _frame(axis), slot)


def ring(slot: str, centre: Point, radius: float, thickness: float, half_height: float) -> Part:
    """Upright tube: mid-wall radius, half wall thickness, half height."""
    return Part("ring", (radius, thickness, half_height, 0.0), centre, np.eye(3), slot)


def blob(slot: str, start: Point, end: Point, radii: tuple[float, float]) -> Part:
    """Hull of two spheres (a capsule when the radii agree)."""
    axis = np.subtract(end, start)
    return Part("blob", (*radii, float(np.linalg.norm(axis)), 0.0), start, _frame(axis), slot)


def ball(slot: str, centre: Point, radius: float) -> Part:
    end = (centre[0], centre[1], centre[2] + 1e-3)
    return blob(slot, centre, end, (radius, radius))


def _box(p: Tensor, v: Tensor) -> Tensor:
    q = p.abs() - (v[..., :3] - v[..., 3:])
    outside = q.clamp(min=0).square().sum(-1).sqrt()
    return outside + q.amax(-1).clamp(max=0) - v[..., 3]


def _cone(p: Tensor, v: Tensor) -> Tensor:
    r1, r2, h = v[..., 0], v[..., 1], v[..., 2]
    x, z = p[..., :2].square().sum(-1).sqrt(), p[..., 2]
    ax = x - torch.minimum(x, torch.where(z < 0, r1, r2))
    az = z.abs() - h
    kx, kz = r2 - r1, 2 * h
    s = (((r2 - x) * kx + (h - z) * kz) / (kx * kx + kz * kz)).clamp(0, 1)
    bx, bz = x - r2 + kx * s, z - h + kz * s
    sign = torch.where((bx < 0) & (az < 0), -1.0, 1.0)
    return sign * torch.minimum(ax * ax + az * az, bx * bx + bz * bz).sqrt()


def _torus(p: Tensor, v: Tensor) -> Tensor:
    x = p[..., :2].square().sum(-1).sqrt() - v[..., 0]
    return (x * x + p[..., 2].square()).sqrt() - v[..., 1]


def _ring(p: Tensor, v: Tensor) -> Tensor:
    x = (p[..., :2].square().sum(-1).sqrt() - v[..., 0]).abs() - v[..., 1]
    z = p[..., 2].abs() - v[..., 2]
    outside = (x.clamp(min=0).square() + z.clamp(min=0).square()).sqrt()
    return outside + torch.maximum(x, z).clamp(max=0)


def _blob(p: Tensor, v: Tensor) -> Tensor:
    r1, r2, h = v[..., 0], v[..., 1], v[..., 2]
    x, z = p[..., :2].square().sum(-1).sqrt(), p[..., 2]
    b = (r1 - r2) / h
    a = (1 - b * b).clamp(min=1e-6).sqrt()
    k = a * z - b * x
    bottom = (x * x + z * z).sqrt() - r1
    top = (x * x + (z - h).square()).sqrt() - r2
    side = a * x + b * z - r1
    return torch.where(k < 0, bottom, torch.where(k > a * h, top, side))


_SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "box": _box,
    "cone": _cone,
    "torus": _torus,
    "ring": _ring,
    "blob": _blob,
}


class PartBatch:
    """Parts of several scenes, grouped by shape so that each formula runs once.

    `colours` holds each part's rgb, [scenes, parts, 3].
    """

    def __init__(self, scenes: Sequence[Sequence[Part]], colours: Sequence[Sequence[Point]]):
        self.num_scenes = len(scenes)
        self.num_parts = max(len(parts) for parts in scenes)
        self.colours = torch.zeros(self.num_scenes, self.num_parts, 3)
        rows: dict[str, list[tuple[int, int, Part]]] = {shape: [] for shape in _SHAPES}
        for scene, parts in enumerate(scenes):
            for slot, part in enumerate(parts):
                rows[part.shape].append((scene, slot, part))
                self.colours[scene, slot] = torch.tensor(colours[scene][slot])
        self._groups = [self._group(shape, group) for shape, group in rows.items() if group]

    def _group(
        self, shape: str, rows: list[tuple[int, int, Part]]
    ) -> tuple[str, Tensor, Tensor, Tensor, Tensor, Tensor]:
        params = torch.tensor(np.array([part.params for *_, part in rows]), dtype=torch.float32)
        centre = torch.tensor(np.array([part.centre for *_, part in rows]), dtype=torch.float32)
        frame = torch.tensor(np.stack([part.rotation for *_, part in rows]), dtype=torch.float32)
        scene = torch.tensor([row[0] for row in rows])
        slot = torch.tensor([row[1] for row in rows])
        return shape, scene, slot, params, centre, frame

    def distances(self, points: Tensor) -> Tensor:
        """Points [scenes, N, 3] -> distance to each part [scenes, parts, N]; inf at padding."""
        out = points.new_full((self.num_scenes, self.num_parts, points.shape[1]), torch.inf)
        for shape, scene, slot, params, centre, frame in self._groups:
            local = torch.bmm(points[scene] - centre[:, None].to(points), frame.to(points))
            out[scene, slot] = _SHAPES[shape](local, params[:, None].to(points))
        return out

    def signed_distance(self, points: Tensor) -> Tensor:
        """Points [scenes, N, 3] -> [scenes, N]: exact outside, a lower bound of depth inside."""
        return self.distances(points).amin(dim=1)
