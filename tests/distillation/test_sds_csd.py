"""SDS and CSD against their formulas on the exact-score prior."""

from __future__ import annotations

from typing import Any

import torch

from scaledreamer.config import Constant
from scaledreamer.distillation import csd, sds
from tests.distillation.problems import Problem, RecordingPrior

WINDOW: dict[str, Any] = {"t_min": Constant(0.1), "t_max": Constant(0.8)}


def test_sds_compares_with_the_true_noise() -> None:
    problem = Problem()
    recorder = RecordingPrior(problem.prior)
    problem.latents.requires_grad_()
    distiller = sds.create(sds.Config(guidance_scale=3.0, **WINDOW), recorder)
    rng = problem.rng(2)
    distiller(problem.latents, problem.condition(), 2, rng).losses["sds"].backward()
    ((x_t, t, _),) = recorder.calls
    assert len(x_t) == 2 * len(problem.latents)
    x_t, t, condition = x_t.chunk(2)[0], t.chunk(2)[0], problem.condition()
    noise = (x_t - problem.alpha(t) * problem.latents.detach()) / problem.sigma(t)
    positive = problem.noise_by_autograd(x_t, t, condition.positive)
    null = problem.noise_by_autograd(x_t, t, condition.null)
    expected = problem.sigma(t) ** 2 * (null + 3.0 * (positive - null) - noise) / len(x_t)
    torch.testing.assert_close(problem.latents.grad, expected, rtol=1e-5, atol=1e-9)


def test_csd_is_the_classifier_direction_alone() -> None:
    problem = Problem()
    recorder = RecordingPrior(problem.prior)
    problem.latents.requires_grad_()
    distiller = csd.create(csd.Config(weighting="uniform", **WINDOW), recorder)
    rng = problem.rng(2)
    distiller(problem.latents, problem.condition(), 2, rng).losses["csd"].backward()
    ((x_t, t, _),) = recorder.calls
    assert len(x_t) == 2 * len(problem.latents)
    x_t, t, condition = x_t.chunk(2)[0], t.chunk(2)[0], problem.condition()
    positive = problem.noise_by_autograd(x_t, t, condition.positive)
    expected = (positive - problem.noise_by_autograd(x_t, t, condition.null)) / len(x_t)
    torch.testing.assert_close(problem.latents.grad, expected, rtol=1e-5, atol=1e-9)
