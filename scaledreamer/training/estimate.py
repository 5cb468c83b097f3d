"""FLOPs and memory of code on the device "meta": shapes alone, nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from scaledreamer.config import component_module
from scaledreamer.interfaces import Condition, ConditionRows, TextEmbedding
from scaledreamer.rng import StepRng
from scaledreamer.training.config import DISTILLERS, TrainConfig


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    flops: int
    """Of its matrix products, convolutions and attention; multiplying and adding are two."""
    peak_bytes: int
    """Most bytes alive at once of tensors that it made."""
    saved_bytes: int
    """What autograd keeps of it for the backward pass."""


def measure(call: Callable[[], Any]) -> Cost:
    """Attention counts as fused: no matrix of all pairs is kept."""
    alive, attention, saved = _Alive(), _FusedAttention(), _Saved()
    with attention, saved.hooks(), FlopCounterMode(display=False) as counter, alive:
        call()
    return Cost(counter.get_total_flops() + attention.flops, alive.peak, saved.count)


class _Alive(TorchDispatchMode):
    """Follows the storages of all results of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if _is(one)}
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if _is(one) and id(storage := one.untyped_storage()) not in given:
                self._note(storage)
        return result

    def _note(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        count = storage.nbytes()
        self.now += count
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, count)

    def _free(self, count: int) -> None:
        self.now -= count


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


@dataclass
class _Saved:
    """Counts the storages that autograd keeps, each once; parameters aside."""

    count: int = 0
    _seen: set[int] = field(default_factory=set[int])
    _kept: list[Tensor] = field(default_factory=list[Tensor])

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        owner = tensor if tensor._base is None else tensor._base
        if id(storage) not in self._seen and not isinstance(owner, torch.nn.Parameter):
            self._seen.add(id(storage))
            self._kept.append(tensor)  # so that the id stays its own
            self.count += storage.nbytes()
        return tensor


class _FusedAttention(TorchFunctionMode):
    """Stands in for scaled-dot-product attention, which the device "meta" has unfused only."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        names = ("query", "key", "value")
        named = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        query, key, value = (named[name] for name in names)
        pairs = query.shape[:-1].numel() * key.shape[-2]
        self.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])
        return _Attention.apply(query, key, value)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("shapes alone; there is no gradient")


@dataclass(frozen=True)
class PriorCost:
    """Of one training step, per process."""

    parameters: Mapping[str, int]
    """By component."""
    weight_bytes: int
    num_images: int
    rows: int
    """Rows that the network sees in a step."""
    encode: Cost
    """Of all renders, with the gradient's path."""
    predict: Cost
    """Of as many rows as the network takes at once."""
    predict_flops: int
    """Of all rows."""

    @property
    def peak_bytes(self) -> int:
        """Weights, and the larger of what encoding keeps or predicting needs beside it."""
        at_encoding = self.encode.peak_bytes
        at_predicting = self.encode.saved_bytes + self.predict.peak_bytes
        return self.weight_bytes + max(at_encoding, at_predicting)

    @property
    def flops(self) -> int:
        """Encoding forward and back (twice the forward), and predicting forward."""
        return 3 * self.encode.flops + self.predict_flops


def prior_cost(config: TrainConfig, prior: Any) -> PriorCost:
    """Of a prior on the device "meta" that offers `components` and `blank_rows`."""
    counts, weight_bytes = {}, 0
    for name, modules in prior.components().items():
        weights = [weight for module in modules for weight in module.parameters()]
        counts[name] = sum(weight.numel() for weight in weights)
        weight_bytes += sum(weight.nbytes for weight in weights)
    num_images = config.prompts_per_step * config.views_per_prompt
    side = config.render_px
    images = torch.zeros(num_images, 3, side, side, device="meta", requires_grad=True)
    rows = num_images * rows_per_latent(config)
    chunk = getattr(config.prior.config, "chunk_size", 0) or rows
    at_once = min(-(-min(chunk, rows) // prior.num_views) * prior.num_views, rows)
    x_t = torch.zeros(at_once, *prior.latent_shape, device="meta")
    t, blank = torch.ones(at_once, device="meta"), prior.blank_rows(at_once)
    predict = measure(lambda: prior.predict_noise(x_t, t, blank))
    return PriorCost(
        parameters=counts,
        weight_bytes=weight_bytes,
        num_images=num_images,
        rows=rows,
        encode=measure(lambda: prior.encode(images)),
        predict=predict,
        predict_flops=predict.flops * rows // at_once,
    )


def rows_per_latent(config: TrainConfig) -> int:
    """Network rows for each latent and step, counted by asking the loss."""
    prior = _Counting()
    distiller = component_module(DISTILLERS, config.distiller.name).create(
        config.distiller.config, prior
    )
    rng = StepRng(0, 0, torch.zeros(1, dtype=torch.int64))
    latents = torch.zeros(2, 1, 1, 1, requires_grad=True)
    num_negatives = 2 if getattr(config.prior.config, "use_perp_neg", False) else 0
    distiller(latents, prior.condition(num_negatives), 0, rng)
    return prior.count // len(latents)


class _Counting:
    """A prior of one pixel that counts rows, its LoRA copy's too."""

    camera_dim = 1

    def __init__(self) -> None:
        self.schedule = self
        self.count = 0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def condition(self, texts: Any, cameras: Any = None) -> Condition:
        rows = ConditionRows(
            TextEmbedding(torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool), None, "none"),
            None,
        )
        weights = -torch.ones(texts, 2) if texts else None
        return Condition(rows, rows, (rows,) * texts, weights)

    def predict_noise(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        self.count += len(x_t)
        return torch.zeros_like(x_t)

    def lora_copy(self, rank: int, camera_dim: int) -> Any:
        return _CountingCopy(self)


class _CountingCopy(torch.nn.Module):
    def __init__(self, prior: _Counting) -> None:
        super().__init__()
        self._prior = prior

    def predict_noise(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        return self._prior.predict_noise(x_t, t, rows)

    def denoising_loss(
        self, clean: Tensor, noise: Tensor, t: Tensor, rows: ConditionRows
    ) -> Tensor:
        return self._prior.predict_noise(clean, t, rows).flatten(1).sum(1)
