"""The switch between forms, and what it says when a form can't run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from scaledreamer.kernels import backend
from scaledreamer.kernels.backend import (
    Backend,
    Choice,
    alert_not_deterministic,
    choose,
    use_backend,
)

ALL: tuple[Backend, ...] = ("reference", "triton", "numba")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "is_installed", lambda package: True)


def test_auto_takes_the_form_of_the_device():
    single = torch.zeros(1)
    assert choose("op", single, ALL) == "numba"
    assert choose("op", single, ("reference", "triton")) == "reference"
    assert choose("op", single.double(), ALL) == "reference"
    assert choose("op", torch.zeros(1, device="meta"), ALL) == "reference"


def test_auto_without_the_package_takes_the_reference(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "is_installed", lambda package: False)
    assert choose("op", torch.zeros(1), ALL) == "reference"


@pytest.mark.parametrize("choice", ["triton", "numba"])
def test_a_form_that_an_operation_lacks_gives_way_to_the_reference(choice: Choice):
    with use_backend(choice):
        assert choose("op", torch.zeros(1), ("reference",)) == "reference"


def test_blocks_nest_and_beat_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(backend.VARIABLE, "numba")
    assert choose("op", torch.zeros(1), ALL) == "numba"
    with use_backend("reference"):
        assert choose("op", torch.zeros(1), ALL) == "reference"
        with use_backend("auto"):
            assert choose("op", torch.zeros(1), ALL) == "numba"
        assert choose("op", torch.zeros(1), ALL) == "reference"


def test_unknown_choices_name_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(backend.VARIABLE, "cuda")
    with pytest.raises(ValueError, match=r"SCALEDREAMER_KERNELS: got 'cuda'; expected one of auto"):
        choose("op", torch.zeros(1), ALL)


def test_triton_without_a_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    with use_backend("triton"):
        with pytest.raises(ValueError, match=r"op: got a tensor on cpu.*GPU.*TRITON_INTERPRET=1"):
            choose("op", torch.zeros(1), ALL)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert choose("op", torch.zeros(1), ALL) == "triton"
        monkeypatch.setattr(backend, "is_installed", lambda package: False)
        with pytest.raises(ValueError, match=r"triton is not installed; pip install"):
            choose("op", torch.zeros(1), ALL)


def test_numba_needs_single_precision_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    with use_backend("numba"):
        with pytest.raises(ValueError, match=r"torch.float64 for numba; cast it to float32"):
            choose("op", torch.zeros(1).double(), ALL)
        with pytest.raises(ValueError, match=r"tensor on meta for numba"):
            choose("op", torch.zeros(1, device="meta"), ALL)
        monkeypatch.setattr(backend, "is_installed", lambda package: False)
        with pytest.raises(ValueError, match=r"numba is not installed; pip install"):
            choose("op", torch.zeros(1), ALL)


@pytest.fixture
def _nondeterministic_afterwards() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_nondeterministic_afterwards")
def test_sums_in_no_fixed_order_raise_or_warn_as_pytorch_does():
    on_device = torch.zeros(1, device="meta")
    alert_not_deterministic("op", on_device, "do this")
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError, match=r"scaledreamer::op adds with atomics.*; do this, or"):
        alert_not_deterministic("op", on_device, "do this")
    alert_not_deterministic("op", torch.zeros(1), "do this")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match=r"scaledreamer::op adds with atomics"):
        alert_not_deterministic("op", on_device, "do this")
