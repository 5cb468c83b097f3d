"""Guidance shared by the losses: perp-neg, rescaling, one call, and every parameterisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scaledreamer.config import Constant
from scaledreamer.distillation import _guidance, asd, csd, ism, nfsd, sds
from scaledreamer.interfaces import Condition, ConditionRows
from scaledreamer.priors._schedule import to_noise
from scaledreamer.priors.gaussian_mixture import Config, create
from tests.distillation.problems import TEXTS, Problem, RecordingPrior

WINDOW: dict[str, Any] = {"t_min": Constant(0.1), "t_max": Constant(0.8)}


THREE = (*TEXTS, "a green cone")


def three_texts() -> Problem:
    """Where a negative is not on the line from the null prediction to the positive one."""
    return Problem(prior=create(Config(texts=THREE)))


def with_negatives(condition: Condition, problem: Problem) -> Condition:
    """Two texts as negatives of every latent, with weights of their own."""
    count = len(condition.positive)
    rows = [
        problem.prior.condition([text], None).positive[torch.zeros(count, dtype=torch.long)]
        for text in (TEXTS[1], THREE[2])
    ]
    weights = -torch.rand(2, count, generator=torch.Generator().manual_seed(3))
    return Condition(condition.positive, condition.null, tuple(rows), weights)


def perp_neg_loop(
    problem: Problem, condition: Condition, x_t: Tensor, t: Tensor, scale: float
) -> Tensor:
    """Equation 8 of Armandpour et al., latent by latent in float64."""
    assert condition.negative_weights is not None
    out = []
    for row in range(len(x_t)):
        one = slice(row, row + 1)

        def eps(rows: ConditionRows, one: slice = one) -> Tensor:
            return problem.noise_by_autograd(x_t[one], t[one], rows[one])[0].flatten()

        null = eps(condition.null)
        main = eps(condition.positive) - null
        total = main.clone()
        for weights, negative in zip(condition.negative_weights, condition.negatives, strict=True):
            other = eps(negative) - null
            total += weights[row].double() * (other - (other @ main) / (main @ main) * main)
        out.append((null + scale * total).view(x_t.shape[1:]))
    return torch.stack(out)


def test_perp_neg_of_four_scenes_and_three_views_is_the_loop() -> None:
    problem = three_texts()  # four scenes of three views
    condition = with_negatives(problem.condition(), problem)
    x_t, t = problem.latents, torch.linspace(0.15, 0.9, len(problem.latents))
    config = _guidance.GuidedConfig(guidance_scale=3.0)
    guided, _ = _guidance.predict(problem.prior, config, condition, x_t, t)
    expected = perp_neg_loop(problem, condition, x_t, t, 3.0)
    torch.testing.assert_close(guided.noise, expected, rtol=1e-5, atol=1e-8)
    plain = Condition(condition.positive, condition.null)
    without, _ = _guidance.predict(problem.prior, config, plain, x_t, t)
    assert (guided.noise - without.noise).abs().max() > 0.01


def test_perp_neg_leaves_the_main_direction_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    main, negative = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64)
    weights = -torch.rand(2, 5, generator=generator, dtype=torch.float64)
    added = _guidance.perp_neg(main, [negative, main], weights)
    along = (added * main).flatten(1).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)
    opposite = (added * negative).flatten(1).sum(1)
    assert (opposite < 0).all(), "it must lead away from the negative"


def test_negatives_join_the_one_call() -> None:
    problem = three_texts()
    recorder = RecordingPrior(problem.prior)
    distiller = asd.create(asd.Config(**WINDOW), recorder)
    condition = with_negatives(problem.condition(), problem)
    distiller(problem.latents, condition, 0, problem.rng(0))
    ((x_t, t, rows),) = recorder.calls
    assert len(x_t) == len(t) == len(rows) == 5 * len(problem.latents)


def test_rescaling_brings_the_deviation_back() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(3, 3, 4, 4, generator=generator)
    noise = 4 * torch.randn(3, 3, 4, 4, generator=generator)
    full = _guidance.rescaled(noise, positive, 1.0)
    torch.testing.assert_close(full.flatten(1).std(1), positive.flatten(1).std(1))
    half = _guidance.rescaled(noise, positive, 0.5)
    torch.testing.assert_close(half, (noise + full) / 2)
    with pytest.raises(ValueError, match=r"guidance_rescale: got 2"):
        sds.Config(guidance_rescale=2)


class Reparameterised:
    """The exact score behind a network of another prediction, as a prior's file unwraps it."""

    def __init__(self, inner: Any, kind: str) -> None:
        self.inner, self.kind, self.schedule = inner, kind, inner.schedule
        self.condition, self.encode, self.decode = inner.condition, inner.encode, inner.decode

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha.double().view(-1, 1, 1, 1), sigma.double().view(-1, 1, 1, 1)

    def network(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        eps = self.inner.predict_noise(x_t, t, rows)
        alpha, sigma = self._alpha_sigma(t)
        clean = (x_t - sigma * eps) / alpha
        return {"epsilon": eps, "v_prediction": alpha * eps - sigma * clean, "flow": eps - clean}[
            self.kind
        ]

    def predict_noise(self, x_t: Tensor, t: Tensor, rows: ConditionRows) -> Tensor:
        alpha, sigma = self._alpha_sigma(t)
        return to_noise(self.kind, self.network(x_t, t, rows), x_t, alpha, sigma)  # type: ignore


@pytest.mark.parametrize("module", [asd, csd, sds, nfsd, ism])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_a_gradient_does_not_depend_on_the_parameterisation(module: Any, kind: str) -> None:
    problem = Problem(prior=create(Config(use_flow=kind == "flow")))

    def gradient(prior: Any) -> Tensor:
        latents = problem.latents.clone().requires_grad_()
        distiller = module.create(module.Config(**WINDOW), prior)
        guidance = distiller(latents, problem.condition(), 5, problem.rng(5))
        (found,) = torch.autograd.grad(sum(guidance.losses.values()), latents)  # type: ignore
        return found

    exact = gradient(problem.prior)
    found = gradient(Reparameterised(problem.prior, kind))
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_ism_is_the_difference_along_one_path() -> None:
    problem = Problem()
    recorder = RecordingPrior(problem.prior)
    config = ism.Config(guidance_scale=3.0, interval=0.05, inversion_step=0.25, **WINDOW)
    latents = problem.latents.clone().requires_grad_()
    guidance = ism.create(config, recorder)(latents, problem.condition(), 2, problem.rng(2))
    guidance.losses["ism"].backward()
    condition = problem.condition()
    assert len(recorder.calls) == 1 + 3 + 1  # at the render, three steps of 0.25, and at t
    rng = problem.rng(2)
    t = 0.1 + 0.7 * rng.uniform("ism/t", problem.num_views).flatten()
    s = (t - 0.05).clamp(min=1e-3)
    x, now = problem.latents, torch.full_like(s, 1e-3)
    for number in (1, 2, 3):
        eps = problem.noise_by_autograd(x, now, condition.null)
        later = 1e-3 + (s - 1e-3) * number / 3
        clean = (x - problem.sigma(now) * eps) / problem.alpha(now)
        x, now = problem.alpha(later) * clean + problem.sigma(later) * eps, later
    eps_s = problem.noise_by_autograd(x, s, condition.null)
    clean = (x - problem.sigma(s) * eps_s) / problem.alpha(s)
    x_t = problem.alpha(t) * clean + problem.sigma(t) * eps_s
    positive, null = (
        problem.noise_by_autograd(x_t, t, rows) for rows in (condition.positive, condition.null)
    )
    expected = problem.sigma(t) ** 2 * (null + 3.0 * (positive - null) - eps_s) / len(t)
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, expected, rtol=1e-4, atol=1e-8)


def test_nfsd_corrects_the_domain_by_time() -> None:
    problem = three_texts()
    count = len(problem.latents)
    rows = torch.zeros(count, dtype=torch.long)
    bad = problem.prior.condition([THREE[2]], None).positive[rows]
    condition = replace(problem.condition(), bad=bad)
    for t_value, is_clean in ((0.1, True), (0.5, False)):
        window = {"t_min": Constant(t_value), "t_max": Constant(t_value)}
        config = nfsd.Config(guidance_scale=7.5, weighting="uniform", **window)  # type: ignore
        recorder = RecordingPrior(problem.prior)
        latents = problem.latents.clone().requires_grad_()
        nfsd.create(config, recorder)(latents, condition, 0, problem.rng(0)).losses[
            "nfsd"
        ].backward()
        ((x_t, t, _),) = recorder.calls
        x_t, t = x_t[: len(latents)], t[: len(latents)]
        eps = [
            problem.noise_by_autograd(x_t, t, rows)
            for rows in (condition.positive, condition.null, bad)
        ]
        away = eps[1] - eps[2]
        expected = 7.5 * (eps[0] - eps[1]) + (eps[1] if is_clean else away)
        assert latents.grad is not None
        torch.testing.assert_close(latents.grad * len(t), expected, rtol=1e-5, atol=1e-8)
