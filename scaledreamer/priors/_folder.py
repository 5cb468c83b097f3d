"""Reads a diffusers pipeline folder by component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from scaledreamer.cameras import CameraDistribution
from scaledreamer.config import build
from scaledreamer.encoders import clip_text
from scaledreamer.interfaces import BackgroundDistribution
from scaledreamer.priors import _cameras
from scaledreamer.priors._schedule import (
    FlowSchedule,
    Prediction,
    VPSchedule,
    from_scheduler_config,
)
from scaledreamer.storage import read_json

CARD_FILE = "scaledreamer.json"


@dataclass(frozen=True, kw_only=True)
class Card:
    """`scaledreamer.json`: what a diffusers folder has no place for.

    Without the file a folder is a Stable Diffusion: VAE latents, no camera, no text mask.
    """

    space: Literal["pixel", "latent"] = "latent"
    """pixel: the network denoises pixel-unshuffled images in [-1, 1]."""
    patch: int = 1
    """Side of the unshuffled blocks in pixel space."""
    size_px: int | None = None
    """Side of the images it was trained on; by default what the network's sample size says."""
    camera_features: int = 0
    """Width of the camera input (class labels); 0: none."""
    cameras: CameraDistribution | None = None
    """Cameras of the training images."""
    background: BackgroundDistribution | None = None
    """Backgrounds of the training images."""
    front_deg: float | None = None
    """Half-width of the sectors that captions call front and back; by default 45 in pixel space,
    else ScaleDreamer's 30."""
    overhead_deg: float = 60.0
    """Elevation above which captions say "overhead view"; the default is ScaleDreamer's."""
    use_text_mask: bool | None = None
    """Hide padding from the cross-attention; by default in pixel space only."""


@dataclass(frozen=True)
class Parts:
    """Frozen components on one device."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    text: clip_text.ClipTextEncoder
    schedule: VPSchedule | FlowSchedule
    prediction: Prediction
    card: Card
    pixels_per_latent: int

    @property
    def front_deg(self) -> float:
        if self.card.front_deg is not None:
            return self.card.front_deg
        return 45.0 if self.card.space == "pixel" else 30.0

    @property
    def use_text_mask(self) -> bool:
        mask = self.card.use_text_mask
        return self.card.space == "pixel" if mask is None else mask


def read_parts(root: Path, dtype: torch.dtype, device: torch.device | str) -> Parts:
    """Components of a folder whose networks take `dtype`; the text tower stays in float32.

    Raises: ValueError naming the file that is missing, unsupported or does not fit the others.
    """
    card_path = root / CARD_FILE
    card = build(Card, read_json(card_path), str(card_path)) if card_path.is_file() else Card()
    index = _read_index(root, card)
    unet = clip_text.load_pretrained(
        UNet2DConditionModel, root / "unet", "diffusion_pytorch_model", torch_dtype=dtype
    ).to(device)
    vae = None
    pixels = card.patch
    if "vae" in index and card.space == "latent":
        vae = clip_text.load_pretrained(
            AutoencoderKL, root / "vae", "diffusion_pytorch_model", torch_dtype=dtype
        ).to(device)
        pixels = 2 ** (len(vae.config.block_out_channels) - 1)
    text = clip_text.load(str(root), device)
    scheduler_path = root / "scheduler" / "scheduler_config.json"
    schedule, prediction = from_scheduler_config(read_json(scheduler_path), device)
    parts = Parts(unet, vae, text, schedule, prediction, card, pixels)
    _check_fit(root, parts)
    return parts


def _read_index(root: Path, card: Card) -> dict[str, Any]:
    path = root / "model_index.json"
    if not path.is_file():
        raise ValueError(f"{path}: missing; a prior is a diffusers pipeline folder")
    index = read_json(path)
    needed = {
        "unet": "config.json",
        "scheduler": "scheduler_config.json",
        "text_encoder": "config.json",
        "tokenizer": "tokenizer_config.json",
    }
    if card.space == "latent":
        needed["vae"] = "config.json"
    for name, file in needed.items():
        if not index.get(name) or index[name][1] is None:
            raise ValueError(f"{path}: names no {name}; the prior needs one")
        if not (root / name / file).is_file():
            raise ValueError(f"{root / name / file}: missing, though {path.name} names a {name}")
    for name, only in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        if name in needed and index[name][1] != only:
            raise ValueError(f"{path}: {name} is a {index[name][1]}; only {only} is supported")
    if index.get("text_encoder_2", (None, None))[1] is not None:
        raise ValueError(f"{path}: has a second text encoder, which is not supported")
    return index


def _check_fit(root: Path, parts: Parts) -> None:
    config: Mapping[str, Any] = parts.unet.config
    path = root / "unet" / "config.json"
    channels = 3 * parts.card.patch**2
    if parts.vae is not None:
        channels = parts.vae.config["latent_channels"]
    features = parts.card.camera_features
    fits = {
        "in_channels": (config["in_channels"], channels),
        "out_channels": (config["out_channels"], channels),
        "cross_attention_dim": (config["cross_attention_dim"], parts.text.token_dim),
        "addition_embed_type": (config["addition_embed_type"], None),
        "class_embed_type": (config["class_embed_type"], "projection" if features else None),
        "projection_class_embeddings_input_dim": (
            config["projection_class_embeddings_input_dim"],
            features or None,
        ),
    }
    for name, (got, expected) in fits.items():
        if got != expected:
            raise ValueError(f"{path}: {name} is {got}; the folder's other parts need {expected}")
    if features not in (0, _cameras.NUM_FEATURES):
        raise ValueError(
            f"{root / CARD_FILE}: camera_features is {features}; 0 or {_cameras.NUM_FEATURES} work"
        )
    size = parts.card.size_px
    if size is not None and size != config["sample_size"] * parts.pixels_per_latent:
        raise ValueError(
            f"{root / CARD_FILE}: size_px is {size}; the unet's sample_size says "
            f"{config['sample_size'] * parts.pixels_per_latent}"
        )
