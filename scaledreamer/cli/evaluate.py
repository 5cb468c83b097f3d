"""`scaledreamer evaluate`: a generator or the prior against the judge and ground truth."""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.nn import functional as F

from scaledreamer.cameras import ring
from scaledreamer.cli._output import DEVICES, choose_device, writable_folder
from scaledreamer.cli.errors import Parser, run
from scaledreamer.data.corpus import load_prompts
from scaledreamer.encoders import clip_score
from scaledreamer.evaluation import judging, protocol
from scaledreamer.pipeline import TextTo3D
from scaledreamer.priors import unet
from scaledreamer.rendering.sheet import contact_sheet
from scaledreamer.storage import atomic_write, write_json
from scaledreamer.toybox.world.grammar import SPLITS
from scaledreamer.toybox.world.language import caption_of

_SHEET_ROWS = 12
_SHEET_PX = 128
_SHEET_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)


def main(argv: Sequence[str] | None = None) -> int:
    return run(lambda: _evaluate(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="scaledreamer evaluate",
        description="R@1 among 100 candidates beside the judge's ceiling, and ground-truth scores.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint",
        default="toybox:generator",
        metavar="FOLDER",
        help="a run or generator folder",
    )
    source.add_argument(
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
    parser.add_argument("--per-kind", action="store_true", help="also a table by object kind")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="results.json and sheets")
    parser.add_argument("--judge", default="toybox:judge", metavar="FOLDER", help="a CLIP folder")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    for name in ("count", "sampling_steps"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: got {getattr(options, name)}; at least 1")
    corpora = {corpus: _draw(corpus, options.count, options.seed) for corpus in options.prompts}
    device = choose_device(options.device)
    with ExitStack() as stack:
        if options.output is not None:
            stack.enter_context(writable_folder(options.output))
        images_of = _images_of(options, device)
        scorer = clip_score.load(options.judge, device)
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        results = _judge(scorer, corpora, images_of, progress)
        if options.output is not None:
            write_json(options.output / "results.json", results)
            names = _sheet_names(corpora)
            for corpus in progress.track(list(corpora), description="drawing sheets"):
                path = options.output / f"{names[corpus]}.png"
                _save_sheet(path, corpora[corpus][:_SHEET_ROWS], images_of)
    _print_tables(results, options.per_kind)
    return 0


def _draw(corpus: str, count: int, seed: int) -> list[str]:
    """Captions of a corpus, drawn at random. Raises: ValueError for one that has no scene."""
    prompts = load_prompts(corpus)
    drawn = random.Random(seed).sample(prompts, min(count, len(prompts)))
    return list(dict.fromkeys(map(caption_of, drawn)))


def _images_of(options: argparse.Namespace, device: str) -> protocol.ImagesOf:
    if options.prior is None:
        return TextTo3D.from_pretrained(options.checkpoint, device).render
    prior = unet.create(unet.Config(folder=options.prior, autocast=True), device)
    return protocol.prior_images(
        prior, options.sampling_steps, options.guidance_scale, options.seed
    )


def _judge(
    scorer: clip_score.ClipScorer,
    corpora: dict[str, list[str]],
    images_of: protocol.ImagesOf,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    task = progress.add_task("judging", total=sum(map(len, corpora.values())))
    results = {}
    for corpus, prompts in corpora.items():
        scores = protocol.evaluate(
            scorer, prompts, images_of, lambda done: progress.advance(task, done)
        )
        recall = scores.judgement.recall_at_1.tolist()
        results[corpus] = {
            **scores.summary(),
            "per_prompt": dict(zip(prompts, recall, strict=True)),
            "per_form": scores.by_form(),
            "per_kind": scores.by_kind(),
        }
    return results


def _print_tables(results: dict[str, dict[str, Any]], use_kinds: bool) -> None:
    console = Console(width=max(160, Console().width))
    summaries = {
        corpus: {name: value for name, value in row.items() if not isinstance(value, dict)}
        for corpus, row in results.items()
    }
    console.print(_table("corpus", summaries))
    for corpus, row in results.items():
        console.print(_table(corpus, row["per_form"]))
        if use_kinds:
            console.print(_table(corpus, row["per_kind"]))
    console.print_json(json.dumps(summaries))


def _table(corner: str, rows: dict[str, dict[str, float]]) -> Table:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table(corner, *columns)
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.3f}" if column in row else "" for column in columns))
    return table


def _sheet_names(corpora: Iterable[str]) -> dict[str, str]:
    """A file name for each: the split, or the file's stem and the list's name; never one twice."""
    names: dict[str, str] = {}
    for corpus in corpora:
        source, _, key = corpus.partition("#")
        stem = Path(source.removeprefix("toybox:")).stem
        base = re.sub(r"[^\w.-]+", "_", f"{stem}-{key}" if key else stem)
        free = (base, *(f"{base}-{number}" for number in range(2, 3 + len(names))))
        names[corpus] = next(name for name in free if name not in names.values())
    return names


def _save_sheet(path: Path, prompts: Sequence[str], images_of: protocol.ImagesOf) -> None:
    """Four views of each prompt, ground truth to the right."""
    cameras = ring(1, _SHEET_AZIMUTHS_DEG, judging.ELEVATION_DEG)
    rows = []
    for prompt in prompts:
        mine = protocol.rgb_of(images_of([prompt], cameras, _SHEET_PX))[0].cpu()
        exact = protocol.ground_truth_views([prompt], cameras, _SHEET_PX).rgb[0]
        rows.append((prompt, torch.cat((F.interpolate(mine, _SHEET_PX, mode="nearest"), exact))))
    with atomic_write(path, "wb") as file:
        contact_sheet(rows).save(file, "PNG")
