"""Philox against published answers and exact integer arithmetic; draws against their moments."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaledreamer.rng import StepRng, philox, stream_key, to_uniform

MASK = 0xFFFFFFFF


def _words(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    c0, c1, c2, c3 = (torch.tensor(one) for one in counter)
    return philox((c0, c1, c2, c3), key).tolist()


def _exact(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 as the paper states it, in Python's unbounded integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def _rng(index: list[int] | int, seed: int = 0, step: int = 0) -> StepRng:
    samples = torch.arange(index) if isinstance(index, int) else torch.tensor(index)
    return StepRng(seed, step, samples)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((MASK,) * 4, (MASK, MASK), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: str) -> None:
    """Source: kat_vectors of Random123, philox4x32 with 10 rounds."""
    assert " ".join(f"{word:08x}" for word in _words(counter, key)) == answer


@given(st.tuples(*[st.integers(0, MASK)] * 4), st.tuples(*[st.integers(0, MASK)] * 2))
def test_int64_arithmetic_equals_unbounded_integers(
    counter: tuple[int, ...], key: tuple[int, int]
) -> None:
    assert _words(counter, key) == _exact(counter, key)


def test_uniform_conversion_ends_below_one() -> None:
    words = torch.tensor([0, 1, 0x7FFFFFFF, 0x80000000, MASK])
    expected = torch.tensor([0.0, 2.0**-31, 1.0, 1.0, 0.0])
    values = to_uniform(words)
    assert torch.allclose(values, expected, atol=1e-7)
    assert values.max() < 1.0
    assert values.dtype == torch.float32


def test_draws_depend_on_the_sample_and_not_on_the_batch() -> None:
    whole = _rng(8, seed=3, step=5)
    for parts in (
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[0, 2, 4, 6], [1, 3, 5, 7]],
        [[i] for i in range(8)],
    ):
        for part in parts:
            some = _rng(part, seed=3, step=5)
            assert torch.equal(whole.uniform("u", 3, 2)[part], some.uniform("u", 3, 2))
            assert torch.equal(whole.normal("n", 5)[part], some.normal("n", 5))
            assert torch.equal(whole.integers("i", 7)[part], some.integers("i", 7))


def test_a_longer_draw_starts_with_the_shorter() -> None:
    rng = _rng(4)
    assert torch.equal(rng.uniform("u", 10)[:, :3], rng.uniform("u", 3))


def test_every_part_of_the_key_matters() -> None:
    reference = _rng(4).uniform("a", 64)
    others = [
        _rng(4).uniform("b", 64),
        _rng(4, seed=1).uniform("a", 64),
        _rng(4, step=1).uniform("a", 64),
        _rng([1 << 32, 2 << 32, 3 << 32, 4 << 32]).uniform("a", 64),
    ]
    assert torch.equal(reference, _rng(4).uniform("a", 64))
    for other in others:
        assert (other == reference).float().mean() < 0.01
    assert len({stream_key(seed, name) for seed in range(20) for name in "abc"}) == 60


def test_uniform_moments_and_independence() -> None:
    draws = _rng(100).uniform("u", 1000).double()  # standard error of the mean 1e-3
    assert draws.min() >= 0
    assert draws.mean().item() == pytest.approx(0.5, abs=4e-3)
    assert draws.var().item() == pytest.approx(1 / 12, abs=2e-3)
    histogram = torch.histc(draws, 20, 0.0, 1.0)
    chi2 = ((histogram - 5000) ** 2 / 5000).sum()
    assert chi2 < 43.8  # 0.1 % tail of 19 degrees of freedom
    centred = draws - 0.5
    assert abs((centred[:, :-1] * centred[:, 1:]).mean()) < 1e-3
    assert abs((centred[:-1] * centred[1:]).mean()) < 1e-3


def test_normal_moments_and_tail() -> None:
    draws = _rng(100).normal("n", 1000).double()
    for power, expected, slack in ((1, 0.0, 0.015), (2, 1.0, 0.02), (3, 0.0, 0.05), (4, 3.0, 0.15)):
        assert (draws**power).mean().item() == pytest.approx(expected, abs=slack)
    for limit in (1.0, 2.0, 3.0):
        share = (draws.abs() > limit).double().mean().item()
        assert share == pytest.approx(math.erfc(limit / math.sqrt(2)), abs=5e-3)
    assert torch.isfinite(draws).all()


def test_integers_cover_their_range_evenly() -> None:
    draws = _rng(100).integers("i", 10, 1000)
    counts = torch.bincount(draws.flatten(), minlength=10)
    assert draws.dtype == torch.int64
    assert counts.sum() == 100_000
    assert len(counts) == 10
    assert ((counts - 10_000).abs() < 500).all()
    assert _rng(50).integers("i", 2**31, 100).max() < 2**31


def test_shapes() -> None:
    rng = _rng(3)
    assert rng.num_samples == 3
    assert rng.uniform("u").shape == (3,)
    assert rng.normal("n", 2, 5).shape == (3, 2, 5)
    assert rng.integers("i", 4, 1).shape == (3, 1)
