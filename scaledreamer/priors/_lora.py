"""Trainable copies of priors that share the frozen weights: low-rank additions to attention.

Source: Hu et al., "LoRA", ICLR 2022, equation 3 with alpha = r; rank, layers and initialisation as
in ProlificDreamer's code (diffusers' LoRALinearLayer). Our own lines rather than peft: that package
puts its layers into the network it is given, which the prior itself runs, and where it is merely
installed, every process that loads a prior imports it (0.21.2: 231 modules, 0.6 s of CPU time).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from scaledreamer.interfaces import ConditionRows, NoiseSchedule
from scaledreamer.priors._schedule import Prediction, per_row, to_noise, to_output

Network = Callable[[Tensor, Tensor, ConditionRows], Tensor]
"""x_t, t and condition -> the network's own output, differentiable."""

_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
_CAMERA_HIDDEN = 64


class LoraCopy(nn.Module):
    """`interfaces.LoraCopy`. Its state is that of `trained`; the frozen network is not registered.

    `network` runs the frozen network with the additions; rows give it their cameras.
    """

    def __init__(
        self, network: Network, kind: Prediction, schedule: NoiseSchedule, trained: nn.Module
    ) -> None:
        super().__init__()
        self.trained = trained
        self._network = network
        self._kind: Prediction = kind
        self._schedule = schedule

    @torch.no_grad()
    def predict_noise(self, x_t: Tensor, t: Float[Tensor, "N"], rows: ConditionRows) -> Tensor:
        alpha, sigma = self._alpha_sigma(t, x_t)
        return to_noise(self._kind, self._network(x_t, t, rows), x_t, alpha, sigma)

    def denoising_loss(
        self, clean: Tensor, noise: Tensor, t: Float[Tensor, "N"], rows: ConditionRows
    ) -> Float[Tensor, "N"]:
        alpha, sigma = self._alpha_sigma(t, clean)
        output = self._network(alpha * clean + sigma * noise, t, rows)
        wanted = to_output(self._kind, clean, noise, alpha, sigma)
        return (output - wanted).square().flatten(1).mean(dim=1)

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._schedule.alpha(t), self._schedule.sigma(t)
        return per_row(alpha, like).to(like.dtype), per_row(sigma, like).to(like.dtype)


class LowRank(nn.Module):
    """What is added to a linear layer's output: up(down(x)), 0 at the start; float32."""

    def __init__(self, num_in: int, num_out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, num_in) / rank)
        self.up = nn.Parameter(torch.zeros(num_out, rank))

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook of the layer."""
        added = F.linear(F.linear(inputs[0].to(self.down.dtype), self.down), self.up)
        return output + added.to(output.dtype)


class CameraEmbedding(nn.Module):
    """Camera features [N, F] -> addition to the time embedding [N, D], 0 at the start.

    `now` holds the features of the rows that the network is about to see.
    """

    now: Tensor | None = None

    def __init__(self, camera_dim: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(camera_dim, _CAMERA_HIDDEN)
        self.last = nn.Linear(_CAMERA_HIDDEN, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook of the last layer of the network's time embedding."""
        assert self.now is not None, "the copy is called with cameras"
        added = self.last(F.silu(self.first(self.now.to(self.first.weight.dtype))))
        return output + added.to(output.dtype)


def lora_network(
    network: nn.Module, rank: int, camera_dim: int, embed_at: str | None
) -> tuple[Any, nn.ModuleDict]:
    """A diffusers network on the same parameters with additions, and these alone.

    With `embed_at`, the last layer of the time embedding, a `CameraEmbedding` joins them under
    "cameras". The given network stays as it is.
    """
    shared = {id(one): one for one in (*network.parameters(), *network.buffers())}
    twin: Any = copy.deepcopy(network, shared)
    trained = nn.ModuleDict()
    for name, layer in twin.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(_ATTENTION):
            addition = LowRank(layer.in_features, layer.out_features, rank)
            layer.register_forward_hook(addition)
            trained[name.replace(".", "/")] = addition
    assert trained, "the network has no attention layers of diffusers' names"
    if embed_at is not None:
        layer = twin.get_submodule(embed_at)
        trained["cameras"] = CameraEmbedding(camera_dim, layer.out_features)
        layer.register_forward_hook(trained["cameras"])
    return twin, trained.to(next(network.parameters()).device)
