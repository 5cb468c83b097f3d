"""3DConv-net: style-modulated 3D convolutions from text and latent to a volume of features.

Source: Ma et al., "ScaleDreamer", ECCV 2024, and its code, after Bahmani et al., "CC3D", ICCV 2023,
and Karras et al., StyleGAN2, CVPR 2020, whose equations 1 and 3 are the modulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scaledreamer.generators._field import DecodedField
from scaledreamer.generators._layers import pooled_text
from scaledreamer.generators._triplane import harmonics
from scaledreamer.generators.triplane_transformer import SharedDecoder
from scaledreamer.interfaces import TextEmbedding

_SLOPE, _GAIN = 0.2, math.sqrt(2.0)
"""Of the leaky ReLU, and what keeps the second moment behind it."""
_START = 4
"""Side of the first, learned volume, in voxels."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a `Conv3d`; the defaults suit the embedded world, the published ones are named."""

    channels: tuple[int, ...] = (64, 64, 32, 16)
    """Channels at sides 4, 8, 16, ...; published: 512, 512, 512, 256 m, 128 m, 64 m, m = 1 or 2."""
    volume_channels: int = 16
    """Features of a voxel; published: 32."""
    style_dim: int = 128
    """Width of the style that modulates every layer; published: 256."""
    latent_dim: int = 0
    """Width of the latent, which the style joins to the text; published: 64."""
    has_bias_volumes: bool = True
    """Learned volumes that are added from side 8 to half the last, as published."""
    hidden: int = 32
    """Hidden width of the two bias-free decoders; published: 64."""
    sdf_scale: float = 0.5
    """Factor of the decoder's distance, metres."""
    sphere_radius: float = 0.55
    """Radius of the sphere that an untrained generator shows, metres; published: 0.8."""
    background: Literal["none", "learned"] = "none"
    """learned: a colour to every direction, the same for all prompts, as published."""
    use_checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping their volumes."""

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or min(self.channels) < 1:
            raise ValueError(f"generator.channels: got {self.channels}; two or more, each above 0")
        for name in ("volume_channels", "style_dim", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}: got {getattr(self, name)}; at least 1")
        if self.latent_dim < 0:
            raise ValueError(f"generator.latent_dim: got {self.latent_dim}; must not be negative")

    @property
    def volume_side(self) -> int:
        """Voxels along the last volume's side."""
        return _START << (len(self.channels) - 1)


class ModulatedConv3d(nn.Module):
    """A convolution whose weights a style scales per scene, and normalises again.

    No noise is added: unlike in the paper's code, the same text and latent give the same volume.
    """

    def __init__(
        self, inputs: int, outputs: int, style_dim: int, side: int, use_demodulation: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.style = nn.Linear(style_dim, inputs)
        nn.init.normal_(self.style.weight, std=1 / math.sqrt(style_dim))
        nn.init.ones_(self.style.bias)
        self.use_demodulation = use_demodulation
        self._fan_in = inputs * side**3

    def forward(self, x: Float[Tensor, "B C D H W"], style: Tensor) -> Tensor:
        """Scenes as groups of one convolution; the weights are made in float32."""
        with torch.autocast(x.device.type, enabled=False):
            scales = self.style(style)[:, None, :, None, None, None]  # [B, 1, I, 1, 1, 1]
            weight = self.weight / math.sqrt(self._fan_in) * scales
            if self.use_demodulation:
                norm = weight.square().sum(dim=(2, 3, 4, 5), keepdim=True) * self._fan_in
                weight = weight * (norm / self._fan_in + 1e-8).rsqrt()
        count, (outputs, _, side) = len(x), self.weight.shape[:3]
        grouped = F.conv3d(
            x.reshape(1, -1, *x.shape[2:]),
            weight.flatten(0, 1).to(x.dtype),
            padding=side // 2,
            groups=count,
        )
        return grouped.view(count, outputs, *x.shape[2:]) + self.bias.view(-1, 1, 1, 1).to(x.dtype)


def _active(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE) * _GAIN


class Block(nn.Module):
    """A level: two convolutions, the first then doubled in side, and its share of the result."""

    def __init__(self, inputs: int, outputs: int, side: int, config: Config, is_last: bool) -> None:
        super().__init__()
        style = config.style_dim
        is_first = side == _START
        self.is_first = is_first
        self.first = None if is_first else ModulatedConv3d(inputs, outputs, style, 3)
        self.second = ModulatedConv3d(outputs, outputs, style, 3)
        self.out = ModulatedConv3d(outputs, config.volume_channels, style, 1, False)
        self.volume = None
        if config.has_bias_volumes and not is_first and not is_last:
            std = 1 / math.sqrt(outputs)
            self.volume = nn.Parameter(torch.randn(outputs, side, side, side) * std)

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        if self.first is not None:
            x = _active(_doubled(self.first(x, style)))
        x = self.second(x, style)
        if self.volume is not None:
            x = x + self.volume.to(x.dtype)
        x = _active(x)
        return x, self.out(x, style)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)


class Conv3d(nn.Module):
    """Reads the pooled text, and a latent where it has one."""

    def __init__(self, config: Config, token_dim: int, pooled_dim: int | None) -> None:
        super().__init__()
        self.config = config
        self.pooled_dim = pooled_dim
        inputs = token_dim if pooled_dim is None else pooled_dim
        style = config.style_dim
        self.mapping = None
        if config.latent_dim:
            self.mapping = nn.ModuleList(
                [nn.Linear(config.latent_dim, style), nn.Linear(style, style)]
            )
            inputs += style
        self.style = nn.Linear(inputs, style)
        self.start = nn.Parameter(torch.randn(config.channels[0], *(_START,) * 3))
        widths = (config.channels[0], *config.channels)
        self.blocks = nn.ModuleList(
            Block(widths[i], widths[i + 1], _START << i, config, i == len(config.channels) - 1)
            for i in range(len(config.channels))
        )
        features = config.volume_channels
        self.sdf = SharedDecoder((features, config.hidden, 1), 0.1)
        self.colour = SharedDecoder((features, config.hidden, 3), 0.3)
        self.sky = SharedDecoder((9, 16, 16, 3), 0.3) if config.background == "learned" else None

    def forward(self, text: TextEmbedding, latent: Tensor | None = None) -> DecodedField:
        volume = self._volume(self._style(text, latent))
        count, config = len(text), self.config

        def features(points: Tensor) -> Tensor:
            """Trilinear in voxels whose centres lie at (2 i + 1) / R - 1, as texels do."""
            grid = points[:, :, None, None]
            found = F.grid_sample(volume, grid, padding_mode="border", align_corners=False)
            return found[..., 0, 0].mT

        sky = None if self.sky is None else (harmonics, self.sky(count))
        return DecodedField(
            features,
            self.sdf(count),
            self.colour(count),
            config.sdf_scale,
            config.sphere_radius,
            sky,
        )

    def _style(self, text: TextEmbedding, latent: Tensor | None) -> Tensor:
        if (latent is None) != (self.config.latent_dim == 0):
            got = "none" if latent is None else f"shape {tuple(latent.shape)}"
            raise ValueError(f"latent: got {got}; expected [B, {self.config.latent_dim}]")
        inputs = pooled_text(text, self.pooled_dim)
        if self.mapping is not None and latent is not None:
            z = latent * (latent.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
            for layer in self.mapping:
                z = _active(layer(z))
            inputs = torch.cat((z, inputs), dim=-1)
        with torch.autocast(inputs.device.type, enabled=False):
            return _active(self.style(inputs.float()))

    def _volume(self, style: Tensor) -> Float[Tensor, "B C D H W"]:
        """Every level adds its share to the doubled sum of those before (skip architecture)."""
        x = self.start.expand(len(style), *self.start.shape)
        total: Tensor | None = None
        for block in self.blocks:
            if self.config.use_checkpointing and torch.is_grad_enabled():
                x, share = checkpoint(block, x, style, use_reentrant=False)  # type: ignore[misc]
            else:
                x, share = block(x, style)
            total = share if total is None else _doubled(total) + share
        assert total is not None, "there are blocks"
        return total.float()


def create(config: Config, token_dim: int, pooled_dim: int | None) -> Conv3d:
    """An untrained generator for texts of that token and pooled width."""
    return Conv3d(config, token_dim, pooled_dim)
