"""VSD against its formula on the exact-score prior, and who receives gradient from which loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scaledreamer.config import Constant
from scaledreamer.distillation import vsd
from scaledreamer.interfaces import Condition, ConditionRows, Guidance
from scaledreamer.priors.gaussian_mixture import Config, create
from tests.distillation.problems import TEXTS, Problem, RecordingPrior

STEP = 5
WINDOW: dict[str, Any] = {"t_min": Constant(0.1), "t_max": Constant(0.8)}


def _distiller(problem: Problem, is_trained: bool = True, **options: Any) -> vsd.VSD:
    """With additions of known values, or none yet."""
    distiller = vsd.create(vsd.Config(**{**WINDOW, **options}), problem.prior)
    if is_trained:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in distiller.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return distiller


def _call(distiller: vsd.VSD, problem: Problem) -> Guidance:
    problem.latents.requires_grad_().grad = None
    return distiller(problem.latents, problem.condition(), STEP, problem.rng(STEP))


def _rows(condition: Condition) -> ConditionRows:
    return replace(condition.positive, cameras=condition.cameras)


def _eps_lora(
    distiller: vsd.VSD, problem: Problem, x_t: Tensor, t: Tensor, cameras: Tensor
) -> Tensor:
    """From the log density and the weights in the state, in float64."""
    state = {name.split("trained.")[1]: w.double() for name, w in distiller.state_dict().items()}
    positive = problem.condition().positive
    levels = [problem.alpha(t).flatten(1), problem.sigma(t).flatten(1)]
    beside = [*levels, positive.text.tokens[:, 0].double(), cameras.double()]
    hidden = torch.cat([x_t.flatten(1), *beside], dim=1) @ state["first.weight"].T
    added = F.silu(hidden + state["first.bias"]) @ state["last.weight"].T + state["last.bias"]
    return problem.noise_by_autograd(x_t, t, positive) + added.view_as(x_t)


def _noised(problem: Problem, t: Tensor, stream: str) -> tuple[Tensor, Tensor]:
    x = problem.latents.detach()
    noise = problem.rng(STEP).normal(stream, problem.num_views, 3, 4, 4).view_as(x).double()
    return problem.alpha(t) * x + problem.sigma(t) * noise, noise


@pytest.mark.parametrize("use_flow", [False, True])
@pytest.mark.parametrize(("per", "weighting"), [("view", "sigma_squared"), ("scene", "uniform")])
def test_gradient_is_the_formula(per: str, weighting: str, use_flow: bool) -> None:
    problem = Problem(prior=create(Config(use_flow=use_flow)))
    distiller = _distiller(problem, t_per=per, weighting=weighting, guidance_scale=3.0)
    guidance = _call(distiller, problem)
    guidance.losses["vsd"].backward()
    u = problem.rng(STEP).uniform("vsd/t", problem.num_views if per == "view" else 1)
    t = 0.1 + 0.7 * u.expand(-1, problem.num_views).flatten()
    x_t, _ = _noised(problem, t, "vsd/noise")
    condition = problem.condition()
    assert condition.cameras is not None
    positive, null = (
        problem.noise_by_autograd(x_t, t, rows) for rows in (condition.positive, condition.null)
    )
    learned = _eps_lora(distiller, problem, x_t, t, condition.cameras)
    assert (learned - positive).abs().max() > 0.1
    weight = problem.sigma(t) ** 2 if weighting == "sigma_squared" else 1.0
    expected = weight * (null + 3.0 * (positive - null) - learned) / len(t)
    assert problem.latents.grad is not None
    error = (problem.latents.grad - expected).abs().max() / expected.abs().max()
    assert error < 1e-5
    torch.testing.assert_close(
        guidance.losses["vsd"].double(),
        0.5 * len(t) ** 2 * expected.square().flatten(1).sum(dim=1).mean(),
        rtol=1e-5,
        atol=0.0,
    )


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_lora_loss_is_the_denoising_error_with_cameras_dropped(dropout: float) -> None:
    problem = Problem()
    distiller = _distiller(problem, camera_dropout=dropout)
    found = _call(distiller, problem).losses["lora"]
    rng, views = problem.rng(STEP), problem.num_views
    t = 1 - rng.uniform("vsd/lora_t", views).flatten()
    x_t, noise = _noised(problem, t, "vsd/lora_noise")
    is_kept = (rng.uniform("vsd/lora_camera", views).flatten() >= dropout)[:, None]
    assert is_kept.float().mean() == 1 - dropout or 0 < dropout < 1
    cameras = problem.condition().cameras
    assert cameras is not None
    error = _eps_lora(distiller, problem, x_t, t, cameras * is_kept) - noise
    torch.testing.assert_close(found, error.square().mean(), rtol=1e-5, atol=0.0)


def test_before_training_it_is_the_scaled_classifier_direction() -> None:
    problem = Problem()
    distiller = _distiller(problem, is_trained=False, guidance_scale=7.5, weighting="uniform")
    guidance = _call(distiller, problem)
    guidance.losses["vsd"].backward()
    t = 0.1 + 0.7 * problem.rng(STEP).uniform("vsd/t", problem.num_views).flatten()
    x_t, _ = _noised(problem, t, "vsd/noise")
    condition = problem.condition()
    positive = problem.noise_by_autograd(x_t, t, condition.positive)
    expected = 6.5 * (positive - problem.noise_by_autograd(x_t, t, condition.null)) / len(t)
    torch.testing.assert_close(problem.latents.grad, expected, rtol=1e-5, atol=1e-9)
    assert guidance.stats["variational_rms"] == 0


def test_each_loss_sends_gradient_where_it_belongs() -> None:
    problem = Problem()
    distiller = _distiller(problem)
    guidance = _call(distiller, problem)
    parameters = list(distiller.parameters())
    (to_latents,) = torch.autograd.grad(guidance.losses["vsd"], problem.latents, retain_graph=True)
    assert (to_latents.flatten(1).abs().sum(dim=1) > 0).all()
    with pytest.raises(RuntimeError, match=r"does not require grad|not have been used"):
        torch.autograd.grad(guidance.losses["vsd"], parameters, retain_graph=True)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(guidance.losses["lora"], problem.latents, retain_graph=True)
    apart = torch.autograd.grad(guidance.losses["lora"], parameters, retain_graph=True)
    assert all(one.abs().sum() > 0 for one in apart)

    torch.stack([*guidance.losses.values()]).sum().backward()
    assert torch.equal(problem.latents.grad, to_latents)  # type: ignore[arg-type]
    for parameter, gradient in zip(parameters, apart, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_the_joint_call_equals_separate_calls() -> None:
    problem = Problem()
    distiller = _distiller(problem)
    joint = _call(distiller, problem).losses
    rows = _rows(problem.condition())
    alone = distiller.lora_loss(problem.latents, rows, problem.rng(STEP))
    assert torch.equal(joint["lora"], alone)
    again = _call(distiller, problem).losses
    assert torch.equal(joint["vsd"], again["vsd"])


def test_one_call_of_the_prior_and_the_state_is_the_additions_alone() -> None:
    problem = Problem()
    distiller = _distiller(problem)
    recorder = RecordingPrior(problem.prior)
    distiller._prior = recorder  # type: ignore[assignment]
    _call(distiller, problem)
    ((x_t, _, _),) = recorder.calls
    assert len(x_t) == 2 * len(problem.latents)
    named = dict(distiller.named_parameters())
    assert distiller.state_dict().keys() == named.keys()
    assert all(name.startswith("lora.trained.") for name in named)
    (group,) = distiller.parameter_groups()
    assert group["lr"] == 1e-4
    assert list(map(id, group["params"])) == list(map(id, named.values()))


def test_the_copy_learns_the_score_of_the_renders() -> None:
    """Renders are N(centre, 0.2^2) whatever the text; their exact score is known."""
    problem = Problem(num_scenes=16)
    distiller = _distiller(problem, is_trained=False, camera_dropout=0.0, rank=8)
    condition, count = problem.condition(), len(problem.latents)
    generator = torch.Generator().manual_seed(4)
    centre = torch.rand(3, 4, 4, generator=generator, dtype=torch.float64) - 0.5

    def renders() -> Tensor:
        noise = torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)
        return centre + 0.2 * noise

    t = torch.linspace(0.1, 0.9, count)
    alpha, sigma = problem.alpha(t), problem.sigma(t)
    x_t = alpha * renders() + sigma * torch.randn(count, 3, 4, 4, generator=generator).double()
    exact = sigma * (x_t - alpha * centre) / (alpha**2 * 0.2**2 + sigma**2)

    def error() -> float:
        found = distiller.lora.predict_noise(x_t, t, _rows(condition))
        return float((found - exact).square().mean())

    start = error()
    optimizer = torch.optim.Adam(distiller.parameters(), lr=3e-3)
    losses: list[float] = []
    for step in range(300):
        loss = distiller.lora_loss(renders(), _rows(condition), problem.rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert error() < 0.5 * start


def test_without_cameras_there_are_none_to_drop() -> None:
    problem = Problem()
    condition = problem.prior.condition([TEXTS[0]] * 4, None)
    latents = problem.latents[:4].clone().requires_grad_()
    losses = _distiller(problem)(latents, condition, STEP, problem.rng(STEP)).losses
    assert losses["lora"].isfinite()
    assert losses["vsd"].isfinite()


def test_a_prior_without_lora_and_wrong_settings_are_errors() -> None:
    with pytest.raises(ValueError, match=r"prior\.name: RecordingPrior has no lora_copy"):
        vsd.create(vsd.Config(), RecordingPrior(Problem().prior))
    cases = [
        ({"rank": 0}, r"distillation\.rank: got 0"),
        ({"lora_lr": 0.0}, r"distillation\.lora_lr: got 0"),
        ({"camera_dropout": 1.5}, r"camera_dropout: got 1\.5"),
        ({"guidance_rescale": 2.0}, "guidance_rescale"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            vsd.Config(**options)  # type: ignore[arg-type]


def test_a_non_finite_copy_is_named() -> None:
    problem = Problem()
    distiller = _distiller(problem)
    next(distiller.parameters()).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="vsd: gradient"):
        _call(distiller, problem)
