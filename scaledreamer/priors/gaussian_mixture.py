"""A prior with the exact score: every text names a Gaussian mixture over small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from scaledreamer.cameras import CameraDistribution
from scaledreamer.interfaces import (
    CameraBatch,
    Condition,
    ConditionRows,
    NoiseSchedule,
    TextEmbedding,
)
from scaledreamer.priors import _cameras, _lora
from scaledreamer.priors._schedule import FlowSchedule, cosine_schedule
from scaledreamer.rng import StepRng


@dataclass(frozen=True, kw_only=True)
class Config:
    texts: tuple[str, ...] = ("a red box", "a blue ball")
    """Texts the prior knows; each has components of its own."""
    num_components: int = 2
    """Gaussians per text."""
    size_px: int = 4
    """Side of the images the prior sees."""
    std: tuple[float, float] = (0.1, 0.4)
    """Range of the components' standard deviations, in units of [-1, 1]."""
    use_flow: bool = False
    """Noise along straight paths instead of a cosine schedule."""
    seed: int = 0
    """Of the means and deviations."""

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError("prior.texts: got none; name at least one")
        if min(self.num_components, self.size_px) < 1:
            raise ValueError("prior.num_components and prior.size_px: must be 1 or more")
        if not 0 < self.std[0] <= self.std[1]:
            raise ValueError(f"prior.std: got {self.std}; a range above 0")


class GaussianMixturePrior:
    """p(x_0 | text) = mean over k of N(means[text, k], variances[text, k]), diagonal.

    The null row is the mixture over all texts. A row's tokens hold the weight of each text.
    """

    cameras: CameraDistribution | None = None
    camera_dim = _cameras.NUM_FEATURES

    def __init__(
        self,
        texts: Sequence[str],
        means: Float[Tensor, "T K C H W"],
        variances: Float[Tensor, "T K C H W"],
        schedule: NoiseSchedule,
    ) -> None:
        self.schedule = schedule
        self.latent_shape = tuple(means.shape[2:])
        self.size_px = means.shape[-1]
        self._texts = {text: index for index, text in enumerate(texts)}
        self._means = means.flatten(0, 1)  # [TK, C, H, W]
        self._variances = variances.flatten(0, 1)
        self._num_components = means.shape[1]

    def encode(self, images: Float[Tensor, "N 3 H W"]) -> Tensor:
        size = (self.size_px, self.size_px)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return images * 2 - 1

    def decode(self, latents: Tensor) -> Float[Tensor, "N 3 H W"]:
        return (latents.detach() / 2 + 0.5).clamp(0, 1)

    def condition(self, texts: Sequence[str], cameras: CameraBatch | None) -> Condition:
        """Rows of B * V latents, which see no cameras.

        Raises: ValueError for a text the prior does not know.
        """
        if unknown := sorted(set(texts) - set(self._texts)):
            raise ValueError(f"prior.texts: got {unknown[0]!r}; known are {list(self._texts)}")
        num_views = 1 if cameras is None else cameras.azimuth_deg.shape[1]
        rows = torch.tensor([self._texts[text] for text in texts for _ in range(num_views)])
        weights = F.one_hot(rows.to(self._means.device), len(self._texts)).to(self._means.dtype)
        uniform = torch.full_like(weights, 1 / len(self._texts))
        features = None if cameras is None else _cameras.camera_features(cameras)
        return Condition(
            positive=_rows(weights),
            null=_rows(uniform),
            cameras=None if features is None else features.to(weights.device),
        )

    @torch.no_grad()
    def predict_noise(self, x_t: Tensor, t: Float[Tensor, "N"], rows: ConditionRows) -> Tensor:
        """eps = -sigma * score of the noised mixture, exact in float64."""
        x = x_t.double()
        sigma = self._expand(self.schedule.sigma(t))
        log_density, pull = self._components(x, t, rows)
        score = torch.einsum("nk,nk...->n...", log_density.softmax(dim=1), pull)
        return (-sigma[:, 0] * score).to(torch.promote_types(x_t.dtype, torch.float32))

    def lora_copy(self, rank: int, camera_dim: int) -> _lora.LoraCopy:
        """The exact prediction and what a small network adds to it; `rank` sets its width."""
        num_texts = len(self._texts)
        trained = _Addition(self.latent_shape, 2 + num_texts + camera_dim, 8 * rank)

        def network(x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
            noise = self.predict_noise(x_t, t, rows)
            cameras = rows.cameras
            if cameras is None:
                cameras = x_t.new_zeros(len(x_t), camera_dim)
            levels = torch.stack((self.schedule.alpha(t), self.schedule.sigma(t)), dim=1)
            beside = (levels, rows.text.tokens[:, 0], cameras)
            return noise + trained(x_t, torch.cat([part.float() for part in beside], dim=1))

        device = self._means.device
        return _lora.LoraCopy(network, "epsilon", self.schedule, trained.to(device))

    def log_density(self, x_t: Tensor, t: Float[Tensor, "N"], rows: ConditionRows) -> Tensor:
        """log p_t(x_t | row) [N] in float64, differentiably."""
        return self._components(x_t.double(), t, rows)[0].logsumexp(dim=1)

    def _components(self, x: Tensor, t: Tensor, rows: ConditionRows) -> tuple[Tensor, Tensor]:
        """Weighted log densities [N, TK] and scores [N, TK, C, H, W] of the noised components."""
        alpha, sigma = self._expand(self.schedule.alpha(t)), self._expand(self.schedule.sigma(t))
        variance = alpha**2 * self._variances + sigma**2
        offset = alpha * self._means - x[:, None]
        squares = (offset**2 / variance + variance.log() + math.log(2 * math.pi)).flatten(2)
        weights = rows.text.tokens[:, 0].double() / self._num_components  # [N, T]
        weights = weights.repeat_interleave(self._num_components, dim=1)
        return weights.log() - squares.sum(dim=2) / 2, offset / variance

    @staticmethod
    def _expand(values: Tensor) -> Tensor:
        return values.double().view(-1, 1, 1, 1, 1)


class _Addition(nn.Module):
    """x_t [N, *shape] and features [N, F] -> [N, *shape] in x_t's dtype, 0 at the start."""

    def __init__(self, shape: tuple[int, ...], num_features: int, width: int) -> None:
        super().__init__()
        size = math.prod(shape)
        self.first = nn.Linear(size + num_features, width)
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x_t: Tensor, features: Float[Tensor, "N F"]) -> Tensor:
        with torch.autocast(x_t.device.type, enabled=False):
            flat = torch.cat((x_t.flatten(1).float(), features), dim=1)
            return self.last(F.silu(self.first(flat))).view_as(x_t).to(x_t.dtype)


def _rows(weights: Float[Tensor, "N T"]) -> ConditionRows:
    mask = torch.ones(len(weights), 1, dtype=torch.bool, device=weights.device)
    return ConditionRows(TextEmbedding(weights[:, None], mask, None, "mixture"), None)


def create(config: Config, device: torch.device | str = "cpu") -> GaussianMixturePrior:
    """Means uniform in [-0.8, 0.8], deviations uniform in `config.std`."""
    rng = StepRng(config.seed, 0, torch.arange(len(config.texts)))
    shape = (config.num_components, 3, config.size_px, config.size_px)
    means = 1.6 * rng.uniform("mixture/means", *shape) - 0.8
    low, high = config.std
    stds = low + (high - low) * rng.uniform("mixture/stds", *shape)
    schedule = FlowSchedule() if config.use_flow else cosine_schedule()
    return GaussianMixturePrior(
        config.texts, means.double().to(device), stds.double().square().to(device), schedule
    )
