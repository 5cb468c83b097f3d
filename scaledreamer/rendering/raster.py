"""A z-buffer for coloured triangle meshes: previews, without gradients.

Shaded on the screen's pixel centres; where triangles meet in depth, the lower face index wins.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scaledreamer.interfaces import CameraBatch, Views

_NEAR = 1e-3
"""Triangles with a corner nearer to the camera plane, in metres, are left out, not clipped."""
_CHUNK_PIXELS = 1 << 22
"""Pixel and triangle pairs tested at once."""


@torch.inference_mode()
def rasterise(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    colours: Float[Tensor, "V 3"],
    cameras: CameraBatch,
    size_px: int,
    background: float = 1.0,
    supersample: int = 2,
    headlight: float = 0.0,
) -> Views:
    """One mesh seen by [B, V] cameras, colours interpolated between vertices, both sides visible.

    `headlight` in [0, 1] darkens faces turned away; 0 shows the colours as they are.

    Example:
        views = rasterise(vertices, faces, colours, ring(1, (0.0, 90.0)), size_px=128)
    """
    side = size_px * supersample
    layers = []
    for c2w, fov_deg in zip(cameras.c2w.flatten(0, 1), cameras.fov_deg.flatten(), strict=True):
        corners = _project(vertices, c2w, fov_deg, side)[faces]  # [F, 3, (column, row, depth)]
        pixel, face = _nearest_faces(corners, side)
        weight = _perspective_weights(corners[face], _centres(pixel, side))
        rgb = torch.einsum("nk,nkc->nc", weight, colours[faces[face]])
        position = torch.einsum("nk,nkc->nc", weight, vertices[faces[face]])
        ray = position - c2w[:3, 3]
        if headlight:
            a, b, c = vertices[faces[face]].unbind(1)
            normal = torch.linalg.cross(b - a, c - a)
            cosine = functional.cosine_similarity(normal, ray, dim=-1).abs()
            rgb = rgb * (1 - headlight * (1 - cosine))[:, None]
        layer = torch.zeros(side * side, 5, device=vertices.device)
        layer[:, :3] = background
        tdist = ray.norm(dim=-1, keepdim=True)
        layer[pixel] = torch.cat((rgb, torch.ones_like(tdist), tdist), dim=-1)
        layers.append(layer.view(side, side, 5).permute(2, 0, 1))
    image = functional.avg_pool2d(torch.stack(layers), supersample)  # [B * V, 5, H, W]
    image = image.unflatten(0, cameras.c2w.shape[:2])
    return Views(rgb=image[:, :, :3], opacity=image[:, :, 3], depth=image[:, :, 4], normal=None)


def _project(
    vertices: Float[Tensor, "V 3"], c2w: Float[Tensor, "4 4"], fov_deg: Tensor, side: int
) -> Float[Tensor, "V 3"]:
    """Column and row on the screen, in pixels, and depth along the viewing axis."""
    local = (vertices - c2w[:3, 3]) @ c2w[:3, :3]
    depth = -local[:, 2]
    scale = side / 2 / (torch.tan(torch.deg2rad(fov_deg) / 2) * depth.clamp(min=_NEAR))
    return torch.stack((side / 2 + local[:, 0] * scale, side / 2 - local[:, 1] * scale, depth), -1)


def _centres(pixel: Int[Tensor, "N"], side: int) -> Float[Tensor, "N 2"]:
    return torch.stack((pixel % side, pixel // side), dim=-1) + 0.5


def _screen_weights(
    corners: Float[Tensor, "N 3 3"], point: Float[Tensor, "N 2"]
) -> Float[Tensor, "N 3"]:
    """Barycentric coordinates of points on the screen; not finite for triangles seen edge-on."""
    a, b, c = (corners[:, k, :2] - point for k in range(3))
    area = torch.stack((_cross(b, c), _cross(c, a), _cross(a, b)), dim=-1)
    return area / area.sum(dim=-1, keepdim=True)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _perspective_weights(
    corners: Float[Tensor, "N 3 3"], point: Float[Tensor, "N 2"]
) -> Float[Tensor, "N 3"]:
    weight = _screen_weights(corners, point) / corners[:, :, 2]
    return weight / weight.sum(dim=-1, keepdim=True)


def _nearest_faces(
    corners: Float[Tensor, "F 3 3"], side: int
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """The covered pixels and the face nearest at each."""
    empty = torch.iinfo(torch.int64).max
    buffer = torch.full((side * side,), empty, device=corners.device)
    for pixel, face in _candidates(corners, side):
        weight = _screen_weights(corners[face], _centres(pixel, side))
        is_inside = (weight >= 0).all(dim=-1)
        pixel, face, weight = pixel[is_inside], face[is_inside], weight[is_inside]
        depth = 1 / (weight / corners[face][:, :, 2]).sum(dim=-1)
        # Positive floats sort like their bits, so one integer carries depth and then face.
        key = (depth.view(torch.int32).long() << 32) | face
        buffer.scatter_reduce_(0, pixel, key, "amin")
    pixel = torch.nonzero(buffer != empty).squeeze(-1)
    return pixel, buffer[pixel] & 0xFFFFFFFF


def _candidates(corners: Float[Tensor, "F 3 3"], side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (pixel, face) of every face's bounding box, in chunks."""
    low = (corners[:, :, :2].amin(dim=1) - 0.5).ceil().clamp(0, side).long()
    high = (corners[:, :, :2].amax(dim=1) - 0.5).floor().clamp(-1, side - 1).long()
    extent = (high - low + 1).clamp(min=0)
    count = extent.prod(dim=-1) * (corners[:, :, 2].amin(dim=1) > _NEAR)
    visible = torch.nonzero(count).squeeze(-1)
    bundle = torch.cumsum(count[visible], dim=0) // _CHUNK_PIXELS
    for group in visible.split(torch.bincount(bundle).tolist()):
        face = group.repeat_interleave(count[group])
        start = torch.cumsum(count[group], dim=0) - count[group]
        offset = torch.arange(len(face), device=face.device) - start.repeat_interleave(count[group])
        column = low[face, 0] + offset % extent[face, 0]
        row = low[face, 1] + torch.div(offset, extent[face, 0], rounding_mode="floor")
        yield row * side + column, face
