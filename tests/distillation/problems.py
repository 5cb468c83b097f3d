"""A small problem with an exact score, and a prior that remembers its calls."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scaledreamer.cameras import ring
from scaledreamer.interfaces import Condition, ConditionRows
from scaledreamer.priors.gaussian_mixture import Config, GaussianMixturePrior, create
from scaledreamer.rng import StepRng

TEXTS = ["a red box", "a blue ball"]
AZIMUTHS = (0.0, 120.0, 240.0)


@dataclass
class Problem:
    """Scenes with three views each, in float64."""

    num_scenes: int = 4
    prior: GaussianMixturePrior = field(default_factory=lambda: create(Config()))

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.num_views = len(AZIMUTHS)
        shape = (self.num_scenes * self.num_views, 3, 4, 4)
        self.latents = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)

    def rng(self, step: int, scenes: slice = slice(None)) -> StepRng:
        index = 100 * step + torch.arange(self.num_scenes)
        return StepRng(seed=11, step=step, sample_index=index[scenes])

    def condition(self, scenes: slice = slice(None)) -> Condition:
        texts = [TEXTS[scene % 2] for scene in range(self.num_scenes)][scenes]
        return self.prior.condition(texts, ring(len(texts), AZIMUTHS))

    def rows(self, scenes: slice) -> slice:
        start, stop, _ = scenes.indices(self.num_scenes)
        return slice(start * self.num_views, stop * self.num_views)

    def noise_by_autograd(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        """eps from the log density, not from the prior's own formula for it."""
        x_t = x_t.detach().requires_grad_()
        (score,) = torch.autograd.grad(self.prior.log_density(x_t, t, rows).sum(), x_t)
        return -self.sigma(t) * score

    def alpha(self, t: Tensor) -> Tensor:
        return self.prior.schedule.alpha(t).double().view(-1, 1, 1, 1)

    def sigma(self, t: Tensor) -> Tensor:
        return self.prior.schedule.sigma(t).double().view(-1, 1, 1, 1)


@dataclass
class RecordingPrior:
    """Hands every call on, and keeps its arguments."""

    inner: GaussianMixturePrior
    calls: list[tuple[Tensor, Tensor, ConditionRows]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schedule = self.inner.schedule
        self.encode = self.inner.encode
        self.decode = self.inner.decode
        self.condition = self.inner.condition

    def predict_noise(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        self.calls.append((x_t, t, rows))
        return self.inner.predict_noise(x_t, t, rows)
