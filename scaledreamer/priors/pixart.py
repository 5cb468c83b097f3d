"""PixArt alpha and sigma: a transformer with cross-attention to T5, over VAE latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from scaledreamer.interfaces import ConditionRows
from scaledreamer.priors import _diffusion
from scaledreamer.priors._folder import Parts

_CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")
"""The second is its name in folders older than the class."""


@dataclass(frozen=True, kw_only=True)
class Config(_diffusion.Config):
    t5_tokens: int = 120
    """Length of a text: 120 for alpha, 300 for sigma."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t5_tokens < 1:
            raise ValueError(f"prior.t5_tokens: got {self.t5_tokens}; at least 1")


class PixArtPrior(_diffusion.DiffusionPrior):
    """Source: Chen et al., "PixArt-alpha", ICLR 2024; half its output is a learned variance."""

    _time_layer = "adaln_single.emb.timestep_embedder.linear_2"

    def __init__(self, parts: Parts, config: Config, device: torch.device | str = "cpu") -> None:
        self._size_multiple = int(parts.network.config["patch_size"])
        super().__init__(parts, config, device)

    def _call(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self._parts.network.use_additional_conditions:
            sides = x_t.new_full((len(x_t), 2), float(self.size_px))
            size = {"resolution": sides, "aspect_ratio": x_t.new_ones(len(x_t), 1)}
        return self._run(
            x_t,
            encoder_hidden_states=rows.text.tokens.to(self._dtype),
            encoder_attention_mask=rows.text.mask.to(self._dtype),
            timestep=self.schedule.timestep(t),
            added_cond_kwargs=size,
        ).sample


def create(config: Config, device: torch.device | str = "cpu") -> PixArtPrior:
    """Raises: ValueError naming the file of the folder that is missing or does not fit."""
    folder = _diffusion.open_folder(config, device)
    network = folder.network("transformer", PixArtTransformer2DModel, _CLASSES)
    space = folder.space(config.tiny_vae, config.use_offload)
    on = folder.text_device(config.use_offload)
    text = folder.t5("", config.t5_tokens, use_mask=True, use_lower_case=True, on=on)
    fits = {"in_channels": space.channels, "caption_channels": text.token_dim}
    folder.check("transformer", network, fits)
    parts = folder.parts(network, space, text, config.use_offload)
    return PixArtPrior(parts, config, device)
