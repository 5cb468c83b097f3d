"""Small random priors in the folder formats of their families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from tests.encoders import folders as clip_folders

TOYBOX_CARD: dict[str, Any] = {
    "space": "pixel",
    "patch": 2,
    "size_px": 16,
    "camera_features": 8,
    "use_text_mask": True,
    "front_deg": 45,
    "overhead_deg": 32,
    "cameras": {"distance": [2.8, 3.2], "elevation_deg": [-5.0, 40.0]},
}


def unet(channels: int, **options: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,  # heads
        "cross_attention_dim": clip_folders.WIDTH,
    }
    return UNet2DConditionModel(**{**settings, **options}).eval()


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


def save_vae(root: Path, channels: int = 4, **options: Any) -> AutoencoderKL:
    levels: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae = AutoencoderKL(
        **levels,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=16,
        scaling_factor=0.2,
        shift_factor=0.1,
        **options,
    ).eval()
    vae.save_pretrained(root / "vae")
    return vae


def save_tiny_vae(root: Path) -> AutoencoderTiny:
    """As published for Stable Diffusion, with 4 channels; one level, like the VAE here."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    vae.save_pretrained(root)
    return vae


def save_stable_diffusion(
    root: Path, prediction: Literal["epsilon", "v_prediction"]
) -> tuple[UNet2DConditionModel, Any]:
    """Latent space, a scheduler of another class, no file of ours."""
    clip_folders.save_plain_tower(root)
    network = unet(4)
    network.save_pretrained(root / "unet")
    vae = save_vae(root)
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


def save_sdxl(root: Path, use_zeros: bool = True) -> UNet2DConditionModel:
    """Two text towers, sizes as condition, a VAE that float16 overflows."""
    for number in ("", "_2"):
        clip_folders.save_projected_tower(root, number)
    network = unet(
        4,
        cross_attention_dim=2 * clip_folders.WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=clip_folders.PROJECTION + 6 * 8,
    )
    network.save_pretrained(root / "unet")
    save_vae(root, force_upcast=True)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    scheduler.save_pretrained(root / "scheduler")
    write_index(
        root,
        unet=("diffusers", "UNet2DConditionModel"),
        vae=("diffusers", "AutoencoderKL"),
        scheduler=("diffusers", "EulerDiscreteScheduler"),
        text_encoder=("transformers", "CLIPTextModel"),
        text_encoder_2=("transformers", "CLIPTextModelWithProjection"),
        tokenizer=("transformers", "CLIPTokenizer"),
        tokenizer_2=("transformers", "CLIPTokenizer"),
    )
    index = json.loads((root / "model_index.json").read_text())
    index["force_zeros_for_empty_prompt"] = use_zeros
    (root / "model_index.json").write_text(json.dumps(index))
    return network


def save_deepfloyd(root: Path) -> UNet2DConditionModel:
    """Pixels, T5, a learned variance beside the noise."""
    clip_folders.save_t5(root)
    network = unet(
        3,
        out_channels=6,
        sample_size=16,
        encoder_hid_dim_type="text_proj",
        encoder_hid_dim=clip_folders.T5_WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        time_embedding_act_fn="gelu",
    )
    network.save_pretrained(root / "unet")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    scheduler.save_pretrained(root / "scheduler")
    write_index(
        root,
        unet=("diffusers", "UNet2DConditionModel"),
        scheduler=("diffusers", "DDPMScheduler"),
        text_encoder=("transformers", "T5EncoderModel"),
        tokenizer=("transformers", "T5Tokenizer"),
    )
    index = json.loads((root / "model_index.json").read_text())
    (root / "model_index.json").write_text(json.dumps({**index, "_class_name": "IFPipeline"}))
    return network


def save_mvdream(root: Path, num_views: int = 4) -> UNet2DConditionModel:
    """A Stable Diffusion 2 that takes camera matrices, with a card of ours."""
    save_stable_diffusion(root, "epsilon")
    network = unet(4, class_embed_type="projection", projection_class_embeddings_input_dim=16)
    network.save_pretrained(root / "unet")
    card = {"space": "latent", "camera_features": 16, "num_views": num_views}
    (root / "scaledreamer.json").write_text(json.dumps(card))
    return network


def _save_flow(root: Path, **components: tuple[str, str]) -> None:
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(root / "scheduler")
    scheduler = ("diffusers", "FlowMatchEulerDiscreteScheduler")
    write_index(root, vae=("diffusers", "AutoencoderKL"), scheduler=scheduler, **components)


def save_sd3(root: Path) -> SD3Transformer2DModel:
    for number in ("", "_2"):
        clip_folders.save_projected_tower(root, number)
    width = 2 * clip_folders.WIDTH
    clip_folders.save_t5(root, "_3", width)
    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=width,
        caption_projection_dim=16,
        pooled_projection_dim=2 * clip_folders.PROJECTION,
        pos_embed_max_size=12,
    ).eval()
    network.save_pretrained(root / "transformer")
    save_vae(root)
    tower = ("transformers", "CLIPTextModelWithProjection")
    _save_flow(
        root,
        transformer=("diffusers", "SD3Transformer2DModel"),
        text_encoder=tower,
        text_encoder_2=tower,
        text_encoder_3=("transformers", "T5EncoderModel"),
        tokenizer=("transformers", "CLIPTokenizer"),
        tokenizer_2=("transformers", "CLIPTokenizer"),
        tokenizer_3=("transformers", "T5TokenizerFast"),
    )
    return network


def save_flux(root: Path, is_distilled: bool = True) -> FluxTransformer2DModel:
    clip_folders.save_plain_tower(root)
    clip_folders.save_t5(root, "_2")
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=clip_folders.T5_WIDTH,
        pooled_projection_dim=clip_folders.WIDTH,
        guidance_embeds=is_distilled,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    network.save_pretrained(root / "transformer")
    save_vae(root)
    (root / "scaledreamer.json").write_text(json.dumps({"size_px": 16}))
    _save_flow(
        root,
        transformer=("diffusers", "FluxTransformer2DModel"),
        text_encoder=("transformers", "CLIPTextModel"),
        text_encoder_2=("transformers", "T5EncoderModel"),
        tokenizer=("transformers", "CLIPTokenizer"),
        tokenizer_2=("transformers", "T5TokenizerFast"),
    )
    return network


def save_pixart(root: Path, **options: Any) -> PixArtTransformer2DModel:
    """A learned variance beside the noise; the mask of the text is seen."""
    clip_folders.save_t5(root)
    network = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=8,
        caption_channels=clip_folders.T5_WIDTH,
        norm_num_groups=1,
        **options,
    ).eval()
    network.save_pretrained(root / "transformer")
    save_vae(root)
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    scheduler.save_pretrained(root / "scheduler")
    write_index(
        root,
        transformer=("diffusers", "Transformer2DModel"),
        vae=("diffusers", "AutoencoderKL"),
        scheduler=("diffusers", "DPMSolverMultistepScheduler"),
        text_encoder=("transformers", "T5EncoderModel"),
        tokenizer=("transformers", "T5Tokenizer"),
    )
    return network
