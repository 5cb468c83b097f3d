"""What kernels compiled for the CPU share: their arrays, their number of threads, their turns."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

LOCK = threading.Lock()
"""Held while a compiled kernel runs: one of numba's threading layers aborts the process when two
Python threads start parallel kernels at once."""


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory, or a copy in C order."""
    return tensor.detach().contiguous().numpy()


def num_threads(num_tasks: int, largest: int) -> int:
    """PyTorch's number of threads, at most one a task and at most `largest`."""
    return max(1, min(torch.get_num_threads(), largest, num_tasks))
