"""A small resumable training run: AdamW, warm-up and linear decay, EMA, progress, state on disk."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from scaledreamer.kernels.cpu_memory import keep_freed_memory
from scaledreamer.storage import atomic_write, read_json, write_json

StepFunction = Callable[[int, torch.Generator], Mapping[str, Tensor]]


@dataclass(kw_only=True)
class Run:
    """State lies in `folder/state.pt`; a run that finds one continues where it stopped."""

    folder: Path
    module: nn.Module
    num_steps: int
    learning_rate: float
    seed: int
    warmup: int = 100
    ema_decay: float = 0.999
    save_every: int = 250
    step: int = 0
    ema: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        keep_freed_memory()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.ema = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.averages: dict[str, float] = {}
        self._is_checked = False
        path = self.folder / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema, self.step, self.averages = state["ema"], state["step"], state["averages"]

    def _save(self) -> None:
        with atomic_write(self.folder / "state.pt", "wb") as file:
            torch.save(
                {
                    "module": self.module.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "ema": self.ema,
                    "step": self.step,
                    "averages": self.averages,
                },
                file,
            )

    def _rate(self) -> float:
        rise = min(1.0, (self.step + 1) / self.warmup)
        fall = max(0.0, 1.0 - self.step / self.num_steps)
        return self.learning_rate * min(rise, fall)

    def _advance(self, losses: Mapping[str, Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        if not self._is_checked:
            require_gradients(self.module)
            self._is_checked = True
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                self.ema[name].lerp_(p, 1 - decay)
        for name, value in losses.items():
            now = float(value.detach())
            before = self.averages.get(name, now)
            self.averages[name] = before + 0.02 * (now - before)

    def train(self, step_function: StepFunction, until: int | None = None) -> None:
        """Runs to `num_steps`, or stops and saves at step `until`.

        Step s draws from a generator seeded by (seed, s) alone.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        with Progress(*columns) as progress:
            task = progress.add_task(self.folder.name, total=self.num_steps, shown="")
            last = self.num_steps if until is None else until
            while self.step < last:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
                self._advance(step_function(self.step, generator))
                shown = " ".join(f"{name} {value:.4f}" for name, value in self.averages.items())
                progress.update(task, completed=self.step, shown=shown)
                if self.step % 50 == 0:
                    with (self.folder / "metrics.jsonl").open("a") as log:
                        log.write(json.dumps({"step": self.step, **self.averages}) + "\n")
                if self.step % self.save_every == 0 or self.step == last:
                    self._save()

    def use_ema(self) -> None:
        """Puts the averaged weights into the module."""
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(self.ema[name])


def require_gradients(module: nn.Module) -> None:
    """Raises: AssertionError naming a parameter that a backward pass did not reach."""
    idle = [
        name
        for name, p in module.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not idle, f"{len(idle)} parameters get no gradient, such as {idle[0]}"


def _commit() -> str:
    """Of the checkout this file lies in, "unknown" without one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_card(
    folder: Path, title: str, facts: Mapping[str, object], sheet: Image.Image | None = None
) -> None:
    """`README.md`, `card.json` and `samples.png` beside weights: what they are, how they came."""
    card = {**facts, "torch": torch.__version__, "commit": _commit()}
    write_json(folder / "card.json", card)
    rows = "\n".join(f"| {name} | {value} |" for name, value in card.items())
    text = f"# {title}\n\n| fact | value |\n|---|---|\n{rows}\n"
    if sheet is not None:
        with atomic_write(folder / "samples.png", "wb") as file:
            sheet.save(file, "PNG", optimize=True)
        text += "\n![What it makes of some prompts](samples.png)\n"
    with atomic_write(folder / "README.md") as file:
        file.write(text)


def earlier(folder: Path | None) -> object:
    """What a card says of the weights that training began from."""
    if folder is None:
        return "random"
    card = read_json(folder / "card.json")
    names = ("steps", "images", "sha256 of weights", "initial weights")
    return {name: card[name] for name in names if name in card}


def last_metrics(folder: Path) -> dict[str, float]:
    """The running means that a run's folder recorded last."""
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
