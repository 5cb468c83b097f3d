"""Asynchronous score distillation (Ma et al., "ScaleDreamer", ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scaledreamer.distillation import _guidance
from scaledreamer.distillation._timesteps import uniform_rows
from scaledreamer.interfaces import Condition, Guidance, Prior
from scaledreamer.rng import StepRng

_T_LAST = 0.999
"""Shifted times stop here, as in the paper's code."""


@dataclass(frozen=True, kw_only=True)
class Config(_guidance.GuidedConfig):
    """The default guidance scale is the paper's; it acts at t alone, as negatives do."""

    eta: float = 0.1
    """Greatest shift as a fraction of t - t_min; the paper's. 0: (scale - 1) times CSD."""
    is_shift_random: bool = True
    """Draw the shift from U[0, eta (t - t_min)], as the paper does, instead of taking its end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"distillation.eta: got {self.eta}; must lie in [0, 1]")


class ASD:
    """g = w(t) (eps_guided(x_t, t, y) - eps(x_{t + dt}, t + dt, y)), both with the same noise.

    The frozen model at a later time stands in for VSD's fine-tuned copy: its error falls with t.
    """

    def __init__(self, config: Config, prior: Prior) -> None:
        self._config = config
        self._prior = prior

    def __call__(self, latents: Tensor, condition: Condition, step: int, rng: StepRng) -> Guidance:
        config, latents = self._config, _guidance.wide(latents)
        noised = _guidance.draw(config, "asd", self._prior.schedule, latents, step, rng)
        shifted = self._shift(noised, rng)
        guided, (later,) = _guidance.predict(
            self._prior,
            config,
            condition,
            noised.at(noised.t),
            noised.t,
            (noised.at(shifted), shifted, condition.positive),
        )
        direction = guided.noise - later
        gradient = _guidance.weight(config.weighting, noised) * direction
        stats = {
            "t": noised.t.mean(),
            "shift": (shifted - noised.t).mean(),
            "classifier_rms": _guidance.rms(guided.direction),
            "asynchronous_rms": _guidance.rms(guided.positive - later),
        }
        return _guidance.to_guidance("asd", latents, gradient, stats)

    def _shift(self, noised: _guidance.Noised, rng: StepRng) -> Tensor:
        """t + dt."""
        shift = self._config.eta * (noised.t - noised.t_min)
        if self._config.is_shift_random:
            u = uniform_rows(rng, "asd/shift", len(shift), self._config.t_per)
            shift = shift * u.to(shift.device)
        return (noised.t + shift).clamp(max=_T_LAST).maximum(noised.t)


def create(config: Config, prior: Prior) -> ASD:
    return ASD(config, prior)
