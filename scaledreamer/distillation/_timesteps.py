"""Diffusion times and noise of a step, drawn per row and keyed by scene."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from scaledreamer.config import Constant, Linear, Schedule
from scaledreamer.rng import StepRng

Per = Literal["scene", "view"]
"""Whether the views of a scene share a draw."""


def check_window(t_min: Schedule, t_max: Schedule, where: str) -> None:
    """Raises: ValueError unless 0 < t_min <= t_max <= 1 at every step."""
    for step in sorted({*_breakpoints(t_min), *_breakpoints(t_max)}):
        low, high = t_min(step), t_max(step)
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"{where}: at step {step} got t_min {low:g} and t_max {high:g}; "
                "need 0 < t_min <= t_max <= 1"
            )


def _breakpoints(schedule: Schedule) -> tuple[int, ...]:
    """Between these steps a schedule is linear, so the window need not be looked at elsewhere."""
    match schedule:
        case Constant():
            return (0,)
        case Linear(from_step=first, to_step=last):
            return (0, first, last)


def num_views(num_rows: int, rng: StepRng) -> int:
    views, rest = divmod(num_rows, rng.num_samples)
    assert rest == 0, f"{num_rows} latents do not divide among {rng.num_samples} scenes"
    return views


def uniform_rows(rng: StepRng, stream: str, num_rows: int, per: Per) -> Float[Tensor, "N"]:
    """U[0, 1) for each of the scene-major rows."""
    views = num_views(num_rows, rng)
    if per == "scene":
        return rng.uniform(stream).repeat_interleave(views)
    return rng.uniform(stream, views).flatten()


def normal_like(rng: StepRng, stream: str, latents: Tensor) -> Tensor:
    """Standard normal noise for scene-major latents, float32 or wider."""
    views = num_views(len(latents), rng)
    return rng.normal(stream, views, *latents.shape[1:]).view_as(latents).to(latents)
