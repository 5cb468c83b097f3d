"""The text sides of pipelines with several encoders, each as one encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledreamer.encoders.clip_text import ClipTextEncoder
from scaledreamer.encoders.t5_text import T5TextEncoder
from scaledreamer.interfaces import TextEmbedding, TextEncoder


@runtime_checkable
class TextSide(TextEncoder, Protocol):
    """A text encoder that says how long its texts are, and what it is made of."""

    max_tokens: int

    @property
    def modules(self) -> list[nn.Module]: ...


class PairedClipText:
    """Stable Diffusion XL: states of two CLIPs beside each other, pooled from the second.

    With `use_zeros`, as its folder's `force_zeros_for_empty_prompt` says, the empty text is zeros.
    """

    def __init__(
        self, first: ClipTextEncoder, second: ClipTextEncoder, use_zeros: bool = False
    ) -> None:
        self._first, self._second, self._use_zeros = first, second, use_zeros
        self.encoder_id = f"{first.encoder_id}+{second.encoder_id}"
        self.max_tokens = first.max_tokens
        self.token_dim = first.token_dim + second.token_dim
        self.pooled_dim = second.pooled_dim
        if first.max_tokens != second.max_tokens:
            raise ValueError(
                f"text_encoder_2: takes {second.max_tokens} tokens, text_encoder takes "
                f"{first.max_tokens}; the two must be equal"
            )

    @property
    def modules(self) -> list[nn.Module]:
        return [*self._first.modules, *self._second.modules]

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        first, second = self._first(texts), self._second(texts)
        tokens = torch.cat((first.tokens, second.tokens), dim=-1)
        assert second.pooled is not None, "a CLIP tower has a pooled state"
        pooled = second.pooled
        if self._use_zeros:
            kept = torch.tensor([text != "" for text in texts], device=tokens.device)
            tokens, pooled = tokens * kept[:, None, None], pooled * kept[:, None]
        return TextEmbedding(tokens, first.mask, pooled, self.encoder_id)

    def unknown_words(self, text: str) -> list[str]:
        return self._first.unknown_words(text)


class ThreefoldText:
    """Stable Diffusion 3: two CLIPs beside each other, padded to T5's width, then T5's states.

    Without a T5 its states are zeros, as in its pipeline. Pooled is that of both CLIPs.
    """

    def __init__(
        self,
        first: ClipTextEncoder,
        second: ClipTextEncoder,
        third: T5TextEncoder | None,
        token_dim: int,
        num_third: int,
    ) -> None:
        self._clips, self._third, self._num_third = (first, second), third, num_third
        parts: list[TextEncoder] = [first, second, *([] if third is None else [third])]
        self.encoder_id = "+".join(part.encoder_id for part in parts)
        self.max_tokens = first.max_tokens + num_third
        self.token_dim = token_dim
        self.pooled_dim: int | None = (first.pooled_dim or 0) + (second.pooled_dim or 0)
        width = first.token_dim + second.token_dim
        if width > token_dim or (third is not None and third.token_dim != token_dim):
            raise ValueError(
                f"text encoders: the CLIPs are {width} wide and T5 "
                f"{third.token_dim if third else 'absent'}; the network takes {token_dim}"
            )

    @property
    def modules(self) -> list[nn.Module]:
        third = [] if self._third is None else self._third.modules
        return [*self._clips[0].modules, *self._clips[1].modules, *third]

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        first, second = (clip(texts) for clip in self._clips)
        tokens = torch.cat((first.tokens, second.tokens), dim=-1)
        tokens = F.pad(tokens, (0, self.token_dim - tokens.shape[-1]))
        if self._third is None:
            others = tokens.new_zeros(len(texts), self._num_third, self.token_dim)
            mask = torch.zeros(others.shape[:2], dtype=torch.bool, device=tokens.device)
        else:
            encoded = self._third(texts)
            others, mask = encoded.tokens, encoded.mask
        assert first.pooled is not None, "CLIP towers pool"
        assert second.pooled is not None, "CLIP towers pool"
        return TextEmbedding(
            torch.cat((tokens, others), dim=1),
            torch.cat((first.mask, mask), dim=1),
            torch.cat((first.pooled, second.pooled), dim=-1),
            self.encoder_id,
        )

    def unknown_words(self, text: str) -> list[str]:
        return self._clips[0].unknown_words(text)


class PooledBesideTokens:
    """Flux: T5's states, and CLIP's pooled vector."""

    def __init__(self, pooled: ClipTextEncoder, tokens: T5TextEncoder) -> None:
        self._pooled, self._tokens = pooled, tokens
        self.encoder_id = f"{pooled.encoder_id}+{tokens.encoder_id}"
        self.max_tokens = tokens.max_tokens
        self.token_dim = tokens.token_dim
        self.pooled_dim = pooled.pooled_dim

    @property
    def modules(self) -> list[nn.Module]:
        return [*self._pooled.modules, *self._tokens.modules]

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        pooled: Tensor | None = self._pooled(texts).pooled
        return replace(self._tokens(texts), pooled=pooled, encoder_id=self.encoder_id)

    def unknown_words(self, text: str) -> list[str]:
        return []


class OffloadedText:
    """Encoders that stay on the CPU; what they gave is remembered, the latest `max_bytes` of it."""

    def __init__(self, inner: TextSide, device: torch.device, max_bytes: int = 1 << 30) -> None:
        self._inner, self._device, self._max_bytes = inner, device, max_bytes
        self._known: dict[str, TextEmbedding] = {}
        self.encoder_id = inner.encoder_id
        self.token_dim, self.pooled_dim = inner.token_dim, inner.pooled_dim
        self.max_tokens = inner.max_tokens

    @property
    def modules(self) -> list[nn.Module]:
        return self._inner.modules

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            encoded = self._inner(new)
            for row, text in enumerate(new):
                one = encoded[row : row + 1]
                pooled = None if one.pooled is None else one.pooled.clone()
                self._known[text] = replace(one, tokens=one.tokens.clone(), pooled=pooled)
        found = TextEmbedding.cat([self._known[text] for text in texts]).to(self._device)
        size = max(found.tokens[0].nbytes, 1)
        for text in list(self._known)[: max(0, len(self._known) - self._max_bytes // size)]:
            del self._known[text]
        return found

    def unknown_words(self, text: str) -> list[str]:
        return self._inner.unknown_words(text)
