"""A generator, a prior or ground truth judged on the same prompts, views and candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from scaledreamer.evaluation.ground_truth import TruthScores, image_scores
from scaledreamer.evaluation.judging import Judgement, judge, judged_texts
from scaledreamer.evaluation.judging import cameras as judged_cameras
from scaledreamer.interfaces import CameraBatch, ImageTextScorer, Views
from scaledreamer.priors.unet import UNetPrior
from scaledreamer.rng import StepRng
from scaledreamer.storage import prompt_id
from scaledreamer.toybox.world import grammar
from scaledreamer.toybox.world.render import Look, render

SIZE_PX = 64
BATCH = 8

ImagesOf = Callable[[Sequence[str], CameraBatch, int], Views | Tensor]
"""B prompts, their [B, V] cameras and a size in px -> views on white, as `TextTo3D.render` has it.

What has no geometry gives images [B, V, 3, H, W] alone.
"""


def ground_truth_views(prompts: Sequence[str], cameras: CameraBatch, size_px: int) -> Views:
    """Raises: ValueError for a prompt that is not a ToyBox caption."""
    return render([grammar.parse(prompt) for prompt in prompts], cameras, size_px)


def prior_images(
    prior: UNetPrior, num_steps: int, guidance_scale: float, seed: int = 0
) -> Callable[[Sequence[str], CameraBatch, int], Tensor]:
    """Samples of the prior at its own size, whatever is asked.

    The noise depends on seed, prompt and azimuth alone, not on what is sampled beside it.
    """

    def sample(prompts: Sequence[str], cameras: CameraBatch, size_px: int) -> Tensor:
        keys = torch.tensor([int(prompt_id(prompt)[:15], 16) for prompt in prompts])
        rng = StepRng(seed, 0, keys)
        streams = [f"evaluate/{azimuth:g}" for azimuth in cameras.azimuth_deg[0].tolist()]
        noise = [rng.normal(stream, *prior.latent_shape) for stream in streams]
        images = prior.sample(
            prior.condition(prompts, cameras),
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            noise=torch.stack(noise, dim=1).flatten(0, 1),
        )
        return images.unflatten(0, (len(prompts), len(streams)))

    return sample


@dataclass(frozen=True)
class Scores:
    """Per prompt; `truth` is None for what has no geometry (prior samples)."""

    prompts: Sequence[str]
    judgement: Judgement
    ceiling: Judgement
    """The same judge on ground-truth renders of the same prompts."""
    truth: TruthScores | None
    jitter_iou: Tensor | None
    """Silhouette IoU of ground truth with itself at another size, as the prior's images vary."""

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
        if not self.judgement.is_janus.isnan().all():
            out["janus_rate"] = float(self.judgement.is_janus.nanmean())
            out["ceiling_janus_rate"] = float(self.ceiling.is_janus.nanmean())
        if self.truth is not None and self.jitter_iou is not None:
            out["silhouette_iou"] = float(self.truth.silhouette_iou.mean())
            out["ceiling_silhouette_iou"] = float(self.jitter_iou.mean())
            out["psnr_db"] = float(self.truth.psnr_db.mean())
            out["colour_error"] = float(self.truth.colour_error.mean())
        return out

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Means over the prompts that name a kind, worst R@1 first."""
        return self._means(
            (kind, index)
            for index, prompt in enumerate(self.prompts)
            for kind in {item.kind for item in grammar.parse(prompt).items}
        )

    def by_form(self) -> dict[str, dict[str, float]]:
        """Means over the prompts of a caption's form, worst R@1 first."""
        return self._means(
            (grammar.form_of(grammar.parse(prompt)), index)
            for index, prompt in enumerate(self.prompts)
        )

    def _means(self, groups: Iterable[tuple[str, int]]) -> dict[str, dict[str, float]]:
        rows: dict[str, list[int]] = {}
        for name, index in groups:
            rows.setdefault(name, []).append(index)
        columns = {
            "recall_at_1": self.judgement.recall_at_1,
            "ceiling_recall_at_1": self.ceiling.recall_at_1,
        }
        if self.truth is not None:
            columns["silhouette_iou"] = self.truth.silhouette_iou
        means = {
            group: {
                "prompts": float(len(chosen)),
                **{name: float(values[chosen].mean()) for name, values in columns.items()},
            }
            for group, chosen in rows.items()
        }
        return dict(sorted(means.items(), key=lambda entry: entry[1]["recall_at_1"]))


def _jitter_iou(prompts: Sequence[str], cameras: CameraBatch, exact: Views) -> Tensor:
    """[B]; the size of each is drawn by its prompt."""
    drawn = [
        Look.drawn(1, torch.Generator().manual_seed(int(prompt_id(prompt)[:15], 16))).scale
        for prompt in prompts
    ]
    look = replace(Look.reference(len(prompts)), scale=torch.cat(drawn))
    scenes = [grammar.parse(prompt) for prompt in prompts]
    return image_scores(render(scenes, cameras, SIZE_PX, look=look), exact).silhouette_iou


def rgb_of(made: Views | Tensor) -> Tensor:
    """Images [B, V, 3, H, W] of what an `ImagesOf` returns."""
    return made if isinstance(made, Tensor) else made.rgb


def _on_cpu(made: Views | Tensor) -> Views | Tensor:
    if isinstance(made, Tensor):
        return made.cpu()
    values = {field.name: getattr(made, field.name) for field in fields(made)}
    moved: dict[str, Any] = {k: v.cpu() for k, v in values.items() if v is not None}
    return replace(made, **moved)


def _gather(parts: Sequence[Judgement]) -> Judgement:
    return Judgement(
        torch.cat([part.is_janus for part in parts]),
        torch.cat([part.recall_at_1 for part in parts]),
        torch.cat([part.similarity for part in parts]),
    )


@torch.no_grad()
def evaluate(
    scorer: ImageTextScorer,
    prompts: Sequence[str],
    images_of: ImagesOf,
    progress: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Judge `images_of` on ToyBox prompts beside the ceiling, in batches.

    Raises: ValueError for a prompt that is not a ToyBox caption.
    """
    judged, ceilings, truths, jitter = [], [], [], []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        cameras = judged_cameras(len(batch))
        exact = ground_truth_views(batch, cameras, SIZE_PX)
        made = _on_cpu(images_of(batch, cameras, SIZE_PX))
        texts = judged_texts(scorer, batch)
        judged.append(judge(scorer, rgb_of(made), texts))
        ceilings.append(judge(scorer, exact.rgb, texts))
        if not isinstance(made, Tensor):
            truths.append(image_scores(made, exact))
            jitter.append(_jitter_iou(batch, cameras, exact))
        progress(len(batch))
    judgement, ceiling = _gather(judged), _gather(ceilings)
    if not truths:
        return Scores(prompts, judgement, ceiling, None, None)
    names = ("silhouette_iou", "psnr_db", "colour_error")
    truth = TruthScores(**{name: torch.cat([getattr(t, name) for t in truths]) for name in names})
    return Scores(prompts, judgement, ceiling, truth, torch.cat(jitter))
