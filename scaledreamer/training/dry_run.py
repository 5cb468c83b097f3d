"""What a run would be: its resolved configuration, parameter counts and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scaledreamer.config import to_yaml
from scaledreamer.encoders import clip_text
from scaledreamer.encoders._pretrained import locate
from scaledreamer.interfaces import TextEmbedding, TextEncoder
from scaledreamer.kernels.backend import use_backend
from scaledreamer.rendering.volume import render
from scaledreamer.rng import StepRng
from scaledreamer.training.config import PRIORS, TrainConfig
from scaledreamer.training.estimate import prior_cost
from scaledreamer.training.setup import (
    check_generator,
    check_views,
    create_component,
    create_generator,
)

BYTES_PER_PARAMETER = 20
"""float32: weight 4, gradient 4, two Adam moments 8, average 4."""

_PROBE_PX = (8, 16)


def dry_run(config: TrainConfig) -> str:
    """The text that `--dry-run` prints. Builds the generator; trains and writes nothing.

    Raises: ValueError for settings that do not work.
    """
    encoder = clip_text.load(config.encoder)
    generator = create_generator(config, encoder)
    check_generator(config, generator, encoder)
    trained = sum(p.numel() for p in generator.parameters() if p.requires_grad)
    prior = _prior_lines(config)
    states = BYTES_PER_PARAMETER * trained
    activations = activation_bytes(config, generator, encoder)
    rays = config.prompts_per_step * config.views_per_prompt * config.render_px**2
    kept = activations.of(config.prompts_per_step, rays)
    rest = "" if prior.is_counted else " and the prior"
    return "\n".join(
        (
            to_yaml(config),
            "parameters",
            f"  generator    {trained:,} trained",
            *prior.parameters,
            f"memory per process, about {_mib(states + kept + prior.peak_bytes)}{rest}:",
            f"  generator    {_mib(states)} = {BYTES_PER_PARAMETER} B x parameters",
            "               (weight, gradient, two Adam moments, average)",
            f"  activations  {_mib(kept)}"
            f" = {_mib(activations.per_prompt)} x {config.prompts_per_step} prompts"
            f" + {activations.per_ray / 1024:.1f} KiB x {rays:,} rays",
            "               (what autograd keeps, measured at initialisation on two small renders)",
            *prior.memory,
        )
    )


@dataclass(frozen=True)
class _PriorLines:
    parameters: tuple[str, ...]
    memory: tuple[str, ...] = ()
    peak_bytes: int = 0
    is_counted: bool = False


def _prior_lines(config: TrainConfig) -> _PriorLines:
    """From the shapes of its configuration; no weights are read."""
    folder = getattr(config.prior.config, "folder", None)
    if folder:
        try:
            locate(folder, "prior.folder")
        except ValueError as error:
            return _PriorLines((f"  prior        not counted: {error}",))
    prior = create_component(PRIORS, config.prior, "meta")
    check_views(config, prior)
    if not hasattr(prior, "blank_rows"):
        return _PriorLines(("  prior        0 frozen",), is_counted=True)
    cost = prior_cost(config, prior)
    counts = [
        f"  prior        {count:,} frozen ({name})" for name, count in cost.parameters.items()
    ]
    memory = (
        f"  prior        {_mib(cost.peak_bytes)}: weights {_mib(cost.weight_bytes)}, encoding"
        f" {cost.num_images} images keeps {_mib(cost.encode.saved_bytes)} and has"
        f" {_mib(cost.encode.peak_bytes)} at once,",
        f"               the network's pass {_mib(cost.predict.peak_bytes)}"
        " (attention counted as fused; prior.chunk_size, dtype and image_px lower it)",
        *((f"               and {_mib(cost.idle_bytes)} on the CPU",) if cost.idle_bytes else ()),
        f"compute per step and process: prior {cost.flops / 1e9:,.1f} GFLOP"
        f" ({cost.rows} rows {cost.predict_flops / 1e9:,.1f}, encoding there and back"
        f" {3 * cost.encode.flops / 1e9:,.1f})",
    )
    return _PriorLines(tuple(counts), memory, cost.peak_bytes, is_counted=True)


@dataclass(frozen=True)
class ActivationBytes:
    """What autograd keeps for the backward pass: linear in prompts and in rays."""

    per_prompt: float
    per_ray: float

    def of(self, prompts: int, rays: int) -> float:
        return prompts * self.per_prompt + rays * self.per_ray


def activation_bytes(
    config: TrainConfig, generator: nn.Module, encoder: TextEncoder
) -> ActivationBytes:
    """From the tensors saved by one prompt's render at two sizes.

    Measured on the CPU path; fused kernels keep only pixels, so that on a GPU it is an upper bound.
    """
    small, large = (_saved_bytes(config, generator, encoder, size) for size in _PROBE_PX)
    per_ray = (large - small) / (_PROBE_PX[1] ** 2 - _PROBE_PX[0] ** 2)
    return ActivationBytes(max(small - per_ray * _PROBE_PX[0] ** 2, 0.0), per_ray)


def _saved_bytes(
    config: TrainConfig, generator: nn.Module, encoder: TextEncoder, size_px: int
) -> int:
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    rng = StepRng(config.seed, 0, torch.zeros(1, dtype=torch.int64))
    width = getattr(config.generator.config, "latent_dim", 0)
    text: TextEmbedding = encoder(["a probe"])
    is_low = config.precision == "bf16"
    kept = [parameter.untyped_storage().data_ptr() for parameter in generator.parameters()]
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=is_low),
        use_backend("reference"),
    ):
        field = generator(text, rng.normal("latent", width) if width else None)
        cameras = config.cameras.sample(1, rng)
        colour = config.background.sample(rng) if config.background else None
        views = render(field, cameras, colour, config.render, size_px, config.beta(0), rng)
    assert views.rgb.requires_grad, "the generator's output does not depend on its weights"
    return sum(size for address, size in seen.items() if address not in kept)


def _mib(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"
