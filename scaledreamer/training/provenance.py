"""What a run folder records beside its results: command, resolved config, commit, versions."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from scaledreamer.config import to_yaml
from scaledreamer.storage import atomic_write, write_json

PACKAGES = ("torch", "numpy", "accelerate", "diffusers", "transformers", "safetensors", "omegaconf")


def record(folder: Path, config: Any, command: Sequence[str]) -> None:
    """Writes command.txt (one line a start), config.yaml and versions.json.

    Raises: ValueError when the folder cannot be written.
    """
    commands = folder / "command.txt"
    earlier = commands.read_text(encoding="utf-8") if commands.is_file() else ""
    with atomic_write(commands) as file:
        file.write(f"{earlier}{shlex.join(command)}\n")
    with atomic_write(folder / "config.yaml") as file:
        file.write(to_yaml(config))
    write_json(folder / "versions.json", versions())


def versions() -> dict[str, str | None]:
    """Versions of Python, the platform, the packages that decide numbers, and the commit."""
    found: dict[str, str | None] = {
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """Commit of the checkout this package lies in, with "+changes" when files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if head and changes else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
