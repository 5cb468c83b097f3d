"""R-precision under one protocol: the right caption among 100, per view.

Candidates of a prompt are itself, 10 hard swaps (colours exchanged, relation reversed, one word
off) and 89 prompts of the whole corpus at random by seed. Source: R-precision as in Poole et al.,
"DreamFusion", ICLR 2023; the hard candidates are ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

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


def candidates(prompt: str, seed: int = 0) -> list[str]:
    """The prompt first, then 10 hard swaps, then random prompts of the corpus; all distinct."""
    chosen = dict.fromkeys([prompt, *grammar.hard_swaps(prompt, NUM_HARD)])
    corpus = [text for split in grammar.SPLITS for text in grammar.prompts(split)]
    rng = random.Random(f"{seed}/{prompt_id(prompt)}")
    while len(chosen) < NUM_CANDIDATES:
        chosen.setdefault(rng.choice(corpus))
    return list(chosen)


@dataclass(frozen=True)
class Judgement:
    """Per prompt."""

    recall_at_1: Float[Tensor, "B"]
    """Share of views whose best candidate is the prompt."""
    similarity: Float[Tensor, "B"]
    """Mean cosine to the prompt."""


@torch.no_grad()
def judge(
    scorer: ImageTextScorer,
    prompts: Sequence[str],
    images: Float[Tensor, "B V 3 H W"],
    seed: int = 0,
) -> Judgement:
    """R@1 and similarity of B prompts' views, on white."""
    num_prompts, num_views = images.shape[:2]
    features = scorer.image_features(images.flatten(0, 1)).view(num_prompts, num_views, -1)
    recall, similarity = [], []
    for prompt, views in zip(prompts, features, strict=True):
        cosine = views @ scorer.text_features(candidates(prompt, seed)).T  # [V, candidates]
        recall.append((cosine.argmax(dim=1) == 0).float().mean())
        similarity.append(cosine[:, 0].mean())
    return Judgement(torch.stack(recall).cpu(), torch.stack(similarity).cpu())
