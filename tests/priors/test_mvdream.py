"""Joint attention over the views of a scene, cameras, and the published checkpoint's layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from scaledreamer.cameras import ring
from scaledreamer.interfaces import ConditionRows
from scaledreamer.priors import _mvdream_checkpoint, mvdream
from tests.encoders import folders as text_folders
from tests.priors import folders, ldm_layout

VIEWS = (0.0, 90.0, 180.0, 270.0)
CAMERAS = ring(2, VIEWS)
TEXTS = ["a red box", "a blue ball"]


def _prior(root: Path, **options: Any) -> mvdream.MVDreamPrior:
    return mvdream.create(mvdream.Config(folder=str(root), **options))


def _noise(prior: Any, x_t: Tensor, rows: ConditionRows) -> Tensor:
    return prior.predict_noise(x_t, torch.full((len(x_t),), 0.5), rows)


def test_a_view_depends_on_the_others_of_its_scene_and_on_its_camera(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folders.save_mvdream(tmp_path)
    prior = _prior(tmp_path)
    rows = prior.condition(TEXTS, CAMERAS).positive
    x_t = torch.randn(8, *prior.latent_shape)
    noise = _noise(prior, x_t, rows)
    other = x_t.clone()
    other[1] = torch.randn_like(other[1])
    changed = (_noise(prior, other, rows) - noise).flatten(1).abs().amax(dim=1) > 1e-6
    assert changed.tolist() == [True] * 4 + [False] * 4
    turned = prior.condition(TEXTS, ring(2, (45.0, *VIEWS[1:]))).positive
    changed = (_noise(prior, x_t, turned) - noise).flatten(1).abs().amax(dim=1) > 1e-6
    assert changed.all()
    assert (turned.cameras != rows.cameras).any(dim=1).tolist() == [True, *[False] * 3] * 2  # type: ignore[union-attr]


def test_joint_attention_is_attention_over_the_concatenated_views(tmp_path: Path) -> None:
    folders.save_mvdream(tmp_path)
    attention: Any = _prior(tmp_path)._parts.network.mid_block.attentions[0]  # type: ignore[union-attr]
    attention = attention.transformer_blocks[0].attn1
    states = torch.randn(8, 5, attention.to_q.in_features)
    found = attention(states)
    for scene in range(2):
        tokens = states[4 * scene : 4 * scene + 4].reshape(1, 20, -1)
        heads = attention.heads
        query, key, value = (
            layer(tokens).view(20, heads, -1).transpose(0, 1)
            for layer in (attention.to_q, attention.to_k, attention.to_v)
        )
        weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(dim=-1)
        expected = attention.to_out[0]((weights @ value).transpose(0, 1).reshape(20, -1))
        torch.testing.assert_close(found[4 * scene : 4 * scene + 4].reshape(20, -1), expected)


def test_cameras_are_matrices_on_the_unit_sphere(tmp_path: Path) -> None:
    folders.save_mvdream(tmp_path)
    prior = _prior(tmp_path)
    cameras = prior.condition(["a red box"], ring(1, VIEWS, elevation_deg=0.0)).positive.cameras
    assert cameras is not None
    matrices = cameras.view(4, 4, 4)
    torch.testing.assert_close(matrices[0, :3, 3], torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrices[1, :3, 3], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrices[0, :3, 2], torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    assert (prior.camera_dim, prior.num_views) == (16, 4)


def test_chunks_keep_the_views_of_a_scene_together(tmp_path: Path) -> None:
    folders.save_mvdream(tmp_path)
    prior = _prior(tmp_path)
    rows = prior.condition(TEXTS, CAMERAS).positive
    x_t = torch.randn(8, *prior.latent_shape)
    whole = _noise(prior, x_t, rows)
    for size in (1, 4, 5):
        torch.testing.assert_close(_noise(_prior(tmp_path, chunk_size=size), x_t, rows), whole)


def test_a_lora_copy_joins_the_views_too(tmp_path: Path) -> None:
    folders.save_mvdream(tmp_path)
    prior = _prior(tmp_path)
    lora = prior.lora_copy(2, prior.camera_dim)
    rows = prior.condition(TEXTS, CAMERAS).positive
    x_t = torch.randn(8, *prior.latent_shape)
    t = torch.full((8,), 0.5)
    torch.testing.assert_close(lora.predict_noise(x_t, t, rows), _noise(prior, x_t, rows))


def test_what_it_can_not_do_is_said(tmp_path: Path) -> None:
    folders.save_mvdream(tmp_path)
    prior = _prior(tmp_path)
    with pytest.raises(ValueError, match="got 3 views of a scene; the prior sees 4 together"):
        prior.condition(["a red box"], ring(1, (0.0, 90.0, 180.0)))
    with pytest.raises(ValueError, match="use_cameras"):
        mvdream.Config(folder="x", use_cameras=False)
    folders.save_stable_diffusion(tmp_path / "plain", "epsilon")
    with pytest.raises(ValueError, match=r"num_views is 1 .* prior convert"):
        _prior(tmp_path / "plain")


def _meta(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


PUBLISHED = {
    "sd-v2.1-base-4view": ldm_layout.whole(
        ldm_layout.unet(), ldm_layout.vae(), ldm_layout.open_clip(), is_open_clip=True
    ),
    "sd-v1.5-4view": ldm_layout.whole(
        ldm_layout.unet(context=768, is_linear=False),
        ldm_layout.vae(),
        ldm_layout.clip(),
        is_open_clip=False,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_of_the_published_layout_has_a_place(name: str) -> None:
    """Shapes alone, at full size; the converter itself refuses a weight that goes nowhere."""
    state = _meta(PUBLISHED[name])
    _mvdream_checkpoint.require_known(state)
    config, unet = _mvdream_checkpoint.convert_unet(state)
    # Stable Diffusion 2 and 1 have 865,910,724 and 859,520,964 parameters; the camera's come on top
    added = 16 * 1280 + 1280 + 1280 * 1280 + 1280
    expected = {"sd-v2.1-base-4view": 865_910_724, "sd-v1.5-4view": 859_520_964}[name] + added
    assert sum(weight.numel() for weight in unet.values()) == expected
    assert config["block_out_channels"] == [320, 640, 1280, 1280]
    assert config["layers_per_block"] == 2
    heads = [5, 10, 20, 20] if name == "sd-v2.1-base-4view" else 8
    assert config["attention_head_dim"] == heads
    config, vae = _mvdream_checkpoint.convert_vae(state)
    assert sum(weight.numel() for weight in vae.values()) == 83_653_863
    assert config["block_out_channels"] == [128, 256, 512, 512]
    text, tower = _mvdream_checkpoint.convert_text(state)
    assert text.num_hidden_layers == (23 if name == "sd-v2.1-base-4view" else 12)
    assert text.num_attention_heads == (16 if name == "sd-v2.1-base-4view" else 12)
    assert len(tower) == 4 + 16 * text.num_hidden_layers


def _small(is_open_clip: bool = True) -> dict[str, Tensor]:
    text_shapes = (ldm_layout.open_clip if is_open_clip else ldm_layout.clip)(
        words=58, length=77, width=64, layers=3
    )
    shapes = ldm_layout.whole(
        ldm_layout.unet(64, (1, 2), 1, 64, is_open_clip),
        ldm_layout.vae(32, (1, 1, 1, 2), 1),
        text_shapes,
        is_open_clip,
    )
    generator = torch.Generator().manual_seed(0)
    return {n: 0.05 * torch.randn(shape, generator=generator) for n, shape in shapes.items()}


@pytest.mark.parametrize("is_open_clip", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_converted_checkpoint_is_a_prior(is_open_clip: bool, suffix: str, tmp_path: Path) -> None:
    state, path = _small(is_open_clip), tmp_path / f"small.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    text_folders.save_plain_tower(tmp_path / "words")
    _mvdream_checkpoint.convert(path, tmp_path / "made", str(tmp_path / "words"))
    prior = _prior(tmp_path / "made", image_px=32)
    condition = prior.condition(TEXTS, CAMERAS)
    latents = prior.encode(torch.rand(8, 3, 32, 32))
    assert latents.shape == (8, 4, 4, 4)
    assert _noise(prior, latents, condition.positive).isfinite().all()
    own = state["model.diffusion_model.camera_embed.0.weight"]
    network: Any = prior._parts.network
    assert torch.equal(network.class_embedding.linear_1.weight, own)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"model.diffusion_model.camera_embed.0.weight": None}, "has no model.*camera_embed"),
        ({"model.diffusion_model.out.2.bias": None}, r"unet weight conv_out\.bias is missing"),
        ({"model.diffusion_model.out.2.weight": None}, r"has no .*out\.2\.weight"),
        ({"first_stage_model.post_quant_conv.weight": None}, "has no .*post_quant_conv"),
        ({"cond_stage_model.model.token_embedding.weight": None}, "has no .*token_embedding"),
        (
            {"cond_stage_model.model.ln_final.weight": None},
            "text_encoder weight final_layer_norm.weight is missing",
        ),
        ({"first_stage_model.extra": torch.ones(3)}, "vae has .* numbers, of which"),
        ({"other.weight": torch.ones(3)}, "other.weight is no weight of MVDream's layout"),
        ({"betas": "text"}, "no dictionary of tensors"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused_whole(
    damage: dict[str, Any], message: str, tmp_path: Path
) -> None:
    state: dict[str, Any] = {**_small(), **damage}
    torch.save({n: w for n, w in state.items() if w is not None}, tmp_path / "small.pt")
    text_folders.save_plain_tower(tmp_path / "words")
    with pytest.raises(ValueError, match=message):
        _mvdream_checkpoint.convert(
            tmp_path / "small.pt", tmp_path / "made", str(tmp_path / "words")
        )
    assert not (tmp_path / "made").exists()
