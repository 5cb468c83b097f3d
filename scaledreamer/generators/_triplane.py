"""The field of a triplane and per-scene decoders."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, relu, softplus

from scaledreamer.interfaces import DensityKind, MLPWeights, TriplaneStructure
from scaledreamer.kernels._triplane.structure import is_fused
from scaledreamer.kernels.field_query import Queried, field_query
from scaledreamer.kernels.sample_planes import sample_planes

_CPU_ROWS = 8192
"""Rows a scene that are decoded at once on a CPU: activations that stay in the cache are 2.5 times
as fast as those of a whole picture."""

SKY_DIMS = (9, 32, 3)
"""Layers of a background's decoder: from `harmonics` of a direction to a colour."""


class TriplaneField:
    """A distance or density field with colour over B scenes; `Field` on a `TriplaneStructure`.

    Hidden layers run in the autocast dtype; features, the sphere and the sum are float32.
    """

    def __init__(self, structure: TriplaneStructure, background: MLPWeights | None = None) -> None:
        self._structure = structure
        self._background = background
        self._joint = join(structure.sdf_decoder, structure.colour_decoder)
        self.num_scenes = len(structure.planes)

    @property
    def density_kind(self) -> DensityKind:
        return self._structure.density_kind

    @property
    def structure(self) -> TriplaneStructure:
        return self._structure

    @property
    def background_decoder(self) -> MLPWeights | None:
        """What `background` decodes, of `SKY_DIMS`; None when no background is learned."""
        return self._background

    def geometry(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N"]:
        if is_fused(self._structure):
            return self._query(points, with_colour=False).geometry
        return self._read(self._structure.sdf_decoder, points)[..., 0]

    def geometry_and_colour(
        self, points: Float[Tensor, "B N 3"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 3"]]:
        if is_fused(self._structure):
            out = self._query(points, with_colour=True)
            assert out.rgb is not None, "colours were asked for"
            return out.geometry, out.rgb
        output = self._read(self._joint, points)
        return output[..., 0], torch.sigmoid(output[..., 1:])

    def background(self, directions: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"] | None:
        if self._background is None:
            return None
        return torch.sigmoid(decode(self._background, harmonics(directions)))

    def _query(self, points: Tensor, with_colour: bool) -> Queried:
        is_low = torch.is_autocast_enabled(points.device.type)
        precision = "bf16" if is_low else "accurate"
        return field_query(self._structure, points, with_colour, precision=precision)

    def _read(self, decoder: MLPWeights, points: Tensor) -> Tensor:
        """[B, N, K] with the distance or density first."""
        rows = _CPU_ROWS if points.device.type == "cpu" else max(points.shape[1], 1)
        planes = self._structure.planes
        parts = [
            self._signed(decode(decoder, sample_planes(planes, part)), part)
            for part in points.split(rows, dim=1)
        ]
        return torch.cat(parts, dim=1)

    def _signed(self, output: Tensor, points: Tensor) -> Tensor:
        scale = self._structure.sdf_scale
        sphere = points.norm(dim=-1, keepdim=True) - self._structure.sphere_radius
        if self.density_kind == "sdf":
            first = torch.add(sphere, output[..., :1], alpha=scale)
        else:
            first = softplus(torch.sub(output[..., :1], sphere, alpha=1.0 / scale))
        return torch.cat((first, output[..., 1:]), dim=-1)


def decode(mlp: MLPWeights, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B N K"]:
    """One MLP per scene, ReLU between layers; the result has the dtype of `features`."""
    hidden = features
    last = len(mlp.weights) - 1
    for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        hidden = torch.baddbmm(bias[:, None], hidden, weight)
        if layer < last:
            hidden = relu(hidden, inplace=True)
    return hidden.to(features.dtype)


def join(first: MLPWeights, second: MLPWeights) -> MLPWeights:
    """Two MLPs of equal depth on the same input as one, block-diagonal behind the first layer."""
    if len(first.weights) != len(second.weights):
        raise ValueError(
            f"decoders: got {len(first.weights)} and {len(second.weights)} layers; "
            "expected equal depths"
        )
    weights = [torch.cat((first.weights[0], second.weights[0]), dim=-1)]
    for a, b in zip(first.weights[1:], second.weights[1:], strict=True):
        weights.append(torch.cat((pad(a, (0, b.shape[-1])), pad(b, (a.shape[-1], 0))), dim=1))
    biases = [torch.cat(pair, dim=-1) for pair in zip(first.biases, second.biases, strict=True)]
    return MLPWeights(tuple(weights), tuple(biases))


def harmonics(directions: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 9"]:
    """Real spherical harmonics of unit directions up to degree 2, without their constants."""
    x, y, z = directions.unbind(dim=-1)
    one = torch.ones_like(x)
    terms = (one, x, y, z, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y)
    return torch.stack(terms, dim=-1)
