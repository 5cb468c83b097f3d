"""Beyond 3D: distils a one-step text-to-image generator from a diffusion prior.

The losses know no 3D. Here a small convolutional network turns text and noise into an image; the
sheet shows its one-step samples beside samples of the prior in many steps.

    python examples/one_step_2d.py --loss asd --output outputs/one_step_2d.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from scaledreamer.config import Linear, component_module
from scaledreamer.data.corpus import load_prompts
from scaledreamer.encoders import clip_text
from scaledreamer.priors import unet
from scaledreamer.rendering.sheet import contact_sheet
from scaledreamer.rng import StepRng


class Block(nn.Module):
    """A residual block at twice the resolution of its input, modulated by text and noise."""

    def __init__(self, width: int, style_dim: int) -> None:
        super().__init__()
        self.style = nn.Linear(style_dim, 2 * width)
        self.expand = nn.Conv2d(width, width, 3, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        scale, shift = self.style(style)[..., None, None].chunk(2, dim=1)
        hidden = F.group_norm(self.expand(F.silu(x)), 8) * (1 + scale) + shift
        return x + self.refine(F.silu(hidden))


class OneStep(nn.Module):
    """Pooled text [B, P] and noise [B, Z] -> images [B, 3, H, W] in [0, 1], in one pass."""

    def __init__(self, pooled_dim: int, noise_dim: int, width: int, size_px: int) -> None:
        super().__init__()
        style_dim, doublings = 2 * width, round(math.log2(size_px / 4))
        if size_px != 4 << doublings:
            raise ValueError(f"prior: its images have {size_px} px; expected 8, 16, 32, ...")
        self.text = nn.LayerNorm(pooled_dim)
        self.style = nn.Sequential(
            nn.Linear(pooled_dim + noise_dim, style_dim), nn.SiLU(), nn.Linear(style_dim, style_dim)
        )
        self.seed = nn.Linear(style_dim, width * 4 * 4)
        self.blocks = nn.ModuleList(Block(width, style_dim) for _ in range(doublings))
        self.image = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, pooled: Tensor, noise: Tensor) -> Tensor:
        style = self.style(torch.cat((self.text(pooled), noise), dim=1))
        x = self.seed(style).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, style)
        return torch.sigmoid(self.image(F.silu(x)))


def create_loss(name: str, prior: unet.UNetPrior, num_steps: int, guidance_scale: float) -> Any:
    """A loss of `scaledreamer.distillation` by its name; its times fall from coarse to fine."""
    module = component_module("scaledreamer.distillation", name)
    low, high = Linear(0.5, 0.02, 0, num_steps), Linear(0.98, 0.5, 0, num_steps)
    wanted = {"guidance_scale": guidance_scale, "eta": 1.0, "t_min": low, "t_max": high}
    known = {field.name for field in fields(module.Config)}
    return module.create(module.Config(**{k: v for k, v in wanted.items() if k in known}), prior)


def train(options: Any, prior: unet.UNetPrior, prompts: list[str], pooled: Tensor) -> OneStep:
    """Every step draws prompts and noise and descends the sum of the loss's terms."""
    model = OneStep(pooled.shape[1], options.noise_dim, options.width, prior.size_px)
    loss = create_loss(options.loss, prior, options.steps, options.guidance_scale)
    own = getattr(loss, "parameter_groups", list)()  # a loss may train something itself, as VSD
    optimizer = torch.optim.Adam([{"params": list(model.parameters())}, *own], lr=options.lr)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, options.steps)
    values: list[float] = []
    with Progress() as progress:
        task = progress.add_task(options.loss, total=options.steps)
        for step in range(options.steps):
            index = step * options.batch_size + torch.arange(options.batch_size)
            rng = StepRng(options.seed, step, index)
            chosen = rng.integers("prompt", len(prompts))
            images = model(pooled[chosen], rng.normal("noise", options.noise_dim))
            condition = prior.condition([prompts[row] for row in chosen.tolist()], None)
            losses = loss(prior.encode(images), condition, step, rng).losses
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            decay.step()
            values.append(float(losses[options.loss].detach()))
            shown = sum(values[-20:]) / len(values[-20:])
            progress.update(task, advance=1, description=f"{options.loss} {shown:.2f}")
    part = max(1, options.steps // 5)
    first, last = sum(values[:part]) / part, sum(values[-part:]) / part
    print(f"{options.loss}: {first:.2f} in the first fifth of the steps, {last:.2f} in the last")
    return model


@torch.no_grad()
def draw(options: Any, prior: unet.UNetPrior, prompts: list[str], pooled: Tensor, model: OneStep):
    """The contact sheet: one row a prompt, one-step samples on the left."""
    rng, rows = StepRng(options.seed + 1, 0, torch.arange(4)), []
    for text, prompt in zip(pooled, prompts, strict=True):
        one = model(text.expand(4, -1), rng.normal("noise", options.noise_dim))
        noise = rng.normal("prior", *prior.latent_shape)
        condition = prior.condition([prompt] * 4, None)
        many = prior.sample(condition, options.sample_steps, options.guidance_scale, noise)
        images = F.interpolate(torch.cat((one, many)), scale_factor=2.0)
        rows.append((f"{prompt} (left: 1 step, right: {options.sample_steps})", images))
    return contact_sheet(rows)


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--loss", default="asd", help="asd, sds, csd, vsd, ...")
    parser.add_argument("--prompts", default="data/prompts/quickstart.txt", help="as in training")
    parser.add_argument("--prior", default="toybox:prior", help="a pixel-space diffusers folder")
    parser.add_argument("--encoder", default="toybox:clip")
    parser.add_argument("--output", type=Path, default=Path("outputs/one_step_2d.png"))
    numbers = {"steps": 600, "batch-size": 16, "lr": 1e-3, "guidance-scale": 2.0, "seed": 0}
    for name, value in {**numbers, "noise-dim": 16, "width": 64, "sample-steps": 30}.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="a number")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = create_parser().parse_args(argv)
    torch.manual_seed(options.seed)
    prompts = load_prompts(options.prompts)
    prior = unet.create(unet.Config(folder=options.prior, autocast=True))
    pooled: Any = clip_text.load(options.encoder)(prompts).pooled
    model = train(options, prior, prompts, pooled)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(options, prior, prompts, pooled, model).save(options.output)
    print(options.output)


if __name__ == "__main__":
    main()
