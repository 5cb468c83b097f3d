"""Where a training step's time goes, and prompts per second.

python -m benchmarks.step_time --config configs/toybox/quickstart.yaml --json step_time.json

Times the real step with the components of the configuration.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from scaledreamer.cli.errors import Parser, run
from scaledreamer.config import load_config
from scaledreamer.data.corpus import load_prompts
from scaledreamer.data.loader import PromptLoader
from scaledreamer.storage import write_json
from scaledreamer.training import provenance
from scaledreamer.training import step as step_module
from scaledreamer.training.config import TrainConfig
from scaledreamer.training.setup import Run, create_run

STAGES = (
    *("text", "generator", "render", "prior", "distiller", "regularizers"),
    *("backward", "optimizer", "average", "other"),
)


class Stopwatch:
    """Seconds by stage, less the stages within it; a stage includes its wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._stages: list[str] = []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            start = self.now()
            self._stages.append(stage)
            try:
                return function(*arguments, **named)
            finally:
                elapsed = self.now() - start
                self._stages.pop()
                self.seconds[stage] += elapsed
                if self._stages:
                    self.seconds[self._stages[-1]] -= elapsed

        return wrapped


def instrument(run: Run, watch: Stopwatch) -> Run:
    """The run with its parts timed; the step itself is untouched."""
    for name in ("encode", "condition", "predict_noise"):
        setattr(run.prior, name, watch.timed("prior", getattr(run.prior, name)))
    run.accelerator.backward = watch.timed("backward", run.accelerator.backward)
    run.optimizer.step = watch.timed("optimizer", run.optimizer.step)
    run.ema.update = watch.timed("average", run.ema.update)
    step_module.render = watch.timed("render", step_module.render)
    step_module.regularizers = watch.timed("regularizers", step_module.regularizers)
    return replace(
        run,
        encoder=watch.timed("text", run.encoder),  # type: ignore[arg-type]
        model=watch.timed("generator", run.model),  # type: ignore[arg-type]
        distiller=watch.timed("distiller", run.distiller),  # type: ignore[arg-type]
    )


def measure(config: TrainConfig, num_steps: int, num_warmup: int) -> dict[str, Any]:
    """Seconds per step and stage, after `num_warmup` steps."""
    accelerator = Accelerator(mixed_precision="no")
    watch = Stopwatch(accelerator.device)
    run = instrument(create_run(config, accelerator), watch)
    loader = PromptLoader(load_prompts(config.prompts), config.seed, config.prompts_per_step)
    start = 0.0
    for step in range(num_warmup + num_steps):
        if step == num_warmup:
            watch.seconds.clear()
            start = watch.now()
        step_module.training_step(run, next(loader), step)
    total = (watch.now() - start) / num_steps
    seconds = {name: value / num_steps for name, value in watch.seconds.items()}
    seconds["other"] = total - sum(seconds.values())
    return {
        "seconds_per_step": total,
        "prompts_per_second": config.prompts_per_step / total,
        "seconds": {name: seconds.get(name, 0.0) for name in STAGES},
        "share": {name: seconds.get(name, 0.0) / total for name in STAGES},
        "num_steps": num_steps,
        "num_threads": torch.get_num_threads(),
        "prompts_per_step": config.prompts_per_step,
        "views_per_prompt": config.views_per_prompt,
        "render_px": config.render_px,
        "precision": config.precision,
        "prior": config.prior.name,
        "versions": provenance.versions(),
    }


def show(report: dict[str, Any]) -> None:
    title = (
        f"{report['seconds_per_step'] * 1e3:.0f} ms a step, "
        f"{report['prompts_per_second']:.1f} prompts/s, {report['num_threads']} threads"
    )
    table = Table(title=title)
    table.add_column("stage")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for name in STAGES:
        milliseconds, share = report["seconds"][name] * 1e3, report["share"][name]
        table.add_row(name, f"{milliseconds:.1f}", f"{share:.1%}")
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="step_time", description="Where a training step's time goes.")
    parser.add_argument("--config", type=Path, default=Path("configs/toybox/quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    return run(lambda: benchmark(parser.parse_intermixed_args(argv)))


def benchmark(options: argparse.Namespace) -> int:
    config = load_config(TrainConfig, options.config, options.overrides)
    report = measure(config, options.steps, options.warmup)
    show(report)
    if options.json:
        write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
