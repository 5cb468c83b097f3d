"""Trains the embedded 2D prior: a small text- and camera-conditioned UNet in diffusers' layout.

python -m scaledreamer.toybox.train.prior --steps 6000

v-prediction in pixel space (32 px unshuffled by 2). Text and camera are dropped independently, so
the one network is a broad prior (text with view words, no camera) and a view-aware one (camera).
Source: Salimans and Ho, "Progressive distillation", ICLR 2022 (v-prediction); Ho and Salimans,
"Classifier-free diffusion guidance", 2021 (dropout).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel, CLIPTextModelWithProjection

from scaledreamer.encoders import clip_text
from scaledreamer.interfaces import TextEncoder
from scaledreamer.priors._cameras import NUM_FEATURES, camera_features
from scaledreamer.storage import (
    atomic_folder,
    cache_folder,
    load_tensors,
    resolve_folder,
    sha256_file,
    write_json,
)
from scaledreamer.toybox.train._run import Run, earlier, last_metrics, write_card
from scaledreamer.toybox.train._sheets import prior_sheet
from scaledreamer.toybox.train.dataset import BACKGROUND, CAMERAS, FRONT_DEG, OVERHEAD_DEG, Images

SIZE_PX, PATCH = 32, 2
TEXT_DROPOUT, CAMERA_DROPOUT = 0.1, 0.35
SEED = 3


def build_unet(text_width: int, widths: tuple[int, ...]) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=SIZE_PX // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (len(widths) - 1)),
        up_block_types=(*["CrossAttnUpBlock2D"] * (len(widths) - 1), "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=tuple(width // 32 for width in widths),  # type: ignore[arg-type]  # heads
        norm_num_groups=16,
        cross_attention_dim=text_width,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=NUM_FEATURES,
        resnet_time_scale_shift="scale_shift",
    )
    unet.set_attn_processor(AttnProcessor())  # several times faster backward than fused, on a CPU
    return unet


class Denoiser(nn.Module):
    """The training loss around the UNet; the text tower is frozen and not part of the state."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        encoder: TextEncoder,
        scheduler: DDPMScheduler,
    ):
        super().__init__()
        self.unet, self._encoder = unet, encoder
        self._alphas_cumprod = scheduler.alphas_cumprod

    def forward(
        self, pixels: Tensor, texts: list[str], camera: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        count = len(texts)
        texts = [
            "" if drop else text
            for drop, text in zip(
                (torch.rand(count, generator=generator) < TEXT_DROPOUT).tolist(), texts, strict=True
            )
        ]
        kept = torch.rand(count, 1, generator=generator) >= CAMERA_DROPOUT
        x0 = F.pixel_unshuffle(2 * pixels - 1, PATCH).contiguous(memory_format=torch.channels_last)
        # stratified over the batch: a lower-variance loss
        u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        timestep = (u * len(self._alphas_cumprod)).long()
        signal = self._alphas_cumprod[timestep].view(-1, 1, 1, 1)
        alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
        noise = torch.randn(x0.shape, generator=generator)
        text = self._encoder(texts)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            out = self.unet(
                alpha * x0 + sigma * noise,
                timestep,
                encoder_hidden_states=text.tokens,
                encoder_attention_mask=text.mask,
                class_labels=camera * kept,
            ).sample.float()
        error = (out - (alpha * noise - sigma * x0)).square().mean(dim=(1, 2, 3))
        return {"loss": error.mean(), "high_noise": error[u > 0.7].mean()}


def train(images: Images, arguments: argparse.Namespace) -> UNet2DConditionModel:
    torch.manual_seed(SEED)
    encoder = clip_text.load("toybox:clip")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    unet = build_unet(encoder.token_dim, tuple(arguments.widths))
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if arguments.init is not None:
        weights = load_tensors(arguments.init / "unet" / "diffusion_pytorch_model.safetensors")
        unet.load_state_dict({name: w.float() for name, w in weights.items()})
    denoiser = Denoiser(unet, encoder, scheduler)
    run = Run(
        folder=arguments.state,
        module=denoiser,
        num_steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        seed=SEED,
    )
    features = camera_features(images.cameras())

    def step(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(images), (arguments.batch,), generator=generator)
        texts = images.captions(rows, generator)
        pixels = images.on_background(rows, generator)
        return denoiser(pixels, texts, features[rows], generator)

    run.train(step)
    run.use_ema()
    return unet


def save(unet: UNet2DConditionModel, folder: Path) -> None:
    """Fills a diffusers pipeline folder, fp16; the text tower is the embedded CLIP's."""
    text_folder = resolve_folder("toybox:clip")
    unet.half().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    ).save_pretrained(folder / "scheduler")
    clip = CLIPModel.from_pretrained(text_folder)
    tower = CLIPTextModelWithProjection(clip.text_model.config)
    weights = {name: w for name, w in clip.state_dict().items() if name in tower.state_dict()}
    tower.load_state_dict(weights)
    tower.half().save_pretrained(folder / "text_encoder")
    AutoTokenizer.from_pretrained(text_folder).save_pretrained(folder / "tokenizer")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "ToyBoxPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        },
    )
    write_json(
        folder / "scaledreamer.json",
        {
            "space": "pixel",
            "patch": PATCH,
            "size_px": SIZE_PX,
            "camera_features": NUM_FEATURES,
            "use_text_mask": True,
            "front_deg": FRONT_DEG,
            "overhead_deg": OVERHEAD_DEG,
            "cameras": asdict(CAMERAS),
            "background": asdict(BACKGROUND),
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the embedded prior.")
    parser.add_argument("--images", type=Path, default=cache_folder("toybox/images"))
    parser.add_argument("--state", type=Path, default=cache_folder("toybox/prior"))
    parser.add_argument("--output", type=Path, help="default: the package's weights folder")
    parser.add_argument("--init", type=Path, help="start from the weights of this folder")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 160])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    images = Images.load(arguments.images)
    initial, output = earlier(arguments.init), arguments.output or resolve_folder("toybox:prior")
    unet = train(images, arguments)
    facts = {
        "images": len(images),
        "steps": arguments.steps,
        "initial weights": initial,
        "batch": arguments.batch,
        "learning rate": arguments.learning_rate,
        "parameters": sum(p.numel() for p in unet.parameters()),
        "seed": SEED,
        "text dropout": TEXT_DROPOUT,
        "camera dropout": CAMERA_DROPOUT,
        "running means at the end": last_metrics(arguments.state),
    }
    with atomic_folder(output) as folder:
        save(unet, folder)
        facts["sha256 of weights"] = sha256_file(next((folder / "unet").glob("*.safetensors")))
        write_card(folder, "ToyBox prior", facts, prior_sheet(str(folder)))


if __name__ == "__main__":
    main()
