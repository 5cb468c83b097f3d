"""Score distillation sampling (Poole et al., "DreamFusion", ICLR 2023, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scaledreamer.distillation import _guidance
from scaledreamer.interfaces import Condition, Guidance, Prior
from scaledreamer.rng import StepRng


@dataclass(frozen=True, kw_only=True)
class Config(_guidance.GuidedConfig):
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
        guided, _ = _guidance.predict(self._prior, config, condition, noised.at(noised.t), noised.t)
        gradient = _guidance.weight(config.weighting, noised) * (guided.noise - noised.noise)
        stats = {"t": noised.t.mean(), "classifier_rms": _guidance.rms(guided.direction)}
        return _guidance.to_guidance("sds", latents, gradient, stats)


def create(config: Config, prior: Prior) -> SDS:
    return SDS(config, prior)
