"""Whether a generator's meshes are closed, wound outward and coloured as their prompts say.

python -m benchmarks.mesh_quality --checkpoint runs/amortized --count 50 --json mesh_quality.json

A surface point counts for a named colour when its own lies within --delta-e (CIEDE2000) of a shade
of it: the palette's colour times a light factor in [0.5, 1.05], since colours carry the world's
light. At 20 neighbours count for one another: red, orange and brown; blue, purple and pink; brown
and black. At 12 only orange and brown do.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage.color import deltaE_ciede2000, rgb2lab

from scaledreamer.cli._output import DEVICES, choose_device, writable_folder
from scaledreamer.cli.errors import Parser, run
from scaledreamer.mesh.surface import Surface
from scaledreamer.pipeline import Result, TextTo3D
from scaledreamer.storage import write_json
from scaledreamer.toybox.world.grammar import PALETTE, SPLITS, Scene, parse, prompts, split_of
from scaledreamer.training import provenance

LIGHT_FACTORS = np.linspace(0.5, 1.05, 12)


def vertex_areas(surface: Surface) -> Float[np.ndarray, "V"]:
    """A third of the faces around each vertex, in square metres."""
    a, b, c = np.moveaxis(surface.vertices.astype(np.float64)[surface.faces], 1, 0)
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    corners = surface.faces.ravel()
    return np.bincount(corners, np.repeat(areas / 3, 3), minlength=len(surface.vertices))


def colour_share(surface: Surface, rgb: Sequence[float], max_delta_e: float) -> float:
    """Share of the area whose vertex colour is within `max_delta_e` of a shade of sRGB `rgb`."""
    assert surface.colours is not None, "a surface without colours was measured"
    own = rgb2lab(surface.colours.astype(np.float64))
    shades = rgb2lab((LIGHT_FACTORS[:, None] * np.asarray(rgb)).clip(0, 1))
    distance = np.full(len(own), np.inf)
    for shade in shades:
        distance = np.minimum(distance, deltaE_ciede2000(own, np.broadcast_to(shade, own.shape)))
    areas = vertex_areas(surface)
    return float(areas[distance <= max_delta_e].sum() / areas.sum())


def named_colours(scene: Scene) -> list[str]:
    """Every colour word of the scene's prompt, once."""
    words = [word for item in scene.items for word in (item.colour, item.accent, item.hat) if word]
    return list(dict.fromkeys(words))


@dataclass(frozen=True)
class Row:
    """What one prompt became; nothing but `error` and `seconds` when it has no mesh."""

    prompt: str
    split: str
    error: str | None
    seconds: dict[str, float]
    is_watertight: bool = False
    is_outward: bool = False
    colour_shares: dict[str, float] | None = None

    def has_colours(self, min_share: float) -> bool:
        shares = self.colour_shares
        return shares is not None and all(share >= min_share for share in shares.values())

    def faults(self, min_share: float) -> list[str]:
        """In words; none for a good mesh."""
        if self.error is not None:
            return [self.error]
        named = {"not watertight": self.is_watertight, "not outward": self.is_outward}
        shares = (self.colour_shares or {}).items()
        missing = [f"{name} covers {share:.1%}" for name, share in shares if share < min_share]
        return [*(fault for fault, is_good in named.items() if not is_good), *missing]


def assess(result: Result, max_delta_e: float) -> Row:
    """Measure one result of the pipeline."""
    row = Row(result.prompt, split_of(result.prompt), result.error, dict(result.seconds))
    mesh = result.mesh
    if mesh is None:
        return row
    colours = named_colours(parse(result.prompt))
    return replace(
        row,
        is_watertight=bool(mesh.to_trimesh().is_watertight),
        is_outward=mesh.volume > 0,
        colour_shares={name: colour_share(mesh, PALETTE[name], max_delta_e) for name in colours},
    )


def summarise(rows: Sequence[Row], min_share: float) -> dict[str, Any]:
    """Shares of all the prompts, those without a mesh included; seconds of those that have one."""
    made = [row for row in rows if row.error is None]
    seconds: dict[str, list[float]] = {}
    for row in made:
        for name, value in (*row.seconds.items(), ("all", sum(row.seconds.values()))):
            seconds.setdefault(name, []).append(value)
    return {
        "num_prompts": len(rows),
        "share": {
            "meshes": len(made) / len(rows),
            "watertight": sum(row.is_watertight for row in rows) / len(rows),
            "outward": sum(row.is_outward for row in rows) / len(rows),
            "all_named_colours": sum(row.has_colours(min_share) for row in rows) / len(rows),
        },
        "seconds": {
            name: {"median": statistics.median(values), "max": max(values)}
            for name, values in seconds.items()
        },
        "failures": {row.prompt: faults for row in rows if (faults := row.faults(min_share))},
    }


def show(report: dict[str, Any]) -> None:
    console = Console()
    table = Table("of the prompts", "share", title=f"{report['num_prompts']} prompts")
    for name, share in report["share"].items():
        table.add_row(name.replace("_", " "), f"{share:.1%}")
    console.print(table)
    stages = Table("stage", "median s", "max s", title=f"{report['num_threads']} threads")
    for name, seconds in report["seconds"].items():
        stages.add_row(name, f"{seconds['median']:.3f}", f"{seconds['max']:.3f}")
    console.print(stages)
    for prompt, faults in report["failures"].items():
        console.print(f"{prompt}: {'; '.join(faults)}", markup=False, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="mesh_quality", description="Shares of good meshes, and seconds.")
    parser.add_argument("--checkpoint", default="toybox:generator", metavar="FOLDER")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--count", type=int, default=50, help="prompts, drawn from all the splits")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the generator")
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--delta-e", type=float, default=20.0, help="CIEDE2000, same colour below")
    parser.add_argument("--min-share", type=float, default=0.02, help="of the area, a colour")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    return run(lambda: benchmark(parser.parse_args(argv)))


def benchmark(options: argparse.Namespace) -> int:
    if options.count < 1:
        raise ValueError(f"--count: got {options.count}; at least 1")
    corpus = [prompt for split in dict.fromkeys(options.splits) for prompt in prompts(split)]
    drawn = random.Random(options.seed).sample(corpus, min(options.count, len(corpus)))
    if options.json is not None:
        with writable_folder(options.json.parent):
            pass
    device = choose_device(options.device)
    results = TextTo3D.from_pretrained(options.checkpoint, device).generate(
        drawn, options.resolution, options.seed
    )
    console = Console(stderr=True)
    steps = track(results, "generating", total=len(drawn), console=console)
    rows = [assess(result, options.delta_e) for result in steps]
    report = {
        **summarise(rows, options.min_share),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "num_threads": torch.get_num_threads(),
        "versions": provenance.versions(),
        "prompts": [asdict(row) for row in rows],
    }
    show(report)
    if options.json is not None:
        write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
