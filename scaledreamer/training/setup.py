"""Builds what a run consists of, from its configuration."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from scaledreamer.config import Component, Constant, component_module
from scaledreamer.data.corpus import load_prompts
from scaledreamer.encoders import clip_text
from scaledreamer.interfaces import Distiller, Field, Prior, TextEmbedding, TextEncoder
from scaledreamer.kernels.cpu_memory import keep_freed_memory
from scaledreamer.rng import StepRng
from scaledreamer.training.config import DISTILLERS, GENERATORS, PRIORS, TrainConfig
from scaledreamer.training.ema import Ema
from scaledreamer.training.optimizer import create_optimizer


class Trainable(nn.Module):
    """All that is trained, as the one module Accelerate sees: the generator, and the loss's own.

    The forward pass is the generator's alone. A loss that trains is called without the wrapper: the
    hooks that average gradients over processes sit on the parameters, and a second wrapped call in
    a step would copy the generator's buffers between processes once more, in place.
    """

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
        dims = (encoder.token_dim, encoder.pooled_dim)
        try:
            return create_component(GENERATORS, config.generator, *dims)
        except (RuntimeError, ArithmeticError, IndexError) as error:
            raise _unbuildable(error) from error


def create_distiller(config: TrainConfig, prior: Prior) -> Distiller:
    """What it trains, if anything, is drawn from the run's seed, equal on every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return create_component(DISTILLERS, config.distiller, prior)


def check_generator(config: TrainConfig, generator: nn.Module, encoder: TextEncoder) -> None:
    """Asks an untrained generator for one field, before anything is written.

    Raises: ValueError when that fails, or when corpus, background or losses do not suit the field.
    """
    _check_corpus(config, generator)
    device = next(generator.parameters()).device
    rng = StepRng(config.seed, 0, torch.zeros(1, dtype=torch.int64, device=device))
    width = getattr(config.generator.config, "latent_dim", 0)
    point = torch.zeros(1, 1, 3, device=device)
    generator.eval()
    try:
        with torch.no_grad():
            field = generator(encoder(["a probe"]), rng.normal("latent", width) if width else None)
            field.geometry_and_colour(point)
            learned = field.background(point + 1.0 / math.sqrt(3.0))
    except (RuntimeError, ArithmeticError, IndexError) as error:
        raise _unbuildable(error) from error
    finally:
        generator.train()
    if config.background is None and learned is None:
        raise ValueError(
            "background: got null, and this generator learns none; give a background section"
        )
    if config.background is not None and learned is not None:
        raise ValueError(
            "background: the generator's learned one would go unused; set background=null, or "
            "choose a generator without one"
        )
    eikonal = config.losses.get("eikonal", Constant(0.0))
    if field.density_kind != "sdf" and eikonal != Constant(0.0):
        raise ValueError(
            "losses.eikonal: this generator makes a density, no distance; set losses.eikonal=0"
        )


def _check_corpus(config: TrainConfig, generator: nn.Module) -> None:
    if not getattr(generator, "is_single_scene", False):
        return
    count = len(load_prompts(config.prompts))
    if count > 1:
        raise ValueError(
            f"prompts: got {config.prompts}, which holds {count}; {config.generator.name} holds "
            'one scene: give one prompt ("prompt:a red mug"), or choose generator.name='
            "hyper_triplane"
        )


def _unbuildable(error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"generator: these settings do not work ({reason}); change its sizes")


def create_run(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Raises: ValueError for folders that are missing or settings that do not fit together."""
    keep_freed_memory()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    encoder = clip_text.load(config.encoder, str(accelerator.device))
    prior = create_component(PRIORS, config.prior, accelerator.device)
    check_views(config, prior)
    _warn_outside(config, prior)
    distiller = create_distiller(config, prior)
    trainable = Trainable(create_generator(config, encoder), distiller).to(accelerator.device)
    check_generator(config, trainable.generator, encoder)
    own = getattr(trainable.distiller, "parameter_groups", list)()
    optimizer = create_optimizer(trainable, config.optimizer, own)
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


def check_views(config: TrainConfig, prior: Any) -> None:
    """Raises: ValueError where a prior that joins views gets too few of them, or several times."""
    together = getattr(prior, "num_views", 1)
    if together == 1:
        return
    if config.views_per_prompt != together:
        raise ValueError(
            f"views_per_prompt: got {config.views_per_prompt}; prior {config.prior.name} sees "
            f"{together} views of a scene together: take as many"
        )
    if config.cameras.azimuth_layout != "spread" or not config.cameras.share_views:
        raise ValueError(
            f"cameras: prior {config.prior.name} was trained on views spread around a scene, of "
            "one elevation and distance: set cameras.azimuth_layout=spread "
            "cameras.share_views=true"
        )
    if getattr(config.distiller.config, "t_per", "scene") != "scene":
        raise ValueError(
            f"distiller.t_per: got view; prior {config.prior.name} sees {together} views of a "
            "scene together, at one time: set distiller.t_per=scene"
        )


def _warn_outside(config: TrainConfig, prior: Prior) -> None:
    """Of renders unlike the images that the prior's card says it was trained on."""
    known = getattr(prior, "cameras", None)
    outside = [] if known is None else config.cameras.outside(known)
    if outside:
        ranges = ", ".join(
            f"{name} {getattr(config.cameras, name)} exceeds {getattr(known, name)}"
            for name in outside
        )
        warnings.warn(f"cameras: outside what the prior was trained on: {ranges}", stacklevel=3)
    behind = getattr(prior, "background", None)
    if behind is not None and config.background not in (None, behind):
        warnings.warn(
            f"background: got {config.background}; the prior was trained on {behind}", stacklevel=3
        )
