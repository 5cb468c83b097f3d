"""A frozen CLIP as image-text scorer, on torch and transformers alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from scaledreamer.encoders import clip_text
from scaledreamer.encoders._pretrained import load_pretrained, locate
from scaledreamer.storage import read_json

# Source: openai/CLIP; transformers calls them OPENAI_CLIP_MEAN and OPENAI_CLIP_STD.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipScorer:
    """Unit-norm image and text features whose inner product is the CLIP similarity."""

    def __init__(
        self,
        model: CLIPModel,
        text: clip_text.ClipTextEncoder,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
        batch_size: int = 256,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._text = text
        self._device = model.logit_scale.device
        self._mean = torch.tensor(mean, device=self._device)[:, None, None]
        self._std = torch.tensor(std, device=self._device)[:, None, None]
        self._batch_size = batch_size
        self.size_px: int = model.vision_model.config.image_size  # type: ignore[assignment]
        self.scorer_id = text.encoder_id.replace("clip-text:", "clip:")

    @torch.no_grad()
    def image_features(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N F"]:
        """Images in [0, 1] of any size, stretched to the model's own."""
        features = [self._image_batch(part) for part in images.split(self._batch_size)]
        return F.normalize(torch.cat(features), dim=-1)

    def _image_batch(self, images: Tensor) -> Tensor:
        images = images.to(self._device, torch.float32)
        size = (self.size_px, self.size_px)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        with torch.autocast(self._device.type, enabled=False):
            pixels = (images - self._mean) / self._std
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            return self._model.visual_projection(pooled)

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "N F"]:
        """Features of texts; equal ones are encoded once."""
        distinct = list(dict.fromkeys(texts))
        parts: list[Tensor] = []
        for start in range(0, len(distinct), self._batch_size):
            pooled = self._text(distinct[start : start + self._batch_size]).pooled
            assert pooled is not None, "a CLIPModel always has a text projection"
            parts.append(pooled)
        row = {text: index for index, text in enumerate(distinct)}
        rows = torch.tensor([row[text] for text in texts], device=self._device)
        return F.normalize(torch.cat(parts), dim=-1)[rows]


def load(folder: str, device: torch.device | str = "cpu") -> ClipScorer:
    """A transformers CLIPModel folder, its tokenizer at the top, as scorer.

    Mean and deviation come from `preprocessor_config.json` where there is one.
    Raises: ValueError naming what is missing or broken.
    """
    root = locate(folder, "judge")
    preprocessor = root / "preprocessor_config.json"
    values = read_json(preprocessor) if preprocessor.is_file() else {}
    model = load_pretrained(CLIPModel, root, "model", device=device)
    tokenizer = root / "tokenizer" if (root / "tokenizer").is_dir() else root
    return ClipScorer(
        model,
        clip_text.wrap(model, root, tokenizer),
        mean=values.get("image_mean", _MEAN),
        std=values.get("image_std", _STD),
    )
