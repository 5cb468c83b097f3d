"""R-precision under one protocol: the right caption among 100, per view.

Candidates of a prompt are itself, 10 hard swaps (colours exchanged, relation reversed, one word
off) and 89 prompts of the whole corpus at random by seed. Source: R-precision as in Poole et al.,
"DreamFusion", ICLR 2023; the hard candidates are ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
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

    recall_at_1: Float[Tensor, "B"]
    """Share of views whose best candidate is the prompt."""
    similarity: Float[Tensor, "B"]
    """Mean cosine to the prompt."""


def candidate_features(
    scorer: ImageTextScorer, prompts: Sequence[str], seed: int = 0
) -> Float[Tensor, "B C F"]:
    """Features of every prompt's candidates, the prompt's own first."""
    texts = [text for prompt in prompts for text in candidates(prompt, seed)]
    return scorer.text_features(texts).unflatten(0, (len(prompts), NUM_CANDIDATES))


@torch.no_grad()
def judge(
    scorer: ImageTextScorer, images: Float[Tensor, "B V 3 H W"], texts: Float[Tensor, "B C F"]
) -> Judgement:
    """R@1 and similarity of B prompts' views, on white, among the candidates' features."""
    features = scorer.image_features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    cosine = features @ texts.mT  # [B, V, C]
    recall = (cosine.argmax(dim=-1) == 0).float().mean(dim=1)
    return Judgement(recall.cpu(), cosine[..., 0].mean(dim=1).cpu())
