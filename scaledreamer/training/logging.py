"""What a run says and keeps: progress, metrics.jsonl, TensorBoard, image grids."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from scaledreamer.storage import atomic_write


class RunLog:
    """The main process's log of one run; `step` counts the optimizer steps made.

    A resumed run drops the records of steps it is about to repeat.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        num_steps: int,
        samples_per_step: int,
        every: int,
        use_tensorboard: bool = True,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console()
        self._folder = folder
        self._every = every
        self._num_steps = num_steps
        self._samples_per_step = samples_per_step
        self._metrics = _open_metrics(folder / "metrics.jsonl", first_step)
        self._tensorboard = _tensorboard(folder, first_step) if use_tensorboard else None
        self._sums: dict[str, Tensor | float] = {}
        self._count = 0
        self._mark = (time.monotonic(), first_step)
        self._progress = _progress(self.console) if self.console.is_terminal else None
        if self._progress:
            self._task = self._progress.add_task(
                "training", total=num_steps, completed=first_step, loss=0.0, rate=0.0, seen=0
            )

    def __enter__(self) -> RunLog:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()
        if self._tensorboard:
            self._tensorboard.close()
        self._metrics.close()

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def record(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Adds one step's scalars; every `every` steps their means go to all the outputs."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._count += 1
        if self._progress:
            self._progress.update(self._task, completed=step)
        if step % self._every == 0 or step == self._num_steps:
            self._flush(step)

    def images(self, step: int, grid: Float[Tensor, "3 H W"]) -> None:
        """Keeps a picture as images/step_00001234.png and in TensorBoard."""
        pixels = (grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        with atomic_write(self._folder / "images" / f"step_{step:08d}.png", "wb") as file:
            Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
        if self._tensorboard:
            self._tensorboard.add_image("views", pixels, step, dataformats="HWC")

    def _flush(self, step: int) -> None:
        now = time.monotonic()
        elapsed, steps = now - self._mark[0], step - self._mark[1]
        rate = steps / max(elapsed, 1e-9)
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count, self._mark = {}, 0, (now, step)
        seen = step * self._samples_per_step
        line = {"step": step, "prompts_seen": seen, "steps_per_s": round(rate, 4), **means}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        if self._tensorboard:
            for name, value in {**means, "steps_per_s": rate}.items():
                self._tensorboard.add_scalar(name, value, step)
        self._show(step, means["loss"], rate, seen)

    def _show(self, step: int, loss: float, rate: float, seen: int) -> None:
        if self._progress:
            self._progress.update(self._task, loss=loss, rate=rate, seen=seen)
            return
        left = int((self._num_steps - step) / max(rate, 1e-9))
        self.say(
            f"step {step}/{self._num_steps}  loss {loss:.4g}  {rate:.2f} steps/s  "
            f"{seen} prompts  ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        )


def image_grid(images: Float[Tensor, "B V 3 H W"]) -> Float[Tensor, "3 H2 W2"]:
    """A row of views for every scene."""
    rows, columns, _, height, width = images.shape
    return images.permute(2, 0, 3, 1, 4).reshape(3, rows * height, columns * width)


def _open_metrics(path: Path, first_step: int) -> Any:
    kept: list[str] = []
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= first_step]
    with atomic_write(path) as file:
        file.writelines(kept)
    return path.open("a", encoding="utf-8")


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "log.use_tensorboard: the tensorboard package is missing; install scaledreamer[train] "
            "or set log.use_tensorboard=false"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"),
        TextColumn("{task.fields[rate]:.2f} steps/s"),
        TextColumn("{task.fields[seen]} prompts"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
    )
