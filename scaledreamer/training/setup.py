"""Builds what a run consists of, from its configuration."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from scaledreamer.config import Component, component_module
from scaledreamer.encoders import clip_text
from scaledreamer.interfaces import Distiller, Field, Prior, TextEmbedding, TextEncoder
from scaledreamer.kernels.cpu_memory import keep_freed_memory
from scaledreamer.rng import StepRng
from scaledreamer.training.config import DISTILLERS, GENERATORS, PRIORS, TrainConfig
from scaledreamer.training.ema import Ema
from scaledreamer.training.optimizer import create_optimizer


class Trainable(nn.Module):
    """All that is trained, as the one module Accelerate sees: the generator, and the loss's own."""

    def __init__(self, generator: nn.Module, distiller: Distiller) -> None:
        super().__init__()
        self.generator = generator
        self.distiller = distiller if isinstance(distiller, nn.Module) else None

    def forward(self, text: TextEmbedding, latent: Tensor | None = None) -> Field:
        return self.generator(text, latent)


@dataclass(frozen=True)
class Run:
    """The living parts of a run. The prior is frozen, in no module tree and no checkpoint."""

    config: TrainConfig
    accelerator: Accelerator
    encoder: TextEncoder
    prior: Prior
    distiller: Distiller
    trainable: Trainable
    model: nn.Module
    """`trainable` as Accelerate wraps it; the forward pass goes through it."""
    optimizer: Any
    """Accelerate's wrapper of a torch optimizer."""
    ema: Ema

    @property
    def generator(self) -> nn.Module:
        return self.trainable.generator

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def autocast(self) -> torch.autocast:
        device, is_low = self.device.type, self.config.precision == "bf16"
        return torch.autocast(device, torch.bfloat16, enabled=is_low)

    def latent(self, rng: StepRng) -> Tensor | None:
        """Noise for generators that take some."""
        width = getattr(self.config.generator.config, "latent_dim", 0)
        return rng.normal("latent", width) if width else None


def create_component(package: str, component: Component, *arguments: Any) -> Any:
    return component_module(package, component.name).create(component.config, *arguments)


def create_generator(config: TrainConfig, encoder: TextEncoder) -> nn.Module:
    """With weights drawn from the run's seed, equal on every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return create_component(GENERATORS, config.generator, encoder.token_dim, encoder.pooled_dim)


def create_run(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Raises: ValueError for folders that are missing or settings that do not fit together."""
    keep_freed_memory()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    encoder = clip_text.load(config.encoder, str(accelerator.device))
    prior = create_component(PRIORS, config.prior, accelerator.device)
    _warn_outside(config, prior)
    distiller = create_component(DISTILLERS, config.distiller, prior)
    trainable = Trainable(create_generator(config, encoder), distiller).to(accelerator.device)
    optimizer = create_optimizer(trainable, config.optimizer)
    model, wrapped = accelerator.prepare(trainable, optimizer)
    return Run(
        config=config,
        accelerator=accelerator,
        encoder=encoder,
        prior=prior,
        distiller=distiller,
        trainable=trainable,
        model=model,
        optimizer=wrapped,
        ema=Ema(trainable.generator, config.optimizer.ema_decay),
    )


def _warn_outside(config: TrainConfig, prior: Prior) -> None:
    known = getattr(prior, "cameras", None)
    outside = [] if known is None else config.cameras.outside(known)
    if outside:
        ranges = ", ".join(
            f"{name} {getattr(config.cameras, name)} exceeds {getattr(known, name)}"
            for name in outside
        )
        warnings.warn(f"cameras: outside what the prior was trained on: {ranges}", stacklevel=3)
