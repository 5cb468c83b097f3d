"""The one switch between the forms of an operation: PyTorch, Triton, numba.

`auto` takes the fastest form that the tensors' device and the installed packages allow. Another
choice is made by the environment variable SCALEDREAMER_KERNELS or, for a block, by `use_backend`.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["reference", "triton", "numba"]
Choice = Literal["auto", "reference", "triton", "numba"]
CHOICES: tuple[Choice, ...] = ("auto", "reference", "triton", "numba")
VARIABLE = "SCALEDREAMER_KERNELS"

_block: list[Choice] = []


@contextmanager
def use_backend(choice: Choice) -> Iterator[None]:
    """Every operation in the block takes this form.

    Raises: ValueError for a name that is none of `CHOICES`.
    """
    if choice not in CHOICES:
        raise ValueError(f"use_backend: got {choice!r}; expected one of {', '.join(CHOICES)}")
    _block.append(choice)
    try:
        yield
    finally:
        _block.pop()


def choose(op: str, tensor: Tensor, forms: Collection[Backend]) -> Backend:
    """The form that `op` takes for inputs like `tensor`: the chosen one where `forms` has it, else
    the reference, which every operation has.

    Raises: ValueError when the chosen form can't run here, saying what to do.
    """
    choice = _block[-1] if _block else _from_environment()
    if choice == "auto":
        return _automatic(tensor, forms)
    if choice not in forms:
        return "reference"
    if choice == "triton":
        _require_triton(op, tensor)
    if choice == "numba":
        _require_numba(op, tensor)
    return choice


def _automatic(tensor: Tensor, forms: Collection[Backend]) -> Backend:
    if tensor.dtype == torch.float64:
        return "reference"
    if tensor.device.type == "cuda" and "triton" in forms and is_installed("triton"):
        return "triton"
    if tensor.device.type == "cpu" and "numba" in forms and is_installed("numba"):
        return "numba"
    return "reference"


@torch.compiler.assume_constant_result
@cache
def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def is_interpreting() -> bool:
    """Whether Triton interprets kernels on the CPU; Triton reads it when kernels are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def alert_not_deterministic(op: str, tensor: Tensor, advice: str) -> None:
    """What PyTorch's own operations do where they add in no fixed order: raise or warn when
    `torch.use_deterministic_algorithms` is set. Tensors on a CPU are interpreted, in order.

    `advice` says what to change. Raises: RuntimeError.
    """
    if tensor.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        f"scaledreamer::{op} adds with atomics and has no deterministic form, but "
        f"torch.use_deterministic_algorithms(True) is set; {advice}, or pass warn_only=True"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _require_triton(op: str, tensor: Tensor) -> None:
    if not is_installed("triton"):
        raise ValueError(f"{op}: triton is not installed; pip install 'scaledreamer[gpu]'")
    if tensor.device.type != "cuda" and not is_interpreting():
        raise ValueError(
            f"{op}: got a tensor on {tensor.device} for triton; move it to a GPU, choose another "
            f"{VARIABLE}, or start with TRITON_INTERPRET=1 to interpret (slow, for tests)"
        )


def _require_numba(op: str, tensor: Tensor) -> None:
    if not is_installed("numba"):
        raise ValueError(f"{op}: numba is not installed; pip install 'scaledreamer[numba]'")
    if tensor.device.type != "cpu":
        raise ValueError(f"{op}: got a tensor on {tensor.device} for numba; move it to the CPU")
    if tensor.dtype != torch.float32:
        raise ValueError(f"{op}: got {tensor.dtype} for numba; cast it to float32")


@torch.compiler.assume_constant_result
def _from_environment() -> Choice:
    wanted = os.environ.get(VARIABLE, "auto")
    for known in CHOICES:
        if wanted == known:
            return known
    raise ValueError(f"{VARIABLE}: got {wanted!r}; expected one of {', '.join(CHOICES)}")
