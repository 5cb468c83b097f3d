"""How a generator learns: judge's R@1 and silhouette IoU against the training prompts seen.

python -m benchmarks.learning_curve runs/amortized --count 24 --output benchmarks/results/curve.json

Every checkpoint that the run kept is judged on the same prompts; what is done stays in the output,
so a second start goes on. Draws the curves beside it as a PNG.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
from rich.console import Console
from rich.progress import track

from scaledreamer.cli._output import DEVICES, choose_device
from scaledreamer.cli.errors import Parser, run
from scaledreamer.encoders import clip_score
from scaledreamer.evaluation import protocol
from scaledreamer.pipeline import GeneratorFolder, TextTo3D
from scaledreamer.storage import atomic_write, read_json, resolve_folder, sha256_file, write_json
from scaledreamer.toybox.world import grammar
from scaledreamer.training import provenance

KEPT = ("recall_at_1", "ceiling_recall_at_1", "share_of_ceiling", "silhouette_iou", "janus_rate")
DRAWN = {
    "share_of_ceiling": "R@1, share of the judge's ceiling",
    "silhouette_iou": "silhouette IoU",
}
NAMES = {
    "train": "seen prompts",
    "unseen_combination": "unseen combinations",
    "unseen_pairing": "unseen pairings",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="learning_curve", description="R@1 and IoU over a run's checkpoints.")
    parser.add_argument("run", type=Path, help="run folder with its checkpoints")
    parser.add_argument("--count", type=int, default=24, help="prompts of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge", default="toybox:judge", metavar="FOLDER")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--output", type=Path, default=Path("curve.json"), metavar="JSON")
    return run(lambda: benchmark(parser.parse_args(argv)))


def benchmark(options: argparse.Namespace) -> int:
    folders = sorted(options.run.glob("**/step_*/manifest.json"))
    if not folders:
        raise ValueError(f"{options.run}: has no checkpoints; name a run folder")
    device = choose_device(options.device)
    scorer = clip_score.load(options.judge, device)
    settings = {
        "run": str(options.run),
        "edition": grammar.EDITION,
        "count": options.count,
        "seed": options.seed,
        "judge": sha256_file(resolve_folder(options.judge) / "model.safetensors"),
    }
    report = _earlier(options.output, settings)
    corpora = {
        split: random.Random(options.seed).sample(grammar.prompts(split), options.count)
        for split in grammar.SPLITS
    }
    for manifest in track(folders, "judging checkpoints", console=Console(stderr=True)):
        found = GeneratorFolder.find(str(manifest.parent))
        step = int(found.config["step"])
        if str(step) in report["checkpoints"]:
            continue
        pipe = TextTo3D.from_pretrained(found.path, device)
        train = found.config["train"]
        row: dict[str, Any] = {"prompts_seen": step * int(train["prompts_per_step"])}
        for split, prompts in corpora.items():
            scores = protocol.evaluate(scorer, prompts, pipe.render).summary()
            row[split] = {name: scores[name] for name in KEPT if name in scores}
        report["checkpoints"][str(step)] = row
        write_json(options.output, report)
    _draw(report, options.output.with_suffix(".png"))
    print(options.output)
    return 0


def _earlier(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if path.is_file():
        report = read_json(path)
        if report["settings"] != settings:
            raise ValueError(f"--output {path}: holds a curve of other settings; name another file")
        return report
    return {"settings": settings, "versions": provenance.versions(), "checkpoints": {}}


def _draw(report: dict[str, Any], path: Path) -> None:
    rows = [report["checkpoints"][step] for step in sorted(report["checkpoints"], key=int)]
    seen = [row["prompts_seen"] / 1000 for row in rows]
    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 2), DRAWN.items(), strict=True):
        for split, label in NAMES.items():
            axes.plot(seen, [row[split][name] for row in rows], marker="o", ms=3, label=label)
        axes.set(title=title, xlabel="training prompts seen, thousands")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=120, format="png")


if __name__ == "__main__":
    sys.exit(main())
