"""Settings every test shares: offline, deterministic, one thread unless told otherwise.

Triton kernels run on a GPU, or interpreted in a process of their own: `TRITON_INTERPRET=1 pytest -m
interpreted`. The other process, without the variable, compiles them for GPUs that are not there.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
import torch

from scaledreamer.kernels.backend import is_interpreting, use_backend

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def triton_device() -> Iterator[torch.device]:
    """The device on which fused kernels run here; every operation in the test is fused."""
    if is_interpreting():
        device = torch.device("cpu")
    elif torch.cuda.is_available():
        device = torch.device("cuda")
    else:
        pytest.skip("no GPU; TRITON_INTERPRET=1 pytest -m interpreted interprets the kernels")
    with use_backend("triton"):
        yield device


@pytest.fixture
def compiler() -> None:
    """For tests that compile kernels ahead of time."""
    if is_interpreting():
        pytest.skip("kernels are interpreted in this process")
    pytest.importorskip("triton")
