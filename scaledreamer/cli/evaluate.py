"""`scaledreamer evaluate`: a generator or the prior against the judge and ground truth."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scaledreamer.cli.errors import Parser, run
from scaledreamer.data.corpus import load_prompts
from scaledreamer.encoders import clip_score
from scaledreamer.evaluation import protocol
from scaledreamer.pipeline import TextTo3D
from scaledreamer.priors import unet
from scaledreamer.rendering.sheet import contact_sheet
from scaledreamer.storage import atomic_write, write_json
from scaledreamer.toybox.world.grammar import SPLITS

_SHEET_ROWS = 12


def main(argv: Sequence[str] | None = None) -> int:
    return run(lambda: _evaluate(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="scaledreamer evaluate",
        description="R@1 among 100 candidates beside the judge's ceiling, and ground-truth scores.",
    )
    parser.add_argument(
        "--checkpoint",
        default="toybox:generator",
        metavar="FOLDER",
        help="a run or generator folder",
    )
    parser.add_argument(
        "--prior",
        metavar="FOLDER",
        help="judge samples of this prior (toybox:prior) instead of a generator",
    )
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of the prior's samples")
    parser.add_argument("--sampling-steps", type=int, default=30, help="of the prior's samples")
    parser.add_argument(
        "--prompts",
        nargs="+",
        default=[f"toybox:{split}" for split in SPLITS],
        metavar="CORPUS",
        help="toybox:SPLIT or files (default: the three splits)",
    )
    parser.add_argument("--count", type=int, default=64, help="prompts a corpus, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="results.json and sheets")
    parser.add_argument("--device", default="cpu")
    return parser


def _draw(corpus: str, count: int, seed: int) -> list[str]:
    prompts = load_prompts(corpus)
    return random.Random(seed).sample(prompts, min(count, len(prompts)))


def _evaluate(options: argparse.Namespace) -> int:
    if options.count < 1:
        raise ValueError(f"--count: got {options.count}; at least 1")
    corpora = {corpus: _draw(corpus, options.count, options.seed) for corpus in options.prompts}
    scorer = clip_score.load("toybox:judge", options.device)
    images_of = _images_of(options)
    results = {}
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        task = progress.add_task("judging", total=sum(map(len, corpora.values())))
        for corpus, prompts in corpora.items():
            scores = protocol.evaluate(
                scorer, prompts, images_of, lambda done: progress.advance(task, done)
            )
            results[corpus] = {
                **scores.summary(),
                "per_prompt": dict(
                    zip(prompts, scores.judgement.recall_at_1.tolist(), strict=True)
                ),
            }
    _print_table(results)
    if options.output is not None:
        write_json(options.output / "results.json", results)
        for corpus, prompts in corpora.items():
            name = Path(corpus.replace(":", "/")).stem
            _save_sheet(options.output / f"{name}.png", prompts, images_of)
    return 0


def _images_of(options: argparse.Namespace):
    if options.prior is None:
        return protocol.generator_views(
            TextTo3D.from_pretrained(options.checkpoint, options.device)
        )
    prior = unet.create(unet.Config(folder=options.prior), options.device)
    return lambda prompts: protocol.prior_images(
        prior, prompts, options.sampling_steps, options.guidance_scale, options.seed
    )


def _print_table(results: dict[str, dict]) -> None:
    columns = [name for name in next(iter(results.values())) if name != "per_prompt"]
    table = Table("corpus", *columns)
    for corpus, row in results.items():
        table.add_row(corpus, *(f"{row[name]:.3f}" for name in columns))
    console = Console(width=max(160, Console().width))
    console.print(table)
    console.print_json(json.dumps({k: {n: v[n] for n in columns} for k, v in results.items()}))


def _save_sheet(path: Path, prompts: Sequence[str], images_of) -> None:
    """Every other judged view of the first prompts, ground truth to the right."""
    shown = list(prompts[:_SHEET_ROWS])
    made = images_of(shown)
    images = made if isinstance(made, torch.Tensor) else made.rgb
    images = torch.nn.functional.interpolate(images.flatten(0, 1), protocol.SIZE_PX)
    images = images.unflatten(0, (len(shown), -1))
    exact = protocol.ground_truth_views(shown).rgb
    rows = [
        (prompt, torch.cat((mine[::2], true[::2])))
        for prompt, mine, true in zip(shown, images, exact, strict=True)
    ]
    with atomic_write(path, "wb") as file:
        contact_sheet(rows).save(file, "PNG")
