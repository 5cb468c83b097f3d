"""Variational score distillation (Wang et al., "ProlificDreamer", NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from scaledreamer.distillation import _guidance
from scaledreamer.distillation._timesteps import normal_like, uniform_rows
from scaledreamer.interfaces import (
    Condition,
    ConditionRows,
    Guidance,
    LoraCopy,
    LoraPrior,
    Prior,
)
from scaledreamer.rng import StepRng


@dataclass(frozen=True, kw_only=True)
class Config(_guidance.GuidedConfig):
    """The default guidance scale is the paper's. `losses.lora` weighs the copy's own loss."""

    rank: int = 4
    """Of the low-rank additions; that of the paper's code."""
    lora_lr: float = 1e-4
    """Constant learning rate of the copy; the paper's."""
    camera_dropout: float = 0.1
    """Share of rows that the copy is trained on without their camera; that of the paper's code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"distillation.rank: got {self.rank}; must be at least 1")
        if not self.lora_lr > 0:
            raise ValueError(f"distillation.lora_lr: got {self.lora_lr}; must be positive")
        if not 0 <= self.camera_dropout <= 1:
            raise ValueError(
                f"distillation.camera_dropout: got {self.camera_dropout}; must lie in [0, 1]"
            )


class VSD(nn.Module):
    """g = w(t) (eps_guided(x_t, t, y) - eps_lora(x_t, t, y, camera)), equation 9.

    eps_lora starts as the prior and learns what the renders look like: loss `lora` is
    its denoising loss on detached renders, at a time of all (0, 1] and with noise of its own. It
    sees the positive text and the camera. Its additions are the only parameters and the only state.
    Several particles of a prompt are rows like others.
    """

    lora: LoraCopy
    _prior: LoraPrior

    def __init__(self, config: Config, prior: LoraPrior) -> None:
        super().__init__()
        self._config = config
        object.__setattr__(self, "_prior", prior)  # not a part, should it be a module
        self.lora = prior.lora_copy(config.rank, prior.camera_dim)
        assert isinstance(self.lora, nn.Module), "a LoRA copy is a module, so that it is trained"

    def parameter_groups(self) -> list[Mapping[str, Any]]:
        """For the optimizer: a group with its own rate, and momentum as in the paper's code."""
        options = {"lr": self._config.lora_lr, "betas": (0.9, 0.99), "weight_decay": 0.0}
        return [{"params": list(self.parameters()), **options}]

    def forward(self, latents: Tensor, condition: Condition, step: int, rng: StepRng) -> Guidance:
        config, latents = self._config, _guidance.wide(latents)
        noised = _guidance.draw(config, "vsd", self._prior.schedule, latents, step, rng)
        x_t, rows = noised.at(noised.t), _with_cameras(condition)
        guided, _ = _guidance.predict(self._prior, config, condition, x_t, noised.t)
        learned = self.lora.predict_noise(x_t, noised.t, rows)
        gradient = _guidance.weight(config.weighting, noised) * (guided.noise - learned)
        stats = {
            "t": noised.t.mean(),
            "classifier_rms": _guidance.rms(guided.direction),
            "variational_rms": _guidance.rms(guided.positive - learned),
        }
        guidance = _guidance.to_guidance("vsd", latents, gradient, stats)
        lora = self.lora_loss(latents, rows, rng)
        return Guidance({**guidance.losses, "lora": lora}, guidance.stats)

    def lora_loss(self, latents: Tensor, rows: ConditionRows, rng: StepRng) -> Tensor:
        """Mean over rows and elements, in the prior's own kind of prediction."""
        latents, count = latents.detach(), len(latents)
        t = 1 - uniform_rows(rng, "vsd/lora_t", count, self._config.t_per).to(latents.device)
        noise = normal_like(rng, "vsd/lora_noise", latents)
        if rows.cameras is not None:
            u = uniform_rows(rng, "vsd/lora_camera", count, "view").to(rows.cameras.device)
            is_kept = u >= self._config.camera_dropout
            rows = replace(rows, cameras=rows.cameras * is_kept[:, None])
        return self.lora.denoising_loss(latents, noise, t, rows).mean()


def _with_cameras(condition: Condition) -> ConditionRows:
    """The positive rows, with cameras also where the prior itself sees none."""
    rows = condition.positive
    return rows if condition.cameras is None else replace(rows, cameras=condition.cameras)


def create(config: Config, prior: Prior) -> VSD:
    """Raises: ValueError for a prior that offers no LoRA copy."""
    if not isinstance(prior, LoraPrior):
        raise ValueError(
            f"prior.name: {type(prior).__name__} has no lora_copy, which distiller vsd trains; "
            "choose another prior, or a distiller such as asd"
        )
    return VSD(config, prior)
