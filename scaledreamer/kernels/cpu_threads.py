"""What kernels compiled for the CPU share: their arrays, their number of threads, their turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_LOCK = threading.Lock()
"""One of numba's threading layers aborts the process when two Python threads start parallel kernels
at once."""


@contextmanager
def kernel_threads(set_num_threads: Callable[[int], None], count: int) -> Iterator[None]:
    """The turn of one compiled kernel, on so many of numba's threads.

    PyTorch's number of threads is put back: numba's OpenMP layer shares it, and sets it to all
    cores when its first kernel starts.
    """
    before = torch.get_num_threads()
    with _LOCK:
        set_num_threads(count)
        try:
            yield
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory, or a copy in C order."""
    return tensor.detach().contiguous().numpy()


def num_threads(num_tasks: int, largest: int) -> int:
    """PyTorch's number of threads, at most one a task and at most `largest`."""
    return max(1, min(torch.get_num_threads(), largest, num_tasks))
