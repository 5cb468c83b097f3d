"""`scaledreamer toybox`: the embedded world's truth, prior and generator side by side, one PNG."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from scaledreamer.cameras import ring
from scaledreamer.cli._output import DEVICES, choose_device
from scaledreamer.cli.errors import Parser, run
from scaledreamer.data.corpus import prompt_lines
from scaledreamer.encoders import clip_score
from scaledreamer.evaluation import protocol
from scaledreamer.interfaces import CameraBatch
from scaledreamer.pipeline import TextTo3D
from scaledreamer.priors import unet
from scaledreamer.rendering.sheet import contact_sheet
from scaledreamer.storage import atomic_write
from scaledreamer.toybox.world import grammar, language

_PX = 96


def main(argv: Sequence[str] | None = None) -> int:
    return run(lambda: _toybox(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="scaledreamer toybox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    options: dict[str, tuple[str, str]] = {
        "render": ("ground truth of prompts, or of every kind", "toybox.png"),
        "sample": ("samples of the prior, camera given and camera dropped", "samples.png"),
        "score": ("truth, prior and generator, with the judge's scores", "scores.png"),
    }
    for name, (line, path) in options.items():
        command = commands.add_parser(name, help=line, description=line)
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
        source.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line")
        if name == "render":
            source.add_argument("--kinds", action="store_true", help="all kinds, front and back")
        command.add_argument("--output", type=Path, default=Path(path), metavar="PNG")
        command.add_argument(
            "--azimuths",
            type=float,
            nargs="+",
            default=[0.0, 90.0, 180.0, 270.0],
            metavar="DEG",
            help="0 sees the front (default: 0 90 180 270)",
        )
        command.add_argument("--elevation", type=float, default=15.0, metavar="DEG")
        command.add_argument("--px", type=int, default=_PX, help=f"side of a view (default {_PX})")
        if name != "render":
            command.add_argument("--prior", default="toybox:prior", metavar="FOLDER")
            command.add_argument("--guidance-scale", type=float, default=2.0)
            command.add_argument("--sampling-steps", type=int, default=30)
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--device", choices=DEVICES, default="auto")
        if name == "score":
            command.add_argument("--checkpoint", default="toybox:generator", metavar="FOLDER")
            command.add_argument("--judge", default="toybox:judge", metavar="FOLDER")
    return parser


def _toybox(options: argparse.Namespace) -> int:
    if options.px < 8:
        raise ValueError(f"--px: got {options.px}; at least 8")
    if not options.output.parent.is_dir():
        raise ValueError(f"--output: no folder {options.output.parent}; make it first")
    if getattr(options, "sampling_steps", 1) < 1:
        raise ValueError(f"--sampling-steps: got {options.sampling_steps}; at least 1")
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "render": _render,
        "sample": _sample,
        "score": _score,
    }
    commands[options.command](options)
    print(options.output)
    return 0


def _captions(options: argparse.Namespace) -> list[str]:
    """Canonical captions. Raises: ValueError for what ToyBox cannot show."""
    texts = options.prompt
    if texts is None:
        texts = prompt_lines(options.prompts.read_text("utf-8"))
    if not texts:
        raise ValueError(f"--prompts {options.prompts}: holds no prompts; write one per line")
    return list(dict.fromkeys(map(language.caption_of, texts)))


def _cameras(options: argparse.Namespace, count: int) -> CameraBatch:
    return ring(count, tuple(options.azimuths), options.elevation)


def _at_size(images: Tensor, px: int) -> Tensor:
    """[B, V, 3, H, W] -> [B, V, 3, px, px], pixels as they are."""
    return F.interpolate(images.flatten(0, 1).cpu(), px).unflatten(0, images.shape[:2])


def _save(path: Path, rows: Sequence[tuple[str, Tensor]], columns: int = 1) -> None:
    with atomic_write(path, "wb") as file:
        contact_sheet(rows, columns=columns).save(file, "PNG", optimize=True)


def _render(options: argparse.Namespace) -> None:
    if options.kinds:
        captions = catalogue_captions()
        options.azimuths, columns = [-35.0, 145.0], 6
    else:
        captions, columns = _captions(options), 1
    views = protocol.ground_truth_views(captions, _cameras(options, len(captions)), options.px)
    _save(options.output, list(zip(captions, views.rgb, strict=True)), columns)


def catalogue_captions() -> list[str]:
    """Every kind once, its part named, in colours that go through the palette."""
    natural, captions = language.NATURAL_COLOURS, []
    for index, kind in enumerate(grammar.KIND_NAMES):
        others = [colour for colour in grammar.COLOURS if colour != natural[kind]]
        accent = others[(5 * index) % len(others)]
        captions.append(grammar.describe(grammar.Scene(grammar.Item(kind, natural[kind], accent))))
    return captions


def _beside(groups: Sequence[Tensor], px: int) -> Tensor:
    """Groups [B, V, 3, h, w] side by side, with an empty view between: [B, views, 3, px, px]."""
    sized = [_at_size(group, px) for group in groups]
    gap = torch.ones_like(sized[0][:, :1])
    parts = [part for group in sized for part in (group, gap)]
    return torch.cat(parts[:-1], dim=1)


def _sample(options: argparse.Namespace) -> None:
    captions, device = _captions(options), choose_device(options.device)
    cameras = _cameras(options, len(captions))
    groups = [protocol.ground_truth_views(captions, cameras, options.px).rgb]
    for use_cameras in track((True, False), "sampling", console=Console(stderr=True)):
        config = unet.Config(
            folder=options.prior,
            autocast=True,
            use_cameras=use_cameras,
            use_view_words=not use_cameras,
        )
        images_of = _sampler(unet.create(config, device), options)
        groups.append(protocol.rgb_of(images_of(captions, cameras, options.px)))
    names = [f"{text}: truth, prior with camera, prior with view words" for text in captions]
    _save(options.output, list(zip(names, _beside(groups, options.px), strict=True)))


def _sampler(prior: unet.UNetPrior, options: argparse.Namespace) -> protocol.ImagesOf:
    return protocol.prior_images(
        prior, options.sampling_steps, options.guidance_scale, options.seed
    )


def _score(options: argparse.Namespace) -> None:
    captions, device = _captions(options), choose_device(options.device)
    cameras = _cameras(options, len(captions))
    scorer = clip_score.load(options.judge, device)
    pipe = TextTo3D.from_pretrained(options.checkpoint, device)
    prior = unet.create(unet.Config(folder=options.prior, autocast=True), device)
    sources: Mapping[str, protocol.ImagesOf] = {
        "truth": protocol.ground_truth_views,
        "prior": _sampler(prior, options),
        "generator": pipe.render,
    }
    groups, scores = [], {}
    for name, images_of in track(
        sources.items(), "judging", total=len(sources), console=Console(stderr=True)
    ):
        groups.append(protocol.rgb_of(images_of(captions, cameras, options.px)))
        scores[name] = protocol.evaluate(scorer, captions, images_of)
    columns: dict[str, Tensor] = {
        f"{name} R@1": score.judgement.recall_at_1 for name, score in scores.items()
    }
    truth = scores["generator"].truth
    assert truth is not None, "a generator has geometry"
    columns["generator IoU"] = truth.silhouette_iou
    _print_table(captions, columns)
    names = []
    for row, text in enumerate(captions):
        shown = ", ".join(f"{name} {values[row]:.2f}" for name, values in columns.items())
        names.append(f"{text}: {shown}")
    _save(options.output, list(zip(names, _beside(groups, options.px), strict=True)))


def _print_table(captions: Sequence[str], columns: Mapping[str, Tensor]) -> None:
    table = Table("prompt", *columns)
    rows: dict[str, dict[str, Any]] = {}
    for row, text in enumerate(captions):
        rows[text] = {name: round(float(values[row]), 4) for name, values in columns.items()}
        table.add_row(text, *(f"{value:.3f}" for value in rows[text].values()))
    Console(stderr=True).print(table)
    print(json.dumps(rows, indent=2))
