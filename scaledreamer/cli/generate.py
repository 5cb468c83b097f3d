"""`generate`: prompts to mesh files."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scaledreamer.cameras import ring
from scaledreamer.cli._output import DEVICES, choose_device, writable_folder
from scaledreamer.cli.errors import Parser, run
from scaledreamer.data.corpus import prompt_lines
from scaledreamer.mesh.export import FORMATS
from scaledreamer.mesh.isosurface import IsosurfaceConfig
from scaledreamer.mesh.surface import Surface
from scaledreamer.pipeline import GeneratorFolder, Result, TextTo3D
from scaledreamer.rendering.raster import rasterise
from scaledreamer.rendering.sheet import contact_sheet
from scaledreamer.storage import atomic_write, file_stem, normalise_text, prompt_id
from scaledreamer.toybox.world.language import explain

_NUM_EXAMPLES = 12
_PREVIEW_PX = 256
_PREVIEW_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when some prompts failed, 2 for a user's error."""
    return run(lambda: _generate(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="generate", description="Turn prompts into coloured, watertight meshes.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    source.add_argument("--prompts", metavar="FILE", help="one a line, # comments; - reads stdin")
    source.add_argument("--examples", action="store_true", help="print some prompts and exit")
    parser.add_argument(
        "--checkpoint",
        default="toybox:generator",
        metavar="FOLDER",
        help="a run, a checkpoint or a generator folder (default: the shipped generator)",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="FOLDER")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["glb"], metavar="FORMAT")
    parser.add_argument("--resolution", type=int, default=96, help="16 to 512 (default 96)")
    parser.add_argument("--preview", action="store_true", help="also a PNG of four views each")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="a report on stdout instead of paths")
    return parser


def _generate(options: argparse.Namespace) -> int:
    if options.examples:
        return _print_examples(options.seed)
    prompts = _read_prompts(options)
    IsosurfaceConfig(resolution=options.resolution)
    device = choose_device(options.device)
    GeneratorFolder.find(options.checkpoint)
    with writable_folder(options.output) as folder:
        start = time.perf_counter()
        pipe = TextTo3D.from_pretrained(options.checkpoint, device)
        seconds_load = time.perf_counter() - start
        console = Console(stderr=True)
        rows = []
        with _progress(console, len(prompts)) as progress:
            task = progress.add_task("generating", total=len(prompts))
            for result in pipe.generate(prompts, options.resolution, options.seed):
                rows.append(_write(result, folder, options))
                _comment(result, console)
                progress.advance(task)
        seconds_all = time.perf_counter() - start
    num_failed = sum(row["error"] is not None for row in rows)
    if options.json:
        report = {
            "format": 1,
            "checkpoint": options.checkpoint,
            "device": device,
            "resolution": options.resolution,
            "seed": options.seed,
            "seconds": {"load": seconds_load},
            "failed": num_failed,
            "results": rows,
        }
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return int(num_failed > 0)
    for path in (path for row in rows for path in (*row["files"].values(), row["preview"]) if path):
        print(path)
    console.print(
        f"{len(rows) - num_failed} of {len(rows)} prompts in {seconds_all:.1f} s, "
        f"of which {seconds_load:.1f} s loading",
        highlight=False,
    )
    return int(num_failed > 0)


def _read_prompts(options: argparse.Namespace) -> list[str]:
    """The prompts, each once."""
    if options.prompt is not None:
        prompts, where = list(map(normalise_text, options.prompt)), "--prompt"
        if not all(prompts):
            raise ValueError("--prompt: got an empty text; describe an object")
    else:
        where = f"--prompts {options.prompts}"
        is_stdin = options.prompts == "-"
        try:
            text = sys.stdin.read() if is_stdin else Path(options.prompts).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 text ({error.reason})") from error
        prompts = prompt_lines(text)
    if not prompts:
        raise ValueError(f"{where}: holds no prompts; write one per line")
    return list(dict.fromkeys(prompts))


def _progress(console: Console, num_prompts: int) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    is_hidden = num_prompts == 1 or not console.is_terminal
    return Progress(*columns, console=console, disable=is_hidden)


def _write(result: Result, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Save one result; its row of the report."""
    seconds, files, error = dict(result.seconds), {}, result.error
    preview = None
    if result.mesh is not None:
        start = time.perf_counter()
        for name in dict.fromkeys(options.formats):
            path = folder / f"{file_stem(result.prompt)}.{name}"
            result.save(path)
            files[name] = str(path)
        seconds["write"] = time.perf_counter() - start
        if options.preview:
            start = time.perf_counter()
            path = folder / f"{file_stem(result.prompt)}.png"
            _save_preview(result.prompt, result.mesh, path)
            preview = str(path)
            seconds["preview"] = time.perf_counter() - start
    return {
        "prompt": result.prompt,
        "id": prompt_id(result.prompt),
        "error": error,
        "files": files,
        "preview": preview,
        "seconds": seconds,
        "counts": dict(result.counts),
        "caption": result.caption,
        "unknown_words": dict(result.unknown_words),
    }


def _save_preview(prompt: str, mesh: Surface, path: Path) -> None:
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces).long()
    colours = torch.from_numpy(mesh.colours)
    cameras = ring(1, _PREVIEW_AZIMUTHS_DEG)
    views = rasterise(vertices, faces, colours, cameras, _PREVIEW_PX)
    with atomic_write(path, "wb") as file:
        contact_sheet([(prompt, views.rgb[0])]).save(file, format="PNG")


def _comment(result: Result, console: Console) -> None:
    """Warnings and the prompt's error, on stderr."""
    lines = []
    if result.unknown_words:
        lines.append(f"warning: {result.prompt!r}: {explain(result.unknown_words)}")
    if normalise_text(result.caption).lower() != result.prompt.lower():
        lines.append(f"note: {result.prompt!r} was read as {result.caption!r}")
    if result.error is not None:
        lines.append(f"error: {result.prompt!r}: {' '.join(result.error.split())}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_examples(seed: int) -> int:
    from scaledreamer.toybox.world.grammar import prompts

    print(*random.Random(seed).sample(prompts("train"), _NUM_EXAMPLES), sep="\n")
    return 0
