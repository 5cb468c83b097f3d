"""What every prior promises; a new module in the folder is tested by being there.

A prior whose default configuration needs files gets a small stand-in in `EXAMPLES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaledreamer.cameras import ring
from scaledreamer.config import build, component_module, component_names, to_dict
from scaledreamer.interfaces import ConditionRows
from tests.priors import folders

PACKAGE = "scaledreamer.priors"
TEXTS = ["a red box", "a blue ball"]


def _saved(save: Callable[..., Any], *arguments: Any) -> Callable[[Path], dict[str, Any]]:
    def values(root: Path) -> dict[str, Any]:
        save(root, *arguments)
        return {"folder": str(root)}

    return values


EXAMPLES: dict[str, list[Callable[[Path], dict[str, Any]]]] = {
    "unet": [
        _saved(folders.save_toybox),
        _saved(folders.save_stable_diffusion, "v_prediction"),
        _saved(folders.save_sdxl),
        _saved(folders.save_deepfloyd),
    ],
    "mvdream": [_saved(folders.save_mvdream, 3)],
    "sd3": [_saved(folders.save_sd3)],
    "flux": [_saved(folders.save_flux)],
    "pixart": [_saved(folders.save_pixart)],
}
CASES = [
    pytest.param(name, values, id=f"{name}-{index}")
    for name in component_names(PACKAGE)
    for index, values in enumerate(EXAMPLES.get(name, [lambda _: {}]))
]


def _create(name: str, values: Callable[[Path], dict[str, Any]], root: Path) -> Any:
    module = component_module(PACKAGE, name)
    return module.create(build(module.Config, values(root)), "cpu")


@pytest.mark.parametrize(("name", "values"), CASES)
def test_prior_keeps_the_contract(
    name: str, values: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    prior = _create(name, values, tmp_path)
    images = torch.rand(6, 3, 20, 20, requires_grad=True)
    latents = prior.encode(images)
    assert len(latents) == 6
    latents.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0

    latents = latents.detach()
    decoded = prior.decode(latents)
    assert decoded.shape[:2] == (6, 3)
    assert decoded.min() >= 0
    assert decoded.max() <= 1

    condition = prior.condition(TEXTS, ring(2, (0.0, 120.0, 240.0)))
    assert len(condition.positive) == len(condition.null) == 6
    assert len(prior.condition(TEXTS, None).positive) == 2 * getattr(prior, "num_views", 1)

    t = torch.tensor([0.001, 0.1, 0.3, 0.5, 0.7, 1.0])
    x_t = torch.randn_like(latents).requires_grad_()
    noise = prior.predict_noise(x_t, t, condition.positive)
    assert noise.shape == x_t.shape
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert not noise.requires_grad
    null = prior.predict_noise(x_t, t, condition.null)
    assert not torch.allclose(noise, null, atol=1e-7)


@pytest.mark.parametrize(("name", "values"), CASES)
def test_rows_are_independent(
    name: str, values: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    """Any rows, or groups of views that the prior joins, equal the same in calls of their own."""
    prior = _create(name, values, tmp_path)
    views = getattr(prior, "num_views", 1)
    condition = prior.condition(TEXTS, ring(2, tuple(360.0 * i / 6 for i in range(2 * views))))
    rows = ConditionRows.cat([condition.positive, condition.null])
    order = (views * torch.tensor([6, 1, 3, 4])[:, None] + torch.arange(views)).flatten()
    x_t = torch.randn(4 * views, *prior.latent_shape)
    t = torch.tensor([0.2, 0.9, 0.4, 0.6]).repeat_interleave(views)
    together = prior.predict_noise(x_t, t, rows[order])
    apart = [
        prior.predict_noise(x_t[group], t[group], rows[order[group]])
        for group in (slice(i * views, (i + 1) * views) for i in range(4))
    ]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "values"), CASES)
def test_schedule_goes_from_data_to_noise(
    name: str, values: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    schedule = _create(name, values, tmp_path).schedule
    t = torch.linspace(0.001, 1, 200)
    assert (schedule.alpha(t).diff() <= 0).all()
    assert (schedule.sigma(t).diff() >= 0).all()
    assert schedule.alpha(t[:1]) > 0.98
    assert schedule.sigma(t[-1:]) > 0.98


@pytest.mark.parametrize("name", component_names(PACKAGE))
def test_config_survives_its_yaml(name: str) -> None:
    config = component_module(PACKAGE, name).Config()
    assert build(type(config), to_dict(config)) == config
