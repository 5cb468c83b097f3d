"""From a living run to a checkpoint and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scaledreamer.config import to_dict
from scaledreamer.data.loader import LoaderState, PromptLoader
from scaledreamer.storage import (
    FORMAT,
    load_tensors,
    prompt_id,
    read_json,
    resolve_folder,
    verify_files,
)
from scaledreamer.training import checkpoint
from scaledreamer.training.checkpoint import Checkpoint
from scaledreamer.training.optimizer import load_state_tensors, state_tensors
from scaledreamer.training.setup import Run


def snapshot(run: Run, loader: PromptLoader, step: int) -> Checkpoint:
    """Everything needed to go on after `step` updates as if nothing had happened."""
    engine = {"optimizer": state_tensors(run.optimizer, run.trainable)}
    if run.trainable.distiller is not None:
        engine["distiller"] = run.trainable.distiller.state_dict()
    return Checkpoint(
        step=step,
        model=run.generator.state_dict(),
        ema=run.ema.module.state_dict(),
        engine=engine,
        config=_describe(run, step),
        state={
            "epoch": loader.state.epoch,
            "position": loader.state.position,
            **_identity(run, loader),
        },
    )


def restore(run: Run, loader: PromptLoader, folder: Path) -> int:
    """Loads a checkpoint into a run; returns the number of updates made so far.

    Raises: ValueError when it is damaged, or was made with another encoder, generator or corpus.
    """
    loaded = checkpoint.load(folder)
    _check_encoder(run, loaded.config, folder)
    if loaded.step > run.config.num_steps:
        raise ValueError(
            f"num_steps: got {run.config.num_steps}, but {folder} has made {loaded.step}; raise it"
        )
    for name, now in _identity(run, loader).items():
        if loaded.state.get(name, now) != now:
            raise ValueError(
                f"checkpoint {folder}: {name} was {loaded.state[name]}, now it is {now}; resume "
                "with the same, or start a new run from its weights with --init-from"
            )
    _load_weights(run.generator, loaded.model, folder)
    _load_weights(run.ema.module, loaded.ema, folder)
    if run.trainable.distiller is not None:
        _load_weights(run.trainable.distiller, loaded.engine.get("distiller", {}), folder)
    load_state_tensors(run.optimizer, run.trainable, loaded.engine["optimizer"])
    loader.state = LoaderState(int(loaded.state["epoch"]), int(loaded.state["position"]))
    return loaded.step


def init_from(run: Run, spec: str) -> None:
    """Starts from the averaged generator weights of a run, a checkpoint or a generator folder.

    Raises: ValueError when there are none, or ones of another encoder or other generator settings.
    """
    folder = checkpoint.find(resolve_folder(spec))
    if (folder / "manifest.json").is_file():
        verify_files(folder, ("config.json", "ema.safetensors"))
    config = read_json(folder / "config.json")
    _check_encoder(run, config, folder)
    _check_generator(run, config, folder)
    tensors = load_tensors(folder / "ema.safetensors")
    _load_weights(run.generator, tensors, folder)
    _load_weights(run.ema.module, tensors, folder)


def _identity(run: Run, loader: PromptLoader) -> dict[str, int | str]:
    """What the order of the samples depends on; a resumed run has the same."""
    return {
        "seed": run.config.seed,
        "num_prompts": len(loader.texts),
        "corpus": corpus_id(loader.texts),
    }


def corpus_id(texts: Sequence[str]) -> str:
    """128-bit blake2b over the ids of the prompts in their order."""
    ids = "".join(prompt_id(text) for text in texts)
    return hashlib.blake2b(ids.encode(), digest_size=16).hexdigest()


def _describe(run: Run, step: int) -> dict[str, Any]:
    config = run.config
    return {
        "format": FORMAT,
        "kind": "generator",
        "step": step,
        "generator": to_dict(config.generator),
        "encoder": {"folder": config.encoder, "id": run.encoder.encoder_id},
        "rendering": {"beta": config.beta(step)},
        "train": to_dict(config),
    }


def _check_encoder(run: Run, config: Any, folder: Path) -> None:
    encoder = config.get("encoder") if isinstance(config, Mapping) else None
    trained_with = encoder.get("id") if isinstance(encoder, Mapping) else None
    if trained_with != run.encoder.encoder_id:
        raise ValueError(
            f"encoder: {folder} was trained with {trained_with}, {run.config.encoder} is "
            f"{run.encoder.encoder_id}; use the encoder it was trained with, or delete it, or "
            "start anew with another output"
        )


def _check_generator(run: Run, config: Any, folder: Path) -> None:
    """Settings that no tensor's shape shows, as the sphere's radius, change what weights mean."""
    theirs, ours = config.get("generator"), to_dict(run.config.generator)
    if not isinstance(theirs, Mapping):
        return
    if other := [key for key in ours if key in theirs and theirs[key] != ours[key]]:
        values = " ".join(f"generator.{key}={theirs[key]}".replace(" ", "") for key in other)
        raise ValueError(
            f"generator: {folder} was made with other settings; start from it with {values}"
        )


def _load_weights(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"checkpoint {folder}: its weights do not fit this generator ({reason}); use the "
            "generator section of its config.json"
        ) from error
