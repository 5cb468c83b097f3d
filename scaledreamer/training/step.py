"""One training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from scaledreamer.interfaces import CameraBatch, Field, PromptBatch, Views
from scaledreamer.rendering.volume import render
from scaledreamer.rng import StepRng
from scaledreamer.training.optimizer import learning_rate, set_learning_rate
from scaledreamer.training.regularizers import REGULARIZERS, regularizers
from scaledreamer.training.setup import Run, Trainable


@dataclass(frozen=True)
class Forward:
    """What a step's forward pass gives."""

    views: Views
    losses: Mapping[str, Tensor]
    stats: Mapping[str, Tensor]


def training_step(run: Run, batch: PromptBatch, step: int) -> dict[str, Tensor]:
    """Makes update `step` (from 0); returns named scalars, detached.

    Raises: FloatingPointError, on every process, naming the losses or gradients that are not
    finite; then nothing is updated.
    """
    config = run.config
    rng = StepRng(config.seed, step, batch.sample_index.to(run.device))
    weights = {name: schedule(step) for name, schedule in config.losses.items()}
    rate = learning_rate(config.optimizer, step, config.num_steps)
    set_learning_rate(run.optimizer, rate)

    forward = together(run.accelerator, lambda: compute_losses(run, batch, weights, rng))
    losses, views = forward.losses, forward.views
    loss = weighted_sum(losses, weights)

    run.optimizer.zero_grad()
    run.accelerator.backward(loss)
    norms = clip_gradients(run.trainable, config.optimizer.grad_clip_norm)
    require_finite(losses, torch.stack([*norms.values()]).sum(), run.trainable)
    run.optimizer.step()
    run.ema.update(run.generator, step)
    named = {f"loss/{name}": value for name, value in losses.items()}
    stats = {f"stat/{name}": value for name, value in forward.stats.items()}
    shown = {**norms, "opacity": views.opacity.mean(), "lr": torch.tensor(rate)}
    return {name: v.detach() for name, v in {"loss": loss, **named, **stats, **shown}.items()}


def compute_losses(
    run: Run, batch: PromptBatch, weights: Mapping[str, float], rng: StepRng
) -> Forward:
    config = run.config
    text = run.encoder(batch.texts)
    cameras = config.cameras.sample(config.views_per_prompt, rng)
    with run.autocast():
        field = run.model(text, run.latent(rng))
        views = render_views(run, field, cameras, rng)
    latents = run.prior.encode(views.rgb.flatten(0, 1))
    condition = run.prior.condition(batch.texts, cameras)
    guide = run.distiller(latents, condition, rng.step, rng)
    return Forward(views, {**guide.losses, **regularizers(views, field, weights)}, guide.stats)


def together(accelerator: Accelerator, compute: Callable[[], Forward]) -> Forward:
    """The forward pass, which all processes leave with an error when one of them does.

    Otherwise the others would wait for that one in the backward pass.
    Raises: FloatingPointError; of several processes, also for losses that are not finite.
    """
    if accelerator.num_processes == 1:
        return compute()
    found, failure = None, None
    try:
        found = compute()
        require_finite(found.losses, torch.zeros(()), nn.Module())
    except FloatingPointError as error:
        failure = error
    has_failed = torch.tensor([int(failure is not None)], device=accelerator.device)
    if accelerator.gather(has_failed).any():  # type: ignore[union-attr]
        raise failure or FloatingPointError("not finite: see the other processes' records")
    assert found is not None
    return found


def render_views(run: Run, field: Field, cameras: CameraBatch, rng: StepRng) -> Views:
    """The step's training renders, on one background colour per scene or the learned one."""
    config = run.config
    return render(
        field,
        cameras,
        config.background.sample(rng) if config.background else None,
        config.render,
        config.render_px,
        config.beta(rng.step),
        rng,
        num_points=config.num_points if "eikonal" in config.losses else 0,
    )


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of weight * loss; a distiller's loss that no weight names counts once.

    Raises: ValueError for a weight that names no loss.
    """
    for name in weights:
        if name not in losses and name not in REGULARIZERS:
            known = ", ".join(sorted({*losses, *REGULARIZERS}))
            raise ValueError(f"losses.{name}: no such loss; this run has {known}")
    return torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()


def clip_gradient(module: nn.Module, max_norm: float | None) -> Tensor:
    """Scales the gradients down to `max_norm`; returns the norm they had."""
    limit = float("inf") if max_norm is None else max_norm
    return nn.utils.clip_grad_norm_(module.parameters(), limit)


def clip_gradients(trainable: Trainable, max_norm: float | None) -> dict[str, Tensor]:
    """Of the generator and of what the loss trains apart, so that neither shrinks the other's."""
    norms = {"gradient_norm": clip_gradient(trainable.generator, max_norm)}
    if trainable.distiller is not None:
        norms["gradient_norm/distiller"] = clip_gradient(trainable.distiller, max_norm)
    return norms


def require_finite(losses: Mapping[str, Tensor], norm: Tensor, module: nn.Module) -> None:
    """Raises FloatingPointError with the names of all losses and gradients that are not finite."""
    total = torch.stack([value.detach() for value in losses.values()]).sum() + norm
    if torch.isfinite(total):
        return
    wrong = [f"loss {name}" for name, value in losses.items() if not value.isfinite()]
    wrong += [
        f"gradient {name}"
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    raise FloatingPointError(f"not finite: {', '.join(wrong) or 'the sum of the losses'}")
