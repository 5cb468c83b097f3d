"""`scaledreamer prior`: look at a diffusion prior before it trains, or make one's folder."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from scaledreamer.cameras import ring
from scaledreamer.cli._output import DEVICES, choose_device
from scaledreamer.cli.errors import Parser, run
from scaledreamer.config import component_module, load_config
from scaledreamer.encoders._pretrained import locate
from scaledreamer.priors import _folder, _mvdream_checkpoint, flux
from scaledreamer.storage import atomic_write

PROMPT = "a red mug with a white handle"
_PACKAGE = "scaledreamer.priors"


def main(argv: Sequence[str] | None = None) -> int:
    return run(lambda: _prior(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="scaledreamer prior", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    line = "load a prior, run one encoding and one prediction, sample a small picture"
    check = commands.add_parser("check", help=line, description=line)
    check.add_argument(
        "folder", metavar="FOLDER|ID", help="pipeline folder, hub id or toybox:prior"
    )
    check.add_argument("--prompt", default=PROMPT)
    check.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="a=b",
        help="settings of the prior's configuration, as dtype=float16 image_px=512",
    )
    check.add_argument("--guidance-scale", type=float, help="default: 5, for flux 1")
    check.add_argument("--steps", type=int, default=20, help="of sampling; 0: no picture")
    check.add_argument("--seed", type=int, default=0)
    check.add_argument("--device", choices=DEVICES, default="auto")
    check.add_argument("--output", type=Path, default=Path("prior.png"), metavar="PNG")
    line = "make a pipeline folder of a published MVDream checkpoint (.pt or .safetensors)"
    convert = commands.add_parser("convert", help=line, description=line)
    convert.add_argument("checkpoint", type=Path, metavar="FILE")
    convert.add_argument("folder", type=Path, metavar="FOLDER")
    convert.add_argument(
        "--tokenizer", required=True, metavar="FOLDER|ID", help="of the Stable Diffusion it is from"
    )
    return parser


def _prior(options: argparse.Namespace) -> None:
    if options.command == "convert":
        _mvdream_checkpoint.convert(options.checkpoint, options.folder, options.tokenizer)
        print(f"{options.folder}: set prior.name=mvdream prior.folder={options.folder}")
        return
    if options.steps < 0:
        raise ValueError(f"--steps: got {options.steps}; 0 or more")
    if options.steps and not options.output.parent.is_dir():
        raise ValueError(f"--output: no folder {options.output.parent}; make it first")
    try:
        _check(options)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"out of memory ({' '.join(str(error).split())[:120]}); try dtype=float16, "
            "image_px or use_offload=true"
        ) from error


@torch.no_grad()
def _check(options: argparse.Namespace) -> None:
    device = choose_device(options.device)
    name = _folder.family_of(locate(options.folder, "FOLDER|ID"))
    module = component_module(_PACKAGE, name)
    config = load_config(module.Config, None, [f"folder={options.folder}", *options.set])
    prior = module.create(config, device)
    views = prior.num_views
    cameras = ring(1, tuple(360.0 * view / views for view in range(views))).to(device)
    condition = prior.condition([options.prompt], cameras)
    facts: dict[str, Any] = {"prior.name": name, "views together": views}
    for part, modules in prior.components().items():
        count = sum(weight.numel() for module in modules for weight in module.parameters())
        facts[f"parameters, {part}"] = f"{count:,}"
    facts["image"] = f"{prior.size_px} px"
    facts["latents"] = " x ".join(map(str, prior.latent_shape))
    tokens = condition.positive.text.tokens
    facts["text"] = f"{tokens.shape[1]} tokens, {tokens.shape[2]} wide"
    t = torch.tensor([0.1, 0.5, 1.0])
    for symbol, values_at in (("alpha", prior.schedule.alpha), ("sigma", prior.schedule.sigma)):
        shown = ", ".join(f"{value:.3f}" for value in values_at(t.to(device)).tolist())
        facts[f"{symbol} at t = 0.1, 0.5, 1"] = shown
    _measure(prior, condition, facts)
    _print(facts)
    if options.steps:
        _sample(prior, condition, options)
        print(options.output)


def _measure(prior: Any, condition: Any, facts: dict[str, Any]) -> None:
    """One encoding and one prediction. Raises: ValueError for values that are not finite."""
    count = len(condition.positive)
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    latents = prior.encode(torch.rand(count, 3, 64, 64, generator=generator))
    facts["encode"] = f"rms {_rms(latents):.3f}, {time.perf_counter() - start:.2f} s"
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    t = torch.full((count,), 0.5, device=latents.device)
    alpha, sigma = prior.schedule.alpha(t[:1]), prior.schedule.sigma(t[:1])
    start = time.perf_counter()
    predicted = prior.predict_noise(alpha * latents + sigma * noise, t, condition.positive)
    error = _rms(predicted - noise)
    facts["predict"] = f"error at t = 0.5 {error:.3f}, {time.perf_counter() - start:.2f} s"
    for what, values in (("encode", latents), ("predict", predicted)):
        if not values.isfinite().all():
            raise ValueError(f"{what}: gives values that are not finite; try another dtype")


def _rms(values: torch.Tensor) -> float:
    return float(values.float().square().mean().sqrt())


def _print(facts: dict[str, Any]) -> None:
    table = Table("prior", "")
    for name, value in facts.items():
        table.add_row(name, str(value))
    Console(stderr=True).print(table)
    print(json.dumps(facts, indent=2))


def _sample(prior: Any, condition: Any, options: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(options.seed)
    scale = options.guidance_scale
    if scale is None:
        scale = 1.0 if isinstance(prior, flux.FluxPrior) else 5.0  # its guidance is built in
    images = prior.sample(condition, options.steps, scale, generator=generator)
    row = torch.cat(list(images), dim=-1).movedim(0, -1)
    with atomic_write(options.output, "wb") as file:
        Image.fromarray((row * 255).round().byte().cpu().numpy()).save(file, "PNG")
