"""Noise-free score distillation (Katzir et al., ICLR 2024, equations 8 to 10)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scaledreamer.distillation import _guidance
from scaledreamer.interfaces import Condition, Guidance, Prior
from scaledreamer.rng import StepRng


@dataclass(frozen=True, kw_only=True)
class Config(_guidance.NoisingConfig):
    guidance_scale: float = 7.5
    """Factor s of the classifier direction; the paper's."""
    t_clean: float = 0.2
    """Below this time the null prediction itself is the domain correction; the paper's 200/1000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.t_clean <= 1:
            raise ValueError(f"distillation.t_clean: got {self.t_clean}; must lie in [0, 1]")


_UNSCALED = _guidance.GuidedConfig()


class NFSD:
    """g = w(t) (s (eps(x_t, t, y) - eps(x_t, t, null)) + d(x_t, t)), and what perp-neg adds.

    d leads into the domain of clean images: eps(x_t, t, null) below `t_clean`, and above it
    eps(x_t, t, null) - eps(x_t, t, bad). Without a bad text (`prior.bad_prompt`) the second is 0,
    and what remains there is s times CSD.
    """

    def __init__(self, config: Config, prior: Prior) -> None:
        self._config = config
        self._prior = prior

    def __call__(self, latents: Tensor, condition: Condition, step: int, rng: StepRng) -> Guidance:
        config, latents = self._config, _guidance.wide(latents)
        noised = _guidance.draw(config, "nfsd", self._prior.schedule, latents, step, rng)
        x_t, t = noised.at(noised.t), noised.t
        bad = [] if condition.bad is None else [(x_t, t, condition.bad)]
        guided, beside = _guidance.predict(self._prior, _UNSCALED, condition, x_t, t, *bad)
        away = guided.null - beside[0] if beside else torch.zeros_like(guided.null)
        is_clean = _guidance.per_row((t < config.t_clean).float(), latents)
        domain = torch.where(is_clean > 0, guided.null, away)
        direction = config.guidance_scale * guided.direction + domain
        gradient = _guidance.weight(config.weighting, noised) * direction
        stats = {"t": noised.t.mean(), "domain_rms": _guidance.rms(domain)}
        return _guidance.to_guidance("nfsd", latents, gradient, stats)


def create(config: Config, prior: Prior) -> NFSD:
    return NFSD(config, prior)
