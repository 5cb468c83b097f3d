"""ToyBox and Stable Diffusion folders, small and random, against diffusers' own networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from scaledreamer.cameras import CameraDistribution, ring
from scaledreamer.priors import unet
from scaledreamer.priors.unet import UNetPrior
from tests.priors import folders

CAMERAS = ring(2, (0.0, 90.0, 180.0))
TEXTS = ["a red box", "a blue ball"]
T = torch.tensor([0.02, 0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.fixture(scope="module")
def toybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toybox")
    torch.manual_seed(1)
    folders.save_toybox(root)
    return root


def _prior(root: Path, **options: object) -> UNetPrior:
    return unet.create(unet.Config(folder=str(root), **options))  # type: ignore[arg-type]


def _noise(prior: UNetPrior) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x_t = torch.randn(6, *prior.latent_shape, generator=generator)
    return prior.predict_noise(x_t, T, prior.condition(TEXTS, CAMERAS).positive)


def _weights(prior: UNetPrior) -> list[Tensor]:
    parts = prior._parts
    vae = getattr(parts.space, "_vae", None)
    text: Any = parts.text
    modules = [parts.network, text._model, *([] if vae is None else [vae])]
    return [weight for module in modules for weight in module.parameters()]


@pytest.mark.parametrize("kind", ["toybox", "epsilon", "v_prediction"])
def test_gradient_reaches_the_images_and_the_prior_stays_frozen(kind: Any, tmp_path: Path) -> None:
    if kind == "toybox":
        folders.save_toybox(tmp_path)
    else:
        folders.save_stable_diffusion(tmp_path, kind)
    prior = _prior(tmp_path)
    before = [weight.clone() for weight in _weights(prior)]
    images = torch.rand(6, 3, 24, 24, requires_grad=True)
    latents = prior.encode(images)
    assert latents.shape == (6, *prior.latent_shape)
    noise = prior.predict_noise(latents, T, prior.condition(TEXTS, CAMERAS).positive)
    assert noise.dtype == torch.float32
    assert not noise.requires_grad
    (latents * noise).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()
    for weight, former in zip(_weights(prior), before, strict=True):
        assert not weight.requires_grad
        assert weight.grad is None
        assert torch.equal(weight, former)


def test_toybox_predicts_what_the_network_s_velocity_says(tmp_path: Path) -> None:
    network = folders.save_toybox(tmp_path)
    prior = _prior(tmp_path)
    condition = prior.condition(TEXTS, CAMERAS)
    encoded = prior._parts.text([text for text in TEXTS for _ in range(3)])
    azimuth = torch.tensor([0.0, torch.pi / 2, torch.pi] * 2)
    elevation = torch.full((6,), torch.pi / 12)
    features = torch.stack(
        [
            *(azimuth.sin(), azimuth.cos(), (2 * azimuth).sin(), (2 * azimuth).cos()),
            *(elevation.sin(), elevation.cos(), torch.zeros(6), torch.ones(6)),
        ],
        dim=1,
    )
    torch.testing.assert_close(condition.positive.cameras, features, atol=1e-6, rtol=1e-6)
    x_t = torch.randn(6, 12, 8, 8)
    steps = (T * 1000).round().long() - 1
    with torch.no_grad():
        velocity = network(
            x_t,
            steps,
            encoder_hidden_states=encoded.tokens,
            encoder_attention_mask=encoded.mask,
            class_labels=features,
        ).sample
    scheduler: Any = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    alpha_bar = scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
    expected = (1 - alpha_bar).sqrt() * x_t + alpha_bar.sqrt() * velocity
    noise = prior.predict_noise(x_t, T, condition.positive)
    torch.testing.assert_close(noise, expected, atol=1e-5, rtol=1e-5)


def test_pixel_space_is_the_unshuffled_image_in_minus_one_to_one(toybox: Path) -> None:
    prior = _prior(toybox)
    images = torch.rand(2, 3, 16, 16)
    latents = prior.encode(images)
    assert prior.size_px == 16
    torch.testing.assert_close(latents[1, 4 + 2, 3, 5], images[1, 1, 7, 10] * 2 - 1)
    torch.testing.assert_close(prior.decode(latents), images)
    assert prior.cameras == CameraDistribution(distance=(2.8, 3.2), elevation_deg=(-5.0, 40.0))


def test_latents_are_scaled_and_decode_inverts_the_scaling(tmp_path: Path) -> None:
    network, vae = folders.save_stable_diffusion(tmp_path, "epsilon")
    prior = _prior(tmp_path)
    assert (prior.size_px, prior.latent_shape, prior.cameras) == (16, (4, 8, 8), None)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        mean = vae.encode(images * 2 - 1).latent_dist.mean
        expected = (vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
        condition = prior.condition(TEXTS, None)
        states = prior._parts.text(TEXTS).tokens
        noise = network(mean, torch.tensor([499, 999]), encoder_hidden_states=states).sample
    latents = prior.encode(images)
    torch.testing.assert_close(latents, (mean - 0.1) * 0.2)
    torch.testing.assert_close(prior.decode(latents), expected, atol=1e-5, rtol=1e-5)
    assert condition.positive.cameras is None
    predicted = prior.predict_noise(mean, torch.tensor([0.5, 1.0]), condition.positive)
    torch.testing.assert_close(predicted, noise, atol=1e-5, rtol=1e-5)


def test_camera_matters_only_when_it_is_given(toybox: Path) -> None:
    def differs(prior: UNetPrior) -> bool:
        x_t = torch.randn(1, *prior.latent_shape).expand(3, -1, -1, -1)
        condition = prior.condition(["a red box"], ring(1, (0.0, 90.0, 180.0)))
        noise = prior.predict_noise(x_t, torch.full((3,), 0.5), condition.positive)
        return not torch.allclose(noise[0], noise[1], atol=1e-6)

    assert differs(_prior(toybox))
    dropped = _prior(toybox, use_cameras=False)
    assert not differs(dropped)
    without = _prior(toybox).condition(["a red box"], None)
    assert torch.equal(without.positive.cameras, torch.zeros(1, 8))  # type: ignore[arg-type]
    assert differs(_prior(toybox, use_cameras=False, use_view_words=True))


def test_rows_are_scene_major_and_every_text_is_encoded_once(
    toybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = _prior(toybox, negative_prompt="a box")
    asked: list[list[str]] = []
    encode = prior._parts.text.__class__.__call__
    monkeypatch.setattr(
        prior._parts.text.__class__,
        "__call__",
        lambda self, texts: asked.append(list(texts)) or encode(self, texts),
    )
    condition = prior.condition(["a red box", "a blue ball", "a red box"], ring(3, (0.0, 90.0)))
    assert asked == [["a box", "", "a red box", "a blue ball"]]
    expected = encode(prior._parts.text, ["a red box", "a blue ball", "a box"]).tokens
    order = torch.tensor([0, 0, 1, 1, 0, 0])
    torch.testing.assert_close(condition.positive.text.tokens, expected[order])
    torch.testing.assert_close(condition.null.text.tokens, expected[2].expand(6, -1, -1))
    cameras = condition.positive.cameras
    assert cameras is not None
    torch.testing.assert_close(cameras[:, 0], torch.tensor([0.0, 1.0] * 3))
    words = _prior(toybox, use_view_words=True)
    words.condition(["a red box"], ring(1, (0.0, 100.0, 180.0, 300.0, -40.0, 400.0)))
    views = ["front", "side", "back"]
    assert asked[-1] == ["", "", *(f"a red box, {view} view" for view in views)]
    words.condition(["a red box"], ring(1, (0.0, 100.0), elevation_deg=35.0))
    assert asked[-1] == ["", "", "a red box, overhead view"]


def test_padding_is_hidden_from_toybox_networks(toybox: Path) -> None:
    prior = _prior(toybox)
    rows = prior.condition(TEXTS, CAMERAS).positive
    text = rows.text
    changed = torch.where(text.mask[..., None], text.tokens, torch.randn_like(text.tokens))
    x_t = torch.randn(6, 12, 8, 8)
    noise = prior.predict_noise(x_t, T, rows)
    rows.text.tokens.copy_(changed)
    torch.testing.assert_close(prior.predict_noise(x_t, T, rows), noise)


@pytest.mark.parametrize(
    "options", [{"chunk_size": 4}, {"channels_last": False}, {"autocast": False}]
)
def test_speed_settings_do_not_change_the_result(toybox: Path, options: dict) -> None:
    expected = _noise(_prior(toybox))
    torch.testing.assert_close(_noise(_prior(toybox, **options)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"autocast": True}, {"dtype": "bfloat16"}])
def test_low_precision_is_close_float32_and_chosen_by_the_config(
    toybox: Path, options: dict
) -> None:
    expected = _noise(_prior(toybox))
    noise = _noise(_prior(toybox, **options))
    assert noise.dtype == torch.float32
    assert not torch.equal(noise, expected)
    torch.testing.assert_close(noise, expected, atol=0.1, rtol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_noise(_prior(toybox)), expected)


def test_half_precision_weights_on_disk_become_float32(tmp_path: Path, toybox: Path) -> None:
    root = tmp_path / "half"
    shutil.copytree(toybox, root)
    path = root / "unet" / "diffusion_pytorch_model.safetensors"
    half = {name: weight.half() for name, weight in load_file(path).items()}
    save_file(half, path.with_name("diffusion_pytorch_model.fp16.safetensors"), {"format": "pt"})
    path.unlink()
    prior = _prior(root)
    assert {weight.dtype for weight in _weights(prior)} == {torch.float32}
    torch.testing.assert_close(_noise(prior), _noise(_prior(toybox)), atol=0.02, rtol=0.02)


def test_sampling_equals_diffusers_ddim(tmp_path: Path) -> None:
    network = folders.save_toybox(tmp_path)
    prior = _prior(tmp_path)
    condition = prior.condition(TEXTS, None)
    noise = torch.randn(2, *prior.latent_shape)
    images = prior.sample(condition, num_steps=5, guidance_scale=3.0, noise=noise)

    scheduler: Any = DDIMScheduler.from_pretrained(
        tmp_path / "scheduler", timestep_spacing="trailing", set_alpha_to_one=True
    )
    scheduler.set_timesteps(5)
    x_t = noise
    with torch.no_grad():
        for step in scheduler.timesteps:
            null, positive = (
                network(
                    x_t,
                    step,
                    encoder_hidden_states=rows.text.tokens,
                    encoder_attention_mask=rows.text.mask,
                    class_labels=rows.cameras,
                ).sample
                for rows in (condition.null, condition.positive)
            )
            velocity = null + 3.0 * (positive - null)
            x_t = scheduler.step(velocity, step, x_t, use_clipped_model_output=True).prev_sample
    expected = (torch.nn.functional.pixel_shuffle(x_t, 2) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected, atol=2e-4, rtol=1e-3)


def _drop(name: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root / name)


def _edit(file: str, **changes: object) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        values = json.loads((root / file).read_text())
        (root / file).write_text(json.dumps({**values, **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "model_index.json").unlink(), r"model_index\.json: missing"),
        (_drop("tokenizer"), r"tokenizer_config\.json: missing, though model_index\.json names"),
        (_drop("unet"), r"unet/config\.json: missing"),
        (_edit("model_index.json", scheduler=[None, None]), "names no scheduler"),
        (_edit("model_index.json", unet=["x", "Transformer"]), "unet is a Transformer; only"),
        (_edit("model_index.json", text_encoder_2=["x", "CLIP"]), "text_encoder_2 is a CLIP; only"),
        (_edit("scaledreamer.json", space="latent"), "names no vae"),
        (_edit("scaledreamer.json", patch=4), r"in_channels is 12; .* need 48"),
        (_edit("scaledreamer.json", camera_features=0), "class_embed_type is projection"),
        (_edit("scaledreamer.json", size_px=64), r"size_px is 64; .* 16"),
        (_edit("scaledreamer.json", pach=2), r"pach: unknown key"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(
    tmp_path: Path, toybox: Path, damage: Callable[[Path], None], message: str
) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(toybox, root)
    damage(root)
    with pytest.raises(ValueError, match=message) as caught:
        _prior(root)
    assert "\n" not in str(caught.value)


def test_text_width_must_match_the_network(tmp_path: Path) -> None:
    folders.save_stable_diffusion(tmp_path, "epsilon")
    shutil.rmtree(tmp_path / "text_encoder")
    shutil.rmtree(tmp_path / "tokenizer")
    folders.clip_folders.save_plain_tower(tmp_path, width=32)
    with pytest.raises(ValueError, match=r"cross_attention_dim is 16; .* need 32"):
        _prior(tmp_path)


def test_settings_that_contradict_are_errors(toybox: Path) -> None:
    with pytest.raises(ValueError, match="needs dtype float32"):
        unet.Config(autocast=True, dtype="float16")
    with pytest.raises(ValueError, match="chunk_size"):
        unet.Config(chunk_size=-1)
    with pytest.raises(ValueError, match="1 texts and cameras of 2 scenes"):
        _prior(toybox).condition(["a red box"], CAMERAS)


def test_a_bad_text_is_a_row_of_its_own(toybox: Path) -> None:
    assert _prior(toybox).condition(["a red box"], CAMERAS[:1]).bad is None
    for options in ({}, {"use_view_words": True}):
        prior = _prior(toybox, bad_prompt="a blue ball", **options)
        condition = prior.condition(["a red box"], CAMERAS[:1])
        assert condition.bad is not None
        alone = prior._parts.text(["a blue ball"]).tokens
        tokens = condition.bad.text.tokens[:, : alone.shape[1]]
        torch.testing.assert_close(tokens, alone.expand_as(tokens))


def test_float16_trains_no_lora(toybox: Path) -> None:
    with pytest.raises(ValueError, match=r"prior\.dtype: got float16"):
        _prior(toybox, dtype="float16").lora_copy(4, 8)
