"""Solid backgrounds: their distribution, and what they add to a picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scaledreamer.rng import StepRng


@dataclass(frozen=True, kw_only=True)
class BackgroundDistribution:
    """One solid colour per scene and step; a prior's card stores the one it was trained with."""

    white_probability: float = 0.5
    """Chance of pure white."""
    low: float = 0.0
    """Smallest channel of the other colours, which are uniform in [low, high]^3."""
    high: float = 1.0
    """Largest channel of the other colours."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.white_probability <= 1.0:
            raise ValueError(
                f"background.white_probability: got {self.white_probability}; must lie in [0, 1]"
            )
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(
                f"background.low: got [{self.low}, {self.high}]; must be a range within [0, 1]"
            )

    def sample(self, rng: StepRng) -> Float[Tensor, "B 3"]:
        """sRGB colours for the samples of `rng`, on its device."""
        colours = self.low + (self.high - self.low) * rng.uniform("background/colour", 3)
        is_white = rng.uniform("background/white", 1) < self.white_probability
        return torch.where(is_white, 1.0, colours)


def blend(
    rgb: Float[Tensor, "*n 3"], opacity: Float[Tensor, "*n"], background: Float[Tensor, "*n 3"]
) -> Float[Tensor, "*n 3"]:
    """Premultiplied colour over a background; exactly the background where opacity is 0."""
    return rgb + (1.0 - opacity)[..., None] * background
