"""Pictures for the cards of the embedded models."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from scaledreamer.cameras import ring
from scaledreamer.encoders import clip_score
from scaledreamer.evaluation import judging
from scaledreamer.evaluation.protocol import ground_truth_views, prior_images
from scaledreamer.interfaces import CameraBatch
from scaledreamer.pipeline import TextTo3D
from scaledreamer.priors import unet
from scaledreamer.rendering.sheet import contact_sheet

PROMPTS = (
    "a blue mug with a white handle",
    "a yellow duck wearing a blue hat",
    "a green cactus on top of a purple box",
    "a brown chair with a red seat",
    "an orange car with black wheels",
    "a pink castle on top of a brown table",
    "a red house next to a green tree",
    "a white boat next to a black cat",
)
_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)
_SHOWN_PX = 64


def _cameras() -> CameraBatch:
    return ring(len(PROMPTS), _AZIMUTHS_DEG, judging.ELEVATION_DEG)


def prior_sheet(folder: str) -> Image.Image:
    """Samples of the prior from four sides; ground truth to the right."""
    images_of = prior_images(unet.create(unet.Config(folder=folder)), 30, 2.0)
    return _beside_truth(images_of(PROMPTS, _cameras(), 0))


def generator_sheet(folder: str) -> Image.Image:
    """Renders of the generator from four sides; ground truth to the right."""
    pipe = TextTo3D.from_pretrained(folder)
    return _beside_truth(pipe.render(PROMPTS, _cameras(), _SHOWN_PX).rgb)


@torch.no_grad()
def judge_sheet(folder: str) -> Image.Image:
    """Ground truth from four sides, and how many of them a CLIP gives each caption it finds."""
    scorer = clip_score.load(folder)
    exact = ground_truth_views(PROMPTS, _cameras(), _SHOWN_PX).rgb
    rows = []
    for prompt, images in zip(PROMPTS, exact, strict=True):
        texts = judging.candidates(prompt)
        scores = scorer.image_features(images) @ scorer.text_features(texts).T
        found = [texts[index] for index in scores.argmax(dim=1).tolist()]
        counts = ", ".join(f"{found.count(text)}x {text}" for text in dict.fromkeys(found))
        rows.append((counts, images))
    return contact_sheet(rows)


def _beside_truth(made: Tensor) -> Image.Image:
    exact = ground_truth_views(PROMPTS, _cameras(), _SHOWN_PX).rgb
    shown = F.interpolate(made.flatten(0, 1), _SHOWN_PX, mode="nearest")
    rows = torch.cat((shown.unflatten(0, made.shape[:2]), exact), dim=1)
    return contact_sheet(list(zip(PROMPTS, rows, strict=True)))
