"""One scene's own planes and decoders: classic text-to-3D, a field a prompt.

Also what an amortized generator's field becomes when one prompt of it is refined.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from scaledreamer.generators._layers import initial_scales
from scaledreamer.generators._triplane import SKY_DIMS, TriplaneField
from scaledreamer.interfaces import (
    DensityKind,
    Field,
    MLPWeights,
    TextEmbedding,
    TriplaneStructure,
)

_FEATURE_STD = 0.1
"""Deviation of an untrained plane's features; low, so that the first surface is smooth."""
_TOLERANCE = 1e-3
"""Greatest difference of two rows of one text, by the rounding of a batch; texts differ by more."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a `Triplane`; fused kernels take channels and hidden widths of 16, 32, 48 or 64."""

    planes_px: int = 64
    """Texels along a plane's side; 64 are 3 cm each."""
    plane_channels: int = 16
    """Features per texel."""
    sdf_hidden: tuple[int, ...] = (32, 32)
    """Hidden widths of the distance's decoder."""
    colour_hidden: tuple[int, ...] = (32, 32)
    """Hidden widths of the colour's decoder; as many as `sdf_hidden`."""
    sdf_scale: float = 0.5
    """Factor of the decoder's distance, metres."""
    sphere_radius: float = 0.55
    """Radius of the sphere that an untrained generator shows, metres."""
    density_kind: DensityKind = "sdf"
    """What the decoder gives: signed distance or volume density."""
    background: Literal["none", "learned"] = "none"
    """learned: a decoder gives a colour to every direction."""

    def __post_init__(self) -> None:
        for name in ("planes_px", "plane_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}: got {getattr(self, name)}; at least 1")
        if len(self.sdf_hidden) != len(self.colour_hidden) or not self.sdf_hidden:
            raise ValueError(
                f"generator.colour_hidden: got {len(self.colour_hidden)} layers; "
                f"sdf_hidden has {len(self.sdf_hidden)}, and both need at least one"
            )
        if min(*self.sdf_hidden, *self.colour_hidden) < 1:
            raise ValueError("generator.sdf_hidden, colour_hidden: widths must be at least 1")
        if self.sdf_scale <= 0:
            raise ValueError(f"generator.sdf_scale: got {self.sdf_scale}; must be positive")


class Decoder(nn.Module):
    """The learned weights of one MLP, stored without a scene axis."""

    def __init__(self, dims: tuple[int, ...], out_scale: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            torch.randn(inputs, outputs) * scale
            for (inputs, outputs), scale in zip(
                pairwise(dims), initial_scales(dims, out_scale), strict=True
            )
        )
        self.biases = nn.ParameterList(torch.zeros(outputs) for outputs in dims[1:])

    def forward(self, num_scenes: int) -> MLPWeights:
        """The same weights for every scene, as views."""
        weights = tuple(one.expand(num_scenes, -1, -1) for one in self.weights)
        return MLPWeights(weights, tuple(one.expand(num_scenes, -1) for one in self.biases))

    @torch.no_grad()
    def take(self, mlp: MLPWeights) -> None:
        """Copies the weights of a one-scene MLP of the same sizes."""
        for mine, theirs in zip(
            (*self.weights, *self.biases), (*mlp.weights, *mlp.biases), strict=True
        ):
            mine.copy_(theirs[0])


class Triplane(nn.Module):
    """A scene's learnable planes and decoders; the text only says how many copies are wanted."""

    is_single_scene = True
    """Training refuses a corpus of several prompts."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        features, side = config.plane_channels, config.planes_px
        self.planes = nn.Parameter(torch.randn(3, side, side, features) * _FEATURE_STD)
        self.sdf = Decoder((features, *config.sdf_hidden, 1), 0.1)
        self.colour = Decoder((features, *config.colour_hidden, 3), 0.3)
        self.sky = Decoder(SKY_DIMS, 0.3) if config.background == "learned" else None

    def forward(self, text: TextEmbedding, latent: Tensor | None = None) -> TriplaneField:
        """The one scene, once for each of B equal texts; no tensor is copied.

        Raises: ValueError for a latent, or for texts that differ.
        """
        if latent is not None:
            raise ValueError(f"latent: got shape {tuple(latent.shape)}; this generator takes none")
        count, config = len(text), self.config
        if not _is_one_text(text):
            raise ValueError(
                f"text: got {count} that differ, and triplane holds one scene only; give one "
                "prompt, or choose hyper_triplane for several"
            )
        structure = TriplaneStructure(
            planes=self.planes.expand(count, -1, -1, -1, -1),
            sdf_decoder=self.sdf(count),
            colour_decoder=self.colour(count),
            sdf_scale=config.sdf_scale,
            sphere_radius=config.sphere_radius,
            density_kind=config.density_kind,
        )
        return TriplaneField(structure, None if self.sky is None else self.sky(count))


def _is_one_text(text: TextEmbedding) -> bool:
    """Whether all rows are the first one, up to rounding; padding does not count."""
    if len(text) == 1:
        return True
    if not torch.equal(text.mask, text.mask[:1].expand_as(text.mask)):
        return False
    rows = [text.tokens.masked_fill(~text.mask[..., None], 0.0)]
    if text.pooled is not None:
        rows.append(text.pooled)
    return all(
        torch.allclose(row, row[:1].expand_as(row), rtol=_TOLERANCE, atol=_TOLERANCE)
        for row in rows
    )


def hold(field: Field) -> Triplane:
    """A generator of one scene that gives exactly this field, whatever made it.

    Raises: ValueError when the field has no structure, several scenes, or a background that can't
        be taken along.
    """
    structure = field.structure
    if structure is None:
        raise ValueError(
            "generator: its field has no structure (planes and decoders) that a triplane could "
            "hold; use one that has, such as hyper_triplane"
        )
    if len(structure.planes) != 1:
        raise ValueError(f"field: got {len(structure.planes)} scenes; a triplane holds one")
    sky: MLPWeights | None = getattr(field, "background_decoder", None)
    if sky is None and field.background(structure.planes.new_ones(1, 1, 3)) is not None:
        raise ValueError("generator: its field's background can't be held; learn none")
    config = Config(
        planes_px=structure.planes.shape[2],
        plane_channels=structure.planes.shape[-1],
        sdf_hidden=tuple(one.shape[-1] for one in structure.sdf_decoder.biases[:-1]),
        colour_hidden=tuple(one.shape[-1] for one in structure.colour_decoder.biases[:-1]),
        sdf_scale=structure.sdf_scale,
        sphere_radius=structure.sphere_radius,
        density_kind=structure.density_kind,
        background="none" if sky is None else "learned",
    )
    generator = Triplane(config)
    with torch.no_grad():
        generator.planes.copy_(structure.planes[0])
    generator.sdf.take(structure.sdf_decoder)
    generator.colour.take(structure.colour_decoder)
    if generator.sky is not None and sky is not None:
        generator.sky.take(sky)
    return generator


def create(config: Config, token_dim: int, pooled_dim: int | None) -> Triplane:
    """An untrained scene; the widths of the text do not matter."""
    return Triplane(config)
