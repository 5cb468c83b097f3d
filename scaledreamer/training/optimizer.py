"""Adam, its learning rate as a function of the step, and its state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_ENTRIES = {"step", "exp_avg", "exp_avg_sq"}
"""What Adam keeps of one parameter."""
_SCHEDULED = "is_scheduled"
"""Key of the parameter group that the configured rate is for."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: Literal["adam", "adamw"] = "adam"
    """They differ in weight_decay only."""
    lr: float = 2e-3
    """Peak learning rate, after the warm-up."""
    betas: tuple[float, float] = (0.0, 0.99)
    """No momentum, as in ScaleDreamer and the GANs its generators come from."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    weight_decay: float = 0.0
    """L2 penalty with adam, decoupled decay with adamw."""
    warmup_steps: int = 50
    """Steps over which the rate rises linearly from lr / warmup_steps."""
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls from the end of the warm-up to the last step."""
    final_lr_fraction: float = 0.1
    """The last step's rate, as a fraction of lr."""
    grad_clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; null turns clipping off."""
    ema_decay: float = 0.999
    """Of the averaged weights that generation uses; smaller in the first steps (see ema.py)."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr: got {self.lr}; must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas: got {self.betas}; each must lie in [0, 1)")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"optimizer.ema_decay: got {self.ema_decay}; must lie in [0, 1)")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError(
                f"optimizer.final_lr_fraction: got {self.final_lr_fraction}; must lie in [0, 1]"
            )
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError("optimizer: warmup_steps and weight_decay must not be negative")
        if self.grad_clip_norm is not None and self.grad_clip_norm <= 0:
            raise ValueError(
                f"optimizer.grad_clip_norm: got {self.grad_clip_norm}; must be positive, or null"
            )


def create_optimizer(
    module: nn.Module, config: OptimizerConfig, own: Sequence[Mapping[str, Any]] = ()
) -> Optimizer:
    """One parameter group with every parameter that wants a gradient, in registration order.

    `own` are groups of some of them with constant rates, which `set_learning_rate` leaves alone.
    """
    apart = {id(p) for group in own for p in group["params"]}
    parameters = [p for p in module.parameters() if p.requires_grad and id(p) not in apart]
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(
        [{"params": parameters, _SCHEDULED: True}, *(dict(group) for group in own)],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate of the update that step `step` (from 0) makes."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(num_steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    if config.decay == "constant":
        return config.lr
    if config.decay == "linear":
        share = 1.0 - progress
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    low = config.final_lr_fraction
    return config.lr * (low + (1.0 - low) * share)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if group.get(_SCHEDULED, False):
            group["lr"] = rate


def state_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as "<parameter>/<entry>" -> tensor; hyper-parameters stay in config."""
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    return {
        f"{names[parameter]}/{entry}": value.detach().contiguous()
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
    }


def load_state_tensors(
    optimizer: Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of `state_tensors`.

    Raises: ValueError when a tensor names no trained parameter or has another shape, or a
    parameter's state is not Adam's.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in parameters:
            raise ValueError(f"optimizer state: {name!r} is no parameter of this generator")
        parameter = parameters[name]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(
                f"optimizer state: {key} has shape {tuple(value.shape)}, the parameter "
                f"{tuple(parameter.shape)}; resume with the generator the run began with"
            )
        device = parameter.device if value.ndim else value.device  # Adam's step count stays on CPU
        optimizer.state[parameter][entry] = value.to(device)
    for name, parameter in parameters.items():
        entries = optimizer.state.get(parameter, {}).keys()
        if entries and entries != _ENTRIES:
            raise ValueError(
                f"optimizer state: {name} has {', '.join(sorted(entries))}; expected "
                f"{', '.join(sorted(_ENTRIES))}"
            )
