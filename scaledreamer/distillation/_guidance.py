"""What the losses share: gradient g = w(t) (guided prediction at t - a reference)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.config import Linear, Schedule
from scaledreamer.distillation._timesteps import Per, check_window, normal_like, uniform_rows
from scaledreamer.interfaces import Guidance, NoiseSchedule
from scaledreamer.rng import StepRng

Weighting = Literal["sigma_squared", "uniform"]


@dataclass(frozen=True, kw_only=True)
class NoisingConfig:
    """At which times a loss looks at the renders, and how it weighs them."""

    t_min: Schedule = Linear(start=0.5, end=0.02, from_step=0, to_step=50_000)
    """Least time, a fraction; the values are ScaleDreamer's, over its shortest run."""
    t_max: Schedule = Linear(start=0.98, end=0.5, from_step=0, to_step=50_000)
    """Greatest time, a fraction; source as above."""
    t_per: Per = "view"
    """Whether the views of a scene share their time (multi-view priors) or have each their own."""
    weighting: Weighting = "sigma_squared"
    """w(t): sigma(t)^2, or 1."""

    def __post_init__(self) -> None:
        check_window(self.t_min, self.t_max, "distillation.t_min, t_max")


@dataclass(frozen=True)
class Noised:
    """Detached latents of one step, noised."""

    latents: Tensor
    noise: Tensor
    t: Float[Tensor, "N"]
    t_min: float
    schedule: NoiseSchedule

    def at(self, t: Float[Tensor, "N"]) -> Tensor:
        """x_t, always with the same noise."""
        alpha = per_row(self.schedule.alpha(t), self.latents)
        sigma = per_row(self.schedule.sigma(t), self.latents)
        return (alpha * self.latents + sigma * self.noise).to(self.latents.dtype)


def draw(
    config: NoisingConfig,
    name: str,
    schedule: NoiseSchedule,
    latents: Tensor,
    step: int,
    rng: StepRng,
) -> Noised:
    """Times within the window of this step and noise, from the streams `name/t`, `name/noise`."""
    low, high = config.t_min(step), config.t_max(step)
    u = uniform_rows(rng, f"{name}/t", len(latents), config.t_per).to(latents.device)
    noise = normal_like(rng, f"{name}/noise", latents)
    return Noised(latents.detach(), noise, low + (high - low) * u, low, schedule)


def wide(latents: Tensor) -> Tensor:
    """float32 at least: under autocast an encoder may return less."""
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


def guided(null: Tensor, positive: Tensor, scale: float) -> Tensor:
    """Source: Ho and Salimans, "Classifier-free diffusion guidance", 2022, with scale = 1 + w."""
    return null + scale * (positive - null)


def weight(weighting: Weighting, noised: Noised) -> Tensor:
    """w(t), to broadcast against latents."""
    if weighting == "uniform":
        return torch.ones_like(per_row(noised.t, noised.latents))
    return per_row(noised.schedule.sigma(noised.t).square(), noised.latents)


def per_row(values: Float[Tensor, "N"], like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))


def rms(values: Tensor) -> Tensor:
    return values.float().square().mean().sqrt()


def to_guidance(
    name: str, latents: Tensor, gradient: Tensor, stats: Mapping[str, Tensor]
) -> Guidance:
    """0.5 |latents - stopgrad(latents - g)|^2, summed over a latent, averaged over the rows.

    Its gradient with respect to the latents is g / N.
    Raises: FloatingPointError when the latents or g are not finite.
    """
    for what, tensor in (("latents", latents), ("gradient", gradient)):
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{name}: {what} hold non-finite values")
    residual = latents - latents.detach() + gradient  # equals g, without rounding
    loss = 0.5 * residual.square().flatten(1).sum(dim=1).mean()
    return Guidance(losses={name: loss}, stats={"gradient_rms": rms(gradient), **stats})
