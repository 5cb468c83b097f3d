"""`scaledreamer export`: the averaged weights of a run as a folder to ship."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from scaledreamer.cli.errors import Parser, run
from scaledreamer.pipeline import EXPORTED, GeneratorFolder
from scaledreamer.storage import atomic_folder

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
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="float16")
    return parser


def _export(options: argparse.Namespace) -> int:
    found = GeneratorFolder.find(options.checkpoint)
    _check_output(options.output, found.path)
    dtype = _DTYPES[options.dtype]
    with atomic_folder(options.output) as folder:
        count = found.export(folder, dtype)
        size_mb = (folder / "ema.safetensors").stat().st_size / 1e6
    print(f"{options.output}: {count:,} weights, {size_mb:.1f} MB")
    return 0


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
