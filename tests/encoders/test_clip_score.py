"""The scorer against transformers' CLIPModel."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from scaledreamer.encoders import clip_score
from tests.encoders import folders

TEXTS = ["a red box", "a blue ball", "a red box"]


def test_similarity_equals_the_model_s_logits(tmp_path: Path) -> None:
    model = folders.save_clip(tmp_path)
    scorer = clip_score.load(str(tmp_path))
    images = torch.rand(5, 3, 32, 32)
    inputs = folders.word_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    expected = model(pixel_values=(images - mean) / std, **inputs).logits_per_image
    features = scorer.image_features(images)
    similarity = features @ scorer.text_features(TEXTS).T
    torch.testing.assert_close(similarity * model.logit_scale.exp(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))


def test_batches_do_not_matter_and_sizes_are_resized(tmp_path: Path) -> None:
    folders.save_clip(tmp_path)
    scorer = clip_score.load(str(tmp_path))
    blocks = torch.rand(7, 3, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    together = scorer.image_features(blocks)
    scorer._batch_size = 2
    torch.testing.assert_close(scorer.image_features(blocks), together)
    constant = torch.full((1, 3, 1, 1), 0.3)
    torch.testing.assert_close(
        scorer.image_features(constant.expand(1, 3, 64, 64)),
        scorer.image_features(constant.expand(1, 3, 32, 32)),
    )
    texts = [f"a {word}" for word in folders.WORDS]
    each = torch.cat([scorer.text_features([text]) for text in texts])
    torch.testing.assert_close(scorer.text_features(texts), each)


def test_preprocessor_statistics_are_used(tmp_path: Path) -> None:
    folders.save_clip(tmp_path)
    plain = clip_score.load(str(tmp_path))
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    scorer = clip_score.load(str(tmp_path))
    images = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    equivalent = (images - 0.5) / 0.5 * std + mean
    torch.testing.assert_close(
        scorer.image_features(images), plain.image_features(equivalent), atol=1e-5, rtol=1e-5
    )
