"""Frozen T5 encoders: token states without a pooled vector."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from scaledreamer.encoders._pretrained import load_pretrained, load_tokenizer
from scaledreamer.interfaces import TextEmbedding

_NUM_WARNINGS = 100


class T5TextEncoder:
    """tokens = the encoder's last states over `max_tokens` positions; pooled = None.

    With `use_mask`, padding is hidden from the encoder itself (DeepFloyd IF, PixArt); without, it
    takes part (Stable Diffusion 3, Flux). `use_lower_case` folds texts as the former two do.
    """

    def __init__(
        self,
        model: T5EncoderModel,
        tokenizer: PreTrainedTokenizerFast,
        encoder_id: str,
        max_tokens: int,
        use_mask: bool,
        use_lower_case: bool = False,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._use_mask = use_mask
        self._use_lower_case = use_lower_case
        self._named: set[str] = set()
        self.encoder_id = encoder_id
        self.max_tokens = max_tokens
        self.token_dim: int = model.config.d_model
        self.pooled_dim: int | None = None

    @property
    def modules(self) -> list[nn.Module]:
        return [self._model]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        if self._use_lower_case:
            texts = [text.lower().strip() for text in texts]
        self._warn_too_long(texts)
        device = self._model.shared.weight.device
        batch = self._tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,  # keeps the end token
            return_tensors="pt",
        ).to(device)
        mask: Tensor = batch["attention_mask"]  # type: ignore[assignment]
        with torch.autocast(device.type, enabled=False):
            states = self._model(
                input_ids=batch["input_ids"], attention_mask=mask if self._use_mask else None
            ).last_hidden_state
        return TextEmbedding(states.float(), mask.bool(), None, self.encoder_id)

    def _warn_too_long(self, texts: Sequence[str]) -> None:
        for text in texts:
            if len(text) <= self.max_tokens or text in self._named:
                continue  # a token holds at least one letter
            count = len(self._tokenizer(text, verbose=False)["input_ids"])
            if count > self.max_tokens and len(self._named) < _NUM_WARNINGS:
                self._named.add(text)
                warnings.warn(
                    f"prompt has {count} tokens, the text encoder takes {self.max_tokens}; "
                    f"its end is cut off: {text!r}",
                    stacklevel=3,
                )

    def unknown_words(self, text: str) -> list[str]:
        """None: its pieces spell out any word."""
        return []


def load_part(
    weights: Path,
    tokenizer: Path,
    max_tokens: int,
    use_mask: bool,
    use_lower_case: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> T5TextEncoder:
    """The T5 of a pipeline, from its two folders, in `dtype`; its states come as float32.

    Its id is its folder's name: hashing up to 19 GB at every start would serve nobody.

    Raises: ValueError naming what is missing or broken.
    """
    return T5TextEncoder(
        load_pretrained(T5EncoderModel, weights, "model", dtype, device),
        load_tokenizer(tokenizer),
        f"t5-text:{weights.name}",
        max_tokens,
        use_mask,
        use_lower_case,
    )
