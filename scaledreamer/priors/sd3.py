"""Stable Diffusion 3 and 3.5: a transformer over rectified-flow latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from scaledreamer.interfaces import ConditionRows
from scaledreamer.priors import _diffusion
from scaledreamer.priors._folder import Parts
from scaledreamer.priors._text import ThreefoldText


@dataclass(frozen=True, kw_only=True)
class Config(_diffusion.Config):
    t5_tokens: int = 256
    """Length of the T5 part of a text; its pipeline's. A folder without T5 gives zeros."""
    use_t5: bool = True
    """False leaves the third text encoder out, 4.7 billion parameters, as its pipeline can."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t5_tokens < 1:
            raise ValueError(f"prior.t5_tokens: got {self.t5_tokens}; at least 1")


class SD3Prior(_diffusion.DiffusionPrior):
    """Source: Esser et al., "Scaling rectified flow transformers", ICML 2024."""

    _time_layer = "time_text_embed.timestep_embedder.linear_2"

    def __init__(self, parts: Parts, config: Config, device: torch.device | str = "cpu") -> None:
        self._size_multiple = int(parts.network.config["patch_size"])
        super().__init__(parts, config, device)

    def _call(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        assert rows.text.pooled is not None, "its text has a pooled vector"
        return self._run(
            hidden_states=x_t,
            timestep=self.schedule.timestep(t),
            encoder_hidden_states=rows.text.tokens.to(self._dtype),
            pooled_projections=rows.text.pooled.to(self._dtype),
        ).sample


def create(config: Config, device: torch.device | str = "cpu") -> SD3Prior:
    """Raises: ValueError naming the file of the folder that is missing or does not fit."""
    folder = _diffusion.open_folder(config, device)
    network = folder.network("transformer", SD3Transformer2DModel)
    space = folder.space(config.tiny_vae, config.use_offload)
    on = folder.text_device(config.use_offload)
    third = None
    if config.use_t5 and folder.has("text_encoder_3"):
        third = folder.t5("_3", config.t5_tokens, use_mask=False, on=on)
    text = ThreefoldText(
        folder.clip("", use_penultimate=True, on=on),
        folder.clip("_2", use_penultimate=True, on=on),
        third,
        int(network.config["joint_attention_dim"]),
        config.t5_tokens,
    )
    fits = {"in_channels": space.channels, "pooled_projection_dim": text.pooled_dim}
    folder.check("transformer", network, fits)
    parts = folder.parts(network, space, text, config.use_offload)
    return SD3Prior(parts, config, device)
