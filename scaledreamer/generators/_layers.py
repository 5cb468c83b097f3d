"""Building blocks of plane generators."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import group_norm, interpolate, layer_norm, scaled_dot_product_attention

from scaledreamer.interfaces import TextEmbedding

_GROUP = 16
_HEAD = 32


def initial_scales(dims: tuple[int, ...], out_scale: float) -> list[float]:
    """Deviation of each layer's first weights: He's for ReLU layers, then outputs of `out_scale`.

    Source: He et al., "Delving deep into rectifiers", ICCV 2015, equation 10.
    """
    scales = [math.sqrt(2.0 / inputs) for inputs in dims[:-1]]
    scales[-1] = out_scale / math.sqrt(dims[-2])
    return scales


def modulate(x: Tensor, scale_shift: Tensor) -> Tensor:
    """x (1 + scale) + shift with channels last in both; scale_shift [B, 2 C]."""
    scale, shift = scale_shift[:, None].chunk(2, dim=-1)
    return torch.addcmul(shift, x, 1 + scale)


def pooled_text(text: TextEmbedding, pooled_dim: int | None) -> Float[Tensor, "B P"]:
    """The pooled vectors, or for an encoder without any the mean of the real tokens' states.

    Raises: ValueError for a text without what the generator was built for.
    """
    if pooled_dim is None:
        real = text.mask[..., None].to(text.tokens.dtype)
        return (text.tokens * real).sum(1) / real.sum(1)
    if text.pooled is None:
        raise ValueError("text: got no pooled vector; this generator was built with one")
    return text.pooled


class Attention(nn.Module):
    """Multi-head attention of [B, N, W] to a memory [B, L, M] (to itself without one)."""

    def __init__(
        self,
        width: int,
        memory_width: int | None = None,
        head_dim: int = _HEAD,
        has_bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = width // head_dim
        self.head_dim = head_dim
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(memory_width or width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=has_bias)

    def forward(
        self,
        x: Float[Tensor, "B N W"],
        memory: Float[Tensor, "B L M"] | None = None,
        mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B N W"]:
        query = self.query(x)
        key, value = self.key_value(x if memory is None else memory).chunk(2, dim=-1)
        # The CPU's fused backward takes two to five times as long in bfloat16 as in float32.
        is_cpu = x.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if is_cpu else nullcontext():
            if is_cpu:
                query, key, value = query.to(x.dtype), key.to(x.dtype), value.to(x.dtype)
            attended = scaled_dot_product_attention(
                self._heads(query),
                self._heads(key),
                self._heads(value),
                attn_mask=None if mask is None else mask[:, None, None, :],
            )
        return self.output(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text and an MLP, each behind a modulated norm."""

    def __init__(self, width: int, style_dim: int) -> None:
        super().__init__()
        self.width = width
        self.style = nn.Linear(style_dim, 6 * width)
        self.self_attention = Attention(width)
        self.cross_attention = Attention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self,
        x: Float[Tensor, "B N W"],
        style: Float[Tensor, "B S"],
        text: Float[Tensor, "B L W"],
        mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B N W"]:
        styles = self.style(style).chunk(3, dim=-1)
        x = x + self.self_attention(self._norm(x, styles[0]))
        x = x + self.cross_attention(self._norm(x, styles[1]), text, mask)
        return x + self.mlp(self._norm(x, styles[2]))

    def _norm(self, x: Tensor, style: Tensor) -> Tensor:
        return modulate(layer_norm(x, (self.width,)), style)


class UpBlock(nn.Module):
    """Twice the resolution: a residual block on planes [B * 3, C, R, R], modulated per scene."""

    def __init__(self, channels_in: int, channels_out: int, style_dim: int) -> None:
        super().__init__()
        self.style = nn.Linear(style_dim, 2 * channels_out)
        self.expand = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.refine = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1)
        self.groups = channels_out // _GROUP

    def forward(
        self, x: Float[Tensor, "P C R R"], style: Float[Tensor, "B S"]
    ) -> Float[Tensor, "P K R2 R2"]:
        hidden = interpolate(nn.functional.silu(x), scale_factor=2.0, mode="nearest")
        hidden = group_norm(self.expand(hidden), self.groups)
        scale, shift = self.style(style).repeat_interleave(3, dim=0)[..., None, None].chunk(2, 1)
        hidden = nn.functional.silu(torch.addcmul(shift, hidden, 1 + scale))
        return self.refine(hidden) + interpolate(self.skip(x), scale_factor=2.0, mode="nearest")
