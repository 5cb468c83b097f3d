"""Score distillation sampling (Poole et al., "DreamFusion", ICLR 2023, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scaledreamer.distillation import _guidance
from scaledreamer.interfaces import Condition, ConditionRows, Guidance, Prior
from scaledreamer.rng import StepRng


@dataclass(frozen=True, kw_only=True)
class Config(_guidance.NoisingConfig):
    guidance_scale: float = 100.0
    """Classifier-free guidance; the paper's, for a broad prior. A sharp one wants 2-3."""


class SDS:
    """g = w(t) (eps_guided(x_t, t, y) - eps)."""

    def __init__(self, config: Config, prior: Prior) -> None:
        self._config = config
        self._prior = prior

    def __call__(self, latents: Tensor, condition: Condition, step: int, rng: StepRng) -> Guidance:
        config, latents = self._config, _guidance.wide(latents)
        noised = _guidance.draw(config, "sds", self._prior.schedule, latents, step, rng)
        x_t = noised.at(noised.t)
        positive, null = self._prior.predict_noise(
            torch.cat((x_t, x_t)),
            torch.cat((noised.t, noised.t)),
            ConditionRows.cat([condition.positive, condition.null]),
        ).chunk(2)
        direction = _guidance.guided(null, positive, config.guidance_scale) - noised.noise
        gradient = _guidance.weight(config.weighting, noised) * direction
        stats = {"t": noised.t.mean(), "classifier_rms": _guidance.rms(positive - null)}
        return _guidance.to_guidance("sds", latents, gradient, stats)


def create(config: Config, prior: Prior) -> SDS:
    return SDS(config, prior)
