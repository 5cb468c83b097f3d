"""What a step of distillation from each published prior costs, counted on shapes alone.

python -m benchmarks.prior_cost          one prompt, four views, ASD

No weights are read: networks, autoencoders and text towers are built on the device "meta" from
their published configurations (the config.json files of the named repositories). Beside them stands
what is not the prior: a generator and its renders, forward and back.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from scaledreamer.cli.errors import Parser, run
from scaledreamer.config import load_config
from scaledreamer.encoders import clip_text
from scaledreamer.encoders._pretrained import as_loaded
from scaledreamer.interfaces import TextEmbedding
from scaledreamer.kernels.backend import use_backend
from scaledreamer.priors import flux, mvdream, pixart, sd3, unet
from scaledreamer.priors._diffusion import precision
from scaledreamer.priors._folder import Card, Parts
from scaledreamer.priors._images import LatentSpace
from scaledreamer.priors._schedule import FlowSchedule, cosine_schedule
from scaledreamer.rendering.volume import render
from scaledreamer.rng import StepRng
from scaledreamer.storage import write_json
from scaledreamer.training.config import TrainConfig
from scaledreamer.training.estimate import PriorCost, prior_cost
from scaledreamer.training.setup import create_generator

CONFIG = Path(__file__).parents[1] / "configs" / "toybox" / "quickstart.yaml"
_STABLE: dict[str, Any] = {
    "sample_size": 64,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_XL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}


def _clip(width: int, layers: int, heads: int, inner: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
        )
    )


def _xl() -> UNet2DConditionModel:
    return UNet2DConditionModel(**_XL)


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            d_model=4096,
            d_ff=10240,
            d_kv=64,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )


CLIP_L = partial(_clip, 768, 12, 12, 3072)
CLIP_H = partial(_clip, 1024, 23, 16, 4096)
CLIP_G = partial(_clip, 1280, 32, 20, 5120)


@dataclass(frozen=True)
class Case:
    """A published prior: its network, autoencoder and text side."""

    title: str
    module: Any
    prior_class: Any
    network: Callable[[], Any]
    size_px: int
    towers: tuple[Callable[[], nn.Module], ...]
    text: tuple[int, int, int | None]
    """Tokens, their width, pooled width."""
    vae: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_flow: bool = False
    card: Card = field(default_factory=Card)


CASES = (
    Case(
        "Stable Diffusion 2.1 base",
        unet,
        unet.UNetPrior,
        lambda: UNet2DConditionModel(**_STABLE),
        512,
        (CLIP_H,),
        (77, 1024, None),
    ),
    Case(
        "MVDream (2.1, four views)",
        mvdream,
        mvdream.MVDreamPrior,
        lambda: UNet2DConditionModel(
            **{**_STABLE, "sample_size": 32},
            class_embed_type="projection",
            projection_class_embeddings_input_dim=16,
        ),
        256,
        (CLIP_H,),
        (77, 1024, None),
        card=Card(camera_features=16, num_views=4),
    ),
    Case(
        "Stable Diffusion XL",
        unet,
        unet.UNetPrior,
        _xl,
        1024,
        (CLIP_L, CLIP_G),
        (77, 2048, 1280),
    ),
    Case(
        "PixArt alpha XL",
        pixart,
        pixart.PixArtPrior,
        lambda: PixArtTransformer2DModel(
            sample_size=64, caption_channels=4096, use_additional_conditions=False
        ),
        512,
        (_t5,),
        (120, 4096, None),
    ),
    Case(
        "Stable Diffusion 3 medium",
        sd3,
        sd3.SD3Prior,
        lambda: SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            pos_embed_max_size=192,
        ),
        1024,
        (CLIP_L, CLIP_G, _t5),
        (333, 4096, 2048),
        {"latent_channels": 16},
        is_flow=True,
    ),
    Case(
        "Flux dev",
        flux,
        flux.FluxPrior,
        lambda: FluxTransformer2DModel(guidance_embeds=True),
        1024,
        (CLIP_L, _t5),
        (512, 4096, 768),
        {"latent_channels": 16},
        is_flow=True,
    ),
)


class _Text:
    """The shape of a text side."""

    encoder_id = "shapes"

    def __init__(self, modules: list[nn.Module], tokens: int, width: int, pooled: int | None):
        self.modules = modules
        self.max_tokens, self.token_dim, self.pooled_dim = tokens, width, pooled

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        tokens = torch.zeros(len(texts), self.max_tokens, self.token_dim, device="meta")
        pooled = None
        if self.pooled_dim is not None:
            pooled = torch.zeros(len(texts), self.pooled_dim, device="meta")
        return TextEmbedding(tokens, tokens[..., 0] == 0, pooled, self.encoder_id)

    def unknown_words(self, text: str) -> list[str]:
        return []


def build(case: Case, size_px: int, dtype: str) -> Any:
    """The prior with its own class, without weights."""
    device = "meta"
    config = case.module.Config(folder="none", dtype=dtype, image_px=size_px)
    with torch.device(device):
        network, vae = case.network(), AutoencoderKL(**{**_VAE, **case.vae})
        towers = [tower() for tower in case.towers]
    kind = getattr(torch, dtype)
    overflows = case.network is _xl and kind == torch.float16
    as_loaded(network, kind)
    as_loaded(vae, torch.float32 if overflows else kind)
    for tower in towers:
        as_loaded(tower, kind if isinstance(tower, T5EncoderModel) else torch.float32)
    space = LatentSpace(vae, lambda: precision(config, device), torch.device(device))
    schedule = FlowSchedule() if case.is_flow else cosine_schedule()
    prediction = "flow" if case.is_flow else "epsilon"
    parts = Parts(
        network, space, _Text(towers, *case.text), schedule, prediction, case.card, case.size_px
    )
    return case.prior_class(parts, config, device)


def _config(options: argparse.Namespace, views: int) -> TrainConfig:
    words = [f"views_per_prompt={views}", "prompts_per_step=1", f"render_px={options.render_px}"]
    return load_config(TrainConfig, CONFIG, words)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.prior_cost", description=__doc__)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--render-px", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float16")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    return run(lambda: benchmark(parser.parse_args(argv)))


def benchmark(options: argparse.Namespace) -> int:
    rows = []
    for case in CASES:
        for size in dict.fromkeys((case.size_px, 512)) if case.size_px > 512 else (case.size_px,):
            views = -(-options.views // case.card.num_views) * case.card.num_views
            cost = prior_cost(_config(options, views), build(case, size, options.dtype))
            rows.append(_row(case, size, cost))
            print(_line(rows[-1]), flush=True)
    own = _generator_tflop(_config(options, options.views))
    print(f"generator and renders, there and back: {own:.3f} TFLOP a step")
    report = {"views": options.views, "render_px": options.render_px, "dtype": options.dtype}
    if options.json:
        write_json(options.json, {**report, "generator_tflop": round(own, 4), "priors": rows})
    return 0


def _generator_tflop(config: TrainConfig) -> float:
    """Of matrix products and convolutions, by one real forward pass in plain PyTorch."""
    encoder = clip_text.load(config.encoder)
    generator = create_generator(config, encoder)
    rng = StepRng(0, 0, torch.zeros(1, dtype=torch.int64))
    cameras = config.cameras.sample(config.views_per_prompt, rng)
    white = torch.ones(1, 3)
    with use_backend("reference"), FlopCounterMode(display=False) as counter:
        field = generator(encoder(["a red mug"]), None)
        render(field, cameras, white, config.render, config.render_px, 0.1, rng)
    return 3 * counter.get_total_flops() / 1e12


def _row(case: Case, size: int, cost: PriorCost) -> dict[str, Any]:
    gib = 2**30
    return {
        "prior": case.title,
        "px": size,
        "parameters": dict(cost.parameters),
        "weights_gib": round(cost.weight_bytes / gib, 2),
        "peak_gib": round(cost.peak_bytes / gib, 2),
        "encode_keeps_gib": round(cost.encode.saved_bytes / gib, 2),
        "tflop_a_step": round(cost.flops / 1e12, 2),
        "tflop_predicting": round(cost.predict_flops / 1e12, 2),
        "rows": cost.rows,
        "images": cost.num_images,
    }


def _line(row: Mapping[str, Any]) -> str:
    counts = " + ".join(f"{count / 1e9:.2f}" for count in row["parameters"].values())
    return (
        f"| {row['prior']} | {row['px']} | {counts} | {row['weights_gib']} | {row['peak_gib']} | "
        f"{row['encode_keeps_gib']} | {row['tflop_a_step']} | {row['tflop_predicting']} |"
    )


if __name__ == "__main__":
    raise SystemExit(main())
