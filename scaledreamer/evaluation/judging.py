"""R-precision under one protocol: the right caption among 100, per view.

Candidates of a prompt are itself, 10 hard swaps (colours exchanged, relation reversed, one word
off) and 89 prompts of the whole corpus at random by seed. Source: R-precision as in Poole et al.,
"DreamFusion", ICLR 2023; the hard candidates and the front/back test are ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scaledreamer.cameras import ring
from scaledreamer.interfaces import CameraBatch, ImageTextScorer
from scaledreamer.storage import prompt_id
from scaledreamer.toybox.world import grammar

AZIMUTHS_DEG = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
ELEVATION_DEG = 15.0
NUM_CANDIDATES, NUM_HARD = 100, 10


def cameras(num_scenes: int) -> CameraBatch:
    """The eight judged views of every scene."""
    return ring(num_scenes, AZIMUTHS_DEG, ELEVATION_DEG)


@cache
def _corpus() -> tuple[str, ...]:
    return tuple(text for split in grammar.SPLITS for text in grammar.prompts(split))


def candidates(prompt: str, seed: int = 0) -> list[str]:
    """The prompt first, then 10 hard swaps, then random prompts of the corpus; all distinct."""
    chosen = dict.fromkeys([prompt, *grammar.hard_swaps(prompt, NUM_HARD)])
    rng = random.Random(f"{seed}/{prompt_id(prompt)}")
    while len(chosen) < NUM_CANDIDATES:
        chosen.setdefault(rng.choice(_corpus()))
    return list(chosen)


@dataclass(frozen=True)
class Judgement:
    """Per prompt."""

    is_janus: Float[Tensor, "B"]
    """1 where the view from behind, too, looks like a front to the judge; NaN without a front."""

    recall_at_1: Float[Tensor, "B"]
    """Share of views whose best candidate is the prompt."""
    similarity: Float[Tensor, "B"]
    """Mean cosine to the prompt."""


@dataclass(frozen=True)
class JudgedTexts:
    """Text features of B prompts' captions."""

    candidates: Float[Tensor, "B C F"]
    """The prompt's own first."""
    front_back: Float[Tensor, "B 2 F"]
    """The prompt with ", front view" and with ", back view"."""
    has_front: Bool[Tensor, "B"]


def judged_texts(scorer: ImageTextScorer, prompts: Sequence[str], seed: int = 0) -> JudgedTexts:
    """What the views of the prompts are compared with."""
    texts = [text for prompt in prompts for text in candidates(prompt, seed)]
    sides = [f"{prompt}, {side} view" for prompt in prompts for side in ("front", "back")]
    fronts = [
        all(item.kind in grammar.FRONTED for item in grammar.parse(prompt).items)
        for prompt in prompts
    ]
    return JudgedTexts(
        scorer.text_features(texts).unflatten(0, (len(prompts), NUM_CANDIDATES)),
        scorer.text_features(sides).unflatten(0, (len(prompts), 2)),
        torch.tensor(fronts),
    )


@torch.no_grad()
def judge(
    scorer: ImageTextScorer, images: Float[Tensor, "B V 3 H W"], texts: JudgedTexts
) -> Judgement:
    """Scores of B prompts' eight judged views, on white."""
    features = scorer.image_features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    cosine = features @ texts.candidates.mT  # [B, V, C]
    recall = (cosine.argmax(dim=-1) == 0).float().mean(dim=1)
    behind = features[:, AZIMUTHS_DEG.index(180.0)]
    front, back = (behind[:, None] * texts.front_back).sum(-1).unbind(1)
    is_janus = torch.where(texts.has_front.to(front.device), (front > back).float(), torch.nan)
    return Judgement(is_janus.cpu(), recall.cpu(), cosine[..., 0].mean(dim=1).cpu())
