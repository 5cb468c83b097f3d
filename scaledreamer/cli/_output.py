"""Where commands compute and write: checks of --device and --output before any work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> str:
    """One of `DEVICES` -> "cpu" or "cuda". Raises: ValueError for cuda where there is none."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: got cuda, but no CUDA device is available; use cpu or auto")
    return name


@contextmanager
def writable_folder(path: Path) -> Iterator[Path]:
    """The folder, made where missing; what was made goes again if nothing was written to it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"--output {path}: cannot write there ({error.strerror})") from error
    try:
        yield path
    finally:
        for folder in missing:
            if not any(folder.iterdir()):
                folder.rmdir()
