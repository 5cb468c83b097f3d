"""Classifier score distillation (Yu et al., "Text-to-3D with CSD", ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scaledreamer.distillation import _guidance
from scaledreamer.interfaces import Condition, Guidance, Prior
from scaledreamer.rng import StepRng


@dataclass(frozen=True, kw_only=True)
class Config(_guidance.NoisingConfig):
    """The classifier direction has no scale of its own: the loss weight is its scale."""


_UNSCALED = _guidance.GuidedConfig()


class CSD:
    """g = w(t) (eps(x_t, t, y) - eps(x_t, t, null)), and what perp-neg adds."""

    def __init__(self, config: Config, prior: Prior) -> None:
        self._config = config
        self._prior = prior

    def __call__(self, latents: Tensor, condition: Condition, step: int, rng: StepRng) -> Guidance:
        config, latents = self._config, _guidance.wide(latents)
        noised = _guidance.draw(config, "csd", self._prior.schedule, latents, step, rng)
        guided, _ = _guidance.predict(
            self._prior, _UNSCALED, condition, noised.at(noised.t), noised.t
        )
        gradient = _guidance.weight(config.weighting, noised) * guided.direction
        return _guidance.to_guidance("csd", latents, gradient, {"t": noised.t.mean()})


def create(config: Config, prior: Prior) -> CSD:
    return CSD(config, prior)
