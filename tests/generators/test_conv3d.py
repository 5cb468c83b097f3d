"""The 3D convolutions: modulation against its equations, latents, checkpointing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from scaledreamer.generators import conv3d, triplane_transformer
from scaledreamer.interfaces import TextEmbedding

SMALL = {"channels": (16, 8, 8), "volume_channels": 4, "style_dim": 16, "hidden": 8}


def _text(num: int) -> TextEmbedding:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(num, 5, 12, generator=draw)
    pooled = torch.randn(num, 10, generator=draw)
    return TextEmbedding(tokens, torch.ones(num, 5, dtype=torch.bool), pooled, "encoder")


def test_modulation_is_a_convolution_of_scaled_and_normalised_weights() -> None:
    """Scene by scene, weight by weight: equations 1 and 3 of StyleGAN2."""
    torch.manual_seed(0)
    layer = conv3d.ModulatedConv3d(3, 4, 5, 3).double()
    x, style = torch.randn(2, 3, 6, 6, 6).double(), torch.randn(2, 5).double()
    found = layer(x, style)
    for scene in range(2):
        scales = layer.style(style[scene])
        weight = layer.weight / math.sqrt(3 * 27) * scales[None, :, None, None, None]
        norm = weight.square().sum(dim=(1, 2, 3, 4), keepdim=True).sqrt()
        expected = F.conv3d(x[scene : scene + 1], weight / norm, layer.bias, padding=1)
        torch.testing.assert_close(found[scene : scene + 1], expected, atol=1e-6, rtol=1e-6)


def test_a_latent_gives_other_scenes_of_one_text_and_the_same_one_twice() -> None:
    torch.manual_seed(0)
    generator = conv3d.create(conv3d.Config(**SMALL, latent_dim=6), 12, 10)  # type: ignore[arg-type]
    text, points = _text(1), torch.rand(1, 50, 3) * 2 - 1
    first, second = torch.randn(2, 1, 6)
    a, b, again = (generator(text, z).geometry(points) for z in (first, second, first))
    assert not torch.allclose(a, b, atol=1e-5)
    assert torch.equal(a, again)
    torch.testing.assert_close(generator(text, 3 * first).geometry(points), a)  # second moment 1
    with pytest.raises(ValueError, match=r"latent: got none; expected \[B, 6\]"):
        generator(text)


@pytest.mark.parametrize("name", ["conv3d", "triplane_transformer"])
def test_computing_blocks_again_changes_no_gradient(name: str) -> None:
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        if name == "conv3d":
            config = conv3d.Config(**SMALL, use_checkpointing=again)  # type: ignore[arg-type]
            generator = conv3d.create(config, 12, 10)
        else:
            small = triplane_transformer.Config(
                grid_px=4, width=32, num_blocks=2, use_checkpointing=again
            )
            generator = triplane_transformer.create(small, 12, 10)
        points = torch.rand(2, 40, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
        geometry, colour = generator(_text(2)).geometry_and_colour(points)
        (geometry.square().sum() + colour.sum()).backward()
        gradients.append([p.grad for p in generator.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_features_are_trilinear_between_voxel_centres() -> None:
    torch.manual_seed(0)
    generator = conv3d.create(conv3d.Config(**SMALL), 12, 10)  # type: ignore[arg-type]
    text = _text(1)
    volume = generator._volume(generator._style(text, None))
    side = volume.shape[-1]
    assert side == generator.config.volume_side == 16
    centre = torch.tensor(
        [[[(2 * 3 + 1) / side - 1, (2 * 5 + 1) / side - 1, (2 * 7 + 1) / side - 1]]]
    )
    field = generator(text)
    found = field._features(centre)[0, 0]
    torch.testing.assert_close(found, volume[0, :, 7, 5, 3], atol=1e-5, rtol=1e-5)
