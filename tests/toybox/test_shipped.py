"""The shipped weights do what their cards say: they follow text and camera."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaledreamer.cameras import ring
from scaledreamer.encoders import clip_score, clip_text
from scaledreamer.evaluation.judging import cameras, judge, judged_texts
from scaledreamer.interfaces import CameraBatch, Condition
from scaledreamer.priors import unet
from scaledreamer.storage import resolve_folder
from scaledreamer.toybox.world import grammar
from scaledreamer.toybox.world.render import render

PROMPTS = [
    "a yellow duck wearing a blue hat",
    "a green cactus on top of a purple box",
    "an orange car with black wheels",
    "a red rocket with white fins",
]
VIEWS = ring(len(PROMPTS), (0.0, 90.0, 180.0, 270.0))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return render([grammar.parse(prompt) for prompt in PROMPTS], VIEWS, 32).rgb.flatten(0, 1)


def _error(prior: unet.UNetPrior, images: Tensor, condition: Condition, at: float = 0.7) -> float:
    """Mean squared error of the noise predicted at that time."""
    t = torch.full((len(images),), at)
    latents = prior.encode(images)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (f(t)[:, None, None, None] for f in (prior.schedule.alpha, prior.schedule.sigma))
    eps = prior.predict_noise(alpha * latents + sigma * noise, t, condition.positive)
    return float((eps - noise).square().mean())


def _turned(views: CameraBatch, angle_deg: float) -> CameraBatch:
    return replace(views, azimuth_deg=(views.azimuth_deg + angle_deg) % 360)


def test_the_prior_follows_text_and_camera(images: Tensor):
    prior = unet.create(unet.Config())
    right = _error(prior, images, prior.condition(PROMPTS, VIEWS))
    others = [grammar.hard_swaps(prompt)[0] for prompt in PROMPTS]
    assert right < 0.9 * _error(prior, images, prior.condition(others, VIEWS))
    assert right < 0.9 * _error(prior, images, prior.condition(PROMPTS, _turned(VIEWS, 90)))
    assert right < 0.9 * _error(prior, images, prior.condition([""] * len(PROMPTS), VIEWS))


def test_without_cameras_it_is_broad(images: Tensor):
    given, dropped = (
        _error(prior, images, prior.condition(PROMPTS, VIEWS), at=0.9)
        for prior in (unet.create(unet.Config()), unet.create(unet.Config(use_cameras=False)))
    )
    assert given < 0.85 * dropped


def test_the_judge_knows_ground_truth_and_is_not_the_conditioning_clip():
    scenes = [grammar.parse(prompt) for prompt in PROMPTS]
    exact = render(scenes, cameras(len(PROMPTS)), 64).rgb
    scorer = clip_score.load("toybox:judge")
    judged = judge(scorer, exact, judged_texts(scorer, PROMPTS))
    assert judged.recall_at_1.mean() > 0.9
    assert scorer.scorer_id != clip_score.load("toybox:clip").scorer_id


def test_every_word_of_the_grammar_is_one_token():
    encoder = clip_text.load("toybox:clip")
    words = {word for split in grammar.SPLITS for p in grammar.prompts(split) for word in p.split()}
    assert encoder.unknown_words(" ".join(sorted(words))) == []


@pytest.mark.parametrize("name", ["clip", "judge", "prior"])
def test_weights_carry_a_card(name: str):
    folder = resolve_folder(f"toybox:{name}")
    assert (folder / "card.json").is_file()
    assert "steps" in (folder / "README.md").read_text()


def test_shipped_weights_stay_small():
    folder = Path(resolve_folder("toybox:clip")).parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 60e6
