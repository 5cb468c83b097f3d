"""What every generator owes: each module of the package is found and held to it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scaledreamer.generators
from scaledreamer.interfaces import Field, TextEmbedding, TriplaneStructure

TOKEN_DIM, POOLED_DIM = 20, 12
NAMES = [
    info.name
    for info in pkgutil.iter_modules(scaledreamer.generators.__path__)
    if not info.name.startswith("_")
]


READS = {
    "triplane": (),  # holds one scene, whatever the text
    "hyper_ingp": ("pooled",),
    "triplane_transformer": ("tokens",),
    "conv3d": ("pooled",),
}
"""What of a text a generator reads, where that is not all of it."""


def _build(name: str, pooled_dim: int | None = POOLED_DIM, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    module = importlib.import_module(f"scaledreamer.generators.{name}")
    return module.create(module.Config(**fields), TOKEN_DIM, pooled_dim)


def _text(num: int, seed: int = 0, pooled_dim: int | None = POOLED_DIM) -> TextEmbedding:
    """Texts of 3, 4, … tokens; padding holds noise that must not matter."""
    draw = torch.Generator().manual_seed(seed)
    length = num + 3
    mask = torch.arange(length) < torch.arange(3, num + 3)[:, None]
    pooled = None if pooled_dim is None else torch.randn(num, pooled_dim, generator=draw)
    tokens = torch.randn(num, length, TOKEN_DIM, generator=draw)
    return TextEmbedding(tokens, mask, pooled, "encoder")


def _texts_for(
    generator: nn.Module, num: int, pooled_dim: int | None = POOLED_DIM
) -> TextEmbedding:
    """Texts that differ, or one text repeated for a generator that holds a single scene."""
    if not getattr(generator, "is_single_scene", False):
        return _text(num, pooled_dim=pooled_dim)
    return _text(1, pooled_dim=pooled_dim)[torch.zeros(num, dtype=torch.int64)]


def _points(num_scenes: int, num_points: int = 200) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(num_scenes, num_points, 3, generator=draw) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_the_field_has_the_contract_s_shapes_and_dtypes(name: str) -> None:
    generator = _build(name)
    field = generator(_texts_for(generator, 2))
    assert isinstance(field, Field)
    assert field.num_scenes == 2
    points = _points(2)
    geometry, colour = field.geometry_and_colour(points)
    assert geometry.shape == (2, 200)
    assert colour.shape == (2, 200, 3)
    assert geometry.dtype == colour.dtype == torch.float32
    assert torch.allclose(field.geometry(points), geometry, atol=1e-5)
    assert colour.min() >= 0
    assert colour.max() <= 1
    assert field.geometry(points[:, :0]).shape == (2, 0)


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_generator_shows_a_grey_body_inside_the_box(name: str) -> None:
    generator = _build(name)
    field = generator(_texts_for(generator, 2))
    edge = torch.nn.functional.normalize(_points(2), dim=-1)
    inside, colour = field.geometry_and_colour(torch.zeros(2, 1, 3))
    if field.density_kind == "sdf":
        assert (inside < -0.2).all()
        assert (field.geometry(edge) > 0.1).all()
    assert (colour - 0.5).abs().max() < 0.3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["tokens", "pooled"])
def test_every_part_of_the_text_matters_and_padding_does_not(name: str, part: str) -> None:
    generator, points = _build(name), _points(2)
    if part not in READS.get(name, ("tokens", "pooled")):
        pytest.skip(f"does not read {part}")
    first, second = _text(2, seed=0), _text(2, seed=1)
    values = {"tokens": first.tokens, "pooled": first.pooled, part: getattr(second, part)}
    mixed = TextEmbedding(values["tokens"], first.mask, values["pooled"], "encoder")
    before, after = (generator(text).geometry(points) for text in (first, mixed))
    assert (before - after).abs().max() > 1e-4
    noisy = first.tokens + 10 * torch.randn_like(first.tokens) * ~first.mask[..., None]
    padded = TextEmbedding(noisy, first.mask, first.pooled, "encoder")
    assert torch.allclose(generator(padded).geometry(points), before, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pooled_dim", [POOLED_DIM, None])
def test_every_parameter_receives_a_gradient(name: str, pooled_dim: int | None) -> None:
    generator = _build(name, pooled_dim)
    field = generator(_texts_for(generator, 2, pooled_dim))
    geometry, colour = field.geometry_and_colour(_points(2))
    (geometry.square().mean() + colour.square().mean()).backward()
    idle = [
        key
        for key, value in generator.named_parameters()
        if value.grad is None or not value.grad.abs().sum() > 0
    ]
    assert not idle


@pytest.mark.parametrize("name", NAMES)
def test_scenes_of_a_batch_do_not_influence_one_another(name: str) -> None:
    generator, points = _build(name), _points(3)
    text = _texts_for(generator, 3)
    together = generator(text).geometry_and_colour(points)
    for scene in range(3):
        rows = slice(scene, scene + 1)
        alone = generator(text[rows]).geometry_and_colour(points[rows])
        for mine, theirs in zip(alone, together, strict=True):
            assert torch.allclose(mine[0], theirs[scene], atol=1e-5)
    if getattr(generator, "is_single_scene", False):
        return
    if "tokens" in READS.get(name, ("tokens",)):
        leaf = text.tokens.clone().requires_grad_()
        field = generator(TextEmbedding(leaf, text.mask, text.pooled, "encoder"))
    else:
        assert text.pooled is not None
        leaf = text.pooled.clone().requires_grad_()
        field = generator(TextEmbedding(text.tokens, text.mask, leaf, "encoder"))
    (gradient,) = torch.autograd.grad(field.geometry(points)[1].sum(), leaf)
    assert gradient[1].any()
    assert not gradient[[0, 2]].any()


@pytest.mark.parametrize("name", NAMES)
def test_points_are_independent_of_how_many_come_along(name: str) -> None:
    field, points = _build(name)(_text(1)), _points(1, 20_000)
    with torch.no_grad():
        whole, first = field.geometry(points), field.geometry(points[:, :100])
    assert torch.allclose(whole[:, :100], first, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_state_gives_the_same_bits(name: str) -> None:
    generator, points = _build(name), _points(2)
    text = _texts_for(generator, 2)
    torch.manual_seed(5)
    module = importlib.import_module(f"scaledreamer.generators.{name}")
    twin = module.create(module.Config(), TOKEN_DIM, POOLED_DIM)
    twin.load_state_dict(generator.state_dict())
    runs = [g(text).geometry_and_colour(points) for g in (generator, generator, twin)]
    for geometry, colour in runs[1:]:
        assert torch.equal(geometry, runs[0][0])
        assert torch.equal(colour, runs[0][1])


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_stays_close_and_finite(name: str) -> None:
    generator, points = _build(name), _points(2)
    text = _texts_for(generator, 2)
    exact = generator(text).geometry_and_colour(points)
    with torch.autocast("cpu", torch.bfloat16):
        rough = generator(text).geometry_and_colour(points)
    assert all(value.dtype == torch.float32 for value in rough)
    assert (exact[0] - rough[0]).abs().max() < 0.01
    assert (exact[1] - rough[1]).abs().max() < 0.03
    (rough[0].sum() + rough[1].sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_the_structure_says_what_the_field_computes(name: str) -> None:
    """A second, plain evaluation of the tensors that a fused kernel will read."""
    generator, points = _build(name), _points(2)
    field = generator(_texts_for(generator, 2))
    structure = field.structure
    if not isinstance(structure, TriplaneStructure):
        assert structure is None
        return
    grids = [points[..., pair][:, None] for pair in ([0, 1], [0, 2], [1, 2])]
    features = sum(
        torch.nn.functional.grid_sample(
            structure.planes[:, k].movedim(-1, 1), grid, padding_mode="border", align_corners=False
        )
        for k, grid in enumerate(grids)
    )
    assert isinstance(features, Tensor)
    outputs = []
    for mlp in (structure.sdf_decoder, structure.colour_decoder):
        x = features[:, :, 0].transpose(1, 2)
        for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
            x = (x.relu() if layer else x) @ weight + bias[:, None]
        outputs.append(x)
    sdf = structure.sdf_scale * outputs[0][..., 0] + points.norm(dim=-1) - structure.sphere_radius
    geometry, colour = field.geometry_and_colour(points)
    assert torch.allclose(geometry, sdf, atol=1e-5)
    assert torch.allclose(colour, outputs[1].sigmoid(), atol=1e-5)
