"""Checkpoint folders: written whole or not at all, checked by hash when read, no pickles.

RUN/checkpoints/step_00001234/
    model.safetensors      the generator's weights
    ema.safetensors        their moving average, what generation uses
    config.json            format version, generator, encoder, rendering, whole training config
    engine/*.safetensors   optimizer state (and the loss's own weights, when it trains any)
    state.json             step, epoch, position, seed, corpus size and hash
    manifest.json          sha256 of every file above; written last
RUN/checkpoints/latest     the name of the newest one
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scaledreamer.storage import (
    FORMAT,
    atomic_folder,
    atomic_write,
    checkpoint_folders,
    load_tensors,
    newest_checkpoint,
    read_json,
    read_manifest,
    save_tensors,
    sha256_file,
    verify_files,
    write_json,
)

_REQUIRED = (
    "config.json",
    "state.json",
    "model.safetensors",
    "ema.safetensors",
    "engine/optimizer.safetensors",
)
_COUNTS = ("step", "epoch", "position", "seed", "num_prompts")


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
    state: Mapping[str, int | str]
    """Where the run stands, and what it must go on with; see the module's docstring."""


def save(run_folder: Path, checkpoint: Checkpoint, keep_last: int) -> Path:
    """Writes `step_00001234`, points `latest` at it and removes all but `keep_last` folders."""
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
    _prune(run_folder, keep_last)
    return folder


def load(folder: Path) -> Checkpoint:
    """Reads one checkpoint after checking every file against the manifest.

    Raises: ValueError, naming folder and file, when anything is missing or altered.
    """
    verify(folder)
    state = _read_state(folder)
    engine = [folder / name for name in read_manifest(folder) if name.startswith("engine/")]
    return Checkpoint(
        step=state["step"],
        model=load_tensors(folder / "model.safetensors"),
        ema=load_tensors(folder / "ema.safetensors"),
        engine={path.stem: load_tensors(path) for path in engine},
        config=_read_config(folder),
        state=state,
    )


def verify(folder: Path) -> None:
    """Raises ValueError unless the folder is a complete checkpoint."""
    verify_files(folder, dict.fromkeys((*_REQUIRED, *read_manifest(folder))))
    _read_config(folder)
    _read_state(folder)


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"checkpoint {folder}: config.json is of format {found!r}; this version reads {FORMAT}"
        )
    return config


def _read_state(folder: Path) -> dict[str, Any]:
    state = read_json(folder / "state.json")
    for name in _COUNTS:
        if not isinstance(state, dict) or type(state.get(name)) is not int:
            raise ValueError(
                f"checkpoint {folder}: state.json has no whole number {name!r}; use another "
                "checkpoint"
            )
    return state


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

    def read(folder: Path) -> Path:
        verify(folder)
        return folder

    return newest_checkpoint(run_folder, read)


def _prune(run_folder: Path, keep_last: int) -> None:
    """Removes old checkpoints, never the newest, and what a killed process left half-written."""
    half_written = (run_folder / "checkpoints").glob(".step_*.tmp")
    for folder in [*checkpoint_folders(run_folder)[max(keep_last, 1) :], *half_written]:
        shutil.rmtree(folder)


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
