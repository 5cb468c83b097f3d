"""From MVDream's published checkpoints (one file, latent-diffusion layout) to a pipeline folder.

Names and shapes from its public code (bytedance/MVDream: configs/sd-v2-base.yaml, sd-v1.yaml and
the classes they name): Stable Diffusion's layers, a two-layer embedding of the camera beside that
of the time, and the same weights in its joint attention.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from scaledreamer.encoders._pretrained import load_tokenizer, locate, without_progress_bar
from scaledreamer.priors._folder import CARD_FILE, INDEX_FILE
from scaledreamer.storage import atomic_folder, load_tensors, save_tensors, write_json

State = Mapping[str, Tensor]


class Weights(dict[str, Tensor]):
    """Of a checkpoint; asking for one that is missing is a user's error."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(f"checkpoint: has no {name}; is it MVDream's?")


UNET, VAE = "model.diffusion_model.", "first_stage_model."
OPEN_CLIP, CLIP = "cond_stage_model.model.", "cond_stage_model.transformer."
SCHEDULE = (
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)
"""Buffers of the noise schedule, which the scheduler's configuration says in three numbers."""
UNUSED = (f"{OPEN_CLIP}text_projection", f"{OPEN_CLIP}logit_scale", f"{OPEN_CLIP}attn_mask")
"""Of the text tower; its last layer goes unused too, since MVDream takes the states before it."""
NUM_VIEWS, SIZE_PX = 4, 256


def convert(checkpoint: Path, folder: Path, tokenizer: str, num_views: int = NUM_VIEWS) -> None:
    """Writes a folder that `prior.name=mvdream` reads, in the checkpoint's precision.

    The checkpoint has no tokenizer: `tokenizer` names a folder or hub id that holds one, such as a
    Stable Diffusion's. Raises: ValueError naming what is missing, or a weight that has no place.
    """
    state = read_checkpoint(checkpoint)
    unet_config, unet = convert_unet(state)
    vae_config, vae = convert_vae(state)
    text_config, text = convert_text(state)
    require_known(state)
    words = load_tokenizer(_tokenizer_folder(tokenizer))
    if f"{OPEN_CLIP}positional_embedding" in state:
        words.pad_token = words.convert_ids_to_tokens(0)  # as OpenCLIP pads
    with atomic_folder(folder) as made:
        _save(UNet2DConditionModel, unet_config, unet, made / "unet")
        _save(AutoencoderKL, vae_config, vae, made / "vae")
        text_config.save_pretrained(made / "text_encoder")
        save_tensors(made / "text_encoder" / "model.safetensors", text, {"format": "pt"})
        words.save_pretrained(made / "tokenizer")
        DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ).save_pretrained(made / "scheduler")
        write_json(
            made / INDEX_FILE,
            {
                "_class_name": "MVDreamPipeline",
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
                "scheduler": ["diffusers", "DDIMScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
            },
        )
        cameras = int(unet_config["projection_class_embeddings_input_dim"])
        write_json(
            made / CARD_FILE,
            {
                "space": "latent",
                "size_px": unet_config["sample_size"]
                * 2 ** (len(vae_config["block_out_channels"]) - 1),
                "camera_features": cameras,
                "num_views": num_views,
            },
        )


def read_checkpoint(path: Path) -> State:
    """Raises: ValueError for a file that is missing, or holds anything but tensors."""
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"cannot read checkpoint {path}: {reason}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(one, Tensor) for one in state.values()):
        raise ValueError(f"checkpoint {path}: holds no dictionary of tensors")
    return state


def require_known(state: State) -> None:
    """Raises: ValueError naming a weight of no part that is known here."""
    for name in state:
        is_known = name.startswith((UNET, VAE, OPEN_CLIP, CLIP)) or name in SCHEDULE
        if not is_known and not name.startswith("model_ema."):
            raise ValueError(f"checkpoint: {name} is no weight of MVDream's layout")


def convert_unet(state: State) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration, read off the shapes, and weights of a stock UNet."""
    own = Weights(
        (name.replace(f"{UNET}camera_embed.", f"{UNET}label_emb.0."), weight)
        for name, weight in state.items()
        if name.startswith(UNET)
    )
    for name in (
        "input_blocks.0.0.weight",
        "camera_embed.0.weight",
        "middle_block.1.proj_in.weight",
    ):
        if f"{UNET}{name}" not in state:
            raise ValueError(f"checkpoint: has no {UNET}{name}; is it MVDream's?")
    widths = _unet_widths(own)
    is_linear = own[f"{UNET}middle_block.1.proj_in.weight"].ndim == 2
    to_key = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    num_levels = len(widths)
    config: dict[str, Any] = {
        "sample_size": SIZE_PX // 8,
        "in_channels": own[f"{UNET}input_blocks.0.0.weight"].shape[1],
        "out_channels": own[f"{UNET}out.2.weight"].shape[0],
        "layers_per_block": _num_blocks(own, num_levels),
        "block_out_channels": widths,
        "down_block_types": [*["CrossAttnDownBlock2D"] * (num_levels - 1), "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * (num_levels - 1)],
        # named so by an old mistake: the number of heads; 64 channels each, or 8 of them
        "attention_head_dim": [width // 64 for width in widths] if is_linear else 8,
        "cross_attention_dim": own[to_key].shape[1],
        "use_linear_projection": is_linear,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": own[f"{UNET}label_emb.0.0.weight"].shape[1],
    }
    return config, _checked(
        "unet", UNet2DConditionModel, config, own, convert_ldm_unet_checkpoint(own, config)
    )


def _unet_widths(own: State) -> list[int]:
    """Output channels of each level, in order; a level ends where its down-sampling stands."""
    widths: list[int] = []
    index = 1
    while (name := f"{UNET}input_blocks.{index}.0.out_layers.3.weight") in own or (
        f"{UNET}input_blocks.{index}.0.op.weight" in own
    ):
        if name in own:
            last = own[name].shape[0]
            is_new = not widths or f"{UNET}input_blocks.{index - 1}.0.op.weight" in own
            widths = [*widths, last] if is_new else [*widths[:-1], last]
        index += 1
    return widths


def _num_blocks(own: State, num_levels: int) -> int:
    blocks = {name.split(".")[3] for name in own if name.startswith(f"{UNET}input_blocks.")}
    return (len(blocks) - num_levels) // num_levels  # first convolution and down-samplings aside


def convert_vae(state: State) -> tuple[dict[str, Any], dict[str, Tensor]]:
    own = Weights((name, weight) for name, weight in state.items() if name.startswith(VAE))
    num_levels = len({name.split(".")[3] for name in own if name.startswith(f"{VAE}encoder.down.")})
    if not num_levels:
        raise ValueError(f"checkpoint: has no {VAE}encoder.down; is it MVDream's?")
    blocks = {name.split(".")[5] for name in own if name.startswith(f"{VAE}encoder.down.0.block.")}
    weights = [own[f"{VAE}encoder.down.{i}.block.0.conv2.weight"] for i in range(num_levels)]
    config: dict[str, Any] = {
        "block_out_channels": [weight.shape[0] for weight in weights],
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "layers_per_block": len(blocks),
        "latent_channels": own[f"{VAE}post_quant_conv.weight"].shape[1],
        "sample_size": SIZE_PX,
        "scaling_factor": 0.18215,
        "force_upcast": False,
    }
    return config, _checked(
        "vae", AutoencoderKL, config, own, convert_ldm_vae_checkpoint(own, config)
    )


def convert_text(state: State) -> tuple[CLIPTextConfig, dict[str, Tensor]]:
    """OpenCLIP's tower without its last layer (Stable Diffusion 2), or CLIP's (1.5)."""
    if f"{OPEN_CLIP}positional_embedding" in state:
        own = Weights(
            (n, w) for n, w in state.items() if n.startswith(OPEN_CLIP) and n not in UNUSED
        )
        layers = {int(n.split(".")[4]) for n in own if ".resblocks." in n}
        last = f"{OPEN_CLIP}transformer.resblocks.{max(layers)}."
        own = Weights((n, w) for n, w in own.items() if not n.startswith(last))
        length, width = own[f"{OPEN_CLIP}positional_embedding"].shape
        inner = own[f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
        words = own[f"{OPEN_CLIP}token_embedding.weight"].shape[0]
        config = _text_config(words, length, width, inner, len(layers) - 1, "gelu")
        tower: Any = type("Tower", (), {"config": config})
        converted = convert_open_clip_checkpoint(tower, own, OPEN_CLIP)
    elif f"{CLIP}text_model.embeddings.position_embedding.weight" in state:
        own = Weights(
            (n, w) for n, w in state.items() if n.startswith(CLIP) and "position_ids" not in n
        )
        length, width = own[f"{CLIP}text_model.embeddings.position_embedding.weight"].shape
        inner = own[f"{CLIP}text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
        words = own[f"{CLIP}text_model.embeddings.token_embedding.weight"].shape[0]
        layers = {n.split(".")[5] for n in own if ".layers." in n}
        config = _text_config(words, length, width, inner, len(layers), "quick_gelu")
        converted = convert_ldm_clip_checkpoint(own)
    else:
        raise ValueError(f"checkpoint: has no text tower under {OPEN_CLIP} or {CLIP}")
    with torch.device("meta"):
        expected = CLIPTextModel(config).state_dict()
    bare = {name.removeprefix("text_model."): weight for name, weight in converted.items()}
    _require_same(
        "text_encoder",
        {name.removeprefix("text_model."): weight for name, weight in expected.items()},
        bare,
    )
    _require_all("text_encoder", own, converted)
    return config, converted


def _text_config(
    words: int, length: int, width: int, inner: int, layers: int, activation: str
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        max_position_embeddings=length,
        hidden_act=activation,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        architectures=["CLIPTextModel"],
    )


def _checked(
    part: str, model_class: Any, config: Mapping[str, Any], own: State, converted: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The converted weights, when they are the model's, name by name and shape by shape."""
    with torch.device("meta"):
        expected = model_class.from_config(dict(config)).state_dict()
    _require_same(part, expected, converted)
    _require_all(part, own, converted)
    return converted


def _require_same(part: str, expected: State, converted: State) -> None:
    """Raises: ValueError naming a weight that is missing, of another shape, or without a place."""
    for name, weight in expected.items():
        if name not in converted or converted[name].shape != weight.shape:
            got = "missing" if name not in converted else f"of shape {tuple(converted[name].shape)}"
            raise ValueError(
                f"checkpoint: {part} weight {name} is {got}; need shape {tuple(weight.shape)}"
            )
    if extra := sorted(set(converted) - set(expected)):
        raise ValueError(f"checkpoint: {part} weight {extra[0]} has no place in the network")


def _require_all(part: str, own: State, converted: State) -> None:
    """Raises: ValueError unless every element went into some weight."""
    given, placed = (sum(one.numel() for one in every.values()) for every in (own, converted))
    if given != placed:
        raise ValueError(
            f"checkpoint: {part} has {given:,} numbers, of which {placed:,} have a place"
        )


def _save(model_class: Any, config: Mapping[str, Any], weights: State, folder: Path) -> None:
    with torch.device("meta"):
        model = model_class.from_config(dict(config))
    model.load_state_dict({n: w.contiguous() for n, w in weights.items()}, assign=True)
    with without_progress_bar():
        model.save_pretrained(folder)


def _tokenizer_folder(spec: str) -> Path:
    root = locate(spec, "--tokenizer")
    return root / "tokenizer" if (root / "tokenizer").is_dir() else root
