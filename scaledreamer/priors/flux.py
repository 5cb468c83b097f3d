"""Flux: a transformer over packed rectified-flow latents, with its guidance built in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional as F

from scaledreamer.interfaces import ConditionRows
from scaledreamer.priors import _diffusion
from scaledreamer.priors._text import PooledBesideTokens

_PATCH = 2
"""Side of the blocks of latents that are one token."""
_SIZE_PX = 512
"""Flux takes any size and its files name none; this is a distillation's usual one."""


@dataclass(frozen=True, kw_only=True)
class Config(_diffusion.Config):
    t5_tokens: int = 512
    """Length of a text; its pipeline's."""
    embedded_guidance: float = 3.5
    """The guidance that a distilled network ("dev") is told; others ignore it. Classifier-free
    guidance by the loss comes on top: 1.0 here leaves it alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t5_tokens < 1:
            raise ValueError(f"prior.t5_tokens: got {self.t5_tokens}; at least 1")


class FluxPrior(_diffusion.DiffusionPrior):
    """Source: Black Forest Labs, FLUX.1, 2024; Esser et al., ICML 2024, for the flow."""

    _config: Config
    _size_multiple = _PATCH
    _time_layer = "time_text_embed.timestep_embedder.linear_2"

    def _call(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        assert rows.text.pooled is not None, "its text has a pooled vector"
        tokens = rows.text.tokens.to(self._dtype)
        height, width = x_t.shape[-2] // _PATCH, x_t.shape[-1] // _PATCH
        place = torch.stack(
            torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1
        ).flatten(0, 1)
        image_ids = F.pad(place, (1, 0)).to(x_t)  # [hw, 3]: 0, row, column
        guidance = None
        if self._parts.network.config["guidance_embeds"]:
            guidance = torch.full((len(x_t),), self._config.embedded_guidance, device=x_t.device)
        out = self._run(
            hidden_states=F.pixel_unshuffle(x_t, _PATCH).flatten(2).mT,
            timestep=self.schedule.timestep(t) / self.schedule.num_steps,
            guidance=guidance,
            pooled_projections=rows.text.pooled.to(self._dtype),
            encoder_hidden_states=tokens,
            img_ids=image_ids,
            txt_ids=x_t.new_zeros(tokens.shape[1], 3),
        ).sample
        return F.pixel_shuffle(out.mT.unflatten(2, (height, width)), _PATCH)


def create(config: Config, device: torch.device | str = "cpu") -> FluxPrior:
    """Raises: ValueError naming the file of the folder that is missing or does not fit."""
    folder = _diffusion.open_folder(config, device)
    network = folder.network("transformer", FluxTransformer2DModel)
    space = folder.space(config.tiny_vae, config.use_offload)
    on = folder.text_device(config.use_offload)
    text = PooledBesideTokens(
        folder.clip(on=on), folder.t5("_2", config.t5_tokens, use_mask=False, on=on)
    )
    fits = {
        "in_channels": space.channels * _PATCH**2,
        "joint_attention_dim": text.token_dim,
        "pooled_projection_dim": text.pooled_dim,
    }
    folder.check("transformer", network, fits)
    parts = folder.parts(network, space, text, config.use_offload, folder.card.size_px or _SIZE_PX)
    return FluxPrior(parts, config, device)
