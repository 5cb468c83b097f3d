"""Noise schedules over a time fraction, and what a network's output means.

x_t = alpha x_0 + sigma eps throughout. Networks predict eps, x_0 ("sample"), the velocity
v = alpha eps - sigma x_0 (Salimans and Ho, "Progressive distillation", ICLR 2022, appendix D)
or the flow u = eps - x_0 (Liu et al., "Rectified flow", ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from diffusers import DDPMScheduler
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


class VPSchedule:
    """Variance-preserving diffusion in T steps: alpha^2 + sigma^2 = 1.

    A fraction t is step round(t T) - 1, so t = 1 is the last, noisiest one.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        exact = alphas_cumprod.double()
        self.num_steps = len(exact)
        self._alpha = exact.sqrt().float()
        self._sigma = (1 - exact).sqrt().float()

    def timestep(self, t: Tensor) -> Tensor:
        """The int64 step that the network is fed."""
        return ((t * self.num_steps).round().long() - 1).clamp(0, self.num_steps - 1)

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha.to(t.device)[self.timestep(t)]

    def sigma(self, t: Tensor) -> Tensor:
        return self._sigma.to(t.device)[self.timestep(t)]


class FlowSchedule:
    """Straight paths from data to noise: alpha = 1 - t, sigma = t."""

    def __init__(self, num_steps: int = 1000) -> None:
        self.num_steps = num_steps

    def timestep(self, t: Tensor) -> Tensor:
        """The real-valued time that the network is fed."""
        return t * self.num_steps

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t


def cosine_schedule(num_steps: int = 1000) -> VPSchedule:
    """Source: Nichol and Dhariwal, "Improved DDPM", ICML 2021, equation 17."""
    scheduler = DDPMScheduler(num_train_timesteps=num_steps, beta_schedule="squaredcos_cap_v2")
    return VPSchedule(scheduler.alphas_cumprod)


def from_scheduler_config(
    config: Mapping[str, Any], device: torch.device | str = "cpu"
) -> tuple[VPSchedule | FlowSchedule, Prediction]:
    """Schedule and kind of prediction of a diffusers `scheduler_config.json`.

    Raises: ValueError for a kind of prediction that is not known.
    """
    num_steps = int(config.get("num_train_timesteps", 1000))
    if "FlowMatch" in config.get("_class_name", ""):
        return FlowSchedule(num_steps), "flow"
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in get_args(Prediction):
        raise ValueError(
            f"prediction_type: got {prediction!r}; known are {', '.join(get_args(Prediction))}"
        )
    names = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    known = {name: config[name] for name in names if name in config}
    scheduler = DDPMScheduler(num_train_timesteps=num_steps, **known)
    return VPSchedule(scheduler.alphas_cumprod.to(device)), prediction


def to_noise(kind: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps from a network's output; alpha and sigma broadcast against x_t."""
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return sigma * x_t + alpha * output
    if kind == "flow":
        return x_t + alpha * output
    return (x_t - alpha * output) / sigma


def to_clean(kind: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_0 from a network's output; alpha and sigma broadcast against x_t."""
    if kind == "epsilon":
        return (x_t - sigma * output) / alpha
    if kind == "v_prediction":
        return alpha * x_t - sigma * output
    if kind == "flow":
        return x_t - sigma * output
    return output


def to_output(
    kind: Prediction, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """What a network of that kind should say of x_0 = clean and eps = noise: a training target."""
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return alpha * noise - sigma * clean
    if kind == "flow":
        return noise - clean
    return clean


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, ...] to broadcast against `like` [N, ...]."""
    return values.view(-1, *(1,) * (like.ndim - 1))
