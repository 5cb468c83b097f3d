"""Surfaces as glb, obj, ply and stl files.

glTF and OBJ are y-up: (x, y, z) -> (y, z, x), so that the front (+x) faces their +z; PLY and STL
stay z-up. glTF vertex colours are linear, those of OBJ and PLY sRGB; STL has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float
from trimesh.visual import ColorVisuals

from scaledreamer.mesh.surface import Surface
from scaledreamer.storage import atomic_write

FORMATS = ("glb", "obj", "ply", "stl")

_MATERIAL = {
    "name": "vertex colours",
    "pbrMetallicRoughness": {
        "baseColorFactor": [1.0, 1.0, 1.0, 1.0],
        "metallicFactor": 0.0,
        "roughnessFactor": 1.0,
    },
    "doubleSided": False,
}


def save(surface: Surface, path: Path | str) -> None:
    """Write a file whose suffix names the format; the path appears only when it is complete.

    Raises: ValueError for an unknown suffix or a path that cannot be written.
    """
    path = Path(path)
    content = encode(surface, path.suffix.lstrip(".").lower())
    with atomic_write(path, "wb") as file:
        file.write(content)


def encode(surface: Surface, file_format: str) -> bytes:
    """The bytes of a file in one of `FORMATS`."""
    if file_format not in FORMATS:
        raise ValueError(f"mesh format: got {file_format!r}; expected one of {', '.join(FORMATS)}")
    mesh = surface.to_trimesh()
    if file_format in ("glb", "obj"):
        mesh.vertices = mesh.vertices[:, (1, 2, 0)]
    if file_format == "glb":
        return _encode_glb(mesh, surface.colours)
    content = mesh.export(file_type=file_format)
    return content.encode() if isinstance(content, str) else bytes(content)


def srgb_to_linear(rgb: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
    """Source: IEC 61966-2-1."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _encode_glb(mesh: trimesh.Trimesh, colours: Float[np.ndarray, "V 3"] | None) -> bytes:
    # trimesh writes its own vertex colours as 8 bits, too few for linear values: hand them over as
    # a custom float attribute and rename that in the finished tree.
    mesh.visual = ColorVisuals(mesh)
    if colours is not None:
        linear = srgb_to_linear(np.clip(colours, 0, 1).astype(np.float64))
        mesh.vertex_attributes["_COLOR_0"] = linear.astype(np.float32)

    def finish(tree: dict[str, Any]) -> None:
        primitive = tree["meshes"][0]["primitives"][0]
        primitive["material"] = 0
        tree["materials"] = [_MATERIAL]
        if colours is not None:
            primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop("_COLOR_0")

    content = mesh.export(file_type="glb", include_normals=True, tree_postprocessor=finish)
    assert isinstance(content, bytes), "trimesh encodes glb as bytes"
    return content
