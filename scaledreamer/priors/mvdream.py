"""MVDream: a Stable Diffusion whose self-attention joins the views of a scene.

Source: Shi et al., "MVDream: Multi-view diffusion for 3D generation", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from scaledreamer.priors import _diffusion, unet
from scaledreamer.priors._folder import CARD_FILE, Parts


@dataclass(frozen=True, kw_only=True)
class Config(unet.Config):
    folder: str = ""
    """A folder that `scaledreamer prior convert` made of a published checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_slicing:
            raise ValueError("prior.attention_slicing: not with the joint attention of mvdream")
        if not self.use_cameras:
            raise ValueError("prior.use_cameras: mvdream tells its views apart by their cameras")


class JointViews:
    """An attention processor: the tokens of a scene's views attend to one another."""

    def __init__(self, num_views: int) -> None:
        self._num_views = num_views
        self._attend: Any = AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """[N, L, C], scene-major; attention to the text is each view's own."""
        if encoder_hidden_states is not None:
            return self._attend(
                attn, hidden_states, encoder_hidden_states, attention_mask, **options
            )
        rows, length, width = hidden_states.shape
        scenes = hidden_states.reshape(rows // self._num_views, self._num_views * length, width)
        return self._attend(attn, scenes, **options).reshape(rows, length, width)


class MVDreamPrior(unet.UNetPrior):
    """Rows come in groups of `num_views`, the views of a scene, which share their time."""

    def __init__(self, parts: Parts, config: Config, device: torch.device | str = "cpu") -> None:
        self.num_views = parts.card.num_views
        parts.network.set_attn_processor(JointViews(self.num_views))
        super().__init__(parts, config, device)


def create(config: Config, device: torch.device | str = "cpu") -> MVDreamPrior:
    """Raises: ValueError naming the file of the folder that is missing or does not fit."""
    folder = _diffusion.open_folder(config, device)
    if folder.card.num_views < 2 or not folder.card.camera_features:
        raise ValueError(
            f"{folder.root / CARD_FILE}: num_views is {folder.card.num_views} and camera_features "
            f"{folder.card.camera_features}; mvdream needs both: make the folder by "
            "`scaledreamer prior convert`, or set prior.name=unet"
        )
    return MVDreamPrior(unet.read_parts(folder, config), config, device)
