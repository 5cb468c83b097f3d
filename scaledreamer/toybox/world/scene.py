"""A scene's geometry: objects scaled to one size, placed by their relation, fitted to the view."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from scaledreamer.toybox.world.grammar import PALETTE, Item, Scene
from scaledreamer.toybox.world.kinds import HAT_SEAT, hat, parts_of
from scaledreamer.toybox.world.primitives import ACCENT, MAIN, Part, PartBatch

MAX_HALF_EXTENT, MAX_RADIUS = 0.86, 1.0
"""A scene's bounding box has half extents up to the first, in metres, and no corner of a part's box
lies farther from the middle than the second: a sphere that a view from 3 m holds whole."""
NEXT_TO_AZIMUTH_DEG = 67.5
"""Direction from the first to the second object: between the judged azimuths, so that neither hides
the other in any judged view."""


def _bounds(parts: Sequence[Part]) -> np.ndarray:
    boxes = np.stack([part.bounds for part in parts])
    return np.stack((boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)))


def _moved(parts: Sequence[Part], scale: float, offset: np.ndarray) -> list[Part]:
    return [part.placed(scale, offset) for part in parts]


def _fitted(parts: Sequence[Part]) -> list[Part]:
    """Centred at the origin, within the extents above."""
    low, high = _bounds(parts)
    middle = (low + high) / 2
    corners = np.stack([np.abs(part.bounds - middle).max(axis=0) for part in parts])
    radius = float(np.linalg.norm(corners, axis=1).max())
    scale = min(MAX_HALF_EXTENT / (high - middle).max(), MAX_RADIUS / radius)
    return _moved(parts, scale, -scale * middle)


def _object(item: Item) -> list[Part]:
    parts = list(parts_of(item.kind))
    if item.hat is not None:
        seat, radius = HAT_SEAT[item.kind]
        parts += _moved(hat(radius), 1.0, np.asarray(seat))
    return _fitted(parts)


def _colours(item: Item, parts: Sequence[Part]) -> list[str]:
    names = {MAIN: item.colour, ACCENT: item.accent or item.colour, "hat": item.hat or item.colour}
    return [names.get(part.slot, part.slot) for part in parts]


@lru_cache(maxsize=4096)
def build(scene: Scene) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Parts in world space and the palette colour of each."""
    parts = _object(scene.item)
    colours = _colours(scene.item, parts)
    if scene.other is not None:
        second = _object(scene.other)
        colours += _colours(scene.other, second)
        low, high = _bounds(parts)
        other_low, other_high = _bounds(second)
        if scene.relation == "on top of":
            lift = np.array([0.0, 0.0, other_high[2] - low[2]])
            parts = [*_moved(parts, 1.0, lift - 0.01 * np.array([0, 0, 1])), *second]
        else:
            angle = np.radians(NEXT_TO_AZIMUTH_DEG)
            towards = np.array([np.cos(angle), np.sin(angle), 0.0])
            width = abs(towards[:2]) @ ((high - low) + (other_high - other_low))[:2] / 2
            floor = np.array([0.0, 0.0, low[2] - other_low[2]])
            parts = [*parts, *_moved(second, 1.0, towards * width + floor)]
    return tuple(_fitted(parts)), tuple(colours)


def batch(scenes: Sequence[Scene], scale: Sequence[float] | None = None) -> PartBatch:
    """The geometry of several scenes; `scale` shrinks or grows each about the origin."""
    built = [build(scene) for scene in scenes]
    factors = scale if scale is not None else [1.0] * len(scenes)
    parts = [_moved(p, f, np.zeros(3)) for (p, _), f in zip(built, factors, strict=True)]
    return PartBatch(parts, [[PALETTE[name] for name in colours] for _, colours in built])
