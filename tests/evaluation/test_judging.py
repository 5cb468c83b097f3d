"""The protocol on scorers whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaledreamer.cameras import ring
from scaledreamer.evaluation import judging, protocol
from scaledreamer.evaluation.ground_truth import image_scores, volume_iou
from scaledreamer.interfaces import CameraBatch, DensityKind, Views
from scaledreamer.priors import unet
from scaledreamer.toybox.world import grammar, truth
from scaledreamer.toybox.world.render import render
from tests.priors.folders import save_toybox

PROMPTS = ["a red mug with a white handle", "a green cactus on top of a purple box"]


class HashScorer:
    """Texts are random unit vectors; an image names its text by its first pixel's red value."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        seeds = [int(grammar.prompt_id(text)[:8], 16) for text in texts]
        rows = [torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        named = [self.texts[int(value)] for value in (images[:, 0, 0, 0] * 255).round()]
        return self.text_features(named)


def _images(numbers: list[list[int]]) -> Tensor:
    images = torch.zeros(len(numbers), len(numbers[0]), 3, 4, 4)
    images[:, :, 0, 0, 0] = torch.tensor(numbers) / 255
    return images


def test_recall_counts_the_views_whose_best_candidate_is_the_prompt():
    scorer = HashScorer([*PROMPTS, grammar.hard_swaps(PROMPTS[0])[0]])
    images = _images([[0, 0, 2, 2] * 2, [1, 1, 1, 0] * 2])
    judged = judging.judge(scorer, images, judging.judged_texts(scorer, PROMPTS))
    torch.testing.assert_close(judged.recall_at_1[0], torch.tensor(0.5))
    # an image of another prompt that is no candidate: right only by luck
    assert judged.recall_at_1[1] in (0.75, 1.0)
    assert judged.similarity[1] < 1


def test_a_front_on_the_back_is_a_janus():
    """Images name their own caption, so the view from behind says which side it shows."""
    prompts = ["a red cat", "a red robot next to a blue lamp"]
    front, back = (f"a red cat, {side} view" for side in ("front", "back"))
    scorer = HashScorer([front, back, *prompts])
    texts = judging.judged_texts(scorer, prompts)
    assert texts.has_front.tolist() == [True, False]  # a lamp is the same from behind
    two_faced = judging.judge(scorer, _images([[0] * 8, [0] * 8]), texts).is_janus
    assert two_faced[0] == 1
    assert two_faced[1].isnan()
    right = judging.judge(scorer, _images([[0] * 4 + [1] + [0] * 3, [1] * 8]), texts).is_janus
    assert right[0] == 0


def test_candidates_are_a_hundred_distinct_with_the_hard_swaps():
    chosen = judging.candidates(PROMPTS[0])
    assert chosen[0] == PROMPTS[0]
    assert len(set(chosen)) == 100
    assert set(grammar.hard_swaps(PROMPTS[0])) <= set(chosen)
    assert chosen == judging.candidates(PROMPTS[0])
    assert chosen != judging.candidates(PROMPTS[0], seed=1)


def test_ground_truth_scores_itself_perfectly_and_another_scene_worse():
    exact = protocol.ground_truth_views(PROMPTS, judging.cameras(2), 64)
    scores = image_scores(exact, exact)
    torch.testing.assert_close(scores.silhouette_iou, torch.ones(2))
    assert (scores.psnr_db > 90).all()
    assert (scores.colour_error == 0).all()
    swapped = protocol.ground_truth_views(PROMPTS[::-1], judging.cameras(2), 64)
    other = image_scores(exact, swapped)
    assert (other.silhouette_iou < 0.9).all()


def test_silhouette_iou_of_shifted_squares():
    def square(left: int) -> Views:
        opacity = torch.zeros(1, 1, 8, 8)
        opacity[..., 2:6, left : left + 4] = 1
        rgb = torch.ones(1, 1, 3, 8, 8)
        return Views(rgb=rgb, opacity=opacity, depth=opacity, normal=None)

    scores = image_scores(square(1), square(3))
    assert float(scores.silhouette_iou) == pytest.approx(8 / 24)


def test_volume_iou_of_the_exact_field_is_one():
    scenes = [grammar.parse(prompt) for prompt in PROMPTS]

    class Exact:
        density_kind: DensityKind = "sdf"
        num_scenes = 2
        structure = None

        def geometry(self, points: Tensor) -> Tensor:
            return truth.signed_distance(scenes, points)

        def geometry_and_colour(self, points: Tensor) -> tuple[Tensor, Tensor]:
            return self.geometry(points), torch.zeros_like(points)

        def background(self, directions: Tensor) -> None:
            return None

    torch.testing.assert_close(volume_iou(Exact(), scenes, 16), torch.ones(2))


def test_judged_views_show_both_objects_from_every_side():
    """Neither of two neighbours is ever hidden: each colour keeps a share of the silhouette."""
    scene = grammar.parse("a red box next to a blue tree")
    views = render([scene], judging.cameras(1), 48)
    rgb, solid = views.rgb[0], views.opacity[0] > 0.9
    red = ((rgb[:, 0] > 2 * rgb[:, 2]) & solid).sum((1, 2)) / solid.sum((1, 2))
    blue = ((rgb[:, 2] > 2 * rgb[:, 0]) & solid).sum((1, 2)) / solid.sum((1, 2))
    assert red.min() > 0.1
    assert blue.min() > 0.1


def test_cameras_are_the_settled_eight():
    views = judging.cameras(2)
    expected = ring(2, (0, 45, 90, 135, 180, 225, 270, 315), 15.0)
    torch.testing.assert_close(views.c2w, expected.c2w)


class CountingScorer(HashScorer):
    """Images are their mean colours, put through a fixed random map."""

    def __init__(self) -> None:
        super().__init__(())
        self.seen: list[str] = []

    def text_features(self, texts: Sequence[str]) -> Tensor:
        self.seen += texts
        return super().text_features(texts)

    def image_features(self, images: Tensor) -> Tensor:
        mixing = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.normalize(images.mean((2, 3)) @ mixing, dim=-1)


def test_ground_truth_reaches_its_own_ceiling_and_candidates_are_encoded_once() -> None:
    scorer, done = CountingScorer(), []
    scores = protocol.evaluate(scorer, PROMPTS, protocol.ground_truth_views, done.append)
    candidates = [text for prompt in PROMPTS for text in judging.candidates(prompt)]
    assert scorer.seen[: len(candidates)] == candidates
    assert len(scorer.seen) == len(candidates) + 2 * len(PROMPTS)  # front and back view
    assert sum(done) == 2
    torch.testing.assert_close(scores.judgement.similarity, scores.ceiling.similarity)
    torch.testing.assert_close(scores.judgement.recall_at_1, scores.ceiling.recall_at_1)
    assert scores.summary()["silhouette_iou"] == pytest.approx(1.0)


def test_samples_of_the_prior_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    save_toybox(tmp_path)
    prior = unet.create(unet.Config(folder=str(tmp_path)))

    def sample(prompts: Sequence[str], views: CameraBatch, seed: int = 0) -> Tensor:
        return protocol.prior_images(prior, 1, 1.0, seed)(prompts, views, 64)

    together = sample(PROMPTS, judging.cameras(2))
    assert together.shape == (2, 8, 3, 16, 16)
    alone = sample(PROMPTS[1:], ring(1, (90.0, 180.0), judging.ELEVATION_DEG))
    torch.testing.assert_close(alone[0], together[1, [2, 4]], rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().amax((1, 2, 3)).min() > 0.1
    assert (together[:, 0] - together[:, 1]).abs().max() > 0.1
    assert (sample(PROMPTS, judging.cameras(2), seed=1) - together).abs().max() > 0.1
