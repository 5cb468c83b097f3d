"""What is particular to the hypernetwork triplane."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from scaledreamer.generators._triplane import decode, harmonics, join
from scaledreamer.generators.hyper_triplane import Config, create
from scaledreamer.interfaces import MLPWeights, TextEmbedding

SMALL: dict[str, Any] = {
    "planes_px": 8,
    "grid_px": 4,
    "width": 32,
    "num_blocks": 1,
    "style_dim": 16,
    "seed_channels": 4,
    "up_channels": (16,),
    "sdf_hidden": (8,),
    "colour_hidden": (12,),
    "hyper_rank": 4,
}


def _text() -> TextEmbedding:
    mask = torch.ones(2, 5, dtype=torch.bool)
    return TextEmbedding(torch.randn(2, 5, 6), mask, torch.randn(2, 7), "encoder")


def _mlp(*dims: int) -> MLPWeights:
    pairs = list(pairwise(dims))
    return MLPWeights(
        tuple(torch.randn(2, a, b, dtype=torch.float64) for a, b in pairs),
        tuple(torch.randn(2, b, dtype=torch.float64) for _, b in pairs),
    )


def test_two_decoders_in_one_give_both_answers() -> None:
    first, second = _mlp(5, 4, 6, 1), _mlp(5, 3, 2, 3)
    features = torch.randn(2, 9, 5, dtype=torch.float64)
    expected = torch.cat((decode(first, features), decode(second, features)), dim=-1)
    assert torch.allclose(decode(join(first, second), features), expected)
    with pytest.raises(ValueError, match="got 3 and 2 layers"):
        join(first, _mlp(5, 3, 3))


def test_the_latent_and_the_learned_background() -> None:
    generator = create(Config(**SMALL, latent_dim=3, background="learned"), 6, 7)
    text, points = _text(), torch.rand(2, 40, 3) - 0.5
    fields = [generator(text, torch.full((2, 3), value)) for value in (0.0, 1.0)]
    assert not torch.allclose(*(field.geometry(points) for field in fields))
    directions = torch.nn.functional.normalize(points, dim=-1)
    colours = fields[0].background(directions)
    assert colours is not None
    assert colours.shape == (2, 40, 3)
    assert 0 <= colours.min() <= colours.max() <= 1
    colours.sum().backward()
    assert generator.sky is not None
    assert all(p.grad is not None for p in generator.sky.parameters())
    with pytest.raises(ValueError, match=r"^latent: got none; expected \[B, 3\]"):
        generator(text)
    with pytest.raises(ValueError, match=r"^latent: got shape \(2, 3\)"):
        create(Config(**SMALL), 6, 7)(text, torch.zeros(2, 3))


def test_a_generator_without_background_says_so() -> None:
    field = create(Config(**SMALL), 6, 7)(_text())
    assert field.background(torch.randn(2, 4, 3)) is None


def test_harmonics_are_orthogonal_over_the_sphere() -> None:
    directions = torch.nn.functional.normalize(torch.randn(1, 200_000, 3), dim=-1)
    values = harmonics(directions)[0]
    gram = values.T @ values / len(values)
    scale = gram.diagonal().sqrt()
    assert (gram / scale / scale[:, None] - torch.eye(9)).abs().max() < 0.02


def test_the_default_size_suits_the_embedded_world() -> None:
    generator = create(Config(), 128, 128)
    assert 3e6 < sum(p.numel() for p in generator.parameters()) < 6e6


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"planes_px": 48}, "planes_px"),
        ({"width": 40}, "width"),
        ({"up_channels": (96, 50)}, "up_channels"),
        ({"colour_hidden": (32,)}, "colour_hidden"),
        ({"latent_dim": -1}, "latent_dim"),
    ],
)
def test_impossible_sizes_are_named(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^generator\.{name}: got"):
        Config(**values)


def test_a_pooled_text_is_required_where_one_was_promised() -> None:
    text = TextEmbedding(torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool), None, "encoder")
    with pytest.raises(ValueError, match=r"^text: got no pooled"):
        create(Config(**SMALL), 6, 7)(text)
