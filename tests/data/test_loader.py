from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from scaledreamer.data.loader import LoaderState, PromptLoader, epoch_order
from scaledreamer.interfaces import PromptBatch
from scaledreamer.storage import prompt_id

TEXTS = [f"prompt {index}" for index in range(13)]


def global_batches(world_size: int, total: int, seed: int = 0) -> list[tuple[int, str]]:
    """(sample index, text) of all ranks' batches, with `total` samples a step over all ranks."""
    batch_size = total // world_size
    loaders = [
        PromptLoader(TEXTS, seed, batch_size, rank, world_size) for rank in range(world_size)
    ]
    taken: list[tuple[int, str]] = []
    for _ in range(10):
        for loader in loaders:
            batch = next(loader)
            taken += zip(batch.sample_index.tolist(), batch.texts, strict=True)
    return taken


def same(a: PromptBatch, b: PromptBatch) -> bool:
    return (a.ids, a.texts, a.sample_index.tolist()) == (b.ids, b.texts, b.sample_index.tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_stream_does_not_depend_on_the_number_of_processes(world_size: int) -> None:
    assert global_batches(world_size, total=24) == global_batches(1, total=24)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_epoch_holds_every_prompt_once(world_size: int) -> None:
    taken = global_batches(world_size, total=24)
    assert [index for index, _ in taken] == list(range(240))
    for epoch in range(240 // len(TEXTS)):
        texts = [text for _, text in taken[epoch * 13 : (epoch + 1) * 13]]
        assert Counter(texts) == Counter(TEXTS)


def test_ranks_take_the_documented_positions() -> None:
    loader = PromptLoader(TEXTS, 0, batch_size=4, rank=1, world_size=3)
    next(loader)
    second = next(loader)
    assert second.sample_index.tolist() == [16, 17, 18, 19]  # s*B*W + r*B with s = r = 1
    assert second.ids == [prompt_id(text) for text in second.texts]


def test_orders_differ_by_epoch_and_seed_and_repeat() -> None:
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(epoch_order(50, 1, 1), orders[3])


def test_first_places_are_uniform() -> None:
    counts = np.bincount([epoch_order(8, 0, epoch)[0] for epoch in range(2000)], minlength=8)
    chi_squared = float(((counts - 250) ** 2 / 250).sum())
    assert chi_squared < 24.3  # 99.9 % of a chi-squared of 7 degrees of freedom


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 3), (4, 2)])
def test_resume_is_exact_also_with_another_number_of_processes(before: int, after: int) -> None:
    total = 12
    loaders = [PromptLoader(TEXTS, 5, total // before, rank, before) for rank in range(before)]
    for loader in loaders:
        list(islice(loader, 3))
    assert len({loader.state for loader in loaders}) == 1
    state = LoaderState(loaders[0].state.epoch, loaders[0].state.position)
    assert state == LoaderState(epoch=2, position=36)

    straight = PromptLoader(TEXTS, 5, total)
    list(islice(straight, 3))
    expected = next(straight)
    texts: list[str] = []
    for rank in range(after):
        resumed = PromptLoader(TEXTS, 5, total // after, rank, after)
        resumed.state = state
        texts += next(resumed).texts
    assert texts == expected.texts


def test_single_process_resume_repeats_whole_batches() -> None:
    loader = PromptLoader(TEXTS, 5, 4)
    list(islice(loader, 7))
    resumed = PromptLoader(TEXTS, 5, 4)
    resumed.state = loader.state
    assert all(same(next(loader), next(resumed)) for _ in range(7))


def test_a_state_of_another_corpus_is_refused() -> None:
    loader = PromptLoader(TEXTS, 0, 4)
    with pytest.raises(ValueError, match="corpus of 13 prompts"):
        loader.state = LoaderState(epoch=0, position=20)


def test_a_step_allocates_nothing_that_grows_with_the_corpus() -> None:
    loader = PromptLoader(range_texts := Repeated(1_000_000), 0, 4)
    next(loader)
    tracemalloc.start()
    next(loader)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert len(range_texts) == 1_000_000


class Repeated(list[str]):
    """A long corpus that takes no memory."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return f"prompt {index}"

    def __bool__(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("texts", "batch_size", "rank", "world_size", "message"),
    [
        ([], 1, 0, 1, "empty corpus"),
        (TEXTS, 0, 0, 1, "prompts_per_step"),
        (TEXTS, 1, 2, 2, "rank: got 2 of 2"),
    ],
)
def test_bad_arguments(
    texts: list[str], batch_size: int, rank: int, world_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PromptLoader(texts, 0, batch_size, rank, world_size)
