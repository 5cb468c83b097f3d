"""Small random priors in the two folder formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, UNet2DConditionModel

from tests.encoders import folders as clip_folders

TOYBOX_CARD: dict[str, Any] = {
    "space": "pixel",
    "patch": 2,
    "size_px": 16,
    "camera_features": 8,
    "use_text_mask": True,
    "overhead_deg": 32,
    "cameras": {"distance": [2.8, 3.2], "elevation_deg": [-5.0, 40.0]},
}


def unet(channels: int, **options: Any) -> UNet2DConditionModel:
    network = UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,  # heads
        cross_attention_dim=clip_folders.WIDTH,
        **options,
    )
    return network.eval()


def write_index(root: Path, **components: tuple[str, str]) -> None:
    names = {"_class_name": "Pipeline", **{key: list(value) for key, value in components.items()}}
    (root / "model_index.json").write_text(json.dumps(names))


def save_toybox(root: Path, card: dict[str, Any] | None = None) -> UNet2DConditionModel:
    """Pixel space, cameras, v-prediction."""
    clip_folders.save_projected_tower(root)
    network = unet(12, class_embed_type="projection", projection_class_embeddings_input_dim=8)
    network.save_pretrained(root / "unet")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    scheduler.save_pretrained(root / "scheduler")
    write_index(
        root,
        unet=("diffusers", "UNet2DConditionModel"),
        scheduler=("diffusers", "DDPMScheduler"),
        text_encoder=("transformers", "CLIPTextModelWithProjection"),
        tokenizer=("transformers", "PreTrainedTokenizerFast"),
    )
    (root / "scaledreamer.json").write_text(json.dumps(card or TOYBOX_CARD))
    return network


def save_stable_diffusion(
    root: Path, prediction: Literal["epsilon", "v_prediction"]
) -> tuple[UNet2DConditionModel, Any]:
    """Latent space, a scheduler of another class, no file of ours."""
    clip_folders.save_plain_tower(root)
    network = unet(4)
    network.save_pretrained(root / "unet")
    levels: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae = AutoencoderKL(
        **levels,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.2,
        shift_factor=0.1,
    ).eval()
    vae.save_pretrained(root / "vae")
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        skip_prk_steps=True,
        steps_offset=1,
    )
    scheduler.save_pretrained(root / "scheduler")
    write_index(
        root,
        unet=("diffusers", "UNet2DConditionModel"),
        vae=("diffusers", "AutoencoderKL"),
        scheduler=("diffusers", "PNDMScheduler"),
        text_encoder=("transformers", "CLIPTextModel"),
        tokenizer=("transformers", "CLIPTokenizer"),
        feature_extractor=("transformers", "CLIPImageProcessor"),
    )
    return network, vae
