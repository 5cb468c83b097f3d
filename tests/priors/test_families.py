"""Families of priors against diffusers' own pipelines, from the text to the decoded image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtAlphaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import SlicedAttnProcessor
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5EncoderModel,
)

from scaledreamer.cameras import ring
from scaledreamer.config import build, component_module
from scaledreamer.encoders._pretrained import load_pretrained
from scaledreamer.interfaces import ConditionRows
from scaledreamer.priors import _folder
from scaledreamer.priors._text import OffloadedText
from tests.encoders import folders as text_folders
from tests.priors import folders

TEXT_MODELS = {
    one.__name__: one for one in (CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel)
}
TEXT = "a red box on top of a blue ball"
STEPS = 4


def create(name: str, root: Path, **options: Any) -> Any:
    module = component_module("scaledreamer.priors", name)
    return module.create(build(module.Config, {"folder": str(root), **options}), "cpu")


def _vp(root: Path) -> Any:
    """Steps at the same times as ours, down to clean data."""
    return DDIMScheduler.from_pretrained(
        root / "scheduler",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        prediction_type="epsilon",
    )


def _flow(_: Path) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


@dataclass(frozen=True)
class Family:
    """How a small folder is made, and how its own pipeline is asked for the same image."""

    name: str
    save: Callable[[Path], Any]
    pipeline: Any
    scheduler: Callable[[Path], Any]
    options: Mapping[str, Any]
    guidance_scale: float = 3.0


SIGMAS = torch.linspace(1, 1 / STEPS, STEPS).tolist()
FAMILIES = [
    Family("unet", folders.save_sdxl, StableDiffusionXLPipeline, _vp, {}),
    Family(
        "sd3",
        folders.save_sd3,
        StableDiffusion3Pipeline,
        _flow,
        {"sigmas": SIGMAS, "max_sequence_length": 30},
    ),
    Family(
        "flux",
        folders.save_flux,
        FluxPipeline,
        _flow,
        {"sigmas": SIGMAS, "guidance_scale": 3.5, "max_sequence_length": 30},
        guidance_scale=1.0,
    ),
    Family(
        "pixart",
        folders.save_pixart,
        PixArtAlphaPipeline,
        _vp,
        {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 30},
    ),
]


def _pipeline(family: Family, prior: Any, root: Path) -> Any:
    """The family's own pipeline on the same frozen components."""
    parts = prior._parts
    components: dict[str, Any] = {"scheduler": family.scheduler(root), "vae": parts.space._vae}
    components["unet" if family.name == "unet" else "transformer"] = parts.network
    for path in sorted(root.glob("text_encoder*")):
        number = path.name.removeprefix("text_encoder")
        model_class = TEXT_MODELS[json.loads((root / "model_index.json").read_text())[path.name][1]]
        components[path.name] = load_pretrained(model_class, path, "model")
        tokenizer = AutoTokenizer.from_pretrained(root / f"tokenizer{number}")
        tokenizer.model_max_length = min(tokenizer.model_max_length, 77)
        components[f"tokenizer{number}"] = tokenizer
    return family.pipeline(**components)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.pipeline.__name__)
def test_samples_are_those_of_the_family_s_own_pipeline(family: Family, tmp_path: Path) -> None:
    torch.manual_seed(3)
    family.save(tmp_path)
    has_t5 = family.name != "unet"
    prior = create(family.name, tmp_path, **({"t5_tokens": 30} if has_t5 else {}))
    noise = torch.randn(1, *prior.latent_shape)
    condition = prior.condition([TEXT], None)
    images = prior.sample(condition, STEPS, family.guidance_scale, noise)
    pipeline = _pipeline(family, prior, tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    given = noise
    if family.name == "flux":
        given = pipeline._pack_latents(noise, 1, *noise.shape[1:])
    options = {"guidance_scale": family.guidance_scale, **family.options}
    if family.name != "unet":
        options["num_images_per_prompt"] = 1
    expected = pipeline(
        TEXT,
        height=prior.size_px,
        width=prior.size_px,
        num_inference_steps=STEPS,
        latents=given,
        output_type="pt",
        **options,
    ).images
    # at t = 1 a noise prediction is divided by a small alpha
    torch.testing.assert_close(images, expected, atol=2e-3, rtol=1e-3)


def test_deepfloyd_runs_as_its_pipeline_runs_it(tmp_path: Path) -> None:
    """T5 sees the mask, the network does not; half of the output is a variance."""
    network = folders.save_deepfloyd(tmp_path)
    prior = create("unet", tmp_path)
    assert (prior.size_px, prior.latent_shape) == (16, (3, 16, 16))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    batch = tokenizer([TEXT], padding="max_length", max_length=77, return_tensors="pt")
    encoder: Any = T5EncoderModel.from_pretrained(tmp_path / "text_encoder")
    x_t = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        tokens = encoder(**batch).last_hidden_state
        expected = network(x_t, torch.tensor([499]), encoder_hidden_states=tokens).sample[:, :3]
    condition = prior.condition([TEXT.upper()], None)  # its texts are in lower case
    noise = prior.predict_noise(x_t, torch.tensor([0.5]), condition.positive)
    torch.testing.assert_close(noise, expected, atol=1e-5, rtol=1e-5)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(prior.encode(images), images * 2 - 1)


def test_the_empty_text_of_sdxl_is_zeros_where_its_folder_says_so(tmp_path: Path) -> None:
    for name, use_zeros in (("zeros", True), ("text", False)):
        root = tmp_path / name
        folders.save_sdxl(root, use_zeros)
        text = create("unet", root).condition([TEXT], None).null.text
        assert bool((text.tokens == 0).all()) == use_zeros
        assert bool((text.pooled == 0).all()) == use_zeros


def test_sd3_without_t5_has_zeros_in_its_place(tmp_path: Path) -> None:
    folders.save_sd3(tmp_path)
    text = create("sd3", tmp_path, use_t5=False, t5_tokens=5).condition([TEXT], None).positive.text
    assert text.tokens.shape[1] == text_folders.MAX_TOKENS + 5
    assert (text.tokens[:, text_folders.MAX_TOKENS :] == 0).all()
    assert not text.mask[:, text_folders.MAX_TOKENS :].any()


def test_flux_is_told_a_guidance_only_where_it_takes_one(tmp_path: Path) -> None:
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])

    def noise(root: Path, guidance: float) -> Tensor:
        prior = create("flux", root, embedded_guidance=guidance)
        return prior.predict_noise(x_t, t, prior.condition([TEXT], None).positive)

    folders.save_flux(tmp_path / "dev")
    folders.save_flux(tmp_path / "schnell", is_distilled=False)
    assert not torch.allclose(noise(tmp_path / "dev", 1.0), noise(tmp_path / "dev", 5.0))
    assert torch.equal(noise(tmp_path / "schnell", 1.0), noise(tmp_path / "schnell", 5.0))


def test_pixart_of_1024_px_is_told_the_size(tmp_path: Path) -> None:
    folders.save_pixart(tmp_path, use_additional_conditions=True)
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    prior = create("pixart", tmp_path, image_px=32)
    assert prior.latent_shape == (4, 16, 16)
    rows = prior.condition([TEXT], None).positive
    large = prior.predict_noise(x_t, t, rows)
    small = create("pixart", tmp_path).predict_noise(x_t, t, rows)
    assert not torch.allclose(large, small, atol=1e-6)


SAVED = [
    *((family.name, family.save) for family in FAMILIES),
    ("unet", folders.save_deepfloyd),
    ("mvdream", folders.save_mvdream),
]


@pytest.mark.parametrize(("name", "save"), SAVED)
def test_gradient_reaches_the_renders_and_the_prior_stays_as_it_was(
    name: str, save: Any, tmp_path: Path
) -> None:
    save(tmp_path)
    prior = create(name, tmp_path)
    weights = [*prior._parts.network.parameters()]
    before = [weight.clone() for weight in weights]
    views = prior.num_views
    condition = prior.condition(["a red box"], ring(1, tuple(90.0 * i for i in range(views))))
    images = torch.rand(views, 3, 24, 24, requires_grad=True)
    latents = prior.encode(images)
    noise = prior.predict_noise(latents, torch.full((views,), 0.4), condition.positive)
    (latents * noise).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert all(map(torch.equal, weights, before))
    assert not any(weight.requires_grad for weight in weights)


@pytest.mark.parametrize(("name", "save"), [("unet", folders.save_deepfloyd), *SAVED[1:4]])
def test_a_lora_copy_sees_cameras_and_leaves_the_prior_alone(
    name: str, save: Any, tmp_path: Path
) -> None:
    save(tmp_path)
    prior = create(name, tmp_path)
    lora = prior.lora_copy(2, prior.camera_dim)
    condition = prior.condition(["a red box"], ring(1, (0.0, 90.0)))
    x_t, t = torch.randn(2, *prior.latent_shape), torch.tensor([0.3, 0.6])
    rows = ConditionRows(condition.positive.text, condition.cameras)
    plain = prior.predict_noise(x_t, t, condition.positive)
    assert torch.equal(lora.predict_noise(x_t, t, rows), plain)
    loss = lora.denoising_loss(x_t, torch.randn_like(x_t), t, rows).sum()
    loss.backward()
    grads = {n: p.grad for n, p in lora.named_parameters()}
    assert all(g is not None for g in grads.values())
    assert grads["trained.cameras.last.weight"].abs().sum() > 0
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    moved = lora.predict_noise(x_t, t, rows)
    turned = lora.predict_noise(x_t, t, ConditionRows(rows.text, condition.cameras.flip(0)))
    assert not torch.allclose(moved, plain, atol=1e-5)
    assert not torch.allclose(moved, turned, atol=1e-5)
    assert torch.equal(prior.predict_noise(x_t, t, condition.positive), plain)


@pytest.mark.parametrize(("name", "save"), [("sd3", folders.save_flux), ("unet", folders.save_sd3)])
def test_the_wrong_family_names_the_right_one(name: str, save: Any, tmp_path: Path) -> None:
    save(tmp_path)
    right = _folder.family_of(tmp_path)
    with pytest.raises(ValueError, match=rf"set prior\.name={right}|names no unet"):
        create(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "save", "edit", "message"),
    [
        ("sd3", folders.save_sd3, {"pooled_projection_dim": 9}, "pooled_projection_dim is 9"),
        ("flux", folders.save_flux, {"joint_attention_dim": 9}, "joint_attention_dim is 9"),
        ("pixart", folders.save_pixart, {"caption_channels": 9}, "caption_channels is 9"),
    ],
)
def test_a_width_that_does_not_fit_is_named(
    name: str, save: Any, edit: dict[str, int], message: str, tmp_path: Path
) -> None:
    save(tmp_path)
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    module = component_module("scaledreamer.priors", name)
    config = build(module.Config, {"folder": str(tmp_path)})
    with pytest.raises(ValueError, match=rf"transformer/config\.json: {message}") as caught:
        module.create(config, "meta")  # no weights are read, which would not fit either
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["transformer", "vae", "tokenizer_2", "text_encoder_3"])
def test_a_missing_component_is_named(part: str, tmp_path: Path) -> None:
    folders.save_sd3(tmp_path)
    shutil.rmtree(tmp_path / part)
    with pytest.raises(ValueError, match=rf"{part}/.*\.json: missing"):
        create("sd3", tmp_path)


def test_a_tiny_autoencoder_takes_the_vae_s_place(tmp_path: Path) -> None:
    folders.save_stable_diffusion(tmp_path / "sd", "epsilon")
    tiny: Any = folders.save_tiny_vae(tmp_path / "tiny")
    prior = create("unet", tmp_path / "sd", tiny_vae=str(tmp_path / "tiny"))
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    latents = prior.encode(images)
    torch.testing.assert_close(latents, tiny.encode(images * 2 - 1).latents)
    latents.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    expected = (tiny.decode(latents.detach()).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(prior.decode(latents.detach()), expected)


@pytest.mark.parametrize(("name", "save"), SAVED)
def test_offloading_changes_no_number(name: str, save: Any, tmp_path: Path) -> None:
    save(tmp_path)
    views = 4
    results = []
    for use_offload in (False, True):
        prior = create(name, tmp_path, use_offload=use_offload)
        cameras = ring(2, tuple(90.0 * view for view in range(views)))
        for texts in (["a red box", "a blue ball"], ["a blue ball", "a green mug"]):
            rows = prior.condition(texts, cameras).positive
        x_t = torch.randn(2 * views, *prior.latent_shape, generator=torch.manual_seed(1))
        noise = prior.predict_noise(x_t, torch.full((2 * views,), 0.5), rows)
        results.append((noise, prior.decode(x_t), prior.encode(torch.ones(1, 3, 16, 16))))
    for plain, offloaded in zip(*results, strict=True):
        torch.testing.assert_close(offloaded, plain)


def test_an_offloaded_decoder_visits_the_device_only_to_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.save_stable_diffusion(tmp_path, "epsilon")
    prior = create("unet", tmp_path, use_offload=True)
    decoder, moves = prior._parts.space._vae.decoder, []
    monkeypatch.setattr(decoder, "to", lambda device: moves.append(str(device)))
    prior.encode(torch.rand(1, 3, 16, 16))
    assert not moves
    prior._parts.space._device = torch.device("cuda")
    prior.decode(torch.randn(1, 4, 8, 8))
    assert moves == ["cuda", "cpu"]


def test_remembered_texts_are_bounded(tmp_path: Path) -> None:
    folders.save_stable_diffusion(tmp_path, "epsilon")
    inner = create("unet", tmp_path)._parts.text
    size = 77 * text_folders.WIDTH * 4
    text = OffloadedText(inner, torch.device("cpu"), max_bytes=3 * size + 1)
    words = ["a red box", "a blue ball", "a green mug", "a box"]
    torch.testing.assert_close(text(words).tokens, inner(words).tokens)
    assert list(text._known) == words[1:]
    assert text(words[:2]).encoder_id == inner.encoder_id


@pytest.mark.parametrize("option", ["attention_slicing", "use_compile"])
def test_options_of_speed_and_memory_change_no_number(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    compile_for = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda one: compiled.append(one) or compile_for(one, backend="eager")
    )
    folders.save_stable_diffusion(tmp_path, "epsilon")
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.7])
    noises = []
    for options in ({}, {option: True}):
        prior = create("unet", tmp_path, **options)
        rows = prior.condition(["a red box", "a blue ball"], None).positive
        noises.append(prior.predict_noise(x_t, t, rows))
    torch.testing.assert_close(*noises, atol=1e-5, rtol=1e-5)
    assert len(compiled) == (option == "use_compile")
    processors = {type(one) for one in prior._parts.network.attn_processors.values()}  # type: ignore[possibly-undefined]
    assert (processors == {SlicedAttnProcessor}) == (option == "attention_slicing")


def test_image_px_sets_the_size_of_the_latents(tmp_path: Path) -> None:
    folders.save_stable_diffusion(tmp_path, "epsilon")
    prior = create("unet", tmp_path, image_px=24)
    assert (prior.size_px, prior.latent_shape) == (24, (4, 12, 12))
    assert prior.encode(torch.rand(1, 3, 64, 64)).shape == (1, 4, 12, 12)
    with pytest.raises(ValueError, match=r"prior\.image_px: got 18; must be a multiple of 4"):
        create("unet", tmp_path, image_px=18)
