"""Backgrounds: distribution, independence of the batch, blending."""

from __future__ import annotations

import pytest
import torch

from scaledreamer.interfaces import BackgroundDistribution
from scaledreamer.rendering.backgrounds import blend
from scaledreamer.rng import StepRng


def test_colours_follow_the_distribution() -> None:
    distribution = BackgroundDistribution(white_probability=0.3, low=0.2, high=0.6)
    colours = distribution.sample(StepRng(0, 5, torch.arange(4000)))
    is_white = (colours == 1).all(dim=1)
    assert is_white.float().mean() == pytest.approx(0.3, abs=0.03)
    rest = colours[~is_white]
    assert rest.amin() >= 0.2
    assert rest.amax() <= 0.6
    assert rest.mean(dim=0).tolist() == pytest.approx([0.4] * 3, abs=0.01)


def test_a_sample_keeps_its_colour_in_any_batch() -> None:
    distribution = BackgroundDistribution()
    together = distribution.sample(StepRng(1, 2, torch.arange(6)))
    apart = [distribution.sample(StepRng(1, 2, torch.tensor([i]))) for i in range(6)]
    assert torch.equal(together, torch.cat(apart))


def test_blending_is_exact_at_both_ends() -> None:
    rgb, background = torch.rand(5, 3), torch.rand(5, 3)
    assert torch.equal(blend(torch.zeros(5, 3), torch.zeros(5), background), background)
    assert torch.equal(blend(rgb, torch.ones(5), background), rgb)


@pytest.mark.parametrize(
    ("values", "name"), [({"white_probability": 1.5}, "white_probability"), ({"low": 2.0}, "low")]
)
def test_wrong_values_are_named(values: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"^background.{name}: got"):
        BackgroundDistribution(**values)
