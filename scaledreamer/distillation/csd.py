"""Classifier score distillation (Yu et al., "Text-to-3D with CSD", ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scaledreamer.distillation import _guidance
from scaledreamer.interfaces import Condition, ConditionRows, Guidance, Prior
from scaledreamer.rng import StepRng


@dataclass(frozen=True, kw_only=True)
class Config(_guidance.NoisingConfig):
    """The classifier direction has no scale of its own: the loss weight is its scale."""


class CSD:
    """g = w(t) (eps(x_t, t, y) - eps(x_t, t, null))."""

    def __init__(self, config: Config, prior: Prior) -> None:
        self._config = config
        self._prior = prior

    def __call__(self, latents: Tensor, condition: Condition, step: int, rng: StepRng) -> Guidance:
        config, latents = self._config, _guidance.wide(latents)
        noised = _guidance.draw(config, "csd", self._prior.schedule, latents, step, rng)
        x_t = noised.at(noised.t)
        positive, null = self._prior.predict_noise(
            torch.cat((x_t, x_t)),
            torch.cat((noised.t, noised.t)),
            ConditionRows.cat([condition.positive, condition.null]),
        ).chunk(2)
        gradient = _guidance.weight(config.weighting, noised) * (positive - null)
        return _guidance.to_guidance("csd", latents, gradient, {"t": noised.t.mean()})


def create(config: Config, prior: Prior) -> CSD:
    return CSD(config, prior)
