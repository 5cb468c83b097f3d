"""Schedules against diffusers, conversions against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from scaledreamer.priors import _schedule
from scaledreamer.priors._schedule import FlowSchedule, Prediction, per_row, to_clean, to_noise


@pytest.mark.parametrize("beta_schedule", ["squaredcos_cap_v2", "scaled_linear", "linear"])
def test_vp_noises_like_diffusers(beta_schedule: Any) -> None:
    scheduler: Any = DDPMScheduler(beta_schedule=beta_schedule, prediction_type="v_prediction")
    schedule, prediction = _schedule.from_scheduler_config(dict(scheduler.config))
    assert prediction == "v_prediction"
    steps = torch.tensor([0, 1, 500, 998, 999])
    t = (steps + 1) / 1000
    clean, noise = torch.randn(2, 5, 3, 4, 4)
    alpha, sigma = per_row(schedule.alpha(t), clean), per_row(schedule.sigma(t), clean)
    assert torch.equal(schedule.timestep(t), steps)
    expected = scheduler.add_noise(clean, noise, steps)
    torch.testing.assert_close(alpha * clean + sigma * noise, expected, atol=1e-5, rtol=1e-5)
    velocity = _schedule.to_output("v_prediction", clean, noise, alpha, sigma)
    expected = scheduler.get_velocity(clean, noise, steps)
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)


def test_fractions_round_to_steps_and_stay_inside() -> None:
    schedule = _schedule.cosine_schedule(1000)
    t = torch.tensor([1e-6, 0.0014, 0.0016, 0.5, 1.0])
    assert schedule.timestep(t).tolist() == [0, 0, 1, 499, 999]


def test_flow_noises_like_diffusers() -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    config = {**scheduler.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}
    schedule, prediction = _schedule.from_scheduler_config(config)
    assert isinstance(schedule, FlowSchedule)
    assert prediction == "flow"
    t = scheduler.sigmas[[10, 500, 900]]
    clean, noise = torch.randn(2, 3, 1, 2, 2)
    noised = per_row(schedule.alpha(t), clean) * clean + per_row(schedule.sigma(t), clean) * noise
    expected = scheduler.scale_noise(clean, scheduler.timesteps[[10, 500, 900]], noise)
    torch.testing.assert_close(noised, expected)
    torch.testing.assert_close(schedule.timestep(t), scheduler.timesteps[[10, 500, 900]])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_vp_conversions_invert(kind: Prediction) -> None:
    _check_round_trip(kind, _schedule.cosine_schedule(), torch.tensor([0.02, 0.3, 0.6, 0.95]))


def test_flow_conversions_invert() -> None:
    _check_round_trip("flow", FlowSchedule(), torch.tensor([0.02, 0.3, 0.6, 1.0]))


def _check_round_trip(
    kind: Prediction, schedule: _schedule.VPSchedule | FlowSchedule, t: torch.Tensor
) -> None:
    clean, noise = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    # squares of float32 values sum to 1 to float32 precision only
    alpha = per_row(schedule.alpha(t), clean).double()
    sigma = (1 - alpha**2).sqrt() if kind != "flow" else 1 - alpha
    x_t = alpha * clean + sigma * noise
    output = _schedule.to_output(kind, clean, noise, alpha, sigma)
    torch.testing.assert_close(to_noise(kind, output, x_t, alpha, sigma), noise)
    torch.testing.assert_close(to_clean(kind, output, x_t, alpha, sigma), clean)


def test_unknown_prediction_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 'noise'; known are epsilon"):
        _schedule.from_scheduler_config({"prediction_type": "noise"})


SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FAMILIES = {
    "Stable Diffusion 1": (PNDMScheduler, {**SD, "steps_offset": 1, "skip_prk_steps": True}),
    "Stable Diffusion 2": (DDIMScheduler, {**SD, "prediction_type": "v_prediction"}),
    "SDXL": (EulerDiscreteScheduler, {**SD, "steps_offset": 1}),
    "DeepFloyd IF": (
        DDPMScheduler,
        {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"},
    ),
    "PixArt": (DPMSolverMultistepScheduler, {"beta_start": 0.0001, "beta_end": 0.02}),
    "zero terminal signal": (DDIMScheduler, {**SD, "rescale_betas_zero_snr": True}),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_s_scheduler_noises_as_we_do(family: str) -> None:
    scheduler_class, options = FAMILIES[family]
    scheduler: Any = scheduler_class(**options)
    schedule, _ = _schedule.from_scheduler_config(dict(scheduler.config))
    steps = torch.tensor([1, 400, 980])
    clean, noise = torch.randn(2, 3, 2, 4, 4)
    t = (steps + 1) / 1000
    assert torch.equal(schedule.timestep(t), steps)
    alpha, sigma = per_row(schedule.alpha(t), clean), per_row(schedule.sigma(t), clean)
    if scheduler_class is EulerDiscreteScheduler:  # its latents are ours over alpha
        scheduler.set_timesteps(1000)
        expected = alpha * scheduler.add_noise(clean, noise, steps.float())
    else:
        scheduler.set_timesteps(1000)
        expected = scheduler.add_noise(clean, noise, steps)
    torch.testing.assert_close(alpha * clean + sigma * noise, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_step_to_an_earlier_time_is_diffusers(kind: Any) -> None:
    scheduler: Any = DDIMScheduler(
        **SD, prediction_type=kind, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(10)
    schedule, _ = _schedule.from_scheduler_config(dict(scheduler.config))
    x_t, output = torch.randn(2, 1, 3, 4, 4)
    expected = scheduler.step(output, torch.tensor(599), x_t).prev_sample
    now, then = ((schedule.alpha(t), schedule.sigma(t)) for t in torch.tensor([[0.6], [0.5]]))
    found = then[0] * to_clean(kind, output, x_t, *now) + then[1] * to_noise(
        kind, output, x_t, *now
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_step_along_a_flow_is_diffusers() -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    x_t, output = torch.randn(2, 1, 3, 4, 4)
    expected = scheduler.step(output, scheduler.timesteps[0], x_t).prev_sample
    t, then = scheduler.sigmas[:1], scheduler.sigmas[1:2]
    clean = to_clean("flow", output, x_t, 1 - t, t)
    noise = to_noise("flow", output, x_t, 1 - t, t)
    torch.testing.assert_close((1 - then) * clean + then * noise, expected, atol=1e-5, rtol=1e-5)
