"""Interval score matching (Liang et al., "LucidDreamer", CVPR 2024, equations 14 to 17)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scaledreamer.distillation import _guidance
from scaledreamer.interfaces import Condition, Guidance, Prior
from scaledreamer.rng import StepRng

_T_FIRST = 1e-3
"""One step of a thousand."""


@dataclass(frozen=True, kw_only=True)
class Config(_guidance.GuidedConfig):
    """The default guidance scale is the paper's."""

    interval: float = 0.05
    """delta_T: from s to t, a fraction; the paper's 50 of 1000 steps."""
    inversion_step: float = 0.2
    """delta_S: length of the deterministic steps from the render to x_s; the paper's 200/1000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("interval", "inversion_step"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"distillation.{name}: got {getattr(self, name)}; must lie in (0, 1]"
                )


class ISM:
    """g = w(t) (eps_guided(x_t, t, y) - eps(x_s, s, null)), t = s + delta_T.

    x_s and x_t lie on one deterministic path (DDIM inversion under the null text) from the render,
    so no noise is drawn. Costs 1 + t_max / delta_S calls of one row a latent, and one of two.
    The render itself stands for x at the first time.
    """

    def __init__(self, config: Config, prior: Prior) -> None:
        self._config = config
        self._prior = prior

    def __call__(self, latents: Tensor, condition: Condition, step: int, rng: StepRng) -> Guidance:
        config, latents = self._config, _guidance.wide(latents)
        noised = _guidance.draw(config, "ism", self._prior.schedule, latents, step, rng)
        before = (noised.t - config.interval).clamp(min=_T_FIRST)
        farthest = max(config.t_max(step) - config.interval, _T_FIRST)
        num_steps = max(1, round(farthest / config.inversion_step))
        x_s, eps_s = self._invert(noised.latents, before, condition, num_steps)
        x_t = self._move(x_s, eps_s, before, noised.t)
        guided, _ = _guidance.predict(self._prior, config, condition, x_t, noised.t)
        gradient = _guidance.weight(config.weighting, noised) * (guided.noise - eps_s)
        stats = {
            "t": noised.t.mean(),
            "classifier_rms": _guidance.rms(guided.direction),
            "interval_rms": _guidance.rms(guided.null - eps_s),
        }
        return _guidance.to_guidance("ism", latents, gradient, stats)

    def _invert(
        self, latents: Tensor, until: Tensor, condition: Condition, num_steps: int
    ) -> tuple[Tensor, Tensor]:
        """x_s and the null prediction there; each row in equal steps up to its own s."""
        x, t = latents, torch.full_like(until, _T_FIRST)
        eps = self._prior.predict_noise(x, t, condition.null)
        for number in range(1, num_steps + 1):
            later = torch.lerp(torch.full_like(until, _T_FIRST), until, number / num_steps)
            x = self._move(x, eps, t, later)
            eps, t = self._prior.predict_noise(x, later, condition.null), later
        return x, eps

    def _move(self, x: Tensor, eps: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """A DDIM step (Song et al., 2021, equation 12 with sigma = 0), in either direction."""
        schedule, row = self._prior.schedule, _guidance.per_row
        clean = (x - row(schedule.sigma(start), x) * eps) / row(schedule.alpha(start), x)
        return (row(schedule.alpha(end), x) * clean + row(schedule.sigma(end), x) * eps).to(x.dtype)


def create(config: Config, prior: Prior) -> ISM:
    return ISM(config, prior)
