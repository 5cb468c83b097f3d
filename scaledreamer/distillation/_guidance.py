"""What the losses share: gradient g = w(t) (guided prediction at t - a reference)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.config import Linear, Schedule
from scaledreamer.distillation._timesteps import Per, check_window, normal_like, uniform_rows
from scaledreamer.interfaces import Condition, ConditionRows, Guidance, NoiseSchedule, Prior
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


@dataclass(frozen=True, kw_only=True)
class GuidedConfig(NoisingConfig):
    """How the prior's prediction is led; negatives come with the prior's condition."""

    guidance_scale: float = 7.5
    """Classifier-free guidance; for Stable Diffusion. A sharp prior wants 2-3."""
    guidance_rescale: float = 0.0
    """Against over-exposure: share of the way to the unguided prediction's deviation, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(
                f"distillation.guidance_rescale: got {self.guidance_rescale}; must lie in [0, 1]"
            )


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


@dataclass(frozen=True)
class Guided:
    """Predictions of the prior at x_t, t."""

    positive: Tensor
    null: Tensor
    direction: Tensor
    """positive - null, and with negatives what perp-neg adds to it."""
    noise: Tensor
    """The guided prediction."""


Rows = tuple[Tensor, Tensor, ConditionRows]
"""x_t, t and condition of latents that a loss wants predicted beside."""


def predict(
    prior: Prior,
    config: GuidedConfig,
    condition: Condition,
    x_t: Tensor,
    t: Float[Tensor, "N"],
    *others: Rows,
) -> tuple[Guided, tuple[Tensor, ...]]:
    """The guided prediction and those of `others`, by one call of the prior.

    Source: classifier-free guidance, Ho and Salimans, 2022, with scale = 1 + w; perp-neg,
    Armandpour et al., "Re-imagine the negative prompt algorithm", 2023, equation 8; rescaling, Lin
    et al., "Common diffusion noise schedules and sample steps are flawed", 2024, equations 15, 16.
    """
    rows = [condition.positive, condition.null, *condition.negatives]
    calls: list[Rows] = [*((x_t, t, row) for row in rows), *others]
    joint = prior.predict_noise(
        torch.cat([value for value, _, _ in calls]),
        torch.cat([time for _, time, _ in calls]),
        ConditionRows.cat([row for _, _, row in calls]),
    )
    eps: tuple[Tensor, ...] = torch.split(joint, [len(value) for value, _, _ in calls])
    positive, null, *negatives = eps[: len(rows)]
    direction = positive - null
    if condition.negative_weights is not None:
        towards = [negative - null for negative in negatives]
        direction = direction + perp_neg(direction, towards, condition.negative_weights)
    noise = null + config.guidance_scale * direction
    if config.guidance_rescale > 0:
        noise = rescaled(noise, positive, config.guidance_rescale)
    return Guided(positive, null, direction, noise), eps[len(rows) :]


def perp_neg(
    direction: Tensor, negatives: Sequence[Tensor], weights: Float[Tensor, "K N"]
) -> Tensor:
    """Sum over k of weight_k times the part of negative_k that is perpendicular to `direction`."""
    total = torch.zeros_like(direction)
    squares = direction.square().flatten(1).sum(1).clamp(min=1e-12)
    for negative, weight in zip(negatives, weights, strict=True):
        along = (negative * direction).flatten(1).sum(1) / squares
        across = negative - per_row(along, direction) * direction
        total = total + per_row(weight.to(across), across) * across
    return total


def rescaled(noise: Tensor, positive: Tensor, share: float) -> Tensor:
    """`noise` mixed with itself at each row's standard deviation of `positive`."""
    own, wanted = noise.flatten(1).std(dim=1), positive.flatten(1).std(dim=1)
    return noise * per_row(1 + share * (wanted / own.clamp(min=1e-12) - 1), noise)


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
