"""The triangle mesh that isosurface, colour and export hand to one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from jaxtyping import Float, Int
from trimesh.visual import ColorVisuals


@dataclass(frozen=True)
class Surface:
    """Triangles in the world frame (z up, metres), wound counter-clockwise seen from outside."""

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    colours: Float[np.ndarray, "V 3"] | None = None
    """sRGB-encoded, in [0, 1]."""
    num_dropped: int = 0
    """Connected parts that were left out as floaters."""

    @property
    def volume(self) -> float:
        """Signed volume in cubic metres; positive when wound outward."""
        return float(face_volumes(self.vertices, self.faces).sum())

    def to_trimesh(self) -> trimesh.Trimesh:
        """The same triangles, z up, colours as 8-bit sRGB."""
        mesh = trimesh.Trimesh(self.vertices, self.faces, process=False)
        if self.colours is not None:
            rgb = np.round(np.clip(self.colours, 0, 1) * 255).astype(np.uint8)
            mesh.visual = ColorVisuals(mesh, vertex_colors=rgb)
        return mesh


def face_volumes(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, "F"]:
    """Signed volumes of the tetrahedra between each face and the origin, float64."""
    a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
    return np.einsum("fi,fi->f", a, np.cross(b, c)) / 6
