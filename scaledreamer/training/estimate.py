"""FLOPs and memory of code on the device "meta": shapes alone, nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])


@dataclass(frozen=True)
class PriorCost:
    """Of one training step, per process."""

    parameters: Mapping[str, int]
    """By component."""
    weight_bytes: int
    """On the device."""
    idle_bytes: int
    """Of weights that stay on the CPU."""
    num_images: int
    rows: int
    """Rows that the network sees in a step without gradient."""
    encode: Cost
    """Of all renders, with the gradient's path."""
    predict: Cost
    """Of as many rows as the network takes at once."""
    predict_flops: int
    """Of all rows."""
    lora: Cost
    """Of what a loss trains on the renders: its forward pass."""

    @property
    def peak_bytes(self) -> int:
        """Weights, and beside them the most that encoding, predicting or a LoRA copy need."""
        kept = self.encode.saved_bytes
        moments = (
            self.encode.peak_bytes,
            kept + self.predict.peak_bytes,
            kept + self.lora.peak_bytes,
        )
        return self.weight_bytes + max(moments)

    @property
    def flops(self) -> int:
        """Encoding and a LoRA copy there and back (three times forward), predicting forward."""
        return 3 * (self.encode.flops + self.lora.flops) + self.predict_flops


def prior_cost(config: TrainConfig, prior: Any) -> PriorCost:
    """Of a prior on the device "meta" that offers `components`, `idle` and `blank_rows`."""
    counts, num_bytes = {}, 0
    for name, modules in prior.components().items():
        weights = [weight for module in modules for weight in module.parameters()]
        counts[name] = sum(weight.numel() for weight in weights)
        num_bytes += sum(weight.nbytes for weight in weights)
    idle = sum(weight.nbytes for module in prior.idle() for weight in module.parameters())
    num_images = config.prompts_per_step * config.views_per_prompt
    side = config.render_px
    images = torch.zeros(num_images, 3, side, side, device="meta", requires_grad=True)
    calls, lora_calls = rows_per_latent(config)
    largest = num_images * max(calls)
    chunk = getattr(config.prior.config, "chunk_size", 0)
    at_once = largest
    if chunk:
        at_once = min(max(chunk // prior.num_views, 1) * prior.num_views, largest)
    x_t, t, blank = _shapes(prior, at_once)
    predict = measure(lambda: prior.predict_noise(x_t, t, blank))
    rows = num_images * sum(calls)
    return PriorCost(
        parameters=counts,
        weight_bytes=num_bytes - idle,
        idle_bytes=idle,
        num_images=num_images,
        rows=rows,
        encode=measure(lambda: prior.encode(images)),
        predict=predict,
        predict_flops=predict.flops * rows // at_once,
        lora=_lora_cost(config, prior, num_images * sum(lora_calls)),
    )


def _shapes(prior: Any, count: int) -> tuple[Tensor, Tensor, ConditionRows]:
    x_t = torch.zeros(count, *prior.latent_shape, device="meta")
    return x_t, torch.ones(count, device="meta"), prior.blank_rows(count)


def _lora_cost(config: TrainConfig, prior: Any, rows: int) -> Cost:
    if not rows:
        return Cost(0, 0, 0)
    copy = prior.lora_copy(config.distiller.config.rank, prior.camera_dim)
    x_t, t, blank = _shapes(prior, rows)
    blank = replace(blank, cameras=torch.zeros(rows, prior.camera_dim, device="meta"))
    return measure(lambda: copy.denoising_loss(x_t, x_t, t, blank))


def rows_per_latent(config: TrainConfig) -> tuple[list[int], list[int]]:
    """Network rows for each latent, call by call, without and with gradient: by asking the loss."""
    prior = _Counting(
        num_negatives=2 if getattr(config.prior.config, "use_perp_neg", False) else 0,
        has_bad=bool(getattr(config.prior.config, "bad_prompt", "")),
    )
    distiller = component_module(DISTILLERS, config.distiller.name).create(
        config.distiller.config, prior
    )
    rng = StepRng(0, 0, torch.zeros(1, dtype=torch.int64))
    latents = torch.zeros(2, 1, 1, 1, requires_grad=True)
    distiller(latents, prior.condition([], None), 0, rng)
    per_latent = (
        [count // len(latents) for count in kind] for kind in (prior.calls, prior.trained)
    )
    calls, trained = per_latent
    return calls, trained


class _Counting:
    """A prior of one pixel that notes the rows of each call, its LoRA copy's too."""

    camera_dim = 1

    def __init__(self, num_negatives: int, has_bad: bool) -> None:
        self.schedule = self
        self.calls: list[int] = []
        self.trained: list[int] = []
        self._num_negatives, self._has_bad = num_negatives, has_bad

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def condition(self, texts: Any, cameras: Any) -> Condition:
        mask = torch.ones(2, 1, dtype=torch.bool)
        rows = ConditionRows(TextEmbedding(torch.zeros(2, 1, 1), mask, None, "none"), None)
        count = self._num_negatives
        return Condition(
            rows,
            rows,
            (rows,) * count,
            -torch.ones(count, 2) if count else None,
            rows if self._has_bad else None,
        )

    def predict_noise(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        self.calls.append(len(x_t))
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
        self._prior.trained.append(len(clean))
        return clean.flatten(1).sum(1)
