"""A field of per-scene decoders over features that any structure gives at points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.generators._triplane import decode, join
from scaledreamer.interfaces import DensityKind, MLPWeights

Features = Callable[[Tensor], Tensor]
"""Points [B, N, 3] -> features [B, N, C]."""
_CPU_ROWS = 8192
"""Rows a scene that are decoded at once on a CPU, as in `TriplaneField`."""


class DecodedField:
    """A signed distance and colours over B scenes: sdf_scale * decoder + (|x| - sphere_radius)."""

    density_kind: DensityKind = "sdf"
    structure = None

    def __init__(
        self,
        features: Features,
        sdf: MLPWeights,
        colour: MLPWeights,
        sdf_scale: float,
        sphere_radius: float,
        sky: tuple[Features, MLPWeights] | None = None,
    ) -> None:
        self._features = features
        self._sdf, self._joint = sdf, join(sdf, colour)
        self._scale, self._radius = sdf_scale, sphere_radius
        self._sky = sky
        self.num_scenes = len(sdf.weights[0])

    def geometry(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N"]:
        return self._read(self._sdf, points)[..., 0]

    def geometry_and_colour(
        self, points: Float[Tensor, "B N 3"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 3"]]:
        output = self._read(self._joint, points)
        return output[..., 0], torch.sigmoid(output[..., 1:])

    def background(self, directions: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"] | None:
        if self._sky is None:
            return None
        features, decoder = self._sky
        return torch.sigmoid(decode(decoder, features(directions)))

    def _read(self, decoder: MLPWeights, points: Tensor) -> Tensor:
        """[B, N, K] with the distance first."""
        rows = _CPU_ROWS if points.device.type == "cpu" else max(points.shape[1], 1)
        parts = []
        for part in points.split(rows, dim=1):
            output = decode(decoder, self._features(part))
            sphere = part.norm(dim=-1, keepdim=True) - self._radius
            first = torch.add(sphere, output[..., :1], alpha=self._scale)
            parts.append(torch.cat((first, output[..., 1:]), dim=-1))
        return torch.cat(parts, dim=1)
