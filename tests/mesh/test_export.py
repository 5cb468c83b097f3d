from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from trimesh.visual import ColorVisuals

from scaledreamer.mesh.export import FORMATS, encode, save
from scaledreamer.mesh.isosurface import IsosurfaceConfig, isosurface
from scaledreamer.mesh.surface import Surface
from tests.mesh.fields import AnalyticField


@pytest.fixture(scope="module")
def surface() -> Surface:
    """An ellipsoid with the half axes 0.8, 0.5, 0.3 along x, y, z, moved to tell signs apart."""

    def ellipsoid(points: Any) -> Any:
        moved = points - points.new_tensor((0.1, 0.2, 0.3))
        return (moved / points.new_tensor((0.8, 0.5, 0.3))).norm(dim=-1) - 1

    field = AnalyticField(ellipsoid)
    (found,) = isosurface(field, IsosurfaceConfig(resolution=32))
    rng = np.random.default_rng(0)
    colours = rng.uniform(size=(len(found.vertices), 3)).astype(np.float32)
    colours[0] = (0.5, 0.02, 1.0)
    return Surface(found.vertices, found.faces, colours)


def load(content: bytes, file_format: str) -> trimesh.Trimesh:
    mesh = trimesh.load(io.BytesIO(content), file_type=file_format, force="mesh", process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


def glb_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON tree and the binary chunk, by the glTF 2.0 specification, section 4.4."""
    assert content[:4] == b"glTF"
    (length,) = struct.unpack_from("<I", content, 12)
    tree = json.loads(content[20 : 20 + length])
    return tree, content[20 + length + 8 :]


def accessor(content: bytes, attribute: str) -> tuple[dict[str, Any], np.ndarray]:
    tree, binary = glb_parts(content)
    entry = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"][attribute]]
    start = tree["bufferViews"][entry["bufferView"]]["byteOffset"] + entry.get("byteOffset", 0)
    data = np.frombuffer(binary, np.float32, entry["count"] * 3, start)
    return entry, data.reshape(-1, 3)


@pytest.mark.parametrize("file_format", FORMATS)
def test_files_are_closed_and_outward(surface: Surface, file_format: str) -> None:
    mesh = load(encode(surface, file_format), file_format)
    if file_format == "stl":  # stores each triangle's own corners
        mesh.merge_vertices()
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(surface.volume, rel=1e-4)
    assert len(mesh.faces) == len(surface.faces)


@pytest.mark.parametrize("file_format", FORMATS)
def test_only_gltf_and_obj_are_y_up(surface: Surface, file_format: str) -> None:
    low, high = load(encode(surface, file_format), file_format).bounds
    x, y, z = (-0.7, 0.9), (-0.3, 0.7), (0.0, 0.6)
    axes = (y, z, x) if file_format in ("glb", "obj") else (x, y, z)
    assert list(zip(low, high, strict=True)) == [pytest.approx(axis, abs=0.02) for axis in axes]


def test_glb_colours_are_linear_floats(surface: Surface) -> None:
    entry, linear = accessor(encode(surface, "glb"), "COLOR_0")
    assert (entry["componentType"], entry["type"]) == (5126, "VEC3")
    assert linear[0] == pytest.approx((0.2140411, 0.0015480, 1.0), rel=1e-4)
    assert surface.colours is not None
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.allclose(encoded, surface.colours, atol=1e-5)


def test_glb_has_unit_normals_and_a_plain_material(surface: Surface) -> None:
    content = encode(surface, "glb")
    tree, _ = glb_parts(content)
    primitive = tree["meshes"][0]["primitives"][0]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "COLOR_0"}
    material = tree["materials"][primitive["material"]]
    assert material["doubleSided"] is False
    assert material["pbrMetallicRoughness"] == {
        "baseColorFactor": [1, 1, 1, 1],
        "metallicFactor": 0,
        "roughnessFactor": 1,
    }
    normals = accessor(content, "NORMAL")[1]
    positions = accessor(content, "POSITION")[1] - (0.2, 0.3, 0.1)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1, abs=1e-5)
    assert (np.einsum("vi,vi->v", normals, positions) > 0).all()


@pytest.mark.parametrize("file_format", ["obj", "ply"])
def test_obj_and_ply_colours_stay_srgb(surface: Surface, file_format: str) -> None:
    mesh = load(encode(surface, file_format), file_format)
    assert surface.colours is not None
    assert isinstance(mesh.visual, ColorVisuals)
    assert np.abs(mesh.visual.vertex_colors[:, :3] / 255 - surface.colours).max() < 0.5 / 255 + 1e-6


@pytest.mark.parametrize("file_format", FORMATS)
def test_surfaces_without_colours_are_written_too(surface: Surface, file_format: str) -> None:
    plain = Surface(surface.vertices, surface.faces)
    assert len(load(encode(plain, file_format), file_format).faces) == len(surface.faces)


def test_save_takes_the_format_from_the_suffix(surface: Surface, tmp_path: Path) -> None:
    save(surface, tmp_path / "new" / "mug.PLY")
    assert (tmp_path / "new" / "mug.PLY").read_bytes()[:3] == b"ply"
    with pytest.raises(ValueError, match=r"mesh format: got 'fbx'; expected one of glb, obj"):
        save(surface, tmp_path / "mug.fbx")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "mug.PLY"]


def test_unwritable_path_is_an_error(surface: Surface, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="cannot write"):
        save(surface, tmp_path / "file" / "mug.glb")
    assert (tmp_path / "file").read_text() == "kept"
