"""A generator, a prior or ground truth judged on the same prompts, views and candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scaledreamer.evaluation.ground_truth import TruthScores, image_scores
from scaledreamer.evaluation.judging import Judgement, cameras, judge
from scaledreamer.interfaces import ImageTextScorer, Views
from scaledreamer.pipeline import TextTo3D
from scaledreamer.priors.unet import UNetPrior
from scaledreamer.toybox.world import grammar
from scaledreamer.toybox.world.render import render

SIZE_PX = 64
BATCH = 8

ViewsOf = Callable[[Sequence[str]], Views]
"""Prompts -> their eight judged views on white."""


def ground_truth_views(prompts: Sequence[str]) -> Views:
    scenes = [grammar.parse(prompt) for prompt in prompts]
    return render(scenes, cameras(len(prompts)), SIZE_PX)


def generator_views(pipe: TextTo3D) -> ViewsOf:
    return lambda prompts: pipe.render(prompts, cameras(len(prompts)), SIZE_PX)


def prior_images(
    prior: UNetPrior, prompts: Sequence[str], num_steps: int, guidance_scale: float, seed: int = 0
) -> Tensor:
    """[B, V, 3, H, W] samples of the prior through the judged cameras."""
    views = cameras(len(prompts))
    condition = prior.condition(prompts, views)
    images = prior.sample(
        condition,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
    )
    return images.unflatten(0, tuple(views.fov_deg.shape))


@dataclass(frozen=True)
class Scores:
    """Per prompt; `truth` is None for what has no geometry (prior samples)."""

    prompts: Sequence[str]
    judgement: Judgement
    ceiling: Judgement
    """The same judge on ground-truth renders of the same prompts."""
    truth: TruthScores | None

    def summary(self) -> dict[str, float]:
        """Means over the prompts; `share_of_ceiling` is R@1 over the ceiling's R@1."""
        recall, ceiling = self.judgement.recall_at_1.mean(), self.ceiling.recall_at_1.mean()
        out = {
            "prompts": float(len(self.prompts)),
            "recall_at_1": float(recall),
            "ceiling_recall_at_1": float(ceiling),
            "share_of_ceiling": float(recall / ceiling.clamp(min=1e-6)),
            "similarity": float(self.judgement.similarity.mean()),
            "ceiling_similarity": float(self.ceiling.similarity.mean()),
        }
        if self.truth is not None:
            out["silhouette_iou"] = float(self.truth.silhouette_iou.mean())
            out["psnr_db"] = float(self.truth.psnr_db.mean())
            out["colour_error"] = float(self.truth.colour_error.mean())
        return out


def _gather(parts: Sequence[Judgement]) -> Judgement:
    return Judgement(
        torch.cat([part.recall_at_1 for part in parts]),
        torch.cat([part.similarity for part in parts]),
    )


@torch.no_grad()
def evaluate(
    scorer: ImageTextScorer,
    prompts: Sequence[str],
    images_of: ViewsOf | Callable[[Sequence[str]], Tensor],
    progress: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Judge `images_of` on ToyBox prompts beside the ceiling, in batches.

    Raises: ValueError for a prompt that is not a ToyBox caption.
    """
    judged, ceilings, truths = [], [], []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        exact = ground_truth_views(batch)
        made = images_of(batch)
        images = made if isinstance(made, Tensor) else made.rgb
        judged.append(judge(scorer, batch, images))
        ceilings.append(judge(scorer, batch, exact.rgb))
        if not isinstance(made, Tensor):
            truths.append(image_scores(made, exact))
        progress(len(batch))
    truth = None
    if truths:
        truth = TruthScores(
            torch.cat([part.silhouette_iou for part in truths]),
            torch.cat([part.psnr_db for part in truths]),
            torch.cat([part.colour_error for part in truths]),
        )
    return Scores(prompts, _gather(judged), _gather(ceilings), truth)
