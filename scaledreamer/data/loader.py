"""The resumable stream of prompts.

Samples are numbered over all processes from 0 for ever. Sample p is prompt `order(p // N)[p % N]`
of a corpus of N, so an epoch holds every prompt once, and step s of rank r of W with batches of B
takes samples s*B*W + r*B to s*B*W + r*B + B - 1, whatever W is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scaledreamer.interfaces import PromptBatch
from scaledreamer.rng import stream_key
from scaledreamer.storage import prompt_id


@dataclass(frozen=True)
class LoaderState:
    """Where the stream stands; equal on every process."""

    epoch: int
    """Complete passes over the corpus."""
    position: int
    """Samples taken so far by all processes together, over all epochs."""


def epoch_order(num_prompts: int, seed: int, epoch: int) -> np.ndarray:
    """[num_prompts] permutation of one epoch, a function of (seed, epoch) alone."""
    low, high = stream_key(seed, f"data/epoch/{epoch}")
    return np.random.Generator(np.random.Philox(key=low | high << 32)).permutation(num_prompts)


class PromptLoader:
    """Endless iterator over this process's batches; see the module's docstring for the order."""

    def __init__(
        self,
        texts: Sequence[str],
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not texts:
            raise ValueError("prompts: got an empty corpus; expected at least one prompt")
        if batch_size < 1:
            raise ValueError(f"prompts_per_step: got {batch_size}; must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank: got {rank} of {world_size} processes; must lie in [0, {world_size})"
            )
        self.texts = texts
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self._position = 0
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def state(self) -> LoaderState:
        return LoaderState(self._position // len(self.texts), self._position)

    @state.setter
    def state(self, state: LoaderState) -> None:
        if state.position < 0 or state.epoch != state.position // len(self.texts):
            raise ValueError(
                f"loader: got epoch {state.epoch}, position {state.position}, which does not fit a "
                f"corpus of {len(self.texts)} prompts; resume with the corpus the run began with"
            )
        self._position = state.position

    def __iter__(self) -> Iterator[PromptBatch]:
        return self

    def __next__(self) -> PromptBatch:
        first = self._position + self.rank * self.batch_size
        self._position += self.batch_size * self.world_size
        texts = [self.texts[self._prompt(first + i)] for i in range(self.batch_size)]
        index = torch.arange(first, first + self.batch_size, dtype=torch.int64)
        return PromptBatch([prompt_id(text) for text in texts], texts, index)

    def _prompt(self, position: int) -> int:
        """Index into the corpus of one sample of the stream."""
        epoch, offset = divmod(position, len(self.texts))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.texts), self.seed, epoch))
        return int(self._order[1][offset])
