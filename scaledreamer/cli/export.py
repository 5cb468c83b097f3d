"""`scaledreamer export`: the averaged weights of a run, or one prompt's scene, as a folder."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from scaledreamer.cli.errors import Parser, run
from scaledreamer.pipeline import EXPORTED, GeneratorFolder, export_scene
from scaledreamer.storage import atomic_folder
from scaledreamer.toybox.world.language import explain

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def main(argv: Sequence[str] | None = None) -> int:
    return run(lambda: _export(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="scaledreamer export",
        description="Write a generator folder (config.json, ema.safetensors, manifest.json).",
    )
    parser.add_argument("checkpoint", metavar="RUN", help="a run, checkpoint or generator folder")
    parser.add_argument("output", type=Path, metavar="FOLDER", help="new, or an earlier export")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="only this prompt's scene, as a triplane generator that training can refine",
    )
    parser.add_argument(
        "--seed", type=int, help="of that scene's latent, if it has one (default 0)"
    )
    parser.add_argument(
        "--dtype", choices=tuple(_DTYPES), help="default: float16, with --prompt float32"
    )
    return parser


def _export(options: argparse.Namespace) -> int:
    prompts = options.prompt or []
    if len(prompts) > 1:
        raise ValueError(f"--prompt: got {len(prompts)}; a folder holds one scene, so give one")
    if options.seed is not None and not prompts:
        raise ValueError("--seed: only a scene has a latent; give --prompt too")
    found = GeneratorFolder.find(options.checkpoint)
    _check_output(options.output, found.path)
    dtype = _DTYPES[options.dtype or ("float32" if prompts else "float16")]
    with atomic_folder(options.output) as folder:
        if prompts:
            count = _export_scene(found, prompts[0], folder, dtype, options.seed or 0)
        else:
            count = found.export(folder, dtype)
        size_mb = (folder / "ema.safetensors").stat().st_size / 1e6
    print(f"{options.output}: {count:,} weights, {size_mb:.1f} MB")
    return 0


def _export_scene(
    found: GeneratorFolder, prompt: str, folder: Path, dtype: torch.dtype, seed: int
) -> int:
    """The number of weights; words that the generator does not know are named in a warning."""
    count, reading = export_scene(found, prompt, folder, dtype, seed)
    if reading.unknown:
        warnings.warn(f"{prompt!r}: {explain(reading.unknown)}", stacklevel=2)
    return count


def _check_output(output: Path, source: Path) -> None:
    """Raises ValueError when writing `output` would delete anything but an earlier export."""
    if source.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"output: {output} holds {source}, which is read; name another folder")
    if not output.is_dir():
        return
    extra = {"README.md", "card.json", "samples.png"}
    names = {path.name for path in output.iterdir()} - extra
    if names and names != {*EXPORTED, "manifest.json"}:
        raise ValueError(
            f"output: {output} is neither empty nor an exported generator; name another folder"
        )
