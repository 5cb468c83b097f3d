from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scaledreamer.interfaces import DensityKind, Views
from scaledreamer.training.regularizers import (
    REGULARIZERS,
    eikonal,
    opacity,
    regularizers,
    sparsity,
)


def views(opacity: float, points: Tensor | None = None) -> Views:
    image = torch.full((2, 3, 4, 4), opacity)
    rgb = torch.zeros(2, 3, 3, 4, 4)
    return Views(rgb=rgb, opacity=image, depth=image, normal=None, points=points)


class LinearField:
    """distance = normal . point"""

    num_scenes = 2
    structure = None

    def __init__(self, normal: Tensor, kind: DensityKind = "sdf") -> None:
        self.normal = normal
        self.density_kind: DensityKind = kind

    def geometry(self, points: Tensor) -> Tensor:
        return points @ self.normal

    def geometry_and_colour(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.geometry(points), torch.zeros_like(points)

    def background(self, directions: Tensor) -> None:
        return None


@pytest.mark.parametrize("length", [0.0, 1.0, 2.5])
def test_eikonal_is_the_squared_excess_of_the_gradient(length: float) -> None:
    normal = length * torch.nn.functional.normalize(torch.tensor([1.0, -2.0, 0.5]), dim=0)
    seen = views(0.5, torch.rand(2, 10, 3) - 0.5)
    loss = eikonal(seen, LinearField(normal))
    assert float(loss) == pytest.approx((length - 1) ** 2, abs=1e-4)


def test_eikonal_pulls_the_gradient_towards_one() -> None:
    normal = torch.tensor([0.5, 0.0, 0.0], requires_grad=True)
    eikonal(views(0.5, torch.rand(2, 10, 3)), LinearField(normal)).backward()
    assert normal.grad is not None
    assert float(normal.grad[0]) == pytest.approx(2 * (0.5 - 1), abs=1e-3)


def test_eikonal_refuses_a_density() -> None:
    with pytest.raises(ValueError, match=r"losses\.eikonal: .* set losses\.eikonal=0"):
        eikonal(views(0.5, torch.rand(2, 4, 3)), LinearField(torch.ones(3), "density"))


@pytest.mark.parametrize("hit", [0.0, 0.3, 1.0])
def test_opacity_terms_match_their_closed_forms(hit: float) -> None:
    field = LinearField(torch.ones(3))
    assert float(sparsity(views(hit), field)) == pytest.approx(math.sqrt(hit**2 + 0.01))
    inside = min(max(hit, 1e-3), 1 - 1e-3)
    entropy = -(inside * math.log(inside) + (1 - inside) * math.log(1 - inside))
    assert float(opacity(views(hit), field)) == pytest.approx(entropy, rel=1e-4)


def test_only_terms_with_a_weight_are_computed() -> None:
    weights = {"asd": 1.0, "sparsity": 0.5, "opacity": 0.0}
    assert list(regularizers(views(0.5), LinearField(torch.ones(3)), weights)) == ["sparsity"]
    assert set(REGULARIZERS) == {"eikonal", "sparsity", "opacity"}
