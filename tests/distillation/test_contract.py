"""What every distiller promises; a new module in the folder is tested by being there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scaledreamer.cameras import ring
from scaledreamer.config import build, component_module, component_names, to_dict
from scaledreamer.interfaces import Guidance
from scaledreamer.priors import unet
from scaledreamer.rng import StepRng
from tests.distillation.problems import TEXTS, Problem
from tests.priors import folders

PACKAGE = "scaledreamer.distillation"
NAMES = component_names(PACKAGE)


def _create(name: str, problem: Problem) -> Any:
    module = component_module(PACKAGE, name)
    return module.create(module.Config(), problem.prior)


def _gradient(
    distiller: Any, problem: Problem, latents: Tensor, step: int, scenes: slice = slice(None)
) -> tuple[Tensor, Guidance]:
    latents = latents[problem.rows(scenes)].detach().requires_grad_()
    guidance = distiller(latents, problem.condition(scenes), step, problem.rng(step, scenes))
    (gradient,) = torch.autograd.grad(torch.stack([*guidance.losses.values()]).sum(), latents)
    return gradient, guidance


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_stats_are_finite_scalars(name: str) -> None:
    problem = Problem()
    gradient, guidance = _gradient(_create(name, problem), problem, problem.latents, 3)
    assert guidance.losses
    for value in (*guidance.losses.values(), *guidance.stats.values()):
        assert value.shape == ()
        assert value.isfinite()
    assert not any(value.requires_grad for value in guidance.stats.values())
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_draws_do_not_depend_on_the_split_over_processes(name: str) -> None:
    problem = Problem()
    distiller = _create(name, problem)
    whole, _ = _gradient(distiller, problem, problem.latents, 3)
    parts = [
        _gradient(distiller, problem, problem.latents, 3, scenes)[0] * problem.num_views * count
        for scenes, count in ((slice(0, 1), 1), (slice(1, 4), 3))
    ]
    torch.testing.assert_close(torch.cat(parts), whole * len(whole))
    again, _ = _gradient(distiller, problem, problem.latents, 3)
    assert torch.equal(whole, again)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_and_low_precision_latents_change_little(name: str) -> None:
    problem = Problem()
    distiller = _create(name, problem)
    latents = problem.latents.bfloat16()
    exact, _ = _gradient(distiller, problem, latents.double(), 3)
    with torch.autocast("cpu", torch.bfloat16):
        gradient, guidance = _gradient(distiller, problem, latents, 3)
    assert all(loss.dtype == torch.float32 for loss in guidance.losses.values())
    assert (gradient.double() - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_descent_leads_to_the_text(name: str) -> None:
    """From the middle, latents move to where their own text is likelier than the other one."""
    problem = Problem(num_scenes=2)
    distiller = _create(name, problem)
    latents = 0.1 * problem.latents
    other = problem.prior.condition([TEXTS[1], TEXTS[0]], None).positive
    others = other[torch.arange(2).repeat_interleave(problem.num_views)]
    t = torch.full((len(latents),), 0.2)

    def log_ratio() -> Tensor:
        own = problem.prior.log_density(latents, t, problem.condition().positive)
        return own - problem.prior.log_density(latents, t, others)

    start = log_ratio()
    for step in range(40):
        gradient, _ = _gradient(distiller, problem, latents, step)
        latents = latents - 0.1 * gradient / gradient.square().mean().sqrt()
    assert (log_ratio() > start + 10).all()


@pytest.mark.parametrize("name", NAMES)
def test_config_survives_its_yaml(name: str) -> None:
    config = component_module(PACKAGE, name).Config()
    assert build(type(config), to_dict(config)) == config


@pytest.mark.parametrize("name", NAMES)
def test_a_prior_asked_in_chunks_gives_the_same_gradient(name: str, tmp_path: Path) -> None:
    """With a real network, view words and perp-neg: up to five rows for each of six latents."""
    torch.manual_seed(0)
    folders.save_toybox(tmp_path)
    cameras, texts = ring(2, (0.0, 120.0, 240.0)), ["a red box", "a blue ball"]
    rng = StepRng(seed=11, step=3, sample_index=torch.arange(2))
    gradients = []
    for chunk_size in (0, 4, 7):
        prior = unet.create(
            unet.Config(
                folder=str(tmp_path),
                chunk_size=chunk_size,
                use_view_words=True,
                use_perp_neg=True,
                bad_prompt="a green mug",
            )
        )
        module = component_module(PACKAGE, name)
        torch.manual_seed(1)  # the LoRA copy of vsd
        distiller = module.create(module.Config(), prior)
        latents = torch.randn(6, *prior.latent_shape, generator=torch.Generator().manual_seed(2))
        latents.requires_grad_()
        guidance = distiller(latents, prior.condition(texts, cameras), 3, rng)
        gradients.append(torch.autograd.grad(guidance.losses[name], latents)[0])
    for chunked in gradients[1:]:
        torch.testing.assert_close(chunked, gradients[0], atol=1e-5, rtol=1e-4)
