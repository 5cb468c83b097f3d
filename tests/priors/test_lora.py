"""LoRA copies of small random UNets: shared weights, merged weights, cameras, denoising."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaledreamer.cameras import ring
from scaledreamer.interfaces import ConditionRows, LoraCopy, LoraPrior
from scaledreamer.priors import gaussian_mixture, unet
from scaledreamer.priors._lora import CameraEmbedding, LowRank
from scaledreamer.priors.unet import UNetPrior
from tests.priors import folders

TEXTS = ["a red box", "a blue ball"]
CAMERAS = ring(2, (0.0, 90.0, 180.0))
T = torch.tensor([0.02, 0.2, 0.4, 0.6, 0.8, 1.0])
RANK = 3
KINDS = ["cameras", "dropped", "epsilon", "v_prediction"]


def _prior(kind: Any, root: Path, **options: Any) -> UNetPrior:
    """With a camera input, with one that is not used, and two Stable Diffusions without any."""
    if kind in ("cameras", "dropped"):
        folders.save_toybox(root)
        options["use_cameras"] = kind == "cameras"
    else:
        folders.save_stable_diffusion(root, kind)
    return unet.create(unet.Config(folder=str(root), **options))


def _copy(prior: Any) -> Any:
    return prior.lora_copy(RANK, prior.camera_dim)


def _rows(prior: UNetPrior) -> tuple[ConditionRows, ConditionRows]:
    """The prior's own and the copy's."""
    condition = prior.condition(TEXTS, CAMERAS)
    return condition.positive, replace(condition.positive, cameras=condition.cameras)


def _x_t(prior: UNetPrior) -> Tensor:
    return torch.randn(6, *prior.latent_shape, generator=torch.Generator().manual_seed(5))


def _disturb(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_copy_predicts_what_the_prior_does(kind: str, tmp_path: Path) -> None:
    prior = _prior(kind, tmp_path)
    lora, (own, rows) = _copy(prior), _rows(prior)
    assert isinstance(prior, LoraPrior)
    assert isinstance(lora, LoraCopy)
    x_t = _x_t(prior)
    found = lora.predict_noise(x_t, T, rows)
    assert torch.equal(found, prior.predict_noise(x_t, T, own))
    assert not found.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_the_additions_and_the_base_is_shared(kind: str, tmp_path: Path) -> None:
    prior = _prior(kind, tmp_path)
    before = {one.data_ptr() for one in prior._parts.network.parameters()}
    num_modules = len(list(prior._parts.network.modules()))
    lora = _copy(prior)
    assert {one.data_ptr() for one in prior._parts.network.parameters()} == before
    assert len(list(prior._parts.network.modules())) == num_modules
    assert not before & {one.data_ptr() for one in lora.parameters()}
    ends = {name.rsplit(".", 1)[-1] for name in lora.state_dict() if ".cameras." not in name}
    assert ends == {"down", "up"}
    has_embedding = any(isinstance(one, CameraEmbedding) for one in lora.modules())
    assert has_embedding == (kind != "cameras")
    # Self- and cross-attention, each of four layers, in the middle, one block down and two up.
    assert sum(isinstance(one, LowRank) for one in lora.modules()) == 4 * 8
    assert all(one.requires_grad and one.dtype == torch.float32 for one in lora.parameters())
    other = _copy(prior)
    _disturb(lora)
    other.load_state_dict(lora.state_dict())
    x_t, (_, rows) = _x_t(prior), _rows(prior)
    assert torch.equal(lora.predict_noise(x_t, T, rows), other.predict_noise(x_t, T, rows))


def _merged(prior: UNetPrior, lora: nn.Module) -> UNetPrior:
    """A prior whose weights are W + up @ down."""
    network: Any = copy.deepcopy(prior._parts.network)
    additions: Any = lora.trained
    with torch.no_grad():
        for name, addition in additions.items():
            if isinstance(addition, LowRank):
                weight = network.get_submodule(name.replace("/", ".")).weight
                weight.add_(addition.up @ addition.down)
    return UNetPrior(replace(prior._parts, network=network), prior._config)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 4}, {"channels_last": False}])
def test_a_copy_is_the_network_with_merged_weights(options: dict[str, Any], tmp_path: Path) -> None:
    prior = _prior("cameras", tmp_path, **options)
    lora = _copy(prior)
    _disturb(lora)
    x_t, (own, _) = _x_t(prior), _rows(prior)
    found = lora.predict_noise(x_t, T, own)
    torch.testing.assert_close(found, _merged(prior, lora).predict_noise(x_t, T, own))
    assert (found - prior.predict_noise(x_t, T, own)).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["dropped", "epsilon"])
def test_cameras_reach_a_copy_of_a_prior_that_sees_none(kind: str, tmp_path: Path) -> None:
    prior = _prior(kind, tmp_path)
    lora, x_t, (own, rows) = _copy(prior), _x_t(prior), _rows(prior)
    assert rows.cameras is not None
    t = T.clamp(max=0.9)  # at 1 a velocity hardly changes eps
    plain = prior.predict_noise(x_t, t, own)
    _disturb(lora.trained["cameras"])
    found = lora.predict_noise(x_t, t, rows)
    assert ((found - plain).flatten(1).abs().amax(dim=1) > 1e-4).all()
    turned = lora.predict_noise(x_t, t, replace(rows, cameras=rows.cameras.roll(1, dims=0)))
    assert not torch.allclose(found, turned, atol=1e-4)
    dropped = lora.predict_noise(x_t, t, replace(rows, cameras=torch.zeros_like(rows.cameras)))
    assert torch.equal(lora.predict_noise(x_t, t, replace(rows, cameras=None)), dropped)
    assert torch.equal(prior.predict_noise(x_t, t, own), plain)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_compares_outputs_in_the_network_s_own_kind(kind: str, tmp_path: Path) -> None:
    prior = _prior(kind, tmp_path)
    lora, clean, (_, rows) = _copy(prior), _x_t(prior), _rows(prior)
    _disturb(lora)
    noise, t = torch.randn_like(clean), T.clamp(max=0.9)
    alpha, sigma = (v(t).view(-1, 1, 1, 1) for v in (prior.schedule.alpha, prior.schedule.sigma))
    eps = lora.predict_noise(alpha * clean + sigma * noise, t, rows)
    # An error of eps is alpha times one of v, as x_t = alpha x_0 + sigma eps is known.
    scale = alpha if kind == "v_prediction" else torch.ones_like(alpha)
    expected = ((eps - noise) / scale).square().flatten(1).mean(dim=1)
    found = lora.denoising_loss(clean, noise, t, rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"autocast": True}, {"dtype": "bfloat16"}])
@pytest.mark.parametrize("kind", ["cameras", "v_prediction"])
def test_training_fits_the_copy_and_leaves_the_prior_to_the_bit(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    prior = _prior(kind, tmp_path, **options)
    lora, (own, rows) = _copy(prior), _rows(prior)
    x_t, network = _x_t(prior), prior._parts.network
    weights = [one.clone() for one in network.parameters()]
    prediction = prior.predict_noise(x_t, T, own)
    generator = torch.Generator().manual_seed(3)
    centre = torch.randn(prior.latent_shape, generator=generator)
    clean = centre + 0.1 * torch.randn(x_t.shape, generator=generator)
    noise = torch.randn(x_t.shape, generator=generator)
    losses: list[float] = []
    optimizer = torch.optim.Adam(lora.parameters(), lr=3e-2)
    for _ in range(40):
        loss = lora.denoising_loss(clean, noise, T.clamp(max=0.9), rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(one.grad is not None for one in lora.parameters())
    assert losses[-1] < 0.95 * losses[0]
    for weight, former in zip(network.parameters(), weights, strict=True):
        assert weight.grad is None
        assert torch.equal(weight, former)
    assert torch.equal(prior.predict_noise(x_t, T, own), prediction)
    assert not torch.allclose(lora.predict_noise(x_t, T, rows), prediction, atol=1e-3)


def _unet_condition(root: Path) -> UNetPrior:
    return _prior("epsilon", root)


def _mixture(_: Path) -> Any:
    return gaussian_mixture.create(gaussian_mixture.Config())


@pytest.mark.parametrize("make", [_unet_condition, _mixture])
def test_conditions_hold_cameras_whenever_they_were_given(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    prior = make(tmp_path)
    condition = prior.condition(TEXTS, CAMERAS)
    assert condition.positive.cameras is None
    assert condition.cameras.shape == (6, prior.camera_dim)
    assert prior.condition(TEXTS, None).cameras is None


def test_view_words_keep_the_cameras(tmp_path: Path) -> None:
    folders.save_toybox(tmp_path)
    options = unet.Config(folder=str(tmp_path), use_view_words=True, use_perp_neg=True)
    condition = unet.create(options).condition(TEXTS, CAMERAS)
    assert condition.negatives
    assert condition.cameras is not None
