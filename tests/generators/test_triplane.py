"""What is particular to the generator of one scene."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from scaledreamer.cameras import ring
from scaledreamer.generators import hyper_triplane
from scaledreamer.generators._triplane import TriplaneField
from scaledreamer.generators.triplane import Config, create, hold
from scaledreamer.interfaces import TextEmbedding
from scaledreamer.rendering.volume import RenderConfig, render
from tests.generators.test_hyper_triplane import SMALL
from tests.mesh.fields import AnalyticField, sphere

TINY: dict[str, Any] = {
    "planes_px": 8,
    "plane_channels": 4,
    "sdf_hidden": (8,),
    "colour_hidden": (12,),
}


def _text(num: int, seed: int = 0) -> TextEmbedding:
    draw = torch.Generator().manual_seed(seed)
    tokens, pooled = (torch.randn(num, *shape, generator=draw) for shape in ((5, 6), (7,)))
    return TextEmbedding(tokens, torch.ones(num, 5, dtype=torch.bool), pooled, "encoder")


def _copies(num: int) -> TextEmbedding:
    return _text(1)[torch.zeros(num, dtype=torch.int64)]


def test_copies_are_views_of_the_one_scene() -> None:
    generator = create(Config(**TINY, background="learned"), 6, 7)
    field = generator(_copies(3))
    structure = field.structure
    assert field.num_scenes == len(structure.planes) == 3
    assert structure.planes.data_ptr() == generator.planes.data_ptr()
    assert structure.planes.untyped_storage().nbytes() == generator.planes.nbytes
    points = (torch.rand(1, 30, 3) * 2 - 1).expand(3, -1, -1)
    directions = torch.nn.functional.normalize(points, dim=-1)
    sky = field.background(directions)
    assert sky is not None
    geometry, colour = field.geometry_and_colour(points)
    for values in (geometry, colour, sky):
        assert torch.equal(values, values[:1].expand_as(values))


def test_several_views_of_one_scene_add_up_in_its_gradient() -> None:
    generator = create(Config(**TINY), 6, 7)
    points = torch.rand(3, 30, 3) * 2 - 1
    (together,) = torch.autograd.grad(
        generator(_copies(3)).geometry(points).sum(), generator.planes
    )
    apart = [
        torch.autograd.grad(generator(_text(1)).geometry(rows[None]).sum(), generator.planes)[0]
        for rows in points
    ]
    torch.testing.assert_close(together, torch.stack(apart).sum(0))


def test_the_text_does_not_matter_but_several_do() -> None:
    generator = create(Config(**TINY), 6, 7)
    points = torch.rand(1, 30, 3)
    fields = [generator(_text(1, seed)) for seed in (0, 1)]
    assert torch.equal(*(field.geometry(points) for field in fields))
    same = _copies(2)
    noisy = same.tokens + 1e-5
    generator(TextEmbedding(noisy, same.mask, same.pooled, "encoder"))
    padded = same.mask.clone()
    padded[:, 4:] = False
    other_padding = same.tokens.clone()
    other_padding[1, 4:] = 9.0
    generator(TextEmbedding(other_padding, padded, same.pooled, "encoder"))
    shorter = same.mask.clone()
    shorter[1, 4:] = False
    for text in (
        _text(2),
        TextEmbedding(_text(2).tokens, same.mask, None, "encoder"),
        TextEmbedding(same.tokens, same.mask, _text(2).pooled, "encoder"),
        TextEmbedding(same.tokens, shorter, same.pooled, "encoder"),
    ):
        with pytest.raises(ValueError, match=r"got 2 that differ.*one scene only.*hyper_triplane"):
            generator(text)
    with pytest.raises(ValueError, match=r"^latent: got shape \(1, 3\)"):
        generator(_text(1), torch.zeros(1, 3))


@pytest.mark.parametrize("background", ["none", "learned"])
def test_a_held_field_renders_the_same_bits(background: Literal["none", "learned"]) -> None:
    amortized = hyper_triplane.create(
        hyper_triplane.Config(**SMALL, background=background, latent_dim=2), 6, 7
    )
    with torch.no_grad():
        field = amortized(_text(1), torch.ones(1, 2))
        held = hold(field)(_text(1, seed=3))
        colour = torch.ones(1, 3) if background == "none" else None
        pictures = [
            render(one, ring(1, (20.0, 200.0)), colour, RenderConfig(), 12, 0.05)
            for one in (field, held)
        ]
    assert torch.equal(pictures[0].rgb, pictures[1].rgb)
    assert torch.equal(pictures[0].depth, pictures[1].depth)
    assert pictures[0].rgb.std() > 0


def test_a_density_stays_one() -> None:
    generator = create(Config(**TINY, density_kind="density", sdf_scale=0.25), 6, 7)
    field = generator(_text(1))
    assert field.density_kind == "density"
    assert hold(field).config == generator.config
    points = torch.rand(1, 30, 3) * 2 - 1
    assert torch.equal(field.geometry(points), hold(field)(_text(1)).geometry(points))
    assert (field.geometry(points) > 0).all()


def test_what_cannot_be_held_is_named() -> None:
    with pytest.raises(ValueError, match="no structure"):
        hold(AnalyticField(sphere(0.5)))
    with pytest.raises(ValueError, match="got 2 scenes"):
        hold(create(Config(**TINY), 6, 7)(_copies(2)))

    class Sky(TriplaneField):
        @property
        def background_decoder(self) -> None:
            return None

    made = create(Config(**TINY, background="learned"), 6, 7)(_text(1))
    with pytest.raises(ValueError, match="background can't be held"):
        hold(Sky(made.structure, made.background_decoder))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"planes_px": 0}, "planes_px"),
        ({"plane_channels": -1}, "plane_channels"),
        ({"colour_hidden": (32,)}, "colour_hidden"),
        ({"sdf_hidden": (), "colour_hidden": ()}, "colour_hidden"),
        ({"sdf_hidden": (0, 4)}, "sdf_hidden"),
        ({"sdf_scale": 0.0}, "sdf_scale"),
    ],
)
def test_impossible_sizes_are_named(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^generator\.{name}"):
        Config(**values)
