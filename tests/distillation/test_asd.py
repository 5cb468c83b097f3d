"""ASD against its formula, evaluated by hand on the exact-score prior."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scaledreamer.config import Constant, Linear
from scaledreamer.distillation import asd
from scaledreamer.interfaces import Guidance
from tests.distillation.problems import Problem, RecordingPrior

STEP = 40
WINDOW: dict[str, Any] = {
    "t_min": Linear(start=0.5, end=0.02, from_step=0, to_step=100),
    "t_max": Linear(start=0.98, end=0.5, from_step=0, to_step=100),
}


def _run(problem: Problem, prior: Any = None, step: int = STEP, **options: Any) -> Guidance:
    distiller = asd.create(asd.Config(**{**WINDOW, **options}), prior or problem.prior)
    problem.latents.requires_grad_().grad = None
    guidance = distiller(problem.latents, problem.condition(), step, problem.rng(step))
    guidance.losses["asd"].backward()
    return guidance


def _grad(problem: Problem) -> Tensor:
    assert problem.latents.grad is not None
    return problem.latents.grad


def _times(problem: Problem, per: str, stream: str) -> Tensor:
    rng = problem.rng(STEP)
    if per == "scene":
        return rng.uniform(stream).repeat_interleave(problem.num_views)
    return rng.uniform(stream, problem.num_views).flatten()


@pytest.mark.parametrize(
    ("per", "weighting", "is_shift_random", "scale"),
    [
        ("view", "sigma_squared", True, 7.5),
        ("scene", "sigma_squared", False, 2.0),
        ("scene", "uniform", True, 1.0),
    ],
)
def test_gradient_is_the_formula(
    per: str, weighting: str, is_shift_random: bool, scale: float
) -> None:
    problem = Problem()
    guidance = _run(
        problem,
        t_per=per,
        weighting=weighting,
        is_shift_random=is_shift_random,
        guidance_scale=scale,
        eta=0.3,
    )
    condition, x = problem.condition(), problem.latents.detach()
    t_min, t_max = 0.5 - 0.4 * 0.48, 0.98 - 0.4 * 0.48
    t = t_min + (t_max - t_min) * _times(problem, per, "asd/t")
    u = _times(problem, per, "asd/shift") if is_shift_random else torch.ones_like(t)
    later = (t + 0.3 * (t - t_min) * u).clamp(max=0.999)
    noise = problem.rng(STEP).normal("asd/noise", problem.num_views, 3, 4, 4).view_as(x).double()

    def predict(at: Tensor, rows: Any) -> Tensor:
        return problem.noise_by_autograd(
            problem.alpha(at) * x + problem.sigma(at) * noise, at, rows
        )

    positive, null = predict(t, condition.positive), predict(t, condition.null)
    guided = null + scale * (positive - null)
    weight = problem.sigma(t) ** 2 if weighting == "sigma_squared" else 1.0
    expected = weight * (guided - predict(later, condition.positive))
    torch.testing.assert_close(_grad(problem), expected / len(x), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(
        guidance.losses["asd"], 0.5 * expected.square().flatten(1).sum(dim=1).mean()
    )
    torch.testing.assert_close(guidance.stats["shift"], (later - t).mean())


def test_without_shift_it_is_the_scaled_classifier_direction() -> None:
    problem = Problem()
    recorder = RecordingPrior(problem.prior)
    _run(problem, recorder, eta=0.0, guidance_scale=7.5)
    ((x_t, t, _),) = recorder.calls
    x_t, t = x_t.chunk(3)[0], t.chunk(3)[0]
    condition = problem.condition()
    positive = problem.noise_by_autograd(x_t, t, condition.positive)
    null = problem.noise_by_autograd(x_t, t, condition.null)
    expected = problem.sigma(t) ** 2 * (7.5 - 1) * (positive - null)
    torch.testing.assert_close(_grad(problem) * len(x_t), expected, rtol=1e-5, atol=1e-9)


def test_one_call_with_three_rows_a_latent() -> None:
    problem = Problem()
    recorder = RecordingPrior(problem.prior)
    _run(problem, recorder)
    ((x_t, t, rows),) = recorder.calls
    count = len(problem.latents)
    assert len(x_t) == len(t) == len(rows) == 3 * count
    assert torch.equal(x_t[:count], x_t[count : 2 * count])
    condition = problem.condition()
    for part, expected in enumerate((condition.positive, condition.null, condition.positive)):
        tokens = rows.text.tokens[part * count : (part + 1) * count]
        assert torch.equal(tokens, expected.text.tokens)
    assert not x_t.requires_grad


@pytest.mark.parametrize("step", [0, 50, 100, 1000])
def test_times_stay_in_the_window_of_the_step(step: int) -> None:
    problem = Problem(num_scenes=32)
    recorder = RecordingPrior(problem.prior)
    _run(problem, recorder, step=step, eta=0.1)
    t, same, later = recorder.calls[0][1].chunk(3)
    low, high = WINDOW["t_min"](step), WINDOW["t_max"](step)
    assert torch.equal(t, same)
    assert low <= t.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < t.max() <= high
    assert (later >= t).all()
    assert (later - t <= 0.1 * (t - low) + 1e-6).all()
    assert ((later - t) / (t - low)).std() > 0.02
    assert len(t.unique()) > 90


def test_views_of_a_scene_can_share_a_time() -> None:
    problem = Problem()
    recorder = RecordingPrior(problem.prior)
    _run(problem, recorder, t_per="scene")
    for times in recorder.calls[0][1].chunk(3):
        by_scene = times.view(problem.num_scenes, problem.num_views)
        assert (by_scene == by_scene[:, :1]).all()
        assert len(by_scene[:, 0].unique()) == problem.num_scenes


def test_shifted_times_stop_before_the_end() -> None:
    problem = Problem()
    recorder = RecordingPrior(problem.prior)
    options: dict[str, Any] = {"t_min": Constant(0.5), "t_max": Constant(0.98)}
    _run(problem, recorder, eta=1.0, is_shift_random=False, **options)
    _, _, later = recorder.calls[0][1].chunk(3)
    assert later.max() == pytest.approx(0.999)
    assert later.min() < 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_min": Constant(0.0)}, "got t_min 0 and t_max 0.98"),
        ({"t_max": Constant(1.2)}, "t_max 1.2"),
        ({"t_max": Linear(start=0.98, end=0.01, from_step=0, to_step=9)}, "at step 9 "),
        ({"eta": 1.5}, "distillation.eta: got 1.5"),
    ],
)
def test_wrong_settings_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asd.Config(**options)


def test_non_finite_values_are_named() -> None:
    problem = Problem()
    problem.latents[3, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="asd: latents"):
        _run(problem)
    problem = Problem()
    problem.prior._means.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="asd: gradient"):
        _run(problem)


def test_gradient_does_not_lose_digits_to_large_latents() -> None:
    """g is small beside the latents; the loss must not subtract one from the other."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        problem = Problem()
        problem.latents = problem.latents.to(dtype)
        _run(problem, eta=0.0, guidance_scale=1.0 + 1e-3)
        gradients.append(_grad(problem).double())
    scale = gradients[1].abs().max()
    assert (gradients[0] - gradients[1]).abs().max() < 1e-3 * scale


def test_every_stream_of_a_step_is_new() -> None:
    first, second, other_step = Problem(), Problem(), Problem()
    grads = []
    for problem, step in ((first, STEP), (second, STEP), (other_step, STEP + 1)):
        _run(problem, step=step)
        grads.append(_grad(problem))
    assert torch.equal(grads[0], grads[1])
    assert not torch.allclose(grads[0], grads[2])
