"""The training loop: set up or resume, step, log, save, stop cleanly."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from scaledreamer.cameras import ring
from scaledreamer.data.corpus import load_prompts
from scaledreamer.data.loader import PromptLoader
from scaledreamer.interfaces import PromptBatch
from scaledreamer.rendering.volume import render
from scaledreamer.rng import StepRng
from scaledreamer.storage import write_json
from scaledreamer.training import checkpoint, provenance
from scaledreamer.training.config import TrainConfig
from scaledreamer.training.logging import RunLog, image_grid
from scaledreamer.training.resume import init_from as load_weights
from scaledreamer.training.resume import restore, snapshot
from scaledreamer.training.setup import Run, create_run
from scaledreamer.training.signals import StopRequest
from scaledreamer.training.step import training_step

GRID_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)
NUM_GRID_PROMPTS = 4


def train(
    config: TrainConfig,
    resume: str | None = None,
    init_from: str | None = None,
    command: Sequence[str] = ("scaledreamer", "train"),
) -> int:
    """Trains to `config.num_steps`, or until SIGINT or SIGTERM, after which it saves.

    `resume` is "auto" (the newest checkpoint of the run folder, if any), a run or a checkpoint;
    `init_from` only gives the first weights. `command` is what `--resume auto` is added to when the
    run tells how to go on. Returns the exit code: 0, or 128 + signal.
    Raises: ValueError for settings, folders or checkpoints that do not work; FloatingPointError,
    after writing crash.json, when a loss or gradient is not finite.
    """
    accelerator = Accelerator(mixed_precision="no")  # autocast is the step's own
    folder = Path(config.output)
    source = find_source(folder, resume)
    texts = load_prompts(config.prompts)
    run = create_run(config, accelerator)
    loader = PromptLoader(
        texts,
        config.seed,
        config.prompts_per_step,
        accelerator.process_index,
        accelerator.num_processes,
    )
    first_step = 0
    if source is not None:
        first_step = restore(run, loader, source)
    elif init_from is not None:
        load_weights(run, init_from)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        provenance.record(folder, config, command)
    with StopRequest() as stop, open_log(run, first_step) as log:
        if log and source is not None:
            log.say(f"resumed from {source}")
        stopped_by = run_steps(run, loader, first_step, stop, log)
        if log and stopped_by:
            log.say(f"stopped; go on with:\n{resume_command(command)}")
    return 128 + stopped_by if stopped_by else 0


def run_steps(
    run: Run, loader: PromptLoader, first_step: int, stop: StopRequest, log: RunLog | None
) -> int:
    """Steps, logs and saves; returns the signal that ended it early, or 0."""
    config, folder = run.config, Path(run.config.output)
    prompts = config.log.image_prompts or tuple(loader.texts[:NUM_GRID_PROMPTS])
    for step in range(first_step, config.num_steps):
        scalars = guarded_step(run, next(loader), step)
        done = step + 1
        is_last = done == config.num_steps
        stopped_by = stop.agreed(run.accelerator)
        if log:
            log.record(done, scalars)
            if done % config.log.image_every == 0 or is_last:
                log.images(done, preview(run, prompts, step))
        if done % config.checkpoints.every == 0 or is_last or stopped_by:
            if run.accelerator.is_main_process:
                checkpoint.save(folder, snapshot(run, loader, done), config.checkpoints.keep_last)
            run.accelerator.wait_for_everyone()
        if stopped_by and not is_last:
            return stopped_by
    return 0


def guarded_step(run: Run, batch: PromptBatch, step: int) -> dict[str, Tensor]:
    """`training_step`, with a crash record of what the step saw when a value is not finite."""
    try:
        return training_step(run, batch, step)
    except FloatingPointError as error:
        rank = run.accelerator.process_index
        record = {
            "step": step,
            "rank": rank,
            "error": str(error),
            "seed": run.config.seed,
            "sample_index": batch.sample_index.tolist(),
            "prompts": batch.texts,
        }
        path = Path(run.config.output) / ("crash.json" if rank == 0 else f"crash_{rank}.json")
        write_json(path, record)
        raise FloatingPointError(f"step {step}: {error}; see {path}") from error


@torch.no_grad()
def preview(run: Run, prompts: Sequence[str], step: int) -> Float[Tensor, "3 H W"]:
    """The averaged generator's views of some prompts from four sides, on white."""
    config = run.config
    rows = []
    cameras = ring(1, GRID_AZIMUTHS_DEG).to(run.device)
    latents = StepRng(config.seed, 0, torch.arange(len(prompts), device=run.device))
    noise = run.latent(latents)
    for row, prompt in enumerate(prompts):
        latent = None if noise is None else noise[row : row + 1]
        field = run.ema.module(run.encoder([prompt]), latent)
        white = torch.ones(1, 3, device=run.device)
        size_px, beta = config.log.image_px, config.beta(step)
        rows.append(render(field, cameras, white, config.render, size_px, beta, None).rgb)
    return image_grid(torch.cat(rows))


def find_source(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from, if any.

    Raises: ValueError when `resume` names none, or the folder holds a run that is not resumed.
    """
    if resume == "auto":
        return checkpoint.newest(folder)
    if resume is not None:
        return checkpoint.find(resume)
    if checkpoint.newest(folder) is not None:
        raise ValueError(
            f"output: {folder} already holds a run; go on with --resume auto, or name another"
        )
    return None


def open_log(run: Run, first_step: int) -> RunLog | nullcontext[None]:
    """The main process's log; None elsewhere."""
    config, accelerator = run.config, run.accelerator
    if not accelerator.is_main_process:
        return nullcontext()
    return RunLog(
        Path(config.output),
        first_step,
        config.num_steps,
        config.prompts_per_step * accelerator.num_processes,
        config.log.every,
        config.log.use_tensorboard,
    )


def resume_command(command: Sequence[str]) -> str:
    """The command again, resuming from its own run folder."""
    kept: list[str] = []
    skip = False
    for word in command:
        if not skip and not word.startswith(("--resume", "--init-from")):
            kept.append(word)
        skip = word in ("--resume", "--init-from")
    return shlex.join([*kept, "--resume", "auto"])
