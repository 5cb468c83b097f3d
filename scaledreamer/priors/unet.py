"""UNets of diffusers folders: ToyBox, Stable Diffusion 1, 2 and XL, DeepFloyd IF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from scaledreamer.interfaces import CameraBatch, ConditionRows
from scaledreamer.priors import _cameras, _diffusion
from scaledreamer.priors._folder import CARD_FILE, Folder, Parts
from scaledreamer.priors._text import PairedClipText, TextSide

_IF_TOKENS = 77
"""Length of the texts that DeepFloyd IF was trained on."""


@dataclass(frozen=True, kw_only=True)
class Config(_diffusion.Config):
    folder: str = "toybox:prior"
    """A diffusers pipeline folder, a hub id `OWNER/NAME[@REVISION]`, or `toybox:prior`."""
    use_cameras: bool = True
    """Give the camera to a network that takes one; False drops it, and the prior is a broad one."""
    channels_last: bool = True
    """Memory layout of the network's activations; faster on CPUs and on tensor cores."""
    attention_slicing: bool = False
    """Attend one slice of the heads at a time: less memory where attention is not fused."""


class UNetPrior(_diffusion.DiffusionPrior):
    """Stable Diffusion's kind of network, in pixel space or in VAE latents."""

    _config: Config

    def __init__(self, parts: Parts, config: Config, device: torch.device | str = "cpu") -> None:
        unet = parts.network
        if config.channels_last:
            unet.to(memory_format=torch.channels_last)
        if config.attention_slicing:
            unet.set_attention_slice("auto")
        self._size_multiple = 2 ** (len(unet.config["block_out_channels"]) - 1)
        super().__init__(parts, config, device)
        self._num_features = parts.card.camera_features
        self._has_sizes = unet.config["addition_embed_type"] == "text_time"
        self.camera_dim = self._num_features or _cameras.NUM_FEATURES

    @property
    def _takes_cameras(self) -> bool:
        return self._num_features > 0 and self._config.use_cameras

    def _camera_rows(self, cameras: CameraBatch | None, num_rows: int) -> Tensor | None:
        if not self._num_features:
            return None
        if cameras is None or not self._config.use_cameras:
            return torch.zeros(num_rows, self._num_features, device=self._device)
        return self._lora_features(cameras).to(self._device)

    def _lora_features(self, cameras: CameraBatch) -> Tensor:
        return _cameras.FEATURES[self.camera_dim](cameras)

    def _call(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        if self._config.channels_last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        added: dict[str, Tensor] | None = None
        if self._has_sizes:  # original size, crop and target size: a whole image of our own size
            assert rows.text.pooled is not None, "SDXL's text has a pooled vector"
            size = self.size_px
            ids = x_t.new_tensor([size, size, 0, 0, size, size]).expand(len(x_t), -1)
            added = {"text_embeds": rows.text.pooled.to(self._dtype), "time_ids": ids}
        cameras, use_mask = rows.cameras, self._parts.card.use_text_mask
        return self._run(
            x_t,
            self.schedule.timestep(t),
            encoder_hidden_states=rows.text.tokens.to(self._dtype),
            encoder_attention_mask=rows.text.mask if use_mask else None,
            class_labels=None if cameras is None else cameras.to(self._dtype),
            added_cond_kwargs=added,
        ).sample


def read_parts(folder: Folder, config: _diffusion.Config) -> Parts:
    """Raises: ValueError naming the file that is missing or does not fit the others."""
    unet = folder.network("unet", UNet2DConditionModel)
    is_xl = unet.config["addition_embed_type"] == "text_time"
    space = folder.space(config.tiny_vae, config.use_offload, may_overflow=is_xl)
    text = _text(folder, config.use_offload)
    _check_fit(folder, unet, space.channels, text)
    return folder.parts(unet, space, text, config.use_offload)


def _text(folder: Folder, use_offload: bool) -> TextSide:
    on = folder.text_device(use_offload)
    if folder.has("text_encoder_2"):
        use_zeros = bool(folder.index.get("force_zeros_for_empty_prompt", False))
        towers = (folder.clip(number, use_penultimate=True, on=on) for number in ("", "_2"))
        return PairedClipText(*towers, use_zeros=use_zeros)
    if folder.has("text_encoder") and folder.index["text_encoder"][1] == "T5EncoderModel":
        return folder.t5("", _IF_TOKENS, use_mask=True, use_lower_case=True, on=on)
    return folder.clip(on=on)


def _check_fit(folder: Folder, unet: Any, channels: int, text: TextSide) -> None:
    config, features = unet.config, folder.card.camera_features
    outputs = {channels, 2 * channels} if folder.card.space == "pixel" else {channels}
    added = config["addition_embed_type"]
    fits: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": config["out_channels"] if config["out_channels"] in outputs else channels,
        "class_embed_type": "projection" if features else None,
    }
    if added == "text_time":
        sizes = 6 * int(config["addition_time_embed_dim"])
        fits["projection_class_embeddings_input_dim"] = (text.pooled_dim or 0) + sizes
    else:
        fits["addition_embed_type"] = "text" if added == "text" else None
        fits["projection_class_embeddings_input_dim"] = features or None
    projects = config["encoder_hid_dim_type"] == "text_proj"
    fits["encoder_hid_dim" if projects else "cross_attention_dim"] = text.token_dim
    folder.check("unet", unet, fits)
    if features and features not in _cameras.FEATURES:
        known = " and ".join(map(str, _cameras.FEATURES))
        raise ValueError(
            f"{folder.root / CARD_FILE}: camera_features is {features}; 0, {known} work"
        )


def create(config: Config, device: torch.device | str = "cpu") -> UNetPrior:
    """Raises: ValueError naming the file of the folder that is missing or does not fit."""
    folder = _diffusion.open_folder(config, device)
    if folder.card.num_views > 1:
        raise ValueError(f"{folder.root}: sees views of a scene together; set prior.name=mvdream")
    return UNetPrior(read_parts(folder, config), config, device)
