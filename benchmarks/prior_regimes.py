"""The embedded prior as a sharp one (camera given) and as a broad one (view words alone).

python -m benchmarks.prior_regimes --output docs/images --json benchmarks/results/regimes.json

Diversity is the mean distance of two samples of one caption and view: root mean square of pixels,
and one minus the cosine of the judge's features. Ground truth in drawn looks (lamp, shade, size)
and backgrounds is what prompt and camera leave open.
Source: pairwise distances of samples as in Zhu et al., "Toward multimodal image-to-image
translation", NeurIPS 2017, with our judge in the place of LPIPS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from scaledreamer.cameras import ring
from scaledreamer.cli._output import writable_folder
from scaledreamer.cli.errors import Parser, run
from scaledreamer.encoders import clip_score
from scaledreamer.evaluation import judging, protocol
from scaledreamer.priors import unet
from scaledreamer.rendering.sheet import contact_sheet
from scaledreamer.storage import atomic_write, write_json
from scaledreamer.toybox.train.dataset import BACKGROUND
from scaledreamer.toybox.world import grammar
from scaledreamer.toybox.world.render import Look, render
from scaledreamer.training import provenance

PROMPTS = (
    "a red car with black wheels",
    "a yellow duck wearing a blue hat",
    "a brown chair with a red seat",
    "a white boat with a red sail",
    "a green cactus on top of a purple box",
    "a red house next to a black cat",
)
AZIMUTHS_DEG = (0.0, 90.0, 180.0)
SHOWN = 6


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="prior_regimes", description="Samples and diversity of both regimes.")
    parser.add_argument("--prior", default="toybox:prior", metavar="FOLDER")
    parser.add_argument("--samples", type=int, default=6, help="of each caption and view")
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--sampling-steps", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    return run(lambda: benchmark(parser.parse_args(argv)))


def diversity(images: Tensor, features: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Means over [captions, samples, 3, H, W]; both are 0 for equal samples."""
    count = images.shape[1]
    first, second = torch.triu_indices(count, count, offset=1)
    pixels = (images[:, first] - images[:, second]).square().mean((2, 3, 4)).sqrt().mean()
    unit = features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    cosine = (unit[:, first] * unit[:, second]).sum(-1).mean()
    return {"pixel_rms": float(pixels), "judge_distance": float(1 - cosine)}


def _truth(count: int) -> Tensor:
    """[captions x views, count, 3, 32, 32] in drawn looks on drawn backgrounds."""
    draws, span = [], BACKGROUND.high - BACKGROUND.low
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        look = Look.drawn(len(PROMPTS), generator)
        behind = BACKGROUND.low + span * torch.rand(len(PROMPTS), 3, generator=generator)
        is_white = torch.rand(len(PROMPTS), generator=generator) < BACKGROUND.white_probability
        behind[is_white] = 1.0
        scenes = [grammar.parse(prompt) for prompt in PROMPTS]
        cameras = ring(len(PROMPTS), AZIMUTHS_DEG, judging.ELEVATION_DEG)
        draws.append(render(scenes, cameras, 32, behind, look).rgb.flatten(0, 1))
    return torch.stack(draws, dim=1)


def _samples(options: argparse.Namespace, is_sharp: bool) -> Tensor:
    """As `_truth`, of the prior."""
    config = unet.Config(
        folder=options.prior, autocast=True, use_cameras=is_sharp, use_view_words=not is_sharp
    )
    prior = unet.create(config)
    cameras = ring(len(PROMPTS), AZIMUTHS_DEG, judging.ELEVATION_DEG)
    draws = [
        protocol.prior_images(prior, options.sampling_steps, options.guidance_scale, seed)(
            PROMPTS, cameras, prior.size_px
        ).flatten(0, 1)
        for seed in track(range(options.samples), "sampling", console=Console(stderr=True))
    ]
    return torch.stack(draws, dim=1)


def benchmark(options: argparse.Namespace) -> int:
    if options.samples < 2:
        raise ValueError(f"--samples: got {options.samples}; at least 2")
    scorer = clip_score.load("toybox:judge")
    texts = scorer.text_features(
        [text for prompt in PROMPTS for text in judging.candidates(prompt)]
    ).unflatten(0, (len(PROMPTS), -1))
    rows: dict[str, dict[str, Any]] = {}
    with writable_folder(options.output) as folder:
        sets = {
            "ground truth": _truth(options.samples),
            "sharp: camera given": _samples(options, True),
            "broad: view words": _samples(options, False),
        }
        for name, images in sets.items():
            rows[name] = diversity(images, scorer.image_features)
            features = scorer.image_features(images.flatten(0, 1))
            per_prompt = features.unflatten(0, (len(PROMPTS), -1)) @ texts.mT
            rows[name]["recall_at_1"] = float((per_prompt.argmax(-1) == 0).float().mean())
            _save_sheet(folder / f"regime_{name.split(':')[0].replace(' ', '_')}.png", images)
    table = Table("", *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in row.values()))
    Console().print(table)
    if options.json is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        write_json(
            options.json, {"rows": rows, "settings": settings, "versions": provenance.versions()}
        )
    return 0


def _save_sheet(path: Path, images: Tensor) -> None:
    """One row a caption: some samples from the front, then from behind."""
    views = images.unflatten(0, (len(PROMPTS), len(AZIMUTHS_DEG)))
    shown = torch.cat((views[:, 0, :SHOWN], views[:, -1, :SHOWN]), dim=1)
    sized = F.interpolate(shown.flatten(0, 1), 64).unflatten(0, shown.shape[:2])
    rows = [
        (f"{prompt}: front, back", row.cpu()) for prompt, row in zip(PROMPTS, sized, strict=True)
    ]
    with atomic_write(path, "wb") as file:
        contact_sheet(rows).save(file, "PNG", optimize=True)


if __name__ == "__main__":
    sys.exit(main())
