"""The losses side by side where the truth is known: one table and one figure.

python -m benchmarks.compare_losses --output runs/compare --json benchmarks/results/losses.json

The same small generator, prompts and steps for all, in the sharp regime of the embedded prior
(camera given) and in the broad one (view words alone). A finished run is not made again, so a
second start goes on; --workers runs several at once, one thread each. Intervals are those of a
paired bootstrap over the prompts, seeds averaged. Source: Efron and Tibshirani, "An introduction to
the bootstrap", 1993, chapter 8.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any

import matplotlib.figure
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scaledreamer.cameras import ring
from scaledreamer.cli._output import writable_folder
from scaledreamer.cli.errors import Parser, run
from scaledreamer.config import build, component_module
from scaledreamer.data.corpus import load_prompts
from scaledreamer.encoders import clip_score
from scaledreamer.evaluation import protocol
from scaledreamer.interfaces import ConditionRows
from scaledreamer.pipeline import TextTo3D
from scaledreamer.priors import unet
from scaledreamer.rng import StepRng
from scaledreamer.storage import atomic_write, read_json, write_json
from scaledreamer.toybox.world.grammar import EDITION, parse
from scaledreamer.training import provenance

ROOT = Path(__file__).parent.parent
PROMPTS = ROOT / "data" / "prompts" / "compare.txt"
REGIMES = {
    "sharp": ("prior.use_cameras=true", "prior.use_view_words=false"),
    "broad": ("prior.use_cameras=false", "prior.use_view_words=true"),
}
SCORES = ("recall_at_1", "similarity", "silhouette_iou", "colour_error")
_LOADING = Lock()
"""transformers loads one model at a time."""
DRAWN = {"recall_at_1": "judge R@1", "silhouette_iou": "silhouette IoU"}


@dataclass(frozen=True)
class Setting:
    """A loss with its settings; `matched` scales it to the gradient of another setting's runs."""

    name: str
    loss: str
    options: tuple[tuple[str, float | bool], ...] = ()
    seeds: int = 1
    regimes: tuple[str, ...] = ("sharp", "broad")
    matched: str | None = None


def settings(guidance_scale: float, seeds: int) -> list[Setting]:
    """In the order of their worth; what `matched` names stands before it."""
    scale = ("guidance_scale", guidance_scale)
    sharp = ("sharp",)
    ablation = {
        "asd, eta 0": (("eta", 0.0),),
        "asd, eta 0.1": (("eta", 0.1),),
        "asd, eta 0.2": (("eta", 0.2),),
        "asd, eta 0.1, deterministic": (("eta", 0.1), ("is_shift_random", False)),
        "asd, eta 0.2, deterministic": (("eta", 0.2), ("is_shift_random", False)),
        "asd, deterministic": (("eta", 1.0), ("is_shift_random", False)),
    }
    return [
        Setting("asd", "asd", (scale, ("eta", 1.0)), seeds),
        Setting("sds", "sds", (scale,), seeds),
        Setting("csd", "csd", (), seeds),
        Setting("vsd", "vsd", (scale,), seeds),
        Setting("csd, matched", "csd", (), seeds, matched="asd"),
        *(Setting(name, "asd", (scale, *more)) for name, more in ablation.items()),
        *(
            Setting(f"{loss}, CFG {value:g}", loss, (("guidance_scale", value),), regimes=sharp)
            for loss in ("asd", "sds")
            for value in (1.3, 3.0, 7.5)
        ),
        Setting("ism (one seed)", "ism", (scale,)),
        Setting("nfsd (one seed)", "nfsd", (scale,)),
    ]


@dataclass(frozen=True)
class Job:
    setting: Setting
    regime: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.regime}/{self.setting.name}/{self.seed}"

    def folder(self, root: Path) -> Path:
        name = re.sub(r"\W+", "_", self.setting.name)
        return root / self.regime / name / str(self.seed)


def jobs(chosen: Sequence[Setting]) -> list[Job]:
    return [
        Job(setting, regime, seed)
        for setting in chosen
        for regime in setting.regimes
        for seed in range(setting.seeds)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="compare_losses", description="The losses on the embedded world.")
    parser.add_argument("--steps", type=int, default=600, help="of every run (default 600)")
    parser.add_argument("--seeds", type=int, default=3, help="of the main losses (default 3)")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="where none is swept")
    parser.add_argument("--prompts", default=str(PROMPTS), metavar="CORPUS")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="settings, as the table names them"
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=Path("losses.json"), metavar="FILE")
    return run(lambda: benchmark(parser.parse_args(argv)))


def benchmark(options: argparse.Namespace) -> int:
    chosen = settings(options.guidance_scale, options.seeds)
    if options.only:
        names = [setting.name for setting in chosen]
        for name in options.only:
            if name not in names:
                raise ValueError(f"--only: got {name!r}; the settings are {', '.join(names)}")
        chosen = [setting for setting in chosen if setting.name in options.only]
    prompts = load_prompts(options.prompts)
    for prompt in prompts:
        parse(prompt)
    fixed = {
        "steps": options.steps,
        "prompts": prompts,
        "guidance_scale": options.guidance_scale,
        "edition": EDITION,
    }
    options.output /= hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:8]
    report = _earlier(options.json, fixed)
    with writable_folder(options.output), Progress(console=Console(stderr=True)) as progress:
        todo = [job for job in jobs(chosen) if job.key not in report["runs"]]
        task = progress.add_task("runs", total=len(todo))
        for wave in (
            [j for j in todo if not j.setting.matched],
            [j for j in todo if j.setting.matched],
        ):
            with ThreadPoolExecutor(options.workers) as pool:
                for key, row in pool.map(lambda job: (job.key, _one(job, options, report)), wave):
                    report["runs"][key] = row
                    write_json(options.json, report)
                    progress.advance(task)
    report["table"] = summarise(report["runs"], chosen)
    write_json(options.json, report)
    show(report["table"])
    draw(report["table"], options.json.with_suffix(".png"))
    return 0


def _earlier(path: Path, fixed: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        return {"fixed": fixed, "versions": provenance.versions(), "runs": {}}
    report = read_json(path)
    if report["fixed"] != fixed:
        raise ValueError(f"--json {path}: holds runs of other settings; name another file")
    return report


def _one(job: Job, options: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    """Trains and judges one run; of a diverged one only that is known."""
    folder = job.folder(options.output)
    weight = 1.0
    if job.setting.matched is not None:
        weight = _gradient(report, job, job.setting.matched) / _gradient(report, job, "csd")
    steps = options.steps
    arguments = [
        *(sys.executable, str(ROOT / "train_amortized.py")),
        *("--config", str(ROOT / "configs" / "toybox" / "quickstart.yaml")),
        *("--output", str(folder), "--resume", "auto", f"distiller.name={job.setting.loss}"),
        *(f"distiller.{name}={str(value).lower()}" for name, value in job.setting.options),
        *REGIMES[job.regime],
        *(f"prompts={options.prompts}", f"seed={job.seed}", f"num_steps={steps}"),
        *("num_threads=1", f"losses.{job.setting.loss}={weight}", f"beta.to_step={steps * 7 // 8}"),
        *(f"distiller.t_min={_window(0.5, 0.02, steps)}",),
        *(f"distiller.t_max={_window(0.98, 0.5, steps)}",),
        *("log.use_tensorboard=false", f"log.image_every={steps}", f"checkpoints.every={steps}"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "crash.json").unlink(missing_ok=True)
    start = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env=_environment())
        peak_mb = _watch(process)
    code = process.returncode
    has_diverged = code == 1 and (folder / "crash.json").is_file()
    row: dict[str, Any] = {
        "weight": weight,
        "seconds_a_step": (time.perf_counter() - start) / steps,
        "peak_memory_mb": peak_mb,
        "diverged": has_diverged,
    }
    with _LOADING:
        row["prior_evaluations"] = prior_evaluations(job.setting)
    if has_diverged:
        return row
    if code:
        raise ValueError(f"{job.key}: training ended with {code}; see {folder / 'log.txt'}")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    row["seconds_a_step"] = 1 / fmean(record["steps_per_s"] for record in records[1:] or records)
    row["gradient_rms"] = fmean(record["stat/gradient_rms"] for record in records)
    with _LOADING:
        return row | _judge(folder, load_prompts(options.prompts))


def _watch(process: subprocess.Popen[bytes]) -> float:
    """Waits for its end; returns the most memory it held, MB."""
    peak_mb, path = 0.0, Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        if path.exists():  # Linux only
            found = re.search(r"VmHWM:\s+(\d+) kB", path.read_text())
            peak_mb = float(found[1]) / 1024 if found else peak_mb
        time.sleep(0.5)
    return peak_mb


def _window(start: float, end: float, steps: int) -> str:
    return f"{{start: {start}, end: {end}, from_step: 0, to_step: {steps}}}"


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _gradient(report: dict[str, Any], job: Job, name: str) -> float:
    """Mean size of the gradients of the runs of a setting in the same regime."""
    prefix = f"{job.regime}/{name}/"
    sizes = [
        row.get("gradient_rms") for key, row in report["runs"].items() if key.startswith(prefix)
    ]
    known = [size for size in sizes if size is not None]
    if not known:
        raise ValueError(f"{job.key}: is matched to {name}, which has no finished run; run it too")
    return fmean(known)


def _judge(folder: Path, prompts: Sequence[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    pipe = TextTo3D.from_pretrained(folder)
    scores = protocol.evaluate(clip_score.load("toybox:judge"), prompts, pipe.render)
    assert scores.truth is not None, "a generator has geometry"
    return {
        "recall_at_1": scores.judgement.recall_at_1.tolist(),
        "similarity": scores.judgement.similarity.tolist(),
        "silhouette_iou": scores.truth.silhouette_iou.tolist(),
        "colour_error": scores.truth.colour_error.tolist(),
        "ceiling_recall_at_1": scores.ceiling.recall_at_1.tolist(),
    }


class _Counting:
    """The prior, counting the rows its network is asked for."""

    def __init__(self, prior: unet.UNetPrior) -> None:
        self._prior, self.rows = prior, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def predict_noise(self, x_t: torch.Tensor, t: torch.Tensor, rows: ConditionRows) -> Any:
        self.rows += len(x_t)
        return self._prior.predict_noise(x_t, t, rows)


def prior_evaluations(setting: Setting) -> float:
    """Rows of the frozen prior for each latent of a step, counted."""
    prior = _Counting(unet.create(unet.Config()))
    module = component_module("scaledreamer.distillation", setting.loss)
    config = build(module.Config, dict(setting.options), "distiller")
    latents = torch.zeros(2, *prior.latent_shape)
    condition = prior.condition(["a red mug"], ring(1, (0.0, 180.0)))
    module.create(config, prior)(latents, condition, 0, StepRng(0, 0, torch.tensor([0])))
    return prior.rows / len(latents)


def summarise(runs: dict[str, Any], chosen: Sequence[Setting]) -> list[dict[str, Any]]:
    """One row a regime and setting; differences to asd with 95 % intervals."""
    table = []
    for regime in REGIMES:
        reference = _values(runs, regime, "asd")
        for setting in chosen:
            own = [row for key, row in runs.items() if key.startswith(f"{regime}/{setting.name}/")]
            if not own:
                continue
            done = [row for row in own if not row["diverged"]]
            row: dict[str, Any] = {
                "regime": regime,
                "setting": setting.name,
                "seeds": len(own),
                "diverged": len(own) - len(done),
                **{
                    name: fmean(one[name] for one in own)
                    for name in ("seconds_a_step", "prior_evaluations", "peak_memory_mb", "weight")
                },
            }
            values = _values(runs, regime, setting.name)
            for name in SCORES if done else ():
                row[name] = float(values[name].mean())
                if setting.name != "asd" and reference:
                    row[f"{name}_minus_asd"] = paired(values[name], reference[name])
            table.append(row)
    return table


def _values(runs: dict[str, Any], regime: str, name: str) -> dict[str, torch.Tensor]:
    """Scores per prompt, averaged over the seeds that did not diverge."""
    rows = [r for k, r in runs.items() if k.startswith(f"{regime}/{name}/") and not r["diverged"]]
    return {s: torch.tensor([row[s] for row in rows]).mean(0) for s in SCORES} if rows else {}


def paired(own: torch.Tensor, other: torch.Tensor, draws: int = 4000) -> list[float]:
    """Mean difference over the prompts and its 95 % interval."""
    difference = own - other
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(difference), (draws, len(difference)), generator=generator)
    low, high = difference[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return [float(difference.mean()), low, high]


def show(table: Sequence[dict[str, Any]]) -> None:
    names = [*SCORES, "seconds_a_step", "prior_evaluations", "peak_memory_mb", "diverged"]
    shown = Table("regime", "setting", "seeds", *names, "R@1 - asd [95 %]")
    for row in table:
        cells = [f"{row[name]:.3f}" if name in row else "-" for name in names]
        found = row.get("recall_at_1_minus_asd")
        interval = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*found) if found else ""
        shown.add_row(row["regime"], row["setting"], str(row["seeds"]), *cells, interval)
    Console(width=max(170, Console().width)).print(shown)


def draw(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars by setting: R@1 and silhouette IoU in both regimes."""
    figure = matplotlib.figure.Figure(figsize=(10, 0.32 * len(table) + 1.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), DRAWN.items(), strict=True):
        labels = [f"{row['setting']} ({row['regime']})" for row in table]
        colours = ["#4878a8" if row["regime"] == "sharp" else "#d08848" for row in table]
        axes.barh(labels, [row.get(name, 0.0) for row in table], color=colours)
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].invert_yaxis()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=120, format="png")


if __name__ == "__main__":
    sys.exit(main())
