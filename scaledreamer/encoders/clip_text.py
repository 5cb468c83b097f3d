"""Frozen CLIP text towers, read from a CLIP folder or from a diffusers pipeline folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
)

from scaledreamer.encoders._pretrained import (
    content_hash,
    load_pretrained,
    load_tokenizer,
    locate,
)
from scaledreamer.interfaces import TextEmbedding
from scaledreamer.storage import read_json

_MODELS = {"CLIPModel": CLIPModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
_NUM_WARNINGS = 100
"""Too-long prompts named per encoder, so that a large corpus does not fill memory or the log."""


class ClipTextEncoder:
    """tokens = last hidden states after the final norm; pooled = the projected end token.

    With `use_penultimate`, tokens are the states before the last layer, without the norm, as
    Stable Diffusion XL and 3 take them. Without a projection, pooled is the end token's state. The
    tower sees no padding mask: it is causal, so padding never reaches a real token, and Stable
    Diffusion's padding states come out as its UNet saw them.
    """

    def __init__(
        self,
        model: CLIPTextModel,
        projection: nn.Linear | None,
        tokenizer: PreTrainedTokenizerFast,
        encoder_id: str,
        use_penultimate: bool = False,
    ) -> None:
        self._use_penultimate = use_penultimate
        self._model = model.eval().requires_grad_(False)
        self._projection = projection
        if projection is not None:
            projection.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._named: set[str] = set()
        self.encoder_id = encoder_id
        self.max_tokens: int = model.config.max_position_embeddings
        self.token_dim: int = model.config.hidden_size
        self.pooled_dim: int | None = (
            self.token_dim if projection is None else projection.out_features
        )
        self._check_end_token()

    @property
    def modules(self) -> list[nn.Module]:
        return [self._model, *([] if self._projection is None else [self._projection])]

    def _check_end_token(self) -> None:
        """The tower pools at `eos_token_id`, or, where that is 2, at a row's highest id."""
        end = self._token_ids([""])[0][-1]
        pooled_at = self._model.config.eos_token_id
        highest = len(self._tokenizer) - 1
        if end != (highest if pooled_at == 2 else pooled_at):
            raise ValueError(
                f"text tower: the tokenizer ends texts with id {end}, the model pools at "
                f"eos_token_id {pooled_at} (2 means the highest id, {highest}); set it to {end}"
            )

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), verbose=False)["input_ids"]  # type: ignore[return-value]

    def _padded_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both [B, L]; what does not fit is cut, the end token kept."""
        length, pad = self.max_tokens, self._tokenizer.pad_token_id
        if pad is None:
            pad = self._tokenizer.eos_token_id or 0
        ids = torch.full((len(texts), length), int(pad))  # type: ignore[arg-type]
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, (text, tokens) in enumerate(zip(texts, self._token_ids(texts), strict=True)):
            if len(tokens) > length:
                self._warn_too_long(text, len(tokens))
                tokens = [*tokens[: length - 1], tokens[-1]]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        return ids, mask

    def _warn_too_long(self, text: str, count: int) -> None:
        if text in self._named or len(self._named) >= _NUM_WARNINGS:
            return
        self._named.add(text)
        warnings.warn(
            f"prompt has {count} tokens, the text encoder takes {self.max_tokens}; "
            f"its end is cut off: {text!r}",
            stacklevel=4,
        )

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        device = self._model.embeddings.token_embedding.weight.device
        ids, mask = self._padded_ids(texts)
        with torch.autocast(device.type, enabled=False):
            states = self._model(
                input_ids=ids.to(device), output_hidden_states=self._use_penultimate
            )
            pooled = states.pooler_output
            if self._projection is not None:
                pooled = self._projection(pooled)
        return TextEmbedding(
            tokens=states.hidden_states[-2] if self._use_penultimate else states.last_hidden_state,
            mask=mask.to(device),
            pooled=pooled,
            encoder_id=self.encoder_id,
        )

    def unknown_words(self, text: str) -> list[str]:
        """Words outside a word-level vocabulary, in order, once each; none for byte-level BPE."""
        unknown, end = self._tokenizer.unk_token_id, self._tokenizer.eos_token_id
        if unknown is None or unknown == end:
            return []
        encoding = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(text[low:high] for id, (low, high) in spans if id == unknown))


def wrap(
    model: Any,
    folder: Path,
    tokenizer_folder: Path,
    use_penultimate: bool = False,
    is_hashed: bool = True,
) -> ClipTextEncoder:
    """The text side of a loaded CLIPModel, CLIPTextModelWithProjection or CLIPTextModel."""
    device = next(model.parameters()).device
    return ClipTextEncoder(
        getattr(model, "text_model", model),
        getattr(model, "text_projection", None),
        load_tokenizer(tokenizer_folder),
        f"clip-text:{content_hash(folder, 'model', device) if is_hashed else folder.name}",
        use_penultimate,
    )


def load(folder: str, device: torch.device | str = "cpu") -> ClipTextEncoder:
    """The text tower of a CLIP folder (weights and tokenizer at its top) or of a pipeline folder.

    A pipeline folder holds `text_encoder/` and `tokenizer/`; a hub id is read from the cache or
    downloaded. The id depends on the bytes of the weight file alone, so copies of one tower are
    interchangeable.
    Raises: ValueError naming what is missing or broken.
    """
    root = locate(folder, "encoder")
    weights = root if (root / "config.json").is_file() else root / "text_encoder"
    tokenizer = root / "tokenizer" if (root / "tokenizer").is_dir() else root
    return load_part(weights, tokenizer, device)


def load_part(
    weights: Path,
    tokenizer: Path,
    device: torch.device | str = "cpu",
    use_penultimate: bool = False,
    is_hashed: bool = True,
) -> ClipTextEncoder:
    """One tower of a pipeline that may have several, from its two folders; float32.

    Without `is_hashed` its id is the folder's name, and weights are not read twice.
    """
    config_path = weights / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{config_path}: missing; name a CLIP folder or a diffusers pipeline")
    config = read_json(config_path)
    name = (config.get("architectures") or ["CLIPTextModel"])[0]
    model_class = _MODELS.get(name, CLIPTextModel)
    if model_class is CLIPTextModel and config.get("model_type") != "clip_text_model":
        raise ValueError(f"{config_path}: got a {name}; need a CLIP text model")
    model = load_pretrained(model_class, weights, "model", device=device)
    return wrap(model, weights, tokenizer, use_penultimate, is_hashed)
