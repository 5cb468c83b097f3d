"""Checkpoint folders: written whole or not at all, checked by hash when read, no pickles.

RUN/checkpoints/step_00001234/
    model.safetensors      the generator's weights
    ema.safetensors        their moving average, what generation uses
    config.json            format version, generator, encoder, rendering, whole training config
    engine/*.safetensors   optimizer state (and the loss's own weights, when it trains any)
    state.json             step, epoch, position, seed, corpus size
    manifest.json          sha256 of every file above; written last
RUN/checkpoints/latest     the name of the newest one
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scaledreamer.storage import (
    atomic_folder,
    atomic_write,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    write_json,
)

FORMAT = 1
"""Version of the layout above, in config.json and manifest.json."""

_NAME = re.compile(r"step_\d{8,}")


@dataclass(frozen=True)
class Checkpoint:
    """What one folder holds, as plain values; tensors on CPU when loaded."""

    step: int
    """Optimizer steps made."""
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    engine: Mapping[str, Mapping[str, Tensor]]
    """File stem -> named tensors."""
    config: Mapping[str, Any]
    state: Mapping[str, int]


def save(run_folder: Path, checkpoint: Checkpoint, keep_last: int) -> Path:
    """Writes `step_XXXXXXXX`, points `latest` at it and removes all but `keep_last` folders."""
    root = run_folder / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"step_{checkpoint.step:08d}"
    with atomic_folder(folder) as temporary:
        save_tensors(temporary / "model.safetensors", checkpoint.model)
        save_tensors(temporary / "ema.safetensors", checkpoint.ema)
        for stem, tensors in checkpoint.engine.items():
            save_tensors(temporary / "engine" / f"{stem}.safetensors", tensors)
        write_json(temporary / "config.json", dict(checkpoint.config))
        write_json(temporary / "state.json", {**checkpoint.state, "step": checkpoint.step})
        write_json(temporary / "manifest.json", {"format": FORMAT, "files": _hashes(temporary)})
    with atomic_write(root / "latest") as file:
        file.write(f"{folder.name}\n")
    _prune(root, keep_last)
    return folder


def load(folder: Path) -> Checkpoint:
    """Reads one checkpoint after checking every file against the manifest.

    Raises: ValueError, naming folder and file, when anything is missing or altered.
    """
    verify(folder)
    config, state = read_json(folder / "config.json"), read_json(folder / "state.json")
    if config.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint {folder}: format {config.get('format')}; this version reads {FORMAT}"
        )
    return Checkpoint(
        step=state["step"],
        model=load_tensors(folder / "model.safetensors"),
        ema=load_tensors(folder / "ema.safetensors"),
        engine={path.stem: load_tensors(path) for path in sorted((folder / "engine").iterdir())},
        config=config,
        state=state,
    )


def verify(folder: Path) -> None:
    """Raises ValueError unless the folder is a complete checkpoint."""
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"checkpoint {folder}: no manifest.json; name a complete checkpoint")
    manifest = read_json(folder / "manifest.json")
    for name, digest in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"checkpoint {folder}: {name} is missing; use another checkpoint")
        if sha256_file(path) != digest:
            raise ValueError(f"checkpoint {folder}: {name} is damaged; use another checkpoint")


def find(spec: str | Path) -> Path:
    """The checkpoint meant by a checkpoint folder or a run folder (then its newest complete one).

    Raises: ValueError when there is none.
    """
    folder = Path(spec)
    if (folder / "config.json").is_file():
        return folder
    found = newest(folder)
    if found is None:
        raise ValueError(f"checkpoint: got {spec}; expected a checkpoint or a run that holds one")
    return found


def newest(run_folder: Path) -> Path | None:
    """The checkpoint that `latest` names, or with a warning the one before when it is damaged."""
    root = run_folder / "checkpoints"
    for folder in _by_age(root):
        try:
            verify(folder)
        except ValueError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
            continue
        return folder
    return None


def _by_age(root: Path) -> list[Path]:
    """Newest first: the one `latest` names, those of fewer steps, then a left branch's later ones.

    Going back to an older checkpoint leaves folders of more steps behind; they are the oldest news.
    """
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    pointer = root / "latest"
    latest = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    top = int(latest[5:]) if _NAME.fullmatch(latest) else max(map(_step, folders), default=0)
    return sorted(folders, key=lambda path: (_step(path) <= top, _step(path)), reverse=True)


def _prune(root: Path, keep_last: int) -> None:
    """Removes old checkpoints, never the newest, and what a killed process left half-written."""
    for folder in [*_by_age(root)[max(keep_last, 1) :], *root.glob(".step_*.tmp")]:
        shutil.rmtree(folder)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
