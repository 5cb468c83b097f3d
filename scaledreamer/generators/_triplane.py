"""The field of a triplane and per-scene decoders."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, relu

from scaledreamer.interfaces import DensityKind, MLPWeights, TriplaneStructure
from scaledreamer.kernels.sample_planes import sample_planes

_CPU_ROWS = 8192
"""Rows a scene that are decoded at once on a CPU: activations that stay in the cache are 2.5 times
as fast as those of a whole picture."""


class TriplaneField:
    """A signed-distance field with colour over B scenes; `Field` on a `TriplaneStructure`.

    Hidden layers run in the autocast dtype; features, the sphere and the sum are float32.
    """

    density_kind: DensityKind = "sdf"

    def __init__(self, structure: TriplaneStructure, background: MLPWeights | None = None) -> None:
        self._structure = structure
        self._background = background
        self._joint = join(structure.sdf_decoder, structure.colour_decoder)
        self.num_scenes = len(structure.planes)

    @property
    def structure(self) -> TriplaneStructure:
        return self._structure

    def geometry(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N"]:
        return self._read(self._structure.sdf_decoder, points)[..., 0]

    def geometry_and_colour(
        self, points: Float[Tensor, "B N 3"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 3"]]:
        output = self._read(self._joint, points)
        return output[..., 0], torch.sigmoid(output[..., 1:])

    def background(self, directions: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"] | None:
        if self._background is None:
            return None
        return torch.sigmoid(decode(self._background, harmonics(directions)))

    def _read(self, decoder: MLPWeights, points: Tensor) -> Tensor:
        """[B, N, K] with the distance first."""
        rows = _CPU_ROWS if points.device.type == "cpu" else max(points.shape[1], 1)
        planes = self._structure.planes
        parts = [
            self._signed(decode(decoder, sample_planes(planes, part)), part)
            for part in points.split(rows, dim=1)
        ]
        return torch.cat(parts, dim=1)

    def _signed(self, output: Tensor, points: Tensor) -> Tensor:
        sphere = points.norm(dim=-1, keepdim=True) - self._structure.sphere_radius
        distance = torch.add(sphere, output[..., :1], alpha=self._structure.sdf_scale)
        return torch.cat((distance, output[..., 1:]), dim=-1)


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
